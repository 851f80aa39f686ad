"""Times one attention on this GPU: SDPA, sliced at a rank, and block sparse with a tail.

    python scripts/experiments/bench_attention.py

Needs torch with CUDA and Triton only; no diffusers, no weights. Shapes are those of one
self-attention of Wan 2.1: 1.3B at 480p (12 heads, 21 x 30 x 52 tokens) and 14B at 720p (40 heads,
21 x 45 x 80), 81 frames, heads of 128, bfloat16, one branch. Values are noise: milliseconds do not
depend on them, because densities are set, not found. First the kernels are compared with the
reference at a small size. "All" is the full cost in a run: ordering of queries, keys and values by
tiles and of the output back, projection to the rank of the scores, scores, choice of blocks, and
the attention itself. Milliseconds are the median of several, by CUDA events. A row that fails names
the reason, and the other rows still run. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs without an installed package

from dit_accel.attention import block_sparse, kernels, pca
from dit_accel.attention.block_sparse import BlockSizes
from dit_accel.attention.kernels import Launch
from dit_accel.core.tokens import TokenGrid

SHAPES = {
    "wan2.1-1.3b 480p": (12, TokenGrid(21, 30, 52)),
    "wan2.1-14b 720p": (40, TokenGrid(21, 45, 80)),
}
WIDTH, RANK, SAMPLES = 128, 32, 16
DENSITIES = (0.1, 0.2, 0.3, 0.5)
LAUNCHES = [
    (blocks, Launch(warps, stages, accelerator))
    for blocks, warps in (
        (BlockSizes(128, 64), 8),
        (BlockSizes(128, 64), 4),
        (BlockSizes(64, 64), 4),
    )
    for stages, accelerator in ((2, False), (3, False), (3, True))
] + [(BlockSizes(128, 128), Launch(8, 2)), (BlockSizes(128, 128), Launch(8, 2, True))]
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=100, help="start no row after so many")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench_attention: no CUDA device")
    started = time.perf_counter()
    rows: list[Row] = []
    for row in (*correctness(), *speed(lambda: time.perf_counter() - started < args.seconds)):
        rows.append(row)
        said = row.get("error") or ", ".join(f"{k} {v}" for k, v in row.items() if k not in SAID)
        print(f"{row['shape']:<18} {row['what']:<46} {said}", flush=True)
    import triton

    versions = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
    }
    device = {"device": torch.cuda.get_device_name(), **versions}
    print(json.dumps({**device, "seconds": round(time.perf_counter() - started, 1), "rows": rows}))


SAID = ("shape", "what")


def correctness() -> Iterator[Row]:
    """The kernels against the reference on 2,000 tokens."""
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        q, k, v = (torch.randn(1, 2000, 4, WIDTH, device="cuda", dtype=dtype) for _ in range(3))
        for blocks in (BlockSizes(64, 64), BlockSizes(128, 64)):

            def compare(q=q, k=k, v=v, blocks=blocks) -> Row:
                mass = block_sparse.block_mass(q, k, blocks, SAMPLES, 0.2)
                chosen = block_sparse.keep_blocks(mass, 0.5, 0.0, 1.0)
                ours = kernels.pruned_attention(q, k, v, chosen, blocks)
                exact = block_sparse.pruned_attention(q, k, v, chosen, blocks)
                scored = kernels.block_mass(q, k, blocks, SAMPLES, 0.2)
                theirs = kernels.keep_blocks(mass, 0.5, 0.0, 1.0)
                return {
                    "density": round(float(chosen.density()), 3),
                    "attention_max_error": float((ours - exact).abs().max()),
                    "attention_max": float(exact.abs().max()),
                    "mass_max_error": float((scored - mass).abs().max()),
                    "selection_differs": int((theirs.mask() != chosen.mask()).sum()),
                }

            name = f"{str(dtype)[6:]} {blocks.query}x{blocks.key} against reference"
            yield guarded("2000 tokens", name, compare)


def speed(go_on: Callable[[], bool]) -> Iterator[Row]:
    """Measure every way at every shape, while there is time."""
    for shape, (heads, grid) in SHAPES.items():
        torch.cuda.empty_cache()
        made = (1, grid.tokens, heads, WIDTH)
        q, k, v = (torch.randn(made, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        dense: list[float] = []
        for name, work in ways(q, k, v, grid):
            if go_on():
                row = guarded(shape, name, lambda work=work: {"ms": milliseconds(work)})
                if name == "SDPA default" and "ms" in row:
                    dense = [row["ms"]]
                if dense and "ms" in row:
                    row["speedup"] = round(dense[0] / row["ms"], 2)
                yield row
        if go_on():
            yield from pruned(shape, q, k, v, grid, dense, go_on)


def ways(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: TokenGrid
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Dense attention and its slices."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    yield "SDPA default", lambda: sdpa(q, k, v)
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):

        def forced(backend=backend) -> None:
            with sdpa_kernel(backend):
                sdpa(q, k, v)

        yield f"SDPA {backend.name.lower()}", forced
    q_moments, k_moments = (
        pca.CovarianceAccumulator().add(q[:, ::50]),
        pca.CovarianceAccumulator().add(k[:, ::50]),
    )
    basis = pca.logit_basis(q_moments, k_moments)
    for rank in (64, 96):

        def sliced(rank=rank) -> None:
            narrow = pca.slice_logits(q, k, basis, k_moments.mean, rank)
            sdpa(*narrow, v)

        def both(rank=rank) -> None:  # narrow values from the folded projection cost nothing
            narrow = pca.slice_logits(q, k, basis, k_moments.mean, rank)
            sdpa(*narrow, v[..., :rank].contiguous())

        yield f"slice Q, K at rank {rank}", sliced
        yield f"slice Q, K, V at rank {rank}", both


def pruned(
    shape: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: TokenGrid,
    dense: list[float], go_on: Callable[[], bool],
) -> Iterator[Row]:  # fmt: skip
    """Measure the parts of pruned attention, its launches at one density, and the whole at
    several."""
    order = block_sparse.tile_order(grid, (4, 4, 4)).cuda()
    back = order.argsort()
    basis = pca.logit_basis(
        pca.CovarianceAccumulator().add(q[:, ::50]), pca.CovarianceAccumulator().add(k[:, ::50])
    )
    left, right = (x.to(q.dtype) for x in basis.cut(RANK))
    tiled = [x[:, order] for x in (q, k, v)]
    low = pca.project(tiled[0], left), pca.project(tiled[1], right)
    scale = WIDTH**-0.5
    yield guarded(shape, "part: order Q, K, V, and back", lambda: {
        "ms": milliseconds(lambda: [x[:, order] for x in (q, k, v)] + [tiled[0][:, back]])
    })  # fmt: skip
    yield guarded(shape, f"part: project to rank {RANK}", lambda: {
        "ms": milliseconds(lambda: (pca.project(q, left), pca.project(k, right)))
    })  # fmt: skip
    masses = {}
    for blocks in (BlockSizes(128, 64), BlockSizes(64, 64), BlockSizes(128, 128)):
        size = f"{blocks.query}x{blocks.key}"
        for samples in (16, 8):

            def score(blocks=blocks, samples=samples) -> torch.Tensor:
                return kernels.block_mass(*low, blocks, samples, scale)

            yield guarded(shape, f"part: scores {size}, {samples} samples", lambda score=score: {
                "ms": milliseconds(score)
            })  # fmt: skip
        yield guarded(shape, f"part: scores stay {size}", lambda blocks=blocks, score=score: {
            "mass_sum": round(float(masses.setdefault(blocks, score()).sum(-1).mean()), 4)
        })  # fmt: skip
        if blocks not in masses:
            continue
        mass = masses[blocks]
        yield guarded(shape, f"part: select {size}", lambda mass=mass: {
            "ms": milliseconds(lambda: kernels.keep_blocks(mass, 0.9, 0.1, 0.3))
        })  # fmt: skip
        yield guarded(shape, f"part: select {size} by sorting", lambda mass=mass: {
            "ms": milliseconds(lambda: block_sparse.keep_blocks(mass, 0.9, 0.1, 0.3))
        })  # fmt: skip
    best: tuple[float, BlockSizes, Launch] | None = None
    for blocks, launch in LAUNCHES:
        if not go_on() or blocks not in masses:
            continue
        chosen = kernels.keep_blocks(masses[blocks], 1.0, 0.0, 0.3)

        def attend(blocks=blocks, launch=launch, chosen=chosen) -> Row:
            ms = milliseconds(
                lambda: kernels.pruned_attention(*tiled, chosen, blocks, launch=launch)
            )
            density = float(chosen.density())
            flops = 4 * density * grid.tokens**2 * q.shape[2] * WIDTH
            return {"ms": ms, "density": round(density, 3), "tflops": round(flops / ms / 1e9)}

        name = f"attend {blocks.query}x{blocks.key}, {launch.warps} warps, {launch.stages} stages"
        row = guarded(shape, name + (", TMA" if launch.accelerator else ""), attend)
        if "ms" in row and (best is None or row["ms"] < best[0]):
            best = row["ms"], blocks, launch
        yield row
    if best is None:
        return
    _, blocks, launch = best
    for tail in (True, False):
        for density in DENSITIES if tail else (0.3,):
            if not go_on():
                return

            def everything(density=density, tail=tail) -> torch.Tensor:
                query, key, value = (x[:, order] for x in (q, k, v))
                scores = pca.project(query, left), pca.project(key, right)
                mass = kernels.block_mass(*scores, blocks, SAMPLES // 2, scale)
                chosen = kernels.keep_blocks(mass, 1.0, 0.0, density)
                out = kernels.pruned_attention(
                    query, key, value, chosen, blocks, tail, launch=launch
                )
                return out[:, back]

            name = f"all at density {density}" + ("" if tail else ", no tail")
            row = guarded(shape, name, lambda work=everything: {"ms": milliseconds(work)})
            if dense and "ms" in row:
                row["speedup"] = round(dense[0] / row["ms"], 2)
            yield row


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """SDPA as diffusers calls it: `(B, N, H, D)`, with the scale for the full width."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=WIDTH**-0.5).transpose(1, 2)


def milliseconds(work: Callable[[], Any], least: int = 3, budget: float = 0.4) -> float:
    """The median, after one call that is not counted."""
    work()
    torch.cuda.synchronize()
    times: list[float] = []
    while len(times) < least or (sum(times) < 1000 * budget and len(times) < 20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return round(statistics.median(times), 3)


def guarded(shape: str, what: str, work: Callable[[], Row]) -> Row:
    """A row, or the reason why there is none."""
    try:
        return {"shape": shape, "what": what, **work()}
    except Exception as error:  # the other rows are still worth measuring
        torch.cuda.empty_cache()
        said = str(error).strip().splitlines()
        return {"shape": shape, "what": what, "error": f"{type(error).__name__}: {said[:1]}"[:300]}


if __name__ == "__main__":
    main()
