"""Rivals in an evaluation: what the first clip measured is used by the others, and by a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from typer.testing import CliRunner

from dit_accel.cli.app import app

SIZE = "--height 16 --width 16 --frames 5 --steps 6 --guidance 4 --metrics psnr_db"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.tiny_wan().save_pretrained(tmp_path / "model")
    rows = [{"id": f"p{i}", "prompt": text} for i, text in enumerate(("red circle", "a square"))]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def evaluate(folder: Path, methods: str) -> dict[str, list[dict[str, Any]]]:
    """Results by method."""
    words = [str(folder / "prompts.jsonl"), "--model", str(folder / "model"), "--methods", methods,
             "--out", str(folder / "run"), *SIZE.split()]  # fmt: skip
    run = CliRunner().invoke(app, ["evaluate", *words], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((folder / "run" / "jobs").glob("*.json")):
        result = json.loads(path.read_text())
        found.setdefault(result["job"]["method"], []).append(result)
    return found


def test_two_prompts_share_what_was_measured_and_a_resume_reads_it(folder):
    first = evaluate(folder, "uncached,gits/ab:3,fewer-steps:3")
    assert [r["status"] for r in first["gits/ab:3"]] == ["ok", "ok"]
    assert [r["calibration_runs"] for r in first["gits/ab:3"]] == [8.0, 8.0]
    assert all(r["calibration_runs"] == 0 for r in first["fewer-steps:3"])
    measured = folder / "run" / "calibration" / "gits-paths.json"
    stamp = measured.stat().st_mtime_ns
    again = evaluate(folder, "uncached,gits/ab:3,gits/unipc:4,ab-2:3")
    assert measured.stat().st_mtime_ns == stamp
    assert [r["status"] for r in again["gits/unipc:4"]] == ["ok", "ok"]
    assert again["ab-2:3"][0]["remarks"][0].startswith("flow shift")
    assert "calibration runs" in (folder / "run" / "summary.md").read_text()
