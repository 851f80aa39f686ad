"""Two ranks compute one branch of guidance each, and exchange their predictions.

Goes in: the forwards of a step, one a branch. Comes out: the same predictions, on both ranks, in
the time of one forward. When a step's first forward is called, its second one is foreseen: it has
the same arguments but the text, which is the one of the step before, or of the last run. So the
first rank computes the first branch, the second rank the second, and an all-gather gives both to
both. A second forward that comes otherwise than foreseen is computed on both ranks, as is the first
one of all. It stands inside of the caches at the denoiser's output, and knows no model. Source: CFG
parallelism of xDiT (arXiv 2411.01738), which has a pipeline of its own for each model; this one
leaves the pipeline as it is.
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
        """The first branch's prediction; that of the second is there too."""
        other = ForwardCall(call.transformer, call.args, call.kwargs | own)
        output = forward((call, other)[dist.get_rank(self.group)])
        mine, form = taken(output)
        mine = mine.contiguous()
        both = [torch.empty_like(mine) for _ in range(2)]
        dist.all_gather(both, mine, group=self.group)
        self._foreseen = other, form.output(both[1])
        return form.output(both[0])

    def _holds(self, call: ForwardCall, foreseen: ForwardCall) -> bool:
        """Whether a call is the foreseen one. A new tensor is compared by value, in a host sync."""
        given, expected = _arguments(call), _arguments(foreseen)
        if call.transformer != foreseen.transformer or not _are_alike(given, expected):
            return False
        new = [(a, expected[k]) for k, a in given.items() if not _is_same(a, expected[k])]
        if not new:
            return True
        differs = torch.stack([(a != b).any() for a, b in new]).any().float()
        return not bool(Ranks(self.session.groups).mean(differs))

    def notes(self) -> tuple[str, ...]:
        """What a reader of the report must know of the last run."""
        shared = f"two ranks shared {self.shared_steps} of {self.steps} computed steps"
        rest = "the others had one branch, or a text that was not known before"
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
    own = {k: v for k, v in second.kwargs.items() if not _is_same(v, first.kwargs.get(k))}
    alike = first.transformer == second.transformer and _are_alike(own, first.kwargs, some=True)
    shared = first.latents is second.latents and first.timestep is second.timestep
    same = len(first.args) == len(second.args) and all(map(_is_same, first.args, second.args))
    return own if alike and shared and same else None


def _arguments(call: ForwardCall) -> dict[Any, Any]:
    return dict(enumerate(call.args)) | call.kwargs


def _are_alike(one: dict[Any, Any], other: dict[Any, Any], *, some: bool = False) -> bool:
    """Whether arguments have the same names (`some`: or fewer), and can be of the same value."""
    names = one.keys() <= other.keys() if some else one.keys() == other.keys()
    return names and all(_is_alike(value, other[name]) for name, value in one.items())


def _is_alike(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return _is_same(one, other)


def _is_same(one: Any, other: Any) -> bool:
    """The same tensor, or an equal plain value; nothing is read from the device."""
    plain = (bool, int, float, str)
    return one is other or (isinstance(one, plain) and isinstance(other, plain) and one == other)
