"""What comes out of the miniature's training: pipeline folder, loss curve, sheet; and sampling."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from run import Run
from world import DEFAULT, SHEET_STREAM, scene_at


def export(out: Path, run: Run, vae, transformer, text_encoder, tokenizer) -> WanPipeline:
    """The pipeline folder, the call's defaults and the loss curve.

    Transformer and VAE in float16, which diffusers loads as float32; the small text encoder in
    float32, since transformers keeps the stored dtype.
    """
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval().float().cpu(),
        vae=vae.eval().float().cpu(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer.eval().float().cpu(),
    )
    for part in (pipe.vae, pipe.transformer):
        for tensor in itertools.chain(part.parameters(), part.buffers()):
            tensor.data = tensor.data.half() if tensor.is_floating_point() else tensor.data
    pipe.save_pretrained(out)
    for name in ("model_index.json", "tokenizer/tokenizer_config.json"):  # transformers 4 and 5
        text = (out / name).read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast")
        (out / name).write_text(text)
    for path in out.rglob("*.json"):  # the paths of the parts do not belong into the folder
        config = json.loads(path.read_text())
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")
    frames, height, width = DEFAULT
    defaults = {
        "height": height, "width": width, "num_frames": frames, "num_inference_steps": 50,
        "guidance_scale": 4.0, "max_sequence_length": 64, "fps": 8,
    }  # fmt: skip
    (out / "generation_defaults.json").write_text(json.dumps(defaults, indent=2) + "\n")
    with open(out.parent / f"{out.name}-loss.csv", "w", newline="") as file:
        csv.writer(file).writerows([("stage", "iteration", "loss"), *run.curve])
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    run.say(f"wrote {out}: {size / 1e6:.1f} MB")
    return WanPipeline.from_pretrained(out)


def draw_curve(path: Path, curve: list[tuple[str, int, float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for axis, name in zip(axes, ("vae", "denoiser"), strict=True):
        rows = [(i, loss) for stage, i, loss in curve if stage == name]
        axis.plot(*zip(*rows, strict=True) if rows else ((), ()), linewidth=1)
        axis.set(title=name, xlabel="iteration", ylabel="loss (mean squared error)", yscale="log")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def draw_sheet(
    path: Path, pipe: WanPipeline, device: torch.device, rows: int, seed: int = 0
) -> None:
    """One row a prompt of the sheet's stream: five frames of the clip, the caption above."""
    import cv2

    pipe.to(device).set_progress_bar_config(disable=True)
    strips = []
    for i in range(rows):
        caption = scene_at(SHEET_STREAM, 10_000 + i).caption()
        clip = sample(pipe, [caption], seed + i)[0]
        frames = clip[:: (len(clip) - 1) // 4][:5]
        strip = np.concatenate(
            [np.pad(f, ((0, 0), (0, 2), (0, 0)), constant_values=1) for f in frames], 1
        )
        strip = cv2.resize(
            (strip * 255).round().astype(np.uint8),
            None,
            fx=2,
            fy=2,
            interpolation=cv2.INTER_NEAREST,
        )
        title = np.full((18, strip.shape[1], 3), 255, np.uint8)
        cv2.putText(
            title, caption[:100], (3, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA
        )
        strips += [title, strip]
    cv2.imwrite(str(path), np.concatenate(strips)[:, :, ::-1])


def sample(pipe: WanPipeline, prompts: list[str], seed: int, **settings) -> np.ndarray:
    """Clips (B, T, H, W, 3) in [0, 1] at the miniature's defaults; noise from CPU generators."""
    frames, height, width = DEFAULT
    call = {
        "height": height, "width": width, "num_frames": frames, "guidance_scale": 4.0,
        "max_sequence_length": 64, "output_type": "np",
    }  # fmt: skip
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    return pipe(prompts, generator=generators, **{**call, **settings}).frames
