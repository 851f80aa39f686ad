"""Lets two ranks compute one guidance branch each, and exchange their predictions.

Goes in: the forwards of a step, one per branch. Comes out: the same predictions, on both ranks, in
the time of one forward.

When a step's first forward is called, the arguments of its second one are expected to be the same,
except for the text; the text is expected to be that of the previous step or run. So the first rank
computes the first branch and the second rank the second branch, and an all-gather gives both
predictions to both ranks. If the second forward has other arguments than expected, both ranks
compute it. They also compute both forwards of the very first step. This interceptor is inside of
the cache at the denoiser's output, and knows no model.

Source: CFG parallelism of xDiT (arXiv 2411.01738). xDiT has its own pipeline class for each model;
here the pipeline stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from dit_accel.caching.outputs import taken
from dit_accel.caching.ranks import Ranks
from dit_accel.core.checks import require
from dit_accel.core.compiling import uncompiled
from dit_accel.core.families import FAMILIES, Family
from dit_accel.core.interceptor import Forward, ForwardCall, Interceptor
from dit_accel.core.private_names import parallel_group
from dit_accel.core.session import Session


class BranchParallel(Interceptor):
    """Wraps the forwards on one of the two ranks.

    Args:
        session: of the pipeline.
        family: of its transformers.
        given: a process group of two ranks; True: the default group.

    Raises:
        ValueError: the family computes both branches in one forward, or the group does not have two
            ranks.
    """

    def __init__(self, session: Session, family: Family, given: Any) -> None:
        if family.branches != "separate":
            separate = ", ".join(f.name for f in FAMILIES.values() if f.branches == "separate")
            raise ValueError(
                f"branch_parallel is given, but {family.name} has all branches in one forward; "
                f"accepted: {separate}"
            )
        self.session, self.group = session, _group_of(given)
        self._own: dict[str, Any] | None = None  # the second branch's arguments that differ
        session.branch_group = self.group
        self.run_begins(None)

    def run_begins(self, num_steps: int | None) -> None:
        """Forget the last run, and refuse combinations that do not work.

        Raises:
            ValueError: a cache of diffusers is on, or the group divides a forward.
        """
        self.steps = self.shared_steps = 0
        self.step_begins(0)
        _check_alone(self.session, self.group)

    def step_begins(self, step: int) -> None:
        """Forget the expected forward: it belongs to the last step."""
        self._calls: list[ForwardCall] = []
        self._foreseen: tuple[ForwardCall, Any] | None = None

    def around(self, call: ForwardCall, forward: Forward) -> Any:
        """The prediction of a branch, computed on this rank or on the other one."""
        self._calls.append(call)
        foreseen, self._foreseen = self._foreseen, None
        if foreseen is not None and self._holds(call, foreseen[0]):
            self.shared_steps += 1
            return foreseen[1]
        if len(self._calls) == 1:
            self.steps += 1
            own = self._own or {}
            if own and _are_alike(own, {name: call.kwargs.get(name) for name in own}):
                return self._shared(call, own, forward)
        elif len(self._calls) == 2:
            self._own = _own_arguments(*self._calls)
        return forward(call)

    def _shared(self, call: ForwardCall, own: dict[str, Any], forward: Forward) -> Any:
        """Compute both branches on the two ranks. Returns the first branch's output, and stores the
        second one's for the next forward."""
        other = ForwardCall(call.transformer, call.args, call.kwargs | own)
        output = forward((call, other)[dist.get_rank(self.group)])
        mine, form = taken(output)
        mine = mine.contiguous()
        both = [torch.empty_like(mine) for _ in range(2)]
        dist.all_gather(both, mine, group=self.group)
        self._foreseen = other, form.output(both[1])
        return form.output(both[0])

    def _holds(self, call: ForwardCall, foreseen: ForwardCall) -> bool:
        """Whether a call is the expected one. New tensors are compared by value, in one host
        sync."""
        given, expected = _arguments(call), _arguments(foreseen)
        if call.transformer != foreseen.transformer or not _are_alike(given, expected):
            return False
        new = [(a, expected[k]) for k, a in given.items() if not _is_same(a, expected[k])]
        if not new:
            return True
        differs = torch.stack([(a != b).any() for a, b in new]).any().float()
        return not bool(Ranks(self.session.groups).mean(differs))

    def notes(self) -> tuple[str, ...]:
        """What a reader of the report must know about the last run."""
        shared = f"two ranks shared {self.shared_steps} of {self.steps} computed steps"
        rest = "A step with one branch, or with a text not seen before, is not shared"
        return (f"Branch parallel: {shared}. {rest}.",) if self.steps else ()

    def clear(self) -> None:
        """Free the arguments of the last run."""
        self._own = None
        self.step_begins(0)


def _group_of(given: Any) -> Any:
    accepted = "a process group of two ranks, or True if the default group has two"
    if given is True and not (dist.is_available() and dist.is_initialized()):
        problem = "branch_parallel is True, but torch.distributed has no process group"
        raise ValueError(f"{problem}; accepted: {accepted}")
    group = dist.group.WORLD if given is True else given
    require(group is not None and group.size() == 2, "branch_parallel", given, accepted)
    return group


def _check_alone(session: Session, group: Any) -> None:
    ranks = {*dist.get_process_group_ranks(group)}
    for name, module in session.transformers.items():
        divided = parallel_group(module)
        if divided is not None and len(ranks & {*dist.get_process_group_ranks(divided)}) > 1:
            raise ValueError(
                "branch_parallel has two ranks of one context-parallel group; accepted: a group "
                "with one rank of each of these"
            )
        if getattr(uncompiled(module), "is_cache_enabled", False):
            raise ValueError(
                f"branch_parallel is given, but {name} has a cache of diffusers, which needs all "
                "branches on one rank; accepted: no enable_cache"
            )


def _own_arguments(first: ForwardCall, second: ForwardCall) -> dict[str, Any] | None:
    """The second call's arguments that differ from the first's; None if the calls differ in more
    than that, so that the next second call cannot be predicted."""
    own = {k: v for k, v in second.kwargs.items() if not _is_same(v, first.kwargs.get(k))}
    alike = first.transformer == second.transformer and _are_alike(own, first.kwargs, some=True)
    shared = first.latents is second.latents and first.timestep is second.timestep
    same = len(first.args) == len(second.args) and all(map(_is_same, first.args, second.args))
    return own if alike and shared and same else None


def _arguments(call: ForwardCall) -> dict[Any, Any]:
    return dict(enumerate(call.args)) | call.kwargs


def _are_alike(one: dict[Any, Any], other: dict[Any, Any], *, some: bool = False) -> bool:
    """Whether arguments have the same names and values that may be equal. With `some`, `one` may
    have fewer names."""
    names = one.keys() <= other.keys() if some else one.keys() == other.keys()
    return names and all(_is_alike(value, other[name]) for name, value in one.items())


def _is_alike(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return _is_same(one, other)


def _is_same(one: Any, other: Any) -> bool:
    """Whether two arguments are the same tensor or equal plain values, without a host sync."""
    plain = (bool, int, float, str)
    return one is other or (isinstance(one, plain) and isinstance(other, plain) and one == other)
