"""Copies numbers from the device to the host while the device goes on working.

Goes in: a tensor of a few numbers. Comes out: a `HostCopy`; its numbers arrive when the device
reaches the copy in its queue. On CUDA the copy goes to pinned memory, and an event marks its end.
So `tolist` waits only for this copy, and not for work that was queued after it. On other devices
the copy is made at once. It knows no technique. Ours; there is no source.
"""

from __future__ import annotations

import torch


class HostCopy:
    """Numbers on their way to the host, of any shape."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        # Only on CUDA: not every other device can mark the end of an asynchronous copy.
        self._numbers = numbers.to("cpu", non_blocking=numbers.is_cuda)
        if numbers.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(numbers.device))

    def tolist(self) -> list[float]:
        """The numbers. Waits until they have arrived."""
        if self._copied is not None:
            self._copied.synchronize()
        found: list[float] = self._numbers.tolist()
        return found
