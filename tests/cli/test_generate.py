"""The command as its user meets it: files, stdout, messages, exit codes; nothing half-written."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import PROMPT, invoke, names
from typer.testing import Result

from dit_accel import metrics
from dit_accel.cli import main
from dit_accel.cli.common import text as texts
from dit_accel.cli.common.errors import BadInput
from dit_accel.cli.common.progress import StepBar
from dit_accel.cli.run import summary
from dit_accel.cli.run.request import slug
from dit_accel.cli.run.settings import SizeStrides, check_sizes, read_strides
from dit_accel.core import video
from dit_accel.core.families import FAMILIES
from dit_accel.core.report import SiteReport
from dit_accel.models import loading, setup
from dit_accel.models.folder import inspect_folder, missing_parts

ROOT = Path(__file__).parents[2]
HUB_ID = "nobody/no-such-model"


@pytest.fixture
def generate(here: Path, model_folder: Path) -> Callable[..., Result]:
    """`dit-accel generate` on the tiny model, in an empty folder."""

    def run(*options: str, prompt: str = PROMPT, model: str = str(model_folder)) -> Result:
        return invoke("generate", prompt, "--model", model, *options)

    return run


# --- what a run leaves -----------------------------------------------------------------------


def test_a_run_writes_the_clip_and_its_sidecar(generate: Callable[..., Result], here: Path) -> None:
    result = generate("--threshold", "10")
    assert result.exit_code == 0, result.stderr
    assert names(here) == [f"{slug(PROMPT)}.mp4", f"{slug(PROMPT)}.mp4.json"]
    clip, fps = video.read_video(here / f"{slug(PROMPT)}.mp4")
    assert clip.shape == (5, 16, 16, 3)
    assert fps == 8
    assert "computed" in result.stdout
    assert "FLOPs" in result.stdout


def test_the_sidecar_holds_versions_settings_and_report(
    generate: Callable[..., Result], here: Path
) -> None:
    import torch

    import dit_accel

    result = generate("--threshold", "10", "--seed", "3", "--output", "clip.npy")
    assert result.exit_code == 0, result.stderr
    sidecar = json.loads((here / "clip.npy.json").read_text())
    assert sidecar["files"] == {"video": "clip.npy", "sidecar": "clip.npy.json"}
    assert sidecar["versions"]["dit_accel"] == dit_accel.__version__
    assert sidecar["versions"]["torch"] == torch.__version__
    settings = sidecar["settings"]
    assert (settings["prompt"], settings["seed"]) == (PROMPT, 3)
    assert settings["accel"]["kind"] == "threshold" and settings["accel"]["threshold"] == 10
    assert (settings["height"], settings["frames"], settings["steps"]) == (16, 5, 8)
    assert (settings["guidance"], settings["max_sequence_length"]) == (4.0, 16)
    assert (settings["dtype"], settings["accel"]["site"]) == ("float32", "model")
    assert sidecar["report"]["steps"] == 8
    assert any(site["cached"] for site in sidecar["report"]["sites"])
    assert sidecar["comparison"] is None


def test_options_go_before_the_defaults_of_the_folder(generate: Callable[..., Result]) -> None:
    options = [
        "--height",
        "32",
        "--frames",
        "9",
        "--steps",
        "5",
        "--fps",
        "12.5",
        "--guidance",
        "2",
    ]
    result = generate("--json", "--output", "a.npy", *options)
    settings = json.loads(result.stdout)["settings"]
    assert (settings["height"], settings["width"], settings["frames"]) == (32, 16, 9)
    assert (settings["steps"], settings["fps"], settings["guidance"]) == (5, 12.5, 2.0)
    assert np.load("a.npy").shape == (9, 32, 16, 3)


def test_json_is_one_object_and_all_of_stdout(generate: Callable[..., Result], here: Path) -> None:
    result = generate("--json", "--output", "clip.npy")
    assert json.loads(result.stdout) == json.loads((here / "clip.npy.json").read_text())
    assert result.stderr == ""


def test_compare_writes_the_uncached_clip_and_both_side_by_side(
    generate: Callable[..., Result], here: Path
) -> None:
    result = generate("--compare", "--threshold", "10", "--output", "clip.npy")
    assert result.exit_code == 0, result.stderr
    assert names(here) == ["clip-compare.npy", "clip-uncached.npy", "clip.npy", "clip.npy.json"]
    reference, clip, both = (np.load(f"clip{end}.npy") for end in ("-uncached", "", "-compare"))
    assert reference.shape == clip.shape == (5, 16, 16, 3)
    assert not np.array_equal(reference, clip)
    assert np.array_equal(both, video.side_by_side(reference, clip))
    comparison = json.loads((here / "clip.npy.json").read_text())["comparison"]
    assert comparison["identical"] is False
    in_files = metrics.psnr(reference, clip, data_range=255)
    assert comparison["fidelity"]["psnr_db"]["value"] == pytest.approx(in_files)
    assert comparison["fidelity"]["ssim"]["value"] < 1
    assert comparison["speedup_denoising"] > 0
    assert comparison["uncached"]["denoising_seconds"] < comparison["uncached"]["whole_seconds"]
    assert all(word in result.stdout for word in ("PSNR", "SSIM", "speedup", "uncached"))


def test_threshold_0_is_the_uncached_clip(generate: Callable[..., Result], here: Path) -> None:
    result = generate("--compare", "--threshold", "0", "--output", "clip.npy")
    assert np.array_equal(np.load("clip.npy"), np.load("clip-uncached.npy"))
    comparison = json.loads((here / "clip.npy.json").read_text())["comparison"]
    assert comparison["identical"] is True
    assert comparison["fidelity"]["psnr_db"]["value"] is None
    assert "the clips are identical" in result.stdout
    assert "threshold 0 caches nothing" in result.stdout


@pytest.mark.parametrize("site", ["attention", "block"])
def test_every_site_can_be_chosen(generate: Callable[..., Result], site: str) -> None:
    result = generate("--site", site, "--threshold", "10", "--json", "--output", "clip.npy")
    report = json.loads(result.stdout)["report"]
    assert report["site"] == site
    assert len(report["sites"]) > 2


def test_the_same_seed_makes_the_same_clip(generate: Callable[..., Result]) -> None:
    for name, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        assert generate("--seed", seed, "--output", f"{name}.npy").exit_code == 0
    first, again, other = (np.load(f"{name}.npy") for name in "abc")
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_words_that_the_model_does_not_know_are_named(generate: Callable[..., Result]) -> None:
    result = generate("--output", "clip.npy", prompt="a red dragon, moving right")
    assert "note: the model does not know dragon;" in result.stderr


def test_idle_negative_and_cut_prompt_are_reported(generate: Callable[..., Result]) -> None:
    long = " ".join(["a red circle"] * 8)
    result = generate("--negative", "blue", "--guidance", "1", "--output", "clip.npy", prompt=long)
    assert "note: --negative has no effect at --guidance 1" in result.stderr
    assert "note: the prompt is cut off after 16 of its 25 tokens" in result.stderr


# --- what is refused, and how ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "-1"], "--threshold is -1.0; accepted: a finite number >= 0"),
        (["--threshold", "nan"], "--threshold is nan; accepted: a finite number"),
        (["--threshold", "inf"], "--threshold is inf; accepted: a finite number"),
        (["--guidance", "nan"], "--guidance is nan; accepted: a finite number"),
        (["--steps", "0"], "--steps is 0; accepted: 1 to 1000"),
        (["--seed", "-1"], "--seed is -1; accepted: 0 to 9223372036854775807"),
        (["--fps", "0"], "--fps is 0.0; accepted: 0.01 to 1000.0"),
        (["--height", "40"], "--height is 40; accepted: a multiple of 16, e.g. 32 or 48"),
        (["--width", "8"], "--width is 8; accepted: a multiple of 16, e.g. 16"),
        (["--height", "4096"], "--height is 4096; accepted with this model: at most 512"),
        (["--frames", "8"], "--frames is 8; accepted: 1 more than a multiple of 4, e.g. 5 or 9"),
        (["--frames", "1001"], "--frames is 1001; accepted with this model: at most 125"),
        (["--device", "tpu"], "--device is 'tpu': this machine has cpu"),
        (["--device", "cuda:99"], "--device is 'cuda:99': this machine has cpu"),
        (["--output", "a.avi"], "--output is 'a.avi'; accepted: a name that ends in .mp4, .mkv"),
        (["--output", "no/a.mp4"], "no file can be created in its folder (No such file"),
        (["--output", "a" * 300 + ".mp4"], "File name too long"),
        (["--site", "layer"], "--site is 'layer'; accepted: attention, block, model"),
        (["--dtype", "int8"], "--dtype is 'int8'; accepted: float32, bfloat16, float16"),
        (["--frobnicate"], "No such option: --frobnicate"),
        (["--steps", "many"], "--steps"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(
    generate: Callable[..., Result], here: Path, options: list[str], message: str
) -> None:
    result = generate(*options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert names(here) == []


def test_an_empty_prompt_is_refused(generate: Callable[..., Result]) -> None:
    result = generate(prompt="  ")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: PROMPT is empty")


@pytest.mark.parametrize("taken", ["clip.npy", "clip.npy.json", "clip-compare.npy"])
def test_a_file_that_exists_is_not_replaced_unasked(
    generate: Callable[..., Result], here: Path, taken: str
) -> None:
    (here / taken).write_text("mine")
    result = generate("--compare", "--output", "clip.npy")
    assert result.exit_code == 2
    assert f"{taken} exists; pass --overwrite, or another --output" in result.stderr
    assert (here / taken).read_text() == "mine"
    assert generate("--compare", "--overwrite", "--output", "clip.npy").exit_code == 0
    assert (here / taken).read_bytes() != b"mine"


def test_a_folder_in_the_sidecars_place_is_refused(
    generate: Callable[..., Result], here: Path
) -> None:
    (here / "clip.npy.json").mkdir()
    result = generate("--overwrite", "--output", "clip.npy")
    assert result.exit_code == 2
    assert "clip.npy.json would be written, but is a folder" in result.stderr


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(
    generate: Callable[..., Result], here: Path
) -> None:
    (here / "locked").mkdir(mode=0o500)
    result = generate("--output", "locked/clip.npy")
    assert result.exit_code == 2
    assert "no file can be created in its folder (Permission denied)" in result.stderr


# --- models ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere", "no such folder, and no hub id of the form owner/name"),
        ("./no/where", "no such folder, and no hub id of the form owner/name"),
        ("empty", "no diffusers folder, it has no model_index.json"),
        ("file.safetensors", "a file; accepted: a folder with a model_index.json"),
    ],
)
def test_what_is_no_model_is_refused(
    generate: Callable[..., Result], here: Path, model: str, message: str
) -> None:
    (here / "empty").mkdir()
    (here / "file.safetensors").touch()
    result = generate(model=model)
    assert result.exit_code == 2
    assert f"--model is {model!r}" in result.stderr
    assert message in result.stderr


@pytest.fixture
def broken(tmp_path: Path, model_folder: Path) -> Path:
    """A copy of the tiny model to break."""
    return Path(shutil.copytree(model_folder, tmp_path / "broken"))


def test_a_model_without_all_its_parts_is_refused(
    generate: Callable[..., Result], broken: Path
) -> None:
    shutil.rmtree(broken / "tokenizer")
    (broken / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    result = generate(model=str(broken))
    assert result.exit_code == 2
    assert "incomplete: tokenizer/, vae/*.safetensors missing" in " ".join(result.stderr.split())


def test_a_missing_shard_is_named(broken: Path) -> None:
    index = {"weight_map": {"a": "one.safetensors", "b": "diffusion_pytorch_model.safetensors"}}
    (broken / "transformer" / "x.safetensors.index.json").write_text(json.dumps(index))
    model_index = json.loads((broken / "model_index.json").read_text())
    assert missing_parts(broken, model_index) == ["transformer/one.safetensors"]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model_index.json", "{", "model_index.json is not JSON"),
        ("model_index.json", "[" * 100_000, "model_index.json is nested too deeply"),
        ("transformer/config.json", "{", "config.json is not JSON"),
        ("transformer/config.json", "[]", "config.json has a list; accepted: a JSON object"),
        ("transformer/config.json", '{"patch_size": ["x"]}', "patch_size is 'x' in transformer"),
        ("vae/config.json", '{"scale_factor_spatial": -8}', "scale_factor_spatial is -8 in"),
        ("transformer/x.index.json", "{}", "weight_map of"),
        (
            "transformer/x.index.json",
            '{"weight_map": {"a": "../../x"}}',
            "no object of file names",
        ),
        ("generation_defaults.json", '{"height": "64"}', "height is '64' in"),
    ],
)
def test_a_damaged_file_of_a_model_is_named(
    generate: Callable[..., Result], broken: Path, file: str, content: str, said: str
) -> None:
    (broken / file).write_text(content)
    result = generate(model=str(broken))
    assert result.exit_code == 2 and said in result.stderr, result.stderr
    assert Path(file).name in result.stderr and str(broken) in result.stderr


def test_an_unsupported_family_is_refused_with_those_supported(
    generate: Callable[..., Result], broken: Path
) -> None:
    index = (broken / "model_index.json").read_text()
    (broken / "model_index.json").write_text(index.replace("WanTransformer3DModel", "OtherModel"))
    result = generate(model=str(broken))
    assert result.exit_code == 2
    assert "with a OtherModel: supported families are wan (WanTransformer3DModel)" in result.stderr


def test_weights_that_do_not_load_fail_the_run(
    generate: Callable[..., Result], broken: Path
) -> None:
    (broken / "vae" / "diffusion_pytorch_model.safetensors").write_text("no weights")
    result = generate(model=str(broken))
    assert result.exit_code == 1
    assert "which diffusers cannot load" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub cache that holds nothing."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def check_says_how_to_get(result: Result) -> None:
    assert result.exit_code == 1
    assert f"Run `hf download {HUB_ID}` on a machine with network" in result.stderr
    assert "the embedded miniature runs and needs nothing" in result.stderr


@pytest.mark.usefixtures("empty_cache")
def test_offline_a_hub_model_fails_at_once(generate: Callable[..., Result]) -> None:
    result = generate(model=HUB_ID)
    check_says_how_to_get(result)
    assert "not in the local cache, and HF_HUB_OFFLINE is set" in result.stderr


@pytest.mark.usefixtures("empty_cache")
def test_a_hub_that_never_answers_is_given_up_soon(
    generate: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(loading, "REACH_SECONDS", 0.2)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: time.sleep(5))
    start = time.monotonic()
    result = generate(model=HUB_ID)
    assert time.monotonic() - start < 4
    check_says_how_to_get(result)
    assert "the hub cannot be reached (no answer)" in result.stderr


@pytest.mark.usefixtures("empty_cache")
def test_a_refused_look_up_names_its_reason(
    generate: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi, constants

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", refuse)
    result = generate(model=HUB_ID)
    check_says_how_to_get(result)
    assert "cannot be reached (Name or service not known)" in result.stderr


def test_a_cached_hub_model_needs_no_network(
    generate: Callable[..., Result],
    model_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    cache = tmp_path_factory.mktemp("hub")
    repo = cache / f"models--{HUB_ID.replace('/', '--')}"
    shutil.copytree(model_folder, repo / "snapshots" / "0123abc")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    result = generate("--json", "--output", "clip.npy", model=HUB_ID)
    assert result.exit_code == 0, result.stderr
    settings = json.loads(result.stdout)["settings"]
    assert (settings["model"], settings["model_revision"]) == (HUB_ID, "0123abc")


# --- what goes wrong during a run ----------------------------------------------------------------


def test_a_full_disk_leaves_nothing_of_any_file(
    generate: Callable[..., Result], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = video.write_video

    def fail_second(path: Path, frames: Any, *, fps: float) -> None:
        if "uncached" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, frames, fps=fps)

    monkeypatch.setattr(video, "write_video", fail_second)
    (here / "clip.npy").write_text("mine")
    result = generate("--compare", "--overwrite", "--output", "clip.npy")
    assert result.exit_code == 1
    assert "error: clip-uncached.npy cannot be written: No space left on device" in result.stderr
    assert names(here) == ["clip.npy"]
    assert (here / "clip.npy").read_text() == "mine"


def test_files_that_took_their_place_go_again_when_one_cannot(
    generate: Callable[..., Result], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def fail_sidecar(source: Path, target: Path) -> None:
        if str(target) == "clip.npy.json":
            raise OSError(errno.EIO, "Input/output error", str(source), None, str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_sidecar)
    result = generate("--compare", "--output", "clip.npy")
    assert result.exit_code == 1
    assert "clip.npy.json cannot be written: Input/output error" in result.stderr
    assert names(here) == []


def test_ctrl_c_in_the_loop_ends_with_130(
    generate: Callable[..., Result], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(bar: StepBar, done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(StepBar, "steps_done", press)
    result = generate("--compare")
    assert result.exit_code == 130
    assert "stopped by Ctrl-C; no half-written file is left" in result.stderr
    assert names(here) == []


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "stopped by Ctrl-C"), (signal.SIGTERM, 143, "stopped by SIGTERM")],
)
def test_a_real_signal_ends_it_in_words(
    here: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory,
    number: signal.Signals, code: int, said: str,
) -> None:  # fmt: skip
    words = ["generate", PROMPT, "--model", str(model_folder), "--steps", "1000"]
    streams = tmp_path_factory.mktemp("streams")
    printed, errors = streams / "out", streams / "err"
    process = multiprocessing.get_context("fork").Process(
        target=_in_a_process, args=([*words, "--threshold", "0.1"], printed, errors)
    )
    process.start()
    deadline = time.monotonic() + 60
    while not (printed.exists() and printed.read_text().startswith("step 1\n")):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == code
    message = errors.read_text()
    assert f"{said}; no half-written file is left" in message
    assert "Traceback" not in message
    assert names(here) == []


def _in_a_process(words: list[str], printed: Path, errors: Path) -> None:
    """The console script, forked: it need not load the packages, which takes seconds."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    StepBar.steps_done = lambda bar, done: print("step", done, flush=True)
    sys.argv = ["dit-accel", *words]
    code: Any = None
    with printed.open("w") as sys.stdout, errors.open("w") as sys.stderr:
        try:
            main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
    os._exit(1 if code is None else code)


