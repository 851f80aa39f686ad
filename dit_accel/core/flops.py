"""Count the FLOPs of a run: what it spent, and what the stock pipeline would have.

A session and its site reports come in; FLOPs go out, or the reason why they could not be counted.
Counted are matrix products, convolutions and attention; a multiplication and its addition are 2.
`forward_flops` runs a module on tensors without storage; `FlopMeter` counts calls during a run. It
knows the families' module paths, and no technique. Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from dit_accel.core.families import Family
from dit_accel.core.patching import uncompiled
from dit_accel.core.report import SceneReport, SiteReport
from dit_accel.core.session import Session

Costs = dict[str, int]  # FLOPs of one forward by module path


def count_run(
    session: Session, family: Family, sites: Sequence[SiteReport], scene: SceneReport | None,
    known: dict[str, Costs],
) -> tuple[int | None, int | None, tuple[str, ...]]:  # fmt: skip
    """FLOPs of the stock pipeline, FLOPs of this run, and notes.

    Both numbers are None where they cannot be counted; the notes give the reason. `known` keeps
    what forwards cost by their inputs, so that the next report does not count them again.
    """
    full = saved = 0
    try:
        for (name, branch), (args, kwargs) in session.inputs.items():
            shapes = tree_map_only(torch.Tensor, lambda t: (t.shape, t.dtype), (args, kwargs))
            inputs = f"{name} {shapes}"
            if inputs not in known:
                known[inputs] = forward_flops(meta_copy(session.transformers[name]), args, kwargs)
            costs = known[inputs]
            mine = [s for s in sites if (s.transformer, s.branch) == (name, branch)]
            full += costs[""] * max((s.steps for s in mine), default=0)
            for s in mine:
                saved += _cost(costs, s.name, family) * len(s.not_computed)
                unspent = sum(1 - share for share in s.attention_share.values())
                saved += round(unspent * attention_products(costs, s.name)) if unspent else 0
    except (RuntimeError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return None, None, (f"FLOPs could not be counted: {reason}",)
    return full, _with_scene(full - saved, scene), ()


def _with_scene(spent: int, scene: SceneReport | None) -> int:
    """FLOPs with those of a scene: a reference's row costs as much as a user's row."""
    if scene is None:
        return spent
    shots = len(scene.tokens) - scene.reference_rows
    return round(spent * len(scene.tokens) / max(shots, 1)) + scene.extra_flops


def _cost(costs: dict[str, int], site: str, family: Family) -> int:
    if site == "output":
        return costs[""]
    if site != "model":
        return costs[site]
    groups = family.blocks  # module lists are never called, so their members are counted
    members = (path for path in costs if path.count(".") == 1 and path.split(".")[0] in groups)
    return sum(costs[path] for path in members)


def attention_products(costs: Mapping[str, int], attention: str) -> int:
    """FLOPs of an attention's products without its projections; `costs` by `forward_flops`."""
    inside = [path for path in costs if path.startswith(f"{attention}.")]
    tops = (p for p in inside if not any(p.startswith(f"{other}.") for other in inside))
    return costs[attention] - sum(costs[path] for path in tops)


def meta_copy(transformer: Any) -> Any:
    """The same transformer in the same dtype, without weights, compilation and others' hooks."""
    with torch.device("meta"):
        copy = type(uncompiled(transformer)).from_config(transformer.config)
    return torch.nn.Module.to(copy, transformer.dtype)  # diffusers' own `to` warns users


def forward_flops(
    module: torch.nn.Module, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
) -> dict[str, int]:
    """FLOPs of one forward by module path; "" is the whole module. Nothing is computed.

    Of tensors in `args` and `kwargs` only shapes and dtypes matter.

    Example:
        >>> forward_flops(torch.nn.Linear(4, 3), (torch.zeros(2, 4),))[""]
        48
    """
    device = next(module.parameters()).device
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():

        def fake(tensor: torch.Tensor) -> torch.Tensor:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

        fake_args, fake_kwargs = tree_map_only(torch.Tensor, fake, (args, kwargs or {}))
        # The counter misses some fused attentions (the CPU's), but knows all plain products.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module(*fake_args, **fake_kwargs)
    root = type(module).__name__
    counts: dict[str, int] = {"": counter.get_total_flops()}
    for path, operations in counter.get_flop_counts().items():
        if path.startswith(root + "."):
            counts[path.removeprefix(root + ".")] = sum(operations.values())
    return counts


class FlopMeter(TorchFunctionMode):
    """Counts FLOPs of torch functions while it is entered: `meter.flops`.

    It hooks calls, not kernels: about a microsecond per call, so that a run can be timed as well
    (`torch.utils.flop_counter` makes a small model half as fast). It does not see into compiled
    graphs or other packages' kernels.
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
        if cost is not None:
            self.flops += cost(output, *args, **(kwargs or {}))
        return output


def _product(output: torch.Tensor, a: torch.Tensor, *_: Any, **__: Any) -> int:
    """Linear layers and `a @ b`: the inner width is the last of `a`."""
    return 2 * output.numel() * a.shape[-1]


def _sum_product(output: torch.Tensor, _: Any, a: torch.Tensor, *__: Any, **___: Any) -> int:
    """`input + a @ b`."""
    return 2 * output.numel() * a.shape[-1]


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
