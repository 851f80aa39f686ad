"""Reads private attributes that diffusers and accelerate set on models and pipelines.

In: a module or a pipeline. Out: the process group that divides it, this rank's part of a call's
arguments, its weights (offloaded or not), and which other cache is on. Only this module uses the
private names, because they change between releases. It changes nothing. Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from dit_accel.core.compiling import uncompiled
from dit_accel.core.patching import Replacement, hook_of


def parallel_group(module: torch.nn.Module) -> Any:
    """The process group over which diffusers divides a model; None: it does not divide it.

    Raises:
        ValueError: context parallelism was enabled, but the model has no plan for it. Diffusers
            raises an error too, but afterwards every attention is still in parallel mode.
    """
    module = uncompiled(module)
    config: Any = getattr(module, "_parallel_config", None)
    parts = "context_parallel_config", "tensor_parallel_config"
    context, tensor = (getattr(config, part, None) for part in parts)
    if context is not None and not any(_split_hooks(inner) for inner in module.modules()):
        raise ValueError(
            f"{type(module).__name__} has a context-parallel config without a plan; accepted: "
            "enable_parallelism with cp_plan, or a model for which diffusers has a plan"
        )
    mesh = getattr(context, "_flattened_mesh", None) or getattr(tensor, "_mesh", None)
    return None if mesh is None else mesh.get_group()


def local_arguments(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments as the module's own forward gets them: this rank's part of the tokens.

    Diffusers splits them in a hook inside of our wrapper. If we skip the call, we have to split
    them ourselves.
    """
    module = uncompiled(module)
    if hook_of(module) is None and not isinstance(vars(module).get("forward"), Replacement):
        return args, kwargs  # diffusers' hook wraps ours, so the arguments are split already
    for hook in _split_hooks(module):
        args, kwargs = hook.pre_forward(module, *args, **kwargs)
    return args, kwargs


def _split_hooks(module: torch.nn.Module) -> list[Any]:
    """The hooks of context parallelism that split a module's inputs or outputs."""
    registry = vars(module).get("_diffusers_hook")
    named = {} if registry is None else registry.hooks
    return [hook for name, hook in named.items() if name.startswith("cp_input")]


def weights_of(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by path, also those that accelerate offloads between calls."""
    for path, owner in module.named_modules():
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None:
                yield f"{path}.{name}" if path else name, stored(owner, name, tensor)


def stored(owner: torch.nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A module's parameter or buffer. If it is on "meta", the one that accelerate has offloaded."""
    if tensor.device.type != "meta":
        return tensor
    hook = vars(owner).get("_hf_hook")
    maps = (getattr(one, "weights_map", None) for one in getattr(hook, "hooks", (hook,)))
    weights: Mapping[str, torch.Tensor] = next((one for one in maps if one is not None), {})
    return weights.get(name, tensor)


def second_guidance(pipe: Any) -> float | None:
    """The guidance scale of a pipeline's second transformer in this call; None: that of the
    first."""
    scale = getattr(pipe, "_guidance_scale_2", None)
    return None if scale is None else float(scale)


def other_cache(module: Any) -> str | None:
    """The cache of another package that is on in a transformer, as text; None: there is none."""
    module = uncompiled(module)
    if getattr(module, "is_cache_enabled", False):
        return "a cache of diffusers on (enable_cache)"
    return "a cache of cache-dit on" if getattr(module, "_is_cached", False) else None
