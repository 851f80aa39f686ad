"""Copies numbers from the device to the host while the device goes on.

Goes in: a tensor of a few numbers. Comes out: a `HostCopy`, whose numbers are there once the device
has come so far. On CUDA the copy goes to pinned memory and an event marks its end, so that `tolist`
waits for this copy alone, and not for what was queued after it. Elsewhere it is made at once. It
knows no technique. Ours; there is no source.
"""

from __future__ import annotations

import torch


class HostCopy:
    """Numbers on their way to the host, of any shape."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        # Other devices than CUDA's do not all mark the end of such a copy.
        self._numbers = numbers.to("cpu", non_blocking=numbers.is_cuda)
        if numbers.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(numbers.device))

    def tolist(self) -> list[float]:
        """The numbers; waits until they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        found: list[float] = self._numbers.tolist()
        return found
