"""Measures CPU-seconds of decoding, PSNR and SSIM: ours, the field's script, torchmetrics.

    python scripts/experiments/bench_metrics.py    # 81 frames of 480x832; last line: JSON
    python scripts/experiments/bench_metrics.py --torchmetrics PATH
    python scripts/experiments/bench_metrics.py --rows     # CPU-seconds a frame, row by row

`PATH` is the folder of `pip install --target PATH --no-deps torchmetrics lightning-utilities`.

Everything runs in this one process on one thread. The clips are sample photos of scikit-learn,
panned and warped, written lossily (which people score) and losslessly (which they should score)
into a temporary folder. "The field's script" computes the same as the scripts that VideoSys,
TeaCache and MagCache share: whole clips in memory as float32, for each channel a full 11x11
Gaussian by `cv2.filter2D` in float64, valid region. The exit code is 1 if ours is not 3 times as
fast, or if two SSIMs that should be equal differ.
"""

# ruff: noqa: E402 - the thread counts must be set before numpy is imported

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # read when numpy is imported

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dit_accel.core import video
from dit_accel.metrics import METRICS, Metric, Unavailable
from dit_accel.metrics.scoring import Scorer, rows_of

WANTED = 3.0
Scores = dict[str, float]


def main() -> int:
    asked = _arguments()
    cv2.setNumThreads(1)
    if asked.rows:
        print(json.dumps(_measure_rows(asked.frames, asked.height, asked.width, asked.repeats)))
        return 0
    if asked.torchmetrics:
        sys.path.append(asked.torchmetrics)
    with tempfile.TemporaryDirectory() as folder:
        pairs = _write_pairs(Path(folder), asked.frames, asked.height, asked.width)
        results = {codec: _measure(paths, asked.repeats) for codec, paths in pairs.items()}
    record = {
        "frames": asked.frames,
        "height": asked.height,
        "width": asked.width,
        "threads": 1,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "results": results,
    }
    passed = all(_passes(codec, rows) for codec, rows in results.items())
    print(json.dumps(record | {"passed": passed}))
    return 0 if passed else 1


def ours(reference: Path, test: Path, clock: Clock) -> Scores:
    """Ours: clips are decoded and scored in chunks."""
    scorer = Scorer(rows_of(["psnr_db", "ssim"]), data_range=255)
    streams = [video.stream_video(path) for path in (reference, test)]
    for chunks in zip(*streams, strict=True):
        with clock.scoring():
            scorer.update(*chunks)
    with clock.scoring():
        return {name: float(score.value or 0) for name, score in scorer.compute().items()}


def field(reference: Path, test: Path, clock: Clock) -> Scores:
    """The computation of the common script for one pair."""
    clips = [_load_float(path) for path in (reference, test)]
    with clock.scoring():
        psnrs, ssims = [], []
        for x, y in zip(*clips, strict=True):
            error = np.mean((x - y) ** 2)
            psnrs.append(100.0 if error < 1e-10 else 20 * math.log10(1 / math.sqrt(error)))
            ssims.append(np.mean([_field_ssim(x[c], y[c]) for c in range(3)]))
        return {"psnr_db": float(np.mean(psnrs)), "ssim": float(np.mean(ssims))}


def torchmetrics(reference: Path, test: Path, clock: Clock) -> Scores:
    """Its two functions, some frames at a time."""
    import torch
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    torch.set_num_threads(1)
    clips = [torch.from_numpy(_load_float(path)) for path in (reference, test)]
    psnrs, ssims = [], []
    with clock.scoring(), torch.no_grad():
        for x, y in zip(*(clip.split(1) for clip in clips), strict=True):
            psnrs.append(peak_signal_noise_ratio(y, x, data_range=1.0))
            ssims.append(structural_similarity_index_measure(y, x, data_range=1.0))
        return {
            "psnr_db": float(torch.stack(psnrs).mean()),
            "ssim": float(torch.stack(ssims).mean()),
        }


class Clock:
    """Measures CPU-seconds in total, and of the scoring."""

    def __init__(self) -> None:
        self.whole = self.scored = 0.0

    def scoring(self) -> Any:
        import contextlib

        @contextlib.contextmanager
        def measured() -> Iterator[None]:
            start = time.process_time()
            yield
            self.scored += time.process_time() - start

        return measured()


