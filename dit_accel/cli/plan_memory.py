"""Computes the memory that a planned run needs for cached values, with and without a limit.

In: a plan, a model's configuration, a limit. Out: numbers of tensors and bytes.
Knows what the executor caches; runs nothing. Ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dit_accel.cli.common.text import bytes_text

if TYPE_CHECKING:
    from dit_accel.models.folder import LoadableModel
    from dit_accel.planning.choice import PlanChoice
    from dit_accel.planning.plan import Plan
    from dit_accel.planning.profile import Profile


def cached_values(plan: Plan, branches: int) -> int:
    """The largest number of tensors of the latents' size that a run caches at once.

    These are the predictions that are still needed, of every branch, and the initial noise.
    """
    most = 0
    recent: list[int] = []  # the last two computed steps: the guard extrapolates from them
    for step in range(plan.num_steps):
        if step not in plan.extrapolations:
            most = max(most, len({*plan.needed_steps(step - 1), *recent, step}))
            recent = [*recent[-1:], step]
    return most * branches + int(plan.weighs_noise)


def peak_cached_values(choice: PlanChoice) -> int:
    """The same for a chosen plan."""
    return cached_values(choice.plan, len(choice.branch_weights))


@dataclass(frozen=True)
class MemoryUse:
    """The memory of cached values under a limit, on a GPU.

    Args:
        gpu: bytes in GPU memory.
        packed: the part of these bytes that is packed.
        bits: the number of bits that they are packed to; None: nothing is packed.
        offloaded: bytes in the CPU's memory.
    """

    gpu: int
    packed: int
    bits: int | None
    offloaded: int

    def describe(self) -> str:
        """The memory as text."""
        text = f"with --cache-memory {bytes_text(self.gpu)} in GPU memory"
        if self.packed:
            text += f", {bytes_text(self.packed)} of them packed to {self.bits} bits"
        if self.offloaded:
            text += f", {bytes_text(self.offloaded)} moved to the CPU (if the model runs on a GPU)"
        return text


def memory_use(choice: PlanChoice, limit: int | None, size: int, width: int) -> MemoryUse:
    """The memory of a plan's tensors under a limit. Each has `size` bytes, and each value `width`
    bytes."""
    from dit_accel.core.quantization import OFFLOADED, choose_forms, packed_bytes, useful_bits

    bits = useful_bits(size // width, width, choice.min_bits)
    sizes = [size, *(packed_bytes(size // width, each) for each in bits)]
    forms = choose_forms([sizes] * peak_cached_values(choice), limit, offload=True)
    packed = [form for form in forms if form > 0]
    used = [bits[form - 1] for form in packed] + (bits[-1:] if OFFLOADED in forms else [])
    return MemoryUse(
        sum(sizes[form] for form in forms if form != OFFLOADED),
        sum(sizes[form] for form in packed),
        min(used, default=None),
        forms.count(OFFLOADED) * sizes[-1],
    )


def latent_bytes(model: LoadableModel, profile: Profile) -> int | None:
    """The bytes of one tensor of the latents' size, as calibrated; None if unknown."""
    from dit_accel.cli.run.settings import latent_pixels, read_strides, transformer_config

    key, config = profile.key, transformer_config(model)
    channels = config.get("out_channels") or config.get("in_channels")
    pixels = latent_pixels(model)
    if not channels or not pixels:
        return None
    frames = (key.frames - 1) // read_strides(model).temporal + 1
    area = (key.height // pixels) * (key.width // pixels)
    return int(channels) * frames * area * value_bytes(profile)


def value_bytes(profile: Profile) -> int:
    """The bytes of one value."""
    return 4 if profile.key.dtype == "float32" else 2
