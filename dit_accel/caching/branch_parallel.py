"""Two ranks compute one branch of guidance each, and exchange their predictions.

Goes in: the forwards of a step, one a branch. Comes out: the same predictions, on both ranks, in
the time of one forward. When a step's first forward is called, its second one is foreseen: it has
the same arguments but the text, which is the one of the step before. So the first rank computes the
first branch, the second rank the second, and an all-gather gives both to both. A second forward
that comes otherwise than foreseen is computed on both ranks, as is the first step. It stands inside
of the caches at the denoiser's output, and knows no model. Source: CFG parallelism of xDiT (arXiv
2411.01738), which has a pipeline of its own for each model; this one leaves the pipeline as it is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from dit_accel.caching.executor import form_of
from dit_accel.core.checks import require
from dit_accel.core.families import FAMILIES, Family
from dit_accel.core.patching import parallel_group, uncompiled
from dit_accel.core.session import Forward, ForwardCall, Interceptor, Session


class BranchParallel(Interceptor):
    """Stands around the forwards of one of two ranks.

    Args:
        session: of the pipeline.
        family: of its transformers.
        given: a process group of two ranks; True: the default one.

    Raises:
        ValueError: the family computes its branches in one forward, or the group is another one.
    """

    def __init__(self, session: Session, family: Family, given: Any) -> None:
        if family.branches != "separate":
            separate = ", ".join(f.name for f in FAMILIES.values() if f.branches == "separate")
            raise ValueError(
                f"branch_parallel is given, and {family.name} has all branches in one forward; "
                f"accepted: {separate}"
            )
        self.session, self.group = session, _group_of(given)
        self._own: dict[str, Any] | None = None  # arguments of the second branch alone
        session.branch_group = self.group
        self.run_begins(None)

    def run_begins(self, num_steps: int | None) -> None:
        """Forget the last run, and refuse what does not go together.

        Raises:
            ValueError: a cache of diffusers is on, or the group divides a forward.
        """
        self.steps = self.shared_steps = 0
        self._own = None
        self.step_begins(0)
        _check_alone(self.session, self.group)

    def step_begins(self, step: int) -> None:
        """Nothing is foreseen over the end of a step."""
        self._calls: list[ForwardCall] = []
        self._foreseen: tuple[ForwardCall, Any] | None = None

    def around(self, call: ForwardCall, forward: Forward) -> Any:
        """The prediction of a branch: of this rank, or of the other one."""
        self._calls.append(call)
        foreseen, self._foreseen = self._foreseen, None
        if foreseen is not None and _are_same(call, foreseen[0]):
            return foreseen[1]
        if len(self._calls) == 1:
            self.steps += 1
            if self._own is not None:
                return self._shared(call, self._own, forward)
        elif len(self._calls) == 2:
            self._own = _own_arguments(*self._calls)
        return forward(call)

    def _shared(self, call: ForwardCall, own: dict[str, Any], forward: Forward) -> Any:
        """The first branch's prediction; that of the second is there too."""
        other = ForwardCall(call.transformer, call.args, call.kwargs | own)
        output = forward((call, other)[dist.get_rank(self.group)])
        form, mine = form_of(output), output[0].contiguous()
        both = [torch.empty_like(mine) for _ in range(2)]
        dist.all_gather(both, mine, group=self.group)
        self.shared_steps += 1
        self._foreseen = other, form(both[1])
        return form(both[0])

    def notes(self) -> tuple[str, ...]:
        """What a reader of the report must know of the last run."""
        rest = "the others had one branch, or were computed on both ranks, as each first step is"
        shared = f"two ranks shared {self.shared_steps} of {self.steps} computed steps"
        return (f"Branch parallel: {shared}; {rest}.",) if self.steps else ()

    def clear(self) -> None:
        """Free the arguments of the last run."""
        self._own = None
        self.step_begins(0)


def _group_of(given: Any) -> Any:
    accepted = "a process group of two ranks, or True where that is the default group"
    if given is True and not (dist.is_available() and dist.is_initialized()):
        raise ValueError(f"branch_parallel is True without processes; accepted: {accepted}")
    group = dist.group.WORLD if given is True else given
    require(group is not None and group.size() == 2, "branch_parallel", given, accepted)
    return group


def _check_alone(session: Session, group: Any) -> None:
    ranks = {*dist.get_process_group_ranks(group)}
    for name, module in session.transformers.items():
        divided = parallel_group(module)
        if divided is not None and len(ranks & {*dist.get_process_group_ranks(divided)}) > 1:
            raise ValueError(
                "branch_parallel has ranks that divide one forward; accepted: a group across "
                "those of context parallelism"
            )
        if getattr(uncompiled(module), "is_cache_enabled", False):
            raise ValueError(
                f"branch_parallel is given, and {name} has a cache of diffusers, which keeps "
                "branches apart by their order; accepted: without enable_cache"
            )


def _own_arguments(first: ForwardCall, second: ForwardCall) -> dict[str, Any] | None:
    """The arguments that the second call alone has; None where they cannot be foreseen."""
    alike = first.transformer == second.transformer and first.kwargs.keys() == second.kwargs.keys()
    if not alike or not _all_same(first.args, second.args):
        return None
    own = {k: v for k, v in second.kwargs.items() if not _is_same(v, first.kwargs[k])}
    return own if first.latents is second.latents and first.timestep is second.timestep else None


def _are_same(one: ForwardCall, other: ForwardCall) -> bool:
    return (
        one.transformer == other.transformer
        and one.kwargs.keys() == other.kwargs.keys()
        and _all_same(one.args, other.args)
        and all(_is_same(value, other.kwargs[name]) for name, value in one.kwargs.items())
    )


def _all_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(one) == len(other) and all(map(_is_same, one, other))


def _is_same(one: Any, other: Any) -> bool:
    """The same tensor, or an equal plain value; nothing is read from the device."""
    if one is other:
        return True
    plain = (bool, int, float, str)
    return isinstance(one, plain) and isinstance(other, plain) and one == other
