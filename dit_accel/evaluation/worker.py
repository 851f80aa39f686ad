"""Runs an evaluation's jobs in this process, in a child process, or in an actor of a Ray cluster.

In: the store's folder, the model's folder and jobs by their ids. Out: results in the store.
Knows: processes and devices. Does not know how a job is run (`runner`).
Source: ours.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dit_accel.evaluation.jobs import EvaluationSpec, Job
from dit_accel.evaluation.runner import OnResult, Runner, in_child, run_jobs
from dit_accel.evaluation.store import Store


def work(
    store: Store,
    spec: EvaluationSpec,
    folder: str,
    device: str,
    on_result: OnResult = lambda job, result: None,
) -> None:
    """Run all jobs in this process and in child processes.

    Args:
        folder: the folder with the model's weights.

    Raises:
        ChildFailed, StoreError, OSError: see `runner`.
    """
    runner = _runner(store, spec, folder, device)
    run_jobs(runner, spec.jobs(), partial(_run_in_child, folder, device), on_result)


def rescore(store: Store, spec: EvaluationSpec, *, again: bool) -> int:
    """`Runner.rescore` for all jobs; no model is loaded."""
    return Runner(store, spec, lambda: None, spec.device).rescore(spec.jobs(), again=again)


def work_with_ray(
    store: Store,
    spec: EvaluationSpec,
    folder: str,
    groups: Sequence[tuple[Job, ...]],
    workers: int,
    on_group: Callable[[int], None],
) -> None:
    """Run groups on a Ray cluster, with one actor for each worker. On CUDA, each actor has one GPU.

    The store's folder must be on a file system that every node sees.

    Args:
        workers: number of actors.
        on_group: called with the number of jobs of each finished group.

    Raises:
        RuntimeError: an actor raised an error.
    """
    import ray
    from ray.util import ActorPool

    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False)
    try:
        gpus = 1 if spec.device == "cuda" else 0
        kind = ray.remote(num_cpus=1, num_gpus=gpus)(_Actor)
        actors = [
            kind.remote(str(store.folder.absolute()), folder, spec.device) for _ in range(workers)
        ]
        parts = [[job.id for job in group] for group in groups]
        for count in ActorPool(actors).map_unordered(lambda a, ids: a.run.remote(ids), parts):
            on_group(count)
    finally:
        if started:
            ray.shutdown()


class _Actor:
    """An actor, which reuses its pipeline for all groups."""

    def __init__(self, store: str, folder: str, device: str) -> None:
        opened = Store(Path(store))
        self._runner = _runner(opened, opened.spec(), folder, device)
        self._child = partial(_run_in_child, folder, device)

    def run(self, ids: list[str]) -> int:
        run_jobs(self._runner, _find(self._runner.spec, ids), self._child)
        return len(ids)


def _runner(store: Store, spec: EvaluationSpec, folder: str, device: str) -> Runner:
    return Runner(store, spec, partial(load, spec, folder, device), device)


def load(spec: EvaluationSpec, folder: str, device: str) -> Any:
    """Load the pipeline of an evaluation on a device, without messages."""
    from dit_accel.models import setup
    from dit_accel.models.folder import inspect_folder

    model = inspect_folder(Path(folder), name=spec.model.name)
    index = model.index | {"_class_name": spec.model.pipeline}
    model = dataclasses.replace(model, index=index)
    return setup.load(model, spec.setup, device=device, dtype=spec.dtype)


def _run_in_child(folder: str, device: str, store: Store, ids: Sequence[str]) -> None:
    in_child(_child, str(store.folder), folder, device, list(ids), os.getpid())


def _child(store_folder: str, folder: str, device: str, ids: list[str], parent: int) -> None:
    """The work of a child process. It ends before its next job if the parent has ended."""
    from dit_accel.models.loading import quiet_libraries

    store = Store(Path(store_folder))
    spec = store.spec()
    runner = _runner(store, spec, folder, device)
    with quiet_libraries(verbose=False):
        for job in _find(spec, ids):
            if os.getppid() != parent:
                return
            runner.run([job])


def _find(spec: EvaluationSpec, ids: Sequence[str]) -> list[Job]:
    """The jobs with these ids, in the evaluation's order."""
    wanted = set(ids)
    return [job for job in spec.jobs() if job.id in wanted]
