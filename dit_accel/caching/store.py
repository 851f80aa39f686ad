"""Stores a run's tensors under a memory cap: as they are, quantized, or in the CPU's memory.

Goes in: values by role, branch and step. Comes out: the same tensors, dequantized and moved back if
necessary, and the bytes that they took. Whenever a value is stored, the oldest values are quantized
to the most bits that fit, down to the plan's `min_bits`. Values that still do not fit are moved to
the CPU's memory, if the device has a memory of its own. The module has no formula:
`core/quantization.py` rounds, and chooses the form of each value. Ours.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import torch

from dit_accel.caching.engine import CacheMemory
from dit_accel.core import quantization
from dit_accel.core.quantization import BITS, OFFLOADED, Packed, useful_bits


class TensorStore(dict[tuple[str, str], "BranchStore"]):
    """All values of one executor by role and branch, and each role's starting noise.

    `limit` is the number of bytes that values may take on the device; None: no bound.
    """

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.noise = BranchStore(self)
        self.device = torch.device("cpu")
        self._signs: torch.Tensor | None = None
        self.begin()

    def begin(self, min_bits: int = BITS[0]) -> None:
        """A run begins: reset the counts. Values are packed into `min_bits` or more."""
        self.min_bits = min_bits
        self.packed_bits: int | None = None  # the fewest bits that were used
        self._peaks = [0, 0, 0]  # bytes: on the device, of these packed, and on the CPU

    @property
    def memory(self) -> CacheMemory:
        cached, packed, offloaded = self._peaks
        return CacheMemory(cached, packed, self.packed_bits, offloaded)

    def clear(self) -> None:
        """Free everything."""
        super().clear()
        self.noise.clear()
        self._signs = None

    def branch(self, role: str, branch: str) -> BranchStore:
        """The values of a branch."""
        return self.setdefault((role, branch), BranchStore(self))

    def places(self) -> list[tuple[tuple[str, str], int]]:
        """Role, branch and step of every value except the noise, in the order of `sums`."""
        return [(key, step) for key, values in self.items() for step in values]

    def sums(self) -> list[torch.Tensor]:
        """The sums of the values at `places`, then of the noise: 0-dimensional float32, on the
        device. A sum is finite if the whole value is. For a value that was moved to the CPU, the
        sum was computed before the move."""
        return [
            values.totals[name] if name in values.totals else _total(value)
            for values in (*self.values(), self.noise)
            for name, value in values.raw.items()
        ]

    def fit(self, device: torch.device) -> None:
        """A value was stored on this device: make all values fit, and update the peaks."""
        self.device = device
        places = self._by_age()
        if self.limit is not None:
            sizes = [self._sizes(values.raw[name]) for values, name in places]
            forms = quantization.choose_forms(sizes, self.limit, offload=device.type != "cpu")
            for (values, name), form in zip(places, forms, strict=True):
                value = values.raw[name]
                if form == OFFLOADED and value.device == device:
                    values.totals[name] = _total(value)
                values.raw[name] = self._in_form(value, form)
        self._count([values.raw[name] for values, name in places])

    def _by_age(self) -> list[tuple[BranchStore, Any]]:
        """All values with their names: first the noise, then by step."""
        cached = sorted((step, key) for key, step in self.places())
        return [
            *((self.noise, role) for role in self.noise),
            *((self[key], step) for step, key in cached),
        ]

    def _sizes(self, value: torch.Tensor | Packed) -> list[int]:
        """The value's bytes as it is, then in every allowed form; 0 if it is on the CPU."""
        if value.device != self.device:
            return [0]
        count, width = value.shape.numel(), value.dtype.itemsize
        bits = useful_bits(count, width, self.min_bits)
        return [count * width, *(quantization.packed_bytes(count, b) for b in bits)]

    def _in_form(self, value: torch.Tensor | Packed, form: int) -> torch.Tensor | Packed:
        """A value in the form with this index in `_sizes`. A value that is packed or on the CPU
        stays so."""
        if value.device != self.device or form == 0:
            return value
        forms = useful_bits(value.shape.numel(), value.dtype.itemsize, self.min_bits)
        if form == OFFLOADED:
            return (self._packed(value, forms[-1]) if forms else value).to("cpu")
        return self._packed(value, forms[form - 1])

    def _packed(self, value: torch.Tensor | Packed, bits: int) -> Packed:
        if isinstance(value, Packed):
            if value.bits <= bits:
                return value
            value = value.unpack()
        if self._signs is None or self._signs.device != value.device:
            self._signs = quantization.random_signs().to(value.device)
        self.packed_bits = min(bits, self.packed_bits or bits)
        return quantization.pack(value, bits, signs=self._signs)

    def _count(self, values: list[torch.Tensor | Packed]) -> None:
        here = [value for value in values if value.device == self.device]
        sizes = (
            sum(value.nbytes for value in here),
            sum(value.nbytes for value in here if isinstance(value, Packed)),
            sum(value.nbytes for value in values if value.device != self.device),
        )
        self._peaks = [max(pair) for pair in zip(self._peaks, sizes, strict=True)]

    def notes(self) -> tuple[str, ...]:
        """A note if the cap was exceeded, with the reason."""
        cached = self.memory.cached_bytes
        if self.limit is None or cached <= self.limit:
            return ()
        bits = f"packed to {self.packed_bits} bits" if self.packed_bits else "not packed"
        finer = (
            "" if self.min_bits == BITS[-1] else
            "With fewer bits, the packing error would be too large beside the plan's own. "
        )  # fmt: skip
        return (
            f"cache_memory is {self.limit} bytes, but cached values took {cached} bytes, {bits}. "
            f"{finer}Values are not moved to the CPU, because the model itself is there.",
        )


class BranchStore(MutableMapping[Any, torch.Tensor]):
    """Values by step (the noise: by role). They are stored in `raw`, and read as tensors on the
    device."""

    def __init__(self, store: TensorStore) -> None:
        self._store = store
        self.raw: dict[Any, torch.Tensor | Packed] = {}
        self.totals: dict[Any, torch.Tensor] = {}  # sums of values on the CPU; on the device

    def __getitem__(self, name: Any) -> torch.Tensor:
        value = self.raw[name].to(self._store.device)
        return value.unpack() if isinstance(value, Packed) else value

    def __setitem__(self, name: Any, value: torch.Tensor) -> None:
        self.totals.pop(name, None)
        self.raw[name] = value
        self._store.fit(value.device)

    def __delitem__(self, name: Any) -> None:
        del self.raw[name]
        self.totals.pop(name, None)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def holds_only(self, shape: torch.Size) -> bool:
        """Whether all values have this shape. Nothing is unpacked."""
        return all(value.shape == shape for value in self.raw.values())


def _total(value: torch.Tensor | Packed) -> torch.Tensor:
    return (value.scales if isinstance(value, Packed) else value).sum(dtype=torch.float32)
