"""A user's own row: its transformer takes thresholds then, and a row that cannot be is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from every_pipeline import is_class
from pipeline_rows import ROWS

from dit_accel import EDCW, FAMILIES, Family, accelerate, register_family

ROW = Family(
    name="skyreels-v2", transformer="SkyReelsV2Transformer3DModel",
    pipelines=("SkyReelsV2Pipeline",), blocks=("blocks",), attention="attn1", branches="separate",
    sites=("attention", "block", "model"), notes="of a user", rows=(),
)  # fmt: skip


@pytest.fixture(autouse=True)
def as_before():
    before = dict(FAMILIES)
    yield
    FAMILIES.clear()
    FAMILIES.update(before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not is_class("SkyReelsV2Pipeline"), reason="not in this diffusers")
def test_a_registered_transformer_takes_thresholds():
    tiny = next(row for row in ROWS if row.title == "SkyReelsV2Pipeline")
    pipe = tiny.build()
    stock = tiny.run(pipe)
    with pytest.raises(ValueError, match="site is 'model'; accepted for Sky"):
        accelerate(pipe, threshold=0.0)
    register_family(ROW)
    for site in ROW.sites:
        with accelerate(pipe, threshold=0.0, site=site):
            assert torch.equal(tiny.run(pipe), stock)
        with accelerate(pipe, EDCW(threshold=1e9, first=2), site=site) as handle:
            assert not torch.equal(tiny.run(pipe), stock)
            assert handle.report().steps_computed < handle.report().steps
    assert torch.equal(tiny.run(pipe), stock)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer": "WanTransformer3DModel"}, "transformer='WanTransformer3DModel'"),
        ({"name": "wan"}, "name='wan'; accepted: a name that no row has"),
        ({"blocks": ()}, "blocks=.*accepted: the attributes"),
        ({"branches": "both"}, "branches='both'; accepted: separate, batched, embedded"),
        ({"sites": ("output",)}, "sites=.*accepted: some of attention, block, model"),
        ({"rows": (("(", "text"),)}, "rows=.*accepted: a regular expression"),
        ({"rows": (("x", "video"),)}, "rows=.*one of time, .*, text, .*joint"),
    ],
)
def test_a_row_that_cannot_be_is_refused(change, message):
    before = dict(FAMILIES)
    with pytest.raises(ValueError, match=message):
        register_family(dataclasses.replace(ROW, **change))
    assert before == FAMILIES


@pytest.mark.skipif(not is_class("SkyReelsV2Pipeline"), reason="not in this diffusers")
def test_blocks_that_are_not_there_are_named():
    pipe = next(row for row in ROWS if row.title == "SkyReelsV2Pipeline").build()
    register_family(dataclasses.replace(ROW, blocks=("layers",)))
    with pytest.raises(
        ValueError, match=r"has blocks layers, which .* lacks; accepted: some of blocks"
    ):
        accelerate(pipe, threshold=0.0)
