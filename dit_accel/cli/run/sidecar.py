"""Makes the record of a run as one JSON object, for the sidecar file and `--json`.

In: the request, the prediction and the measurements. Out: a dict that `json` can write.
Knows no printing. Ours.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from typing import Any

import dit_accel
from dit_accel.cli.common.files import Files
from dit_accel.cli.run.settings import model_revision
from dit_accel.cli.run.target import RunTarget
from dit_accel.core.generation import Generation
from dit_accel.core.video import to_uint8
from dit_accel.models.folder import LoadableModel
from dit_accel.planning.selection import SPEEDUP_TOLERANCE

SIDECAR_FORMAT = 1
FIDELITY = ("psnr_db", "ssim")


def record(
    files: Files,
    model: LoadableModel,
    target: RunTarget,
    result: Generation,
    uncached: Generation | None,
) -> dict[str, Any]:
    """The record: files, versions, settings, costs, the report, predicted and measured values, the
    comparison."""
    report = result.report
    comparison = compare(result, uncached) if uncached is not None else None
    revision = model_revision(model.folder)
    return {
        "format": SIDECAR_FORMAT,
        "files": {name: path.name for name, path in files.present().items()},
        "versions": versions(),
        "settings": target.settings.to_dict() | {"model_revision": revision},
        "costs": result.costs(),
        "report": report.to_dict() if report is not None else None,
        "target": outcome(target, result, comparison),
        "comparison": comparison,
    }


def outcome(
    target: RunTarget, result: Generation, comparison: dict[str, Any] | None
) -> dict[str, Any] | None:
    """The target, the prediction before the run, and the measurement; None without a plan.

    `speedup` is total steps / computed steps. `reached` and `in_interval` (of the predicted PSNR)
    are None if there is no uncached reference.
    """
    if target.choice is None:
        return None
    predicted, report = target.choice.prediction, result.report
    psnr = comparison["fidelity"]["psnr_db"]["value"] if comparison is not None else None
    quality = target.settings.quality
    return {
        "quality": quality,
        "speedup": target.settings.speedup,
        "predicted": dataclasses.asdict(predicted),
        "planned": list(target.choice.plan.computed),
        "measured": {
            "speedup": report.steps / report.steps_computed if report is not None else None,
            "computed": report.steps_computed if report is not None else None,
            "psnr_db": psnr,
        },
        "speedup_reasons": reasons_of_speed(target, result),
        "reached": None if psnr is None or quality is None else psnr >= quality,
        "in_interval": None if psnr is None else predicted.low_db <= psnr <= predicted.high_db,
    }


def reasons_of_speed(target: RunTarget, result: Generation) -> list[str]:
    """The reasons why the reached speedup differs from the requested one, as texts."""
    asked, report = target.settings.speedup, result.report
    if asked is None or report is None:
        return []
    planned, computed = len(report.planned), report.steps_computed
    found = []
    if planned and abs(report.steps / planned - asked) > SPEEDUP_TOLERANCE * asked:
        found.append(f"whole steps: {planned} of {report.steps} were planned")
    if computed > planned:
        found.append(f"{computed - planned:g} more were computed than planned")
    rest = result.whole_seconds - result.denoising_seconds
    if rest > SPEEDUP_TOLERANCE * result.whole_seconds:
        found.append(f"text and decoding took {rest:.1f} s outside of the loop")
    return found


def compare(result: Generation, uncached: Generation) -> dict[str, Any]:
    """Fidelity to the uncached reference, and the ratios of seconds.

    Frames are compared in 8 bits, as in calibration and in `evaluate`. The PSNR of identical frames
    is infinite, which JSON writes as null: `identical` says so.
    """
    from dit_accel.metrics import METRICS
    from dit_accel.metrics.scoring import score_clips

    reference, frames = to_uint8(uncached.frames), to_uint8(result.frames)
    scores = score_clips(reference, frames, data_range=255, metrics=FIDELITY)
    return {
        "identical": bool((reference == frames).all()),
        "fidelity": {
            name: {"value": score.value}
            | {key: getattr(METRICS[name], key) for key in ("convention", "version")}
            for name, score in scores.items()
        },
        "speedup_denoising": _ratio(uncached.denoising_seconds, result.denoising_seconds),
        "speedup_whole": _ratio(uncached.whole_seconds, result.whole_seconds),
        "uncached": uncached.costs(),
    }


def versions() -> dict[str, str]:
    """The versions of this package, of the packages that it needs, of Python and of the
    platform."""
    packages = {name: _version(name) for name in ("torch", "diffusers", "transformers")}
    machine = {"python": platform.python_version(), "platform": platform.platform()}
    return {"dit_accel": dit_accel.__version__, **packages, **machine}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _ratio(of: float, to: float) -> float | None:
    return of / to if to > 0 else None
