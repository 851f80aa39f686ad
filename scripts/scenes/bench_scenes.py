"""Measures the cost of a scene: a clip against the stock one, an attention against a dense mask.

    OMP_NUM_THREADS=1 python scripts/scenes/bench_scenes.py
    python scripts/scenes/bench_scenes.py --device cuda --dtype bfloat16 --heads 12 --width 128 \\
        --tokens 4096 16384 32768                         # one attention of Wan2.1 1.3B's width

First, FLOPs and seconds of the miniature's clips without their decoding: stock, isolated
(background open and closed), with subjects' own texts, and two shots of which the second reads the
first, against two stock clips in one batch. Runs alternate, and medians count. On a CPU, seconds
are CPU time of the process on one thread, so that other work on the machine does not count. On a
GPU they are wall time, including all queued work. Then one self-attention at sizes beyond the
miniature's: gathering by class against SDPA with the dense mask and against plain SDPA, with two
subjects that each cover a quarter of the tokens, and a reference that covers an eighth. Last, the
leak from one subject to another through the whole miniature: the change of one's output by a change
of the other's latents. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanPipeline

from dit_accel import Layout, SceneConfig, accelerate
from dit_accel.core.flops import FlopMeter
from dit_accel.core.measure import Stopwatch, synchronise
from dit_accel.layout import Keyframe, Reference, Shot, Subject
from dit_accel.models import miniature
from dit_accel.scenes.masks import dense_mask, gather_plan, isolated_attention

LEFT, RIGHT = (0.0, 0.2, 0.5, 0.8), (0.5, 0.2, 1.0, 0.8)
RED = "a red circle moving right on the left on a plain gray background"
BLUE = "a blue square growing on the right on a plain gray background"
BOTH = "a red circle moving right on the left and a blue square growing on the right on a plain "
BOTH += "gray background"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10, help="of a clip")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, nargs="*", default=[1280, 4096, 8192])
    parser.add_argument("--heads", type=int, default=6, help="of the one attention")
    parser.add_argument("--width", type=int, default=32, help="of each of its heads")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipe = WanPipeline.from_pretrained(str(miniature.path()))
    pipe.to(args.device).set_progress_bar_config(disable=True)
    found: dict[str, Any] = {
        "device": "cpu, 1 thread" if args.device == "cpu" else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "steps": args.steps,
        "clips": clips(pipe, args.steps, args.repeats),
        "attention": [attention(tokens, args) for tokens in args.tokens],
        "leak": leaks(pipe),
    }
    print(json.dumps(found))


# --- clips ---


def subject(name: str, prompt: str, box: tuple[float, ...], **more: Any) -> Subject:
    return Subject(name, prompt, (Keyframe(0.0, box),), **more)  # type: ignore[arg-type]


PAIR = Layout((Shot("one", BOTH, (subject("red", RED, LEFT), subject("blue", BLUE, RIGHT))),))
SHOTS = Layout(
    (
        Shot("one", RED, (subject("red", RED, LEFT),)),
        Shot("two", RED, (subject("red", RED, RIGHT, reference=Reference(shot="one")),)),
    )
)


def clips(pipe: Any, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Seconds and FLOPs of each way, and those of the stock call for the same prompts."""
    bare: dict[str, Any] = {"text": 0.0, "steps": (0.0, 1.0)}
    ways: dict[str, tuple[Layout, SceneConfig | None]] = {
        "stock, 1 clip": (PAIR, None),
        "isolated, open": (PAIR, SceneConfig(**bare)),
        "isolated, closed": (PAIR, SceneConfig(background="closed", **bare)),
        "isolated, open, own texts": (PAIR, SceneConfig(steps=(0.0, 1.0))),
        "stock, 2 clips": (SHOTS, None),
        "2 shots, reading": (SHOTS, SceneConfig(isolate=False, share_steps=(0.0, 1.0), **bare)),
        "2 shots, both branches reading": (
            SHOTS,
            SceneConfig(isolate=False, share_steps=(0.0, 1.0), amplify=False, **bare),
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    flops: dict[str, int] = {}
    for layout in (PAIR, SHOTS):
        _run(pipe, layout, None, 2)  # warm up
    for _ in range(repeats):
        for name, (layout, config) in ways.items():
            seconds, flops[name] = _run(pipe, layout, config, steps)
            times[name].append(seconds)
    rows = []
    for name, (layout, _) in ways.items():
        stock = f"stock, {len(layout.shots)} clip" + "s" * (len(layout.shots) > 1)
        seconds = statistics.median(times[name])
        row = {
            "what": name,
            "seconds": round(seconds, 3),
            "seconds_over_stock": round(seconds / statistics.median(times[stock]), 3),
            "flops_over_stock": round(flops[name] / flops[stock], 4),
        }
        rows.append(row)
        print(f"{name:<32} {seconds:7.2f} s  x{row['seconds_over_stock']:.2f} seconds, "
              f"x{row['flops_over_stock']:.3f} FLOPs", flush=True)  # fmt: skip
    return rows


def _run(pipe: Any, layout: Layout, config: SceneConfig | None, steps: int) -> tuple[float, int]:
    call = miniature.call_defaults(miniature.path())
    call.pop("fps")
    given = {**call, "num_inference_steps": steps, "output_type": "latent"}
    generators = [torch.Generator().manual_seed(0) for _ in layout.shots]

    def run() -> tuple[float, int]:
        start = clock(pipe.device)
        with FlopMeter() as meter:
            pipe(prompt=layout.prompts, generator=generators, **given)
        return clock(pipe.device) - start, meter.flops

    if config is None:
        return run()
    with accelerate(pipe, layout=layout, scene=config):
        return run()


def clock(device: torch.device) -> float:
    """Seconds: CPU time of this process on a CPU; wall time on a GPU, after all its work is
    done."""
    if device.type == "cpu":
        return time.process_time()
    synchronise(device)
    return time.perf_counter()


# --- one attention ---


@torch.no_grad()
def attention(tokens: int, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds, pairs and extra memory of one call: plain, with the dense mask, and
    gathered."""
    device, repeats = torch.device(args.device), max(args.repeats, 3)
    generator = torch.Generator().manual_seed(0)
    quarter, eighth = tokens // 4, tokens // 8
    order = torch.randperm(tokens, generator=generator)
    labels = torch.zeros(tokens, dtype=torch.int64)
    labels[order[:quarter]], labels[order[quarter : 2 * quarter]] = 1, 2
    references = torch.ones(eighth, dtype=torch.int64)
    size = args.heads, args.width
    made = {"dtype": getattr(torch, args.dtype), "device": device}
    query, key, value = torch.randn(3, 1, tokens, *size, generator=generator).to(**made)
    read = tuple(torch.randn(2, 1, eighth, *size, generator=generator).to(**made))
    both = torch.cat([key, read[0]], 1), torch.cat([value, read[1]], 1)
    row: dict[str, Any] = {"tokens": tokens, "references": eighth}
    ways: dict[str, tuple[Callable[[], torch.Tensor], float]] = {"plain": (
        lambda: sdpa(query, key, value), tokens**2)}  # fmt: skip
    for isolation in ("open", "closed"):
        plan = gather_plan(labels.to(device), isolation, references.to(device))
        mask = dense_mask(labels.to(device), isolation, references.to(device))
        ways[f"mask, {isolation}"] = lambda mask=mask: sdpa(query, *both, mask), mask.numel()
        ways[f"gathered, {isolation}"] = (
            lambda plan=plan: isolated_attention(plan, sdpa, query, key, value, read),
            plan.pairs,
        )
        off = ways[f"mask, {isolation}"][0]() - ways[f"gathered, {isolation}"][0]()
        row[f"difference, {isolation}"] = float(off.abs().max())
    times: dict[str, list[float]] = {name: [] for name in ways}
    calls = 1 if device.type == "cpu" else 10  # in one measurement
    for call, _ in ways.values():
        call()  # warm up
    for _ in range(repeats):
        for name, (call, _) in ways.items():
            start = clock(device)
            for _ in range(calls):
                call()
            times[name].append(1e3 * (clock(device) - start) / calls)
    for name, (call, pairs) in ways.items():
        row[name] = {
            "ms": round(statistics.median(times[name]), 3),
            "pairs_over_plain": round(pairs / tokens**2, 4),
        }
        line = f"{tokens} tokens, {name:<18} {row[name]['ms']:9.2f} ms, "
        line += f"x{row[name]['pairs_over_plain']:.3f} pairs"
        if device.type == "cuda":
            row[name]["memory_bytes"] = extra = _extra_memory(call)
            line += f", {extra / 2**20:.0f} MiB beside inputs and mask"
        print(line, flush=True)
    return row


def _extra_memory(call: Callable[[], torch.Tensor]) -> int:
    """Bytes that a call allocates at its peak, with its output."""
    before = torch.cuda.memory_allocated()
    with Stopwatch("cuda") as taken:
        call()
    return (taken.peak_memory_bytes or 0) - before


def sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


# --- the leak ---


def leaks(pipe: Any) -> dict[str, float]:
    """The share of a change of the right subject's latents that reaches the left subject's
    prediction, in one forward in the middle of the schedule: root mean square over the left box,
    relative to the effect of the change in the right one."""
    ways = {
        "stock": None,
        "open": SceneConfig(text=0.0, steps=(0.0, 1.0)),
        "closed": SceneConfig(text=0.0, background="closed", steps=(0.0, 1.0)),
    }
    found = {}
    for name, config in ways.items():
        if config is None:
            found[name] = _leak(pipe)
            continue
        with accelerate(pipe, layout=PAIR, scene=config):
            found[name] = _leak(pipe)
    for name, value in found.items():
        print(f"leak, {name:<8} {value:.3g}", flush=True)
    return found


@torch.no_grad()
def _leak(pipe: Any) -> float:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, pipe.transformer.config.in_channels, 5, 8, 8, generator=generator)
    changed = latents.clone()
    inside = slice(2, 6)  # rows that the boxes cover completely
    changed[..., inside, 4:] = torch.randn(changed[..., inside, 4:].shape, generator=generator)
    latents, changed = latents.to(pipe.device), changed.to(pipe.device)
    text = pipe.encode_prompt([BOTH], do_classifier_free_guidance=False, max_sequence_length=64)[0]
    pipe.scheduler.set_timesteps(50, device=pipe.device)
    times = pipe.scheduler.timesteps
    one, other = (
        pipe.transformer(x, times[25:26], text, return_dict=False)[0] for x in (latents, changed)
    )
    off = one - other
    left, right = off[..., inside, :4], off[..., inside, 4:]
    return float(left.square().mean().sqrt() / right.square().mean().sqrt())


if __name__ == "__main__":
    main()
