"""`dit-accel plan`: what a quality or a speed would cost, told from the profile alone."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from dit_accel.cli.common import options
from dit_accel.cli.common.errors import BadInput, RunFailed, reported
from dit_accel.cli.plan_memory import (
    MemoryUse,
    capped_text,
    latent_bytes,
    memory_use,
    peak_cached_values,
    value_bytes,
)
from dit_accel.cli.run.request import Request, check_target

if TYPE_CHECKING:
    from dit_accel.models.loading import LoadableModel
    from dit_accel.planning.plan import Plan
    from dit_accel.planning.prediction import PlanChoice
    from dit_accel.planning.profile import Profile

PLOTS = (".png", ".svg")


@dataclass(frozen=True)
class PlanRequest:
    """A decision and what it is for."""

    choice: PlanChoice
    quality: float | None
    speedup: float | None
    steps: int
    guidance: float
    cache_memory: int | None = None

    @property
    def asked(self) -> str:
        """The target in words."""
        if self.quality is not None:
            return f"{self.quality:g} dB"
        return f"{self.speedup:g}x"


def plan(
    profile: options.Profile = None,
    model: options.Model = None,
    quality: Annotated[
        float | None,
        typer.Option(
            metavar="DB",
            help="PSNR against the uncached clip, which 95 % of clips shall reach.",
            show_default="with neither: the whole ladder",
        ),
    ] = None,
    speedup: options.Speedup = None,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps.", show_default="as calibrated")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Weight of the prompt.", show_default="as calibrated")
    ] = None,
    cache_memory: options.CacheMemory = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=f"Draw it: ends in {' or '.join(PLOTS)}.", show_default=False
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Show the plan for a quality or a speed, and what it promises, without running the model.

    With neither of them: every plan of the profile, and what it gave on the calibration prompts.
    """
    request = Request(
        "(none)", quality=quality, speedup=speedup, steps=steps, guidance=guidance,
        cache_memory=cache_memory,
    )  # fmt: skip
    with reported(verbose=verbose):
        request.check()
        check_target(quality, speedup)
        _check_plot(plot, overwrite=overwrite)
        _plan(request, profile, model, plot, as_json=as_json, verbose=verbose)


def _plan(
    request: Request,
    path: Path | None,
    name: str | None,
    plot: Path | None,
    *,
    as_json: bool,
    verbose: bool,
) -> None:
    from dit_accel.cli.run.target import read_profile
    from dit_accel.models.loading import quiet_libraries, resolve_model

    alone = path is not None and name is None  # then no library of models is needed at all
    with contextlib.nullcontext() if alone else quiet_libraries(verbose=verbose):
        model = resolve_model(name) if path is None or name is not None else None
        found = path or (find_profile(model) if model is not None else None)
        if found is None:
            raise BadInput(
                f"--model is {model.name if model is not None else name!r}: no profile of it was "
                "found in its folder or the cache; `dit-accel calibrate` measures one, or pass "
                "--profile"
            )
        profile = read_profile(found)
        planned = None
        if request.quality is not None or request.speedup is not None:
            planned = _decide(request, profile, model)
        elif request.steps is not None or request.guidance is not None:
            option = "--steps" if request.steps is not None else "--guidance"
            raise BadInput(f"{option} is given: applies with --quality or --speedup")
    if plot is not None:
        _draw(plot, profile, planned)
    if as_json:
        from dit_accel.cli.common.files import as_json as encode

        sys.stdout.write(encode(_content(found, profile, planned, model)) + "\n")
        return
    console = Console(highlight=False)
    _show(console, found, profile, planned, model)
    if plot is not None:
        console.print(f"plot            {plot}", soft_wrap=True)


