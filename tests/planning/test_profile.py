"""The profile file: what goes in comes out, whole or not at all, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from profiles import IDENTITY, candidate_of, gram_of, profile_of, schedule_of
from safetensors import safe_open
from safetensors.torch import save_file

from dit_accel.models import miniature
from dit_accel.planning import candidate as candidate_file
from dit_accel.planning import profile as profile_file
from dit_accel.planning import profile_key
from dit_accel.planning.candidate import CandidatePlan
from dit_accel.planning.difficulty import PromptDifficulty
from dit_accel.planning.plan import Extrapolation, SamplerCoefficients, SecondExpert
from dit_accel.planning.profile import Profile
from dit_accel.planning.profile_file import ProfileError
from dit_accel.planning.profile_key import ProfileKey


@pytest.fixture
def profile() -> Profile:
    first = candidate_of(
        (0, 2, 4, 8, 14), [40.0, 41.5, 39.0], prompt_scores=[0.1, -0.1, 0.0], parts=2
    )
    schedule = schedule_of(mix=(1.0, -3.0))
    identity = dataclasses.replace(IDENTITY, parts=2, guidance=4.0)
    return profile_of([first], schedule=schedule, key=identity)


def tensors_of(profile: Profile) -> dict[str, torch.Tensor]:
    found = {
        "gram": profile.gram,
        "gain": profile.error_gain,
        "shares": profile.sampler.coefficients,
        "times": profile.sampler.timesteps,
    }
    for place, candidate in enumerate(profile.candidates):
        for name, filed in candidate_file.CANDIDATE_NAMES.items():
            found[f"rungs.{place}.{filed}"] = getattr(candidate, name)
    return found


def rewritten(path: Path, **changes: Any) -> Path:
    """The file with other values in its header; None takes one out."""
    with safe_open(str(path), "pt") as file:
        head = json.loads(file.metadata()["profile"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    head = {k: v for k, v in (head | changes).items() if v is not None}
    save_file(tensors, str(path), metadata={"profile": json.dumps(head)})
    return path


def test_what_is_saved_is_loaded_bit_equal(profile, tmp_path):
    path = tmp_path / "a.safetensors"
    profile.save(path)
    loaded = Profile.load(path)
    before, after = tensors_of(profile), tensors_of(loaded)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
        assert value.dtype == after[name].dtype == torch.float64, name
    for name in ("key", "error_memory", "depth", "metadata"):
        assert getattr(loaded, name) == getattr(profile, name)
    assert loaded.sampler.branch_weights == profile.sampler.branch_weights
    assert [candidate.computed for candidate in loaded.candidates] == [(0, 2, 4, 8, 14)]
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == path.read_bytes()


def contents(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The header and the tensors of a file."""
    with safe_open(str(path), "pt") as file:
        head = json.loads(file.metadata()["profile"])
        return head, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


CANDIDATE_FILE = {"alarm", "changes", "latents_db", "psnr_db", "spread", "surprise"}
"""Names that are in files which people have; none of them may change."""


def test_the_shipped_profile_is_written_as_it_was_read(tmp_path):
    """Header and tensors, by names that are written out here and not taken from the code."""
    shipped, again = miniature.path() / "dit-accel-profile.safetensors", tmp_path / "a.safetensors"
    Profile.load(shipped).save(again)
    (head, tensors), (head_again, tensors_again) = contents(shipped), contents(again)
    candidates = range(len(head["rungs"]))
    assert set(head) == {"format", "version", "identity", "mix", "memory", "depth", "rungs",
                         "careful", "made", "levels"}  # fmt: skip
    assert list(head["identity"]) == [
        "pipeline", "transformer", "scheduler", "weights", "sampler", "parts", "steps", "guidance",
        "height", "width", "frames", "dtype",
    ]  # fmt: skip
    assert set(tensors) == (
        {"gram", "gain", "shares", "times"}
        | {"levels.errors", "levels.flops", "levels.seconds"}
        | {f"difficulty.{name}" for name in ("centre", "weights", "known")}
        | {f"rungs.{place}.{name}" for place in candidates for name in CANDIDATE_FILE}
    )
    assert head["careful"] == []
    assert head_again == {name: value for name, value in head.items() if name != "levels"}
    assert tensors_again.keys() == {name for name in tensors if not name.startswith("levels.")}
    for name in tensors_again:
        value = tensors[name]
        assert value.dtype == tensors_again[name].dtype, name
        assert value.numpy().tobytes() == tensors_again[name].numpy().tobytes(), name


