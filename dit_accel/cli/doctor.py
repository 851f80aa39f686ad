"""`dit-accel doctor`: shows what this machine has, what works and how fast, and what is missing.

In: nothing. Out: a list, or JSON.
Knows packages by name. It tries each attention backend on a small tensor, and times those that work
on a larger one. Nothing is downloaded and no model is loaded. Ours.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_accel.cli.common import options
from dit_accel.cli.common.files import print_json
from dit_accel.cli.common.options import option
from dit_accel.cli.common.text import bytes_text, plain_console, print_aligned
from dit_accel.cli.common.verb import verb
from dit_accel.models.backends import FROM_HUB

if TYPE_CHECKING:
    from dit_accel.cli.common.text import Row
    from dit_accel.models.backends import Attempt

# By package: what it is needed for, and the extra that installs it.
OPTIONAL = {
    "peft": ("--lora", None),
    "bitsandbytes": ("--quantize bnb4, bnb8", None),
    "torchao": ("--quantize int8, fp8", None),
    "optimum-quanto": ("--quantize quanto8", None),
    "xformers": ("--attention-backend xformers", "xformers"),
    "flash-attn": ("--attention-backend flash", None),
    "sageattention": ("--attention-backend sage", None),
    "imageio-ffmpeg": ("diffusers' own export_to_video", None),
    "matplotlib": ("`plan --plot`", "report"),
    "jinja2": ("`report`", "report"),
    "lpips": ("the metric lpips", "lpips"),
    "cache-dit": ("comparing with its caches", "peers"),
    "ray": ("`evaluate --backend ray`", "ray"),
}


# tokens of the timed attention, which takes tens of milliseconds
TIMED_TOKENS = {"cpu": 512, "cuda": 8192}
TIMED_HEADS, TIMED_WIDTH = 8, 64
CALLS = 3  # the quickest call counts


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """The options of `doctor`."""

    device: str | None = option(
        None, "Device for trying attention backends.", metavar="NAME", shown="cuda, else cpu"
    )
    as_json: bool = options.as_json()
    verbose: bool = options.verbose()


@verb(DoctorOptions)
def doctor(given: DoctorOptions) -> None:
    """Show versions and devices, what works and how fast, and what is missing."""
    from dit_accel.models.loading import choose_device, quiet_libraries

    with quiet_libraries(verbose=given.verbose):
        content = _content(choose_device(given.device))
    if given.as_json:
        print_json(content)
        return

    print_aligned(plain_console(), _rows(content))


def _content(device: str) -> dict[str, Any]:
    from dit_accel.cli.run.sidecar import versions
    from dit_accel.models import backends, quantizing

    tried: list[Attempt] = [backends.attempt(name, device) for name in backends.names()]
    works = [one.name for one in tried if one.works]
    found = {package: _version(package) for package in OPTIONAL}
    return {
        "versions": versions(),
        "devices": _devices(),
        "device": device,
        "compiler": backends.compiler(device),
        "attention": {
            one.name: {"works": one.works, "masks": one.masks, "why": one.why} for one in tried
        },
        "quantize": quantizing.available(device),
        "gains": _gains(works, device),
        "optional": found,
        "missing": {
            name: {"for": OPTIONAL[name][0], "get": _how_to_get(name)}
            for name, version in found.items()
            if version is None
        },
    }


def _devices() -> dict[str, dict[str, Any]]:
    import torch

    from dit_accel.core.measure import free_memory

    found = {"cpu": {"name": f"{torch.get_num_threads()} threads"}}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found[f"cuda:{index}"] = {"name": torch.cuda.get_device_name(index)}
    if torch.backends.mps.is_available():
        found["mps"] = {"name": "Apple GPU"}
    return {
        name: more | {"free_bytes": free_memory(torch.device(name))} for name, more in found.items()
    }


def _gains(backends_here: list[str], device: str) -> dict[str, Any]:
    """Seconds of one attention with each backend, and of one matrix product in each dtype; and the
    reason why pruned attention has no kernel here."""
    import torch

    from dit_accel.attention import kernels
    from dit_accel.attention.block_sparse import BlockSizes
    from dit_accel.models import backends

    tokens = TIMED_TOKENS.get(device.partition(":")[0], TIMED_TOKENS["cpu"])
    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    drawn = torch.randn(
        1, tokens, TIMED_HEADS, TIMED_WIDTH, generator=torch.Generator().manual_seed(0)
    )
    query = drawn.to(device, dtypes[0] if device == "cpu" else dtypes[1])
    products = {one: drawn.flatten(2)[0].to(device, one) for one in dtypes}
    return {
        "tokens": tokens,
        "attention_seconds": {
            name: _seconds(functools.partial(backends.attend, name, query, query, query), device)
            for name in backends_here
        },
        "dtype_seconds": {
            str(kind).partition(".")[2]: _seconds(
                functools.partial(torch.matmul, rows, rows.T), device
            )
            for kind, rows in products.items()
        },
        "pruned_attention": kernels.unsupported(query, BlockSizes()),
    }


def _seconds(work: Callable[[], object], device: str) -> float | None:
    """Seconds of the quickest of some calls, after a first one; None if a call fails."""
    from dit_accel.core.measure import Stopwatch

    found = []
    try:
        for _ in range(1 + CALLS):
            with Stopwatch(device) as watch:
                work()
            found.append(watch.seconds)
    except Exception:  # kernels may raise any error
        return None
    return min(found[1:])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _how_to_get(package: str) -> str:
    extra = OPTIONAL[package][1]
    return f"pip install 'dit-accel[{extra}]'" if extra else f"pip install {package}"


def _rows(content: dict[str, Any]) -> list[Row]:
    rows: list[Row] = [(name, text) for name, text in content["versions"].items()]
    for name, device in content["devices"].items():
        free = device["free_bytes"]
        room = f", {bytes_text(free)} free" if free is not None else ""
        rows.append(("devices" if name == "cpu" else "", f"{name}: {device['name']}{room}"))
    missing = "missing: a C++ compiler" if content["device"] == "cpu" else "missing: triton"
    rows += [("--compile", content["compiler"] or missing), ("", "")]
    works = {name: one for name, one in content["attention"].items() if one["works"]}
    words = [name + ("" if one["masks"] else " (no masks)") for name, one in works.items()]
    where = f"work on {content['device']}: {', '.join(words) or 'none'}"
    rows.append(("attention", where))
    others = {n: one["why"] for n, one in content["attention"].items() if not one["works"]}
    hub = [name for name, why in others.items() if why == FROM_HUB]
    # of diffusers' messages about a missing package, show only how to install it
    reasons = {n: why.rpartition("too old. ")[2] for n, why in others.items() if n not in hub}
    rows += [("", f"{name}: {why}") for name, why in reasons.items()]
    rows += [("", f"not tried, as they are downloaded: {', '.join(hub)}")] if hub else []
    rows += [("", ""), ("--quantize", ", ".join(content["quantize"]) or "nothing is installed")]
    rows += [("", ""), *_gain_rows(content["gains"]), ("", "")]
    lines = [f"{name} for {one['for']}: {one['get']}" for name, one in content["missing"].items()]
    rows += [("missing" if not index else "", line) for index, line in enumerate(lines)]
    return rows


def _gain_rows(gains: dict[str, Any]) -> list[Row]:
    """The measured times, as multiples of the speed of the first."""
    pruned = gains["pruned_attention"]
    return [
        ("gains", f"attention, {gains['tokens']} tokens: {_times(gains['attention_seconds'])}"),
        ("", f"--dtype, one matrix product: {_times(gains['dtype_seconds'])}"),
        ("", f"pruned attention: {pruned or 'has its kernel'}"),
        ("", "plans (--speedup 2 computes half of the steps): on every device"),
    ]


def _times(seconds: dict[str, float | None]) -> str:
    """`native 12.0 ms, flex 0.50x as fast`."""
    known = {name: value for name, value in seconds.items() if value}
    base = "native" if "native" in known else next(iter(known), "")
    if not base:
        return "nothing could be timed"
    others = [f"{name} {known[base] / value:.2g}x" for name, value in known.items() if name != base]
    return ", ".join([f"{base} {known[base] * 1000:.2g} ms", *others])
