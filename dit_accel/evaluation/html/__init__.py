"""One HTML page of an evaluation: what was saved, what it cost, and the clips.

store, results -> plots, front, maps, clips (pictures) -> page (one file). It needs the extra
`report`, asks the network for nothing, and is the same, byte for byte, for the same folder and the
same versions of the drawing packages.
"""

from __future__ import annotations

import importlib.util

PACKAGES = ("jinja2", "matplotlib")


def lacking() -> str | None:
    """What must be installed before a report can be written, or None."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    are = "is" if len(missing) == 1 else "are"
    return f"{' and '.join(missing)} {are} not installed: pip install 'dit-accel[report]'"
