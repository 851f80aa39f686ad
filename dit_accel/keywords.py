"""From the keywords of `accelerate` to a config: which go together, and which way they mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

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
from dit_accel.targets import check_choice
from dit_accel.unicp import PRESETS, UniCP
from dit_accel.windows import DEFAULT_THRESHOLD, EDCW

DEFAULTS: Mapping[str, Any] = {
    "threshold": None, "site": "model", "plan": None, "mix": (1.0,), "accel": None,
    "quality": None, "speedup": None, "profile": None, "guard": True, "force": False,
    "static": False, "cache_memory": None, "layout": None, "scene": None,
}  # fmt: skip


def config_of(config: AccelConfig | EDCW | UniCP | None = None, **keywords: Any) -> AccelConfig:
    """The config that `accelerate` carries out.

    Args:
        config: what shall be done; or settings of the windows, or of UniCP.
        keywords: those of `accelerate`; beside an `AccelConfig` all as they are by default.

    Raises:
        ValueError: keywords do not go together, or a value is out of range.
    """
    given = {name: value for name, value in keywords.items() if value != DEFAULTS[name]}
    if config is None and isinstance(given.get("accel"), AccelConfig):
        config = given.pop("accel")
    if isinstance(config, AccelConfig):
        if given:
            beside = f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} given beside"
            accepted = "in it, where it has such a setting"
            raise ValueError(f"{beside} {type(config).__name__}; accepted: {accepted}")
        return config
    if config is not None:
        given[_keyword(config, given)] = config
    return _chosen(_without_alias(given))


def _keyword(config: Any, given: Mapping[str, Any]) -> str:
    """What settings of a technique are given as."""
    if isinstance(config, EDCW):
        return "config"
    if isinstance(config, UniCP) and "accel" not in given:
        return "accel"
    raise ValueError(f"config is {config!r}; accepted: an AccelConfig, an EDCW, or a UniCP alone")


def _without_alias(given: dict[str, Any]) -> dict[str, Any]:
    """`accel="unicp"` is the default quality, or the target beside it."""
    if given.get("accel") != "unicp":
        return given
    if "threshold" in given:
        raise ValueError("accel is 'unicp' with threshold; accepted: with quality or speedup")
    rest = {name: value for name, value in given.items() if name != "accel"}
    return rest if "quality" in rest or "speedup" in rest else {"quality": DEFAULT_QUALITY, **rest}


def _chosen(given: dict[str, Any]) -> AccelConfig:
    check_choice([(name, given.get(name)) for name in ("quality", "speedup", "threshold")])
    if "quality" in given or "speedup" in given:
        _alone("quality or speedup", given, ("plan", "config", "accel", "site"), "alone")
        return _made(QualityConfig if "quality" in given else SpeedupConfig, given)
    for name in ("profile", "static", "cache_memory", "guard", "force"):
        if name in given:
            raise ValueError(f"{name} is given without a target; accepted: with quality or speedup")
    if "mix" in given and "plan" not in given:
        raise ValueError("mix is given without a plan; accepted: with plan")
    if "accel" in given:
        _alone("accel", given, ("plan", "site", "config"), "threshold alone")
        return _made(UniCPConfig, given | settings_of(_preset(given)))
    if "plan" in given:
        _alone("plan", given, ("threshold", "site", "config"), "plan alone")
        return _made(PlanConfig, given)
    if "layout" in given and not given.keys() & {"threshold", "config", "site"}:
        return _made(UncachedConfig, given)
    return _made(ThresholdConfig, given | settings_of(given.get("config", _windows(given))))


def _alone(what: str, given: Mapping[str, Any], others: tuple[str, ...], accepted: str) -> None:
    if any(name in given for name in others):
        named = f"{', '.join(others[:-1])} or {others[-1]}"
        raise ValueError(f"{what} is given with {named}; accepted: {accepted}")


def _made(way: type[AccelConfig], given: Mapping[str, Any]) -> AccelConfig:
    """A config of those keywords that it has."""
    names = (one.name for one in dataclasses.fields(way))
    return way(**{name: given[name] for name in names if name in given})


def _preset(given: Mapping[str, Any]) -> UniCP:
    accel = given["accel"]
    if isinstance(accel, UniCP):
        return accel
    if accel not in PRESETS:
        raise ValueError(f"accel is {accel!r}; accepted: unicp, {', '.join(PRESETS)}, or a UniCP")
    return PRESETS[accel](windows=_windows(given))


def _windows(given: Mapping[str, Any]) -> EDCW:
    return EDCW(threshold=given.get("threshold", DEFAULT_THRESHOLD))
