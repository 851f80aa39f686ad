"""The table of methods. Each row is one way to make a pipeline faster.

In: a method as text, `name` or `name:number`, e.g. `edcw:0.1`. Out: a `Setting`, or the row that
installs it on a pipeline.
Knows: what each number means, and which are accepted. Rows of other packages call the packages'
public API with its defaults. If a default does nothing or fails on a family, the evaluation reports
it. A new method is one row. A row marked `research` is accepted by name, but is not in lists.
Source: named in each row's module.
"""

from __future__ import annotations

from dit_accel.evaluation.methods.budcache import BUDCACHE_METHODS
from dit_accel.evaluation.methods.cachedit import CACHE_DIT
from dit_accel.evaluation.methods.diffusers_caches import DIFFUSERS
from dit_accel.evaluation.methods.floor import FLOOR_METHODS
from dit_accel.evaluation.methods.l2p import L2P_METHODS
from dit_accel.evaluation.methods.online import ONLINE_METHODS
from dit_accel.evaluation.methods.ours import OURS
from dit_accel.evaluation.methods.ra_cfg import RA_CFG_METHODS
from dit_accel.evaluation.methods.row import (
    UNCACHED,
    Method,
    MethodContext,
    MethodHandle,
    Setting,
)
from dit_accel.evaluation.methods.schedules import SCHEDULE_METHODS
from dit_accel.evaluation.methods.solvers import SOLVER_METHODS
from dit_accel.evaluation.methods.trained import TRAINED_METHODS

METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        *OURS,
        *DIFFUSERS,
        *CACHE_DIT,
        *ONLINE_METHODS,
        *RA_CFG_METHODS,
        *SOLVER_METHODS,
        *SCHEDULE_METHODS,
        *L2P_METHODS,
        *BUDCACHE_METHODS,
        *TRAINED_METHODS,
        *FLOOR_METHODS,
    )
}
LISTED = tuple(row.name for row in METHODS.values() if not row.research)


def parse(text: str) -> Setting:
    """The method with its number, from `name` or `name:number`.

    Raises:
        ValueError: no row has the name, or the number is not accepted; the message names both.
    """
    name, colon, number = (part.strip() for part in text.partition(":"))
    if name not in METHODS:
        raise ValueError(f"method is {name!r}; accepted: {', '.join(LISTED)}")
    return METHODS[name].at(number if colon else None)


def parse_list(text: str, steps: int | None = None) -> tuple[Setting, ...]:
    """Several settings, separated by commas, each once.

    `NAME:*` is the row's whole sweep. A number alone belongs to the method before it, so
    `edcw:0.1,0.2` is two settings.

    Args:
        steps: the steps of the clips; a sweep over steps leaves out the numbers that are not below
            it.

    Raises:
        ValueError: see `parse`; or the list is empty, or a number of steps is not below `steps`.
    """
    settings: list[Setting] = []
    swept = ""  # the last method whose sweep was asked for
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = (word.strip() for word in part.partition(":"))
        if settings and _is_number(part):
            name, number = settings[-1].method, part
            part = f"{name}:{number}"
        if number == "*" and name in METHODS:
            swept = name
            settings += [s for s in METHODS[name].swept() if _fewer(s, steps)]
        else:
            settings.append(parse(part))
    if not settings and swept:
        raise ValueError(
            f"methods is {text!r}, whose settings are all at least the {steps} steps of the clips; "
            f"accepted: numbers below {steps}, such as {swept}:{(steps or 2) // 2}"
        )
    if not settings:
        raise ValueError(f"methods is {text!r}; accepted: at least one of {', '.join(LISTED)}")
    for setting in settings:
        if not _fewer(setting, steps):
            raise ValueError(f"method is {setting.label!r}; accepted: below the {steps} steps")
    return tuple(dict.fromkeys(settings))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _fewer(setting: Setting, steps: int | None) -> bool:
    return steps is None or not METHODS[setting.method].fewer or int(setting.number or 0) < steps


__all__ = [
    "LISTED",
    "METHODS",
    "UNCACHED",
    "Method",
    "MethodContext",
    "MethodHandle",
    "Setting",
    "parse",
    "parse_list",
]
