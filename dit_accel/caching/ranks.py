"""Makes the processes that compute one clip together decide the same.

Goes in: the process groups of a run, and what one rank measured or decided. Comes out: the same
result on every rank. With context parallelism each rank sees only its part of the tokens. It would
measure other drifts than the others, decide otherwise, and wait forever in the next collective.
Without a group everything is returned as it is, without a host sync. It knows no technique. Ours;
there is no source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Decided = TypeVar("Decided")


class Ranks:
    """The ranks of some process groups. Numbers are reduced over one group after the other."""

    def __init__(self, groups: Sequence[Any] = ()) -> None:
        # Two experts may have groups of their own over the same ranks; one of them is enough.
        of_ranks = {tuple(dist.get_process_group_ranks(group)): group for group in groups}
        self.groups = tuple(of_ranks.values())

    def __bool__(self) -> bool:
        return bool(self.groups)

    def mean(self, numbers: torch.Tensor) -> torch.Tensor:
        """The mean over the ranks, in the dtype and on the device of `numbers`.

        The ratio of two means equals the ratio of the two sums. Equal numbers come back bit-equal,
        because they are added in float64. A NaN on one rank gives NaN on all.

        Args:
            numbers: any shape, floating point; the same shape on every rank.

        Example:
            >>> Ranks().mean(torch.tensor([1.0, 2.0]))
            tensor([1., 2.])
        """
        for group in self.groups:
            wide = numbers.to(_device_of(group, numbers.device), torch.float64)
            dist.all_reduce(wide, group=group)
            numbers = (wide / dist.get_world_size(group)).to(numbers.device, numbers.dtype)
        return numbers

    def of_first(self, decide: Callable[[], Decided], device: torch.device) -> Decided:
        """The result of `decide` on the first rank, on every rank. An error is raised on all.

        Args:
            decide: called only on the first rank.
            device: of the run.
        """
        if not self.groups:
            return decide()
        found = _outcome(decide) if all(dist.get_rank(g) == 0 for g in self.groups) else None
        # One group after the other. In the first group, the first rank of all sends the result. In
        # the next groups, ranks that have received it send it on.
        for group in self.groups:
            sent = [found]
            first = dist.get_global_rank(group, 0)
            where = _device_of(group, device)
            dist.broadcast_object_list(sent, src=first, group=group, device=where)
            found = found if dist.get_rank(group) == 0 else sent[0]
        value, error = found or (None, None)
        if error is not None:
            raise error
        return value  # type: ignore[return-value]


def _outcome(decide: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return decide(), None
    except Exception as error:  # send it: the other ranks would wait forever for a result
        return None, error


def _device_of(group: Any, device: torch.device) -> torch.device:
    """The device on which a group can reduce: NCCL needs CUDA, gloo takes every device."""
    if dist.get_backend(group) == "nccl" and device.type != "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return device
