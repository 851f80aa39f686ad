"""One thread for work of the host that is too small to be shared.

A plan takes thousands of operations on small matrices. On many threads each of them waits for all
threads: on two busy cores a search took 1 s in place of 0.06 (research/LOG.md). And sums of several
threads depend on their number, so that processes of one clip might decide otherwise.
It knows PyTorch's number of threads, and nothing else. Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch's operations in the block, or in the decorated function, run on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