def _check_plot(path: Path | None, *, overwrite: bool) -> None:
    if path is None:
        return
    shown = f"--plot is {str(path)!r}"
    if path.suffix not in PLOTS:
        raise BadInput(f"{shown}: must end in {' or '.join(PLOTS)}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise BadInput(f"{shown}: it is a folder, or its folder is not there")
    if path.exists() and not overwrite:
        raise BadInput(f"{shown}, which exists; pass --overwrite, or another --plot")
    if importlib.util.find_spec("matplotlib") is None:
        raise BadInput(f"{shown}: matplotlib is not installed: pip install 'dit-accel[report]'")


def find_profile(model: LoadableModel) -> Path | None:
    """The profile in a model's folder; else the model is loaded, for the cache knows weights."""
    from dit_accel.models.loading import load
    from dit_accel.planning import lookup

    path = lookup.find_profile(model.folder)
    if path is None and any((lookup.cache_folder() / "profiles").glob("*.safetensors")):
        with Console(stderr=True).status(f"loading {model.name}, to know its profile ..."):
            path = lookup.find_profile(load(model, device="cpu", dtype="float32"))
    return path


def _decide(request: Request, profile: Profile, model: LoadableModel | None) -> PlanRequest:
    from dit_accel.planning import selection

    identity = profile.key
    steps = identity.steps if request.steps is None else request.steps
    guidance = identity.guidance if request.guidance is None else request.guidance
    same = steps == identity.steps
    try:
        coefficients = selection.coefficients_before_run(
            profile,
            None if same or model is None else _scheduler(model),
            steps,
            guidance,
            separate=_separate(profile),
        )
        target = selection.Target(request.quality, request.speedup)
        choice = None
        if coefficients is not None:
            choice = selection.choose(profile, coefficients, target)
    except ValueError as error:
        hint = "" if same or model is not None else "; pass --model"
        raise BadInput(f"{_option(request)}: {error}{hint}") from error
    if choice is None:
        raise BadInput(
            f"--steps is {steps}: the scheduler {identity.scheduler} tells its timesteps only when "
            f"a run begins; accepted is {identity.steps}, as calibrated"
        )
    return PlanRequest(
        choice, request.quality, request.speedup, steps, guidance, request.cache_bytes
    )


def _separate(profile: Profile) -> bool:
    from dit_accel.models.families import FAMILIES

    family = FAMILIES.get(profile.key.transformer)
    return family is not None and family.branches == "separate"


def _option(request: Request) -> str:
    if request.quality is not None:
        return f"--quality {request.quality:g}"
    return f"--speedup {request.speedup:g}"


def _scheduler(model: LoadableModel) -> Any:
    """The scheduler of a model's folder, without the model."""
    library, name = model.index["scheduler"]
    try:
        kind = getattr(importlib.import_module(library), name)
        return kind.from_pretrained(str(model.folder / "scheduler"))
    except (ImportError, AttributeError, OSError, ValueError) as error:
        raise RunFailed(f"the scheduler of {model.name} cannot be loaded: {error}") from error


def _content(
    path: Path, profile: Profile, planned: PlanRequest | None, model: LoadableModel | None
) -> dict[str, Any]:
    from dit_accel.cli.common.tables import rows

    content = {
        "profile": str(path),
        "identity": profile.key.as_filed(),
    }
    if planned is None:
        return content | {"ladder": rows(profile)}
    choice = planned.choice
    size = latent_bytes(model, profile) if model is not None else None
    tensors = peak_cached_values(choice)
    capped = _arranged(planned, size, profile) if size is not None else None
    promised = choice.prediction
    return content | {
        "quality": planned.quality,
        "speedup": planned.speedup,
        "steps": planned.steps,
        "guidance": planned.guidance,
        "computed": list(choice.plan.computed),
        "prediction": dataclasses.asdict(promised) if promised is not None else None,
        "held_tensors": tensors,
        "held_bytes": None if size is None else tensors * size,
        "cache_memory": planned.cache_memory,
        "min_bits": choice.min_bits,
        "packed_bits": capped.bits if capped is not None else None,
        "packed_bytes": capped.packed if capped is not None else None,
        "offloaded_bytes": capped.away if capped is not None else None,
        "notes": list(choice.notes),
    }


def _show(
    console: Console,
    path: Path,
    profile: Profile,
    planned: PlanRequest | None,
    model: LoadableModel | None,
) -> None:
    from dit_accel.cli.common.tables import ladder_table
    from dit_accel.cli.run.summary import print_aligned

    if planned is not None:
        rows = [("profile", str(path)), *_of(profile), ("", ""), *_rows(planned, profile, model)]
        print_aligned(console, rows)
        return
    if not profile.candidates:
        raise BadInput(f"--profile is {str(path)!r}: it has no plans; pass --quality or --speedup")
    console.print(ladder_table(profile))
    console.print(f"profile  {path}", soft_wrap=True)


def _of(profile: Profile) -> list[tuple[str, str | Text]]:
    i = profile.key
    size = f"{i.width}x{i.height}, {i.frames} frames"
    clip = f"{size}, {i.steps} steps, guidance {i.guidance:g}, {i.dtype}"
    return [("of", f"{i.pipeline}, {clip}, {profile.metadata.get('clips', '?')} prompts")]


def _rows(
    planned: PlanRequest, profile: Profile, model: LoadableModel | None
) -> list[tuple[str, str | Text]]:
    from dit_accel.cli.run.summary import bytes_text, strip

    choice, promised = planned.choice, planned.choice.prediction
    rows: list[tuple[str, str | Text]] = [
        ("asked for", f"{planned.asked} at {planned.steps} steps, guidance {planned.guidance:g}"),
        ("plan", Text(strip(_shares(choice.plan)), style="cyan")),
    ]
    rows.append(("", Text("█ computed, · forecast", style="dim")))
    if promised is not None:
        speed = f"{promised.speedup:.2f}x, {promised.computed:.1f} of {planned.steps} steps"
        rows.append(("speed", f"{speed} computed"))
        rows.append(("PSNR", Text(_psnr(promised), style="bold")))
        if planned.quality is not None and promised.reach is not None:
            share = f"{promised.reach:.0%} of clips reach {planned.asked}"
            rows.append(("reach", share))
    tensors = peak_cached_values(choice)
    size = latent_bytes(model, profile) if model is not None else None
    what = f"{tensors} tensors of the size of the latents"
    rows.append(("held", what + (f", {bytes_text(tensors * size)}" if size else "")))
    if size and planned.cache_memory is not None:
        rows.append(("", capped_text(_arranged(planned, size, profile))))
    return [*rows, *(("", Text(note, style="yellow")) for note in choice.notes)]


def _arranged(planned: PlanRequest, size: int, profile: Profile) -> MemoryUse:
    return memory_use(planned.choice, planned.cache_memory, size, value_bytes(profile))


def _shares(plan: Plan) -> list[float]:
    computed = set(plan.computed)
    return [float(step in computed) for step in range(plan.num_steps)]


def _psnr(promised: Any) -> str:
    if promised.psnr_db == float("inf"):
        return "exact"
    interval = f"90 % of clips from {promised.low_db:.1f} to {promised.high_db:.1f}"
    return f"{promised.psnr_db:.1f} dB expected, {interval}"


def _draw(path: Path, profile: Profile, planned: PlanRequest | None) -> None:
    from dit_accel.cli.plan_plot import draw

    choice = planned.choice if planned is not None else None
    quality = planned.quality if planned is not None else None
    try:
        draw(path, profile, choice, quality)
    except OSError as error:
        raise RunFailed(f"{path} cannot be written: {error.strerror or error}") from error
