"""What a run by a plan will hold in memory, told beforehand; and what a cap makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dit_accel.loading import Model
    from dit_accel.outlook import Decision
    from dit_accel.plans import Plan
    from dit_accel.profile import Profile


def held(plan: Plan, parts: int) -> int:
    """Most tensors of the size of the latents that a run by a plan holds: every kept part, and the
    noise that it started from."""
    most = 0
    recent: list[int] = []  # a surprise reads them
    for step in range(plan.total):
        if step not in plan.forecasts:
            most = max(most, len({*plan.reads(step - 1), *recent, step}))
            recent = [*recent[-1:], step]
    noise = any(served.start for served in plan.forecasts.values())
    return most * parts + int(noise)


def most_held(decision: Decision) -> int:
    """Of a decision's plan."""
    return held(decision.plan, len(decision.mix))


@dataclass(frozen=True)
class Arranged:
    """What a cap makes of all kept values, on an accelerator: bytes held there, how many of them in
    how few bits, and bytes in the CPU's memory."""

    held: int
    packed: int
    bits: int | None
    away: int


def arranged(decision: Decision, memory: int | None, size: int, width: int) -> Arranged:
    """Of a decision's tensors, each of `size` bytes and of values of `width` bytes, under a cap."""
    from dit_accel.packing import AWAY, arrange, forms_of, packed_bytes

    bits = forms_of(size // width, width, decision.fewest_bits)
    sizes = [size, *(packed_bytes(size // width, each) for each in bits)]
    forms = arrange([sizes] * most_held(decision), memory, away=True)
    packed = [form for form in forms if form > 0]
    used = [bits[form - 1] for form in packed] + (bits[-1:] if AWAY in forms else [])
    return Arranged(
        sum(sizes[form] for form in forms if form != AWAY),
        sum(sizes[form] for form in packed),
        min(used, default=None),
        forms.count(AWAY) * sizes[-1],
    )


def latent_bytes(model: Model, profile: Profile) -> int | None:
    """Of one tensor of the size of the latents, as this model was calibrated."""
    from dit_accel.cli.settings import component_config, read_strides

    identity, strides = profile.identity, read_strides(model)
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
    return 4 if profile.identity.dtype == "float32" else 2


def capped_text(capped: Arranged) -> str:
    """What --cache-memory makes of what is held, in words."""
    from dit_accel.cli.summary import bytes_text

    packed = f", {bytes_text(capped.packed)} of them packed" if capped.packed else ""
    bits = f" to {capped.bits} bits" if capped.packed else ""
    away = f"; {bytes_text(capped.away)} wait on the CPU" if capped.away else ""
    where = " where an accelerator computes, and stay where the CPU does" if capped.away else ""
    return f"under --cache-memory {bytes_text(capped.held)}{packed}{bits}{away}{where}"
