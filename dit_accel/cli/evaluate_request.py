"""Checks the options of `dit-accel evaluate`, and makes jobs in its folder from them.

In: the options. Out: an `EvaluationSpec` and an open `Store`.
Knows prompts, methods and metrics by name; runs nothing. Ours.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.cli.common import options
from dit_accel.cli.common.errors import BadInput, as_option, refused, say
from dit_accel.cli.common.files import read_prompts
from dit_accel.cli.common.options import COMPARISON, WORK, ClipOptions, option
from dit_accel.cli.common.verb import LARGEST
from dit_accel.core.document import shown
from dit_accel.core.files import reason_of

if TYPE_CHECKING:
    from dit_accel.evaluation.jobs import EvaluationSpec
    from dit_accel.evaluation.store import Store
    from dit_accel.models.folder import LoadableModel

EVALUATE_METHODS = "uncached,edcw:*,fewer-steps:*"
DEFAULT_METRICS = "psnr_db,ssim,mae,tdiff,flicker,tof,latent_rel_l2,latent_cosine"
NOISE_FLOOR = "rerun,rerun/attention,rerun/dtype"
_compare = functools.partial(option, panel=COMPARISON)
_work = functools.partial(option, panel=WORK)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ClipOptions):
    """The options of `evaluate`."""

    prompts: Path = options.prompts(...)
    output: Path = options.output(
        ..., "Folder of the evaluation; an unfinished one is continued, or shared.", "FOLDER"
    )
    methods: str = _compare(EVALUATE_METHODS, options.METHODS_HELP)
    metrics: str = _compare(DEFAULT_METRICS, "Metrics, separated by commas.")
    seeds: str = _compare("0", "Seeds of each prompt, e.g. 0,1,2.")
    limit: int | None = options.limit(COMPARISON)
    noise_floor: bool = _compare(
        False, "Repeat the uncached runs: unchanged, with other attention, in another dtype."
    )
    ranking: bool = _compare(
        False, "Test whether clips rank seeds as uncached clips do. Needs three seeds."
    )
    profile: Path | None = options.profile(COMPARISON, "For quality and speedup: the ")
    static: bool = _compare(
        False, "For these two: compute the same steps in every run, no guard.", "--deterministic"
    )
    cache_memory: str | None = _compare(
        None, f"For these two: {options.MEMORY_HELP}", metavar="SIZE", shown="no limit"
    )
    no_learn: bool = _compare(False, "Neither learn from the clips nor plan with what was learnt.")
    backend: str = _work("local", "Run in this process, or on a Ray cluster.", metavar="local|ray")
    workers: int | None = _work(None, "Number of Ray actors.", metavar="N", min=1, shown="1")
    keep_clips: bool = _work(True, "Save all clips; uncached clips are always saved.", shown="yes")
    retry_failed: bool = _work(False, "Run failed jobs again.")
    rescore: bool = _work(False, "Score all clips again.")
    as_json: bool = options.as_json()


def spec_of(
    given: EvaluateOptions, model: LoadableModel, device: str, dtype: str
) -> EvaluationSpec:
    """The evaluation to run, with every name and number checked.

    Raises:
        BadInput: an option is not accepted.
    """
    from dit_accel.cli.run import prompt_check
    from dit_accel.cli.run.settings import resolve
    from dit_accel.cli.run.sidecar import versions
    from dit_accel.evaluation import jobs
    from dit_accel.evaluation.methods import METHODS, parse_list

    # the manifest has this text, so folders of earlier versions can be continued
    settings = resolve(given, model, device=device, dtype=dtype, prompt="(from the file)")
    floor = f",{NOISE_FLOOR}" if given.noise_floor else ""
    with refused("--methods: "):
        methods = parse_list(given.methods + floor, settings.steps)
    for name in dict.fromkeys(setting.method for setting in methods):
        lacking = METHODS[name].lacking()
        if lacking:
            raise BadInput(f"--methods has {name}: {lacking}")
    _check_planned(given, [setting.method for setting in methods])
    prompts, remarks = prompt_check.distinct(
        model, read_prompts("PROMPTS", given.prompts, given.limit), settings.max_sequence_length
    )
    for remark in remarks if not given.as_json else ():
        say(remark, kind="note")
    fingerprint = jobs.fingerprint(model.folder, settings.setup)
    return jobs.EvaluationSpec(
        model=jobs.ModelSpec(model.name, settings.pipeline, fingerprint),
        clip=settings.clip,
        dtype=dtype,
        device=device.partition(":")[0],
        prompts=prompts,
        seeds=_seeds(given.seeds),
        methods=methods,
        metrics=_metrics(given.metrics),
        versions={name: versions()[name] for name in jobs.CORE},
        keep_clips=given.keep_clips,
        static=given.static,
        cache_memory=options.bytes_of(given.cache_memory),
        setup=settings.setup,
        no_learn=given.no_learn,
    )


def _check_planned(given: EvaluateOptions, methods: list[str]) -> None:
    """Refuse options that none of the methods would use."""
    from dit_accel.evaluation.methods import METHODS

    if any(METHODS[name].profiled for name in methods):
        return
    planned = [row.name for row in METHODS.values() if row.profiled]
    only = {"--deterministic": given.static, "--cache-memory": given.cache_memory,
            "--profile": given.profile}  # fmt: skip
    for name, value in only.items():
        if value:
            raise BadInput(
                f"{name} is given, but --methods has neither {' nor '.join(planned)}; accepted: "
                "with one of these methods"
            )


def sources_of(
    given: EvaluateOptions, spec: EvaluationSpec, model: LoadableModel, device: str
) -> dict[str, bytes]:
    """The data that the plans are made from, by the fields of the spec: the profile; without one,
    what was learnt about the pipeline so far. Clips that are made meanwhile do not change later
    plans.

    It is empty if only the prior is used, no method plans, or the folder has its sources already.

    Raises:
        BadInput: the profile cannot be read, or no plan can be made for such runs.
        StoreError: the folder's manifest cannot be read.
    """
    from dit_accel.cli.run import known
    from dit_accel.cli.run.target import read_profile
    from dit_accel.evaluation.store import Store

    if not spec.profiled:
        return {}
    if given.profile is None and Store(given.output).is_planned:
        return {}
    place = device if spec.setup.quantize else "cpu"
    path, learning = given.profile, None
    if path is None:
        learn = not spec.no_learn and not spec.static
        path, learning = known.find_known(
            model, spec.setup, device=place, dtype=spec.dtype, learn=learn
        )
    if path is not None:
        read_profile(path)
        return {"profile": path.read_bytes()}
    if learning is not None and learning.known.runs:
        return {"learned": learning.path.read_bytes()}
    prior = known.prior_of(
        model, spec.clip.steps, spec.clip.guidance, spec.setup.scheduler, spec.clip.guidance_2
    )
    if prior is None:
        raise BadInput(
            f"--methods has {spec.profiled[0]}, but no profile of {model.name} was found in its "
            "folder or the cache, and the prior does not cover such runs; "
            f"{known.CALIBRATE}, or pass --profile"
        )
    return {}


def _metrics(text: str) -> tuple[str, ...]:
    from dit_accel.metrics import METRICS, Unavailable

    names = tuple(options.listed(text))
    for name in names or (text,):
        if name not in METRICS:
            raise BadInput(f"--metrics has {name!r}; accepted: {', '.join(METRICS)}")
    for row in (METRICS[name] for name in names if METRICS[name].needs):
        try:
            row.start(data_range=255)
        except Unavailable as unavailable:
            why = as_option(str(unavailable))
            raise BadInput(
                f"--metrics has {row.name!r}, which cannot be measured here: {why}"
            ) from unavailable
    return names


def _seeds(text: str) -> tuple[int, ...]:
    parts = options.listed(text)
    digits = all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts)
    if not parts or not digits or max(map(int, parts)) >= LARGEST:
        raise BadInput(
            f"--seeds is {shown(text)}; accepted: whole numbers from 0, with commas between"
        )
    return tuple(dict.fromkeys(map(int, parts)))


def own_device(device: str) -> str:
    """The GPU of this process, if a launcher started several processes on one machine."""
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID"))
    return f"cuda:{int(local)}" if device == "cuda" and local else device


def opened(
    given: EvaluateOptions, spec: EvaluationSpec, sources: dict[str, bytes]
) -> tuple[Store, EvaluationSpec]:
    """The folder, new or continued, with the files that plans are made from; and the spec as the
    folder has it.

    Raises:
        BadInput: the folder cannot be written.
        StoreError: the folder belongs to another evaluation.
    """
    from dit_accel.evaluation.store import Store, name_of

    store = Store(given.output)
    named: dict[str, Any] = {field: name_of(content) for field, content in sources.items()}
    try:
        return store, store.open(dataclasses.replace(spec, **named), sources.values())
    except OSError as error:
        raise BadInput(f"--output is {str(given.output)!r}: {reason_of(error)}") from error
