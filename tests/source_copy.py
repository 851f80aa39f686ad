"""A copy of this checkout to build from: a build writes beside the source; tests run together."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def copy_source(folder: Path) -> Path:
    """The checkout's files in `folder/source`, without what was built or made there."""
    unwanted = shutil.ignore_patterns(
        ".*", "*.egg-info", "__pycache__", "build", "dist", "out", "runs"
    )
    return Path(shutil.copytree(ROOT, folder / "source", ignore=unwanted))
