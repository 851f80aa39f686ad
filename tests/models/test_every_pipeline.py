"""Every video pipeline of diffusers with a transformer, at the site `output`, tiny.

`pipeline_trial.trial` has the assertions: bit-equal where neutral, planned on the second call with
as many forwards as the report says, restored exactly; or not planned, with the reason.
"""

from __future__ import annotations

import ast
from importlib.metadata import version
from pathlib import Path

import diffusers
import pytest
from packaging.version import Version
from pipeline_rows import NOT_TRIED, ROWS
from pipeline_trial import trial

from dit_accel.models.pipelines import record

QUICK = ("SkyReelsV2Pipeline", "MochiPipeline", "LattePipeline", "ConsisIDPipeline",
         "MotifVideoPipeline")  # fmt: skip


CASES = [
    pytest.param(row, id=row.title, marks=[] if row.title in QUICK else [pytest.mark.slow])
    for row in ROWS
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", CASES)
def test_a_pipeline_is_planned_or_refused(row):
    if not row.is_there:
        pytest.skip("this diffusers does not have it")
    found = trial(row)
    recorded_with, tried = record()
    if version("diffusers") == recorded_with:
        assert found == next(one for one in tried if one.pipeline == row.title)
    else:
        assert found.planned or found.refused or found.broken


def test_no_video_pipeline_of_diffusers_is_left_out():
    """By the source, as importing all of diffusers takes a minute: a class with a transformer,
    whose call has frames or a video."""
    recorded_with, _ = record()
    if Version(diffusers.__version__) > Version(recorded_with):
        pytest.skip(f"the record is of diffusers {recorded_with}")
    root = Path(diffusers.__file__).parent / "pipelines"
    found = set()
    for path in root.rglob("pipeline_*.py"):
        text = path.read_text(encoding="utf-8")
        if "deprecated" not in path.parts and "transformer:" in text and "frames" in text:
            found |= {one.name for one in ast.parse(text).body if makes_video(one)}
    assert {row.pipeline for row in ROWS if row.is_there} & found  # the rule finds some
    assert found <= {row.pipeline for row in ROWS} | NOT_TRIED.keys()


def makes_video(node: ast.stmt) -> bool:
    if not isinstance(node, ast.ClassDef):
        return False
    methods = {one.name: one.args for one in node.body if isinstance(one, ast.FunctionDef)}
    if not {"__init__", "__call__"} <= methods.keys():
        return False
    made, called = (
        {one.arg for one in (*methods[name].args, *methods[name].kwonlyargs)}
        for name in ("__init__", "__call__")
    )
    return "transformer" in made and any("frames" in one or "video" in one for one in called)


def test_the_record_has_every_row_and_forty_planned_pipelines():
    _, tried = record()
    assert [one.pipeline for one in tried] == [row.title for row in ROWS]
    planned = {one.pipeline.partition(" ")[0] for one in tried if one.planned}
    assert len(planned) >= 40
    readme = Path(__file__).parents[2] / "README.md"
    assert f"Plans work on {len(planned)} video pipeline classes" in readme.read_text()
    assert all(one.planned or one.refused or one.broken for one in tried)
