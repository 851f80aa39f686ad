"""What a method needed before its first clip: in results, tables and the report's page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fake_run import fake_plan, fake_run

from dit_accel.cli.common.tables import markdown_table
from dit_accel.evaluation.jobs import CALIBRATION_CLIPS
from dit_accel.evaluation.store import Store, StoreError
from dit_accel.evaluation.summary import runs_text, summarise

LABELS = ("uncached", "edcw:0.1", "edcw:0.2", "fewer-steps:6")
SPENT = {"edcw:0.1": 12.5, "fewer-steps:6": 0.0}  # of the other nothing is known


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = fake_run(tmp_path / "run", fake_plan(3, LABELS))
    for path in sorted((store.folder / "jobs").glob("*.json")):
        result = json.loads(path.read_text())
        if result["job"]["method"] in SPENT:
            result["calibration_runs"] = SPENT[result["job"]["method"]]
            path.write_text(json.dumps(result))
    return store.folder


def open_store(folder: Path) -> Store:
    return Store(folder)


def test_tables_print_calibration_beside_the_score(folder):
    summary = summarise(open_store(folder).results())
    rows = {row.label: row for row in summary.rows}
    assert rows["edcw:0.1"].calibration_runs == 12.5
    assert rows["edcw:0.2"].calibration_runs is None
    lines = markdown_table(summary, ("psnr_db",)).splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in lines if " | " in line}
    column = cells["method"].index("calibration runs")
    assert cells["method"][column + 1].strip(" |") == "psnr_db"
    assert cells["edcw:0.1"][column] == "12" and cells["edcw:0.2"][column] == "–"
    assert cells["fewer-steps:6"][column] == "0"


def test_the_page_has_a_column_of_it(folder):
    pytest.importorskip("jinja2")
    from dit_accel.evaluation.html.page import render

    store = open_store(folder)
    text = render(store, store.spec())
    assert "in uncached runs" in text and '<td class="num">12</td>' in text


def test_a_result_with_anything_else_is_refused(folder):
    path = next(
        p for p in (folder / "jobs").glob("*.json")
        if json.loads(p.read_text())["job"]["method"] == "edcw:0.1"
    )  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | {"calibration_runs": "many"}))
    with pytest.raises(StoreError, match="calibration_runs"):
        open_store(folder).results()


def test_runs_are_written_with_the_digits_that_they_are_worth():
    assert [runs_text(v) for v in (None, 0.0, 2.0, 8.64, 3200.4)] == ["–", "0", "2", "8.6", "3200"]


def test_calibration_clips_are_none_of_the_scored_ones():
    spec = fake_plan(3, LABELS)
    clips = spec.calibration_clips()
    assert len(clips) == CALIBRATION_CLIPS == len({(c.prompt, c.seed) for c in clips})
    assert not {c.seed for c in clips} & set(spec.seeds)
    assert [c.prompt for c in clips[:3]] == [p.prompt for p in spec.prompts]


def test_what_was_measured_is_read_as_data_and_anything_else_is_refused(tmp_path):
    store = open_store(tmp_path)
    (tmp_path / "calibration").mkdir()
    measured = {"runs": 2.5, "paths": {"3": [0, 2, 5]}, "remark": "the best of 7"}
    store.write_calibration("gits-paths", measured)
    assert store.calibration("gits-paths") == measured
    assert store.calibration("other") is None
    for wrong in ('{"runs": null}', '{"runs": true}', '{"a": [NaN]}', "[", '{"a": [[null]]}'):
        (tmp_path / "calibration" / "gits-paths.json").write_text(wrong)
        with pytest.raises(StoreError, match=r"gits-paths\.json"):
            store.calibration("gits-paths")


@pytest.mark.parametrize(
    ("found", "named"),
    [
        ({"paths": {}}, "calibration/gits-paths.json.runs is missing"),
        ({"runs": -1}, "calibration/gits-paths.json.runs is -1"),
        ({"runs": 1, "paths": {"3": [0, 2, 2]}}, "accepted: rising steps, the first of"),
        ({"runs": 1, "paths": {"3": [0, 2, 9]}}, "accepted: a whole number, 0 to 5"),
        ({"runs": 1, "paths": {}}, "paths.3 is missing"),
    ],
)
def test_a_field_that_is_wrong_is_named(found, named):
    from dit_accel.evaluation.methods import MethodContext, schedules

    clip = fake_plan(1).clip
    context = MethodContext(clip, lambda name, measure: found)
    with pytest.raises(ValueError, match=re.escape(named)):
        schedules.path_of(schedules.schedule_of("gits", None, context), 3, 6)
