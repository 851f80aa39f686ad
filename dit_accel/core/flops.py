"""Count the FLOPs of a run, and those of the same run in the stock pipeline.

A session and its site reports come in; FLOPs go out. Matrix products, convolutions and attention
are counted; a multiplication with its addition is 2 FLOPs. The FLOPs of a forward are computed from
the sizes of its layers and inputs, without running anything. So compilation, offloading, quantized
weights and attention kernels do not change the count. `FlopMeter` counts calls during a run
instead. The module knows the table's `rows`, and no technique. Source: ours; research/LOG.md has
the alternatives.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from dit_accel.core.compiling import uncompiled
from dit_accel.core.families import Family
from dit_accel.core.report import SceneReport, SiteReport
from dit_accel.core.session import Session

_FUSED = {"to_qkv": ("to_q", "to_k", "to_v"), "to_kv": ("to_k", "to_v"),
          "to_added_kv": ("add_k_proj", "add_v_proj")}  # fmt: skip
Kinds = tuple[tuple[str, str], ...]  # see `Family.rows`
_QUERIES, _KEYS = ("to_q", "add_q_proj"), ("to_k", "add_k_proj")
_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


@dataclass(frozen=True)
class Rows:
    """How many rows the layers of one forward get, by kind.

    Args:
        batch: clips.
        time: timesteps of all clips.
        video, text, image, text_2, audio: tokens of one clip.
        audio_time: timesteps of the audio of all clips.
    """

    batch: int
    time: int
    video: int
    text: int
    image: int
    text_2: int = 0
    audio: int = 0
    audio_time: int = 0

    def of(self, kind: str) -> int:
        """The rows of a kind, as in `Family.rows`: of one clip; "time" and "audio_time": of all."""
        sums = {"joint": (self.video, self.text), "context": (self.text, self.text_2, self.image)}
        if kind in sums:
            return sum(sums[kind])
        return 0 if kind == "none" else int(getattr(self, kind))


@dataclass(frozen=True)
class Costs:
    """FLOPs of one forward: by module path, "" for all of it; and of each attention's products."""

    modules: dict[str, int] = field(default_factory=dict)
    products: dict[str, int] = field(default_factory=dict)


def count_run(
    session: Session, family: Family, sites: Sequence[SiteReport], scene: SceneReport | None,
    known: dict[tuple[str, Rows], Costs],
) -> tuple[int, int]:  # fmt: skip
    """FLOPs of the stock pipeline and of this run. `known` caches the costs of forwards."""
    full = saved = 0
    for (name, branch), (args, kwargs) in [*session.inputs.items()]:
        module = uncompiled(session.transformers[name])
        rows = rows_of(module, args, kwargs)
        if (name, rows) not in known:
            known[name, rows] = forward_costs(module, family, rows)
        costs = known[name, rows]
        mine = [s for s in sites if (s.transformer, s.branch) == (name, branch)]
        full += costs.modules[""] * max((s.steps for s in mine), default=0)
        for s in mine:
            saved += _cost(costs, s.name, family) * len(s.not_computed)
            unspent = sum(1 - share for share in s.attention_share.values())
            saved += round(unspent * costs.products[s.name]) if unspent else 0
    return full, _with_scene(full - saved, scene)


def _with_scene(spent: int, scene: SceneReport | None) -> int:
    """FLOPs of a run with its scene. A row of the batch for a reference costs as much as one for a
    shot."""
    if scene is None:
        return spent
    shots = len(scene.tokens) - scene.reference_rows
    return round(spent * len(scene.tokens) / max(shots, 1)) + scene.extra_flops


def _cost(costs: Costs, site: str, family: Family) -> int:
    if site == "model":
        return sum(costs.modules[group] for group in family.blocks)
    own = costs.modules["" if site == "output" else site]
    block, _, name = site.rpartition(".")
    if name == family.attention and family.audio_attention is not None:
        own += costs.modules[f"{block}.{family.audio_attention}"]
    return own