@pytest.mark.parametrize("version", [1, 2])
def test_a_section_of_levels_is_read_over(profile, tmp_path, version):
    """Files of earlier versions may have one, whole or not; the profile in it is the same."""
    path, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    profile.save(path)
    plain = path.read_bytes()
    head, tensors = contents(path)
    head["levels"] = {"version": version, "names": ["prune:0.5", "attention"], "ages": [1, 3],
                      "device": "cpu", "clips": 2}  # fmt: skip
    tensors |= {"levels.errors": torch.zeros(2, 2, 20), "levels.flops": torch.ones(2)}
    save_file(tensors, str(path), metadata={"profile": json.dumps(head)})
    Profile.load(path).save(again)
    assert again.read_bytes() == plain


@pytest.mark.parametrize("careful", [None, [[0, 2, 4, 6, 8, 11, 14]], "nonsense"], ids=str)
def test_the_old_section_of_careful_plans_is_read_over(profile, tmp_path, careful):
    """Files of earlier versions may have some; those versions need the empty list."""
    path, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    profile.save(path)
    plain = path.read_bytes()
    head, tensors = contents(path)
    assert head["careful"] == []
    assert {name for name in tensors if name.startswith("rungs.0.")} == {
        f"rungs.0.{name}" for name in CANDIDATE_FILE
    }
    tensors["careful.0.psnr_db"] = torch.full((3,), 44.0, dtype=torch.float64)
    save_file(tensors, str(path), metadata={"profile": json.dumps(head)})
    Profile.load(rewritten(path, careful=careful)).save(again)
    assert again.read_bytes() == plain


@pytest.mark.parametrize(
    ("kind", "names", "elsewhere"),
    [
        (ProfileKey, profile_key.KEY_NAMES, set()),
        (SamplerCoefficients, profile_file.COEFFICIENTS_NAMES, {"second"}),
        (SecondExpert, profile_file.SECOND_NAMES, set()),
        (CandidatePlan, candidate_file.CANDIDATE_NAMES,
         {"computed", "expected"}),  # in the header, and optional
        (PromptDifficulty, profile_file.DIFFICULTY_NAMES, set()),
        (Profile, profile_file.PROFILE_NAMES,
         {"key", "sampler", "candidates", "difficulty", "evidence", "measured", "prior"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_every_field_has_a_name_in_the_file(kind, names, elsewhere):
    fields = {field.name for field in dataclasses.fields(kind)}
    assert set(names) | elsewhere == fields
    assert len(set(names.values())) == len(names)


def test_a_profile_without_candidates_is_one(tmp_path):
    profile_of().save(tmp_path / "a.safetensors")
    loaded = Profile.load(str(tmp_path / "a.safetensors"))
    assert loaded.candidates == ()
    assert loaded.error_model.num_steps == 20


def test_what_was_expected_of_a_candidate_is_in_its_file(profile, tmp_path):
    """And moves with its scores, as at another size; a file without it is one."""
    path, expected = tmp_path / "a.safetensors", torch.tensor([44.0, 5.0], dtype=torch.float64)
    assert profile.candidates[0].expected is None
    profile = dataclasses.replace(
        profile, candidates=(dataclasses.replace(profile.candidates[0], expected=expected),)
    )
    profile.save(path)
    loaded = Profile.load(path)
    assert torch.equal(loaded.candidates[0].expected, expected)
    assert loaded.rests_on == "3 calibration clips and other models"
    assert loaded.for_other_size().candidates[0].expected.tolist() == [41.0, 5.0]
    damaged = dataclasses.replace(profile.candidates[0], expected=torch.tensor([44.0, 0.0]))
    dataclasses.replace(profile, candidates=(damaged,)).save(path)
    with pytest.raises(ProfileError, match=r"rungs.0.expected\[1\] is 0.0; accepted: 0.1 or more"):
        Profile.load(path)


def test_inner_products_are_stored_in_float32(tmp_path):
    exact = gram_of(schedule_of()) + 1e-12
    profile_of(gram=exact).save(tmp_path / "a.safetensors")
    assert torch.equal(Profile.load(tmp_path / "a.safetensors").gram, exact.float().double())


def test_the_plan_of_a_candidate_has_its_changes(profile):
    """Of each window as many as it has features: two parts of one, two, three and three steps."""
    candidate = profile.candidates[0]
    changes = candidate.corrections.clone()
    changes[0, :3] = torch.tensor([1.0, -3.0, 0.5])  # by mix and shares: -20, -20 and -10 at step 1
    plan = profile.plan_of(dataclasses.replace(candidate, corrections=changes))
    assert plan.computed == candidate.computed
    extrapolated = plan.extrapolations[1]
    assert extrapolated.weights[0] == pytest.approx({0: 1.0 - 20.0})
    assert extrapolated.weights[1] == pytest.approx({0: 1.0 - 20.0})
    assert extrapolated.noise_weight == pytest.approx(-10.0)
    assert plan.extrapolations[15] == Extrapolation(
        ({14: pytest.approx(7 / 6), 8: pytest.approx(-1 / 6), 4: 0.0},) * 2
    )


def test_nothing_is_left_where_writing_fails(profile, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"what was there")

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        profile.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_bytes() == b"what was there"


def test_a_folder_that_is_not_there_is_an_error_of_the_system(profile, tmp_path):
    with pytest.raises(FileNotFoundError):
        profile.save(tmp_path / "nowhere" / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no profile at .*a\.safetensors"):
        Profile.load(tmp_path / "a.safetensors")


def test_a_foreign_file_is_refused(tmp_path):
    text, weights = tmp_path / "a.txt", tmp_path / "b.safetensors"
    text.write_text("hello")
    with pytest.raises(ProfileError, match=r"a\.txt is no profile: "):
        Profile.load(text)
    save_file({"w": torch.ones(1)}, str(weights))
    with pytest.raises(ProfileError, match=r"has format None, version None; accepted: dit-accel-"):
        Profile.load(weights)


@pytest.mark.parametrize("head", ["[]", "3", '"text"', "null", "{"])
def test_a_header_that_is_no_object_is_refused(tmp_path, head):
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(1)}, str(path), metadata={"profile": head})
    with pytest.raises(ProfileError, match=r"a\.safetensors"):
        Profile.load(path)


def test_a_file_that_was_cut_off_is_refused(profile, tmp_path):
    path = tmp_path / "a.safetensors"
    profile.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ProfileError, match="is no profile"):
        Profile.load(path)


def test_another_version_is_refused(profile, tmp_path):
    profile.save(tmp_path / "a.safetensors")
    path = rewritten(tmp_path / "a.safetensors", version=2)
    with pytest.raises(ProfileError, match="version 2; accepted: dit-accel-profile, version 1"):
        Profile.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"identity": None},
        {"identity": {"pipeline": "WanPipeline"}},
        {"identity": dataclasses.asdict(IDENTITY) | {"colour": "blue"}},
        {"mix": [1.0]},
        {"memory": "long"},
        {"memory": 0.0},
        {"rungs": [[0, 2], [0, 3]]},
        {"rungs": [[0, 2, 4]]},
    ],
    ids=str,
)
def test_a_damaged_header_is_refused(profile, tmp_path, changes):
    profile.save(tmp_path / "a.safetensors")
    path = rewritten(tmp_path / "a.safetensors", **changes)
    with pytest.raises(ProfileError, match="is a damaged profile"):
        Profile.load(path)


