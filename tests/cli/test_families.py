"""The command on folders of other families: LTX and CogVideoX, with text encoder and VAE, tiny."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from commands import DEFAULTS, PROMPT, invoke
from PIL import Image
from transformers import T5Config, T5EncoderModel


def text_parts() -> dict[str, Any]:
    config = T5Config(vocab_size=128, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return {"tokenizer": tiny.tiny_tokenizer(), "text_encoder": T5EncoderModel(config).eval()}


def ltx() -> Any:
    none, narrow = (False,) * 4, (8,) * 4
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=narrow, decoder_block_out_channels=narrow,
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5, upsample_residual=none, upsample_factor=(1,) * 4,
        timestep_conditioning=False, patch_size=1, patch_size_t=1, encoder_causal=True,
        decoder_causal=False,
    )  # fmt: skip
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, num_layers=2, caption_channels=32,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.LTXPipeline(
        scheduler=scheduler, vae=vae, transformer=transformer, **text_parts()
    )


def cogvideox() -> Any:
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4,
    )  # fmt: skip
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4,
        time_embed_dim=2, text_embed_dim=32, num_layers=2, sample_width=4, sample_height=4,
        sample_frames=9, temporal_compression_ratio=4, max_text_seq_length=16,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDDIMScheduler()
    return diffusers.CogVideoXPipeline(
        scheduler=scheduler, vae=vae, transformer=transformer, **text_parts()
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each."""
    place = tmp_path_factory.mktemp("families")
    for build in (ltx, cogvideox):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            build().save_pretrained(place / build.__name__)
        defaults = DEFAULTS | {"height": 32, "width": 32, "num_frames": 9}
        (place / build.__name__ / "generation_defaults.json").write_text(json.dumps(defaults))
    return place


@pytest.fixture
def make(here: Path, folders: Path) -> Callable[..., dict[str, Any]]:
    """A run that succeeds, and its record."""
    Image.new("RGB", (48, 48), (200, 10, 10)).save("red.png")
    np.save("clip.npy", np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), dtype=np.uint8))

    def run(family: str, *options: str) -> dict[str, Any]:
        words = ["--model", str(folders / family), "--output", "o.npy", "--overwrite"]
        result = invoke("generate", PROMPT, *words, "--threshold", "1", "--json", *options)
        assert result.exit_code == 0, result.stderr
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    return run


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("family", "options", "pipeline"),
    [
        ("ltx", [], "LTXPipeline"),
        ("ltx", ["--image", "red.png"], "LTXImageToVideoPipeline"),
        ("ltx", ["--offload", "model"], "LTXPipeline"),
        ("cogvideox", [], "CogVideoXPipeline"),
        ("cogvideox", ["--video", "clip.npy", "--strength", "1"], "CogVideoXVideoToVideoPipeline"),
        ("cogvideox", ["--scheduler", "CogVideoXDPMScheduler"], "CogVideoXPipeline"),
    ],
)
def test_a_run_of_another_family(
    make: Callable[..., dict[str, Any]], family: str, options: list[str], pipeline: str
) -> None:
    content = make(family, *options)
    assert content["settings"]["pipeline"] == pipeline
    assert content["memory"]["why"] is None
    assert content["memory"]["activations"].keys() >= {"text_encoder", "transformer", "vae"}
    assert np.load("o.npy").shape == (9, 32, 32, 3)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("cogvideox", ["--attention-backend", "_native_math"], "so that it would do nothing"),
        ("ltx", ["--attention-backend", "_native_flash"], "which takes no mask: ltx needs one"),
        ("cogvideox", ["--image", "red.png"], "which takes none"),
        ("cogvideox", ["--scheduler", "DDIMScheduler"], ": CogVideoXDDIMScheduler, CogVid"),
        ("ltx", ["--scheduler", "DPMSolverMultistepScheduler"], ": FlowMatchEuler"),
    ],
)
def test_what_another_family_refuses(
    make: Any, folders: Path, family: str, options: list[str], message: str
) -> None:
    result = invoke("generate", PROMPT, "--model", str(folders / family), *options)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize("family", ["ltx", "cogvideox"])
def test_the_plan_that_is_printed_is_the_one_that_runs(
    make: Any, folders: Path, family: str
) -> None:
    """LTX's pipeline gives its sampler noise levels of its own."""
    words = ["--model", str(folders / family), "--output", "o.npy", "--speedup", "2"]
    result = invoke("generate", PROMPT, *words)
    assert result.exit_code == 0, result.stderr
    assert "plan: speedup 2x: computes 4 of 8 steps" in result.stderr
    assert "chosen again" not in result.stdout


@pytest.mark.parametrize("family", ["ltx", "cogvideox"])
def test_methods_of_another_family_are_evaluated(here: Path, folders: Path, family: str) -> None:
    """LTX's latents are packed, so that they have three axes."""
    Path("prompts.txt").write_text(f"{PROMPT}\n", encoding="utf-8")
    command = [
        "evaluate", "prompts.txt", "--model", str(folders / family), "--steps", "8", "--json",
        "--methods", "uncached,speedup:2,fewer-steps:4", "--metrics", "psnr_db,latent_rel_l2",
    ]  # fmt: skip
    result = invoke(*command, "--output", "runs", "--keep-clips")
    assert result.exit_code == 0, result.stderr
    again = invoke(*command, "--output", "runs", "--keep-clips")
    assert again.exit_code == 0, again.stderr
    summary = (here / "runs" / "summary.md").read_text(encoding="utf-8")
    assert "speedup:2" in summary and "fewer-steps:4" in summary
