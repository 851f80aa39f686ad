"""Work on an evaluation in a process: this one, one of its own, or an actor of a Ray cluster.

All do the same: open the store, and run jobs by their ids.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dit_accel.core.measure import StepListener
from dit_accel.evaluation.jobs import EvaluationSpec, Job
from dit_accel.evaluation.runner import Runner, Told, in_child, run_groups
from dit_accel.evaluation.store import Store


def work(
    store: Store,
    plan: EvaluationSpec,
    folder: str,
    device: str,
    groups: Sequence[tuple[Job, ...]],
    told: Told = lambda job, result: None,
    listeners: tuple[StepListener, ...] = (),
) -> None:
    """Run groups of jobs in this process and in children of it.

    Args:
        folder: where the model's weights lie.
        groups: as `EvaluationSpec.groups` gives them.

    Raises:
        ChildFailed, StoreError, OSError: see `runner`.
    """
    runner = Runner(store, plan, partial(load, plan, folder, device), device, listeners)
    child = partial(_run_in_child, folder, device)
    run_groups(runner, groups, child, told)


def rescore(
    store: Store, plan: EvaluationSpec, groups: Sequence[tuple[Job, ...]], again: bool
) -> int:
    """Score kept clips by metrics that are new, or by all of them again; returns how many.

    Raises:
        StoreError: a clip was not kept, or cannot be read.
    """
    runner = Runner(store, plan, lambda: None, plan.device)
    return runner.rescore((job for group in groups for job in group), again)


def work_with_ray(
    store: Store,
    plan: EvaluationSpec,
    folder: str,
    groups: Sequence[tuple[Job, ...]],
    workers: int,
    told: Callable[[int], None] = lambda jobs: None,
) -> None:
    """Run groups on a Ray cluster: one actor a worker, one GPU each where the plan wants one.

    The store's folder must be on a file system that every node sees.

    Args:
        workers: actors.
        told: hears how many jobs a finished group has.

    Raises:
        RuntimeError: what an actor raised.
    """
    import ray
    from ray.util import ActorPool

    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False)
    try:
        gpus = 1 if plan.device == "cuda" else 0
        kind = ray.remote(num_cpus=1, num_gpus=gpus)(_Actor)
        actors = [
            kind.remote(str(store.folder.absolute()), folder, plan.device) for _ in range(workers)
        ]
        parts = [[job.id for job in group] for group in groups]
        for count in ActorPool(actors).map_unordered(lambda a, ids: a.run.remote(ids), parts):
            told(count)
    finally:
        if started:
            ray.shutdown()


class _Actor:
    """Keeps the pipeline between groups."""

    def __init__(self, store: str, folder: str, device: str) -> None:
        self._store = Store(Path(store))
        self._plan = self._store.plan()
        self._folder, self._device = folder, device
        self._runner = Runner(
            self._store, self._plan, partial(load, self._plan, folder, device), device
        )

    def run(self, ids: list[str]) -> int:
        group = _find(self._plan, ids)
        child = partial(_run_in_child, self._folder, self._device)
        run_groups(self._runner, [tuple(group)], child)
        return len(ids)


def load(plan: EvaluationSpec, folder: str, device: str) -> Any:
    """The pipeline of a plan, silent, on a device."""
    from dit_accel.models import loading

    model = loading.inspect_folder(Path(folder), name=plan.model.name)
    return loading.load(model, device=device, dtype=plan.dtype)


def _run_in_child(folder: str, device: str, store: Store, ids: Sequence[str]) -> None:
    in_child(_child, str(store.folder), folder, device, list(ids), os.getpid())


def _child(store_folder: str, folder: str, device: str, ids: list[str], parent: int) -> None:
    """In the new process. It ends before its next job when the parent is gone."""
    from dit_accel.models.loading import quiet_libraries

    store = Store(Path(store_folder))
    plan = store.plan()
    runner = Runner(store, plan, partial(load, plan, folder, device), device)
    with quiet_libraries(verbose=False):
        for job in _find(plan, ids):
            if os.getppid() != parent:
                return
            runner.run([job])


def _find(plan: EvaluationSpec, ids: Sequence[str]) -> list[Job]:
    """The jobs of these ids, in the plan's order."""
    wanted = set(ids)
    return [job for group in plan.groups() for job in group if job.id in wanted]
