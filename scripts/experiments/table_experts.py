"""Measures the error of plans that reach across the switch between two experts.

    python scripts/experiments/table_experts.py

Goes in: the miniature, whose second expert is a copy with noise on its weights. The amount of noise
decides how much the two differ when the second one begins. Comes out: a table for the log. Three
kinds of plans are carried out, each made from the record of one run: windows that reach across the
switch; a computed switch, whose values are mixed with older ones; and windows of one expert alone,
as in `planning/search.py`. It patches the search for the first two. Source: ours.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import statistics
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from diffusers import WanPipeline

from dit_accel import accelerate
from dit_accel.evaluation.prompts import read_prompts
from dit_accel.models import miniature
from dit_accel.planning import selection
from dit_accel.planning.plan import SamplerCoefficients

BOUNDARY = 0.8  # of the training timesteps: with the miniature's shift, the first 4 tenths


def two_experts(noise: float) -> Any:
    """The miniature with a second expert, whose matrices have this amount of relative noise."""
    pipe = WanPipeline.from_pretrained(miniature.path())
    second = copy.deepcopy(pipe.transformer)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in (w for w in second.parameters() if w.ndim > 1):
            weight += noise * weight.std() * torch.randn(weight.shape, generator=generator)
    parts = {**pipe.components, "transformer_2": second}
    # made again: without a folder there is no profile
    pipe = WanPipeline(**parts, boundary_ratio=BOUNDARY)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextlib.contextmanager
def windows(kind: str) -> Iterator[None]:
    """Make plans of this kind."""
    with contextlib.ExitStack() as stack:
        if kind == "across":
            stack.enter_context(mock.patch.object(selection, "second_of", return_value=None))
        if kind == "mixed":
            since = mock.patch.object(SamplerCoefficients, "since", return_value=0)
            stack.enter_context(since)
        yield


def distance(pipe: Any, call: dict[str, Any]) -> float:
    """Relative difference of the experts' predictions at the step where the second begins."""
    seen: list[torch.Tensor] = []

    def compare(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if not seen:
            first = pipe.transformer(**kwargs)[0]
            seen.append((output[0] - first).norm() / first.norm())

    hook = pipe.transformer_2.register_forward_hook(compare, with_kwargs=True)
    clips(pipe, call, ["a red circle moving right"])
    hook.remove()
    return float(seen[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.02, 0.05, 0.1])
    parser.add_argument("--guidance-2", type=float, nargs="+", default=[4.0, 2.0])
    parser.add_argument("--speedup", type=float, nargs="+", default=[2.5, 4.0])
    given = parser.parse_args()
    prompts = [one.prompt for one in read_prompts(miniature.prompts("miniature.jsonl"))][
        : given.prompts + 1
    ]
    print("| experts apart | guidance there | computed | windows | dB, mean | least |")
    print("|---|---|---|---|---|---|", flush=True)
    for noise in given.noise:
        pipe = two_experts(noise)
        for guidance in given.guidance_2:
            rows(pipe, prompts, guidance, given.steps, given.speedup)


def rows(pipe: Any, prompts: list[str], guidance: float, steps: int, speedups: list[float]) -> None:
    """Print the rows of one pair of experts at one guidance of the second."""
    defaults = miniature.call_defaults(miniature.path())
    call: dict[str, Any] = {name: value for name, value in defaults.items() if name != "fps"}
    call |= {
        "num_inference_steps": steps,
        "guidance_scale_2": guidance,
        "output_type": "latent",
        "num_frames": 9,
    }
    made = clips(pipe, call, prompts)
    apart = distance(pipe, call)
    for speedup in speedups:
        for kind in ("across", "mixed", "apart"):
            with windows(kind), accelerate(pipe, speedup=speedup, guard=False) as handle:
                clips(pipe, call, prompts[:1])  # this run is recorded
                pairs = zip(clips(pipe, call, prompts), made, strict=True)
                scores = [decibels(*pair) for pair in pairs][1:]
                count = handle.report().steps_computed
            print(
                f"| {apart:.1%} | {guidance:g} | {count:g} of {steps} | {kind} | "
                f"{statistics.fmean(scores):.1f} | {min(scores):.1f} |",
                flush=True,
            )  # fmt: skip


def clips(pipe: Any, call: dict[str, Any], prompts: list[str]) -> torch.Tensor:
    """The latents of a call for several prompts, each with a seed of its own."""
    generators = [torch.Generator().manual_seed(seed) for seed, _ in enumerate(prompts)]
    negative = [""] * len(prompts)
    made: torch.Tensor = pipe(
        **call, prompt=prompts, negative_prompt=negative, generator=generators
    ).frames
    return made


def decibels(latents: torch.Tensor, reference: torch.Tensor) -> float:
    """How close latents are to the uncached ones, relative to their size."""
    return -20 * math.log10(float((latents - reference).norm() / reference.norm()))


if __name__ == "__main__":
    main()
