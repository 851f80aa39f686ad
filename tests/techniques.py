"""Every technique as the contract tests see it: a neutral and a loose setting, and where it is.

A new technique needs an entry in `TECHNIQUES`; `tests/contract/` then runs it on every family.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import profiles
import pytest
import torch
from tiny_models import FURTHER, MODELS, STEPS, VARIANTS, TinyModel

from dit_accel import EDCW, UniCP, layout
from dit_accel.attention.block_sparse import BlockSizes
from dit_accel.attention.pcas import PCAS
from dit_accel.models.families import SITES, Family
from dit_accel.planning.plan import Extrapolation, Plan
from dit_accel.scenes.rows import SceneConfig

Settings = dict[str, Any]  # keywords of `accelerate`
LOOSE = EDCW(threshold=1e9, first=2)
COMPUTED = (0, 1, 3, 5)  # of `STEPS`, by the plans
LINE, REUSE = Extrapolation(({1: 2.0, 0: -1.0},)), Extrapolation(({3: 1.0},))
PLAN = Plan(STEPS, {2: LINE, 4: REUSE, 6: REUSE, 7: REUSE})


@dataclass(frozen=True)
class Technique:
    """One technique.

    Args:
        name: of its tests.
        cell: its column in the table of what goes together.
        neutral, loose: settings that change nothing, and settings that reuse all they may, for a
            pipeline that has run once.
        supports: whether a family has it; where not, `accelerate` refuses it.
        changes: arguments of the call.
        records: whether its first run is computed and recorded, where the prior knows no such run.
    """

    name: str
    cell: str
    neutral: Callable[[TinyModel, Any], Settings]
    loose: Callable[[TinyModel, Any], Settings]
    supports: Callable[[Family], bool] = lambda _: True
    changes: dict[str, Any] = field(default_factory=dict)
    records: bool = False

    def recorded(self, model: TinyModel) -> bool:
        """Whether the first run of a model is: the prior knows transformers with a row."""
        return self.records and not model.row.blocks


def _given(settings: Settings) -> Callable[[TinyModel, Any], Settings]:
    return lambda model, pipe: settings


def _windows(site: str) -> Technique:
    return Technique(
        name=f"windows-{site}", cell=f"windows at {site}",
        neutral=_given({"threshold": 0.0, "site": site}),
        loose=_given({"config": LOOSE, "site": site}),
        supports=lambda family: site in family.sites,
    )  # fmt: skip


def _has_stages(family: Family) -> bool:
    return family.stages


def _pruned(name: str, neutral: PCAS, loose: PCAS) -> Technique:
    def alone(pcas: PCAS) -> Settings:
        return {"accel": UniCP(windows=EDCW(threshold=0.0), pcas=pcas, shift=None)}

    return Technique(name, "UniCP", _given(alone(neutral)), _given(alone(loose)), _has_stages)


def profile_of(model: TinyModel, pipe: Any) -> profiles.Profile:
    """A made-up profile of a pipeline, with one plan that has `COMPUTED`."""
    scheduler, new = pipe.scheduler, len(pipe.scheduler.timesteps) != STEPS
    if new or scheduler.config.get("use_dynamic_shifting"):  # the last call may be of a scene
        dtype = pipe.transformer.dtype
        floats = {
            name: value.to(dtype) for name, value in model.arguments.items()
            if isinstance(value, torch.Tensor) and value.is_floating_point()
        }  # fmt: skip
        model.run(pipe, **floats)
    arguments = model.arguments
    guidance = float(arguments.get("guidance_scale", model.guidance))
    separate = model.branches == "separate" and guidance > 1
    names = [name for name in ("num_frames", "frames", "video_length") if name in arguments]
    size = arguments["height"], arguments["width"], arguments[names[0]]
    return profiles.made_for(
        pipe, COMPUTED, steps=STEPS, guidance=guidance, size=size,
        mix=(1.0, 1.0 - guidance) if separate else (1.0,),
    )  # fmt: skip


def _planned(name: str, cell: str, loose: Settings, neutral: Settings) -> Technique:
    """By a profile; the loose plan has `COMPUTED`."""

    def settings(given: Settings) -> Callable[[TinyModel, Any], Settings]:
        return lambda model, pipe: {"profile": profile_of(model, pipe)} | given

    return Technique(name, cell, settings(neutral), settings(loose))


def _layout(subjects: list[dict[str, Any]], shots: int) -> layout.Layout:
    """Shots with the same subjects; those with a reference are in the last one only."""
    first = [one for one in subjects if "reference" not in one]
    made = [
        {"id": f"shot{i}", "prompt": "a", "subjects": subjects if i == shots - 1 else first}
        for i in range(shots)
    ]
    text = json.dumps({"version": 1, "shots": made})
    return layout.parse(text.encode(), Path(), json_only=True)


def _scene(name: str, config: SceneConfig, subjects: list[dict[str, Any]], shots: int) -> Technique:
    """Against one subject that covers all."""
    whole = [{"id": "all", "prompt": "a red circle", "box": [0, 0, 1, 1]}]
    prompts = ["a red circle moving right", "a blue square moving left"][:shots]
    call = {"prompt": prompts, "negative_prompt": ["plain"] * shots, "height": 32, "width": 64}
    return Technique(
        name, "scene",
        neutral=_given({"layout": _layout(whole, shots), "scene": SceneConfig(text=0.0)}),
        loose=_given({"layout": _layout(subjects, shots), "scene": config}),
        supports=lambda family: family.rotary is not None,
        changes=call,
    )  # fmt: skip


RED = {"id": "red", "prompt": "a red circle", "box": [0, 0, 0.5, 1]}
BLUE = {"id": "blue", "prompt": "a blue square", "box": [0.5, 0, 1, 1]}
SHRUNK = {
    "id": "green",
    "prompt": "a",
    "box": [0, 0, 0.5, 0.5],
    "reference": {"shot": "shot0", "subject": "red"},
}

TECHNIQUES: dict[str, Technique] = {
    one.name: one
    for one in (
        *map(_windows, SITES),
        Technique(
            "unicp", "UniCP",
            neutral=_given({"accel": "unicp-paper", "threshold": 0.0}),
            loose=_given({"accel": UniCP(windows=LOOSE, pcas=PCAS(always=True))}),
            supports=_has_stages,
        ),
        _pruned(
            "pruned", PCAS(keep_mass=1.0, cap=1.0, always=True),
            PCAS(keep_mass=0.5, always=True, blocks=BlockSizes(4, 4, (1, 2, 2))),
        ),
        _pruned(
            "sliced", PCAS(mode="slice", rank=128, always=True),
            PCAS(mode="slice", rank=2, value_rank=2, always=True),
        ),
        Technique(
            "plan", "plan", _given({"plan": Plan(STEPS, {})}), _given({"plan": PLAN})
        ),
        Technique(
            "speedup", "plan", _given({"speedup": 1.0}), _given({"speedup": 2.0}), records=True
        ),
        # The profile's eight clips of about 40 dB guarantee 28 dB, and 24 or less where the plan is
        # transferred, as for two experts: 15 is below both, and nothing reaches 80.
        _planned("quality", "plan", {"quality": 15.0}, {"quality": 80.0}),
        _planned("static", "static plan", {"speedup": 2.0, "static": True},
                 {"speedup": 1.0, "static": True}),
        _planned("packed", "packed plan", {"speedup": 2.0, "cache_memory": 1},
                 {"speedup": 1.0, "cache_memory": 1}),
        _scene("isolation", SceneConfig(share=False), [RED, BLUE], 1),
        _scene("reposition", SceneConfig(isolate=False, text=0.0), [RED, SHRUNK], 2),
    )
}  # fmt: skip


ONE_OF_A_KIND = (  # one of each engine, with and without host syncs
    *(f"windows-{site}" for site in SITES), "unicp", "speedup", "static", "reposition",
)  # fmt: skip
KINDS = (*ONE_OF_A_KIND, "packed")  # a technique of every cell
# One of each engine: what other families than Wan are tried with where no technique does its own.
ENGINES = ("windows-block", "unicp", "speedup", "reposition")
OF_FURTHER = (*(f"windows-{site}" for site in SITES), "unicp", "pruned", "sliced", "speedup")
Change = Callable[[Any], None]


def combinations(
    *companions: str, beside: tuple[Change, ...] = (), without: tuple[str, ...] = (),
    only: tuple[str, ...] = tuple(TECHNIQUES), others: tuple[str, ...] = tuple(TECHNIQUES),
    variants: bool = True,
    refused: Mapping[str, str] | None = None, models: tuple[str, ...] = tuple(MODELS),
) -> Any:  # fmt: skip
    """Parameters `model` and `technique`: all that go together, less some techniques; models other
    than Wan have those of `others`.

    They fill the companions' cells. With `beside` there is `change` too, and its name is the cell.
    `refused` has companions that are refused, with what is accepted instead. The tests of a model
    run in one process, so that its pipelines and clips are made once.
    """

    def parameter(name: str, technique: Technique, change: Change | None) -> Any:
        own = () if change is None else (change.__name__.replace("_", " "),)
        marks = [pytest.mark.composes(technique.cell, one) for one in (*companions, *own)]
        for one, accepted in (refused or {}).items():
            marks.append(pytest.mark.composes(technique.cell, one, refused=accepted))
        if name in (*VARIANTS, *FURTHER):
            marks.append(pytest.mark.slow)
        marks.append(pytest.mark.xdist_group(f"contract of {name}"))
        values = MODELS[name], technique, *(() if change is None else (change,))
        words = name, technique.name, *(() if change is None else (change.__name__,))
        return pytest.param(*values, id="-".join(words), marks=marks)

    return pytest.mark.parametrize(
        ("model", "technique", "change") if beside else ("model", "technique"),
        [
            parameter(name, technique, change)
            for name, model in MODELS.items()
            if name in models
            for technique in TECHNIQUES.values()
            for change in beside or (None,)
            if technique.supports(model.row)
            and (variants or name not in VARIANTS)
            and (name not in FURTHER or technique.name in OF_FURTHER)
            and technique.name in only
            and (name == "wan" or technique.name in others)
            and technique.name not in without
        ],
    )


def refusals() -> Any:
    """Parameters `model` and `technique`: all that do not go together."""
    return pytest.mark.parametrize(
        ("model", "technique"),
        [
            pytest.param(model, technique, id=f"{name}-{technique.name}")
            for name, model in MODELS.items()
            for technique in TECHNIQUES.values()
            if not technique.supports(model.row) and name not in VARIANTS
        ],
    )


def is_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit by bit, and finite."""
    return bool(torch.equal(one, other) and one.isfinite().all())
