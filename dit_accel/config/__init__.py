"""The settings of an acceleration, as one frozen object that is checked when it is made.

    config = QualityConfig(32, guard=False)
    accelerate(pipe, config)  # the same as accelerate(pipe, quality=32, guard=False)
    json.dumps(config.to_dict())  # AccelConfig.from_dict turns it into an equal config

Goes in: settings. Comes out: one config. Each way to decide which steps are computed has its own
class, which has only the settings that apply to it. The module knows names and ranges, and no
pipeline. Ours; there is no source.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from dit_accel.attention.block_sparse import BlockSizes
from dit_accel.attention.pcas import PCAS
from dit_accel.caching.blend import DWS
from dit_accel.caching.learning import FixedLearning
from dit_accel.caching.policy import PlanPolicy, Policy
from dit_accel.caching.unicp import UniCP
from dit_accel.caching.windows import EDCW
from dit_accel.core.checks import byte_count, check_types, require
from dit_accel.core.families import SITES
from dit_accel.layout import Layout
from dit_accel.planning.choice import PlanChoice
from dit_accel.planning.learned import is_off
from dit_accel.planning.plan import Plan
from dit_accel.planning.profile import Profile
from dit_accel.scenes.rows import SceneConfig

DEFAULT_QUALITY = 36.0  # dB
File = str | os.PathLike[str]
_PARTS = {
    "windows": EDCW, "pcas": PCAS, "shift": DWS, "blocks": BlockSizes, "scene": SceneConfig,
}  # fmt: skip


@dataclass(frozen=True)
class AccelConfig:
    """The settings that every config has. Use one of the classes in `CONFIGS`.

    Args:
        layout: subjects with their boxes and references, or the path of a layout file. Call the
            pipeline with one prompt per shot then: `prompt=layout.prompts`.
        scene: settings of isolation, references and the subjects' prompts; None: the defaults.
        branch_parallel: whether two ranks compute one guidance branch each. Give the process group
            of the two ranks, or True for the default group. It does not go with windows, because
            they cache inside of a branch.

    Raises:
        ValueError: a value is out of range, or two settings do not go together.
    """

    kind: ClassVar[str] = ""
    inside_forwards: ClassVar[bool] = False  # whether values are cached inside of the transformer

    layout: Layout | File | None = field(default=None, kw_only=True)
    scene: SceneConfig | None = field(default=None, kw_only=True)
    branch_parallel: Any = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not self.kind:
            accepted = ", ".join(one.__name__ for one in CONFIGS)
            raise ValueError(f"{_class(self)} is only a base class; accepted: {accepted}")
        check_types(self)
        if self.scene is not None and self.layout is None:
            raise ValueError("scene is given without layout; accepted: with a layout")
        group = self.branch_parallel
        valid = isinstance(group, bool) or hasattr(group, "size")
        require(valid, "branch_parallel", group, "True, False, or a process group")
        if group and (self.inside_forwards or self.layout is not None):
            beside = "a layout" if self.layout is not None else _class(self)
            raise ValueError(
                f"branch_parallel is given with {beside}; accepted: with quality, speedup or plan, "
                "or alone"
            )
        self._check_part("scene")
        self._path_as_text("layout", Layout)

    def _check_part(self, name: str, *, needed: bool = False) -> None:
        value, kind = getattr(self, name), _PARTS[name]
        valid = isinstance(value, kind) or (value is None and not needed)
        require(valid, name, value, f"of {kind.__name__}" + ("" if needed else ", or None"))

    def _path_as_text(self, name: str, kind: type) -> None:
        """Turn a path into a text, so that a config equals the one that is loaded from its JSON.

        Args:
            kind: what the setting may be instead of a path.
        """
        value = getattr(self, name)
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
            object.__setattr__(self, name, value)
        accepted = f"a {kind.__name__}, the path of its file, or None"
        require(value is None or isinstance(value, (str, kind)), name, value, accepted)

    @property
    def window_threshold(self) -> float | None:
        """The threshold of the cache windows; None where a plan decides."""
        threshold: float | None = getattr(getattr(self, "windows", self), "threshold", None)
        return threshold

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain JSON values; `kind` is the kind of config.

        Raises:
            ValueError: a setting is an object without a JSON form. The message names the setting.
        """
        return {"kind": self.kind} | _plain(self, _refuse)

    def describe(self) -> dict[str, Any]:
        """As `to_dict`, for people: an object without a JSON form is shown by its class name."""
        return {"kind": self.kind} | _plain(self, lambda _, value: f"<{_class(value)}>")

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """The config that `to_dict` described. Missing settings get their defaults.

        Raises:
            ValueError: the kind or a setting is unknown, or a value is out of range.
        """
        kinds = {one.kind: one for one in CONFIGS if issubclass(one, cls)}
        found = kinds.get(given.get("kind", ""))
        if found is None:
            raise ValueError(f"kind is {given.get('kind')!r}; accepted: {', '.join(kinds)}")
        return _made(found, {k: v for k, v in given.items() if k != "kind"}, found.__name__)

    def __str__(self) -> str:
        """The class and the settings that differ from the defaults: `QualityConfig(quality=32)`."""
        return _shown(self)


