"""Makes a profile from the first run of a pipeline that has none.

In: the components of one run with every step computed, and the noise. Out: a `Profile` without
candidates. One run gives inner products and nothing else: no errors were probed, and no plan was
carried out. So the error gain and the error memory are those of the embedded miniature, and the
intervals are wide.
Knows tensors of one run; no pipeline. The inner products are calculated on the device after the
last row, in one matrix product and without a host sync, so that the next run does not wait.
Source: ours.
"""

from __future__ import annotations

import dataclasses

import torch

from dit_accel.planning.interpolation import linear_weights
from dit_accel.planning.plan import SamplerCoefficients
from dit_accel.planning.prediction import Evidence
from dit_accel.planning.profile import Profile
from dit_accel.planning.profile_key import ProfileKey

_GAIN = (20.0, 8.0, 4.0, 2.0, 1.2, 0.9, 0.8, 0.7, 0.7, 1.0)  # the miniature's, evenly over the run
_MEMORY = 0.6  # over the length of the run
_DEPTH = 4
_PIECE = 1 << 17  # numbers of a row that are converted to float64 at a time
_MAX_SHARE = 0.5  # most of the device memory beyond a run's peak that recorded rows may use
_NOISE = -1  # marks the noise where rows are listed by component


class RunRecord:
    """The inner products of one run's rows: its components at every step, and the noise.

    Rows stay on the device in their dtype. They are moved to the CPU if the device has no float64,
    or if they would use more than half of the memory that the run leaves free.

    Args:
        num_rows: the most rows that a run has.
    """

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        # whether all rows have the same length, and there are no more than expected
        self.is_uniform = True
        self._rows: list[torch.Tensor] = []  # empty after `close`
        self._closed = False
        self._places: list[tuple[int, int]] = []  # component and step of every row
        self._products = torch.zeros(0, 0)  # inner products of the first `_taken` rows
        self._taken = 0
        self._copied: torch.cuda.Event | None = None
        self._on_device = True

    def add(self, component: int, value: torch.Tensor) -> None:
        """Add a component of the guided prediction, of any shape, at its next step."""
        self._add((component, self.count(component)), value)

    def add_noise(self, value: torch.Tensor) -> None:
        """Add the noise that the run started from, if it has the shape of predictions."""
        self._add((_NOISE, 0), value)

    def close(self) -> None:
        """Call it after the last row: calculate the inner products and free all rows.

        The VAE then has the memory.
        """
        self._take()
        self._rows, self._closed = [], True

    def count(self, component: int) -> int:
        """Number of recorded steps of a component."""
        return sum(1 for known, _ in self._places if known == component)

    def _add(self, place: tuple[int, int], value: torch.Tensor) -> None:
        row = value.detach().flatten()
        if not len(self._products):
            self._begin(row)
        other = bool(self._rows) and len(row) != len(self._rows[0])
        if self._closed or other or len(self._rows) == self.num_rows:
            self.is_uniform = False
            return
        self._rows.append(row if self._on_device else row.cpu())
        self._places.append(place)

    def _begin(self, row: torch.Tensor) -> None:
        self._on_device = _fits(row, self.num_rows)
        on_gpu = row.device.type == "cuda"
        self._products = torch.zeros(
            self.num_rows, self.num_rows, dtype=torch.float64, pin_memory=on_gpu
        )
        self._copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]

    def _take(self) -> None:
        """Calculate the inner products, and copy them to the CPU without a host sync."""
        count = len(self._rows)
        if count == self._taken or self._closed:
            return
        self._taken = count
        self._products[:count, :count].copy_(_products(self._rows), non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    @property
    def is_finite(self) -> bool:
        """Whether all inner products are finite, and so all rows."""
        self._wait()
        return bool(self._products.isfinite().all())

    def _wait(self) -> None:
        self._take()
        if self._copied is not None:
            self._copied.synchronize()

    def gram(self, sampler: SamplerCoefficients) -> torch.Tensor:
        """`(R, R)` float64 on the CPU: the inner products of a whole run.

        They are over the squared norm of the final latents, and 0 for rows that were not recorded.
        Rows are in the order of `SamplerCoefficients.num_rows`: components by step, then the noise.
        Components that the sampler does not have are left out.
        """
        self._wait()
        n, last, count = sampler.num_steps, sampler.num_rows - 1, len(self._places)
        own = self._products[:count, :count]
        own = own.tril() + own.tril(-1).T  # symmetric exactly, not only up to rounding
        known = [
            row for row, (component, _) in enumerate(self._places)
            if component < len(sampler.branch_weights)
        ]  # fmt: skip
        places = [self._places[row] for row in known]
        order = torch.tensor([last if c == _NOISE else c * n + step for c, step in places])
        gram = torch.zeros(last + 1, last + 1, dtype=torch.float64)
        gram[order[:, None], order] = own[known][:, known]
        final = sampler.final_weights
        return gram / (final @ gram @ final)

    def profile(self, sampler: SamplerCoefficients, key: ProfileKey) -> Profile:
        """The profile from a run of which every step was recorded."""
        return profile_of_gram(self.gram(sampler), sampler, key)


def profile_of_gram(
    gram: torch.Tensor, sampler: SamplerCoefficients, key: ProfileKey, clips: int = 1,
    prior: Profile | None = None,
) -> Profile:  # fmt: skip
    """A profile from inner products alone.

    Args:
        gram: `(R, R)`, the inner products.
        clips: number of clips that they come from.
        prior: a prior's profile that is used beside them; error gain and error memory are then the
            prior's.
    """
    if prior is not None:
        evidence = prior.evidence.with_clips(clips)
        return dataclasses.replace(prior, key=key, gram=gram[None], evidence=evidence, prior=prior)
    n = sampler.num_steps
    known, wanted = (torch.linspace(0, 1, m, dtype=torch.float64) for m in (len(_GAIN), n))
    logs = torch.tensor(_GAIN, dtype=torch.float64).log()
    gain = (linear_weights(known, wanted) @ logs).exp()
    evidence = Evidence.of_runs(clips)
    metadata = {"clips": clips, "probes": 0}
    return Profile(
        key, sampler, gram[None], gain, _MEMORY * n, _DEPTH, (), metadata, evidence=evidence
    )


def _products(rows: list[torch.Tensor]) -> torch.Tensor:
    """`(k, k)` float64: inner products of k rows `(N,)` of any dtype."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows[0].device)
    for start in range(0, len(rows[0]), _PIECE):
        piece = torch.stack([row[start : start + _PIECE] for row in rows]).double()
        total += piece @ piece.T
    return total


def _fits(row: torch.Tensor, count: int) -> bool:
    """Whether `count` rows of this size fit on the device of this row."""
    if row.device.type == "cpu":
        return True
    if row.device.type != "cuda":
        return False  # Apple's devices have no float64
    total = torch.cuda.get_device_properties(row.device).total_memory
    free = total - torch.cuda.max_memory_allocated(row.device)
    return count * row.numel() * row.element_size() < _MAX_SHARE * free
