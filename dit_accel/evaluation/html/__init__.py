"""One self-contained HTML page of an evaluation: what was saved, what it cost, and the clips.

evidence (everything read once) -> plots, maps, clips (pictures of it) -> page (one file).

The page asks the network for nothing, and is the same, byte for byte, for the same folder and the
same versions of the drawing packages. It needs the extra `report`.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dit_accel.evaluation.jobs import EvaluationSpec
    from dit_accel.evaluation.store import Store

PACKAGES = ("jinja2", "matplotlib")


def lacking() -> str | None:
    """What must be installed before a report can be written, or None."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    are = "is" if len(missing) == 1 else "are"
    return f"{' and '.join(missing)} {are} not installed: pip install 'dit-accel[report]'"


def write_report(store: Store, plan: EvaluationSpec, path: Path) -> int:
    """Write the page of an evaluation, as far as it is done; the file is whole or not there.

    Args:
        store: the evaluation's folder.
        plan: its plan, as `store.plan()` reads it.
        path: where the page goes; a file that is there is replaced.

    Returns:
        its size in bytes.

    Raises:
        ModuleNotFoundError: the extra `report` is not installed.
        StoreError: a result cannot be read.
        OSError: the page cannot be written.
    """
    if needed := lacking():
        raise ModuleNotFoundError(needed)
    from dit_accel.evaluation.html.page import render

    content = render(store, plan).encode("utf-8")
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return len(content)
