"""Times block-pruned attention with text in the sequence, against default attention.

Goes in: the shapes of HunyuanVideo, HunyuanVideo 1.5 and CogVideoX-5B at their usual clips. Comes
out: one line of JSON for each row in the output file: milliseconds, the speedup over attention as
the stock pipeline calls it, and the difference in the text's rows, which are never pruned. Existing
rows are not measured again, so an interrupted run can continue. Queries, keys and values are
random: the number of kept blocks is set, so content has no influence. It knows `attention/`, and no
pipeline. Source: ours.

    python scripts/experiments/table_joint.py joint.jsonl
    python scripts/experiments/table_joint.py trial.jsonl --device cpu --scale 8  # a trial
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs without an installed package

from dit_accel.attention.block_sparse import pruned_attention, tile_order
from dit_accel.attention.joint import JointText, is_read
from dit_accel.attention.pcas import PCAS, BlockSparseAttention
from dit_accel.core.tokens import TokenGrid

DENSITIES = (0.1, 0.2, 0.3, 0.5)
Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """One attention: clips in a batch, heads and their width, the clip's tokens, its text's.

    `read`: number of text tokens that are not padding. `masks`: the stock processor's kind of mask,
    "keys", "pairs" or None.
    """

    batch: int
    heads: int
    width: int
    grid: TokenGrid
    text: int
    read: int
    masks: str | None = None
    is_first: bool = False


SHAPES = {  # of 720x1280x129, 720x1280x121 and 480x720x49 pixels and frames
    "hunyuan-video": Shape(1, 24, 128, TokenGrid(33, 45, 80), 256, 60, "keys"),
    "hunyuan-video-1.5": Shape(1, 16, 128, TokenGrid(31, 45, 80), 1985, 200, "pairs"),
    "cogvideox-5b": Shape(2, 48, 64, TokenGrid(13, 30, 45), 226, 226, is_first=True),
}


class Trial:
    """Random queries, keys and values of a shape, and attention in several ways."""

    def __init__(self, shape: Shape, device: str, dtype: torch.dtype) -> None:
        self.shape, tokens = shape, shape.grid.video_tokens + shape.text
        draw = torch.Generator().manual_seed(0)
        size = (shape.batch, tokens, shape.heads, shape.width)
        self.rows = [torch.randn(size, generator=draw).to(device, dtype) for _ in range(3)]
        ends = torch.full((shape.batch,), shape.grid.video_tokens + shape.read, device=device)
        lengths = None if shape.read == shape.text else ends
        self.text = JointText(shape.text, shape.is_first, lengths)
        order = tile_order(TokenGrid(*_sides(shape.grid), text=shape.text), (4, 4, 4))
        self.order = self.text.text_last(order).to(device)

        self.seen = None if lengths is None else is_read(tokens, lengths)

    def mask(self, kind: str | None) -> torch.Tensor | None:
        if kind is None or self.seen is None:
            return None
        keys = self.seen[:, None, None]
        return keys if kind == "keys" else keys & self.seen[:, None, :, None]

    def stock(self, kind: str | None) -> torch.Tensor:
        """PyTorch's attention. Each call makes the mask of pairs, as diffusers does."""
        q, k, v = (x.transpose(1, 2) for x in self.rows)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(kind)).transpose(1, 2)

    def pruned(self, density: float) -> BlockSparseAttention:
        """Pruned attention with bases learned from these rows, and the number of key blocks for the
        density."""
        one = BlockSparseAttention(PCAS(keep_mass=1.0, floor=0.0, cap=density, always=True))
        one.learn(*map(self.text.video, self.rows))
        one.fit()
        return one


def ways(trial: Trial) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    kinds = dict.fromkeys([trial.shape.masks, "keys" if trial.shape.masks else None, None])
    for kind in kinds:
        name = "SDPA" if kind is None else f"SDPA, mask of {kind}"
        yield name, lambda kind=kind: trial.stock(kind)
    for density in DENSITIES:
        one = trial.pruned(density)
        yield (
            f"pruned to density {density}",
            lambda one=one: one.attend(*trial.rows, trial.order, trial.text)[0],
        )


