"""A tensor in fewer bits: whole numbers and a scale a group, rotated first against outliers.

Values are taken in memory order, in groups of a power of two. A group is rotated (random signs,
then the orthonormal Hadamard matrix, so that one large value becomes many middling ones), divided
by its largest and rounded. Nothing is learnt from data: signs come from a private generator.

What rounding leaves of a group x of g values, with m = 2^(bits-1) - 1 steps on each side: in the
rotated frame at most half a step, so in norm

    |x - unpacked| <= sqrt(g) / 2 * largest / m <= sqrt(g) / (2 m) * |x|,

`largest` being that of the rotated group, which is never above |x|; plus the rounding to the dtype.
Once a rotation has made values alike it is about sqrt(2 ln g / g) |x| (`typical_error`). A group
with a value that is not finite comes back without a finite value, and its scale tells.

Knows tensors and numbers. Sources: the rotation as in QuaRot (arXiv 2404.00456 §3), without its
learnt or fused parts; groups of their own scale are common practice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

BITS = (16, 8, 4)  # of a packed value, from the finest
GROUP = 64
OFFLOADED = -1  # as `choose_forms` says it of what must leave
_SCALE_BYTES = 4


@dataclass(frozen=True)
class Packed:
    """A packed tensor.

    Args:
        codes: `(G, g)` int16 or int8; of 4 bits `(G, g / 2)` uint8, two values a byte.
        scales: `(G,)` float32, >= 0; not finite where a value of the group was not.
        signs: `(g,)` float32 of the rotation; None: there was none.
        bits: of a value.
        shape, dtype: of what was packed.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    signs: torch.Tensor | None
    bits: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Of codes and scales; the signs are shared."""
        return self.codes.nbytes + self.scales.nbytes

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.codes.device

    def to(self, device: torch.device | str) -> Packed:
        """The same elsewhere; itself where it is there already."""
        if torch.device(device) == self.device:
            return self
        signs = self.signs.to(device) if self.signs is not None else None
        codes, scales = self.codes.to(device), self.scales.to(device)
        return Packed(codes, scales, signs, self.bits, self.shape, self.dtype)

    def unpack(self) -> torch.Tensor:
        """Of the packed tensor's shape and dtype, as near as the module says."""
        codes = _halves(self.codes) if self.bits == 4 else self.codes
        rows = codes.float() * self.scales[:, None]
        if self.signs is not None:
            rows = hadamard(rows) * self.signs
        return rows.flatten()[: self.shape.numel()].view(self.shape).to(self.dtype)


def pack(
    value: torch.Tensor, bits: int = 8, *, signs: torch.Tensor | None = None, group: int = GROUP
) -> Packed:
    """Round a tensor to whole numbers, group by group.

    Args:
        value: any shape, floating point; computed in float32.
        bits: 16, 8 or 4.
        signs: `(group,)` of +1 and -1 on the value's device (`random_signs`); None: no rotation.
        group: values of one scale, a power of two, at least 2; the last one is filled up with 0.

    Raises:
        ValueError: naming the argument.
    """
    if not value.is_floating_point():
        raise ValueError(f"value is of {value.dtype}; accepted: floating point")
    if bits not in BITS:
        raise ValueError(f"bits is {bits}; accepted: {', '.join(map(str, BITS))}")
    _check_group(group)
    if signs is not None and tuple(signs.shape) != (group,):
        raise ValueError(f"signs has shape {tuple(signs.shape)}; accepted: ({group},)")
    flat = value.detach().float().flatten()
    rows = F.pad(flat, (0, -len(flat) % group)).view(-1, group)
    if signs is not None:
        rows = hadamard(rows * signs)
    scales = rows.abs().amax(1) / _most(bits)
    divisors = torch.where(scales == 0, 1.0, scales)[:, None]
    codes = (rows / divisors).nan_to_num(0.0).round().clamp(-_most(bits), _most(bits))
    whole = codes.to(torch.int16 if bits == 16 else torch.int8)
    stored = _pairs(whole) if bits == 4 else whole
    return Packed(stored, scales, signs, bits, value.shape, value.dtype)


def packed_bytes(count: int, bits: int, group: int = GROUP) -> int:
    """What so many values take once packed, without packing them."""
    groups = -(-count // group)
    return groups * (group * bits // 8 + _SCALE_BYTES)


def typical_error(bits: int, group: int = GROUP) -> float:
    """Relative root mean square error of normal values: the largest of g is about sqrt(2 ln g)
    deviations away, and rounding is off by a step over sqrt(12)."""
    return math.sqrt(2 * math.log(group) / 12) / _most(bits)


def random_signs(group: int = GROUP, seed: int = 0) -> torch.Tensor:
    """`(group,)` float32 of +1 and -1, from a private generator."""
    _check_group(group)
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (group,), generator=draw).float() * 2 - 1


def hadamard(rows: torch.Tensor) -> torch.Tensor:
    """Rows `(..., g)` times the orthonormal Hadamard matrix, which is its own inverse; by log2 g
    sums and differences of halves."""
    size, span = rows.shape[-1], 1
    while span < size:
        pairs = rows.reshape(*rows.shape[:-1], -1, 2, span)
        one, other = pairs.unbind(-2)
        rows = torch.stack((one + other, one - other), -2).flatten(-3)
        span *= 2
    return rows / math.sqrt(size)


def choose_forms(sizes: Sequence[Sequence[int]], memory: int | None, *, offload: bool) -> list[int]:
    """Which form every item takes for all of them to fit: the first that is enough, oldest first.

    Args:
        sizes: by item, oldest first: its bytes in every form, as it is and then ever smaller.
        memory: bytes that all may take; None: no bound.
        offload: whether items may leave, where their smallest forms are still too large.

    Returns:
        by item the form, 0 as it is; OFFLOADED where it leaves. If it does not fit all the same,
        every item is in its smallest form.
    """
    forms = [0] * len(sizes)
    held = sum(item[0] for item in sizes)
    if memory is None:
        return forms
    for form in range(1, max(map(len, sizes), default=0)):
        for place, item in enumerate(sizes):
            if held <= memory:
                return forms
            if form < len(item):
                held += item[form] - item[forms[place]]
                forms[place] = form
    for place, item in enumerate(sizes if offload else ()):
        if held <= memory:
            return forms
        held -= item[forms[place]]
        forms[place] = OFFLOADED
    return forms


def useful_bits(count: int, itemsize: int, fewest: int) -> list[int]:
    """Bits of the forms that save something of so many values of `itemsize` bytes, finest first.

    Args:
        fewest: bits that a value may be packed into.
    """
    whole = count * itemsize
    return [bits for bits in BITS if bits >= fewest and packed_bytes(count, bits) < whole]


def _most(bits: int) -> int:
    return 2 ** (bits - 1) - 1


def _check_group(group: int) -> None:
    if group < 2 or group & (group - 1):
        raise ValueError(f"group is {group}; accepted: a power of two, at least 2")


def _pairs(codes: torch.Tensor) -> torch.Tensor:
    """`(G, g)` int8 from -8 to 7 -> `(G, g / 2)` uint8."""
    high, low = (codes + 8).to(torch.uint8).chunk(2, 1)
    return high * 16 + low


def _halves(pairs: torch.Tensor) -> torch.Tensor:
    """The same back, int8."""
    return torch.cat((pairs // 16, pairs % 16), 1).to(torch.int8) - 8
