"""Store a tensor in fewer bits: integers, and one scale per group of values.

A tensor comes in, a `Packed` goes out, and `unpack` restores the tensor approximately. Values are
divided into groups of g (a power of two), in memory order. Each group is rotated (random signs,
then the orthonormal Hadamard matrix), which spreads outliers. Then it is divided by its largest
value and rounded. With m = 2^(bits-1) - 1 the error of a group x, before the rounding to the dtype,
is at most

    |x - unpacked| <= sqrt(g) / 2 * largest / m <= sqrt(g) / (2 m) * |x|

If a value of a group is not finite, the group's scale is not finite, and no unpacked value of the
group is finite. Nothing is fitted to data. The module knows only tensors and numbers.
Source: rotation as in QuaRot (arXiv 2404.00456 §3), without its learned or fused parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from dit_accel.core.checks import require

BITS = (16, 8, 4)  # per packed value, most precise first
GROUP = 64
OFFLOADED = -1  # a form in `choose_forms`: the item moves to the CPU
_SCALE_BYTES = 4


@dataclass(frozen=True)
class Packed:
    """A packed tensor.

    Args:
        codes: `(G, g)` int16 or int8; with 4 bits `(G, g / 2)` uint8, two values per byte.
        scales: `(G,)` float32, >= 0; not finite if a value of the group was not.
        signs: `(g,)` float32, for the rotation; None: no rotation.
        bits: per value.
        shape, dtype: of the original tensor.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    signs: torch.Tensor | None
    bits: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales. The signs are not counted: all packed tensors share them."""
        return self.codes.nbytes + self.scales.nbytes

    @property
    def device(self) -> torch.device:
        """Device of the codes."""
        return self.codes.device

    def to(self, device: torch.device | str) -> Packed:
        """A copy on a device; itself if it is there already."""
        if torch.device(device) == self.device:
            return self
        signs = self.signs.to(device) if self.signs is not None else None
        return replace(
            self, codes=self.codes.to(device), scales=self.scales.to(device), signs=signs
        )

    def unpack(self) -> torch.Tensor:
        """The original tensor in its shape and dtype, within the module's error bound."""
        codes = _halves(self.codes) if self.bits == 4 else self.codes
        rows = codes.float() * self.scales[:, None]
        if self.signs is not None:
            rows = hadamard(rows) * self.signs
        return rows.flatten()[: self.shape.numel()].view(self.shape).to(self.dtype)


def pack(
    value: torch.Tensor, bits: int = 8, *, signs: torch.Tensor | None = None, group: int = GROUP
) -> Packed:
    """Round a tensor to integers, group by group.

    Args:
        value: any shape, floating point; computed in float32.
        bits: 16, 8 or 4.
        signs: `(group,)` of +1 and -1 on the value's device (`random_signs`); None: no rotation.
        group: values per scale, a power of two, at least 2; the last group is padded with 0.

    Raises:
        ValueError: an argument is not as above.

    Example:
        >>> pack(torch.tensor([3.0, -1.0]), 8, group=2).unpack()
        tensor([ 3.0000, -0.9921])
    """
    if not value.is_floating_point():
        raise ValueError(f"value has dtype {value.dtype}; accepted: floating point")
    require(bits in BITS, "bits", bits, ", ".join(map(str, BITS)))
    _check_group(group)
    if signs is not None and tuple(signs.shape) != (group,):
        raise ValueError(f"signs has shape {tuple(signs.shape)}; accepted: ({group},)")
    flat = value.detach().float().flatten()
    rows = F.pad(flat, (0, -len(flat) % group)).view(-1, group)
    if signs is not None:
        rows = hadamard(rows * signs)
    most = _largest_code(bits)
    scales = rows.abs().amax(1) / most
    divisors = torch.where(scales == 0, 1.0, scales)[:, None]
    codes = (rows / divisors).nan_to_num(0.0).round().clamp(-most, most)
    whole = codes.to(torch.int16 if bits == 16 else torch.int8)
    stored = _pairs(whole) if bits == 4 else whole
    return Packed(stored, scales, signs, bits, value.shape, value.dtype)


def packed_bytes(count: int, bits: int, group: int = GROUP) -> int:
    """The bytes that `count` values would take when packed."""
    groups = -(-count // group)
    return groups * (group * bits // 8 + _SCALE_BYTES)


def typical_error(bits: int, group: int = GROUP) -> float:
    """Relative RMS error for normally distributed values.

    The largest of g values is about sqrt(2 ln g) standard deviations, and the RMS error of rounding
    is one step / sqrt(12).
    """
    return math.sqrt(2 * math.log(group) / 12) / _largest_code(bits)


def random_signs(group: int = GROUP, seed: int = 0) -> torch.Tensor:
    """`(group,)` float32 of +1 and -1, from a private generator."""
    _check_group(group)
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (group,), generator=draw).float() * 2 - 1


def hadamard(rows: torch.Tensor) -> torch.Tensor:
    """Rows `(..., g)` times the orthonormal Hadamard matrix, in log2 g passes. The matrix is its
    own inverse."""
    size, span = rows.shape[-1], 1
    while span < size:
        pairs = rows.reshape(*rows.shape[:-1], -1, 2, span)
        one, other = pairs.unbind(-2)
        rows = torch.stack((one + other, one - other), -2).flatten(-3)
        span *= 2
    return rows / math.sqrt(size)


def choose_forms(sizes: Sequence[Sequence[int]], memory: int | None, *, offload: bool) -> list[int]:
    """Choose a form for every item, so that all items fit into the memory if they can.

    A form is an index into the item's sizes (0 is unpacked), or OFFLOADED. The oldest items shrink
    first, one form at a time.

    Args:
        sizes: per item, oldest first: the bytes in each form, unpacked first, then decreasing.
        memory: bytes for all items; None: no limit.
        offload: whether items may be offloaded if they do not fit in their smallest forms.

    Example:
        >>> choose_forms([[100, 50], [100, 50]], 160, offload=True)
        [1, 0]
    """
    forms = [0] * len(sizes)
    used = sum(item[0] for item in sizes)
    if memory is None:
        return forms
    for form in range(1, max(map(len, sizes), default=0)):
        for place, item in enumerate(sizes):
            if used <= memory:
                return forms
            if form < len(item):
                used += item[form] - item[forms[place]]
                forms[place] = form
    for place, item in enumerate(sizes if offload else ()):
        if used <= memory:
            return forms
        used -= item[forms[place]]
        forms[place] = OFFLOADED
    return forms


def useful_bits(count: int, itemsize: int, fewest: int) -> list[int]:
    """The numbers of bits >= `fewest` that save memory for `count` values of `itemsize` bytes, most
    bits first."""
    whole = count * itemsize
    return [bits for bits in BITS if bits >= fewest and packed_bytes(count, bits) < whole]


def _largest_code(bits: int) -> int:
    return 2 ** (bits - 1) - 1


def _check_group(group: int) -> None:
    valid = group >= 2 and not group & (group - 1)
    require(valid, "group", group, "a power of two, at least 2")


def _pairs(codes: torch.Tensor) -> torch.Tensor:
    """`(G, g)` int8 from -8 to 7 -> `(G, g / 2)` uint8."""
    high, low = (codes + 8).to(torch.uint8).chunk(2, 1)
    return high * 16 + low


def _halves(pairs: torch.Tensor) -> torch.Tensor:
    """The inverse of `_pairs`, int8."""
    return torch.cat((pairs // 16, pairs % 16), 1).to(torch.int8) - 8
