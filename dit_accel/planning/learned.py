"""What was learnt from runs of one pipeline, and its small file in the user's cache.

In: observations of runs, and measured PSNRs. Out: a `Learned`, and its file. An observation is a
sum over clips with every step computed: the inner products of all rows, over the squared norm of
the final latents. A file belongs to one set of weights (with its LoRAs) and one scheduler. It can
have several observations, each for its own steps, guidance and size. Processes take turns with a
lock, and each adds to what the file already has. A file is replaced as a whole or not at all.
Knows numbers and files. Source: ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dit_accel.core.document import DocumentError, Field
from dit_accel.core.files import locked
from dit_accel.planning import profile_file
from dit_accel.planning.candidate import LARGEST_DB
from dit_accel.planning.plan import SamplerCoefficients, SecondExpert
from dit_accel.planning.profile_file import OtherVersionError, ProfileError, TensorFields
from dit_accel.planning.profile_key import ProfileKey
from dit_accel.planning.sampler_fields import read_sampler

LEARNED_FORMAT = "dit-accel-learned"
SUFFIX = ".safetensors"
MOST_ROWS = 256  # rows of a Gram matrix; nothing is learnt from runs with more
MOST_LEARNED_BYTES = 1 << 19  # of all tensors; beyond it the oldest observations are dropped
MOST_MEASURED = 256  # measured PSNRs; beyond it the oldest are dropped
KINDS = ("calibrated", "inner products")  # kinds of plans, as in `prediction.BASES`
Stamp = tuple[int, int, int]
_LARGEST_FILE = 1 << 22  # bytes
_MOST = 2**40  # the largest count that is accepted in a file
_NOT_NEGATIVE = 1e-6  # over the trace: how far below 0 rounding may leave an eigenvalue


@dataclass(frozen=True)
class RunKind:
    """The settings that runs must share so that their inner products can be summed.

    Args:
        sampler: sampler coefficients of the runs.
        guidance: guidance scale of the runs; with several components the branch weights follow from
            it.
        numbers: elements in the latents of one clip; another number means another size.
    """

    sampler: SamplerCoefficients
    guidance: float
    numbers: int

    def is_like(self, other: RunKind, *, any_size: bool = False) -> bool:
        """Whether both kinds are the same.

        Args:
            any_size: whether the sizes may differ.
        """
        one, two = self.sampler, other.sampler
        return (
            (any_size or self.numbers == other.numbers)
            and self.has_steps_of(other)
            and one.second == two.second
            and abs(self.guidance - other.guidance) < 1e-6
            and _near(torch.tensor(one.branch_weights), torch.tensor(two.branch_weights))
        )

    def has_steps_of(self, other: RunKind) -> bool:
        """Whether both kinds have the same rows, whatever their guidance."""
        one, two = self.sampler, other.sampler
        return (
            one.num_steps == two.num_steps
            and len(one.branch_weights) == len(two.branch_weights)
            and _near(one.timesteps, two.timesteps)
            and _near(one.coefficients, two.coefficients)
        )

    def may_transfer(self, other: RunKind) -> bool:
        """Whether observations of these runs can be transferred to runs of the other kind.

        With one component, guidance is already part of the predictions, so it must be the same.
        """
        parts = len(self.sampler.branch_weights)
        same = parts > 1 or abs(self.guidance - other.guidance) < 1e-6
        return same and parts == len(other.sampler.branch_weights)


def _near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@dataclass(frozen=True)
class Observations:
    """A sum of Gram matrices over clips with every step computed.

    Args:
        kind: settings of the runs.
        clips: number of clips.
        products: `(R, R)` float64, R = B n + 1: the Gram matrices of the clips as in `ErrorModel`,
            summed. The noise row is 0 where the noise is not known.
    """

    kind: RunKind
    clips: int
    products: torch.Tensor

    def __add__(self, other: Observations) -> Observations:
        return dataclasses.replace(
            self, clips=self.clips + other.clips, products=self.products + other.products
        )

    @property
    def nbytes(self) -> int:
        """Size in the file, in bytes."""
        rows = len(self.products)
        return 8 * (rows * (rows + 1) // 2 + 2 * self.kind.sampler.num_steps)


@dataclass(frozen=True)
class Measured:
    """A clip's PSNR: predicted before its run, and measured after it.

    Args:
        name: of the clip; a clip is counted once for each kind.
        kind: kind of the clip's plan, one of `KINDS`.
        predicted: PSNR in dB that the plan alone predicts, without the `offset_db` of
            `QualityEstimate`.
        measured: PSNR in dB.
    """

    name: str
    kind: str
    predicted: float
    measured: float


@dataclass(frozen=True)
class Learned:
    """What was learnt from the runs of one pipeline.

    Args:
        key: key of the pipeline; without a number of steps, a guidance or a size.
        observations: in the order of their last change, the latest last.
        measured: predicted and measured PSNRs, the oldest first.
        runs: number of runs that were learnt from. If observations were dropped, it exceeds the
            number of clips in the others.
    """

    key: ProfileKey
    observations: tuple[Observations, ...] = ()
    measured: tuple[Measured, ...] = ()
    runs: int = 0

    def with_run(self, one: Observations) -> Learned:
        """The same with one more run. The oldest observations are dropped if there are too many."""
        others, found = [], one
        for known in self.observations:
            if known.kind.is_like(one.kind):
                found = known + one
            else:
                others.append(known)
        every = [*others, found]
        while len(every) > 1 and sum(each.nbytes for each in every) > MOST_LEARNED_BYTES:
            del every[0]
        return dataclasses.replace(self, observations=tuple(every), runs=self.runs + 1)

    def differences(self, kind: str) -> tuple[float, ...]:
        """Measured less predicted PSNR of clips with plans of this kind, in dB."""
        return tuple(one.measured - one.predicted for one in self.measured if one.kind == kind)

    def with_measured(self, one: Measured) -> Learned:
        """The same with one more PSNR, which replaces that of the same clip with the same kind of
        plan."""
        same = one.name, one.kind
        others = [known for known in self.measured if (known.name, known.kind) != same]
        return dataclasses.replace(self, measured=(*others, one)[-MOST_MEASURED:])


# --- the file ---


def is_off() -> bool:
    """Whether the environment switches learning off: `$DIT_ACCEL_NO_LEARN` is set and not empty."""
    return bool(os.environ.get("DIT_ACCEL_NO_LEARN"))


def path_in(folder: Path, key: ProfileKey) -> Path:
    """The path of a pipeline's file in a cache folder."""
    return folder / "learned" / f"{key.weights}-{key.sampler}{SUFFIX}"


