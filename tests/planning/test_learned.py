"""What runs taught, and its file: whole or not at all, checked, bounded, and added to by many."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import kill_learning
import pytest
import torch

from dit_accel.planning import learned_file, profile_file
from dit_accel.planning.learned import (
    KINDS,
    MOST_LEARNED_BYTES,
    MOST_MEASURED,
    Learned,
    Measured,
    Observations,
    RunKind,
)
from dit_accel.planning.plan import SamplerCoefficients, SecondExpert
from dit_accel.planning.profile_file import OtherVersionError, ProfileError
from dit_accel.planning.profile_key import ProfileKey

KEY = ProfileKey("WanPipeline", "b", "c", "0" * 16, "1" * 16)


def kind_of(steps: int = 4, **more: object) -> RunKind:
    sampler = SamplerCoefficients(
        torch.full((steps,), -1 / steps).double(), torch.arange(steps, 0, -1).double(), (1.0, -3.0)
    )
    return dataclasses.replace(RunKind(sampler, 4.0, 60), **more)


def observations(seed: int = 0, steps: int = 4, **more: object) -> Observations:
    rows = torch.randn(
        2 * steps + 1, 250, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return Observations(kind_of(steps, **more), 1, rows @ rows.T)


def test_worked_example(tmp_path: Path) -> None:
    """Two clips of one size are one sum; a clip of another size stands beside it."""
    one, two, other = observations(), observations(1), observations(2, numbers=90)
    known = Learned(KEY).with_run(one).with_run(other).with_run(two)
    assert [each.kind.numbers for each in known.observations] == [90, 60]  # the latest last
    assert [each.clips for each in known.observations] == [1, 2] and known.runs == 3
    assert torch.equal(known.observations[1].products, one.products + two.products)
    known = known.with_measured(Measured("a", KINDS[0], 30.0, 31.5))
    path = learned_file.path_in(tmp_path, KEY)
    path.parent.mkdir()
    learned_file.save(path, known)
    back = learned_file.load(path)
    assert back.key == KEY and back.runs == 3
    assert back.measured == known.measured
    for read, was in zip(back.observations, known.observations, strict=True):
        torch.testing.assert_close(read.products, was.products, rtol=1e-12, atol=0)
        assert read.kind.is_like(was.kind)


def test_a_psnr_alone_is_written_too(tmp_path: Path) -> None:
    known = Learned(KEY).with_measured(Measured("a", KINDS[0], 30.0, 31.5))
    learned_file.save(tmp_path / "a.safetensors", known)
    back = learned_file.load(tmp_path / "a.safetensors")
    assert back.measured == known.measured and back.observations == ()


def test_a_digest_tells_a_number_from_a_row_of_one() -> None:
    one = torch.tensor(2.0)
    assert learned_file.digest_of({}, {"a": one}) != learned_file.digest_of({}, {"a": one[None]})


def test_a_second_expert_is_written_too(tmp_path: Path) -> None:
    kind = kind_of()
    sampler = dataclasses.replace(kind.sampler, second=SecondExpert(2, 0.5))
    one = dataclasses.replace(observations(), kind=dataclasses.replace(kind, sampler=sampler))
    learned_file.save(tmp_path / "a.safetensors", Learned(KEY).with_run(one))
    (back,) = learned_file.load(tmp_path / "a.safetensors").observations
    assert back.kind.sampler.second == SecondExpert(2, 0.5) and not back.kind.is_like(kind)


@pytest.mark.parametrize("changed", [{"guidance": 5.0}, {"numbers": 61}, {"sampler": None}])
def test_runs_of_another_kind_are_not_added_up(changed) -> None:
    if "sampler" in changed:
        changed = {"sampler": kind_of(5).sampler}
    other = dataclasses.replace(observations(1), kind=kind_of(**changed))
    known = Learned(KEY).with_run(observations()).with_run(other)
    assert [each.clips for each in known.observations] == [1, 1]


def test_the_file_is_bounded(tmp_path: Path) -> None:
    known = Learned(KEY)
    for number in range(1, 100):
        known = known.with_run(observations(steps=100, numbers=number))
        known = known.with_measured(Measured(f"{number}", KINDS[1], 30.0, 31.0))
    assert 1 < len(known.observations) < 99 and known.runs == 99
    assert sum(each.nbytes for each in known.observations) <= MOST_LEARNED_BYTES
    assert known.observations[-1].kind.numbers == 99  # the oldest were dropped
    for number in range(2 * MOST_MEASURED):
        known = known.with_measured(Measured(f"{number}", KINDS[1], 30.0, 31.0))
    assert len(known.measured) == MOST_MEASURED
    learned_file.save(tmp_path / "a.safetensors", known)
    assert (tmp_path / "a.safetensors").stat().st_size < MOST_LEARNED_BYTES + (1 << 17)


def test_a_clip_is_measured_once() -> None:
    known = Learned(KEY).with_measured(Measured("a", KINDS[0], 30.0, 31.0))
    known = known.with_measured(Measured("a", KINDS[0], 30.0, 32.0))
    assert [one.measured for one in known.measured] == [32.0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    learned_file.save(tmp_path / "a.safetensors", Learned(KEY).with_run(observations()))
    return tmp_path / "a.safetensors"


def test_one_changed_bit_is_refused_and_the_file_begun_anew(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)
    with pytest.raises(ProfileError, match=r"a\.safetensors is damaged: digest does not match"):
        learned_file.load(path)
    found, _ = learned_file.update(
        path, Learned(KEY), lambda known: known.with_run(observations(1))
    )
    (one,) = learned_file.load(path).observations
    assert found.runs == 1 and torch.allclose(one.products, observations(1).products)


def test_of_an_older_file_runs_of_plans_are_left_out(path: Path) -> None:
    """These named the steps that they computed, and had the products of these alone."""
    head, tensors = profile_file.read(path, learned_file.LEARNED_FORMAT)
    (whole,) = head.value["observations"]
    own = {k: v for k, v in head.value.items() if k not in ("digest", "format", "version")}
    own["observations"] = [whole | {"computed": [0, 2]}, whole | {"computed": [0, 1, 2, 3]}]
    known = tensors.tensors
    data = known | {f"1{name[1:]}": one.clone() for name, one in known.items() if name[0] == "0"}
    data["0.products"] = torch.ones(15, dtype=torch.float64)
    own["digest"] = learned_file.digest_of(own, data)
    profile_file.write(path, own, data, form=learned_file.LEARNED_FORMAT)
    (one,) = learned_file.load(path).observations
    assert torch.allclose(one.products, observations().products)


def test_a_file_of_another_version_stays(path: Path) -> None:
    head, tensors = profile_file.read(path, learned_file.LEARNED_FORMAT)
    profile_file.write(
        path, head.value | {"version": 2}, tensors.tensors, form=learned_file.LEARNED_FORMAT
    )
    before = path.read_bytes()
    with pytest.raises(OtherVersionError, match="version 2; accepted"):
        learned_file.update(path, Learned(KEY), lambda known: known)
    assert path.read_bytes() == before


def test_what_a_killed_process_left_is_removed(path: Path) -> None:
    left = path.with_name(f".{path.name}.0badcafe")
    left.write_text("half")
    learned_file.update(path, Learned(KEY), lambda known: known)
    assert not left.exists()


@pytest.mark.parametrize("kills", [0, pytest.param(10, marks=pytest.mark.slow)])
def test_processes_that_learn_at_once_lose_nothing(tmp_path: Path, kills: int) -> None:
    found = kill_learning.measure(tmp_path, kills, 8)
    assert found["noted"] <= found["in_file"] <= found["noted"] + kills and not found["left"]
    if not kills:
        assert found["noted"] == 16 and found["exact"] and found["largest_difference"] < 1e-9


def test_a_file_that_nobody_changed_is_not_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, stamp = learned_file.load(path), learned_file.stamp_of(path)
    with monkeypatch.context() as patch:
        patch.setattr(learned_file, "load", None)
        again, newer = learned_file.update(path, Learned(KEY), lambda found: found, (stamp, known))
    assert again is known and newer != stamp
    other, _ = learned_file.update(path, Learned(KEY), lambda found: found, (stamp, Learned(KEY)))
    assert other.runs == known.runs > 0  # by another process, meanwhile
