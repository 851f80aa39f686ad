"""The cases of the safety net that run a pipeline: every technique on every pipeline, four prompts.

Goes in: nothing. Comes out: `cases()`, functions by name. Each returns, for every call, the SHA-256
of the frames and the whole report or, if a technique is refused, the error. It uses only public
names of dit_accel. One handle makes all calls of a case, so that traces of a run are visible in the
next one. Ours; the techniques are those that the package offers its users.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import tiny_families
from safety_plain import fingerprint, plain, report_of, without_paths
from tiny_families import MINIATURE, PROMPTS, ROOT, Subject

from dit_accel import DWS, EDCW, PCAS, UniCP, accelerate, layout, trim_text

Case = Callable[[], dict[str, Any]]
Keywords = Callable[[Subject], dict[str, Any]]

REFUSALS = (ValueError, RuntimeError, NotImplementedError)
TRIMMED = "tiny-hunyuan-video"
OTHER_STEPS = 30  # than in the miniature's profile

WINDOWS: dict[str, Keywords] = {
    "threshold-attention": lambda it: {"threshold": it.threshold, "site": "attention"},
    "threshold-block": lambda it: {"threshold": it.threshold, "site": "block"},
    "threshold-model": lambda it: {"threshold": it.threshold, "site": "model"},
    "threshold-line": lambda it: {"config": EDCW(2 * it.threshold, order=1)},
    "unicp-paper": lambda it: {"accel": "unicp-paper", "threshold": it.threshold},
    "unicp-pruned": lambda it: {
        "accel": UniCP(EDCW(0.3 * it.threshold), PCAS(always=True), DWS(it.threshold, margin=0))
    },
}
PLANNED: dict[str, Keywords] = {
    "quality-32": lambda _: {"quality": 32},
    "quality-reachable": lambda it: {"quality": it.quality},
    "speedup-2.5": lambda _: {"speedup": 2.5},
    "speedup-4": lambda _: {"speedup": 4},
    "static": lambda it: {"quality": it.quality, "static": True},
    "memory-cap": lambda it: {"quality": it.quality, "cache_memory": it.cache_memory},
}
LAYOUTS: dict[str, Keywords] = {
    "two-subjects": lambda _: {},
    "two-shots": lambda _: {"speedup": 2.5},
    "similar-colours": lambda it: {"threshold": it.threshold, "site": "attention"},
    "three-subjects": lambda it: {"quality": it.quality},
}
FEW = ("threshold-attention", "threshold-model", "unicp-pruned", "quality-reachable", "speedup-2.5")
LEFT_OUT = {
    MINIATURE: ("quality-reachable",),  # the same as quality-32
    **dict.fromkeys(("tiny-wan-2.2", "tiny-wan-multistep"), {*WINDOWS, *PLANNED} - {*FEW}),
}


def cases() -> dict[str, Case]:
    """Every case by its name, `pipeline/technique`, in the order in which they run."""
    found: dict[str, Case] = {}
    for name, build in tiny_families.PIPELINES.items():
        subject = functools.cache(build)
        found[f"{name}/uncached"] = functools.partial(uncached, subject)
        for technique, keywords in (WINDOWS | PLANNED).items():
            if technique not in LEFT_OUT.get(name, ()):
                run = planned if technique in PLANNED else windowed
                found[f"{name}/{technique}"] = functools.partial(run, subject, keywords)
        for file, keywords in LAYOUTS.items():
            found[f"{name}/layout-{file}"] = functools.partial(arranged, subject, file, keywords)
    found[f"{MINIATURE}/other-steps"] = other_steps
    found[f"{TRIMMED}/trim-text"] = trimmed
    return found


def uncached(build: Callable[[], Subject]) -> dict[str, Any]:
    """The stock pipeline."""
    subject = build()
    return {"calls": [_call(subject, subject.arguments(i, subject.steps)) for i in _indices()]}


def windowed(build: Callable[[], Subject], keywords: Keywords) -> dict[str, Any]:
    """Techniques that decide by drift, step by step."""
    subject = build()
    return _calls(subject, keywords, subject.fewer_steps, _indices())


def planned(build: Callable[[], Subject], keywords: Keywords) -> dict[str, Any]:
    """Techniques with a plan. Without a profile, the first run of the first prompt is recorded."""
    subject = build()
    recorded = () if subject.has_profile else (0,)
    return _calls(subject, keywords, subject.steps, (*recorded, *_indices()))


def other_steps() -> dict[str, Any]:
    """A profile transferred to a run with other steps."""
    return _calls(tiny_families.miniature(), PLANNED["quality-32"], OTHER_STEPS, _indices())


def trimmed() -> dict[str, Any]:
    """Padding of the text left out of attention, in the one family that has it."""
    subject = tiny_families.PIPELINES[TRIMMED]()
    with trim_text(subject.pipe) as trim:
        calls = [_call(subject, subject.arguments(index, subject.steps)) for index in _indices()]
        return {"calls": calls, "tokens": plain(trim.tokens)}


def arranged(build: Callable[[], Subject], file: str, keywords: Keywords) -> dict[str, Any]:
    """A layout of the assets, called twice if the first run is recorded."""
    subject, path = build(), ROOT / "assets" / "layouts" / f"{file}.yaml"
    given, steps = keywords(subject), subject.fewer_steps
    by_plan = bool({"quality", "speedup"} & given.keys()) and not subject.has_profile
    prompts = layout.load(path).prompts
    with _refusals() as refused, accelerate(subject.pipe, layout=path, **given) as handle:
        calls = [
            _call(subject, subject.scene_arguments(prompts, steps), handle)
            for _ in range(1 + by_plan)
        ]
    return refused or {"calls": calls}


def _calls(
    subject: Subject, keywords: Keywords, steps: int, indices: tuple[int, ...]
) -> dict[str, Any]:
    with _refusals() as refused, accelerate(subject.pipe, **keywords(subject)) as handle:
        calls = [_call(subject, subject.arguments(index, steps), handle) for index in indices]
    return refused or {"calls": calls}


def _call(subject: Subject, arguments: dict[str, Any], handle: Any = None) -> dict[str, Any]:
    frames = fingerprint(subject.pipe(**arguments).frames)
    report = report_of(handle) if handle is not None else None
    return {"frames": frames, "report": report}


@contextlib.contextmanager
def _refusals() -> Any:
    """Yields a dict with the error of a refusal in the body, if there was one."""
    refused: dict[str, Any] = {}
    try:
        yield refused
    except REFUSALS as error:
        refused["refused"] = {"type": type(error).__name__, "text": without_paths(str(error))}


def _indices() -> tuple[int, ...]:
    return tuple(range(len(PROMPTS)))
