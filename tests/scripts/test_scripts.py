"""Every script of `scripts/` finds what it imports, and explains itself."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts").glob("*/*.py"))
COMMANDS = [path for path in SCRIPTS if "argparse" in path.read_text(encoding="utf-8")]


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT / "scripts"))


@pytest.mark.parametrize("path", SCRIPTS, ids=ids)
def test_what_it_imports_of_the_package_is_there(path):
    """Also inside functions, where `--help` does not come."""
    missing = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dit_accel"):
            module = importlib.import_module(node.module)
            missing += [a.name for a in node.names if not _has(module, a.name)]
    assert missing == []


def _has(module, name: str) -> bool:
    try:
        return hasattr(module, name) or bool(importlib.import_module(f"{module.__name__}.{name}"))
    except ImportError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("path", COMMANDS, ids=ids)
def test_it_runs_from_its_own_folder_and_explains_itself(path):
    command = [sys.executable, str(path), "--help"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "usage:" in ended.stdout
