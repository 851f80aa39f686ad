"""Quantised weights of the denoiser: the methods that the installed diffusers supports here.

In: a method's name. Out: an error, or the configuration for `from_pretrained`.
Knows diffusers' backends and the package of each; quantises nothing itself.
Source: the quantization backends of diffusers; the choice of settings is ours.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from dit_accel.models.folder import ModelError

# By method: the package that diffusers' backend needs, as it is imported and as it is installed.
QUANTIZERS: dict[str, tuple[str, str]] = {
    "bnb4": ("bitsandbytes", "bitsandbytes"),
    "bnb8": ("bitsandbytes", "bitsandbytes"),
    "int8": ("torchao", "torchao"),
    "fp8": ("torchao", "torchao"),
    "quanto8": ("optimum.quanto", "optimum-quanto"),
}
BYTES = {"bnb4": 0.56, "bnb8": 1.0, "int8": 1.0, "fp8": 1.0, "quanto8": 1.0}  # bytes of one weight


def installed(method: str) -> bool:
    """Whether the package of a method is installed."""
    package = QUANTIZERS[method][0]
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # if its parent package is missing
        return False


def available(device: str) -> list[str]:
    """The methods that work on a device: their package is installed."""
    return [method for method in QUANTIZERS if installed(method) and runs_on(method, device)]


def runs_on(method: str, device: str) -> bool:
    """Whether diffusers loads such weights for a device. For bitsandbytes it needs a GPU."""
    return QUANTIZERS[method][0] != "bitsandbytes" or device.startswith("cuda")


def check_device(method: str, device: str) -> None:
    """Refuse a method that does not run on a device.

    Raises:
        ModelError: it does not run there; the message names the argument and the other installed
            methods.
    """
    if not runs_on(method, device):
        others = ", ".join(available(device))
        have = f"; on {device} work {others}" if others else ""
        raise ModelError(f"quantize is {method!r}: bitsandbytes needs a CUDA device{have}")


def check(method: str | None) -> None:
    """Refuse a method that is unknown or whose package is not installed.

    Raises:
        ModelError: the method is not accepted; the message names the argument and what to install.
    """
    if method is None:
        return
    if method not in QUANTIZERS:
        raise ModelError(f"quantize is {method!r}; accepted: {', '.join(QUANTIZERS)}")
    if not installed(method):
        package = QUANTIZERS[method][1]
        others = ", ".join(filter(installed, QUANTIZERS))
        have = f"; installed are those of {others}" if others else ""
        raise ModelError(
            f"quantize is {method!r}: {package} is not installed: pip install {package}{have}"
        )


def config_of(method: str, parts: list[str], dtype: Any) -> Any:
    """The argument `quantization_config` of a pipeline's `from_pretrained`.

    Args:
        parts: names of the components to quantise.
        dtype: the dtype to compute in.
    """
    from diffusers.quantizers import PipelineQuantizationConfig

    return PipelineQuantizationConfig(quant_mapping=dict.fromkeys(parts, _one(method, dtype)))


def _one(method: str, dtype: Any) -> Any:
    import diffusers

    if method == "bnb4":
        return diffusers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    if method == "bnb8":
        return diffusers.BitsAndBytesConfig(load_in_8bit=True)
    if method == "quanto8":
        return diffusers.QuantoConfig(weights_dtype="int8")
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    return diffusers.TorchAoConfig(
        Int8WeightOnlyConfig() if method == "int8" else Float8WeightOnlyConfig()
    )