def load(path: Path) -> Learned:
    """Read a file.

    Raises:
        OtherVersionError: the file has another version.
        ProfileError: the file is damaged; the error names the file and the field.
        FileNotFoundError: the file does not exist.
    """
    if path.is_file() and (size := path.stat().st_size) > _LARGEST_FILE:
        raise ProfileError(f"{path} has {size} bytes; accepted: {_LARGEST_FILE} at most")
    return profile_file.load(path, _of, "damaged", LEARNED_FORMAT)


def stamp_of(path: Path) -> Stamp | None:
    """A value that changes whenever the file at a path is replaced; None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def update(
    path: Path, empty: Learned, change: Callable[[Learned], Learned],
    last: tuple[Stamp | None, Learned] | None = None,
) -> tuple[Learned, Stamp | None]:  # fmt: skip
    """Change a file under a lock, so that one process changes it at a time.

    Args:
        empty: used in place of a file that does not exist, is damaged, or is of another pipeline.
        change: maps the present content of the file to the new one.
        last: a stamp of the file and its content at that stamp. The file is not read again if it
            still has that stamp.

    Returns:
        The new content of the file, and its stamp.

    Raises:
        OtherVersionError: the file has another version; it is not changed.
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        for left in path.parent.glob(f".{path.name}.*"):  # left by a process that was killed
            left.unlink(missing_ok=True)
        stamp = stamp_of(path)
        if last is None or stamp is None or stamp != last[0]:
            last = stamp, _known(path, empty)
        found = change(last[1])
        save(path, found)
        return found, stamp_of(path)  # under the lock, so no other process has written since


def _known(path: Path, empty: Learned) -> Learned:
    try:
        known = load(path)
    except OtherVersionError:
        raise
    except (FileNotFoundError, ProfileError):
        return empty
    return known if known.key == empty.key else empty


def clear(path: Path) -> None:
    """Remove the file with what was learnt of a pipeline.

    Raises:
        OSError: the file cannot be removed.
    """
    with locked(path.with_suffix(".lock")):
        path.unlink(missing_ok=True)


