"""Configs: checked when they are made, the same as the keywords, and the same again from a file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from calls import LOOSE, call, state_of
from profiles import candidate_of, profile_of
from tiny import tiny_wan

from dit_accel import (
    DWS,
    EDCW,
    PCAS,
    AccelConfig,
    PlanConfig,
    QualityConfig,
    SceneConfig,
    SpeedupConfig,
    ThresholdConfig,
    UncachedConfig,
    UniCP,
    UniCPConfig,
    accelerate,
)
from dit_accel.attention.block_sparse import BlockSizes
from dit_accel.config import CONFIGS, PlannedConfig
from dit_accel.config.keywords import config_of
from dit_accel.core.families import FAMILIES
from dit_accel.core.session import Session
from dit_accel.handle import build_engine
from dit_accel.planning.plan import Extrapolation, Plan

PLAN = Plan(12, {5: Extrapolation(({4: 1.0}, {4: 1.0}))})
CLOSED = SceneConfig(background="closed", steps=(0.0, 0.5))
OWN = UniCP(EDCW(0.3, order=1), PCAS(blocks=BlockSizes(tile=(2, 4, 8))), None)
EXAMPLES = {
    QualityConfig(): {"accel": "unicp"},
    QualityConfig(32, guard=False, cache_memory=1 << 30): {
        "quality": 32, "guard": False, "cache_memory": 1 << 30,
    },
    QualityConfig(30.5, profile="a.safetensors", force=True, layout="scene.yaml", scene=CLOSED): {
        "quality": 30.5, "profile": Path("a.safetensors"), "force": True,
        "layout": Path("scene.yaml"), "scene": CLOSED,
    },
    SpeedupConfig(2.5, static=True): {"speedup": 2.5, "static": True, "accel": "unicp"},
    SpeedupConfig(1): {"speedup": 1},
    ThresholdConfig(): {},
    ThresholdConfig(0.1, site="block"): {"threshold": 0.1, "site": "block"},
    ThresholdConfig(0.4, first=2, order=2, site="attention"): {
        "config": EDCW(0.4, first=2, order=2), "site": "attention", "threshold": 9.0,
    },
    ThresholdConfig(0.0, layout="scene.yaml"): {"threshold": 0, "layout": "scene.yaml"},
    UniCPConfig(): {"accel": "unicp-paper"},
    UniCPConfig(EDCW(0.1), layout="scene.yaml"): {
        "accel": "unicp-paper", "threshold": 0.1, "layout": "scene.yaml",
    },
    UniCPConfig(OWN.windows, OWN.pcas, None): {"accel": OWN},
    UniCPConfig(shift=DWS(margin=0.1)): {"config": UniCP(shift=DWS(margin=0.1))},
    UncachedConfig(layout="scene.yaml", scene=CLOSED): {"layout": "scene.yaml", "scene": CLOSED},
}  # fmt: skip


@pytest.mark.parametrize("config", EXAMPLES, ids=str)
def test_keywords_are_a_config(config):
    keywords = dict(EXAMPLES[config])
    assert config_of(keywords.pop("config", None), **keywords) == config
    assert config_of(config) is config


def test_a_plan_is_one_too():
    assert config_of(plan=PLAN, mix=(1.0, -3.0)) == PlanConfig(PLAN, (1.0, -3.0))
    assert PlanConfig(PLAN).policy.plan is PLAN


@pytest.mark.parametrize("config", EXAMPLES, ids=str)
def test_what_was_saved_makes_an_equal_config(config):
    saved = json.loads(json.dumps(config.to_dict()))
    assert AccelConfig.from_dict(saved) == config
    assert type(config).from_dict(saved) == config
    assert saved == json.loads(json.dumps(config.describe()))


def test_settings_that_were_not_saved_are_as_by_default():
    made = AccelConfig.from_dict({"kind": "quality", "quality": 30})
    assert made == QualityConfig(30)
    some = {"kind": "unicp-paper", "windows": {"threshold": 0.1}, "shift": None}
    assert AccelConfig.from_dict(some) == UniCPConfig(EDCW(0.1), shift=None)


def test_every_way_has_a_name_of_its_own():
    assert len({one.kind for one in CONFIGS}) == len(CONFIGS) and all(one.kind for one in CONFIGS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quality": 30}, "kind is None; accepted: quality, speedup, threshold, unicp-paper, plan"),
        ({"kind": "magic"}, "kind is 'magic'; accepted: quality, speedup"),
        ({"kind": "quality", "site": "block"}, "QualityConfig has site; accepted: layout, scene, "),
        ({"kind": "speedup"}, "SpeedupConfig: .*missing 1 required .* 'speedup'"),
        ({"kind": "quality", "quality": "32"}, "quality is '32'; accepted: a number"),
        ({"kind": "quality", "guard": "no"}, "guard is 'no'; accepted: True, False"),
        ({"kind": "threshold", "threshold": -1}, "threshold is -1; accepted: a finite number >= 0"),
        ({"kind": "unicp-paper", "pcas": 3}, "pcas is 3; accepted: the settings of PCAS by name"),
        ({"kind": "unicp-paper", "shift": {"a": 1}}, "shift has a; accepted: tolerance, margin"),
        ({"kind": "plan", "plan": {"total": 12}}, "plan is {'total': 12}; accepted: a Plan, or"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_place(given, message):
    with pytest.raises(ValueError, match=message):
        AccelConfig.from_dict(given)


def test_a_config_of_another_way_is_not_what_was_asked_for():
    with pytest.raises(ValueError, match=r"kind is 'speedup'; accepted: quality$"):
        QualityConfig.from_dict(SpeedupConfig(2).to_dict())
    assert PlannedConfig.from_dict(SpeedupConfig(2).to_dict()) == SpeedupConfig(2)


def test_what_no_file_holds_is_named_and_described_by_its_class():
    profile = profile_of([candidate_of((0, 1, 2, 5, 8, 11, 14, 17), [40.0] * 8)])
    config = QualityConfig(32, profile=profile)
    with pytest.raises(ValueError, match=r"profile is a Profile, .* accepted: the path of"):
        config.to_dict()
    assert config.describe()["profile"] == "<Profile>"
    assert str(config) == "QualityConfig(profile=Profile, quality=32)"
    with pytest.raises(ValueError, match=r"plan is a Plan, which cannot be written as JSON$"):
        PlanConfig(PLAN).to_dict()
    assert PlanConfig(PLAN).describe() == {
        "kind": "plan", "layout": None, "scene": None, "branch_parallel": False,
        "plan": "<Plan>", "mix": [1.0],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QualityConfig(0), "quality is 0; accepted: a finite number above 0"),
        (lambda: QualityConfig(float("nan")), "quality is nan"),
        (lambda: SpeedupConfig(0.5), "speedup is 0.5; accepted: a finite number, 1 or more"),
        (lambda: SpeedupConfig(2, cache_memory=0), "cache_memory is 0; accepted: bytes, 1 or"),
        (lambda: QualityConfig(guard=1), "guard is 1; accepted: True, False"),
        (lambda: ThresholdConfig(0.1, first=0), "first is 0; accepted: an integer >= 1"),
        (lambda: ThresholdConfig(0.1, site="layer"), "site is 'layer'; accepted: attention, block"),
        (lambda: UniCPConfig(0.1), "windows is 0.1; accepted: of EDCW"),
        (lambda: UniCPConfig(windows=None), "windows is None; accepted: of EDCW"),
        (lambda: UniCPConfig(shift=PCAS()), "shift is PCAS.*; accepted: of DWS, or None"),
        (lambda: ThresholdConfig(0.1, layout="a.yaml", scene=0.5), "scene is 0.5; accepted: of Sc"),
        (lambda: PlanConfig(3), "plan is 3; accepted: a Plan, or a Policy"),
        (lambda: AccelConfig(), "AccelConfig is only a base class; accepted: QualityConfig, Speed"),
        (lambda: PlannedConfig(), "PlannedConfig is only a base class; accepted: QualityConfig"),
        *(
            (lambda way=way: way(scene=CLOSED), "scene is given without layout")
            for way in (QualityConfig, ThresholdConfig, UniCPConfig, UncachedConfig)
        ),
    ],
)
def test_a_config_that_means_nothing_is_never_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("config", "beside", "message"),
    [
        (QualityConfig(30), {"quality": 30}, "quality is given beside QualityConfig; accepted: as"),
        (ThresholdConfig(), {"site": "block", "guard": False}, "site and guard are given beside"),
        (UniCP(), {"accel": "unicp"}, "config is UniCP.* accepted: an AccelConfig, an EDCW, or"),
        (UniCP(), {"site": "block"}, "accel is given with site; accepted: with threshold alone"),
        (EDCW(), {"speedup": 2}, "speedup is given with config; accepted: alone"),
        ({"quality": 30}, {}, "config is {'quality': 30}; accepted: an AccelConfig"),
        (None, {"accel": UniCPConfig(), "threshold": 0.1}, "threshold is given beside UniCPConfig"),
    ],
)
def test_a_config_is_given_alone(config, beside, message):
    pipe = tiny_wan()
    before = state_of(pipe)
    with pytest.raises(ValueError, match=message):
        accelerate(pipe, config, **beside)
    assert state_of(pipe) == before


def test_a_config_is_frozen_and_can_be_changed_into_another():
    config = QualityConfig(32)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.quality = 30
    assert dataclasses.replace(config, quality=30) == QualityConfig(30)
    with pytest.raises(ValueError, match="quality is -1"):
        dataclasses.replace(config, quality=-1)


# --- on a pipeline ---


@pytest.mark.parametrize(
    ("config", "keywords"),
    [
        (ThresholdConfig(1e9, first=2, site="block"), {"config": LOOSE, "site": "block"}),
        (ThresholdConfig(0.3), {"threshold": 0.3}),
        (UniCPConfig(EDCW(0.3)), {"accel": "unicp-paper", "threshold": 0.3}),
        (PlanConfig(PLAN), {"plan": PLAN}),
    ],
    ids=lambda value: str(value) if isinstance(value, AccelConfig) else "",
)
def test_a_config_does_what_its_keywords_do_and_the_report_has_it(config, keywords):
    pipe = tiny_wan()
    with accelerate(pipe, config) as handle:
        assert handle.config is config
        clip, report = call(pipe), handle.report()
    with accelerate(pipe, **keywords) as handle:
        assert np.array_equal(call(pipe), clip)
        other = handle.report()
    assert report.config == other.config == config.describe()
    assert report.requested == str(config) and f"Requested: {config}." in report.summary()
    assert report.sites == other.sites and report.threshold == other.threshold
    assert json.loads(json.dumps(report.config)) == json.loads(json.dumps(config.describe()))


def test_a_site_that_a_family_has_not_is_refused():
    family = dataclasses.replace(FAMILIES["WanTransformer3DModel"], sites=("block",))
    with pytest.raises(ValueError, match="site is 'model'; accepted for wan: block"):
        build_engine(ThresholdConfig(), Session(None, {}), family)


def test_a_mix_is_refused_without_a_plan():
    with pytest.raises(ValueError, match="mix is given without a plan; accepted: with plan"):
        config_of(mix=(1.0, -3.0))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"quality": "36"}, "quality is '36'; accepted: a number"),
        ({"quality": True}, "quality is True; accepted: a number"),
        ({"speedup": "2"}, "speedup is '2'; accepted: a number"),
        ({"threshold": True}, "threshold is True; accepted: a number"),
        ({"threshold": "0.2"}, "threshold is '0.2'; accepted: a number"),
        ({"threshold": [1]}, "threshold is [1]; accepted: a number"),
        ({"threshold": 10**400}, "; accepted: a number"),
        ({"site": 3}, "site is 3; accepted: a text"),
        ({"layout": 3}, "layout is 3; accepted: a Layout, the path of its file, or None"),
        ({"layout": {}}, "layout is {}; accepted: a Layout, the path of its file, or None"),
        ({"quality": 30, "profile": 5}, "profile is 5; accepted: a Profile, the path of its file"),
        ({"quality": 30, "guard": 0}, "guard is 0; accepted: True, False"),
        ({"quality": 30, "cache_memory": "lots"}, "cache_memory is 'lots'; accepted: bytes"),
        ({"quality": 30, "cache_memory": True}, "cache_memory is True; accepted: bytes"),
        ({"quality": 30, "cache_memory": 1.5}, "cache_memory is 1.5; accepted: bytes"),
        ({"quality": 30, "cache_memory": 0}, "cache_memory is 0; accepted: bytes, 1 or more"),
        ({"quality": "a", "speedup": 2}, "quality='a' and speedup=2 are given"),
    ],
)
def test_values_of_other_types_are_refused_by_name(keywords, message):
    with pytest.raises(ValueError) as error:
        config_of(**keywords)
    assert message in str(error.value)


@pytest.mark.parametrize("kind", [EDCW, SceneConfig, BlockSizes, PCAS, DWS])
@pytest.mark.parametrize("value", ["x", object()])
def test_every_number_of_a_part_is_checked(kind, value):
    for one in dataclasses.fields(kind):
        if str(one.type) in ("int", "float", "bool"):
            with pytest.raises(ValueError, match=f"{one.name} is .*; accepted: "):
                kind(**{one.name: value})


def test_values_are_taken_in_the_forms_of_the_command():
    assert config_of(quality=30, cache_memory="1GiB").cache_memory == 2**30
    assert config_of(quality=30, cache_memory=5).cache_memory == 5
    config = config_of(quality=np.float32(30.5))
    assert config.quality == 30.5 and type(config.quality) is float
    assert json.loads(json.dumps(config.to_dict()))["quality"] == 30.5
