"""Calibrate, plan and generate by a profile, as the user of the command meets them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import DEFAULTS, PROMPT, invoke, names

from dit_accel import metrics
from dit_accel.calibration import calibrate as measuring
from dit_accel.calibration import measurement, record
from dit_accel.cli.common.options import bytes_of
from dit_accel.cli.common.progress import Pace
from dit_accel.cli.common.tables import candidate_rows
from dit_accel.cli.plan_memory import cached_values
from dit_accel.core.quantization import packed_bytes
from dit_accel.models import miniature
from dit_accel.models.folder import inspect_folder
from dit_accel.planning import selection
from dit_accel.planning.difficulty import PromptDifficulty
from dit_accel.planning.plan import Extrapolation, Plan
from dit_accel.planning.profile import Profile

PROMPTS = ("a red circle moving right", "a blue square", "a green triangle", "a red square")
QUICK = ("--speedups", "2", "--probes", "2", "--limit", "3", "--minutes", "0")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tiny_wan: Any) -> Path:
    """The tiny model, with the steps that `tiny_profile` was calibrated at."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_wan().save_pretrained(folder)
    defaults = {**DEFAULTS, "num_inference_steps": 10}
    (folder / "generation_defaults.json").write_text(json.dumps(defaults))
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, an empty cache of profiles, and wide tables."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DIT_ACCEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "150")
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return str(path)


def refused(result: Any, *texts: str) -> None:
    """Exit code 2, one message with these texts, and no traceback."""
    output = " ".join(result.stderr.split())
    assert result.exit_code == 2, output
    assert all(text in output for text in texts), output
    assert "Traceback" not in output


# --- calibrate ---------------------------------------------------------------------------------


def test_calibrate_writes_a_profile_into_the_cache_where_generate_finds_it(
    here: Path, model_folder: Path, prompts: str, tmp_path: Path
) -> None:
    model = ["--model", str(model_folder)]
    result = invoke("calibrate", *model, "--prompts", prompts, *QUICK, "--json")
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    path = Path(content["profile"])
    assert path.parent == tmp_path / "cache" / "profiles" and path.suffix == ".safetensors"
    assert names(path.parent) == [path.name]  # the work folder is gone
    assert Profile.load(path).metadata["clips"] == 3
    assert [row["speedup"] for row in content["candidates"]] == [2.0]
    assert content["rests_on"] == "3 calibration clips"
    assert content["rested_on"] == "a prior of 4 other models"
    again = invoke("calibrate", *model, "--prompts", prompts, *QUICK)
    refused(again, "exists; pass --overwrite, or another --out")

    made = invoke("generate", PROMPT, *model, "--speedup", "2", "--json", "--output", "a.npy")
    assert made.exit_code == 0, made.stderr
    assert json.loads(made.stdout)["settings"]["accel"]["profile"] == str(path)
    shown = invoke("plan", *model, "--speedup", "2", "--json")
    assert json.loads(shown.stdout)["profile"] == str(path)


