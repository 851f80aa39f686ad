"""The file of a profile: safetensors with a JSON header, read as data and checked.

In: a path; or a header and tensors. Out: the header as a `Field` and the tensors as `TensorFields`,
which check shape and range of each value that is read from them; or a file.
Knows the format and its version, but not the fields: `planning/profile.py` knows those.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from dit_accel.core.document import DocumentError, Field, parse_json, shown
from dit_accel.core.files import placed

PROFILE_FORMAT = "dit-accel-profile"
PROFILE_VERSION = 1
Shape = tuple[int | None, ...]  # None: any number from 1
Made = TypeVar("Made")


class ProfileError(ValueError):
    """A file is no profile, or a profile does not belong to this pipeline."""


class OtherVersionError(ProfileError):
    """A file has another format or version; another version of the package may still use it."""


@dataclass(frozen=True)
class TensorFields:
    """The tensors of a file by name; `get` returns them in float64 on the CPU."""

    tensors: Mapping[str, torch.Tensor]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def get(self, name: str, shape: Shape, low: float = -1e9, high: float = 1e9) -> torch.Tensor:
        """A tensor of the file, checked.

        Args:
            shape: the shape that it must have.
            low, high: bounds of its values, inclusive.

        Raises:
            DocumentError: the tensor is missing, has another shape or dtype, or a value is out of
                range.
        """
        if name not in self.tensors:
            raise DocumentError(f"{name} is missing")
        found = self.tensors[name]
        fits = len(shape) == found.ndim and 0 not in found.shape
        if not fits or any(a not in (None, b) for a, b in zip(shape, found.shape, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise DocumentError(f"{name} has shape {tuple(found.shape)}; accepted: ({wanted})")
        if found.dtype not in (torch.float32, torch.float64):
            raise DocumentError(f"{name} has dtype {found.dtype}; accepted: float32, float64")
        values = found.double()
        valid = (values >= low) & (values <= high)  # false for NaN
        if not bool(valid.all()):
            place = tuple(int(at) for at in (~valid).nonzero()[0])
            raise DocumentError(
                f"{name}{list(place)} is {float(values[place])}; accepted: {low:g} to {high:g}"
            )
        return values


def read(path: Path, form: str = PROFILE_FORMAT) -> tuple[Field, TensorFields]:
    """The header and the tensors of a file.

    Args:
        form: the format that the file must have.

    Raises:
        ProfileError: the file is no profile, or has another version.
        OSError: the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no profile at {path}")
    try:
        with safe_open(str(path), "pt") as file:
            text = (file.metadata() or {}).get("profile", "{}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = Field(parse_json(text))
        names = found.fields()
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        # The last three occur if this torch does not have the dtype of a tensor.
        raise ProfileError(f"{path} is no profile: {error}") from error
    own, version = (names[name].value if name in names else None for name in ("format", "version"))
    if (own, version) != (form, PROFILE_VERSION) or isinstance(version, bool):
        raise OtherVersionError(
            f"{path} has format {shown(own)}, version {shown(version)}; accepted: "
            f"{form}, version {PROFILE_VERSION}"
        )
    return found, TensorFields(tensors)


def load(
    path: Path, make: Callable[[Field, TensorFields], Made], damaged: str,
    form: str = PROFILE_FORMAT,
) -> Made:  # fmt: skip
    """Read a file and make an object from it.

    Args:
        make: makes the object from the header and the tensors; it raises a ValueError if a field is
            not accepted.
        damaged: words for the error in that case: "PATH is ...".
        form: as in `read`.

    Raises:
        ProfileError: as in `read`, or a field is not accepted; the error names the file and the
            field.
        OSError: the file cannot be read.
    """
    head, tensors = read(path, form)
    try:
        return make(head, tensors)
    except ValueError as error:
        raise ProfileError(f"{path} is {damaged}: {error}") from error


def write(
    path: Path, head: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *,
    form: str = PROFILE_FORMAT, lasting: bool = True,
) -> None:  # fmt: skip
    """Write a file, whole or not at all.

    Args:
        form: the format that the header states.
        lasting: as in `core.files.placed`.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.torch import save

    start = {"format": form, "version": PROFILE_VERSION}
    text = json.dumps({**start, **head}, allow_nan=False)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    content = save(contiguous, metadata={"profile": text})
    with placed(path, lasting=lasting) as scratch:
        scratch.write_bytes(content)


def named(section: str, value: Any, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The tensors of a section, by their names in the file."""
    return {f"{section}.{filed}": getattr(value, name) for name, filed in names.items()}
