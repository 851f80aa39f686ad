"""Every script of `scripts/` finds what it imports, and explains itself."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import multiprocessing
import runpy
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts").glob("*/*.py"))
COMMANDS = [path for path in SCRIPTS if "ArgumentParser(" in path.read_text(encoding="utf-8")]


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
    """In a forked process, which has torch and diffusers already: four seconds less a script."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("forks a process: Linux and macOS only")
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_explain, args=(path, theirs))
    process.start()
    ended, printed = ours.recv() if ours.poll(60) else (None, "nothing in 60 seconds")
    process.join(10)
    assert ended == 0 and "usage:" in printed, printed


def _explain(path: Path, answer: Connection) -> None:
    sys.argv = [str(path), "--help"]
    sys.path.insert(0, str(path.parent))  # as Python does for a script
    ended, printed = None, io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as error:
        ended = error.code
    except BaseException:
        ended = traceback.format_exc()
    answer.send((ended or 0, f"{printed.getvalue()}{ended or ''}"))