def test_calibrate_goes_on_after_ctrl_c(
    here: Path, model_folder: Path, prompts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["calibrate", "--model", str(model_folder), "--prompts", prompts, *QUICK]
    command += ["--out", "p.safetensors", "--seed", "7"]
    begin, seen = Pace.begin, []

    def press(pace: Pace, what: str, done: int, total: int, now: float) -> None:
        begin(pace, what, done, total, now)
        seen.append((what, done))
        if (what, done) == ("candidates", 1):
            raise KeyboardInterrupt

    monkeypatch.setattr(Pace, "begin", press)
    stopped = invoke(*command)
    assert stopped.exit_code == 130
    assert "what is done is saved; run the same command again to continue" in stopped.stderr
    usable = "p.safetensors can be used: it is the profile of the work done so far, 1 clip"
    assert usable in stopped.stderr
    assert names(here) == ["p.safetensors", "p.safetensors.work"]
    other = invoke(*command[:-1], "8")
    refused(other, "--work is p.safetensors.work, which was begun with other clips; accepted")
    seen.clear()
    monkeypatch.setattr(Pace, "begin", lambda *args: (begin(*args), seen.append(args[1:3])))
    done = invoke(*command)
    assert done.exit_code == 0, done.stderr
    assert seen == [("candidates", place) for place in range(1, 6)]  # two passes over three clips
    assert names(here) == ["p.safetensors"]
    whole = invoke(*command[:-3], "q.safetensors", "--seed", "7")
    assert whole.exit_code == 0, whole.stderr
    one, other = (Profile.load(f"{name}.safetensors") for name in "pq")
    assert one.candidates[0].psnr_db.tolist() == other.candidates[0].psnr_db.tolist()


def test_calibrate_in_minutes_goes_on_after_ctrl_c(
    here: Path, model_folder: Path, prompts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First in the first run, when there is no profile yet; then in the second clip's plan, when
    the profile of one clip can be used. In the end it is that of both."""
    command = ["calibrate", prompts, "--model", str(model_folder), "--out", "p.safetensors"]
    command += ["--minutes", "100", "--limit", "2", "--speedups", "2"]

    def press(module: Any, name: str, at: int) -> Any:
        """Ctrl-C in a call of this function."""
        inner, calls = getattr(module, name), []

        def pressed(*args: Any) -> Any:
            calls.append(name)
            if len(calls) == at:
                raise KeyboardInterrupt
            return inner(*args)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, pressed)
            stopped = invoke(*command)
        assert stopped.exit_code == 130, stopped.stderr
        assert "what is done is saved; run the same command again to continue" in stopped.stderr
        return stopped.stderr

    text = press(measurement, "record", 1)
    assert "there is no profile yet" in text and names(here) == ["p.safetensors.work"]
    text = press(measuring, "carry_out", 2)
    assert "an uncached run" in text and "100 minutes are" in text and "up to" in text
    assert "p.safetensors can be used: it is the profile of the work done so far, 1 clip" in text
    assert len(Profile.load("p.safetensors").candidates[0].psnr_db) == 1
    done = invoke(*command)
    assert done.exit_code == 0, done.stderr
    assert "all clips were made; cost 3.0 uncached runs" in done.stderr  # 2, and twice half of one
    assert names(here) == ["p.safetensors"]
    assert len(Profile.load("p.safetensors").candidates[0].psnr_db) == 2


def test_calibrate_says_how_many_minutes_one_run_needs(
    here: Path, model_folder: Path, prompts: str
) -> None:
    command = ["calibrate", prompts, "--model", str(model_folder), "--minutes", "0.0001"]
    refused(invoke(*command), "--minutes is 0.0001, but one uncached run takes")


def test_calibrate_keeps_out_of_folders_that_hold_something_else(
    here: Path, model_folder: Path, prompts: str
) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "letter.txt").write_text("dear")
    command = ["calibrate", "--model", str(model_folder), "--prompts", prompts, *QUICK]
    result = invoke(*command, "--out", "p.safetensors", "--work", "mine")
    refused(result, "--work is 'mine', which has other files in it")
    assert names(here / "mine") == ["letter.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "PROMPTS is not given: pass a file of 12 prompts or more"),
        (["--prompts", "no.txt"], "PROMPTS is 'no.txt': No such file or directory"),
        (["--prompts", "no.doc"], "no.doc ends in '.doc'; accepted: .jsonl, .txt, .json"),
        (["--speedups", "2,x"], "--speedups is '2,x'; accepted: numbers above 1"),
        (["--speedups", "1"], "--speedups is '1'; accepted: numbers above 1"),
        (["--speedups", "6"], "--speedups has 6; accepted: at most 5 at 10 steps"),
        (["--steps", "7"], "--steps is 7; accepted with calibrate: 8 or more"),
        (["--out", "p.json"], "--output is 'p.json'; accepted: a name that ends in .safetensors"),
        (
            ["--out", "no/p.safetensors"],
            "--output is 'no/p.safetensors': its folder does not exist",
        ),
        (["--height", "17"], "--height is 17; accepted: a multiple of 16"),
    ],
)
def test_calibrate_refuses_before_the_work(
    here: Path, model_folder: Path, prompts: str, options: list[str], message: str
) -> None:
    given = [] if not options or options[0] == "--prompts" else ["--prompts", prompts]
    refused(invoke("calibrate", "--model", str(model_folder), *given, *options), message)
    assert names(here) == []


def test_the_miniature_brings_prompts_to_calibrate_on_that_no_evaluation_uses() -> None:
    from dit_accel.evaluation.prompts import read_prompts

    path = miniature.prompts(miniature.CALIBRATION)
    ours = {row.prompt for row in read_prompts(path)}
    assert len(ours) >= 12
    assert not ours & {row.prompt for row in read_prompts(path.with_name("miniature.jsonl"))}


def test_pace_by_hand() -> None:
    """Two clips of 10 steps, one probe, plans of 6 and 4 steps: 2·10 + 10 + 10 + 2·(6+4) = 60."""
    pace = Pace(2, 10, [10], [6, 4])
    assert pace.total == 60 and pace.remaining(0.0) is None
    pace.begin("uncached", 0, 2, 100.0)
    pace.begin("uncached", 1, 2, 102.0)  # 10 in 2 s; 50 are left
    assert (pace.position, pace.remaining(102.0)) == (10, 10.0)
    assert pace.remaining(103.0) == 9.0
    pace.begin(
        "candidates", 1, 4, 104.0
    )  # the probe and the search were stored: 20 in 4 s, 15 left
    assert (pace.position, pace.remaining(104.0)) == (45, 3.0)
    pace.begin("candidates", 2, 8, 105.0)  # twice as many candidates as thought, of half the weight
    assert pace.total == 60 and pace.position == 45


# --- plan --------------------------------------------------------------------------------------


@pytest.fixture
def plan(here: Path, profile_file: Path) -> Any:
    return lambda *options: invoke("plan", "--profile", str(profile_file), *options)


def test_plan_without_a_target_is_the_table_of_candidates(plan: Any, tiny_profile: Profile) -> None:
    result = plan()
    assert result.exit_code == 0, result.stderr
    assert "1.43x" in result.stdout and "5 of 10" in result.stdout
    rows = json.loads(plan("--json").stdout)["candidates"]
    assert rows == candidate_rows(tiny_profile)
    for row, candidate in zip(rows, tiny_profile.candidates, strict=True):
        assert row["mean_db"] == pytest.approx(candidate.psnr_db.mean().item())
        assert row["low_db"] == pytest.approx(candidate.psnr_db.quantile(0.05).item())
        assert row["worst_db"] == candidate.psnr_db.min().item()


def test_plan_to_a_speed_is_the_candidate_and_says_what_it_predicts(
    plan: Any, tiny_profile: Profile
) -> None:
    content = json.loads(plan("--speedup", "2", "--json").stdout)
    assert tuple(content["computed"]) == tiny_profile.candidates[1].computed
    assert content["predicted"]["speedup"] == 2
    assert content["predicted"]["psnr_db"] == pytest.approx(
        tiny_profile.candidates[1].psnr_db.mean().item(), abs=0.5
    )
    shown = plan("--speedup", "2").stdout
    strip = "".join("█" if step in content["computed"] else "·" for step in range(10))
    texts = strip, "2.00x", "dB predicted", "tensors of the size", "from 4 calibration clips."
    assert all(text in shown for text in texts)


def test_plan_to_a_quality_out_of_reach_computes_everything_and_says_so(plan: Any) -> None:
    content = json.loads(plan("--quality", "90", "--json").stdout)
    assert content["computed"] == list(range(10))
    assert content["predicted"]["psnr_db"] is None  # infinite
    assert "No plan of this profile reaches 90 dB" in content["notes"][0]
    assert "exact" in plan("--quality", "90").stdout


def test_plan_transfers_to_other_steps_and_guidance_by_the_models_scheduler(
    plan: Any, model_folder: Path
) -> None:
    refused(plan("--speedup", "2", "--steps", "20"), "--speedup 2: --steps is 20", "pass --model")
    options = ("--model", str(model_folder), "--speedup", "2", "--steps", "20", "--guidance", "6")
    content = json.loads(plan(*options, "--json").stdout)
    assert (content["steps"], content["guidance"], len(content["computed"])) == (20, 6.0, 10)
    assert (
        content["cached_bytes"] == content["cached_tensors"] * 16 * 2 * 2 * 2 * 4
    )  # C F h w float32
    assert any("never ran this plan" in note for note in content["notes"])


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plan_draws(plan: Any, here: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = here / f"plan{suffix}"
    result = plan("--quality", "12", "--plot", str(path))
    assert result.exit_code == 0, result.stderr
    assert path.read_bytes()[:4] in (b"\x89PNG", b"<?xm")
    refused(plan("--plot", str(path)), "exists; pass --overwrite, or another --plot")
    assert plan("--plot", str(path), "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quality", "30", "--speedup", "2"], "--quality 30 and --speedup 2 are given"),
        (["--quality", "0"], "--quality is 0.0; accepted: a finite number above 0"),
        (["--quality", "nan"], "--quality is nan; accepted: a finite number"),
        (["--speedup", "0.5"], "--speedup is 0.5; accepted: a finite number, 1 or more"),
        (["--speedup", "6"], "--speedup 6: --speedup is 6.0; accepted: 1 to 5 at 10 steps"),
        (["--speedup", "2", "--guidance", "1"], "and this run has one branch, so its plans do not"),
        (["--steps", "20"], "--steps is given; accepted: with --quality or --speedup"),
        (["--plot", "p.pdf"], "--plot is 'p.pdf'; accepted: a name that ends in .png or .svg"),
        (["--plot", "no/p.png"], "--plot is 'no/p.png': its folder does not exist"),
    ],
)
def test_plan_refuses(plan: Any, options: list[str], message: str) -> None:
    refused(plan(*options), message)


def test_plan_without_a_profile_shows_the_priors(here: Path, model_folder: Path) -> None:
    command = ("plan", "--model", str(model_folder), "--steps", "20", "--guidance", "4")
    result = invoke(*command, "--speedup", "2.5")
    assert result.exit_code == 0, result.stderr
    assert "none for this model" in result.stdout
    assert "Planned from a prior of 4 other models; " in result.stdout
    assert "8 of 20 steps computed" in result.stdout
    content = json.loads(invoke(*command, "--quality", "10", "--json").stdout)
    assert content["profile"] is None and len(content["computed"]) < 20
    assert content["predicted"]["reach"] >= 0.95
    assert "4 models, each left out" in content["notes"][0]


def test_plan_without_a_profile_says_how_to_get_one(here: Path, model_folder: Path) -> None:
    result = invoke("plan", "--model", str(model_folder))
    refused(result, "no profile of it was found", "`dit-accel calibrate` makes one")
    (here / "no.safetensors").write_text("nothing")
    refused(invoke("plan", "--profile", "no.safetensors"), "--profile is 'no.safetensors'")
    refused(invoke("plan", "--profile", "gone.safetensors"), "no profile at gone.safetensors")


def test_plan_says_where_matplotlib_comes_from(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    lacking = lambda name, *rest: None if name == "matplotlib" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", lacking)
    refused(plan("--plot", "p.png"), "matplotlib is not installed: pip install 'dit-accel[report]'")


def test_memory_by_hand() -> None:
    """Steps 0 and 2 computed of 4, two parts: at step 3 both are read, and the noise."""
    reads = ({2: 2.0, 0: -1.0}, {2: 1.0})
    plan = Plan(
        4, {1: Extrapolation(({0: 1.0}, {0: 1.0})), 3: Extrapolation(reads, noise_weight=0.1)}
    )
    assert cached_values(plan, branches=2) == 2 * 2 + 1
    assert (
        cached_values(Plan(4, {}), branches=1) == 3
    )  # a value, and the two whose line it is compared with


# --- generate by a profile -----------------------------------------------------------------------


@pytest.fixture
def generate(here: Path, model_folder: Path, profile_file: Path) -> Any:
    def run(*options: str, profile: bool = True) -> Any:
        given = ["--profile", str(profile_file)] if profile else []
        return invoke("generate", PROMPT, "--model", str(model_folder), *given, *options)

    return run


def test_generate_prints_the_target_before_the_run_and_writes_predicted_and_measured(
    generate: Any, profile_file: Path
) -> None:
    result = generate("--quality", "12", "--compare", "--output", "a.npy")
    assert result.exit_code == 0, result.stderr
    assert "plan: quality 12 dB: computes" in result.stderr
    assert result.stderr.index("plan:") < result.stderr.index("uncached:")
    content = json.loads(Path("a.npy.json").read_text())
    settings, goal = content["settings"], content["target"]
    accel = settings["accel"]
    assert (accel["kind"], accel["quality"], accel["profile"]) == ("quality", 12, str(profile_file))
    assert (accel["guard"], accel["force"]) == (True, False)
    measured = metrics.psnr(np.load("a-uncached.npy"), np.load("a.npy"), data_range=255)
    assert goal["measured"]["psnr_db"] == pytest.approx(measured)
    compared = content["comparison"]["fidelity"]["psnr_db"]["value"]
    assert goal["measured"]["psnr_db"] == compared
    assert goal["measured"]["computed"] == len(goal["planned"]) < 10
    assert goal["reached"] is (goal["measured"]["psnr_db"] >= 12)
    assert goal["predicted"]["psnr_db"] == content["report"]["prediction"]["psnr_db"]
    assert "predicted" in result.stdout and "target 12 dB: reached" in result.stdout


def test_generate_prints_the_reached_speed_beside_the_asked_one_with_the_reason(
    generate: Any,
) -> None:
    """10 / 4 = 2.5 is as near to 2.4 as whole steps come."""
    result = generate("--speedup", "2.4", "--no-guard", "--output", "a.npy")
    assert result.exit_code == 0, result.stderr
    noted = "With whole steps, a speedup of 2.4 becomes 2.50: 4 of 10 steps are computed."
    assert noted in result.stderr
    target = json.loads(Path("a.npy.json").read_text())["target"]
    assert target["speedup_reasons"][0] == "whole steps: 4 of 10 were planned"
    assert re.fullmatch(
        r"text and decoding took [\d.]+ s outside of the loop", target["speedup_reasons"][-1]
    )
    shown = " ".join(result.stdout.split())
    assert "2.4x asked, 2.50x reached in steps (whole steps: 4 of 10 were planned; " in shown


def test_generate_is_what_accelerate_makes(
    generate: Any, model_folder: Path, tiny_profile: Profile
) -> None:
    from dit_accel import accelerate
    from dit_accel.core import generation
    from dit_accel.core.generation import ClipSpec
    from dit_accel.models import loading

    assert generate("--speedup", "2", "--no-guard", "--output", "a.npy").exit_code == 0
    model = inspect_folder(model_folder, name="tiny")
    pipe = loading.load(model, device="cpu", dtype="float32")
    clip = ClipSpec(PROMPT, None, 0, 10, 4.0, 16, 16, 5, 8.0, 16)
    with accelerate(pipe, speedup=2, profile=tiny_profile, guard=False):
        frames = generation.generate(pipe, clip, device="cpu").frames
    from dit_accel.core import video

    assert np.array_equal(np.load("a.npy"), video.to_uint8(frames))


@pytest.mark.parametrize("knows", [True, False], ids=["known from texts", "not known"])
def test_generate_encodes_a_prompt_once_and_counts_the_seconds(
    generate: Any, tiny_profile: Profile, tmp_path: Path, monkeypatch: Any, knows: bool
) -> None:
    """The clip is the one by a profile that knows nothing of texts, and needs none beforehand."""
    from transformers import UMT5EncoderModel

    from dit_accel.planning import text as prompt_text

    zeros = [torch.zeros(n, dtype=torch.float64) for n in (32, 32, 4)]
    profile = dataclasses.replace(
        tiny_profile, difficulty=PromptDifficulty(*zeros) if knows else None
    )
    profile.save(tmp_path / "own.safetensors")
    calls: list[int] = []
    forward, encode = UMT5EncoderModel.forward, prompt_text.encode

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(self, *args, **kwargs)

    def slow(*args: Any) -> Any:
        return dataclasses.replace(encode(*args), seconds=1000.0)

    assert generate("--speedup", "2", "--output", "a.npy").exit_code == 0
    monkeypatch.setattr(UMT5EncoderModel, "forward", counted)
    monkeypatch.setattr(prompt_text, "encode", slow)
    own = ["--profile", str(tmp_path / "own.safetensors")]
    made = generate("--speedup", "2", "--output", "b.npy", "--json", *own, profile=False)
    assert made.exit_code == 0, made.stderr
    assert len(calls) == 2  # the prompt, and what is not shown
    assert np.array_equal(np.load("a.npy"), np.load("b.npy"))
    assert (json.loads(made.stdout)["costs"]["whole_seconds"] > 1000) is knows


def test_generate_without_a_target_takes_36_db_where_there_is_a_profile(
    generate: Any,
) -> None:
    made = json.loads(generate("--json", "--output", "a.npy").stdout)
    assert (made["settings"]["accel"]["kind"], made["settings"]["accel"]["quality"]) == (
        "quality",
        36.0,
    )


def test_generate_falls_back_to_windows_where_a_found_profile_does_not_suit(
    here: Path, model_folder: Path, profile_file: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "own"))
    shutil.copy(profile_file, folder / "dit-accel-profile.safetensors")
    command = ["generate", PROMPT, "--model", str(folder), "--guidance", "1"]
    result = invoke(*command, "--output", "a.npy")
    assert result.exit_code == 0, result.stderr
    assert "note: used --threshold 0.2 instead:" in result.stderr
    assert "Calibrate at this guidance" in result.stderr
    refused(
        invoke(*command, "--quality", "30", "--output", "b.npy"),
        "--quality 30: the profile has two branches (guidance above 1), and this run has one",
    )


def test_generate_refuses_the_profile_of_another_model_unless_forced(
    generate: Any, here: Path, tmp_path: Path, profile_file: Path, tiny_wan: Any
) -> None:
    folder = tmp_path / "other"
    tiny_wan(seed=1).save_pretrained(folder)
    (folder / "generation_defaults.json").write_text(
        json.dumps({**DEFAULTS, "num_inference_steps": 10})
    )
    command = ["generate", PROMPT, "--model", str(folder), "--profile", str(profile_file)]
    command += ["--speedup", "2", "--output", "a.npy"]
    refused(
        invoke(*command),
        "the profile was measured on another pipeline: weights is",
        "pass --force-profile",
    )
    forced = invoke(*command, "--force-profile", "--json")
    assert forced.exit_code == 0, forced.stderr
    content = json.loads(forced.stdout)
    assert content["settings"]["accel"]["force"] is True
    assert any("was forced" in note for note in content["report"]["notes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quality", "30", "--speedup", "2"], "--quality 30 and --speedup 2 are given"),
        (["--speedup", "2", "--threshold", "0"], "--speedup 2 and --threshold 0 are given"),
        (["--quality", "-3"], "--quality is -3.0; accepted: a finite number above 0"),
        (
            ["--quality", "30", "--site", "block"],
            "--quality is given with --site; accepted: alone",
        ),
        (
            ["--speedup", "2", "--accel", "unicp-paper"],
            "--speedup is given with --accel",
        ),
        (["--accel", "magic"], "--accel is 'magic'; accepted: unicp, unicp-paper"),
        (
            ["--accel", "unicp-paper", "--site", "block"],
            "--accel is given with --site",
        ),
        (
            ["--accel", "unicp", "--threshold", "0.1"],
            "--accel is 'unicp' with --threshold",
        ),
        (
            ["--accel", "unicp", "--site", "block"],
            "--accel is 'unicp' with --site",
        ),
        (
            ["--cache-memory", "lots"],
            "--cache-memory is 'lots'; accepted: a size above 0, e.g. 512M",
        ),
        (["--cache-memory", "0GiB"], "--cache-memory is '0GiB'; accepted: a size above 0"),
        (["--threshold", "0.1"], "--profile is given; accepted: with --quality or --speedup"),
        (["--quality", "30", "--steps", "7"], "--steps is 7; accepted with --quality 30: 8"),
    ],
)
def test_generate_refuses(generate: Any, here: Path, options: list[str], message: str) -> None:
    refused(generate(*options), message)
    assert names(here) == []


@pytest.mark.parametrize("option", ["--force-profile", "--no-guard", "--deterministic", "--static"])
def test_options_of_plans_are_refused_with_windows(generate: Any, option: str) -> None:
    name = "--deterministic" if option == "--static" else option  # an alias
    message = f"{name} is given; accepted: with --quality or --speedup"
    refused(generate(option, "--threshold", "0.1", profile=False), message)


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2 << 30), ("512 MiB", 512 << 20), ("1.5kib", 1536), ("3MB", 3_000_000), ("7", 7)],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert bytes_of(text) == size


def test_generate_static_under_a_cap_reads_nothing_and_reports_the_memory(generate: Any) -> None:
    """The CPU computes: nothing can be moved there, so that a cap is met by packing, or not at
    all, and then the report says so."""
    reports = []
    for cap, name in (("1KiB", "a.npy"), ("64", "b.npy")):
        options = ["--speedup", "2", "--deterministic", "--cache-memory", cap, "--accel", "unicp"]
        result = generate(*options, "--output", name, "--json")
        assert result.exit_code == 0, result.stderr
        content = json.loads(result.stdout)
        accel, report = content["settings"]["accel"], content["report"]
        assert (accel["kind"], accel["static"]) == ("speedup", True)
        assert accel["cache_memory"] == bytes_of(cap)
        assert (report["host_syncs"], report["offloaded_bytes"]) == (0, 0)
        assert 0 < report["packed_bytes"] <= report["cached_bytes"]
        reports.append(report)
    within, exceeded = reports
    assert within["cached_bytes"] <= 1024 and within["packed_bits"] in (8, 4)
    assert not any("cache_memory" in note for note in within["notes"])
    assert any(note.startswith("cache_memory is 64 bytes") for note in exceeded["notes"])


def test_plan_prints_the_memory_of_a_run_with_a_cap_and_without(
    here: Path, model_folder: Path, profile_file: Path, generate: Any
) -> None:
    command = ["plan", "--model", str(model_folder), "--profile", str(profile_file)]
    command += ["--speedup", "2"]
    free = json.loads(invoke(*command, "--json").stdout)
    assert (free["packed_bytes"], free["packed_bits"], free["offloaded_bytes"]) == (0, None, 0)
    ran = json.loads(generate("--speedup", "2", "--output", "a.npy", "--json").stdout)["report"]
    assert ran["cached_bytes"] == free["cached_bytes"]
    cap = ["--cache-memory", str(free["cached_bytes"] // 2)]
    record = json.loads(invoke(*command, *cap, "--json").stdout)
    ran = json.loads(generate("--speedup", "2", *cap, "--output", "b.npy", "--json").stdout)
    assert record["offloaded_bytes"] == 0 and record["packed_bytes"] > 0
    assert ran["report"]["packed_bits"] == record["packed_bits"] >= record["min_bits"]
    assert ran["report"]["cached_bytes"] <= free["cached_bytes"] // 2
    assert "packed to" in invoke(*command, *cap).stdout


def test_plan_prints_what_would_be_offloaded_where_packing_is_not_enough(
    here: Path, model_folder: Path, profile_file: Path
) -> None:
    command = ["plan", "--model", str(model_folder), "--profile", str(profile_file)]
    command += ["--speedup", "2", "--cache-memory"]
    record = json.loads(invoke(*command, "200", "--json").stdout)
    each = packed_bytes(record["cached_bytes"] // record["cached_tensors"] // 4, record["min_bits"])
    staying = 200 // each
    assert 0 < staying < record["cached_tensors"]
    assert record["packed_bytes"] == staying * each
    assert record["offloaded_bytes"] == (record["cached_tensors"] - staying) * each
    assert "moved to the CPU (if the model runs on a GPU)" in invoke(*command, "200").stdout


def test_the_preset(generate: Any) -> None:
    options = ["--accel", "unicp-paper", "--threshold", "0.3"]
    result = generate(*options, "--output", "a.npy", profile=False)
    assert result.exit_code == 0, result.stderr
    content = json.loads(Path("a.npy.json").read_text())
    settings = content["settings"]
    assert settings["accel"]["kind"] == "unicp-paper"
    assert settings["accel"]["windows"]["threshold"] == 0.3
    assert content["report"]["site"] == "attention"
    whole = generate("--accel", "unicp-paper", "--json", "--output", "b.npy", profile=False)
    assert any("PCAS was off" in note for note in json.loads(whole.stdout)["report"]["notes"])


def test_the_preset_has_its_own_sites(generate: Any) -> None:
    result = generate("--accel", "unicp-paper", "--site", "block", profile=False)
    refused(result, "--accel is given with --site; accepted: with --threshold alone")


def test_generate_without_any_profile_is_planned_from_the_prior(generate: Any) -> None:
    result = generate("--speedup", "2", "--json", "--output", "a.npy", profile=False)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)["report"]
    assert report["steps_computed"] == report["steps"] / 2
    assert any("Planned from a prior" in note for note in report["notes"])


def test_without_a_target_it_is_36_db_from_the_prior(generate: Any, monkeypatch: Any) -> None:
    result = generate("--json", "--output", "a.npy", profile=False)
    assert result.exit_code == 0, result.stderr
    made = json.loads(result.stdout)
    report = made["report"]
    assert (report["quality"], report["threshold"]) == (36, None)
    assert made["settings"]["accel"]["kind"] == "quality" and made["target"] is not None
    monkeypatch.setattr(selection, "profile_by_prior", lambda *_: None)
    result = generate("--json", "--output", "b.npy", profile=False)
    assert result.exit_code == 0, result.stderr
    made = json.loads(result.stdout)
    assert made["report"]["threshold"] == 0.2 and made["target"] is None
    said = " ".join(result.stderr.split())
    assert "note: used --threshold 0.2 instead: --quality 36 needs a profile" in said


def test_a_sampler_without_noise_levels_needs_a_profile(generate: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(selection, "profile_by_prior", lambda *_: None)
    refused(
        generate("--quality", "30", profile=False),
        "--quality 30 needs a profile of this model",
        "`dit-accel calibrate` makes one",
    )


# --- evaluate by a profile -----------------------------------------------------------------------


def test_evaluate_keeps_the_profile_and_names_it_in_the_jobs_that_need_it(
    here: Path, model_folder: Path, prompts: str, profile_file: Path
) -> None:
    command = ["evaluate", prompts, "--model", str(model_folder), "--out", "run", "--limit", "1"]
    methods = ["--methods", "speedup:2,edcw:9"]
    result = invoke(*command, *methods, "--profile", str(profile_file))
    assert result.exit_code == 0, result.stderr
    (stored,) = (here / "run" / "profiles").iterdir()
    assert stored.read_bytes() == profile_file.read_bytes()
    jobs = [json.loads(path.read_text()) for path in (here / "run" / "jobs").iterdir()]
    named = {job["job"]["method"]: job["job"]["versions"].get("profile") for job in jobs}
    assert named == {"uncached": None, "edcw:9": None, "speedup:2": stored.stem}
    (planned,) = (job for job in jobs if job["job"]["method"] == "speedup:2")
    assert planned["report"]["speedup"] == 2 and planned["report"]["steps_computed"] == 5


def test_evaluate_refuses_runs_that_nothing_is_known_of(
    here: Path, model_folder: Path, prompts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "profile_by_prior", lambda *_: None)
    command = ["evaluate", prompts, "--model", str(model_folder), "--methods", "speedup:2,edcw:9"]
    refused(
        invoke(*command, "--out", "run"),
        "--methods has speedup, but no profile of",
        "the prior does not cover such runs; `dit-accel calibrate` makes one, or pass --profile",
    )
    assert names(here) == []


def test_evaluate_static_under_a_cap_is_another_job_of_plans_alone(
    here: Path, model_folder: Path, prompts: str, profile_file: Path
) -> None:
    """In the jobs' names, the manifest, the runs and the report; not in what does not plan."""
    command = ["evaluate", prompts, "--model", str(model_folder), "--limit", "1"]
    command += ["--profile", str(profile_file), "--methods", "speedup:2,edcw:9"]
    given = ["--deterministic", "--cache-memory", "1KiB"]
    for out, options in (("plain", []), ("capped", given)):
        result = invoke(*command, "--out", out, *options)
        assert result.exit_code == 0, result.stderr
    found = {out: evaluated(here / out) for out in ("plain", "capped")}
    same = {
        method for method in found["plain"] if found["plain"][method] == found["capped"][method]
    }
    assert same == {"uncached", "edcw:9"}
    plain, capped = (found[out]["speedup:2"] for out in ("plain", "capped"))
    assert plain["id"] != capped["id"] and plain["reference"] == capped["reference"]
    assert {"static", "cache_memory"} & set(plain["job"]) == set()
    assert (capped["job"]["static"], capped["job"]["cache_memory"]) == (True, 1024)
    assert plain["report"]["host_syncs"] > 0 == capped["report"]["host_syncs"]
    assert capped["report"]["cached_bytes"] <= 1024 < plain["report"]["cached_bytes"]
    assert capped["report"]["packed_bytes"] > 0
    manifest = json.loads((here / "capped" / "manifest.json").read_text())
    assert (manifest["static"], manifest["cache_memory"]) == (True, 1024)


def test_evaluate_goes_on_only_with_the_same_settings_of_plans(
    here: Path, model_folder: Path, prompts: str, profile_file: Path
) -> None:
    command = ["evaluate", prompts, "--model", str(model_folder), "--out", "run", "--limit", "1"]
    planned = ["--profile", str(profile_file), "--methods", "speedup:2"]
    assert invoke(*command, *planned, "--deterministic").exit_code == 0
    before = evaluated(here / "run")
    refused(
        invoke(*command, *planned),
        "--output: run has",
        "another --deterministic (True before, False now)",
    )
    capped = ["--deterministic", "--cache-memory", "1KiB"]
    refused(invoke(*command, *planned, *capped), "--cache-memory (None before, 1024 now)")
    assert evaluated(here / "run") == before
    added = invoke(*command, "--methods", "edcw:9")  # heeds neither, and says nothing of them
    assert added.exit_code == 0, added.stderr
    manifest = json.loads((here / "run" / "manifest.json").read_text())
    assert (manifest["static"], manifest["methods"]) == (True, ["speedup:2", "edcw:9"])
    after = evaluated(here / "run")
    assert after["speedup:2"] == before["speedup:2"] and "edcw:9" in after
    again = invoke(*command, *planned, "--deterministic")
    assert "3 of 3 clips are there already" in again.stderr


def test_evaluate_takes_the_settings_of_plans_into_a_folder_that_had_none(
    here: Path, model_folder: Path, prompts: str, profile_file: Path
) -> None:
    command = ["evaluate", prompts, "--model", str(model_folder), "--out", "run", "--limit", "1"]
    assert invoke(*command, "--methods", "edcw:9").exit_code == 0
    planned = ["--profile", str(profile_file), "--methods", "speedup:2", "--deterministic"]
    assert invoke(*command, *planned).exit_code == 0
    assert evaluated(here / "run")["speedup:2"]["job"]["static"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--deterministic"],
            "--deterministic is given, but --methods has neither quality nor speedup; accepted",
        ),
        (["--cache-memory", "1GiB"], "--cache-memory is given, but --methods has neither"),
        (["--cache-memory", "lots"], "--cache-memory is 'lots'; accepted: a size above 0"),
        (["--cache-memory", "0"], "--cache-memory is '0'; accepted: a size above 0"),
    ],
)
def test_evaluate_refuses_settings_of_plans_without_one(
    here: Path, model_folder: Path, prompts: str, options: list[str], message: str
) -> None:
    command = ["evaluate", prompts, "--model", str(model_folder), "--out", "run"]
    refused(invoke(*command, "--methods", "edcw:9,fewer-steps:5", *options), message)
    assert names(here) == []


