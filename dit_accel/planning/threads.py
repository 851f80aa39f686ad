"""Runs small CPU work on one thread.

In: a block or a function. Out: the same, with PyTorch's operations on one thread.
A search makes thousands of operations on small matrices. On several threads, each operation waits
for all threads: on two busy cores a search took 1 s instead of 0.06 s (research/LOG.md). Also, sums
depend on the number of threads, so processes that share one clip might choose different plans.
Knows PyTorch's number of threads, and nothing else. Source: ours.
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
