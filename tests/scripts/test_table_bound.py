"""The bound's table: all levers on a tiny model, the plan's run against the pipeline, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bound_subject
import pytest
import table_bound
import tiny
import torch


@pytest.mark.slow
def test_every_lever_begins_at_the_plan_and_is_made_once(tmp_path: Path, capsys: Any):
    model, output = tmp_path / "model", tmp_path / "bound.jsonl"
    tiny.tiny_wan().save_pretrained(model)
    defaults = {"height": 16, "width": 16, "num_frames": 9, "num_inference_steps": 8,
                "guidance_scale": 4.0, "max_sequence_length": 16, "fps": 8}  # fmt: skip
    (model / "generation_defaults.json").write_text(json.dumps(defaults))
    trained = tmp_path / "rivals" / "calibration"
    trained.mkdir(parents=True)
    euler = {"labels": [1000.0, 750.0, 500.0, 250.0], "noise": [1.0] * 4,
             "weights": (-torch.ones(4, 4).tril() / 4).tolist()}  # fmt: skip
    (trained / "bns-grid-4.json").write_text(json.dumps(euler))
    counts = {"computed": 4, "prompts": 2, "clips": 4, "more": 5, "gauss-newton": 1,
              "iterations": 1}  # fmt: skip
    words = [str(model), "--output", str(output), "--trained", str(trained.parent)]
    words += [word for name, value in counts.items() for word in (f"--{name}", str(value))]
    table_bound.main(words)
    rows = {row["row"]: row for row in map(json.loads, output.read_text().splitlines())}
    plan = rows.pop("the plan of 4 clips")
    assert plan["agrees_db"] > 80  # the pipeline runs the same plan
    for lever in table_bound.LEVERS:
        step = rows[f"{lever}, 4 clips, Gauss-Newton 1"]["step"]
        assert step["after_db"] <= step["before_db"]
        assert (
            rows[f"{lever}, 5 clips, Adam"]["held_out_db"]
            >= (rows[f"{lever}, 5 clips, Adam"]["began_db"])
        )
    steps = {lever: rows[f"{lever}, 4 clips, Gauss-Newton 1"]["step"]["before_db"]
             for lever in table_bound.LEVERS if lever != "block"}  # fmt: skip
    assert max(steps.values()) - min(steps.values()) < 1e-3  # all begin as the plan
    assert steps["weights"] > rows["wide, 4 clips, Gauss-Newton 1"]["step"]["after_db"]
    assert rows["block, 4 clips, Gauss-Newton 1"]["cost"] <= 4
    assert len(rows) == 2 * len(table_bound.LEVERS) + 2
    assert "BNS on the grid" in capsys.readouterr().out
    written = output.read_text()
    table_bound.main(words)
    assert output.read_text() == written


def test_splits_are_of_the_axes_of_each_family():
    value = torch.randn(2, 3, 4, 8, 8)  # frames before channels or behind them; and packed
    for axes, grid in (((-4, -2, -1), None), ((-3, -2, -1), None), ((-4, -3, -2), (3, 4, 8))):
        layout = object.__new__(bound_subject.Layout)
        layout.axes, layout.grid = axes, grid
        given = value if grid is None else value.flatten(1, 3)
        laid = value.movedim(axes[0], 0)
        first = layout.first(given).view_as(value).movedim(axes[0], 0)
        assert torch.equal(first[0], laid[0])
        assert not first[1:].any()
        low = layout.low(given)
        assert layout.low(low) == pytest.approx(low, abs=1e-5)  # a projection
        means = (low.view_as(value) - value).mean(axes[1:])
        assert means == pytest.approx(torch.zeros_like(means), abs=1e-6)  # that keeps means
        assert 0.02 < float(low.square().sum() / value.square().sum()) < 0.5
