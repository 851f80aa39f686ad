"""Stores a run's tensors under a memory cap: as they are, quantized, or in the CPU's memory.

Goes in: values by role, branch and step. Comes out: the same tensors, dequantized and brought back
where they were quantized or moved, and the bytes that they took. Whenever a value is stored, the
oldest ones are quantized to the most bits that fit, down to the plan's `min_bits`. What still does
not fit is moved to the CPU's memory, where that is another one. It holds no formula:
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
    """All values of one executor, by role and branch, and the noise that each role started from.

    `limit` are the bytes that values may take on the device; None: no bound.
    """

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.noise = BranchStore(self)
        self.device = torch.device("cpu")
        self._signs: torch.Tensor | None = None
        self.begin()

    def begin(self, min_bits: int = BITS[0]) -> None:
        """A run begins: count anew, and pack values into so few bits at most."""
        self.min_bits = min_bits
        self.packed_bits: int | None = None  # the fewest that were used
        self._peaks = [0, 0, 0]  # bytes on the device, packed ones of these, and moved ones

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
        """Role, branch and step of every value but the noise, in the order of `sums`."""
        return [(key, step) for key, values in self.items() for step in values]

    def sums(self) -> list[torch.Tensor]:
        """Of the values at `places`, then of the noise, 0-dimensional float32 on the device: finite
        where the whole value is. A moved value was added up before it was moved."""
        return [
            values.totals[name] if name in values.totals else _total(value)
            for values in (*self.values(), self.noise)
            for name, value in values.raw.items()
        ]

    def fit(self, device: torch.device) -> None:
        """A value was stored on this device: make all fit, and count."""
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
        """Every value, the noise first, then by step."""
        cached = sorted((step, key) for key, step in self.places())
        return [
            *((self.noise, role) for role in self.noise),
            *((self[key], step) for step, key in cached),
        ]

    def _sizes(self, value: torch.Tensor | Packed) -> list[int]:
        """Bytes as it is, and in every form that is allowed; a moved value takes none."""
        if value.device != self.device:
            return [0]
        count, width = value.shape.numel(), value.dtype.itemsize
        bits = useful_bits(count, width, self.min_bits)
        return [count * width, *(quantization.packed_bytes(count, b) for b in bits)]

    def _in_form(self, value: torch.Tensor | Packed, form: int) -> torch.Tensor | Packed:
        """A value in the form of that index in `_sizes`; what was packed or moved stays so."""
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
        """Where the cap was exceeded, and why."""
        cached = self.memory.cached_bytes
        if self.limit is None or cached <= self.limit:
            return ()
        bits = f"in {self.packed_bits} bits" if self.packed_bits else "as they are"
        finer = (
            "" if self.min_bits == BITS[-1] else
            "fewer bits would cost more than the plan itself, and "
        )  # fmt: skip
        return (
            f"cache_memory is {self.limit} bytes, and cached values took {cached}, {bits}; "
            f"{finer}nothing is moved where the CPU itself computes.",
        )


class BranchStore(MutableMapping[Any, torch.Tensor]):
    """Values by step (the noise by role), read as tensors on the device; stored in `raw`."""

    def __init__(self, store: TensorStore) -> None:
        self._store = store
        self.raw: dict[Any, torch.Tensor | Packed] = {}
        self.totals: dict[Any, torch.Tensor] = {}  # sums of moved values, on the device

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
        """Whether all values have this shape; nothing is unpacked for it."""
        return all(value.shape == shape for value in self.raw.values())


def _total(value: torch.Tensor | Packed) -> torch.Tensor:
    return (value.scales if isinstance(value, Packed) else value).sum(dtype=torch.float32)
