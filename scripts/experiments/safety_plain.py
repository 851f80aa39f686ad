"""Turns the results of a run into plain JSON that is the same whenever the same code runs again.

Goes in: a report, frames, a folder of files. Comes out: dicts, lists, numbers and texts; arrays as
the SHA-256 of their bytes. It knows that some keys have seconds, peak memory, versions or dates,
and leaves them out. It knows no field of a report, so it works with every version of the package.
Ours; there is no source.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
UNSTABLE = re.compile(
    r"seconds|peak_memory|peak_gib|overhead|^versions$|^machine$|^platform$|^clock$|^created|_date$"
    r"|^speedup_(denoising|whole)$"
)
TAGS = ("<tr", "<video", "<svg", "<h2")
_NUMBER = re.compile(r"\d[\d.,]*")


def plain(value: Any) -> Any:
    """A value in the form of JSON. Keys of `UNSTABLE` are left out, at any depth.

    Example:
        >>> plain({"seconds": 0.3, "steps": (1, 2), "psnr_db": float("inf")})
        {'steps': [1, 2], 'psnr_db': 'inf'}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items() if not UNSTABLE.search(str(k))}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return fingerprint(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else repr(float(value))
    if isinstance(value, np.integer):
        return int(value)
    known = value is None or isinstance(value, (bool, int))
    return value if known else without_paths(str(value))


def report_of(handle: Any) -> dict[str, Any]:
    """The report of a handle, with its sites in the order of their names."""
    report = handle.report()
    found = plain(report.to_dict() if hasattr(report, "to_dict") else report)
    texts = lambda site: [part for part in site.values() if isinstance(part, str)]  # noqa: E731
    return found | {"sites": sorted(found["sites"], key=texts)}


def fingerprint(values: Any) -> dict[str, Any]:
    """Shape and SHA-256 of an array's or a tensor's bytes."""
    if isinstance(values, torch.Tensor):
        values = values.detach().contiguous().cpu()
        values = values.view(torch.uint8) if values.dtype == torch.bfloat16 else values
    array = np.ascontiguousarray(values)
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return {"sha256": digest, "shape": list(array.shape), "dtype": str(array.dtype)}


def text(words: str) -> str:
    """A text for people without its numbers and its layout on the terminal."""
    return " ".join(_NUMBER.sub("#", without_paths(words)).split())


def without_paths(words: str) -> str:
    """A text without the folders of this machine."""
    return words.replace(os.getcwd(), "<here>").replace(str(ROOT), "<root>")


def files(folder: Path) -> dict[str, Any]:
    """Every file under a folder by its path, with its content if that can be compared."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _content(path) for path in found}


def _content(path: Path) -> Any:
    if path.suffix == ".npy":
        return fingerprint(np.load(path))
    if path.suffix == ".json":
        return plain(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".safetensors":
        return _tensors(path)
    if path.suffix == ".html":
        page = path.read_text(encoding="utf-8")
        return {tag: page.count(tag) for tag in TAGS}
    if path.suffix == ".png":
        from PIL import Image

        return fingerprint(np.asarray(Image.open(path)))
    return "there"


def _tensors(path: Path) -> dict[str, Any]:
    """Tensors and metadata of a profile. Metadata that is JSON is parsed."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        metadata = {name: _parsed(words) for name, words in (file.metadata() or {}).items()}
        tensors = {name: fingerprint(file.get_tensor(name)) for name in sorted(file.keys())}
    return plain({"metadata": metadata, "tensors": tensors})


def _parsed(words: str) -> Any:
    try:
        return json.loads(words)
    except ValueError:
        return words
