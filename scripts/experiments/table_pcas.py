"""PCAS and DWS for research/LOG.md: bound, ranks and errors of attention; ablation on clips.

    OMP_NUM_THREADS=1 python scripts/experiments/table_pcas.py bound
    OMP_NUM_THREADS=1 python scripts/experiments/table_pcas.py ablation --prompts 4

`bound` captures queries, keys and values of every self-attention of the miniature at some steps of
two uncached clips, makes the bases from one capture, and compares what they predict of a logit with
what is measured: on that capture, five steps later, and on the other clip. Then the relative error
of an attention's output for every way to leave something out, bases always from five steps before.

`ablation` makes clips with each technique switched off in turn and compares them with the uncached
clip of the same prompt and seed, all in one process. Results are stored prompt by prompt in
`--out`, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanPipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "miniature"))

from check_miniature import choose
from output import sample
from table_edcw import in_words

from dit_accel import DWS, EDCW, PCAS, UniCP, accelerate
from dit_accel.attention import block_sparse, pca, processor
from dit_accel.attention.pca import CovarianceAccumulator
from dit_accel.core.measure import Stopwatch
from dit_accel.core.patching import Patches
from dit_accel.core.tokens import TokenGrid
from dit_accel.metrics import psnr, ssim

STEPS = 50
CAPTURED = (5, 10, 20, 25, 40, 45)  # pairs of a step to learn from and one five steps later
RANKS = (8, 16, 24, 28, 32)
Capture = dict[tuple[int, int], tuple[torch.Tensor, ...]]  # (layer, step) -> q, k, v


# --- bound ---


class Capturing:
    """Stores the first branch's queries, keys and values of every layer at `CAPTURED` steps."""

    def __init__(self, pipe: WanPipeline) -> None:
        self.captured: Capture = {}
        self.calls: dict[int, int] = {}
        self.patches = Patches()
        for layer, block in enumerate(pipe.transformer.blocks):
            staged = processor.install(block.attn1, self.patches)
            staged.attend = self._keeping(layer, staged.dense)

    def _keeping(self, layer: int, dense: Any) -> Any:
        def attend(*rows: torch.Tensor) -> torch.Tensor:
            call = self.calls.get(layer, 0)
            self.calls[layer] = call + 1
            if call % 2 == 0 and call // 2 in CAPTURED:  # the conditional branch comes first
                self.captured[layer, call // 2] = tuple(row.clone() for row in rows)
            return dense(*rows)

        return attend


def capture(pipe: WanPipeline, prompt: str, seed: int) -> Capture:
    capturing = Capturing(pipe)
    try:
        sample(pipe, [prompt], seed, num_inference_steps=STEPS)
    finally:
        capturing.patches.undo()
    return capturing.captured


def principal_basis(left: torch.Tensor, right: torch.Tensor) -> pca.Basis:
    """Plain PCA, for comparison: principal directions of `right` only. For arguments and result see
    `pca.bilinear_basis`; its `left_out` is never above that of this basis."""
    values, vectors = torch.linalg.eigh(right.double())
    values, vectors = values.flip(-1).clamp_min(0), vectors.flip(-1)
    met = (vectors * (left.double() @ vectors)).sum(-2)
    turned = vectors.float()
    return pca.Basis(turned, turned, (values * met).float())


def logit_error(rows: tuple[torch.Tensor, ...], basis: pca.Basis, mean: torch.Tensor, rank: int):
    """`(H,)` root mean square error of all logits at a rank."""
    query, key = rows[0], rows[1] - mean
    narrow = pca.slice_logits(rows[0], rows[1], basis, mean, rank)
    true, ours = (
        q.transpose(1, 2) @ k.transpose(1, 2).mT for q, k in ((query, key), narrow)
    )  # fmt: skip
    return ((true - ours).square().mean((0, 2, 3)) / query.shape[-1]).sqrt()


def bound(pipe: WanPipeline, prompts: list[str]) -> None:
    captures = [capture(pipe, prompt, 2000 + i) for i, prompt in enumerate(prompts)]
    learned = {}
    for (layer, step), rows in captures[0].items():
        q, k, v = (CovarianceAccumulator().add(row) for row in rows)
        learned[layer, step] = pca.logit_basis(q, k), k.mean, v, (q, k)
    pairs = [(layer, step) for layer, step in learned if (layer, step + 5) in captures[0]]
    print(
        "| rank | predicted | measured, same capture | five steps later | other prompt | ", end=""
    )
    print("largest measured/predicted, same capture |\n|---|---|---|---|---|---|")
    for rank in RANKS:
        cells: list[list[float]] = [[], [], [], []]
        for at in pairs:
            basis, mean, *_ = learned[at]
            cells[0] += pca.logit_rms(basis, rank).tolist()
            later = captures[0][at[0], at[1] + 5]
            for cell, rows in zip(
                cells[1:], (captures[0][at], later, captures[1][at]), strict=True
            ):
                cell += logit_error(rows, basis, mean, rank).tolist()
        ratios = [m / p for p, m in zip(*cells[:2], strict=True) if p > 1e-4]
        means = " | ".join(f"{np.sqrt(np.mean(np.square(cell))):.4f}" for cell in cells)
        print(f"| {rank} | {means} | {max(ratios, default=0):.4f} |")
    print(f"\n{len(pairs)} captures of 6 heads; {int(learned[pairs[0]][2].count)} tokens each.\n")
    print("Ranks by the rule, per layer: heads' lowest, median, highest at step 5, 20, 40\n")
    print("| layer | rms 0.1 | rms 0.3 | rms 0.1, PCA of keys alone |\n|---|---|---|---|")
    for layer in range(len(pipe.transformer.blocks)):
        cells = []
        for rms, plain in ((0.1, False), (0.3, False), (0.1, True)):
            ranks = []
            for step in (5, 20, 40):
                basis, _, _, (q, k) = learned[layer, step]
                if plain:
                    basis = principal_basis(q.second, k.covariance)
                ranks += basis.rank_for(pca.allowed_for(rms, 32)).tolist()
            cells.append(f"{min(ranks)}, {np.median(ranks):g}, {max(ranks)}")
        print(f"| {layer} | {' | '.join(cells)} |")
    print("\n| left out | share of FLOPs | error of attention's output |\n|---|---|---|")
    for name, share, error in outputs(pipe, captures[0], learned, pairs):
        print(f"| {name} | {share:.0%} | {error:.1%} |")


def outputs(pipe, captured: Capture, learned: dict, pairs: list):
    """For every way to leave something out: its share of attention's FLOPs, and its relative
    error."""
    grid = TokenGrid(5, 8, 8)
    blocks = block_sparse.blocks_for(grid.tokens)
    order = block_sparse.tile_order(grid, blocks.tile)

    def dense(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        scale = pipe.transformer.config.attention_head_dim**-0.5
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(
            1, 2
        )

    def sliced(rank, plain=False):
        def attend(at, q, k, v):
            basis, mean, _, (queries, keys) = learned[at]
            if plain:
                basis = principal_basis(queries.second, keys.covariance)
            return dense(*pca.slice_logits(q, k, basis, mean, rank), v), (rank / 32 + 1) / 2

        return attend

    def values(rank):
        def attend(at, q, k, v):
            moments = learned[at][2]
            weight = pipe.transformer.blocks[at[0]].attn1.to_out[0].weight
            left, right = pca.value_basis(weight, moments).cut(rank)
            low = pca.project(v - moments.mean, right)
            return dense(q, k, pca.project(low, left.mT) + moments.mean), (rank / 32 + 1) / 2

        return attend

    def pruned(keep, rank, tail, raster=False, samples=16):
        def attend(at, q, k, v):
            here = torch.arange(grid.tokens) if raster else order
            q, k, v = (x[:, here] for x in (q, k, v))
            left, right = learned[at][0].cut(rank)
            low = pca.project(q, left), pca.project(k, right)
            mass = block_sparse.block_mass(*low, blocks, samples, 32**-0.5)
            selection = block_sparse.keep_blocks(mass, keep, 0.05, 1.0)
            out = block_sparse.pruned_attention(q, k, v, selection, blocks, tail)
            return out[:, here.argsort()], float(selection.density())

        return attend

    ways = {
        **{f"Q, K at rank {r}": sliced(r) for r in (16, 24, 28)},
        "Q, K at rank 24, PCA of keys alone": sliced(24, plain=True),
        "V at rank 24, by the output projection": values(24),
        **{f"blocks, mass {p}": pruned(p, 16, True) for p in (0.9, 0.8, 0.6)},
        "blocks, mass 0.8, without tail": pruned(0.8, 16, False),
        "blocks, mass 0.8, scores at rank 32 (exact)": pruned(0.8, 32, True),
        "blocks, mass 0.8, scores at rank 8": pruned(0.8, 8, True),
        "blocks, mass 0.8, 4 samples of 16": pruned(0.8, 16, True, samples=4),
        "blocks, mass 0.8, tokens in raster order": pruned(0.8, 16, True, raster=True),
    }
    for name, attend in ways.items():
        shares, errors = [], []
        for layer, step in pairs:
            rows = captured[layer, step + 5]
            out = pipe.transformer.blocks[layer].attn1.to_out[0]
            made, share = attend((layer, step), *rows)
            true, ours = (out(x.flatten(2)) - out.bias for x in (dense(*rows), made))
            errors.append(float((ours - true).norm() / true.norm()))
            shares.append(share)
        yield name, float(np.mean(shares)), float(np.mean(errors))


# --- ablation ---

PRUNE = PCAS(rank=16, keep_mass=0.9, cap=1.0, always=True)
SLICE = PCAS(mode="slice", rank=24, value_rank=24, always=True)
NEVER = EDCW(threshold=0.0)


def rows() -> dict[str, UniCP | int]:
    """The rows by name: a preset, or a number of steps of the stock pipeline."""
    found: dict[str, UniCP | int] = {
        "(a) alone: Q, K at rank 24": UniCP(NEVER, replace(SLICE, value_rank=None), None),
        "(a) alone: Q, K, V at rank 24": UniCP(NEVER, SLICE, None),
        "(b) alone: pruned, mass 0.9": UniCP(NEVER, PRUNE, None),
        "(b) alone, without tail": UniCP(NEVER, replace(PRUNE, tail=False), None),
        "(b) alone, scores at full width": UniCP(NEVER, replace(PRUNE, rank=32), None),
    }
    windows, delta = EDCW(threshold=0.1), "δ=0.1"
    return found | {
        f"unicp-paper {delta}": UniCP(windows, PRUNE, DWS()),
        f"{delta}, pruned values allowed all of δ": UniCP(windows, PRUNE, DWS(tolerance=0.1)),
        f"{delta}, (b) off: windows alone": UniCP(windows, None, None),
        f"{delta}, (a) in place of (b)": UniCP(windows, SLICE, DWS()),
        f"{delta}, tail off": UniCP(windows, replace(PRUNE, tail=False), DWS()),
        f"{delta}, DWS off: pruned where not cached": UniCP(windows, PRUNE, None),
        **{f"{n} steps": n for n in (45, 40)},
    }


def one_prompt(pipe: WanPipeline, prompt: str, seed: int) -> dict[str, dict[str, float]]:
    """Every row on one prompt, against the uncached clip."""
    sample(pipe, [prompt], seed, num_inference_steps=1)
    with Stopwatch("cpu") as watch:
        stock = sample(pipe, [prompt], seed, num_inference_steps=STEPS)[0]
    whole = watch.seconds
    results = {}
    for name, row in rows().items():
        clip, cost, seconds = one_row(pipe, prompt, seed, row)
        results[name] = cost | {
            "speedup": whole / seconds,
            "psnr_db": psnr(stock, clip, data_range=1.0),
            "ssim": ssim(stock, clip, data_range=1.0),
        }
        print(f"  {name}: {results[name]['psnr_db']:.1f} dB", flush=True)
    return results


def one_row(pipe: WanPipeline, prompt: str, seed: int, row: UniCP | int):
    """A clip, its cost, and its seconds."""
    if isinstance(row, int):
        with Stopwatch("cpu") as watch:
            clip = sample(pipe, [prompt], seed, num_inference_steps=row)[0]
        return clip, {"flops": row / STEPS, "computed": float(row)}, watch.seconds
    with accelerate(pipe, accel=row) as handle:
        with Stopwatch("cpu") as watch:
            clip = sample(pipe, [prompt], seed, num_inference_steps=STEPS)[0]
        report = handle.report()
    many = len(report.sites)
    done = {
        name: sum(len(getattr(site, name)) for site in report.sites) / many
        for name in ("computed", "cached", "pruned", "blended")
    }
    shares = [
        share for site in report.sites for share in site.attention_share.values() if share < 1
    ]
    done["share"] = float(np.mean(shares)) if shares else 1.0
    return clip, {"flops": report.flops_kept, **done}, watch.seconds


def table(results: list[dict[str, dict[str, float]]]) -> str:
    """Means over prompts in Markdown. Seconds are only in the file."""
    lines = [
        "| | computed | reused | pruned | blended | attention's FLOPs where pruned | FLOPs kept "
        "| PSNR dB | SSIM |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in results[0]:
        column = [result[name] for result in results]
        m = {key: float(np.mean([r[key] for r in column])) for key in column[0]}
        steps = (f"{m.get(key, 0):.1f}" for key in ("computed", "cached", "pruned", "blended"))
        share = f"{m['share']:.0%}" if m.get("share", 1) < 1 else "–"
        lines.append(
            f"| {name} | {' | '.join(steps)} | {share} | {m['flops']:.1%} | "
            f"{in_words([r['psnr_db'] for r in column], '.1f')} | {m['ssim']:.4f} |"
        )
    return "\n".join(lines)


def ablation(pipe: WanPipeline, count: int, path: Path) -> None:
    results = json.loads(path.read_text()) if path.exists() else []
    for i, scene in enumerate(choose(count, 2, 3)):
        if i >= len(results):
            results.append(one_prompt(pipe, scene.caption(), 1000 + i))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(results) + "\n")
            print(f"prompt {i + 1} of {count}", flush=True)
    print(table(results))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("bound", "ablation"))
    parser.add_argument("--model", type=Path, default=Path("assets/mini-wan"))
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("research/data/pcas.json"))
    args = parser.parse_args()
    pipe = WanPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    if args.what == "ablation":
        ablation(pipe, args.prompts, args.out)
    else:
        with torch.no_grad():
            bound(pipe, [scene.caption() for scene in choose(2, 2, 3)])


if __name__ == "__main__":
    main()
