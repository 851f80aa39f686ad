"""Writes the results of the miniature's training (folder, loss curve, sheet), and samples clips."""

from __future__ import annotations

import csv
import inspect
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from families import FAMILIES
from recipe import FPS, TEXT_PADDED, Preset, build_tokenizer
from run import Run
from world import DEFAULT, SHEET_STREAM
from worlds import WORLDS, World


def assemble(preset: Preset, vae, transformer, text_encoder, tokenizer):
    """The family's pipeline, made of parts in float32 on the CPU."""
    family = FAMILIES[preset.family]
    return family.pipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval().float().cpu(),
        vae=vae.eval().float().cpu(),
        scheduler=family.scheduler(),
        transformer=transformer.eval().float().cpu(),
    )


def export(out: Path, run: Run, preset: Preset, vae, transformer, text_encoder, tokenizer):
    """Write the pipeline folder, the call's defaults and the loss curve.

    Transformer and VAE are stored in float16, and diffusers loads them as float32. The small text
    encoder is stored in float32, because transformers does not change the stored dtype.
    """
    family = FAMILIES[preset.family]
    pipe = assemble(preset, vae, transformer, text_encoder, tokenizer)
    for part in (pipe.vae, pipe.transformer):
        for tensor in itertools.chain(part.parameters(), part.buffers()):
            tensor.data = tensor.data.half() if tensor.is_floating_point() else tensor.data
    pipe.save_pretrained(out)
    for name in ("model_index.json", "tokenizer/tokenizer_config.json"):  # transformers 4 and 5
        text = (out / name).read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast")
        (out / name).write_text(text)
    for path in out.rglob("*.json"):  # the paths of the parts must not be in the folder
        config = json.loads(path.read_text())
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")
    frames, height, width = preset.size
    defaults = {
        "height": height, "width": width, "num_frames": frames, "num_inference_steps": 50,
        "guidance_scale": family.guidance, "max_sequence_length": TEXT_PADDED, "fps": FPS,
    }  # fmt: skip
    (out / "generation_defaults.json").write_text(json.dumps(defaults, indent=2) + "\n")
    with open(out.parent / f"{out.name}-loss.csv", "w", newline="") as file:
        csv.writer(file).writerows([("stage", "iteration", "loss"), *run.curve])
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    run.say(f"wrote {out}: {size / 1e6:.1f} MB")
    return family.pipeline.from_pretrained(out)


def sizes_of(preset: Preset) -> str:
    """The numbers of parameters of the parts, and the bytes of their files, without making
    weights."""
    family = FAMILIES[preset.family]
    words = len(build_tokenizer(WORLDS[preset.world].words))
    with torch.device("meta"):
        parts = {
            "transformer": (family.transformer(preset), 2),
            "vae": (family.vae(preset), 2),
            "text_encoder": (family.text_encoder(words), 4),
        }
    counts = {name: sum(p.numel() for p in part.parameters()) for name, (part, _) in parts.items()}
    size = sum(counts[name] * width for name, (_, width) in parts.items())
    each = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in counts.items())
    return f"{each}, about {size / 1e6:.1f} MB"


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


def draw_sheet(path: Path, pipe, folder: Path, world: World, rows: int) -> None:
    """Draw one row for each prompt of the sheet's stream: five frames of the clip, with the caption
    above."""
    import cv2

    pipe.set_progress_bar_config(disable=True)
    settings = settings_of(folder, pipe)
    strips = []
    for i in range(rows):
        caption = world.scene_at(SHEET_STREAM, 10_000 + i).caption()
        clip = sample(pipe, [caption], i, **settings)[0]
        frames = clip[:: (len(clip) - 1) // 4][:5]
        strip = np.concatenate(
            [np.pad(f, ((0, 0), (0, 2), (0, 0)), constant_values=1) for f in frames], 1
        )
        strip = cv2.resize(
            (strip * 255).round().astype(np.uint8),
            None,
            fx=128 / strip.shape[0],
            fy=128 / strip.shape[0],
            interpolation=cv2.INTER_NEAREST,
        )
        title = np.full((18, strip.shape[1], 3), 255, np.uint8)
        cv2.putText(
            title, caption[:100], (3, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA
        )
        strips += [title, strip]
    cv2.imwrite(str(path), np.concatenate(strips)[:, :, ::-1])


def settings_of(folder: Path, pipe) -> dict[str, int | float]:
    """A model folder's defaults, as arguments of the pipeline's call."""
    settings = json.loads((folder / "generation_defaults.json").read_text())
    fps = settings.pop("fps")
    takes = "frame_rate" in inspect.signature(pipe.__call__).parameters
    return settings | ({"frame_rate": fps} if takes else {})


def sample(pipe, prompts: list[str], seed: int, **settings) -> np.ndarray:
    """Clips (B, T, H, W, 3) in [0, 1] at the miniature's defaults; noise from CPU generators."""
    frames, height, width = DEFAULT
    call = {
        "height": height, "width": width, "num_frames": frames, "guidance_scale": 4.0,
        "max_sequence_length": TEXT_PADDED, "output_type": "np",
    }  # fmt: skip
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    return pipe(prompts, generator=generators, **{**call, **settings}).frames
