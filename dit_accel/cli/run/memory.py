"""Says whether a run fits in memory before its weights are loaded, and what would make it fit.

In: a checked model and settings. Out: text, and a record.
Knows the free memory of the device; `models/memory.py` computes the needed memory. On a CPU, the
memory of the running process counts too. Ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from dit_accel.cli.common.text import bytes_text
from dit_accel.core import measure
from dit_accel.core.generation import call_arguments
from dit_accel.models import memory, quantizing
from dit_accel.models.setup import OFFLOADS

if TYPE_CHECKING:
    from dit_accel.cli.common.text import Row
    from dit_accel.cli.run.settings import Settings
    from dit_accel.models.folder import LoadableModel
    from dit_accel.models.memory import MemoryEstimate

MOST_WAYS = 3  # that are named if a run does not fit


def forecast(model: LoadableModel, settings: Settings) -> MemoryEstimate:
    """The memory that the run needs. Several prompts of a layout run at once."""
    more: dict[str, Any] = {"prompt": list(settings.prompts)} if len(settings.prompts) > 1 else {}
    if more:
        more["generator"] = [torch.Generator("cpu").manual_seed(0) for _ in settings.prompts]
    return memory.forecast(
        model, settings.setup, settings.dtype,
        lambda pipe: call_arguments(pipe, settings.clip) | more,
    )  # fmt: skip


def needed(found: MemoryEstimate, device: str, offload: str) -> dict[str, int]:
    """The needed bytes by stage. On a CPU, offloading saves nothing, and the process counts too."""
    before = 0
    if device == "cpu":
        offload = "none"
        measure.reset_peak_memory(torch.device("cpu"))
        before = measure.peak_memory(torch.device("cpu")) or 0
    return {stage: size + before for stage, size in found.stages(offload).items()}


def record(found: MemoryEstimate, settings: Settings) -> dict[str, Any]:
    """The forecast of a run, JSON-able."""
    device = settings.device
    return {
        "stages": needed(found, device, settings.setup.offload),
        "free": measure.free_memory(torch.device(device)),
        "weights": {name: part.bytes for name, part in found.parts.items()},
        "activations": found.activations,
        "why": found.why,
    }


def announcement(found: MemoryEstimate, settings: Settings) -> str:
    """One line: bytes by stage, and the free memory."""
    sizes = needed(found, settings.device, settings.setup.offload)
    parts = ", ".join(f"{stage} {bytes_text(size)}" for stage, size in sizes.items())
    free = measure.free_memory(torch.device(settings.device))
    room = f"; {bytes_text(free)} free on {settings.device}" if free is not None else ""
    if not sizes:
        return f"not known{room} ({found.why})"
    return f"{parts}{room}" + (f" ({found.why})" if found.why else "")


def shortage(found: MemoryEstimate, model: LoadableModel, settings: Settings) -> str | None:
    """A text on what does not fit, and what would; None if the run fits or nothing is known."""
    free = measure.free_memory(torch.device(settings.device))
    sizes = needed(found, settings.device, settings.setup.offload)
    worst = max(sizes, key=sizes.__getitem__, default="")
    if free is None or not worst or sizes[worst] <= _room(settings, free):
        return None
    ways: list[str] = []
    for words, changed in _changes(settings):
        most = max(
            needed(forecast(model, changed), settings.device, changed.setup.offload).values()
        )
        if most <= _room(settings, free):
            ways.append(f"{words} ({bytes_text(most)})")
        if len(ways) == MOST_WAYS:
            break
    instead = " or ".join(ways) or "a smaller --height, --width or --frames"
    return f"{worst} will not fit; would fit: {instead}"


def rows(found: MemoryEstimate, settings: Settings) -> list[Row]:
    """For each way of offloading, bytes by stage."""
    ways = OFFLOADS if settings.device != "cpu" else OFFLOADS[:1]
    lines = []
    for way in ways:
        sizes = needed(found, settings.device, way)
        parts = ", ".join(f"{stage} {bytes_text(size)}" for stage, size in sizes.items())
        lines.append((f"--offload {way}"[:15], parts))
    how = "weights by the files' headers, activations traced without weights"
    return [("memory", announcement(found, settings)), *lines, ("", how)]


def _room(settings: Settings, free: int) -> int:
    """The room on a device. On a CPU, the memory of the process is not free, and counts as
    needed."""
    if settings.device != "cpu":
        return free
    return free + (measure.peak_memory(torch.device("cpu")) or 0)


def _changes(settings: Settings) -> Iterator[tuple[str, Settings]]:
    """Ways to need less, the cheapest first."""
    setup = settings.setup
    offloads = OFFLOADS[1:] if settings.device != "cpu" and setup.offload == "none" else ()
    tiled = dataclasses.replace(setup, vae_tiling=True)
    if not setup.vae_tiling:
        yield "--vae-tiling", dataclasses.replace(settings, setup=tiled)
    if settings.dtype == "float32":
        yield "--dtype bfloat16", dataclasses.replace(settings, dtype="bfloat16")
    for method in quantizing.available(settings.device) if setup.quantize is None else ():
        less = dataclasses.replace(setup, quantize=method)
        yield f"--quantize {method}", dataclasses.replace(settings, setup=less)
    for way in offloads:
        moved = dataclasses.replace(setup, offload=way, compile=False)
        yield f"--offload {way}", dataclasses.replace(settings, setup=moved)
        if not setup.vae_tiling:
            both = dataclasses.replace(moved, vae_tiling=True)
            words = f"--offload {way} --vae-tiling"
            yield words, dataclasses.replace(settings, setup=both)
