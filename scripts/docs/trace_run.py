"""Follows one `quality=` run of the miniature and lists the modules that it enters, phase by phase.

In: nothing. Out: a list on the terminal, or JSON; docs/development.md shows it, a test compares.
Knows: every Python function of the package that is called, in order of the first call.
Does not know: what diffusers and torch do in between.
Source: ours.

    python scripts/docs/trace_run.py [--json]
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import dit_accel
from dit_accel.models import miniature
from dit_accel.models.loading import quiet_libraries

PACKAGE = Path(dit_accel.__file__).parent
STEPS = 50
Entered = dict[str, list[str]]  # phase -> modules in order of their first call


@contextmanager
def traced(entered: list[str]) -> Iterator[None]:
    """Append every module of the package that is entered while the body runs."""
    prefix = f"{PACKAGE}/"

    def watch(frame: Any, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(prefix):
            module = name.removeprefix(prefix).removesuffix(".py")
            if module not in entered:
                entered.append(module)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(before)


def run(quality: float = 32.0) -> Entered:
    """The modules of one run: at `accelerate`, before the first step, at each kind of step, after.

    Args:
        quality: PSNR in dB, as in `accelerate`.
    """
    from diffusers import WanPipeline

    with quiet_libraries(verbose=False):
        pipe = WanPipeline.from_pretrained(miniature.path())
    pipe.set_progress_bar_config(disable=True)
    dit_accel.accelerate(pipe, quality=quality).remove()  # so that imports are not part of the run
    found: Entered = {}
    entered: list[str] = []
    with traced(entered):
        handle = dit_accel.accelerate(pipe, quality=quality)
    found["accelerate"], entered[:] = list(entered), []
    steps: list[list[str]] = []

    def step_ended(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(list(entered))
        entered.clear()
        return {}

    call = miniature.call_defaults(miniature.path()) | {
        "num_inference_steps": STEPS,
        "output_type": "latent",
    }
    call["generator"] = torch.Generator().manual_seed(0)
    with traced(entered):
        pipe("a red circle moving right", callback_on_step_end=step_ended, **_accepted(pipe, call))
    computed = set(handle.report().sites[0].computed)
    found["first step, with the choice of the plan"] = steps[0]
    found["a computed step"] = _union(steps[s] for s in range(1, STEPS) if s in computed)
    found["an extrapolated step"] = _union(steps[s] for s in range(1, STEPS) if s not in computed)
    with traced(entered):
        handle.report()
    found["report"] = list(entered)
    handle.remove()
    return found


def _accepted(pipe: Any, call: dict[str, Any]) -> dict[str, Any]:
    names = inspect.signature(type(pipe).__call__).parameters
    return {name: value for name, value in call.items() if name in names}


def _union(lists: Iterator[list[str]]) -> list[str]:
    return list(dict.fromkeys(module for modules in lists for module in modules))


def main(show: Callable[[str], None] = print) -> None:
    """Print the list."""
    found = run()
    if "--json" in sys.argv[1:]:
        show(json.dumps(found, indent=2))
        return
    for phase, modules in found.items():
        show(f"{phase} ({len(modules)}):\n    " + "\n    ".join(modules))


if __name__ == "__main__":
    main()
