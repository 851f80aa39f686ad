"""`dit-accel learned`: the table, and clearing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import invoke
from kill_learning import observation

from dit_accel.planning import learned, learned_file
from dit_accel.planning.profile_key import ProfileKey


@pytest.fixture
def paths(learns: Path) -> list[Path]:
    """Of two pipelines; the second file is damaged."""
    found = []
    for first in "ab":
        key = ProfileKey("WanPipeline", "b", "UniPC", first * 16, "1" * 16)  # weights, sampler
        known = learned.Learned(key).with_run(observation(0))
        known = known.with_measured(learned.Measured("x", learned.KINDS[0], 30.0, 31.5))
        found.append(learned_file.path_in(learns, key))
        found[-1].parent.mkdir(exist_ok=True)
        learned_file.save(found[-1], known)
    found[1].write_bytes(found[1].read_bytes()[:-1])
    return found


def test_nothing_is_learnt_yet(learns):
    result = invoke("learned")
    assert result.exit_code == 0 and "nothing has been learnt yet" in result.stdout


def test_table_and_json(paths):
    text = invoke("learned").stdout
    assert "aaaaaaaa" in text and "WanPipeline" in text and "+1.5 dB from the prediction" in text
    assert "1 uncached" in text and "cannot be read" in text
    one, two = json.loads(invoke("learned", "--json").stdout)["pipelines"]
    assert one["runs"] == 1 and one["steps"] == [50] and one["problem"] is None
    assert "bbbb" in two["problem"]


def test_one_is_cleared_by_its_name(paths):
    result = invoke("learned", "--clear", "aaaaaaaa")
    assert result.exit_code == 0 and "cleared 1 pipeline" in result.stdout
    assert [path.exists() for path in paths] == [False, True]
    assert invoke("learned", "--all").exit_code == 0
    assert not any(path.exists() for path in paths)


def test_two_schedulers_of_a_model_have_two_names(paths, learns):
    other = learned_file.path_in(
        learns, ProfileKey("WanPipeline", "b", "Euler", "a" * 16, "2" * 16)
    )
    shutil.copy(paths[0], other)
    result = invoke("learned", "--clear", "aaaaaaaa")
    assert result.exit_code == 2
    assert (
        "which several names begin with; accepted: one of aaaaaaaa-1111, aaaaaaaa-2222, bbbbbbb"
        in result.stderr
    )
    assert invoke("learned", "--clear", "aaaaaaaa-2222").exit_code == 0
    assert paths[0].exists() and not other.exists()


@pytest.mark.parametrize("name", ["", "c", "/etc"])
def test_a_name_of_none_is_refused(paths, name):
    result = invoke("learned", "--clear", name)
    assert result.exit_code == 2 and "aaaaaaaa-1111, bbbbbbbb-1111" in result.stderr
    assert all(path.exists() for path in paths)


def test_both_are_refused(paths):
    assert invoke("learned", "--clear", "a", "--all").exit_code == 2


@pytest.mark.slow
def test_a_run_teaches_the_next_process(learns, model_folder, here):
    """Each command loads the model anew; `--compare` measures what was predicted."""
    clip = ("--steps", "10", "--height", "16", "--width", "16", "--frames", "5")
    found = []
    for seed, more in ((0, ("--compare",)), (1, ()), (2, ("--no-learn",))):
        result = invoke(
            "generate", "a circle", "--model", str(model_folder), *clip, "--speedup", "2",
            "--seed", str(seed), "--output", f"{seed}.mp4", "--json", *more,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        found.append(json.loads(result.stdout)["report"]["notes"])
    first, second, third = (" ".join(notes) for notes in found)
    assert "and 1 clip" not in first and "and 1 clip; " in second
    assert "measured on 1 clip of this model, compared" in second
    assert "and 1 clip" not in third and "compared with" not in third
    (row,) = json.loads(invoke("learned", "--json").stdout)["pipelines"]
    assert row["runs"] == row["clips"] == row["measured"] == 1  # the first by its reference


def evaluated(folder: Path) -> dict[str, Any]:
    """Results of planned jobs by id, without the moment that they were made in."""
    found = [json.loads(path.read_text()) for path in (folder / "jobs").iterdir()]
    planned = [one for one in found if one["job"]["method"] != "uncached"]
    return {one["id"]: {k: v for k, v in one.items() if k != "clock"} for one in planned}


@pytest.mark.slow
def test_an_evaluation_is_planned_from_what_was_learnt_before_it_began(learns, model_folder, here):
    """A second evaluation learns from the first one, and nothing from its own clips: begun again
    from the same state, in one go, it has the same results."""
    Path("p.txt").write_text("a circle\na square\n")
    command = ("evaluate", "p.txt", "--model", str(model_folder), "--methods", "speedup:2")
    command += ("--steps", "8", "--metrics", "psnr_db")

    def run(output: str, *more: str) -> str:
        result = invoke(*command, "--output", output, *more)
        assert result.exit_code == 0, result.output
        return " ".join(result.stdout.split())

    assert "speedup:2: planned from a prior of 4 other models." in run("first", "--limit", "1")
    known = "speedup:2: planned from a prior of 4 other models and 1 clip."
    assert known in run("second", "--limit", "1")
    (state,) = (here / "second" / "profiles").iterdir()
    (path,) = (learns / "learned").glob("*.safetensors")
    assert learned_file.load(path).runs == 2 and learned_file.load(state).runs == 1
    assert known in run("second")  # goes on
    shutil.copy(state, path)
    assert known in run("again")
    found = evaluated(here / "second")
    assert found == evaluated(here / "again") and len(found) == 2
    assert {one["job"]["versions"]["learned"] for one in found.values()} == {state.stem}
    before = path.read_bytes()
    assert "planned from a prior of 4 other models." in run("apart", "--limit", "1", "--no-learn")
    assert path.read_bytes() == before and not [*(here / "apart" / "profiles").iterdir()]
    result = invoke(*command, "--output", "apart")
    assert result.exit_code == 2 and "--no-learn (True before, False now)" in result.stderr


@pytest.mark.slow
def test_a_plan_is_shown_with_what_was_learnt(learns, model_folder, here):
    """Of the next run, as `generate` makes it."""
    clip = ("--model", str(model_folder), "--steps", "10", "--speedup", "2", "--json")
    size = ("--height", "16", "--width", "16", "--frames", "5", "--output", "a.mp4", "--overwrite")
    plan = lambda *more: json.loads(invoke("plan", *clip, *more).stdout)  # noqa: E731
    assert plan()["predicted"]["rests_on"] == "a prior of 4 other models"
    made = []
    for more in (("--compare",), ()):
        shown = plan()
        made.append(
            json.loads(invoke("generate", "a circle", *clip, *size, *more).stdout)["report"]
        )
        assert made[-1]["planned"] == shown["computed"]
        assert made[-1]["prediction"]["rests_on"] == shown["predicted"]["rests_on"]
    assert made[-1]["prediction"]["rests_on"] == "a prior of 4 other models and 1 clip"
    assert plan("--no-learn")["predicted"]["rests_on"] == "a prior of 4 other models"