def _field_ssim(x: Any, y: Any) -> float:
    kernel = cv2.getGaussianKernel(11, 1.5)
    window = kernel @ kernel.T
    x, y = x.astype(np.float64), y.astype(np.float64)

    def filtered(plane: Any) -> Any:
        return cv2.filter2D(plane, -1, window)[5:-5, 5:-5]

    mean_x, mean_y = filtered(x), filtered(y)
    var_x = filtered(x**2) - mean_x**2
    var_y = filtered(y**2) - mean_y**2
    covariance = filtered(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    upper = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    lower = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float((upper / lower).mean())


def _load_float(path: Path) -> Any:
    """`(T, 3, H, W)` float32 in [0, 1]. It is decoded in the same way as ours, so only the later
    work differs."""
    frames, _ = video.read_video(path)
    return np.ascontiguousarray(frames.transpose(0, 3, 1, 2)).astype(np.float32) / 255


def _measure(paths: tuple[Path, Path], repeats: int) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, method in {"ours": ours, "field": field, "torchmetrics": torchmetrics}.items():
        try:
            rows[name] = min(
                (_once(method, paths) for _ in range(repeats)), key=lambda row: row["cpu_seconds"]
            )
        except Exception as error:
            if name != "torchmetrics":
                raise
            rows[name] = {"skipped": f"{type(error).__name__}: {error}".splitlines()[0]}
    for name, row in rows.items():
        if "cpu_seconds" in row and name != "ours":
            row["ours_is_faster_by"] = row["cpu_seconds"] / rows["ours"]["cpu_seconds"]
    return rows


def _once(
    method: Callable[[Path, Path, Clock], Scores], paths: tuple[Path, Path]
) -> dict[str, Any]:
    clock = Clock()
    start = time.process_time()
    scores = method(*paths, clock)
    whole = time.process_time() - start
    return {
        "cpu_seconds": whole,
        "decoding_cpu_seconds": whole - clock.scored,
        "scoring_cpu_seconds": clock.scored,
        **scores,
    }


def _measure_rows(frames: int, height: int, width: int, repeats: int) -> dict[str, float | None]:
    """CPU-seconds per frame of every pixel metric; None if it cannot be measured here."""
    import torch
    from sklearn.datasets import load_sample_images

    torch.set_num_threads(1)
    photo = load_sample_images().images[0]
    clips = [_clip(photo, frames, height, width, bent) for bent in (0.0, 1.5)]
    found: dict[str, float | None] = {}
    for name, row in METRICS.items():
        if row.family == "pixels":
            try:
                # the first run is a warm-up
                seconds = min(_seconds(row, *clips) for _ in range(repeats + 1))
                found[name] = round(seconds / frames, 4)
            except Unavailable as unavailable:
                print(f"{name}: {unavailable}")
                found[name] = None
    return found


def _seconds(row: Metric, reference: Any, test: Any) -> float:
    start = time.process_time()
    running = row.start(data_range=255)
    running.update(reference, test)
    running.compute()
    return time.process_time() - start


def _passes(codec: str, rows: dict[str, Any]) -> bool:
    for name, row in rows.items():
        if "skipped" in row:
            print(f"{codec:<9} {name:<13} skipped: {row['skipped']}")
            continue
        ratio = f"{row['ours_is_faster_by']:.1f}x ours" if name != "ours" else ""
        print(
            f"{codec:<9} {name:<13} {row['cpu_seconds']:6.2f} CPU-s "
            f"({row['decoding_cpu_seconds']:.2f} decoding, "
            f"{row['scoring_cpu_seconds']:.2f} scoring) "
            f"PSNR {row['psnr_db']:.4f} SSIM {row['ssim']:.6f} {ratio}"
        )
    equal = abs(rows["ours"]["ssim"] - rows["field"]["ssim"]) < 5e-6
    return equal and (codec != "mp4" or rows["field"]["ours_is_faster_by"] >= WANTED)


def _write_pairs(
    folder: Path, frames: int, height: int, width: int
) -> dict[str, tuple[Path, Path]]:
    """Write a panning photo and a slightly warped copy, in two formats."""
    from sklearn.datasets import load_sample_images

    clips = {name: _clip(load_sample_images().images[0], frames, height, width, bent)
             for name, bent in (("reference", 0.0), ("test", 1.5))}  # fmt: skip
    pairs = {}
    for codec in ("mp4", "mkv"):
        paths = [folder / f"{name}.{codec}" for name in clips]
        for path, clip in zip(paths, clips.values(), strict=True):
            video.write_video(path, clip, fps=16)
        pairs[codec] = (paths[0], paths[1])
    return pairs


def _clip(photo: Any, frames: int, height: int, width: int, bent: float) -> Any:
    """`(T, H, W, 3)` uint8."""
    large = cv2.resize(photo, (width * 5 // 4, height * 5 // 4), interpolation=cv2.INTER_CUBIC)
    rows, columns = np.indices((height, width)).astype(np.float32)
    pictures = []
    for index in range(frames):
        wave = bent * np.sin(columns / 40 + index / 9).astype(np.float32)
        x, y = columns + 1.5 * index % (width // 5), rows + index % (height // 5) + wave
        pictures.append(cv2.remap(large, x.astype(np.float32), y, cv2.INTER_LINEAR))
    return np.stack(pictures)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--repeats", type=int, default=1, help="take the fastest of so many")
    parser.add_argument("--torchmetrics", metavar="PATH", help="a folder to import it from")
    parser.add_argument("--rows", action="store_true", help="every row of METRICS instead")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
