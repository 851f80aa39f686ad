"""Keeps a run's values under a cap of memory: as they are, in fewer bits, or in the CPU's memory.

Every value lies on a shelf, which reads like a dictionary of tensors: what was packed is unpacked
and what was moved is brought back when it is read. The cap is looked at whenever a value is put
down. The oldest are packed first, into the finest form that is enough: that costs no transfer and
no wait for the device. What does not fit even so is moved, where there is somewhere else to move it
to. How few bits are allowed is told by the plan (`outlook.Decision`): what packing leaves must be
below what the plan leaves.

Holds no formula: core/quantization.py rounds, and says which value takes which form.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import torch

from dit_accel.core.quantization import (
    BITS,
    OFFLOADED,
    Packed,
    choose_forms,
    pack,
    packed_bytes,
    random_signs,
    useful_bits,
)


class TensorStore(dict[tuple[str, str], "BranchStore"]):
    """All shelves of one follower, by (role, branch), and the noise that each role started from.

    `memory` is the cap in bytes, None for none; `fewest` the bits that a value may be packed into.
    `most_held`, `most_packed` and `most_away` are bytes of the run so far: on the device, on it in
    fewer bits, and in the CPU's memory; `bits` the fewest that were used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.memory: int | None = None
        self.fewest = BITS[0]
        self.noise = BranchStore(self)
        self.device = torch.device("cpu")
        self._signs: torch.Tensor | None = None
        self.begin()

    def begin(self, fewest: int = BITS[0]) -> None:
        """A run begins: nothing is counted yet, and values may be packed into so many bits."""
        self.fewest = fewest
        self.most_held = self.most_packed = self.most_away = 0
        self.bits: int | None = None

    def clear(self) -> None:
        """Free everything."""
        super().clear()
        self.noise.clear()
        self._signs = None

    def shelf(self, role: str, branch: str) -> BranchStore:
        """That of a branch, made where there is none."""
        return self.setdefault((role, branch), BranchStore(self))

    def places(self) -> list[tuple[tuple[str, str], int]]:
        """Shelf and step of every value but the noise, in one order."""
        return [(key, step) for key, shelf in self.items() for step in shelf]

    def sums(self) -> list[torch.Tensor]:
        """0-dimensional float32 on the device, of the values at `places` and then of the noise:
        finite where all of a value is. What is away was added up before it went."""
        return [
            shelf.totals[name] if name in shelf.totals else _total(value)
            for shelf in (*self.values(), self.noise)
            for name, value in shelf.raw.items()
        ]

    def settle(self, device: torch.device) -> None:
        """A value was put down on this device: make all fit, and count."""
        self.device = device
        held = self._by_age()
        if self.memory is not None:
            sizes = [self._sizes(shelf.raw[name]) for shelf, name in held]
            forms = choose_forms(sizes, self.memory, offload=device.type != "cpu")
            for (shelf, name), form in zip(held, forms, strict=True):
                value = shelf.raw[name]
                if form == OFFLOADED and value.device == device:
                    shelf.totals[name] = _total(value)
                shelf.raw[name] = self._in_form(value, form)
        self._count([shelf.raw[name] for shelf, name in held])

    def _by_age(self) -> list[tuple[BranchStore, Any]]:
        """Every value, the noise first, then by step."""
        kept = sorted((step, key) for key, step in self.places())
        return [
            *((self.noise, role) for role in self.noise),
            *((self[key], step) for step, key in kept),
        ]

    def _sizes(self, value: torch.Tensor | Packed) -> list[int]:
        """As it would be, and in every form that is allowed; of what is away nothing."""
        if value.device != self.device:
            return [0]
        count, width = value.shape.numel(), value.dtype.itemsize
        forms = (packed_bytes(count, bits) for bits in useful_bits(count, width, self.fewest))
        return [count * width, *forms]

    def _in_form(self, value: torch.Tensor | Packed, form: int) -> torch.Tensor | Packed:
        """What was packed or moved stays so."""
        if value.device != self.device or form == 0:
            return value
        forms = useful_bits(value.shape.numel(), value.dtype.itemsize, self.fewest)
        if form == OFFLOADED:
            return (self._packed(value, forms[-1]) if forms else value).to("cpu")
        return self._packed(value, forms[form - 1])

    def _packed(self, value: torch.Tensor | Packed, bits: int) -> Packed:
        if isinstance(value, Packed):
            if value.bits <= bits:
                return value
            value = value.unpack()
        if self._signs is None or self._signs.device != value.device:
            self._signs = random_signs().to(value.device)
        self.bits = min(bits, self.bits or bits)
        return pack(value, bits, signs=self._signs)

    def _count(self, values: list[torch.Tensor | Packed]) -> None:
        here = [value for value in values if value.device == self.device]
        packed = sum(value.nbytes for value in here if isinstance(value, Packed))
        away = sum(value.nbytes for value in values if value.device != self.device)
        self.most_held = max(self.most_held, sum(value.nbytes for value in here))
        self.most_packed = max(self.most_packed, packed)
        self.most_away = max(self.most_away, away)

    def notes(self) -> tuple[str, ...]:
        """Where the cap was not kept, and why."""
        if self.memory is None or self.most_held <= self.memory:
            return ()
        bits = f"in {self.bits} bits" if self.bits else "as they are"
        finer = (
            "" if self.fewest == BITS[-1] else
            "fewer would cost fidelity that the plan does not spend, and "
        )  # fmt: skip
        return (
            f"cache_memory is {self.memory} bytes, and kept values held {self.most_held}, "
            f"{bits}; {finer}nothing is moved where the CPU itself computes.",
        )


class BranchStore(MutableMapping[Any, torch.Tensor]):
    """Kept values by step (the noise by role), read as tensors on the device.

    `raw` is how they lie: a value that is not packed is the very tensor that was put down.
    """

    def __init__(self, kept: TensorStore) -> None:
        self._kept = kept
        self.raw: dict[Any, torch.Tensor | Packed] = {}
        self.totals: dict[Any, torch.Tensor] = {}  # of what is away, on the device

    def __getitem__(self, name: Any) -> torch.Tensor:
        value = self.raw[name].to(self._kept.device)
        return value.unpack() if isinstance(value, Packed) else value

    def __setitem__(self, name: Any, value: torch.Tensor) -> None:
        self.totals.pop(name, None)
        self.raw[name] = value
        self._kept.settle(value.device)

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
