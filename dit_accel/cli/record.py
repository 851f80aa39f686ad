"""What a run is worth keeping of, as one JSON-able object: the sidecar, and `--json`."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import dit_accel
from dit_accel.cli.files import Files
from dit_accel.cli.settings import Settings, model_revision
from dit_accel.loading import Model
from dit_accel.takes import Take

FORMAT = 1
FIDELITY = ("psnr_db", "ssim")


def record(
    files: Files, model: Model, settings: Settings, take: Take, uncached: Take | None
) -> dict[str, Any]:
    """Files, versions, settings, costs, the report, and the comparison where there is one."""
    report = take.report
    return {
        "format": FORMAT,
        "files": {name: path.name for name, path in files.present().items()},
        "versions": versions(),
        "settings": settings.to_dict() | {"model_revision": model_revision(model.folder)},
        "costs": take.costs(),
        "report": report.to_dict() if report is not None else None,
        "comparison": compare(take, uncached) if uncached is not None else None,
    }


def compare(take: Take, uncached: Take) -> dict[str, Any]:
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
