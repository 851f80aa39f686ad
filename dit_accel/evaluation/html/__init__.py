"""Makes one HTML page of an evaluation: savings, costs, and the clips.

store, results -> plots, front, maps, clips (pictures) -> page (one file). It needs the extra
`report`, and no network. For the same folder and the same versions of the drawing packages, the
page has the same bytes.
"""

from __future__ import annotations

import importlib.util

PACKAGES = ("jinja2", "matplotlib")


def lacking() -> str | None:
    """The package that must be installed before a report can be written, or None."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    are = "is" if len(missing) == 1 else "are"
    return f"{' and '.join(missing)} {are} not installed: pip install 'dit-accel[report]'"