def rows_of(name: str, trial: Trial, known: dict[tuple[str, str], Row]) -> Iterator[Row]:
    """The rows of a shape. The first one is attention as the stock pipeline calls it."""
    first: Row | None = None
    exact: torch.Tensor | None = None
    for way, work in ways(trial):
        row = known.get((name, way))
        if row is None:
            row = {"shape": name, "way": way, **guarded(lambda work=work: measured(work))}
            if "pruned" in way and "ms" in row:
                exact = trial.stock("keys") if exact is None else exact
                pair = (trial.text.split(x)[1][:, : trial.shape.read] for x in (work(), exact))
                row["text_max_error"] = round(float(torch.sub(*pair).abs().max()), 5)
                if first is not None and "ms" in first:
                    row["speedup"] = round(first["ms"] / row["ms"], 2)
            yield row
        first = first or row


def correctness(trial: Trial) -> Row:
    """The difference of the timed method to the written-out reference, on a small clip."""
    one = trial.pruned(0.3)
    ours, share = one.attend(*trial.rows, trial.order, trial.text)
    tiled = [x[:, trial.order] for x in trial.rows]
    blocks, video = one.config.blocks_of(tiled[0].shape[1]), trial.shape.grid.video_tokens
    chosen = one.select(tiled[0], tiled[1], blocks, video, fast=ours.is_cuda)
    exact = pruned_attention(*tiled, chosen, blocks, lengths=trial.text.lengths)
    error = (ours[:, trial.order] - exact).float().abs().max()
    return {"max_error": round(float(error), 5), "share_of_flops": round(float(share), 3)}


def measured(work: Callable[[], torch.Tensor], least: int = 3, budget: float = 2.0) -> Row:
    """The median of some calls, after one that is not counted."""
    times: list[float] = []
    while len(times) < least + 1 or (sum(times) < budget and len(times) < 20):
        start = time.perf_counter()
        out = work()
        if out.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return {"ms": round(1000 * statistics.median(times[1:]), 3)}


def guarded(work: Callable[[], Row]) -> Row:
    """The measurement, or the reason why there is none. The other rows still run."""
    try:
        return work()
    except RuntimeError as error:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"[:200]}


def smaller(shape: Shape, scale: int) -> Shape:
    sides = [max(4, side // scale) for side in _sides(shape.grid)]
    text, read = max(8, shape.text // scale), max(4, shape.read // scale)
    heads = max(1, shape.heads // scale)
    read = text if shape.read == shape.text else read
    grid = TokenGrid(*sides)
    return dataclasses.replace(shape, heads=heads, grid=grid, text=text, read=read)


def _sides(grid: TokenGrid) -> tuple[int, int, int]:
    return grid.frames, grid.height, grid.width


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("output", type=Path, help="a file of JSON lines")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", type=int, default=1, help="divide all sizes by it")
    given = parser.parse_args()
    dtype = torch.bfloat16 if given.device == "cuda" else torch.float32
    lines = given.output.read_text("utf-8").splitlines() if given.output.exists() else []
    known = {(row["shape"], row["way"]): row for row in map(json.loads, lines)}
    device = torch.cuda.get_device_name() if given.device == "cuda" else given.device
    with given.output.open("a", encoding="utf-8") as file:

        def write(row: Row) -> None:
            row |= {"device": device, "torch": torch.__version__, "scale": given.scale}
            print(json.dumps(row), file=file, flush=True)
            print(row, flush=True)

        for name, shape in SHAPES.items():
            way = "against the reference, 1/8 of the size"
            if (name, way) not in known:
                small = Trial(smaller(shape, max(8, given.scale)), given.device, dtype)
                write(
                    {"shape": name, "way": way, **guarded(lambda small=small: correctness(small))}
                )
            trial = Trial(smaller(shape, given.scale) if given.scale > 1 else shape,
                          given.device, dtype)  # fmt: skip
            for row in rows_of(name, trial, known):
                write(row)
            del trial


if __name__ == "__main__":
    main()