def evaluated(folder: Path) -> dict[str, Any]:
    """Results by method, without the moment that they were made in."""
    found = (json.loads(path.read_text()) for path in (folder / "jobs").iterdir())
    return {r["job"]["method"]: {k: v for k, v in r.items() if k != "clock"} for r in found}


def test_a_profile_in_the_folder_is_no_part_of_the_models_fingerprint(
    model_folder: Path, profile_file: Path, tmp_path: Path
) -> None:
    from dit_accel.evaluation.jobs import fingerprint

    folder = Path(shutil.copytree(model_folder, tmp_path / "own"))
    shutil.copy(profile_file, folder / "dit-accel-profile.safetensors")
    assert fingerprint(folder) == fingerprint(model_folder)


def test_a_sampler_that_is_not_linear_fails_in_words(
    here: Path, model_folder: Path, prompts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise record.NotLinearError("OddScheduler is not linear in the predictions")

    monkeypatch.setattr(measuring.CalibrationRun, "run", fail)
    command = ["calibrate", "--model", str(model_folder), "--prompts", prompts, *QUICK]
    result = invoke(*command, "--out", "p.safetensors")
    assert result.exit_code == 1
    assert "error: OddScheduler is not linear in the predictions" in result.stderr


def test_a_plot_on_a_full_disk_leaves_nothing(here, monkeypatch):
    def full(path: Path, content: bytes) -> None:
        path.touch()
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    for name in ("a.png", "a.svg"):
        result = invoke("plan", "--quality", "30", "--plot", name)
        assert result.exit_code == 1
        assert f"{name} cannot be written: the disk is full: No space left" in result.stderr
    assert list(here.iterdir()) == []
