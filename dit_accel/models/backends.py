"""Tries each of diffusers' attention backends on a small tensor, to find those that work here.

In: a backend's name and a device. Out: whether it works, whether with a mask, and if not, why.
Knows that diffusers lists more backends than are installed, and that only a call shows whether a
backend works. Nothing is downloaded: backends from the hub are not tried.
Source: ours.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_accel.models.json_file import read_object

if TYPE_CHECKING:
    from dit_accel.models.folder import LoadableModel

FROM_HUB = "its kernel is downloaded when it is first used"
SHAPE = (1, 128, 2, 64)  # batch, tokens, heads, head width: every kernel accepts this shape


@dataclass(frozen=True)
class Attempt:
    """The result of a backend's call.

    Args:
        masks: whether it also accepts a mask over keys.
        why: the reason why it does not work, in one line.
    """

    name: str
    works: bool
    masks: bool = False
    why: str = ""


def names() -> tuple[str, ...]:
    """The backends that the installed diffusers lists; empty for versions without backends."""
    try:
        from diffusers.models.attention_dispatch import AttentionBackendName
    except ImportError:
        return ()
    return tuple(one.value for one in AttentionBackendName)


def attempt(name: str, device: str) -> Attempt:
    """Call a backend once, and once with a mask."""
    if name not in names():
        return Attempt(name, False, why=f"diffusers lists {', '.join(names()) or 'none'}")
    if name.endswith("_hub"):
        return Attempt(name, False, why=FROM_HUB)
    why = _error(name, device, masked=False)
    if why is not None:
        return Attempt(name, False, why=why)
    return Attempt(name, True, masks=_error(name, device, masked=True) is None)


def attend(name: str, query: Any, key: Any, value: Any, mask: Any = None) -> Any:
    """Attention over `(B, N, H, D)` with a backend from `names`."""
    import torch
    from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

    with torch.no_grad(), attention_backend(name):
        return dispatch_attention_fn(query, key, value, attn_mask=mask)


def _error(name: str, device: str, *, masked: bool) -> str | None:
    import torch

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(SHAPE, generator=generator).to(device, dtype) for _ in range(3))
    mask = None
    if masked:
        mask = torch.ones(1, 1, 1, SHAPE[1], dtype=torch.bool, device=device)
        mask[..., SHAPE[1] // 2 :] = False
    try:
        out = attend(name, q, k, v, mask)
        expected = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2).float(),
            k.transpose(1, 2).float(),
            v.transpose(1, 2).float(),
            attn_mask=mask,
        ).transpose(1, 2)
        if not torch.allclose(out.float(), expected, atol=0.05):
            return "its values are wrong"
    except Exception as error:  # kernels may raise any error
        return (str(error).strip() or type(error).__name__).splitlines()[0].partition(" This is")[0]
    return None


def compiler(device: str) -> str | None:
    """The compiler that `torch.compile` uses on a device; None if it is missing."""
    if device == "cpu":
        return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if not device.startswith("cuda"):
        return "PyTorch itself"
    try:
        return f"triton {importlib.metadata.version('triton')}"
    except importlib.metadata.PackageNotFoundError:
        return None


def dispatched(model: LoadableModel) -> bool:
    """Whether the denoiser's attentions use diffusers' dispatcher, so that a backend has an effect.

    The denoiser is built without weights.
    """
    import diffusers
    import torch

    config = read_object(model.folder / model.denoisers[0] / "config.json")
    kind: Any = getattr(diffusers, model.family.transformer)
    with torch.device("meta"):
        built = kind.from_config(config)
    processors = (getattr(module, "processor", None) for module in built.modules())
    return any(hasattr(one, "_attention_backend") for one in processors if one is not None)
