"""Saves the pieces of a calibration in a folder, so that it can be stopped and resumed.

In: a name, and a function that makes the piece. Out: the piece, from its file if there is one.
A file is data: only tensors, plain values and the classes in `ALLOWED` are read from it. If a file
is damaged or contains anything else, its piece is made again.
Knows the clips and the pipeline that the folder belongs to, and refuses others.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dit_accel.calibration.fit import RidgeMoments
from dit_accel.calibration.refine import RefinedPlan
from dit_accel.core.families import family_of, transformers_of
from dit_accel.core.files import placed
from dit_accel.core.generation import ClipSpec
from dit_accel.planning.lookup import profile_key
from dit_accel.planning.plan import SamplerCoefficients, SecondExpert

ALLOWED: list[Any] = [
    SamplerCoefficients,
    SecondExpert,
    RefinedPlan,
    RidgeMoments,
]  # in the pieces that calibration makes
_DIGEST = hashlib.sha256().digest_size
_DAMAGED = (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, TypeError)


def _whole(content: bytes) -> bytes:
    """The content after the hash at its beginning, if the hash fits.

    Torch itself does not notice bytes that a fault has set to zero.
    """
    digest, rest = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(rest).digest() != digest:
        raise ValueError("the piece is damaged")
    return rest


class Checkpoint:
    """Pieces of work by name; without a folder nothing is saved.

    Raises:
        ValueError: the folder belongs to other clips, another pipeline or another dtype.
        OSError: the folder cannot be written.
    """

    def __init__(
        self, folder: Path | None, clips: Sequence[ClipSpec], overrides: dict[str, Any] | None,
        pipe: Any,
    ) -> None:  # fmt: skip
        self.folder = folder
        # the time that each piece took, in this call or in the one that saved it
        self.seconds: dict[str, float] = {}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        mine = hashlib.sha256(repr((list(clips), overrides)).encode()).hexdigest()
        key = profile_key(pipe)
        self._stamp("clips", mine)
        self._stamp("pipelines", f"{key.weights} {key.sampler}")
        denoisers = transformers_of(pipe, family_of(pipe)).values()
        self._stamp("dtypes", " ".join(str(denoiser.dtype) for denoiser in denoisers))

    def _stamp(self, of: str, mine: str) -> None:
        assert self.folder is not None
        stamp = self.folder / of
        if stamp.is_file() and stamp.read_text("utf-8", "replace") != mine:
            raise ValueError(
                f"work is {self.folder}, which was begun with other {of}; accepted: another folder"
            )
        if not stamp.is_file():
            with placed(stamp) as part:  # other processes may use the same folder
                part.write_text(mine, encoding="utf-8")

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """The piece of this name: read from its file, or made and saved."""
        found = self._read(name)
        if found is None:
            began = time.monotonic()
            value = make()
            found = {"piece": value, "seconds": time.monotonic() - began}
            self._write(name, found)
        self.seconds[name] = found["seconds"]
        return found["piece"]

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self._path(name)
        if path is None or not path.is_file():
            return None
        with contextlib.suppress(*_DAMAGED), torch.serialization.safe_globals(ALLOWED):
            found = torch.load(io.BytesIO(_whole(path.read_bytes())), weights_only=True)
            if isinstance(found, dict) and found.keys() == {"piece", "seconds"}:
                return found  # earlier versions saved the piece without its time: it is made again
        return None

    def _write(self, name: str, found: dict[str, Any]) -> None:
        path = self._path(name)
        if path is None:
            return
        content = io.BytesIO()  # if torch wrote the file, its error would hide the reason
        torch.save(found, content)
        with placed(path) as part:
            part.write_bytes(hashlib.sha256(content.getbuffer()).digest() + content.getbuffer())

    def _path(self, name: str) -> Path | None:
        file = f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.pt"
        return None if self.folder is None else self.folder / file
