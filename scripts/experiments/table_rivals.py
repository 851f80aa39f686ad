"""Makes the rivals' table: every method at k of n computed steps, against the uncached clips.

python scripts/experiments/table_rivals.py runs/rivals --device cuda

One command makes everything, and can be continued: each method and k is a file in the folder, and
existing files are not made again. Methods whose samplers do not depend on the clip run on many
prompts in one call. Those that depend on the clip run clip by clip, on the first `--single`
prompts. Their threshold is the one with k computed steps on two calibration clips. Seconds and
FLOPs are always those of single clips. Other processes score while the next clips are made.
Calibration uses other prompts and seeds than the scored clips. Samplers are trained together, for
at most `--train-seconds`; the next run continues. `--table` prints the tables of a folder, and
draws the curves. `--known research/data/rivals-MODEL.json` begins with the content of such a file,
which `--pack` writes:

    python scripts/experiments/table_rivals.py runs/rivals --table --pack rivals.json

`--cpu-seconds` makes one more clip for each result, on one thread of a CPU, and records its share
of an uncached clip's CPU-seconds: on a GPU that others use, seconds are meaningless.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import rivals_tables
import torch
from rivals_calibrations import Calibrations
from rivals_tables import read_json, write_json

from dit_accel.core import generation, video
from dit_accel.core.generation import FALLBACK_FPS, ClipSpec, batch_arguments
from dit_accel.evaluation.methods import METHODS, Method, MethodContext, trained
from dit_accel.evaluation.methods.row import FEWER_STEPS, STEPS
from dit_accel.evaluation.probe import Probe
from dit_accel.evaluation.prompts import read_prompts
from dit_accel.evaluation.runner import machine
from dit_accel.metrics import METRICS
from dit_accel.metrics.scoring import score_clips
from dit_accel.models import loading, miniature
from dit_accel.models.folder import inspect_folder
from dit_accel.planning.lookup import find_profile

CALIBRATION_SEED = 1_000_003
CALIBRATION_CLIPS = 64
SEARCHED = 8  # number of halvings of a threshold's range
WANTED = ("psnr_db", "jod")
LOW, HIGH = 1e-3, 10.0  # of thresholds
LEFT_OUT = ("uncached", "rerun", "quality", "trim-text", "pcas", "edcw", "unicp-paper", "diffusers",
            "cache-dit/dbprune")  # fmt: skip


def main() -> None:
    args = arguments()
    (args.folder / "results").mkdir(parents=True, exist_ok=True)
    if args.known is not None:
        rivals_tables.unpack(args.known, args.folder)
    if not args.table:
        Table(args).run()
    rivals_tables.write(args.folder)
    if args.pack is not None:
        rivals_tables.pack(args.folder, args.pack)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--known", type=Path, help="a file of results to begin with")
    parser.add_argument("--pack", type=Path, help="write all results to this file")
    parser.add_argument("--model", type=Path, default=miniature.path())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--single", type=int, default=16, help="prompts of clip-by-clip methods")
    parser.add_argument("--prompt-file", type=Path, default=miniature.prompts("miniature.jsonl"))
    parser.add_argument("--calibration", type=Path, default=miniature.prompts("calibration.jsonl"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--computed", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--methods", nargs="+", help="rows; all where none is given")
    parser.add_argument("--metrics", nargs="+", default=[m for m in WANTED if m in METRICS])
    parser.add_argument("--slow-metrics", nargs="*", default=[], help="of the first clips only")
    parser.add_argument("--slow", type=int, default=16, help="how many these are")
    parser.add_argument("--batch", type=int, default=32, help="clips of one call")
    parser.add_argument("--timed", type=int, default=3, help="runs of a single clip; the median")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="that score")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing after these")
    parser.add_argument("--train-seconds", type=float, default=1e9)
    parser.add_argument("--cpu-seconds", action="store_true", help="of what has scores")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


class Table:
    """All methods on one pipeline."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.started = args, time.monotonic()
        self.calibrations = Calibrations(args.folder / "calibration")
        self.steps_at: dict[tuple[str, float], float] = {}  # by method and threshold
        self.waiting: list[tuple[Path, dict[str, Any]]] = []  # results without scores so far
        self.rows = [METHODS[name] for name in args.methods or rivals()]
        (args.folder / "scratch").mkdir(exist_ok=True)

    def run(self) -> None:
        wanted = self._untimed if self.args.cpu_seconds else self._missing
        missing = [(row, k) for row in self.rows for k in self.args.computed if wanted(row, k)]
        inside = [pair for pair in missing if self.args.child or not pair[0].own_process]
        if inside and self.args.cpu_seconds:
            self._open()
            self._time(inside)
        elif inside:
            self._open()
            self._make_uncached()
            with self._scorer() as self.score:
                self._train({row.name for row, _ in inside})
                for row, k in inside:
                    self._one(row, k)
                    self._write_scored(wait=False)
                self._write_scored(wait=True)
        for name in dict.fromkeys(row.name for row, _ in missing if row.own_process):
            if not self.args.child and not self._late():
                self._in_child(name)

    def _missing(self, row: Method, k: int) -> bool:
        if row.lacking() or (row.name == FEWER_STEPS and k >= self.args.steps):
            return False
        path = self._file(row, k)  # a failed method is tried again
        return not path.exists() or "error" in read_json(path)

    def _untimed(self, row: Method, k: int) -> bool:
        path = self._file(row, k)
        result = read_json(path) if path.exists() else {}
        return "scores" in result and "cpu_share" not in result

    def _time(self, pairs: Sequence[tuple[Method, int]]) -> None:
        """Record the share of an uncached clip's CPU-seconds; the uncached clip is made beside
        it."""
        _one_thread()
        for row, k in pairs:
            if self._late():
                return
            path = self._file(row, k)
            result = read_json(path)
            uncached = self._cpu_seconds({})
            with row.apply(self.pipe, result["number"], self.context) as handle:
                own = self._cpu_seconds(handle.overrides)
            write_json(path, result | {"cpu_seconds": own, "cpu_share": own / uncached})
            print(f"{path.stem}: {own:.2f} of {uncached:.2f} CPU-seconds", flush=True)

    def _cpu_seconds(self, overrides: dict[str, Any]) -> float:
        call = generation.call_arguments(self.pipe, self.clips[0]) | {"output_type": "latent"}
        begun = time.process_time()
        self.pipe(**call | overrides)
        return time.process_time() - begun

    def _file(self, row: Method, k: int) -> Path:
        return rivals_tables.place(self.args.folder, row.name, k)

    def _late(self) -> bool:
        return time.monotonic() - self.started > self.args.seconds

    def _in_child(self, name: str) -> None:
        """Run cache-dit in a child process, because it changes classes."""
        left = self.args.seconds - (time.monotonic() - self.started)
        words = [word for word in sys.argv[1:] if word != "--table"]
        more = ["--methods", name, "--child", "--seconds", str(max(left, 1.0))]
        quiet = os.environ | {"CACHE_DIT_LOG_LEVEL": "error"}
        subprocess.run([sys.executable, __file__, *words, *more], check=False, env=quiet)

    # --- the pipeline and its clips ---

    def _open(self) -> None:
        args = self.args
        model = inspect_folder(args.model, name=args.model.name)
        self.pipe = loading.load(model, device=args.device, dtype=args.dtype)
        self.pipe.set_progress_bar_config(disable=True)
        self.clips = clips_of(args.model, args.prompt_file, args.prompts, 0, args.steps)
        calibration = clips_of(
            args.model, args.calibration, CALIBRATION_CLIPS, CALIBRATION_SEED, args.steps
        )
        self.context = MethodContext(
            self.clips[0], self._calibrate, find_profile(self.pipe), static=True,
            calibration_clips=calibration, batch=args.batch, scratch=args.folder / "scratch",
        )  # fmt: skip
        generation.warm_up(self.pipe, self.clips[0])

    def _make_uncached(self) -> None:
        args = self.args
        self.frames = self._made({})
        seconds = [self._generated({}) for _ in range(self.args.timed)]
        with Probe(self.pipe) as probe:
            self._generated({}, probe)
        self.full = sum(probe.flops or [0])
        self.counts = sum(map(sum, probe.computed.values()))
        write_json(args.folder / "uncached.json", {
            "seconds": statistics.median(seconds), "flops": self.full, "steps": args.steps,
            "prompts": len(self.clips), "machine": machine(args.device),
            "torch": torch.__version__, "model": args.model.name,
        })  # fmt: skip

    def _calibrate(self, name: str, measure: Callable[[Callable[[], None]], Any]) -> Any:
        def run_uncached() -> None:
            self._generated({})

        return self.calibrations.measured(name, lambda: measure(run_uncached))

    def _train(self, names: set[str]) -> None:
        wanted = [(v, k) for v in trained.VARIANTS if v in names for k in self.args.computed]
        if not self._late():
            most = self.args.train_seconds
            self.calibrations.train(self.pipe, self.context, wanted, seconds=most)

    # --- one method at one k ---

    def _one(self, row: Method, k: int) -> None:
        is_trained = row.name in trained.VARIANTS
        untrained = is_trained and not self.calibrations.has(trained.name_of(row.name, k))
        if self._late() or untrained:
            return
        begun = time.monotonic()
        try:
            result = self._result(row, k)
        except BrokenProcessPool:
            raise  # nothing can be scored; written files stay, and the next run continues
        except Exception as error:  # a method that fails gets a row with the error
            result = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        took = time.monotonic() - begun
        content = {"method": row.name, "k": k, **result, "took_seconds": took}
        self.waiting.append((self._file(row, k), content))

    def _write_scored(self, wait: bool) -> None:
        """Write the results that have scores; all of them if it waits for them."""
        while self.waiting and (wait or self._is_scored(self.waiting[0][1])):
            path, content = self.waiting.pop(0)
            if "scores" in content:
                scores = [score.result() for score in content["scores"]]
                names = (*self.args.metrics, *self.args.slow_metrics)
                content["scores"] = {name: [s.get(name) for s in scores] for name in names}
            write_json(path, content)
            said = content.get("error") or _short(content)
            print(f"{path.stem}: {said}, {content['took_seconds']:.0f} s", flush=True)

    @staticmethod
    def _is_scored(content: dict[str, Any]) -> bool:
        return all(score.done() for score in content.get("scores", ()))

    def _result(self, row: Method, k: int) -> dict[str, Any]:
        self.calibrations.used = set()
        number, searched = self._number(row, k)
        alone = not _takes_batches(row)
        clips = self.clips[: self.args.single] if alone else self.clips
        with row.apply(self.pipe, number, self.context) as handle:
            made = self._made(handle.overrides, clips, 1 if alone else self.args.batch)
            seconds = [self._generated(handle.overrides) for _ in range(self.args.timed)]
            calibration, remarks = handle.calibration_runs, list(handle.remarks)
        flops, computed = self._costs(row, number)
        spent = None if calibration is None else calibration + searched
        return {
            "number": number, "calibration_runs": spent,
            "calibration_seconds": self.calibrations.spent(), "remarks": remarks, "alone": alone,
            "seconds": statistics.median(seconds), "flops_kept": flops, "steps_computed": computed,
            "scores": self.score(made, self.frames[: len(made)]),
        }  # fmt: skip

    def _number(self, row: Method, k: int) -> tuple[float, float]:
        """The method's number for k computed steps, and the cost of finding it in uncached runs."""
        if row.fewer:
            return k, 0.0
        if row.name == "speedup":
            return self.args.steps / k, 0.0
        return self._threshold(row, k)

    def _threshold(self, row: Method, k: int) -> tuple[float, float]:
        """Find the threshold by bisection on a logarithmic scale, on two calibration clips."""
        key = f"threshold-{row.name.replace('/', '--')}-{k}"

        def measure() -> dict[str, float]:
            low, high, spent = LOW, HIGH, 0.0
            best = (float("inf"), high)
            for _ in range(SEARCHED):
                middle = (low * high) ** 0.5
                if row.whole:
                    middle = max(1, round(middle))
                steps = self._steps_at(row, middle)
                spent += 2 * steps / self.args.steps
                best = min(best, (abs(steps - k), middle))
                low, high = (middle, high) if steps > k else (low, middle)
            return {"number": best[1], "runs": spent}

        found = self.calibrations.measured(key, measure)
        return found["number"], found["runs"]

    def _steps_at(self, row: Method, number: float) -> float:
        """Mean number of computed steps over two clips. A number that another k needed is not
        measured again, but its runs count for each k."""
        key = row.name, number
        if key not in self.steps_at:
            clips = self.context.calibration_clips[:2]
            steps = [self._costs(row, number, clip)[1] for clip in clips]
            self.steps_at[key] = statistics.fmean(steps)
        return self.steps_at[key]

    def _costs(
        self, row: Method, number: float, clip: ClipSpec | None = None
    ) -> tuple[float, float]:
        """Share of the uncached FLOPs, and computed steps, of a single clip."""
        with Probe(self.pipe) as probe, row.apply(self.pipe, number, self.context) as handle:
            self._generated(handle.overrides, probe, clip)
        steps = self.args.steps * sum(map(sum, probe.computed.values())) / self.counts
        return sum(probe.flops or [0]) / max(self.full, 1), steps

    # --- clips ---

    def _made(
        self, overrides: dict[str, Any], clips: Sequence[ClipSpec] | None = None, batch: int = 0
    ) -> list[video.Frames]:
        frames: list[video.Frames] = []
        clips, batch = clips or self.clips, batch or self.args.batch
        for start in range(0, len(clips), batch):
            call = batch_arguments(self.pipe, clips[start : start + batch]) | overrides
            frames += [video.to_uint8(np.asarray(clip)) for clip in self.pipe(**call).frames]
        return frames

    def _generated(
        self, overrides: dict[str, Any], probe: Probe | None = None, clip: ClipSpec | None = None
    ) -> float:
        """Make a clip. Returns the seconds of its denoising loop."""
        listeners = (probe,) if probe else ()
        made = generation.generate(
            self.pipe, clip or self.clips[0], device=self.args.device, listeners=listeners,
            overrides=overrides,
        )  # fmt: skip
        return made.denoising_seconds

    @contextmanager
    def _scorer(self) -> Iterator[Callable[..., list[Future[dict[str, Any]]]]]:
        """Score in child processes, with one thread each."""
        few, fps = tuple(self.args.metrics), self.clips[0].fps or FALLBACK_FPS
        every = few + tuple(self.args.slow_metrics)
        with ProcessPoolExecutor(self.args.workers, get_context("spawn"), _one_thread) as pool:
            yield lambda made, frames: [
                pool.submit(_scored, every if clip < self.args.slow else few, fps, a, b)
                for clip, (a, b) in enumerate(zip(frames, made, strict=True))
            ]


