"""What a run by a plan will hold in memory, told beforehand; and what a cap makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dit_accel.models.loading import LoadableModel
    from dit_accel.planning.plan import Plan
    from dit_accel.planning.prediction import PlanChoice
    from dit_accel.planning.profile import Profile


def cached_values(plan: Plan, parts: int) -> int:
    """Most tensors of the size of the latents that a run by a plan holds: every kept part, and the
    noise that it started from."""
    most = 0
    recent: list[int] = []  # a surprise reads them
    for step in range(plan.num_steps):
        if step not in plan.extrapolations:
            most = max(most, len({*plan.needed_steps(step - 1), *recent, step}))
            recent = [*recent[-1:], step]
    noise = any(served.noise_weight for served in plan.extrapolations.values())
    return most * parts + int(noise)


def peak_cached_values(choice: PlanChoice) -> int:
    """Of a decision's plan."""
    return cached_values(choice.plan, len(choice.branch_weights))


@dataclass(frozen=True)
class MemoryUse:
    """What a cap makes of all kept values, on an accelerator: bytes held there, how many of them in
    how few bits, and bytes in the CPU's memory."""

    held: int
    packed: int
    bits: int | None
    away: int


def memory_use(choice: PlanChoice, memory: int | None, size: int, width: int) -> MemoryUse:
    """Of a decision's tensors, each of `size` bytes and of values of `width` bytes, under a cap."""
    from dit_accel.core.quantization import OFFLOADED, choose_forms, packed_bytes, useful_bits

    bits = useful_bits(size // width, width, choice.min_bits)
    sizes = [size, *(packed_bytes(size // width, each) for each in bits)]
    forms = choose_forms([sizes] * peak_cached_values(choice), memory, offload=True)
    packed = [form for form in forms if form > 0]
    used = [bits[form - 1] for form in packed] + (bits[-1:] if OFFLOADED in forms else [])
    return MemoryUse(
        sum(sizes[form] for form in forms if form != OFFLOADED),
        sum(sizes[form] for form in packed),
        min(used, default=None),
        forms.count(OFFLOADED) * sizes[-1],
    )


def latent_bytes(model: LoadableModel, profile: Profile) -> int | None:
    """Of one tensor of the size of the latents, as this model was calibrated."""
    from dit_accel.cli.run.settings import component_config, read_strides

    identity, strides = profile.key, read_strides(model)
    transformer = component_config(model, "transformer") or component_config(model, "transformer_2")
    channels = transformer.get("out_channels") or transformer.get("in_channels")
    patch = transformer.get("patch_size", 1)
    pixels = strides.pixels_per_token // int(patch if isinstance(patch, int) else patch[-1])
    if not channels or not pixels:
        return None
    frames = (identity.frames - 1) // strides.temporal + 1
    area = (identity.height // pixels) * (identity.width // pixels)
    return int(channels) * frames * area * value_bytes(profile)


def value_bytes(profile: Profile) -> int:
    """Bytes of a value."""
    return 4 if profile.key.dtype == "float32" else 2


def capped_text(capped: MemoryUse) -> str:
    """What --cache-memory makes of what is held, in words."""
    from dit_accel.cli.run.summary import bytes_text

    packed = f", {bytes_text(capped.packed)} of them packed" if capped.packed else ""
    bits = f" to {capped.bits} bits" if capped.packed else ""
    away = f"; {bytes_text(capped.away)} wait on the CPU" if capped.away else ""
    where = " where an accelerator computes, and stay where the CPU does" if capped.away else ""
    return f"under --cache-memory {bytes_text(capped.held)}{packed}{bits}{away}{where}"