def save(path: Path, learned: Learned) -> None:
    """Write the file, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    # There is always one tensor, because safetensors 0.4.3 cannot read a file without tensors.
    tensors = {"count": torch.tensor([float(len(learned.observations))])}
    for place, one in enumerate(learned.observations):
        rows = torch.tril_indices(*one.products.shape)
        tensors |= {
            f"{place}.products": one.products[rows[0], rows[1]],
            # clones, as observations may share a sampler and safetensors refuses shared memory
            f"{place}.coefficients": one.kind.sampler.coefficients.clone(),
            f"{place}.timesteps": one.kind.sampler.timesteps.clone(),
        }
    head: dict[str, Any] = {
        "identity": learned.key.to_json(),
        "runs": learned.runs,
        "observations": [
            {"branch_weights": list(one.kind.sampler.branch_weights),
             "guidance": one.kind.guidance, "numbers": one.kind.numbers,
             "clips": one.clips,
             "second": None if (second := one.kind.sampler.second) is None
             else [second.begin, second.share]}
            for one in learned.observations
        ],
        "measured": [dataclasses.asdict(one) for one in learned.measured],
    }  # fmt: skip
    head["digest"] = digest_of(head, tensors)
    # A power cut may damage the file. The digest then shows it, so the call need not wait for the
    # disk.
    profile_file.write(path, head, tensors, form=LEARNED_FORMAT, lasting=False)


def digest_of(head: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """A digest of the whole content. Without it, a damaged number could pass for a valid one."""
    found = hashlib.sha256(json.dumps(dict(head), sort_keys=True).encode())
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        found.update(tensors[name].reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _check_digest(head: Field, tensors: TensorFields) -> None:
    without = {k: v for k, v in head.value.items() if k not in ("digest", "format", "version")}
    if head.at("digest").text() != digest_of(without, tensors.tensors):
        raise DocumentError("digest does not match the content; accepted: a file as a run wrote it")


def _of(head: Field, tensors: TensorFields) -> Learned:
    _check_digest(head, tensors)
    head.only(("identity", "runs", "observations", "measured", "digest", "format", "version"))
    entries = head.at("observations").entries(most=MOST_LEARNED_BYTES // 64)
    return Learned(
        key=ProfileKey.from_json(head.at("identity")),
        observations=tuple(
            _observations(f"{i}", one, tensors)
            for i, one in enumerate(entries)
            if _is_whole(f"{i}", one, tensors)
        ),
        measured=tuple(_measured(one) for one in head.at("measured").entries(most=MOST_MEASURED)),
        runs=head.at("runs").whole(0, _MOST),
    )


def _measured(one: Field) -> Measured:
    one.only(("name", "kind", "predicted", "measured"))
    return Measured(
        one.at("name").text(r"[\w.-]{1,80}"), one.at("kind").one_of(KINDS),
        one.at("predicted").number(-LARGEST_DB, LARGEST_DB),
        one.at("measured").number(-LARGEST_DB, LARGEST_DB),
    )  # fmt: skip


def _observations(section: str, one: Field, tensors: TensorFields) -> Observations:
    one.only(("branch_weights", "guidance", "numbers", "computed", "clips", "second"))
    sampler = _sampler(section, one, tensors)
    rows, clips = sampler.num_rows, one.at("clips").whole(1, _MOST)
    if rows > MOST_ROWS:
        raise DocumentError(
            f"observations[{section}] has {rows} rows; accepted: {MOST_ROWS} at most"
        )
    packed = tensors.get(f"{section}.products", (rows * (rows + 1) // 2,), -1e15, 1e15)
    products = torch.zeros(rows, rows, dtype=torch.float64)
    places = torch.tril_indices(rows, rows)
    products[places[0], places[1]] = packed
    products += products.tril(-1).T
    _check_inner_products(f"{section}.products", products)
    numbers = one.at("numbers").whole(0, 2**62)
    kind = RunKind(sampler, one.at("guidance").number(-1e6, 1e6), numbers)
    return Observations(kind, clips, products)


def _is_whole(section: str, one: Field, tensors: TensorFields) -> bool:
    """Whether an observation is of a run with every step computed.

    Older files also have runs with plans, which list their computed steps. These are left out.
    """
    computed = one.find("computed")
    return computed is None or len(computed.entries(1)) == len(
        tensors.get(f"{section}.timesteps", (None,))
    )


def _sampler(section: str, one: Field, tensors: TensorFields) -> SamplerCoefficients:
    return read_sampler(
        tensors, f"{section}.coefficients", f"{section}.timesteps", one.at("branch_weights"),
        lambda num_steps: _second(one, num_steps),
    )  # fmt: skip


def _second(one: Field, num_steps: int) -> SecondExpert | None:
    if one.find("second") is None:
        return None
    begin, share = one.at("second").entries(2, 2)
    return SecondExpert(begin.whole(1, num_steps - 1), share.number(-1e6, 1e6))


def _check_inner_products(name: str, products: torch.Tensor) -> None:
    size = products.diagonal()
    if not bool((size[:-1] > 0).all()) or size[-1] < 0:
        raise DocumentError(
            f"{name} has {float(size.min()):g} on its diagonal; accepted: numbers above 0, and 0 "
            "for the noise"
        )
    # Rows differ in size, so each is scaled to norm 1. The noise row may be 0, hence the clamp.
    scale = size.clamp_min(float(size.max()) * 1e-12).rsqrt()
    least = torch.linalg.eigvalsh(products * scale * scale[:, None])[0]
    if not float(least) >= -_NOT_NEGATIVE * len(products):
        raise DocumentError(
            f"{name} has a negative eigenvalue; accepted: a matrix of inner products"
        )