def _one_thread() -> None:
    torch.set_num_threads(1)


def _scored(
    names: Sequence[str], fps: float, uncached: video.Frames, made: video.Frames
) -> dict[str, Any]:
    scores = score_clips(uncached, made, data_range=255, metrics=names, fps=fps)
    found = {name: scores[name].value for name in names}
    return {n: None if v is None else min(float(v), 100.0) for n, v in found.items()}


def rivals() -> list[str]:
    """All rows of the table: the rivals, our plans by speed, and the stock schedule."""
    return [
        name for name, row in METHODS.items()
        if not row.research and not name.startswith(LEFT_OUT)
    ]  # fmt: skip


def _takes_batches(row: Method) -> bool:
    """Whether the method does the same for every clip, so that many clips can be rows of one
    call."""
    return row.fewer or row.name == "speedup"


def clips_of(
    model: Path, source: Path, count: int, seed: int, steps: int | None = None
) -> tuple[ClipSpec, ...]:
    """A model's clips of the first prompts of a file; each further clip adds 1 to the seed."""
    call = miniature.call_defaults(model)
    return tuple(
        ClipSpec(
            one.prompt, one.negative or "", seed + number,
            steps or int(call["num_inference_steps"]), float(call["guidance_scale"]),
            int(call["height"]), int(call["width"]), int(call["num_frames"]), float(call["fps"]),
            int(call["max_sequence_length"]),
        )
        for number, one in enumerate(read_prompts(source)[:count])
    )  # fmt: skip


def _short(result: dict[str, Any]) -> str:
    means = {name: rivals_tables.value(result, name) for name in result["scores"]}
    scores = ", ".join(f"{name} {value or 0:.3f}" for name, value in means.items())
    return f"{scores}, {result['steps_computed']:.1f} steps, {result['seconds']:.2f} s a clip"


if __name__ == "__main__":
    main()