def test_what_a_profile_is_not_transferred_to_is_refused_by_name():
    other = dataclasses.replace(IDENTITY, weights="89ab", scheduler="UniPC", steps=30)
    assert IDENTITY.refusals(IDENTITY) == ()
    assert IDENTITY.refusals(other) == (
        "scheduler is FlowMatchEulerDiscreteScheduler in the profile, UniPC here",
        "weights is 0123 in the profile, 89ab here",
    )


@pytest.mark.parametrize("parts", [1, 2])
def test_guidance_is_transferred_where_there_are_two_parts(parts):
    mine = dataclasses.replace(IDENTITY, parts=parts, guidance=4.0)
    other = dataclasses.replace(mine, guidance=6.0)
    said = ("guidance is 4.0 in the profile, 6.0 here",)
    assert mine.refusals(other) == (said if parts == 1 else ())
    assert mine.transfers(other) == (said if parts == 2 else ())


def test_what_is_transferred_is_named():
    other = dataclasses.replace(
        IDENTITY, steps=30, height=32, width=48, frames=17, dtype="bfloat16"
    )
    assert IDENTITY.refusals(other) == ()
    assert IDENTITY.transfers(other) == (
        "steps is 20 in the profile, 30 here",
        "height is 16 in the profile, 32 here",
        "width is 16 in the profile, 48 here",
        "frames is 9 in the profile, 17 here",
        "dtype is float32 in the profile, bfloat16 here",
    )


def test_the_field_over_its_own_timesteps_is_itself(profile):
    field = profile.error_model_for(profile.sampler)
    assert torch.equal(field.gram, profile.gram)
    assert torch.allclose(field.error_gain, profile.error_gain, rtol=1e-12)
    assert field.error_memory == profile.error_memory


def test_the_field_at_every_second_timestep_has_these_rows(profile):
    """The timesteps of ten steps are every second of twenty; memory counts in steps."""
    half = schedule_of(10, mix=(1.0, -5.0))
    field = profile.error_model_for(half)
    rows = [*range(0, 20, 2), *range(20, 40, 2), 40]
    assert torch.allclose(field.gram, profile.gram[:, rows][:, :, rows], rtol=1e-12)
    assert torch.allclose(field.error_gain, profile.error_gain[::2], rtol=1e-12)
    assert field.error_memory == profile.error_memory / 2
    assert field.sampler is half


