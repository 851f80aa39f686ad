"""What a run is worth keeping of, as one JSON-able object: the sidecar, and `--json`."""

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
from dit_accel.models.loading import LoadableModel

SIDECAR_FORMAT = 1
FIDELITY = ("psnr_db", "ssim")


def record(
    files: Files,
    model: LoadableModel,
    aim: RunTarget,
    take: Generation,
    uncached: Generation | None,
) -> dict[str, Any]:
    """Files, versions, settings, costs, the promise, the report, and the comparison where there is
    one."""
    report, settings = take.report, aim.settings
    comparison = compare(take, uncached) if uncached is not None else None
    return {
        "format": SIDECAR_FORMAT,
        "files": {name: path.name for name, path in files.present().items()},
        "versions": versions(),
        "settings": settings.to_dict() | {"model_revision": model_revision(model.folder)},
        "costs": take.costs(),
        "report": report.to_dict() if report is not None else None,
        "promise": guarantee(aim, take, comparison),
        "comparison": comparison,
    }


def guarantee(
    aim: RunTarget, take: Generation, comparison: dict[str, Any] | None
) -> dict[str, Any] | None:
    """What was foretold before the run, beside what was measured; None without a plan.

    `speedup` is of computed steps; `reached` and `inside` (the foretold interval) are None where
    there is no uncached twin to measure against.
    """
    if aim.choice is None or aim.choice.prediction is None:
        return None
    foretold, report = aim.choice.prediction, take.report
    psnr = comparison["fidelity"]["psnr_db"]["value"] if comparison is not None else None
    quality = aim.settings.quality
    return {
        "quality": quality,
        "speedup": aim.settings.speedup,
        "foretold": dataclasses.asdict(foretold),
        "planned": list(aim.choice.plan.computed),
        "measured": {
            "speedup": report.steps / report.steps_computed if report is not None else None,
            "computed": report.steps_computed if report is not None else None,
            "psnr_db": psnr,
        },
        "reached": None if psnr is None or quality is None else psnr >= quality,
        "inside": None if psnr is None else foretold.low_db <= psnr <= foretold.high_db,
    }


def compare(take: Generation, uncached: Generation) -> dict[str, Any]:
    """Fidelity to the uncached twin on the frames in memory, and the ratios of their seconds.

    The PSNR of identical clips is infinite, which JSON writes as null: `identical` says so.
    """
    from dit_accel.metrics import METRICS
    from dit_accel.metrics.scoring import score_clips

    scores = score_clips(uncached.frames, take.frames, data_range=1.0, metrics=FIDELITY)
    fidelity = {
        name: {
            "value": score.value,
            "convention": METRICS[name].convention,
            "version": METRICS[name].version,
        }
        for name, score in scores.items()
    }
    return {
        "identical": bool((uncached.frames == take.frames).all()),
        "fidelity": fidelity,
        "speedup_denoising": _ratio(uncached.denoising_seconds, take.denoising_seconds),
        "speedup_whole": _ratio(uncached.whole_seconds, take.whole_seconds),
        "uncached": uncached.costs(),
    }


def versions() -> dict[str, str]:
    """What ran: this package, those that it stands on, Python and the platform."""
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
