"""Turns the keywords of `accelerate` into a config, and refuses keywords that do not go together.

Goes in: keywords, or a config in their place. Comes out: one config of this package. It knows which
keyword chooses the method, and which keywords may stand beside it. It does not know the ranges of
values. Ours; there is no source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from dit_accel.caching.unicp import PRESETS, UniCP
from dit_accel.caching.windows import DEFAULT_THRESHOLD, EDCW
from dit_accel.config import (
    DEFAULT_QUALITY,
    AccelConfig,
    PlanConfig,
    QualityConfig,
    SpeedupConfig,
    ThresholdConfig,
    UncachedConfig,
    UniCPConfig,
    settings_of,
)
from dit_accel.core.checks import require

_DEFAULTS: Mapping[str, Any] = {
    "threshold": None, "site": "model", "plan": None, "mix": (1.0,), "accel": None,
    "quality": None, "speedup": None, "profile": None, "guard": True, "force": False,
    "static": False, "learn": True, "cache_memory": None, "layout": None, "scene": None,
    "branch_parallel": False,
}  # fmt: skip
# Keywords that choose the method; what is refused beside them; what is accepted instead.
_ALONE = (
    (("quality", "speedup"), ("plan", "config", "accel", "site"), "alone"),
    (("accel",), ("plan", "site", "config"), "with threshold alone"),
    (("plan",), ("threshold", "site", "config"), "alone"),
)
_OF_TARGETS = ("profile", "static", "learn", "cache_memory", "guard", "force")


def config_of(config: AccelConfig | EDCW | UniCP | None = None, **keywords: Any) -> AccelConfig:
    """The config that `accelerate` carries out.

    Args:
        config: an `AccelConfig`, which is returned itself; or settings of the windows or of UniCP.
        keywords: those of `accelerate`. Beside an `AccelConfig` all of them must be the defaults.

    Raises:
        ValueError: keywords do not go together, or a value is out of range.
    """
    given = {name: value for name, value in keywords.items() if value != _DEFAULTS[name]}
    if config is None and isinstance(given.get("accel"), AccelConfig):
        config = given.pop("accel")
    if isinstance(config, AccelConfig):
        if given:
            beside = f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} given beside"
            accepted = "as settings of that object, where it has them"
            raise ValueError(f"{beside} {type(config).__name__}; accepted: {accepted}")
        return config
    if isinstance(config, EDCW):
        given["config"] = config
    elif isinstance(config, UniCP) and "accel" not in given:
        given["accel"] = config
    else:
        require(config is None, "config", config, "an AccelConfig, an EDCW, or a UniCP alone")
    return _chosen(_without_alias(given))


def _without_alias(given: dict[str, Any]) -> dict[str, Any]:
    """Replace `accel="unicp"` by what it means: the target beside it, or the default quality."""
    if given.get("accel") != "unicp":
        return given
    for name in ("threshold", "site"):
        if name in given:
            raise ValueError(f"accel is 'unicp' with {name}; accepted: with quality or speedup")
    rest = {name: value for name, value in given.items() if name != "accel"}
    return rest if "quality" in rest or "speedup" in rest else {"quality": DEFAULT_QUALITY, **rest}


def _chosen(given: dict[str, Any]) -> AccelConfig:
    _check_together(given)
    threshold = given.get("threshold", DEFAULT_THRESHOLD)
    if "quality" in given or "speedup" in given:
        return _config(QualityConfig if "quality" in given else SpeedupConfig, given)
    if "accel" in given:
        accel = given["accel"]
        if not isinstance(accel, UniCP):
            accepted = f"unicp, {', '.join(PRESETS)}, or a UniCP"
            require(accel in PRESETS, "accel", accel, accepted)
            accel = PRESETS[accel](windows=EDCW(threshold))
        return _config(UniCPConfig, given | settings_of(accel))
    if "plan" in given:
        return _config(PlanConfig, given)
    uncached = given.keys() & {"layout", "branch_parallel"}
    if uncached and not given.keys() & {"threshold", "config", "site"}:
        return _config(UncachedConfig, given)
    return _config(ThresholdConfig, given | settings_of(given.get("config", EDCW(threshold))))


def _check_together(given: Mapping[str, Any]) -> None:
    names = ("quality", "speedup", "threshold")
    targets = [f"{name}={_number(given[name])}" for name in names if name in given]
    if len(targets) > 1:
        raise ValueError(f"{' and '.join(targets)} are given; accepted: one of them")
    for deciding, others, accepted in _ALONE:
        beside = " and ".join(name for name in others if name in given)
        for name in deciding if beside else ():
            if name in given:
                raise ValueError(f"{name} is given with {beside}; accepted: {accepted}")
    for name in _OF_TARGETS if not given.keys() & {"quality", "speedup"} else ():
        if name in given:
            raise ValueError(f"{name} is given; accepted: with quality or speedup")
    if "mix" in given and "plan" not in given:
        raise ValueError("mix is given without a plan; accepted: with plan")


def _number(value: Any) -> str:
    """A number as people write it; any other value by its `repr`."""
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _config(kind: type[AccelConfig], given: Mapping[str, Any]) -> AccelConfig:
    """A config of class `kind`, from the keywords that are among its settings."""
    return kind(**{one.name: given[one.name] for one in fields(kind) if one.name in given})
