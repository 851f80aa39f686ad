"""Wall time of whole calls against the ideal, at the true size of real models, on a GPU.

python scripts/experiments/table_wall.py wan-1.3b ltx --steps 20 50 --output runs/wall.jsonl
python scripts/experiments/table_wall.py --table runs/wall.jsonl

Goes in: names of `MODELS`. Comes out: one line of JSON for every call, and from these the table of
docs/results.md. Weights are random, so clips are noise; seconds do not depend on that. Prompts are
given as embeddings and latents come out, so a call is its denoising loop. `ideal` is the share of
computed forwards, of the seconds of the uncached calls before and after it. `--tiny` proves the
script on a CPU. The rivals' thresholds are so high that they reuse all they may: random weights say
nothing of their savings. It knows diffusers' classes, cache-dit's and our `accelerate`.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch

from dit_accel import accelerate

SPEEDUP = 2.5
RIVALS = ("first-block", "cache-dit")


@dataclass(frozen=True)
class Model:
    """A model of diffusers: names of classes, their settings, and the arguments of a call."""

    pipeline: str
    transformer: str
    config: dict[str, Any]
    scheduler: Callable[[], Any]
    call: dict[str, Any]
    tiny: dict[str, Any]
    text: tuple[int, int]
    masked: bool = False
    absent: tuple[str, ...] = ("tokenizer", "text_encoder", "vae")
    small: dict[str, Any] = field(default_factory=lambda: {"height": 64, "width": 64})


def _unipc() -> Any:
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def _ltx_scheduler() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024,
        max_image_seq_len=4096, shift_terminal=0.1,
    )  # fmt: skip


def _cogvideox_scheduler() -> Any:
    return diffusers.CogVideoXDDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        prediction_type="v_prediction", rescale_betas_zero_snr=True, set_alpha_to_one=True,
        timestep_spacing="trailing", snr_shift_scale=1.0,
    )  # fmt: skip


_WAN_CALL = {"height": 480, "width": 832, "num_frames": 81, "guidance_scale": 5.0}
_WAN_TINY = {"num_layers": 2, "num_attention_heads": 2, "ffn_dim": 64}
MODELS = {
    "wan-1.3b": Model(
        "WanPipeline", "WanTransformer3DModel",
        {"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960},
        _unipc, _WAN_CALL, _WAN_TINY, (512, 4096),
    ),
    "wan-14b": Model(
        "WanPipeline", "WanTransformer3DModel",
        {"num_layers": 40, "num_attention_heads": 40, "ffn_dim": 13824},
        _unipc, _WAN_CALL, _WAN_TINY, (512, 4096),
    ),
    "ltx": Model(
        "LTXPipeline", "LTXVideoTransformer3DModel", {}, _ltx_scheduler,
        {"height": 512, "width": 704, "num_frames": 161, "guidance_scale": 3.0},
        {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16,
         "cross_attention_dim": 32}, (128, 4096), masked=True,
        small={"height": 64, "width": 64, "num_frames": 17},
    ),
    "cogvideox-5b": Model(
        "CogVideoXPipeline", "CogVideoXTransformer3DModel",
        {"num_layers": 42, "num_attention_heads": 48, "use_rotary_positional_embeddings": True,
         "attention_head_dim": 64},
        _cogvideox_scheduler,
        {"height": 480, "width": 720, "num_frames": 49, "guidance_scale": 6.0},
        {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16,
         "use_rotary_positional_embeddings": True}, (226, 4096),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """A pipeline on its device, and the arguments of its calls."""

    name: str
    pipe: Any
    call: dict[str, Any]
    device: str
    compiled: str
    output: Path | None
    calls: int = 3

    def run(self, steps: int) -> tuple[float, list[float]]:
        """Seconds of a call, and of every step. No step waits for the device."""
        clock = StepClock(self.device)
        generator = torch.Generator(self.device).manual_seed(0)
        given = self.call | {"num_inference_steps": steps, "generator": generator}
        synchronise(self.device)
        started = time.perf_counter()
        clock.mark()
        self.pipe(**given, callback_on_step_end=clock)
        synchronise(self.device)
        return time.perf_counter() - started, clock.seconds()

    def record(self, **row: Any) -> dict[str, Any]:
        """Print a row, and append it to the output."""
        row = {"model": self.name, "compiled": self.compiled, **row}
        line = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()})
        print(line.partition(', "steps_ms"')[0], flush=True)
        if self.output is not None:
            with self.output.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        return row


class StepClock:
    """A pipeline's step callback that marks the end of every step on the device's own clock."""

    def __init__(self, device: str) -> None:
        self.on_gpu, self.marks = device.startswith("cuda"), list[Any]()

    def mark(self) -> None:
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def __call__(self, pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict:
        self.mark()
        return given

    def seconds(self) -> list[float]:
        """Of every step, once the device is synchronised."""
        pairs = zip(self.marks, self.marks[1:], strict=False)
        if self.on_gpu:
            return [before.elapsed_time(after) / 1e3 for before, after in pairs]
        return [after - before for before, after in pairs]


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def build(name: str, device: str, dtype: torch.dtype, *, tiny: bool) -> tuple[Any, dict[str, Any]]:
    """A pipeline with random weights, and the arguments of its calls."""
    model = MODELS[name]
    config = model.config | (model.tiny if tiny else {})
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        transformer = getattr(diffusers, model.transformer)(**config).eval()
    torch.set_default_dtype(torch.float32)
    parts = dict.fromkeys(model.absent) | {"transformer": transformer}
    pipe = getattr(diffusers, model.pipeline)(scheduler=model.scheduler(), **parts)
    pipe.set_progress_bar_config(disable=True)
    call = model.call | (model.small | {"num_frames": 9} if tiny else {})
    call |= model.small if tiny else {}
    call["output_type"] = "latent"
    for side in ("", "negative_"):
        call[f"{side}prompt_embeds"] = torch.randn(1, *model.text, device=device, dtype=dtype)
        if model.masked:
            mask = torch.ones(1, model.text[0], device=device, dtype=torch.long)
            call[f"{side}prompt_attention_mask"] = mask
    return pipe, call


def measure(bench: Bench, steps: int, rows: list[str], *, once: bool) -> None:
    """All rows of one number of steps, between two uncached calls; or after one."""
    uncached = [bench.run(steps)[0]]
    found = []
    for row in rows:
        found += [one | {"row": row} for one in (OURS.get(row) or _rival(row))(bench, steps)]
    uncached += [] if once else [bench.run(steps)[0]]
    mean = statistics.mean(uncached)
    for one in found:
        ideal = mean * one.pop("share")
        one |= {"steps": steps, "uncached": mean, "ideal": ideal, "ratio": ideal / one["wall"]}
        bench.record(**one)
    spread = (max(uncached) - min(uncached)) / mean
    bench.record(steps=steps, uncached_calls=len(uncached), uncached=mean, spread=spread)


def planned(static: bool) -> Callable[[Bench, int], list[dict[str, Any]]]:
    """Calls: the first is recorded, the second planned, a third one repeats the plan."""

    def run(bench: Bench, steps: int) -> list[dict[str, Any]]:
        found = []
        with accelerate(bench.pipe, speedup=SPEEDUP, static=static) as handle:
            for call in range(bench.calls):
                if bench.device.startswith("cuda"):
                    torch.cuda.reset_peak_memory_stats()
                wall, each = bench.run(steps)
                started = time.perf_counter()
                report = handle.report()
                seconds = time.perf_counter() - started
                reused = [each[step] for step in range(steps) if step not in computed_of(report)]
                found.append({
                    "call": call + 1, "wall": wall, "computed": report.steps_computed,
                    "share": report.steps_computed / steps,
                    "reused_ms": 1e3 * statistics.median(reused) if reused else None,
                    "computed_ms": 1e3 * statistics.median(each[s] for s in computed_of(report)),
                    "first_step_ms": 1e3 * each[0], "cached_mib": report.cached_bytes / 2**20,
                    "peak_gib": peak_gib(bench.device), "host_syncs": report.host_syncs,
                    "report_ms": 1e3 * seconds, "notes": len(report.notes),
                    "steps_ms": [round(1e3 * one, 1) for one in each],
                })  # fmt: skip
        return found

    return run


def computed_of(report: Any) -> set[int]:
    return set(report.sites[0].computed)


def fewer_steps(bench: Bench, steps: int) -> list[dict[str, Any]]:
    """The stock schedule with as many steps as a plan computes."""
    count = round(steps / SPEEDUP)
    wall, _ = bench.run(count)
    return [{"wall": wall, "computed": count, "share": count / steps}]


def _rival(name: str) -> Callable[[Bench, int], list[dict[str, Any]]]:
    def run(bench: Bench, steps: int) -> list[dict[str, Any]]:
        with RIVAL[name](bench.pipe), blocks_computed(bench.pipe.transformer) as counts:
            bench.run(steps)
            counts.clear()
            wall, _ = bench.run(steps)
        blocks = blocks_of(bench.pipe.transformer)
        forwards = max(counts.values())
        return [{"wall": wall, "share": sum(counts.values()) / len(blocks) / forwards,
                 "peak_gib": peak_gib(bench.device)}]  # fmt: skip

    return run


OURS: dict[str, Callable[[Bench, int], list[dict[str, Any]]]] = {
    "guarded": planned(static=False), "static": planned(static=True), "fewer-steps": fewer_steps,
}  # fmt: skip


@contextmanager
def _first_block(pipe: Any) -> Iterator[None]:
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=10.0))
    try:
        yield
    finally:
        pipe.transformer.disable_cache()


@contextmanager
def _cache_dit(pipe: Any) -> Iterator[None]:
    import cache_dit

    separate = type(pipe).__name__ == "WanPipeline"
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=10.0,
        max_warmup_steps=4, max_continuous_cached_steps=2, enable_separate_cfg=separate,
    )  # fmt: skip
    cache_dit.enable_cache(pipe, cache_config=config)
    try:
        yield
    finally:
        cache_dit.disable_cache(pipe)


RIVAL = {"first-block": _first_block, "cache-dit": _cache_dit}


def blocks_of(transformer: Any) -> list[torch.nn.Module]:
    return list(getattr(transformer, "blocks", None) or transformer.transformer_blocks)


@contextmanager
def blocks_computed(transformer: Any) -> Iterator[dict[int, int]]:
    """Counts, by block, how often its first attention really ran."""
    counts: dict[int, int] = {}
    handles = []
    for number, block in enumerate(blocks_of(transformer)):

        def count(*_: Any, number: int = number) -> None:
            counts[number] = counts.get(number, 0) + 1

        handles.append(block.attn1.register_forward_pre_hook(count))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def peak_gib(device: str) -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if device.startswith("cuda") else None


def compile_as(pipe: Any, way: str) -> None:
    """Compile the transformer: its repeated blocks, the whole in one graph, or in CUDA graphs."""
    torch._dynamo.reset()
    if way == "regional" and pipe.transformer._repeated_blocks:
        pipe.transformer.compile_repeated_blocks(fullgraph=True)
    elif way == "regional":  # CogVideoX names no blocks
        for block in blocks_of(pipe.transformer):
            block.compile(fullgraph=True)
    elif way == "whole":
        pipe.transformer.compile(fullgraph=True)
    elif way == "cuda-graphs":
        pipe.transformer.compile(fullgraph=True, mode="reduce-overhead")


def graphs() -> dict[str, int]:
    """How many graphs there are, and breaks between them."""
    counters = torch._dynamo.utils.counters
    return {
        "graphs": int(counters["stats"]["unique_graphs"]),
        "graph_breaks": sum(counters["graph_break"].values()),
    }


def table(path: Path) -> None:
    """The rows of a file, as a table for docs/results.md."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    print("| model | compiled | steps | row | wall | speed | ideal / wall | reused step | peak |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        if "wall" not in row:
            continue
        number = f", call {row['call']}" if "call" in row else ""
        reused = f"{row['reused_ms']:.1f} ms" if row.get("reused_ms") else ""
        peak = f"{row['peak_gib']:.1f} GiB" if row.get("peak_gib") else ""
        cells = (
            row["model"], row["compiled"], row["steps"], row["row"] + number,
            f"{row['wall']:.2f} s", f"{row['uncached'] / row['wall']:.2f}×",
            f"{row['ratio']:.3f}", reused, peak,
        )  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--rows", nargs="+", default=["guarded", "static", "fewer-steps", *RIVALS])
    parser.add_argument("--compiled", nargs="+", default=["no"],
                        help="of no, regional, whole, cuda-graphs")  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--calls", type=int, default=3, help="of a planned row, from 2")
    parser.add_argument("--once", action="store_true", help="one uncached call, not two")
    parser.add_argument("--tiny", action="store_true", help="small models, to try the script")
    parser.add_argument("--output", type=Path, help="a file that rows are appended to")
    parser.add_argument("--table", type=Path, help="print the table of a file, and nothing else")
    args = parser.parse_args()
    if args.table is not None:
        return table(args.table)
    dtype = torch.float32 if args.tiny else torch.bfloat16
    for name in args.models:
        for way in args.compiled:
            pipe, call = build(name, args.device, dtype, tiny=args.tiny)
            bench = Bench(name, pipe, call, args.device, way, args.output, args.calls)
            compile_as(pipe, way)
            quiet = torch.no_grad() if way == "no" else nullcontext()
            with quiet:
                seconds = bench.run(3)[0]  # compiles, and fills the allocator
                gpu = torch.cuda.get_device_name() if args.device == "cuda" else ""
                bench.record(first_call=seconds, torch=torch.__version__, device=gpu)
                for steps in args.steps:
                    rows = [r for r in args.rows if way == "no" or r not in RIVALS]
                    measure(bench, steps, rows, once=args.once)
            if way != "no":
                bench.record(**graphs())
            del pipe, bench
            gc.collect()
            if args.device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
