"""What an acceleration shall do, as one frozen object that is checked when it is made.

    config = QualityConfig(32, guard=False)
    accelerate(pipe, config)  # as accelerate(pipe, quality=32, guard=False)
    json.dumps(config.to_dict())  # AccelConfig.from_dict makes an equal one of it

One class a way of deciding what is computed: each has the settings that mean something in it and no
others, and every one may have a layout. Keywords of `accelerate` become one in `config.py`.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from dit_accel.attention.block_sparse import BlockSizes
from dit_accel.attention.pcas import PCAS
from dit_accel.caching.blend import DWS
from dit_accel.caching.policy import PlanPolicy, Policy
from dit_accel.caching.unicp import PRESETS, UniCP
from dit_accel.caching.windows import DEFAULT_THRESHOLD, EDCW
from dit_accel.core.families import SITES
from dit_accel.layout import Layout
from dit_accel.planning.plan import Plan
from dit_accel.planning.profile import Profile
from dit_accel.scenes.rows import SceneConfig

DEFAULT_QUALITY = 36.0  # dB, where nothing else is asked for
File = str | os.PathLike[str]


@dataclass(frozen=True)
class AccelConfig:
    """What every way has. Not made itself, but for `from_dict`.

    Args:
        layout: subjects, their boxes and references, or the file of them: the pipeline is then to
            be called for one prompt a shot, `prompt=layout.prompts`.
        scene: settings of isolation, references and subjects' texts; None: the defaults.

    Raises:
        ValueError: a value is out of range, or given where it means nothing.
    """

    kind: ClassVar[str] = ""

    layout: Layout | File | None = field(default=None, kw_only=True)
    scene: SceneConfig | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not self.kind:
            accepted = ", ".join(way.__name__ for way in WAYS)
            raise ValueError(f"{_class(self)} is not complete; accepted: {accepted}")
        if self.scene is not None and self.layout is None:
            raise ValueError("scene is given without layout; accepted: with a layout")
        self._check_part("scene")
        self._as_text("layout")

    def _check_part(self, name: str, *, needed: bool = False) -> None:
        value, kind = getattr(self, name), _PARTS[name]
        if not isinstance(value, kind) and (needed or value is not None):
            accepted = f"of {kind.__name__}" + ("" if needed else ", or None")
            raise ValueError(f"{name} is {value!r}; accepted: {accepted}")

    def _as_text(self, name: str) -> None:
        """Paths are kept as text, so that a config is equal to the one that was saved of it."""
        value = getattr(self, name)
        if isinstance(value, os.PathLike):
            object.__setattr__(self, name, os.fspath(value))

    def to_dict(self) -> dict[str, Any]:
        """Every setting, JSON-able, and the way's name as `kind`.

        Raises:
            ValueError: a setting is an object that is no plain value; names it.
        """
        return {"kind": self.kind} | _plain(self, _refuse)

    def describe(self) -> dict[str, Any]:
        """As `to_dict`, for people: what is no plain value is there by the name of its class."""
        return {"kind": self.kind} | _plain(self, lambda _, value: f"<{_class(value)}>")

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """The config that `to_dict` told of; settings that are not there have their defaults.

        Raises:
            ValueError: the kind or a setting is not known, or a value is out of range.
        """
        kinds = {one.kind: one for one in WAYS if issubclass(one, cls)}
        found = kinds.get(given.get("kind", ""))
        if found is None:
            raise ValueError(f"kind is {given.get('kind')!r}; accepted: {', '.join(kinds)}")
        return _made(found, {k: v for k, v in given.items() if k != "kind"}, found.__name__)

    def __str__(self) -> str:
        """What differs from the defaults: `QualityConfig(quality=32)`."""
        return _shown(self)


@dataclass(frozen=True)
class PlannedConfig(AccelConfig):
    """What a quality and a speed have in common: both are planned for, by the pipeline's profile.

    Args:
        profile: what calibration measured of this pipeline, or the file of it; else it is looked
            for in the model's folder and in the user's cache; where there is none, the first run is
            computed whole and recorded.
        guard: whether a run may leave its plan where what is measured on the way is far from what
            was to be expected.
        force: use a profile of another pipeline all the same.
        static: every run does exactly the same, and the device is never read (for torch.compile and
            CUDA graphs); no guard.
        cache_memory: bytes that kept values may hold on the device; older ones are packed into as
            few bits as the plan allows, then wait in the CPU's memory. None: no bound.
    """

    profile: Profile | File | None = field(default=None, kw_only=True)
    guard: bool = field(default=True, kw_only=True)
    force: bool = field(default=False, kw_only=True)
    static: bool = field(default=False, kw_only=True)
    cache_memory: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._as_text("profile")
        for name in ("guard", "force", "static"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: True, False")
        if self.cache_memory is not None and self.cache_memory < 1:
            raise ValueError(f"cache_memory is {self.cache_memory!r}; accepted: bytes, at least 1")


@dataclass(frozen=True)
class QualityConfig(PlannedConfig):
    """The fastest plan by which clips are good enough: `accelerate(pipe, quality=...)`.

    Args:
        quality: PSNR in dB against the uncached clip that 95 % of clips shall reach, above 0.
    """

    kind: ClassVar[str] = "quality"
    quality: float = DEFAULT_QUALITY

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.quality < math.inf:
            raise ValueError(f"quality is {self.quality!r}; accepted: a finite number above 0")


@dataclass(frozen=True)
class SpeedupConfig(PlannedConfig):
    """The best plan of so many computed steps: `accelerate(pipe, speedup=...)`.

    Args:
        speedup: steps over computed steps, >= 1.
    """

    kind: ClassVar[str] = "speedup"
    speedup: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.speedup < math.inf:
            raise ValueError(f"speedup is {self.speedup!r}; accepted: a finite number above 1")


@dataclass(frozen=True)
class ThresholdConfig(EDCW, AccelConfig):
    """Windows at a site, by measured drifts: `accelerate(pipe, threshold=..., site=...)`.

    Args:
        threshold, and all others of `EDCW`: settings of the windows; at 0 every step is computed,
            bit-equal to the stock pipeline.
        site: what is kept: "attention" (each self-attention's output), "block" (each block's
            residual) or "model" (the residual of the whole block stack).
    """

    kind: ClassVar[str] = "threshold"
    site: str = field(default="model", kw_only=True)

    def __post_init__(self) -> None:
        AccelConfig.__post_init__(self)
        EDCW.__post_init__(self)
        if self.site not in SITES:
            raise ValueError(f"site is {self.site!r}; accepted: {', '.join(SITES)}")


@dataclass(frozen=True)
class UniCPConfig(UniCP, AccelConfig):
    """The paper's three techniques at the attentions: `accelerate(pipe, accel="unicp-paper")`.

    Windows, and where they do not serve, pruned attention by the shift of weight. Where pruning
    does not pay it is off, and the report says so.

    Args:
        windows, pcas, shift: as of `UniCP`.
    """

    kind: ClassVar[str] = "unicp-paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_part("windows", needed=True)
        self._check_part("pcas")
        self._check_part("shift")


@dataclass(frozen=True)
class PlanConfig(AccelConfig):
    """A plan that was decided beforehand, at the denoiser's output: `accelerate(pipe, plan=...)`.

    Args:
        plan: which steps are computed, and what serves the others; or a
            `following.Course`.
        mix: of the parts that the plan's forecasts have.
    """

    kind: ClassVar[str] = "plan"
    plan: Plan | Policy
    mix: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.plan, Plan) and not hasattr(self.plan, "extrapolation_at"):
            raise ValueError(f"plan is {self.plan!r}; accepted: a Plan, or a Course")

    @property
    def policy(self) -> Policy:
        """What a run follows."""
        return PlanPolicy(self.plan, self.mix) if isinstance(self.plan, Plan) else self.plan


@dataclass(frozen=True)
class UncachedConfig(AccelConfig):
    """Every step is computed: a scene without a cache, `accelerate(pipe, layout=...)`."""

    kind: ClassVar[str] = "uncached"


WAYS = (QualityConfig, SpeedupConfig, ThresholdConfig, UniCPConfig, PlanConfig, UncachedConfig)
_PARTS = {
    "windows": EDCW,
    "pcas": PCAS,
    "shift": DWS,
    "blocks": BlockSizes,
    "scene": SceneConfig,
}


def settings_of(parts: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, as they are."""
    return {one.name: getattr(parts, one.name) for one in dataclasses.fields(parts)}


