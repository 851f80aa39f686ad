"""Makes diffusion-transformer video pipelines faster, without training, at a chosen fidelity.

    import dit_accel
    with dit_accel.accelerate(pipe, threshold=0.1) as handle:
        video = pipe("a red circle moving right").frames
    print(handle.report().summary())

Importing this package imports neither torch nor diffusers and touches no device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit_accel.attention.pcas import PCAS
    from dit_accel.attention.trim_text import trim_text
    from dit_accel.caching.blend import DWS
    from dit_accel.caching.reference import recorded
    from dit_accel.caching.unicp import UniCP
    from dit_accel.caching.windows import EDCW
    from dit_accel.config import (
        AccelConfig,
        PlanConfig,
        QualityConfig,
        SpeedupConfig,
        ThresholdConfig,
        UncachedConfig,
        UniCPConfig,
    )
    from dit_accel.core.report import Report, SiteReport
    from dit_accel.handle import Handle, accelerate
    from dit_accel.layout import Layout
    from dit_accel.models.families import FAMILIES, Family, register_family
    from dit_accel.scenes.rows import SceneConfig

__version__ = "0.1.0"

_HOMES = {
    "accelerate": "dit_accel.handle",
    "recorded": "dit_accel.caching.reference",
    "Handle": "dit_accel.handle",
    "AccelConfig": "dit_accel.config",
    "QualityConfig": "dit_accel.config",
    "SpeedupConfig": "dit_accel.config",
    "ThresholdConfig": "dit_accel.config",
    "UniCPConfig": "dit_accel.config",
    "PlanConfig": "dit_accel.config",
    "UncachedConfig": "dit_accel.config",
    "FAMILIES": "dit_accel.models.families",
    "Family": "dit_accel.models.families",
    "register_family": "dit_accel.models.families",
    "Report": "dit_accel.core.report",
    "SiteReport": "dit_accel.core.report",
    "Layout": "dit_accel.layout",
    "SceneConfig": "dit_accel.scenes.rows",
    "EDCW": "dit_accel.caching.windows",
    "PCAS": "dit_accel.attention.pcas",
    "DWS": "dit_accel.caching.blend",
    "UniCP": "dit_accel.caching.unicp",
    "trim_text": "dit_accel.attention.trim_text",
}
__all__ = [
    "DWS",
    "EDCW",
    "FAMILIES",
    "PCAS",
    "AccelConfig",
    "Family",
    "Handle",
    "Layout",
    "PlanConfig",
    "QualityConfig",
    "Report",
    "SceneConfig",
    "SiteReport",
    "SpeedupConfig",
    "ThresholdConfig",
    "UncachedConfig",
    "UniCP",
    "UniCPConfig",
    "__version__",
    "accelerate",
    "recorded",
    "register_family",
    "trim_text",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
