"""Clips that start from a picture or a video, and pipelines that are set up otherwise.

A worked example: `--image` is `ClipSpec.image`, a path, which `call_arguments` opens for the
pipeline's `image`. What a pipeline does not take is refused by its call's signature alone.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import PROMPT, invoke
from PIL import Image
from safetensors.numpy import save_file
from typer.testing import Result

from dit_accel.cli.run.inputs import Inputs
from dit_accel.models import loading, quantizing, setup
from dit_accel.models.setup import Setup

ALL_BUT_LAST = ["--threshold", "0", "--output"]


@pytest.fixture
def make(here: Path, model_folder: Path) -> Callable[..., Result]:
    """`dit-accel generate` on the tiny model, with files to start from in the folder."""
    Image.new("RGB", (48, 24), (200, 10, 10)).save("red.png")
    Image.new("RGB", (48, 24), (10, 10, 200)).save("blue.png")
    np.save("clip.npy", np.random.default_rng(0).integers(0, 255, (7, 16, 16, 3), dtype=np.uint8))
    (here / "text.png").write_text("no picture")

    def run(*options: str, model: Path = model_folder) -> Result:
        return invoke("generate", PROMPT, "--model", str(model), *options)

    return run


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading fails the test: what is refused must be refused before it."""

    def read(*given: Any, **named: Any) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(loading, "read", read)


def settings_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"{name}.json").read_text())["settings"]
    return found


# --- pictures and videos -----------------------------------------------------------------------