@dataclass(frozen=True)
class PlannedConfig(AccelConfig):
    """The settings that a quality and a speedup have in common. Both use plans.

    Args:
        profile: the profile of this pipeline, or its file. None: look for one in the model's folder
            and in the user's cache. If there is none, runs are planned from the prior.
        guard: whether the guard may abandon the plan during a run, when the measured errors are far
            from the expected ones.
        force: whether to use a profile even if it was measured on another pipeline.
        static: whether all runs do the same, without host syncs and without a guard (for
            torch.compile and CUDA graphs).
        learn: whether later runs learn from uncached clips. What is learnt is stored in a small
            file in the user's cache. With static or a layout nothing is learnt.
        cache_memory: bytes that cached values may take on the device, as a number or as a text
            such as "2GiB". If they do not fit, older values are first quantized, to as few bits as
            the plan allows, and then moved to the CPU's memory. None: no bound.
        choice: a plan that was chosen before the run; used if it fits the run. It is not a setting:
            it is neither saved nor compared.
        records: what happens to a run that cannot be planned, because there is no profile and the
            prior does not cover it. True: every step is computed, and the run is recorded for later
            runs. False: the same if runs are learnt from (`learns`), else the run is refused. Not
            a setting either.
        known: what was learnt up to some moment. Runs are planned from it and from the prior; no
            profile and no file in the cache is used. Not a setting either.
    """

    profile: Profile | File | None = field(default=None, kw_only=True)
    guard: bool = field(default=True, kw_only=True)
    force: bool = field(default=False, kw_only=True)
    static: bool = field(default=False, kw_only=True)
    learn: bool = field(default=True, kw_only=True)
    cache_memory: Any = field(default=None, kw_only=True)  # an int or None once it is checked
    choice: PlanChoice | None = field(default=None, kw_only=True, compare=False)
    records: bool = field(default=True, kw_only=True, compare=False)
    known: FixedLearning | None = field(default=None, kw_only=True, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._path_as_text("profile", Profile)
        if self.cache_memory is not None:
            try:
                object.__setattr__(self, "cache_memory", byte_count(self.cache_memory))
            except ValueError as error:
                raise ValueError(f"cache_memory is {error}") from error

    @property
    def learns(self) -> bool:
        """Whether runs are planned from what was learnt earlier, and are learnt from."""
        return self.learn and not self.static and self.layout is None and not is_off()


@dataclass(frozen=True)
class QualityConfig(PlannedConfig):
    """The fastest plan that reaches a quality: `accelerate(pipe, quality=...)`.

    Args:
        quality: the PSNR in dB, against the uncached clip, that 95 % of clips should reach; > 0.
    """

    kind: ClassVar[str] = "quality"
    quality: float = DEFAULT_QUALITY

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.quality < math.inf, "quality", self.quality, "a finite number above 0")


@dataclass(frozen=True)
class SpeedupConfig(PlannedConfig):
    """The best plan with a given number of computed steps: `accelerate(pipe, speedup=...)`.

    Args:
        speedup: all steps / computed steps, >= 1.
    """

    kind: ClassVar[str] = "speedup"
    speedup: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.speedup < math.inf, "speedup", self.speedup, "a finite number, 1 or more")


