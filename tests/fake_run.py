"""An evaluation's folder without a model: squares that move, and methods that blur them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from dit_accel.core.generation import ClipSpec
from dit_accel.evaluation.jobs import EvaluationSpec, Job, ModelSpec
from dit_accel.evaluation.methods import UNCACHED, parse
from dit_accel.evaluation.prompts import EvaluationPrompt
from dit_accel.evaluation.results import FAILED, NO_EFFECT, OK
from dit_accel.evaluation.store import Store, frames_hash
from dit_accel.metrics import METRICS

STEPS, FRAMES, SIDE = 12, 7, 24
PLACES = [f"blocks.{block}.{child}" for block in range(3) for child in ("attn1", "attn2", "ffn")]
LABELS = (
    "uncached",
    "edcw:0.1",
    "edcw:0.2",
    "edcw/block:0.2",
    "diffusers/first-block:0.08",
    "diffusers/taylor-seer:3",
    "diffusers/faster-cache:2",
    "fewer-steps:9",
    "fewer-steps:6",
    "fewer-steps:3",
    "rerun",
    "rerun/dtype",
)
ERROR = "IndexError: tuple index out of <range> & more"
NOISE = {  # standard deviation of what a method adds, and the steps that it computes
    "edcw:0.1": (4, 9),
    "edcw:0.2": (9, 5),
    "edcw/block:0.2": (24, 6),
    "diffusers/first-block:0.08": (12, 6),
    "fewer-steps:9": (8, 9),
    "fewer-steps:6": (15, 6),
    "fewer-steps:3": (30, 3),
    "rerun/dtype": (2, 12),
}


def fake_plan(
    prompts: int = 5,
    labels: tuple[str, ...] = LABELS,
    *,
    keep_clips: bool = True,
    side: int = SIDE,
    metrics: tuple[str, ...] = ("psnr_db", "ssim"),
) -> EvaluationSpec:
    clip = ClipSpec("", "", 0, STEPS, 4.0, side, side, FRAMES, 8.0, 32)
    return EvaluationSpec(
        model=ModelSpec("owner/model", "WanPipeline", "0123456789abcdef0123"),
        clip=clip,
        dtype="float32",
        device="cpu",
        prompts=tuple(
            EvaluationPrompt(f"p{i}", f"a square </script> number {i} & <b>more</b>")
            for i in range(prompts)
        ),
        seeds=(0,),
        methods=tuple(parse(label) for label in labels),
        metrics=metrics,
        versions={"dit_accel": "0.1.0", "torch": "2.13.0"},
        keep_clips=keep_clips,
    )


def fake_run(
    folder: Path, plan: EvaluationSpec | None = None, *, groups: int | None = None
) -> Store:
    """Write results, clips and a journal; of the first `groups` prompts only, if given."""
    store = Store(folder)
    plan = store.open(plan or fake_plan())
    for index, group in enumerate(plan.groups()[:groups]):
        frames = _square(index, plan.clip.height)
        for job in group:
            store.note("begin", job.id)
            _make(store, plan, job, frames, index)
            store.note("end", job.id)
    return store


def _make(store: Store, plan: EvaluationSpec, job: Job, uncached: np.ndarray, index: int) -> None:
    label = job.method.label
    result: dict[str, Any] = {
        "id": job.id,
        "prompt_id": job.prompt_id,
        "job": job.content(),
        "reference": None if label == UNCACHED else job.reference.id,
        "clock": {
            "device": "cpu", "device_name": "a machine", "threads": 1, "cpus": 2,
            "platform": "an OS", "python": "3.11",
        },
    }  # fmt: skip
    if label == "diffusers/faster-cache:2":
        store.write_result(job.id, result | {"status": FAILED, "error": ERROR})
        return
    sigma, computed = NOISE.get(label, (0, STEPS))
    noise = np.random.default_rng(index).normal(0, sigma * (1 + 0.3 * index), uncached.shape)
    frames = np.clip(uncached + noise, 0, 255).astype(np.uint8)
    fewer = label.startswith("fewer-steps")
    calls = [2] * computed if fewer else [2 if i * computed // STEPS != (i - 1) * computed // STEPS
                                          else 0 for i in range(STEPS)]  # fmt: skip
    idle = label == "diffusers/taylor-seer:3"
    result |= {
        "status": NO_EFFECT if idle else OK,
        "error": None,
        "remarks": ["a remark"] if label == "rerun/dtype" else [],
        "frames_sha256": frames_hash(frames),
        "flops": [10**6 * count for count in calls],
        "computed": {place: list(calls) for place in PLACES},
        "report": None,
        "scores": None,
    }
    seconds = 0.1 + 0.2 * sum(calls) / 2 + 0.01 * index
    result["clock"] |= {
        "denoising_seconds": seconds, "whole_seconds": seconds + 0.3, "peak_memory_bytes": 10**8,
    }  # fmt: skip
    if label != UNCACHED:
        result["scores"] = {name: _score(name, uncached, frames) for name in plan.metrics}
    if plan.keep_clips or label == UNCACHED:
        store.write_clip(job.id, frames, 8.0)
    store.write_result(job.id, result)


def _score(name: str, reference: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    function = METRICS[name].function
    if name == "jod":  # has no value of one frame
        value = function(reference, test, data_range=255)
        return {"value": value, "frames": None, "reason": None, "exact_frames": None}
    one = [function(a[None], b[None], data_range=255) for a, b in zip(reference, test, strict=True)]
    frames = ["inf" if math.isinf(value) else value for value in one]
    mean = sum(min(value, 100.0) for value in one) / len(one)
    return {
        "value": "inf" if all(math.isinf(value) for value in one) else mean,
        "frames": frames,
        "reason": None,
        "exact_frames": sum(map(math.isinf, one)) if name == "psnr_db" else None,
    }


def _square(index: int, side: int) -> np.ndarray:
    frames = np.full((FRAMES, side, side, 3), 90, np.uint8)
    for t in range(FRAMES):
        left = 2 + t * side // 12
        frames[t, 6 : 6 + side // 3, left : left + side // 3] = (220, 40 * index % 256, 60)
    return frames
