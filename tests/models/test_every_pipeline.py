"""Every video pipeline of diffusers with a transformer, at the site `output`, tiny.

`pipeline_trial.trial` has the assertions: bit-equal where neutral, planned on the second call with
as many forwards as the report says, restored exactly; or not planned, with the reason.
"""

from __future__ import annotations

from importlib.metadata import version

import pytest
from pipeline_rows import ROWS
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


def test_the_record_has_every_row_and_forty_planned_pipelines():
    _, tried = record()
    assert [one.pipeline for one in tried] == [row.title for row in ROWS]
    planned = {one.pipeline.partition(" ")[0] for one in tried if one.planned}
    assert len(planned) >= 40
    assert all(one.planned or one.refused or one.broken for one in tried)
