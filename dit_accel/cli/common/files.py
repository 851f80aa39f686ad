"""The files of a run: their names, the check that they can be written, and writing all or none.

In: `--output` and the content. Out: the files.
Knows the disk. Everything is first written to a hidden folder beside the output, and is moved to
its place when it is complete. After a full disk or Ctrl-C, the earlier files are still there. Ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.cli.common.errors import BadInput, RunFailed
from dit_accel.core.files import reason_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dit_accel.evaluation.prompts import EvaluationPrompt


@dataclass(frozen=True)
class Files:
    """The files that a run writes; `compare` and `uncached` only with `--compare`."""

    video: Path
    sidecar: Path
    compare: Path | None = None
    uncached: Path | None = None
    more: dict[str, Path] = field(default_factory=dict)  # files of further shots, by their role

    def present(self) -> dict[str, Path]:
        """The files that this run writes, by their role."""
        named = (("video", self.video), ("compare", self.compare), ("uncached", self.uncached))
        found = {name: path for name, path in named if path is not None}
        return found | self.more | {"sidecar": self.sidecar}


def name_files(output: Path, *, compare: bool) -> Files:
    """The names that follow from `--output`."""
    if not output.name:
        raise BadInput(f"--output is {str(output)!r}; accepted: a path with a file name")
    return Files(
        video=output,
        sidecar=output.with_name(output.name + ".json"),
        compare=output.with_stem(output.stem + "-compare") if compare else None,
        uncached=output.with_stem(output.stem + "-uncached") if compare else None,
    )


def clips_of(
    files: Files, accelerated: npt.NDArray[np.floating[Any]], uncached: Any = None
) -> dict[Path, npt.NDArray[Any]]:
    """The frames of every video file of a run, by path; `uncached` only with `--compare`."""
    from dit_accel.core import video

    clips: dict[Path, npt.NDArray[Any]] = {files.video: accelerated}
    if files.uncached is not None and files.compare is not None:
        clips[files.uncached] = uncached
        clips[files.compare] = video.side_by_side(uncached, accelerated)
    return clips


def check_file(option: str, path: Path, *, suffixes: tuple[str, ...], overwrite: bool) -> None:
    """Refuse a single file that could not be written after the work, before the work."""
    shown = f"{option} is {str(path)!r}"
    if path.suffix.lower() not in suffixes:
        raise BadInput(f"{shown}; accepted: a name that ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise BadInput(f"{shown}: it is a folder")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"{shown}: its folder does not exist")
    if not os.access(path.absolute().parent, os.W_OK):
        raise BadInput(f"{shown}: its folder cannot be written")
    if not overwrite:
        check_free(option, path)


def check_free(option: str, path: Path) -> None:
    """Refuse a file that exists."""
    with contextlib.suppress(FileNotFoundError):
        os.lstat(path)
        raise BadInput(f"{option}: {path} exists; pass --overwrite, or another {option}")


def check_files(files: Files, *, overwrite: bool, option: str = "--output") -> None:
    """Refuse files of a run that could not be written after the work, before the work."""
    from dit_accel.core import video

    shown = str(files.video)
    try:
        video.check_output(files.video)
        for path in files.present().values():
            if path.is_dir():
                raise BadInput(f"{option}: {path} would be written, but is a folder")
            if not overwrite:
                check_free(option, path)
    except ValueError as error:
        raise BadInput(str(error).replace("path", option, 1)) from error
    except OSError as error:
        reason = f"{error.strerror}".replace("the folder of path", "its folder")
        raise BadInput(f"{option} is {shown!r}: {reason.replace('path is', 'it is')}") from error


def write_clips(folder: Path, clips: dict[Path, npt.NDArray[Any]], fps: float) -> None:
    """Write each clip into a folder, with its final name. Raises RunFailed if one cannot be
    written."""
    from dit_accel.core import video

    for path, frames in clips.items():
        try:
            video.write_video(folder / path.name, frames, fps=fps)
        except OSError as error:
            reason = str(error.strerror).removeprefix("path could not be written: ")
            raise RunFailed(f"{path} cannot be written: {reason}; nothing is left") from error


def write_json(folder: Path, path: Path, content: dict[str, Any]) -> None:
    """Write the sidecar into a folder and flush it to the disk. Raises RunFailed if it cannot be
    written."""
    try:
        with (folder / path.name).open("w", encoding="utf-8") as file:
            file.write(as_json(content) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunFailed(f"{path} cannot be written: {reason_of(error)}; nothing is left") from error


@contextlib.contextmanager
def all_or_none(paths: Sequence[Path]) -> Iterator[Path]:
    """A folder to write files into. At the end they are moved to their places, in this order.

    Raises:
        RunFailed: a file cannot be moved; files that were moved are removed again.
    """
    parent = paths[0].absolute().parent
    try:
        scratch = tempfile.TemporaryDirectory(prefix=".tmp-", dir=parent)
    except OSError as error:
        raise RunFailed(f"{parent} cannot be written: {reason_of(error)}") from error
    with scratch as folder:
        yield Path(folder)
        _place(Path(folder), paths)


def read_prompts(name: str, path: Path, limit: int | None) -> tuple[EvaluationPrompt, ...]:
    """The first prompts of a file. A file without prompts is refused, with the name of the
    option."""
    from dit_accel.evaluation import prompts

    try:
        return prompts.read_prompts(path)[:limit]
    except OSError as error:
        raise BadInput(f"{name} is {str(path)!r}: {reason_of(error)}") from error
    except ValueError as error:
        raise BadInput(f"{name}: {error}") from error


def as_json(content: dict[str, Any], *, in_ascii: bool = False) -> str:
    """JSON that every reader accepts: numbers that are not finite become null."""
    from dit_accel.evaluation.statistics import finite

    return json.dumps(finite(content), indent=2, ensure_ascii=in_ascii, allow_nan=False)


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object on stdout, in ASCII where stdout is not UTF-8."""
    encoding = (sys.stdout.encoding or "").lower()
    sys.stdout.write(as_json(content, in_ascii=not encoding.startswith("utf")) + "\n")


def _place(folder: Path, paths: Sequence[Path]) -> None:
    placed: list[Path] = []
    try:
        for path in paths:
            existed = path.exists()
            os.replace(folder / path.name, path)
            if not existed:
                placed.append(path)
    except BaseException as error:
        for path in placed:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RunFailed(f"{error.filename2} cannot be written: {reason_of(error)}") from error
        raise
