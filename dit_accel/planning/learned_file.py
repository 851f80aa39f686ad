"""The file of what was learnt of a pipeline, in the user's cache.

In: a `Learned`, or a path. Out: the file; or a `Learned`, every field checked. A file belongs to
one set of weights (with its LoRAs) and one scheduler. Processes take turns with a lock, and each
adds to what the file already has. A file is replaced as a whole or not at all.
Knows the fields of the file; `planning/learned.py` knows what they mean. Source: ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dit_accel.core.document import DocumentError, Field
from dit_accel.core.files import locked
from dit_accel.planning import profile_file
from dit_accel.planning.candidate import LARGEST_DB
from dit_accel.planning.learned import (
    KINDS,
    MOST_LEARNED_BYTES,
    MOST_MEASURED,
    MOST_ROWS,
    Learned,
    Measured,
    Observations,
    RunKind,
)
from dit_accel.planning.plan import SamplerCoefficients, SecondExpert
from dit_accel.planning.profile_file import OtherVersionError, ProfileError, TensorFields
from dit_accel.planning.profile_key import ProfileKey
from dit_accel.planning.sampler_fields import read_sampler

LEARNED_FORMAT = "dit-accel-learned"
SUFFIX = ".safetensors"
Stamp = tuple[int, int, int]
_LARGEST_FILE = 1 << 22  # bytes
_MOST = 2**40  # the largest count that is accepted in a file
_NOT_NEGATIVE = 1e-6  # over the trace: how far below 0 rounding may leave an eigenvalue


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
