"""The parts of a row of the table METHODS.

In: the name of a method, its number as text, and a function that installs it on a pipeline. Out: a
`Setting`, which is a method with its number, and the objects that a run needs.
Knows: which numbers are accepted and which package must be installed. Does not know how a method
works: the rows are in the other modules of this folder.
Source: ours.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dit_accel.core.document import Field
from dit_accel.core.generation import ClipSpec
from dit_accel.core.report import Report

UNCACHED = "uncached"
FEWER_STEPS = "fewer-steps"
RERUN = "rerun"
Number = float | int | None  # of a setting; None if its method has no number
STEPS = (25, 20, 17, 13, 10, 8)  # for the rows whose number is the number of computed steps


@dataclass(frozen=True)
class MethodHandle:
    """A method that is installed on a pipeline.

    Args:
        overrides: arguments of the pipeline's call, instead of the clip's.
        report: dit_accel's own report of the last call.
        remarks: notes on this run for the reader.
        calibration_runs: cost of the method's calibration before its first clip, in uncached runs;
            None: unknown.
    """

    overrides: dict[str, Any] = field(default_factory=dict)
    report: Callable[[], Report] | None = None
    remarks: tuple[str, ...] = ()
    calibration_runs: float | None = 0.0


@dataclass(frozen=True)
class MethodContext:
    """The data of a run that a method may need.

    Args:
        clip: the clip that will be made.
        calibrate: `calibrate(name, measure)` calls `measure(run)`, where `run()` makes an uncached
            clip, and stores the result under the name. A later call only reads it.
        profile: the model's profile (`dit-accel calibrate`); None: runs are planned from the prior
            and from `learned`.
        static, cache_memory: settings of plans, as in `accelerate`.
        calibration_clips: clips of the same settings that are not scored.
        batch: how many of these clips may be rows of one call.
        memory: measurements that the methods of a process share.
        learned: a copy of the file of what was learnt about the pipeline; None: nothing was learnt.
        scratch: a folder for the state of a long calibration, so that it can be resumed; None: it
            starts from the beginning.
    """

    clip: ClipSpec
    calibrate: Callable[[str, Callable[[Callable[[], None]], Any]], Any]
    profile: Path | None = None
    static: bool = False
    cache_memory: int | None = None
    calibration_clips: tuple[ClipSpec, ...] = ()
    batch: int = 1
    memory: dict[str, Any] = field(default_factory=dict)
    scratch: Path | None = None
    learned: Path | None = None


Active = AbstractContextManager[MethodHandle]
Apply = Callable[[Any, Number, MethodContext], Active]


@dataclass(frozen=True)
class Setting:
    """A method with its number.

    Args:
        method, number: as on the command line.
        control, profiled: see `Method`.
        package: an additional package whose version influences the clips.
    """

    method: str
    number: Number = None
    control: bool = field(default=False, compare=False)
    profiled: bool = field(default=False, compare=False)
    package: str | None = field(default=None, compare=False)

    @property
    def label(self) -> str:
        """The setting as it is written on the command line. Other numbers have other labels, as a
        job is identified by its label."""
        if self.number is None:
            return self.method
        short = f"{self.number:g}"
        return f"{self.method}:{short if float(short) == self.number else repr(self.number)}"

    @property
    def is_rerun(self) -> bool:
        """Whether this is the uncached model run again, which measures the noise floor."""
        return self.method.split("/")[0] == RERUN

    def versions(self) -> dict[str, str]:
        """The installed version of `package`; empty if there is no package."""
        if self.package is None or not _is_installed(self.package):
            return {}
        return {self.package: importlib.metadata.version(self.package)}


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package.replace("-", "_")) is not None


@dataclass(frozen=True)
class Method:
    """One way to make a clip.

    Args:
        name: the name on the command line and in tables.
        summary: a phrase that describes it.
        apply: installs it on a pipeline and removes it: `with apply(pipe, number, context)`.
        number: the meaning of the number; "" if the method has none.
        default: the number if none is given.
        sweep: numbers from mild to strong, for a curve.
        low, high: the accepted range.
        whole: whether the number must be whole.
        package: an additional package that it needs, and the extra of ours that installs it.
        diffusers_class: the class of diffusers that it needs; not every version has it.
        own_process: whether it changes classes, so that no other method may share its process.
        fewer: whether its number is a number of steps below the clip's.
        control: whether it accelerates nothing, and others are compared with it.
        profiled: whether it makes plans from the data about the model.
        research: whether it is left out of lists and of the table in the docs; its name is
            accepted.
    """

    name: str
    summary: str
    apply: Apply
    number: str = ""
    default: Number = None
    sweep: tuple[float | int, ...] = ()
    low: float = 0.0
    high: float = math.inf
    whole: bool = False
    package: tuple[str, str] | None = None
    diffusers_class: str | None = None
    own_process: bool = False
    fewer: bool = False
    control: bool = False
    profiled: bool = False
    research: bool = False

    def setting(self, number: Number) -> Setting:
        """This method with a number."""
        package = self.package[0] if self.package else None
        return Setting(self.name, number, self.control, self.profiled, package)

    def at(self, number: str | None) -> Setting:
        """This method with a number, given as text; None: with its default.

        Raises:
            ValueError: the number is not accepted; the message names the method, the number, and
                what is accepted.
        """
        if number is None:
            return self.setting(self.default)
        if not self.number:
            raise ValueError(f"method {self.name!r} takes no number; it is given {number!r}")
        kind = "a whole number" if self.whole else "a number"
        bounds = f" from {self.low:g} to {self.high:g}"
        bounds = f", at least {self.low:g}" if math.isinf(self.high) else bounds
        accepted = f"{self.number}: {kind}{bounds}"
        try:
            value = int(number) if self.whole else float(number)
        except ValueError:
            raise ValueError(
                f"method {self.name!r} is given {number!r}; accepted: {accepted}"
            ) from None
        if not self.low <= value <= self.high or math.isinf(value):
            raise ValueError(f"method {self.name!r} is given {number!r}; accepted: {accepted}")
        return self.setting(value)

    def swept(self) -> tuple[Setting, ...]:
        """The settings of the whole sweep; a method without a number has one setting."""
        if not self.sweep:
            return (self.setting(self.default),)
        return tuple(self.setting(number) for number in self.sweep)

    def lacking(self) -> str | None:
        """The package that must be installed before this can run, or None."""
        if self.diffusers_class is not None:
            import diffusers

            if not hasattr(diffusers, self.diffusers_class):
                return f"diffusers {diffusers.__version__} has no {self.diffusers_class}"
        if self.package is None or _is_installed(self.package[0]):
            return None
        name, extra = self.package
        return f"{name} is not installed: pip install 'dit-accel[{extra}]'"


# --- rows whose number is the number of computed steps ---


def fewer(number: Number, context: MethodContext, name: str) -> int:
    """The number of steps to compute.

    Raises:
        ValueError: it is not below the clip's steps.
    """
    if number is None or not 1 <= number < context.clip.steps:
        raise ValueError(f"{name} is {number}; accepted: 1 to {context.clip.steps - 1} steps")
    return int(number)


def steps_row(name: str, summary: str, apply: Any, **options: Any) -> Method:
    """A row whose number is the number of computed steps."""
    return Method(name, summary, apply, number="computed steps", default=25, sweep=STEPS,
                  low=1, high=1000, whole=True, fewer=True, **options)  # fmt: skip


def calibrated(
    context: MethodContext, name: str, measure: Callable[[Any], dict[str, Any]]
) -> Field:
    """The measurements of a method. Its other fields are checked where they are used.

    Raises:
        DocumentError: it is not an object, or has no number of uncached runs.
    """
    found = Field(context.calibrate(name, measure), f"calibration/{name}.json")
    found.at("runs").number(0)
    return found
