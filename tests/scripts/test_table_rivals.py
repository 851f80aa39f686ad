"""The rivals' table: what it prints, and a run of it on a tiny model that resumes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import rivals_tables
import table_rivals
import tiny

MACHINE = {"device_name": "a machine"}
UNCACHED = {"model": "mini", "prompts": 3, "steps": 50, "seconds": 1.5, "machine": MACHINE,
            "torch": "2"}  # fmt: skip


def result(method: str, k: int, psnr: list[float | None], **others: Any) -> dict[str, Any]:
    return {"method": method, "k": k, "scores": {"psnr_db": psnr}, "calibration_runs": 0.0,
            "calibration_seconds": 0.0, "seconds": 0.5, "flops_kept": k / 50,
            "steps_computed": float(k), **others}  # fmt: skip


def test_tables_have_calibration_beside_scores_and_the_best_first():
    results = {
        "plain": {25: result("plain", 25, [30.0, 32.0, 34.0]), 10: result("plain", 10, [20.0] * 3)},
        "bns": {25: result("bns", 25, [40.0, 40.0, None], calibration_runs=64.4,
                           calibration_seconds=7.0, alone=True)},
        "broken": {10: {"method": "broken", "k": 10, "error": "ValueError: no"}},
    }  # fmt: skip
    text = rivals_tables.tables(UNCACHED, results)
    lines = text.splitlines()
    assert lines[2] == "| psnr_db, mean ± half of its 95 % interval | calibration | 25 | 10 |"
    assert lines[4] == "| bns | 64 runs, 7 s | 40.0 (2) |  |"
    assert lines[5].startswith("| plain | none | 32.0 ± ")
    assert lines[6] == "| broken | – |  | – |"
    assert "| plain | none | 0.50; 50%; 25.0 | 0.50; 20%; 10.0 |" in lines
    assert lines[-1] == "broken 10: ValueError: no."


@pytest.mark.slow
def test_a_run_makes_every_method_once_and_resumes(tmp_path: Path, monkeypatch: Any):
    model, folder = tmp_path / "model", tmp_path / "out"
    tiny.tiny_wan().save_pretrained(model)
    defaults = {"height": 16, "width": 16, "num_frames": 9, "num_inference_steps": 6,
                "guidance_scale": 4.0, "max_sequence_length": 16, "fps": 8}  # fmt: skip
    (model / "generation_defaults.json").write_text(json.dumps(defaults))
    words = f"--model {model} --prompts 2 --single 1 --steps 6 --computed 3 --workers 1 --timed 1"

    def run(*methods: str) -> dict[str, Any]:
        given = [str(folder), *words.split(), "--metrics", "psnr_db", "--methods", *methods]
        monkeypatch.setattr(sys, "argv", ["table_rivals.py", *given])
        table_rivals.main()
        return rivals_tables.read(folder)

    first = run("fewer-steps", "easycache")
    assert first["fewer-steps"][3]["steps_computed"] == 3
    assert len(first["fewer-steps"][3]["scores"]["psnr_db"]) == 2
    assert len(first["easycache"][3]["scores"]["psnr_db"]) == 1
    assert first["easycache"][3]["calibration_runs"] > 0
    stamp = (folder / "results" / "easycache-3.json").stat().st_mtime_ns
    both = run("easycache", "spectrum")
    assert both.keys() == {"fewer-steps", "easycache", "spectrum"}
    assert (folder / "results" / "easycache-3.json").stat().st_mtime_ns == stamp
    assert "| spectrum | none |" in (folder / "table.md").read_text()
