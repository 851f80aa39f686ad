"""What `dit-accel evaluate` was asked for: checked, and as a plan of jobs in its folder."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.cli.common.errors import BadInput
from dit_accel.cli.run.request import Request, size_of

if TYPE_CHECKING:
    from dit_accel.evaluation.jobs import EvaluationSpec, Shard
    from dit_accel.evaluation.store import Store
    from dit_accel.models.loading import LoadableModel

NOISE_FLOOR = "rerun,rerun/attention,rerun/dtype"


@dataclass(frozen=True)
class EvaluateOptions:
    """The options that `generate` does not have."""

    prompts: Path
    out: Path
    methods: str
    metrics: str
    seeds: str
    noise_floor: bool
    profile: Path | None
    static: bool
    cache_memory: str | None
    limit: int | None
    shard: str | None
    backend: str
    workers: int
    keep_clips: bool
    retry_failed: bool
    rescore: bool


def spec_of(
    asked: EvaluateOptions, request: Request, model: LoadableModel, device: str, dtype: str
) -> EvaluationSpec:
    """What is to be run, with every name and number checked.

    Raises:
        BadInput: an option is not what is accepted; names it.
        ValueError: a method or the clip is not.
    """
    from dit_accel.cli.run.settings import resolve
    from dit_accel.cli.run.sidecar import versions
    from dit_accel.evaluation import jobs
    from dit_accel.evaluation.methods import METHODS, parse_list

    settings = resolve(request, model, device=device, dtype=dtype)
    floor = f",{NOISE_FLOOR}" if asked.noise_floor else ""
    methods = parse_list(asked.methods + floor, settings.steps)
    for name in dict.fromkeys(setting.method for setting in methods):
        lacking = METHODS[name].lacking()
        if lacking:
            raise BadInput(f"--methods has {name}: {lacking}")
    _check_planned(asked, [setting.method for setting in methods])
    memory = asked.cache_memory
    return jobs.EvaluationSpec(
        model=jobs.ModelSpec(model.name, settings.pipeline, jobs.fingerprint(model.folder)),
        clip=settings.clip,
        dtype=dtype,
        device=device.partition(":")[0],
        prompts=_read_prompts(asked),
        seeds=_seeds(asked.seeds),
        methods=methods,
        metrics=_metrics(asked.metrics),
        versions={name: versions()[name] for name in jobs.CORE},
        keep_clips=asked.keep_clips,
        static=asked.static,
        cache_memory=None if memory is None else size_of("--cache-memory", memory),
    )


def _check_planned(asked: EvaluateOptions, methods: list[str]) -> None:
    """Refuse what none of the methods would heed."""
    from dit_accel.evaluation.methods import METHODS

    if any(METHODS[name].profiled for name in methods):
        return
    planned = [row.name for row in METHODS.values() if row.profiled]
    given = {"--static": asked.static, "--cache-memory": asked.cache_memory}
    for option, value in given.items():
        if value:
            raise BadInput(
                f"{option} is given: applies to the methods {' and '.join(planned)} only, and "
                "--methods has neither"
            )


def profile_of(asked: EvaluateOptions, plan: EvaluationSpec, model: LoadableModel) -> Path | None:
    """The profile that a method needs, made sure of; None where none needs one."""
    from dit_accel.cli.plan import find_profile
    from dit_accel.cli.run.target import read_profile

    if not plan.profiled:
        return None
    path = asked.profile or find_profile(model)
    if path is None:
        raise BadInput(
            f"--methods has {plan.profiled[0]}, and no profile of {model.name} was found in its "
            "folder or the cache: `dit-accel calibrate` measures one, or pass --profile"
        )
    read_profile(path)
    return path


def _read_prompts(asked: EvaluateOptions) -> tuple[Any, ...]:
    from dit_accel.evaluation.prompts import read_prompts

    try:
        return read_prompts(asked.prompts)[: asked.limit]
    except OSError as error:
        raise BadInput(f"PROMPTS is {str(asked.prompts)!r}: {error.strerror}") from error


def _metrics(text: str) -> tuple[str, ...]:
    from dit_accel.metrics import METRICS

    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names or (text,):
        if name not in METRICS:
            raise BadInput(f"--metrics has {name!r}: accepted are {', '.join(METRICS)}")
    return names


def _seeds(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) < 2**63 for part in parts):
        raise BadInput(f"--seeds is {text!r}: must be whole numbers from 0, with commas between")
    return tuple(dict.fromkeys(int(part) for part in parts))


def shard_of(text: str | None) -> Shard:
    """`i/n`; None: what a launcher's variables say, else all."""
    from dit_accel.evaluation.jobs import parse_shard, shard_of_environment

    return parse_shard(text) if text is not None else shard_of_environment()


def own_device(device: str) -> str:
    """Under a launcher, this process's GPU of its machine."""
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID"))
    return f"cuda:{int(local)}" if device == "cuda" and local else device


def opened(
    asked: EvaluateOptions, plan: EvaluationSpec, profile: Path | None
) -> tuple[Store, EvaluationSpec]:
    """The folder, new or gone on with, that keeps the profile; and the plan as it keeps it.

    Raises:
        BadInput: it cannot be written to.
        StoreError: it holds another plan.
    """
    from dit_accel.evaluation.store import Store

    store = Store(asked.out)
    try:
        if profile is None:
            return store, store.open(plan)
        name = hashlib.sha256(profile.read_bytes()).hexdigest()[:20]
        plan = store.open(dataclasses.replace(plan, profile=name))
        store.keep_profile(name, profile)
        return store, plan
    except OSError as error:
        raise BadInput(f"--out is {str(asked.out)!r}: {error.strerror}") from error
