"""Several processes that compute one clip together, on the CPU with gloo; forked, so quick.

`on_ranks(work, count)` calls `work(rank)` in each, and returns what they returned, by rank. A rank
that hangs ends the test.
"""

from __future__ import annotations

import datetime
import multiprocessing
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import pytest
import torch
import torch.distributed as dist
from tiny import CALL

SECONDS = 60
STEPS = 8
# 12 tokens, so that two ranks have 6 each.
DIVISIBLE: dict[str, Any] = {
    **CALL, "height": 32, "width": 32, "num_inference_steps": STEPS, "output_type": "latent",
}  # fmt: skip


has_context_parallelism = pytest.mark.skipif(
    not hasattr(diffusers, "ContextParallelConfig"), reason="this diffusers divides no clip"
)


def on_ranks(work: Callable[[int], Any], count: int = 2, seconds: int = SECONDS) -> list[Any]:
    """What `work(rank)` returns on each of `count` ranks; a failure on one fails the test."""
    if sys.platform != "linux":
        pytest.skip("forks processes that use torch: Linux only")
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(count)]
        ranks = [
            context.Process(target=_work, args=(work, rank, count, Path(folder) / "store", sender))
            for rank, (_, sender) in enumerate(pipes)
        ]
        for one in ranks:
            one.start()
        try:
            found = [
                pickle.loads(receiver.recv_bytes())
                if receiver.poll(seconds)
                else (None, f"rank {rank} hangs")
                for rank, (receiver, _) in enumerate(pipes)
            ]
        finally:
            for one in ranks:
                one.kill()
                one.join()
    for _, failure in found:
        assert failure is None, failure
    return [value for value, _ in found]


def _work(work: Callable[[int], Any], rank: int, count: int, store: Path, sender: Any) -> None:
    found: tuple[Any, str | None]
    timeout = datetime.timedelta(seconds=SECONDS)
    try:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo", init_method=store.as_uri(), rank=rank, world_size=count, timeout=timeout
        )
        found = work(rank), None
    except BaseException:
        found = None, f"rank {rank}: {traceback.format_exc()}"
    sender.send_bytes(pickle.dumps(found))  # a tensor too, not only the place where it is


def divide(module: Any, **config: Any) -> None:
    """Enable context parallelism; diffusers divides by the number of accelerators, here none."""
    from diffusers import ContextParallelConfig

    with mock.patch.object(torch.accelerator, "device_count", return_value=1):
        module.enable_parallelism(config=ContextParallelConfig(**config))


def latents(pipe: Any, seed: int = 0, **changes: Any) -> torch.Tensor:
    """Of a clip whose tokens can be divided."""
    call = DIVISIBLE | changes
    frames: torch.Tensor = pipe(**call, generator=torch.Generator().manual_seed(seed)).frames
    return frames