def rows_of(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rows:
    """The rows of a transformer's forward with these arguments. Only their sizes are used."""
    latents = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
    audio_time = kwargs.get("audio_timestep")
    config, batch = module.config, len(latents)
    patch = config.patch_size
    if isinstance(patch, int):  # its sides; the frames per patch have an entry of their own
        patch = (config.get("patch_size_t") or 1, patch, patch)
    return Rows(
        batch, timestep.numel(), latents.numel() // (batch * config.in_channels * math.prod(patch)),
        text=_tokens(kwargs, "encoder_hidden_states"),
        image=_tokens(kwargs, "encoder_hidden_states_image") or _tokens(kwargs, "image_embeds"),
        text_2=_tokens(kwargs, "encoder_hidden_states_2"),
        audio=_tokens(kwargs, "audio_hidden_states"),
        audio_time=(timestep if audio_time is None else audio_time).numel(),
    )  # fmt: skip


def _tokens(kwargs: dict[str, Any], name: str) -> int:
    rows = kwargs.get(name)
    return 0 if rows is None else int(rows.shape[1])


def forward_costs(module: torch.nn.Module, family: Family, rows: Rows) -> Costs:
    """FLOPs of a forward whose layers get these rows."""
    costs = Costs()
    _add(module, "", "", family.rows, rows, costs)
    return costs


def _add(
    module: torch.nn.Module, path: str, place: str, kinds: Kinds, rows: Rows, costs: Costs
) -> int:
    """Add the FLOPs of a module and of all modules inside to `costs`. `place` is the module's path
    without numbers, because all blocks of a list are alike."""
    module = uncompiled(module)
    if isinstance(module, (torch.nn.Linear, *_CONVOLUTIONS)):
        kind = _kind(place, kinds)
        total = 2 * _weights(module) * rows.of(kind) * (1 if "time" in kind else rows.batch)
    elif not module._modules:  # a norm or an activation; a shortcut, because most modules are
        total = 0
    else:
        children = {name: one for name, one in module._modules.items() if one is not None}
        fused = {part for name in children.keys() & _FUSED.keys() for part in _FUSED[name]}
        total = 0
        for name, one in children.items():
            if name not in fused:
                inside = place if name.isdigit() else _joined(place, name)
                total += _add(one, _joined(path, name), inside, kinds, rows, costs)
        if "to_q" in children:
            costs.products[path] = _products(children, place, kinds, rows)
            total += costs.products[path]
    costs.modules[path] = total
    return total


def _products(children: dict[str, Any], place: str, kinds: Kinds, rows: Rows) -> int:
    """FLOPs of an attention's two products: queries with keys, and weights with values."""
    queries, keys = (
        sum(rows.of(_kind(_joined(place, name), kinds)) for name in names if name in children)
        for names in (_QUERIES, _KEYS)
    )
    return int(4 * rows.batch * queries * keys * children["to_q"].out_features)


def _weights(layer: Any) -> int:
    """The number of weights, from the layer's sizes: quantized weights may be packed."""
    if isinstance(layer, torch.nn.Linear):
        return layer.in_features * layer.out_features
    return int(layer.weight.numel())


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


@cache
def _kind(place: str, kinds: Kinds) -> str:
    found = (kind for pattern, kind in kinds if re.search(pattern, place))
    return next(found, "video")


class FlopMeter(TorchFunctionMode):
    """A context manager that counts the FLOPs of torch functions: `meter.flops`.

    It hooks calls, not kernels. This takes about a microsecond per call, so a run can be timed
    meanwhile (`torch.utils.flop_counter` makes a small model half as fast). It cannot count inside
    compiled graphs and other packages' kernels. Float64 is not counted: no model computes in it,
    but plans are made in float64 while a forward runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        output = func(*args, **(kwargs or {}))
        cost = _COSTS.get(func)
        if cost is not None and output.dtype != torch.float64:
            self.flops += cost(output, *args, **(kwargs or {}))
        return output


def _product(output: torch.Tensor, a: torch.Tensor, *_: Any, **__: Any) -> int:
    """Linear layers and `a @ b`: the inner width is the last of `a`."""
    return 2 * output.numel() * a.shape[-1]


def _sum_product(output: torch.Tensor, _: Any, a: torch.Tensor, *__: Any, **___: Any) -> int:
    """`input + a @ b`."""
    return _product(output, a)


def _attention(
    output: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_: Any, **__: Any
) -> int:
    """`(..., N, D)`: two products, of queries with keys and of weights with values."""
    return 2 * query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + output.shape[-1])


def _convolution(output: torch.Tensor, _: Any, weight: torch.Tensor, *__: Any, **___: Any) -> int:
    return 2 * output.numel() * weight[0].numel()


_COSTS: dict[Any, Callable[..., int]] = {
    **dict.fromkeys(
        (F.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__), _product
    ),
    **dict.fromkeys((torch.mm, torch.bmm, torch.Tensor.mm, torch.Tensor.bmm), _product),
    **dict.fromkeys((torch.addmm, torch.baddbmm, torch.Tensor.addmm), _sum_product),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution),
    F.scaled_dot_product_attention: _attention,
}