def _plain(parts: Any, otherwise: Callable[[str, Any], Any]) -> dict[str, Any]:
    """Fields as JSON has them; `otherwise` is asked for what it has no form for."""

    def form(name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return [form(name, one) for one in value]
        if isinstance(value, tuple(_PARTS.values())):
            return _plain(value, otherwise)
        known = value is None or isinstance(value, (bool, int, float, str))
        return value if known else otherwise(name, value)

    return {name: form(name, value) for name, value in settings_of(parts).items()}


def _refuse(name: str, value: Any) -> Any:
    instead = "; accepted: the path of its file" if name in ("layout", "profile") else ""
    raise ValueError(f"{name} is a {_class(value)}, which is no plain value{instead}")


def _made(kind: type[Any], given: Any, name: str) -> Any:
    """An object of settings by name, the parts among them made too."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} is {given!r}; accepted: the settings of {kind.__name__} by name")
    fields = {one.name: one for one in dataclasses.fields(kind)}
    unknown = [setting for setting in given if setting not in fields]
    if unknown:
        raise ValueError(f"{name} has {', '.join(unknown)}; accepted: {', '.join(fields)}")
    try:
        return kind(**{setting: _read(setting, value) for setting, value in given.items()})
    except TypeError as error:  # one that is missing, or a text where a number is compared
        raise ValueError(f"{name}: {error}") from error


def _read(name: str, value: Any) -> Any:
    if name in _PARTS and value is not None:
        return _made(_PARTS[name], value, name)
    return tuple(value) if isinstance(value, list) else value


def _shown(parts: Any) -> str:
    """An object by its class and the fields that are not as the class has them by itself."""
    found = []
    for one in dataclasses.fields(parts):
        value = getattr(parts, one.name)
        made = one.default_factory() if callable(one.default_factory) else one.default
        if value != made:
            known = value is None or isinstance(value, (bool, int, float, str, tuple))
            nested = _shown(value) if isinstance(value, tuple(_PARTS.values())) else _class(value)
            found.append(f"{one.name}={value!r}" if known else f"{one.name}={nested}")
    return f"{_class(parts)}({', '.join(found)})"


def _class(value: Any) -> str:
    return type(value).__name__


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
    for name in ("threshold", "site"):
        if name in given:
            raise ValueError(f"accel is 'unicp' with {name}; accepted: with quality or speedup")
    rest = {name: value for name, value in given.items() if name != "accel"}
    return rest if "quality" in rest or "speedup" in rest else {"quality": DEFAULT_QUALITY, **rest}


def _chosen(given: dict[str, Any]) -> AccelConfig:
    check_choice([(name, given.get(name)) for name in ("quality", "speedup", "threshold")])
    if "quality" in given or "speedup" in given:
        way = QualityConfig if "quality" in given else SpeedupConfig
        _alone(way.kind, given, ("plan", "config", "accel", "site"), "alone")
        return _config(way, given)
    for name in ("profile", "static", "cache_memory", "guard", "force"):
        if name in given:
            raise ValueError(f"{name} is given; accepted: with quality or speedup")
    if "mix" in given and "plan" not in given:
        raise ValueError("mix is given without a plan; accepted: with plan")
    if "accel" in given:
        _alone("accel", given, ("plan", "site", "config"), "with threshold alone")
        return _config(UniCPConfig, given | settings_of(_preset(given)))
    if "plan" in given:
        _alone("plan", given, ("threshold", "site", "config"), "alone")
        return _config(PlanConfig, given)
    if "layout" in given and not given.keys() & {"threshold", "config", "site"}:
        return _config(UncachedConfig, given)
    return _config(ThresholdConfig, given | settings_of(given.get("config", _windows(given))))


def _alone(what: str, given: Mapping[str, Any], others: tuple[str, ...], accepted: str) -> None:
    beside = " and ".join(name for name in others if name in given)
    if beside:
        raise ValueError(f"{what} is given with {beside}; accepted: {accepted}")


def _config(way: type[AccelConfig], given: Mapping[str, Any]) -> AccelConfig:
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


def check_choice(names: Sequence[tuple[str, float | None]]) -> None:
    """Refuse more than one target.

    Raises:
        ValueError: naming those that were given.
    """
    given = [f"{name}={value:g}" for name, value in names if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are given; accepted: one of them")