def test_an_unforeseen_error_is_one_line_and_verbose_shows_where(
    generate: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the sky fell")

    monkeypatch.setattr("dit_accel.cli.run.run.run_accelerated", fail)
    result = generate()
    assert result.exit_code == 1
    assert "error: RuntimeError: the sky fell (--verbose shows where)" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in generate("--verbose").stderr


def test_frames_that_are_not_finite_are_refused(
    generate: Callable[..., Result], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = setup.load

    def load_broken(*args: Any, **options: Any) -> Any:
        pipe = load(*args, **options)
        pipe.vae.post_quant_conv.bias.data.fill_(np.nan)
        return pipe

    monkeypatch.setattr(setup, "load", load_broken)
    result = generate("--dtype", "bfloat16")
    assert result.exit_code == 1
    assert "frames that are not finite in bfloat16; try --dtype float32" in result.stderr
    assert names(here) == []


# --- models, version, help -----------------------------------------------------------------------


def test_models_lists_every_family() -> None:
    result = invoke("models")
    assert result.exit_code == 0
    for family in FAMILIES.values():
        assert family.name in result.stdout
        assert all(word in result.stdout for word in (family.transformer, *family.pipelines))
        assert all(site in result.stdout for site in family.sites)


def test_models_as_json() -> None:
    rows = json.loads(invoke("models", "--json").stdout)["families"]
    assert [row["transformer"] for row in rows] == list(FAMILIES)
    assert rows[0]["sites"] == ["attention", "block", "model"]


def test_version() -> None:
    import dit_accel

    result = invoke("--version")
    assert result.stdout == f"dit-accel {dit_accel.__version__}\n"


def test_no_verb_shows_the_help() -> None:
    result = invoke()
    assert "generate" in result.output
    assert "models" in result.output


@pytest.mark.parametrize("words", [["generate", "--help"], ["models"], ["generate", ""]])
def test_what_needs_no_model_imports_no_torch(words: list[str]) -> None:
    program = f"""if True:
        import sys
        from dit_accel.cli.app import app
        try:
            app({words!r})
        except SystemExit:
            pass
        heavy = {{"torch", "diffusers", "transformers", "cv2", "numpy"}} & set(sys.modules)
        assert not heavy, heavy
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


# --- the small parts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red circle, moving right!", "a-red-circle-moving-right"),
        ("Überraschung", "uberraschung"),
        ("猫", "clip"),
        ("../../etc/passwd", "etc-passwd"),
        ("word " * 20, "word-word-word-word-word-word-word-word-word-word-word-word"),
        ("x" * 80, "x" * 60),
    ],
)
def test_slug(prompt: str, name: str) -> None:
    assert slug(prompt) == name


def site(*computed: int, steps: int) -> SiteReport:
    """Of which only the steps matter; the odd ones that are not computed are forecast."""
    rest = set(range(steps)) - set(computed)
    reused, forecast = (tuple(s for s in sorted(rest) if s % 2 == odd) for odd in (0, 1))
    return SiteReport("transformer", "cond", "model", computed, reused, {}, forecast)


def test_strip_of_one_site() -> None:
    shares = summary.shares_computed([site(0, 1, 4, steps=5)], 5)
    assert texts.strip(shares) == "██··█"


def test_strip_of_many_sites_shades_what_lies_between() -> None:
    sites = [site(0, steps=3), site(0, 1, steps=3), site(0, steps=3)]
    shares = summary.shares_computed(sites, 3)
    assert shares == [1.0, 1 / 3, 0.0]
    assert texts.strip(shares) == "█▒·"
    assert texts.strip([0.001, 0.5, 0.999], texts.PLAIN_SHADES) == "-+x"


def test_strips_of_many_steps_are_folded() -> None:
    assert [len(line) for line in texts.strip([1.0] * 120).split("\n")] == [50, 50, 20]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4211, "0.42 s"), (12.34, "12.3 s"), (200, "3 min 20 s")]
)
def test_seconds_text(seconds: float, text: str) -> None:
    assert texts.seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 B"), (123456, "120.6 KiB"), (3 * 2**40, "3072.0 GiB")]
)
def test_bytes_text(count: int, text: str) -> None:
    assert texts.bytes_text(count) == text


def test_strides_come_from_the_models_own_configuration(model_folder: Path) -> None:
    model = inspect_folder(model_folder, name="tiny")
    assert read_strides(model) == SizeStrides(
        spatial=16, temporal=4, pixels_per_token=16, longest=32
    )


@pytest.mark.parametrize(
    ("option", "edge", "beyond"),
    [("height", 512, 528), ("width", 512, 528), ("frames", 125, 129)],
)
def test_sizes_on_the_edge_are_accepted(option: str, edge: int, beyond: int) -> None:
    # 32 tokens of 16 pixels; 32 latent frames: 31 x 4 + 1
    strides, least = SizeStrides(16, 4, 16, 32), {"height": 16, "width": 16, "frames": 1}
    check_sizes(strides, **least)
    check_sizes(strides, **{**least, option: edge})
    with pytest.raises(BadInput, match=f"--{option} is {beyond}; accepted .* at most {edge}$"):
        check_sizes(strides, **{**least, option: beyond})