@dataclass(frozen=True)
class ThresholdConfig(EDCW, AccelConfig):
    """Windows at a site; drifts set their lengths: `accelerate(pipe, threshold=..., site=...)`.

    Args:
        threshold, max_window, first, last, growth, order: see `EDCW`. With threshold 0 every step
            is computed, and the output is bit-equal to the stock pipeline's.
        site: where values are cached: "attention" (each self-attention's output), "block" (each
            block's residual) or "model" (the residual of the whole block stack).
    """

    kind: ClassVar[str] = "threshold"
    inside_forwards: ClassVar[bool] = True
    site: str = field(default="model", kw_only=True)

    def __post_init__(self) -> None:
        AccelConfig.__post_init__(self)
        EDCW.__post_init__(self)
        require(self.site in SITES, "site", self.site, ", ".join(SITES))


@dataclass(frozen=True)
class UniCPConfig(UniCP, AccelConfig):
    """The paper's three techniques at the attentions: `accelerate(pipe, accel="unicp-paper")`.

    Pruning is switched off at attentions where it saves too little; the report says so. The
    settings are those of `UniCP`.
    """

    kind: ClassVar[str] = "unicp-paper"
    inside_forwards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_part("windows", needed=True)
        self._check_part("pcas")
        self._check_part("shift")


@dataclass(frozen=True)
class PlanConfig(AccelConfig):
    """A plan of your own, at the denoiser's output: `accelerate(pipe, plan=...)`.

    Args:
        plan: which steps are computed, and what the others are extrapolated from; or a `Policy`.
        mix: the weight of each component in the guided prediction. Only with a `Plan`.
    """

    kind: ClassVar[str] = "plan"
    plan: Plan | Policy
    mix: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isinstance(self.plan, (Plan, Policy)), "plan", self.plan, "a Plan, or a Policy")

    @property
    def policy(self) -> Policy:
        """The policy that runs follow."""
        return PlanPolicy(self.plan, self.mix) if isinstance(self.plan, Plan) else self.plan


@dataclass(frozen=True)
class UncachedConfig(AccelConfig):
    """Every step is computed, without a cache: for a layout alone, or for branches on two ranks."""

    kind: ClassVar[str] = "uncached"
    threshold: ClassVar[float] = 0.0


CONFIGS = (QualityConfig, SpeedupConfig, ThresholdConfig, UniCPConfig, PlanConfig, UncachedConfig)


def settings_of(parts: Any) -> dict[str, Any]:
    """The settings of a config, or of a part such as `EDCW`, by name."""
    return {one.name: getattr(parts, one.name) for one in fields(parts) if one.compare}


def _plain(parts: Any, otherwise: Callable[[str, Any], Any]) -> dict[str, Any]:
    """Settings as plain JSON values; `otherwise` converts objects that have no JSON form."""

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
    raise ValueError(f"{name} is a {_class(value)}, which cannot be written as JSON{instead}")


def _made(kind: type[Any], given: Any, name: str) -> Any:
    """An object of class `kind` from its settings by name; parts such as `EDCW` are made too."""
    by_name = f"the settings of {kind.__name__} by name"
    require(isinstance(given, Mapping), name, given, by_name)
    known = [one.name for one in fields(kind) if one.compare]
    unknown = [setting for setting in given if setting not in known]
    if unknown:
        raise ValueError(f"{name} has {', '.join(unknown)}; accepted: {', '.join(known)}")
    try:
        return kind(**{setting: _read(setting, value) for setting, value in given.items()})
    except TypeError as error:  # a setting is missing, or a text was compared with a number
        raise ValueError(f"{name}: {error}") from error


def _read(name: str, value: Any) -> Any:
    if name in _PARTS and value is not None:
        return _made(_PARTS[name], value, name)
    return tuple(value) if isinstance(value, list) else value


def _shown(parts: Any) -> str:
    """An object as text: its class, and the settings that differ from the defaults."""
    found = []
    for one in (one for one in fields(parts) if one.compare):
        value = getattr(parts, one.name)
        default = one.default_factory() if callable(one.default_factory) else one.default
        if value != default:
            known = value is None or isinstance(value, (bool, int, float, str, tuple))
            nested = _shown(value) if isinstance(value, tuple(_PARTS.values())) else _class(value)
            found.append(f"{one.name}={value!r}" if known else f"{one.name}={nested}")
    return f"{_class(parts)}({', '.join(found)})"


def _class(value: Any) -> str:
    return type(value).__name__
