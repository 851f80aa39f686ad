"""Makes the clips of jobs, scores them against their uncached references, and stores the results.

In: jobs, and a function that loads the pipeline. Out: one result for each job, in the store.
Knows: a process has one pipeline and runs one job after another. Methods that change classes get a
process of their own. If a method raises an error, its result is a failure, and the other jobs go on
with a newly loaded pipeline. Does not know which process or machine it runs in (`worker`).
Source: ours.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from dit_accel.caching.learning import learning_of
from dit_accel.caching.reference import ReferenceRun, recorded
from dit_accel.core import generation, video
from dit_accel.core.report import Report
from dit_accel.evaluation.jobs import EvaluationSpec, Job
from dit_accel.evaluation.methods import METHODS, UNCACHED, MethodContext
from dit_accel.evaluation.probe import Probe
from dit_accel.evaluation.results import FAILED, NO_EFFECT, OK, Result
from dit_accel.evaluation.store import Store, StoreError, frames_hash
from dit_accel.metrics import METRICS
from dit_accel.metrics.scoring import score_clips
from dit_accel.planning.learned import is_off

Load = Callable[[], Any]
Latents = npt.NDArray[np.float32]
OnResult = Callable[[Job, Result], None]

SHORTEST_WAIT, LONGEST_WAIT = 0.1, 2.0  # seconds between two checks of what other processes do

# With paths of profiles, too.
_DEPENDS_ON_MACHINE = ("seconds", "peak_memory_bytes", "config", "requested")


class ChildFailed(Exception):
    """A child process ended before its jobs were done."""


class Runner:
    """Runs jobs in this process.

    Args:
        store: where the results are.
        spec: the settings that all jobs share.
        load: makes the pipeline on its device. It is called at the first job, and after a failure.
        device: the device of this process, e.g. "cuda:1".
    """

    def __init__(self, store: Store, spec: EvaluationSpec, load: Load, device: str) -> None:
        self.store, self.spec, self.device, self._load = store, spec, device, load
        self._pipe: Any = None
        self._memory: dict[str, Any] = {}  # data that methods share, for one pipeline

    def run(self, jobs: Iterable[Job], on_result: OnResult = lambda job, result: None) -> None:
        """Run every job that is not done. An error that is not a method's ends it.

        Other processes may work in the same folder. This one waits for the jobs that they have
        claimed. At the end all jobs are done.

        Raises:
            StoreError: an uncached reference cannot be read.
            OSError: a result cannot be written.
        """
        pending = [job for job in jobs if not self.store.done(job.id)]
        own = {job.id for job in pending}
        wait = SHORTEST_WAIT
        while pending:
            left = [job for job in pending if not self._try(job, own, on_result)]
            if len(left) == len(pending):  # all are claimed by others, or wait for such a job
                time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT) if len(left) == len(pending) else SHORTEST_WAIT
            pending = left

    def _try(self, job: Job, own: set[str], on_result: OnResult) -> bool:
        """Try to do a job. Returns whether it is done, also if another process did it."""
        if not self.store.done(job.id):
            reference = job.reference.id
            if reference != job.id and reference in own and not self.store.done(reference):
                return False
            with self.store.claims.claim(job.id) as mine:
                if not mine:
                    return False
                # another process may have done it just before the claim
                if not self.store.done(job.id):
                    self.store.note("begin", job.id)
                    self.store.write_result(job.id, self._result(job))
                    self.store.note("end", job.id)
        result = self.store.result(job.id)
        if result is None:
            return False
        on_result(job, result)
        return True

    def rescore(self, jobs: Iterable[Job], *, again: bool) -> int:
        """Score stored clips with the metrics that their results lack. Returns the number of clips.

        Args:
            again: whether to score with all metrics of the spec.

        Raises:
            StoreError: a clip is missing or cannot be read.
        """
        count = 0
        for job in jobs:
            result = self.store.result(job.id)
            if result is None or result.get("scores") is None:
                continue
            if again or self._lacks(result):
                frames = self.store.read_clip(job.id, result["frames_sha256"])
                self._score(job, self.store.read_latents(job.id), frames, result)
                self.store.write_result(job.id, result)
                count += 1
        return count

    def _lacks(self, result: Result) -> bool:
        found = {name: entry.get("version") for name, entry in result["scores"].items()}
        return any(found.get(name) != METRICS[name].version for name in self.spec.metrics)

    def _result(self, job: Job) -> Result:
        base = {
            "id": job.id,
            "prompt_id": job.prompt_id,
            "job": job.content(),
            "reference": None if job.method.method == UNCACHED else job.reference.id,
        }
        try:
            made = self._make(job)
        except (StoreError, OSError, MemoryError):
            raise
        except Exception as error:
            self._pipe, self._memory = None, {}
            text = (str(error).strip().splitlines() or [""])[0]
            failure = f"{type(error).__name__}: {text}"
            return {**base, "status": FAILED, "error": failure, "clock": machine(self.device)}
        return {**base, **made}

    def _make(self, job: Job) -> Result:
        pipe = self._ready(job)
        method = METHODS[job.method.method]
        context = MethodContext(
            job.clip, self._calibrate, self.store.profile_path(self.spec.profile), job.static,
            job.cache_memory, calibration_clips=self.spec.calibration_clips(), memory=self._memory,
            scratch=self.store.folder / "calibration",
            learned=self.store.profile_path(self.spec.learned),
        )  # fmt: skip
        with (
            # before the method, so that only calls of the model itself are counted
            Probe(pipe) as probe,
            _recorded(pipe, job, self.spec) as references,
            method.apply(pipe, job.method.number, context) as handle,
        ):
            made = generation.generate(
                pipe,
                job.clip,
                device=self.device,
                listeners=(probe, *references),
                overrides=handle.overrides,
            )
            report = handle.report() if handle.report else None
        for reference in references:
            made = made.without(reference.seconds, reference.seconds_after)
            learning = learning_of(pipe)
            if learning is not None:
                learning.add_whole(reference.run)
        frames = video.to_uint8(made.frames)
        result = {
            "status": OK,
            "error": None,
            "remarks": [*handle.remarks, *(report.notes if report else ())],
            "frames_sha256": frames_hash(frames),
            "flops": probe.flops,
            "computed": probe.computed,
            "calibration_runs": handle.calibration_runs,
            "report": _reproducible(report),
            "scores": None,
            "clock": {**made.costs(), **machine(self.device)},
        }
        if job.method.method != UNCACHED:
            self._score(job, made.latents, frames, result)
            self._learn(pipe, job, report, result)
        if self.spec.keep_clips or job.method.method == UNCACHED:
            self.store.write_latents(job.id, made.latents)
            self.store.write_clip(job.id, frames, job.clip.fps or generation.FALLBACK_FPS)
        return result

    def _score(self, job: Job, latents: Latents, frames: video.Frames, result: Result) -> None:
        """Add the scores. A method that changed nothing and saved nothing gets the status
        `NO_EFFECT`."""
        uncached = job.reference.id
        reference = self.store.result(uncached)
        if reference is None:
            raise StoreError(
                f"jobs/{uncached}.json, the uncached reference of {job.id}, is missing"
            )
        if reference["status"] != OK:
            raise RuntimeError(f"its uncached reference failed: {reference['error']}")
        scores = score_clips(
            self.store.read_clip(uncached, reference["frames_sha256"]),
            frames,
            data_range=255,
            metrics=self.spec.metrics,
            fps=job.clip.fps,
            latents=(self.store.read_latents(uncached), latents),
        )
        result["scores"] = {
            name: {**score.to_dict(), "version": METRICS[name].version}
            for name, score in scores.items()
        }
        same = reference["frames_sha256"] == result["frames_sha256"]
        nothing_saved = result["computed"] == reference["computed"]
        if same and nothing_saved and not METHODS[job.method.method].control:
            result["status"] = NO_EFFECT

    def _learn(self, pipe: Any, job: Job, report: Report | None, result: Result) -> None:
        """Store how good a plan was, for the guarantees of later runs. This evaluation does not
        plan with it."""
        psnr = (result["scores"] or {}).get("psnr_db", {}).get("value")
        predicted = not self.spec.no_learn and report is not None and report.prediction
        learning = learning_of(pipe) if predicted else None
        if learning is not None and report is not None and isinstance(psnr, float):
            learning.add_report(report, psnr, job.clip)

    def _ready(self, job: Job) -> Any:
        """The pipeline, after a warm-up run."""
        if self._pipe is None:
            self._pipe = self._load()
            generation.warm_up(self._pipe, job.clip)
        return self._pipe

    def _calibrate(self, name: str, measure: Callable[[Callable[[], None]], Any]) -> Any:
        """Calibrate on the first prompt and seed, so that every process measures the same."""
        known = self.store.calibration(name)
        if known is None:
            first = self.spec.groups()[0][0].clip

            def run() -> None:
                generation.generate(self._pipe, first, device=self.device)

            known = measure(run)
            self.store.write_calibration(name, known)
        return known


@contextmanager
def _recorded(pipe: Any, job: Job, spec: EvaluationSpec) -> Iterator[tuple[ReferenceRun, ...]]:
    """Record an uncached reference if runs learn from it."""
    if job.method.method != UNCACHED or spec.no_learn or is_off():
        yield ()
        return
    with recorded(pipe) as reference:
        yield (reference,)


def run_jobs(
    runner: Runner,
    jobs: Sequence[Job],
    child: Callable[[Store, Sequence[str]], None],
    on_result: OnResult = lambda job, result: None,
) -> None:
    """Run jobs: first those that can share a process, then the others.

    Args:
        child: runs the jobs of one setting, given by their ids, in a child process.
        on_result: called after every job.

    Raises:
        ChildFailed: a child process ended too early.
    """
    runner.run([job for job in jobs if not _alone(job)], on_result)
    alone: dict[str, list[Job]] = {}
    for job in filter(_alone, jobs):
        if not runner.store.done(job.id):
            alone.setdefault(job.method.label, []).append(job)
    for label, own in alone.items():
        child(runner.store, [job.id for job in own])
        for job in own:
            result = runner.store.result(job.id)
            if result is None:
                raise ChildFailed(f"the process of {label} ended before its jobs were done")
            on_result(job, result)


def in_child(target: Callable[..., None], *arguments: Any) -> None:
    """Call a module-level function in a new process, and wait for it.

    Raises:
        ChildFailed: the process ended with an error or a signal.
    """
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    try:
        process.join()
    finally:
        if process.is_alive():
            process.terminate()
            process.join()
    if process.exitcode:
        raise ChildFailed(f"a process of its own ended with exit code {process.exitcode}")


def machine(device: str) -> dict[str, Any]:
    """The machine on which the seconds are measured."""
    import torch

    name = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    return {
        "device": device,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def _alone(job: Job) -> bool:
    return METHODS[job.method.method].own_process


def _reproducible(report: Report | None) -> dict[str, Any] | None:
    """The report without the parts that depend on time or machine."""
    if report is None:
        return None
    content = {k: v for k, v in report.to_dict().items() if k not in _DEPENDS_ON_MACHINE}
    for site in content["sites"]:
        site["drift"] = {str(step): _plain(value) for step, value in site["drift"].items()}
    return content


def _plain(value: float) -> float | str:
    return value if np.isfinite(value) else str(value)