def test_between_two_timesteps_rows_are_on_the_line_and_beyond_the_ends_level():
    """Predictions 0, 10 and 20 at 1000, 500 and 0; asked for at 1200, 750 and -100."""
    rows = torch.tensor([[0.0], [10.0], [20.0], [1.0]], dtype=torch.float64)
    given = SamplerCoefficients(
        torch.ones(3), torch.tensor([1000.0, 500.0, 0.0], dtype=torch.float64)
    )
    gain = torch.tensor([1.0, 100.0, 1.0], dtype=torch.float64)
    profile = profile_of(schedule=given, gram=(rows @ rows.T)[None], error_gain=gain)
    wanted = SamplerCoefficients(
        torch.ones(3), torch.tensor([1200.0, 750.0, -100.0], dtype=torch.float64)
    )
    field = profile.error_model_for(wanted)
    expected = torch.tensor([[0.0], [5.0], [20.0], [1.0]], dtype=torch.float64)
    assert torch.allclose(field.gram[0], expected @ expected.T)
    assert field.error_gain.tolist() == pytest.approx([1.0, 10.0, 1.0])


def test_a_field_of_other_parts_is_refused(profile):
    with pytest.raises(ProfileError, match="branches is 1; accepted with this profile: 2"):
        profile.error_model_for(schedule_of())


def test_timesteps_that_rise_are_those_that_fall_mirrored(tmp_path):
    """Mochi's rise. A plan of other steps takes the rows of the nearest timesteps all the same."""
    falling = profile_of()
    own = falling.sampler
    rising = dataclasses.replace(
        falling, sampler=dataclasses.replace(own, timesteps=1000 - own.timesteps)
    )
    rising.save(tmp_path / "a.safetensors")
    read = Profile.load(tmp_path / "a.safetensors")
    run = schedule_of(12)
    mirrored = dataclasses.replace(run, timesteps=1000 - run.timesteps)
    one, other = falling.error_model_for(run), read.error_model_for(mirrored)
    assert torch.allclose(one.gram, other.gram) and torch.allclose(one.error_gain, other.error_gain)


def test_timesteps_that_go_up_and_down_are_refused(profile, tmp_path):
    path = tmp_path / "a.safetensors"
    profile.save(path)
    head, tensors = contents(path)
    tensors["times"][3] = tensors["times"][5]
    save_file(tensors, str(path), metadata={"profile": json.dumps(head)})
    with pytest.raises(ProfileError, match=r"a\.safetensors is a damaged profile: times rises and"):
        Profile.load(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gram", lambda t: t.fill_(float("nan")), r"gram\[0, 0, 0\] is nan"),
        ("gram", lambda t: t.neg_(), "gram has a negative eigenvalue"),
        ("gain", lambda t: t[:-1].clone(), "gain has shape"),
        ("gain", lambda t: t.long(), "gain has dtype torch.int64"),
        ("rungs.0.psnr_db", lambda t: t.fill_(1e9), r"rungs.0.psnr_db\[0\] is 1000000000.0"),
        ("rungs.0.spread", lambda t: t.zero_(), r"rungs.0.spread\[0\] is 0.0"),
        ("rungs.0.changes", lambda t: t[:, :2].clone(), "rungs.0.changes has 2 columns"),
    ],
)
def test_a_tensor_that_is_not_accepted_is_named(profile, tmp_path, name, value, message):
    path = tmp_path / "a.safetensors"
    profile.save(path)
    head, tensors = contents(path)
    tensors[name] = value(tensors[name])
    save_file(tensors, str(path), metadata={"profile": json.dumps(head)})
    with pytest.raises(ProfileError, match=message) as error:
        Profile.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rungs": [[0, 2, 2, 8, 14]]}, r"rungs\[0\] is a list of 5 entries; accepted: rising"),
        ({"rungs": [[0, 2, 4, 8, 20]]}, r"rungs\[0\]\[4\] is 20"),
        ({"rungs": [[0, 2, 4, 8, "14"]]}, r"rungs\[0\]\[4\] is '14'"),
        ({"mix": [1.0, 0.0]}, r"mix\[1\] is 0.0; accepted: a number that is not 0"),
        ({"memory": -1}, "memory is -1"),
        ({"depth": 0}, "depth is 0"),
        ({"identity": {}}, "identity.pipeline is missing"),
        ({"made": {"model": ["x"]}}, "made.model is a list"),
    ],
)
def test_a_field_of_the_header_that_is_not_accepted_is_named(profile, tmp_path, changes, message):
    path = tmp_path / "a.safetensors"
    profile.save(path)
    with pytest.raises(ProfileError, match=message) as error:
        Profile.load(rewritten(path, **changes))
    assert str(path) in str(error.value)
