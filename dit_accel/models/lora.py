"""LoRAs of a pipeline: a file or folder, a weight, and the expert that it is for.

In: texts as they were typed, a checked folder, and later the loaded pipeline. Out: errors before
any weights are read, and the pipeline with its adapters.
Knows the headers of safetensors files, and diffusers' public loaders. A LoRA without an expert is
loaded into each expert of the model. Errors name the argument `lora`.
Source: ours.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_accel.models.families import EXPERTS
from dit_accel.models.folder import LoadableModel, ModelError, ModelLoadError

STRONGEST = 100.0
# The names that diffusers writes. Names of other tools are converted when they are loaded.
_NAME = re.compile(r"transformer\.(?P<layer>.+)\.lora_A\.weight")


@dataclass(frozen=True)
class Lora:
    """One LoRA.

    Args:
        path: a .safetensors file, or a folder with one.
        weight: the factor of the LoRA's contribution.
        expert: one of `EXPERTS`; None: each of them.
    """

    path: Path
    weight: float = 1.0
    expert: str | None = None

    @property
    def file(self) -> Path:
        """Its .safetensors file: in a folder, the first one by name; else the path itself."""
        found = sorted(self.path.glob("*.safetensors")) if os.path.isdir(self.path) else []
        return found[0] if found else self.path

    def __str__(self) -> str:
        expert, weight = f"{self.expert}=" if self.expert else "", f"{self.weight:g}"
        weight = weight if float(weight) == self.weight else repr(self.weight)
        return f"{expert}{self.path}" + (f":{weight}" if self.weight != 1 else "")


def lora_of(text: str) -> Lora:
    """A LoRA from `[EXPERT=]PATH[:WEIGHT]`.

    Raises:
        ModelError: the weight is out of range.

    Example:
        >>> lora_of("transformer_2=fast.safetensors:0.5")
        Lora(path=PosixPath('fast.safetensors'), weight=0.5, expert='transformer_2')
    """
    expert, separator, rest = text.partition("=")
    if not separator or expert not in EXPERTS:
        expert, rest = "", text
    path, separator, weight = rest.rpartition(":")
    try:
        found = (Path(path), float(weight)) if separator else (Path(rest), 1.0)
    except ValueError:
        found = Path(rest), 1.0
    if not -STRONGEST <= found[1] <= STRONGEST:
        raise ModelError(f"lora is {text!r}; accepted: a weight of -100 to 100")
    return Lora(*found, expert or None)


def check(text: str, model: LoadableModel) -> None:
    """Refuse a LoRA that this model or this machine cannot use, before loading.

    Raises:
        ModelError: the LoRA cannot be used; the message names the argument.
    """
    import diffusers

    lora = lora_of(text)
    kind = getattr(diffusers, str(model.index["_class_name"]), None)
    if not hasattr(kind, "load_lora_weights"):
        raise ModelError(f"lora is {text!r}: {kind and kind.__name__} of diffusers takes none")
    if lora.expert not in (None, *model.denoisers):
        there = " and ".join(model.denoisers)
        raise ModelError(f"lora is {text!r}: the model has no {lora.expert}; it has {there}")
    shapes = _shapes(lora.file, text)
    if not any("lora" in name.lower() for name in shapes):
        raise ModelError(f"lora is {text!r}: none of its {len(shapes)} tensors is of a LoRA")
    for expert in _experts(lora, model.denoisers):
        _check_fit(text, shapes, model, expert)
    if importlib.util.find_spec("peft") is None:
        raise ModelError(f"lora is {text!r}: peft is not installed: pip install peft")


def load(pipe: Any, texts: tuple[str, ...]) -> None:
    """Load LoRAs into a pipeline, each as its own adapter.

    Raises:
        ModelLoadError: none of the tensors fits.
    """
    loras = [lora_of(text) for text in texts]
    names = [f"lora_{index}" for index in range(len(loras))]
    there = [name for name in EXPERTS if getattr(pipe, name, None) is not None]
    for name, lora in zip(names, loras, strict=True):
        for expert in _experts(lora, there):
            second = {"load_into_transformer_2": True} if expert != EXPERTS[0] else {}
            pipe.load_lora_weights(
                str(lora.file.parent), weight_name=lora.file.name, adapter_name=name,
                local_files_only=True, **second,
            )  # fmt: skip
            if name not in pipe.get_list_adapters().get(expert, ()):  # diffusers only warns
                raise ModelLoadError(f"lora is {str(lora)!r}: none of its tensors fits {expert}")
    pipe.set_adapters(names, [lora.weight for lora in loras])


def _experts(lora: Lora, there: Any) -> tuple[str, ...]:
    return (lora.expert,) if lora.expert else tuple(there)


def _shapes(file: Path, text: str) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a LoRA, from the header of its file."""
    try:
        if file.is_file():
            return _header(file)
    except OSError as error:  # also for a name that is too long
        raise ModelError(f"lora is {text!r:.300}: {error.strerror or error}") from error
    except Exception as error:
        raise ModelError(f"lora is {text!r}, which is no .safetensors file: {error}") from error
    raise ModelError(f"lora is {text!r}: no such file, and no folder with a .safetensors")


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        names = list(file.keys())
        return {name: tuple(file.get_slice(name).get_shape()) for name in names}


def _check_fit(
    text: str, shapes: dict[str, tuple[int, ...]], model: LoadableModel, expert: str
) -> None:
    """Refuse a LoRA that was made for a transformer with another width, or with other layers."""
    named = {found["layer"]: shapes[name] for name in shapes if (found := _NAME.fullmatch(name))}
    files = sorted((model.folder / expert).glob("*.safetensors"))
    try:
        weights = {name: shape for file in files for name, shape in _header(file).items()}
    except Exception:  # loading will report the problem
        return
    both = {layer: weights[f"{layer}.weight"] for layer in named if f"{layer}.weight" in weights}
    if weights and named and not both:
        raise ModelError(f"lora is {text!r}: {expert} has none of its {len(named)} layers")
    for layer, shape in both.items():
        if len(shape) == 2 and shape[1] != named[layer][-1]:
            raise ModelError(
                f"lora is {text!r}, made for a model of another size: {layer} takes {shape[1]} "
                f"values in {expert}, and {named[layer][-1]} in the LoRA"
            )
