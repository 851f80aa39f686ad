"""Ends the process groups of a script that torchrun started, before Python ends.

In: nothing; the caller has dropped what runs on several ranks. Out: no group, and no thread of one.
Each group of gloo has threads, which still hold the tensors of the last exchange for a moment, and
need Python to let them go. `destroy_process_group` forgets the groups, but a group that something
still refers to keeps its threads: the meshes of a divided pipeline do, and the pipeline is in
reference cycles. On a busy machine such a thread then met an interpreter that was ending, and the
process died with SIGABRT ("terminate called without an active exception"), after all its results. A
barrier does not help: it is an exchange too. Knows torch.distributed. Source: ours.
"""

from __future__ import annotations

import gc

import torch.distributed as dist


def end() -> None:
    """Destroy all groups; the last reference to one waits for its threads."""
    gc.collect()  # what refers to a group in a cycle
    dist.destroy_process_group()