def test_a_clip_starts_from_a_picture(
    make: Callable[..., Result], image_model_folder: Path
) -> None:
    for name, picture in (("a", "red.png"), ("b", "red.png"), ("c", "blue.png")):
        result = make("--image", picture, *ALL_BUT_LAST, f"{name}.npy", model=image_model_folder)
        assert result.exit_code == 0, result.stderr
    a, b, c = (np.load(f"{name}.npy") for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    last = ["--last-image", "blue.png"]
    make("--image", "red.png", *last, *ALL_BUT_LAST, "d.npy", model=image_model_folder)
    assert not np.array_equal(a, np.load("d.npy"))
    assert settings_of("d.npy")["last_image"] == str(Path("blue.png").absolute())


def test_the_clip_has_the_shape_of_the_picture_unless_a_size_is_typed() -> None:
    strides, usual = (16, 4), {"height": 480, "width": 832, "num_frames": 81}
    found = Inputs(size=(1000, 2000)).defaults(usual, *strides)
    assert (found["width"], found["height"]) == (448, 896)  # 632 x 632 px, 1:2, in steps of 16
    assert Inputs(size=(832, 480)).defaults(usual, *strides) == {"height": 480, "width": 832}
    assert Inputs(frames=50, fps=24.0).defaults(usual, *strides) == {"num_frames": 49, "fps": 24.0}
    assert Inputs(frames=500).defaults(usual, *strides) == {"num_frames": 81}


def test_a_video_is_changed_by_the_folder_of_a_text_to_video_model(
    make: Callable[..., Result],
) -> None:
    for name, strength in (("weak", "0.3"), ("strong", "1")):
        result = make("--video", "clip.npy", "--strength", strength, *ALL_BUT_LAST, f"{name}.npy")
        assert result.exit_code == 0, result.stderr
        assert "decoding" in result.stderr
    weak, strong = np.load("weak.npy"), np.load("strong.npy")
    assert weak.shape == (5, 16, 16, 3)  # 7 frames are 5 and 2
    assert not np.array_equal(weak, strong)
    sidecar = json.loads(Path("weak.npy.json").read_text())
    assert sidecar["settings"]["pipeline"] == "WanVideoToVideoPipeline"
    assert sidecar["report"]["steps"] == 2  # of 8


def test_a_video_of_the_miniature_is_changed(here: Path, traced: None) -> None:
    """Its VAE has another factor than Wan's video-to-video pipeline takes for granted."""
    np.save("clip.npy", np.zeros((5, 32, 32, 3), np.uint8))
    small = ["--height", "32", "--width", "32", "--frames", "5", "--steps", "8"]
    result = invoke("generate", PROMPT, "--video", "clip.npy", "--strength", "0.5", *small,
                    "--output", "x.npy")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert np.load("x.npy").shape == (5, 32, 32, 3) and "could not be traced" not in result.stderr


def test_the_plan_that_is_shown_is_of_the_steps_that_run(here: Path) -> None:
    """9 of 12 steps run: the plan computes 6 of 9, and the run does not choose another one."""
    np.save("clip.npy", np.zeros((5, 32, 32, 3), np.uint8))
    small = ["--height", "32", "--width", "32", "--frames", "5", "--steps", "12"]
    result = invoke("generate", PROMPT, "--video", "clip.npy", "--strength", "0.8", *small,
                    "--speedup", "1.5", "--output", "x.npy")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "computes 6 of 9 steps" in result.stderr
    report = json.loads(Path("x.npy.json").read_text())["report"]
    assert report["steps"] == 9 and report["steps_computed"] == 6
    assert not any("chosen again" in note for note in report["notes"])


REFUSED = [
    (["--speedup", "5"], "--speedup is 5.0; accepted: 1 to 4 at 8 steps"),
    (
        ["--video", "clip.npy", "--strength", "1", "--speedup", "4.5"],
        "--speedup is 4.5; accepted: 1 to 4 at 8 steps",
    ),
    (["--image", "red.png"], "--image is 'red.png', but --model is a WanPipeline, which takes"),
    (["--strength", "0.5"], "--strength is '0.5', but --model is a WanPipeline"),
    (["--video", "clip.npy", "--strength", "2"], "--strength is 2.0; accepted: 0.001 to 1.0"),
    (["--video", "no.mp4"], "--video is 'no.mp4': it is no file"),
    (
        ["--video", "clip.npy", "--quality", "30", "--strength", "0.5"],
        "--strength is 0.5, so that 4 of 8 steps run; accepted with --quality 30: 8 or more",
    ),
    (
        ["--video", "clip.npy", "--strength", "0.1"],
        "--strength is 0.1, and with --steps 8 no step runs; accepted: at least 0.125",
    ),
    (["--guidance-2", "3"], "--guidance-2 is 3: this model has one expert"),
    (["--guidance-2", "-1"], "--guidance-2 is -1.0; accepted: 0.0 to 1000.0"),
    (["--offload", "disk"], "--offload is 'disk'; accepted: none, model"),
    (["--offload", "sequential"], "--offload is 'sequential'; accepted: none, model or group"),
    (["--compile", "--offload", "sequential"], "--compile and --offload sequential are given"),
    (["--attention-backend", "flash"], "--attention-backend is 'flash', which does not work here"),
    (["--attention-backend", "x"], "--attention-backend is 'x', which does not work here: diffus"),
    (
        ["--scheduler", "DDIMScheduler"],
        "--scheduler is 'DDIMScheduler'; accepted in place of FlowMatch",
    ),
    (
        ["--scheduler", "HeliosScheduler"],
        "--scheduler is 'HeliosScheduler'; accepted in place of FlowM",
    ),
    (["--quantize", "int3"], "--quantize is 'int3'; accepted: bnb4"),
    (["--lora", "no.safetensors:0.5"], "no.safetensors:0.5': no such file"),
    (["--lora", "text.png"], "text.png', which is no .safetensors file"),
    (["--lora", "x" * 300], "File name too long"),
    (["--model", "x" * 300], "--model is 'xxx"),
    (["--lora", "transformer_2=red.png"], "the model has no transformer_2; it has transformer"),
    (["--lora", "red.png:200"], "--lora is 'red.png:200'; accepted: a weight of -100 to 100"),
    (["--revision", "main"], "--revision is 'main'; accepted: with a hub id"),
    (["--variant", "fp16"], "--variant is 'fp16', of model"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[" ".join(o) for o, _ in REFUSED])
@pytest.mark.usefixtures("no_weights")
def test_what_cannot_be_is_refused_before_weights_are_loaded(
    make: Callable[..., Result], options: list[str], message: str
) -> None:
    result = make(*options)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr


@pytest.mark.usefixtures("no_weights")
def test_a_picture_that_is_needed_or_broken_is_named(
    make: Callable[..., Result], image_model_folder: Path, here: Path
) -> None:
    result = make(model=image_model_folder)
    assert (result.exit_code, "--image is not given" in result.stderr) == (2, True)
    result = make("--image", "text.png", model=image_model_folder)
    assert (result.exit_code, "no picture that can be read" in result.stderr) == (2, True)
    layout = here / "layout.yaml"
    layout.write_text("shots: []")
    result = invoke("generate", "--layout", str(layout), "--image", "red.png")
    assert "--image and --layout are given" in result.stderr


def test_a_folder_of_wan_22_ti2v_also_starts_from_a_picture(
    make: Callable[..., Result], model_folder: Path, here: Path
) -> None:
    folder = here / "ti2v"
    shutil.copytree(model_folder, folder)
    index = json.loads((folder / "model_index.json").read_text()) | {"expand_timesteps": True}
    (folder / "model_index.json").write_text(json.dumps(index))
    for name in ("red", "blue"):
        result = make("--image", f"{name}.png", *ALL_BUT_LAST, f"{name}.npy", model=folder)
        assert result.exit_code == 0, result.stderr
    assert settings_of("red.npy")["pipeline"] == "WanImageToVideoPipeline"
    assert not np.array_equal(np.load("red.npy"), np.load("blue.npy"))
    result = make("--image", "red.png", "--last-image", "blue.png", model=folder)
    assert (result.exit_code, "uses only a first frame" in result.stderr) == (2, True)


def test_a_variant_alone_has_to_be_named(
    make: Callable[..., Result], model_folder: Path, here: Path
) -> None:
    folder = here / "half"
    shutil.copytree(model_folder, folder)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    result = make("--dry-run", model=folder)
    assert result.exit_code == 2
    assert "--variant is not given, and vae of model " in result.stderr
    assert "has only fp16" in result.stderr
    assert make("--dry-run", "--variant", "fp16", model=folder).exit_code == 0


def test_the_second_expert_has_a_guidance_of_its_own(
    make: Callable[..., Result], model_folder: Path, here: Path
) -> None:
    folder = here / "two"
    shutil.copytree(model_folder, folder)
    shutil.copytree(folder / "transformer", folder / "transformer_2")
    index = json.loads((folder / "model_index.json").read_text()) | {"boundary_ratio": 0.9}
    index["transformer_2"] = index["transformer"]
    (folder / "model_index.json").write_text(json.dumps(index))
    for name, *options in (["own"], ["same", "--guidance-2", "4"], ["other", "--guidance-2", "1"]):
        result = make(*options, *ALL_BUT_LAST, f"{name}.npy", model=folder)
        assert result.exit_code == 0, result.stderr
    assert "guidance 4, then 1, seed 0" in result.stdout
    assert settings_of("other.npy")["guidance_2"] == 1
    own, same, other = (np.load(f"{name}.npy") for name in ("own", "same", "other"))
    assert np.array_equal(own, same) and not np.array_equal(own, other)
    for second in ([], ["--guidance-2", "1"]):  # what is printed is what runs
        planned = make("--speedup", "2", *second, "--output", "p.npy", "--overwrite", model=folder)
        assert "computes 4 of 8 steps" in planned.stderr
        assert "chosen again" not in planned.stdout and "Planned from a prior" in planned.stdout


@pytest.mark.usefixtures("no_weights")
def test_what_a_device_cannot_do_is_refused_for_it(
    make: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizing, "installed", lambda method: True)
    result = make("--quantize", "bnb4")
    wanted = "bitsandbytes needs a CUDA device; on cpu work int8, fp8, quanto8"
    assert (result.exit_code, wanted in result.stderr) == (2, True), result.stderr
    assert quantizing.available("cuda:0") == [*quantizing.QUANTIZERS]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    result = make("--compile")
    wanted = "--compile is given: on cpu it needs a C++ compiler"
    assert (result.exit_code, wanted in result.stderr) == (2, True), result.stderr


def test_other_verbs_know_the_same_words(make: Callable[..., Result], model_folder: Path) -> None:
    Path("prompts.txt").write_text("a red circle\n")
    wrong = ["--model", str(model_folder), "--offload", "disk"]
    for verb in (["calibrate", "prompts.txt"], ["evaluate", "prompts.txt", "--output", "e"]):
        result = invoke(*verb, *wrong)
        assert (result.exit_code, "--offload is 'disk'" in result.stderr) == (2, True), verb
    assert "--offload is 'disk'" in invoke("bench", "--offload", "disk").stderr


# --- the pipeline's setup ----------------------------------------------------------------------


def test_setups_that_change_no_value(make: Callable[..., Result]) -> None:
    make(*ALL_BUT_LAST, "plain.npy")
    for name, *options in (
        ["model", "--offload", "model"],
        ["math", "--attention-backend", "_native_math"],
    ):
        result = make(*options, *ALL_BUT_LAST, f"{name}.npy")
        assert result.exit_code == 0, result.stderr
        assert np.allclose(np.load("plain.npy"), np.load(f"{name}.npy"), atol=1e-4), name
        assert settings_of(f"{name}.npy")["setup"]
    assert settings_of("plain.npy")["setup"] == {}


def test_another_scheduler_makes_another_clip_with_the_same_shift(
    make: Callable[..., Result], model_folder: Path
) -> None:
    make(*ALL_BUT_LAST, "plain.npy")
    make("--scheduler", "UniPCMultistepScheduler", *ALL_BUT_LAST, "unipc.npy")
    plain, other = np.load("plain.npy"), np.load("unipc.npy")
    assert not np.array_equal(plain, other)
    model = loading.resolve_model(str(model_folder))
    pipe = setup.load(
        model, Setup(scheduler="UniPCMultistepScheduler"), device="cpu", dtype="float32"
    )
    assert pipe.scheduler.config.flow_shift == 3.0 and pipe.scheduler.config.use_flow_sigmas


def test_a_lora_file_without_a_tensor_of_one_is_refused(make: Callable[..., Result]) -> None:
    save_file({"blocks.0.weight": np.zeros((2, 2), np.float32)}, "plain.safetensors")
    result = make("--lora", "plain.safetensors")
    assert (result.exit_code, "none of its 1 tensors is of a LoRA" in result.stderr) == (
        2,
        True,
    )


def lora_file(path: Path, scale: float = 1.0, width: int = 24) -> None:
    draw = np.random.default_rng(0)
    tensors = {}
    for part in ("to_q", "to_v"):
        name = f"transformer.blocks.0.attn1.{part}"
        tensors[f"{name}.lora_A.weight"] = draw.normal(size=(4, width)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = scale * draw.normal(size=(width, 4)).astype(np.float32)
    save_file(tensors, path)


def test_a_lora_is_loaded_with_its_weight(make: Callable[..., Result], here: Path) -> None:
    lora_file(here / "style.safetensors")
    if importlib.util.find_spec("peft") is None:
        result = make("--lora", "style.safetensors")
        assert (result.exit_code, "pip install peft" in result.stderr) == (2, True)
        return
    clips = {}
    for name, *weights in (["none"], ["zero", ":0"], ["one", ""], ["both", "", ":-1"]):
        words = [word for end in weights for word in ("--lora", f"style.safetensors{end}")]
        result = make(*words, *ALL_BUT_LAST, f"{name}.npy")
        assert result.exit_code == 0, result.stderr
        clips[name] = np.load(f"{name}.npy")
    assert np.array_equal(clips["none"], clips["zero"])
    assert not np.array_equal(clips["none"], clips["one"])
    assert np.allclose(clips["none"], clips["both"], atol=1e-4)  # 1 and -1 of the same


def test_a_setup_is_stored_with_an_evaluation(model_folder: Path) -> None:
    from dit_accel.core.document import read_document
    from dit_accel.evaluation.jobs import fingerprint
    from dit_accel.evaluation.manifest import _setup

    chosen = Setup(offload="model", scheduler="UniPCMultistepScheduler", vae_tiling=True)
    path = model_folder.parent / "setup.json"
    path.write_text(json.dumps(chosen.to_dict()))
    assert _setup(read_document(path)) == chosen
    assert fingerprint(model_folder) == fingerprint(model_folder, Setup())
    assert fingerprint(model_folder) != fingerprint(model_folder, chosen)
