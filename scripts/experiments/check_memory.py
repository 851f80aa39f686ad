"""Checks whether a run needs the predicted memory, at true size, with random weights.

In: names of models and ways of offloading. Out: a line for each: predicted and measured bytes by
stage, and their ratio. The allocator's peak within a stage is measured. Lines that the output has
already are not measured again.
Knows three text-to-video models of true size; needs a CUDA device. Nothing is downloaded. Example:
python scripts/experiments/check_memory.py --models wan-1.3b --output memory.jsonl
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from dit_accel.core.generation import ClipSpec, call_arguments
from dit_accel.core.measure import peak_memory, reset_peak_memory, synchronise
from dit_accel.models import loading, memory, setup
from dit_accel.models.folder import LoadableModel

GIB = 2**30
# Blocks, heads and width of the feed-forward; the text encoder is UMT5-xxl with fewer layers, so
# that its random weights are soon written. The VAE is Wan 2.1's own.
MODELS: dict[str, dict[str, Any]] = {
    "wan-1.3b": {"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960},
    "wan-5b": {"num_layers": 30, "num_attention_heads": 24, "ffn_dim": 14336},
    "wan-14b": {"num_layers": 40, "num_attention_heads": 40, "ffn_dim": 13824},
}
STAGES = (("text_encoder", "forward", "text"), ("transformer", "forward", "denoise"),
          ("vae", "decode", "decode"))  # fmt: skip
CLIP = ClipSpec("a cat", "", 0, 2, 5.0, 480, 832, 81, None, 512)


def write(folder: Path, config: dict[str, Any]) -> None:
    """Write a pipeline with random weights, in bfloat16."""
    with torch.device("cuda"):
        transformer = diffusers.WanTransformer3DModel(**config).to(torch.bfloat16)
        text = UMT5EncoderModel(
            UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=6,
                       num_heads=64)
        ).to(torch.bfloat16)  # fmt: skip
        vae = diffusers.AutoencoderKLWan()
    diffusers.WanPipeline(
        tokenizer=tokenizer(), text_encoder=text, transformer=transformer, vae=vae,
        scheduler=diffusers.UniPCMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        ),
    ).save_pretrained(folder)  # fmt: skip
    del transformer, text, vae
    free()


def free() -> None:
    """Free memory: modules, hooks and patched methods refer to each other in circles."""
    gc.collect()
    torch.cuda.empty_cache()


def tokenizer() -> PreTrainedTokenizerFast:
    """The miniature's tokenizer: the kind of tokens does not matter."""
    folder = loading.resolve_model(None).folder
    found: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder / "tokenizer")
    return found


@contextlib.contextmanager
def watched(
    module: torch.nn.Module, method: str, stage: str, device: torch.device, peaks: dict[str, int]
) -> Iterator[None]:
    """While the body runs, each call of the method puts its peak into `peaks`.

    A call is measured from its first submodule on: by then, offloading has moved away the weights
    of the stage before.
    """
    own, begun = getattr(module, method), True

    def begin(*_: Any) -> None:
        nonlocal begun
        if not begun:
            synchronise(device)
            reset_peak_memory(device)
            begun = True

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal begun
        begun = False
        out = own(*args, **kwargs)
        synchronise(device)
        peaks[stage] = max(peaks.get(stage, 0), peak_memory(device) or 0)
        return out

    parts = [part for part in module.modules() if part is not module]
    hooks = [part.register_forward_pre_hook(begin) for part in parts]
    with mock.patch.object(module, method, call):
        yield
    for hook in hooks:
        hook.remove()


def measured(
    model: LoadableModel, chosen: setup.Setup, device: torch.device, dtype: str,
    clip: ClipSpec,
) -> dict[str, int]:  # fmt: skip
    """The peak of each stage of a call. No weights stay on the device afterwards."""
    peaks: dict[str, int] = {}
    pipe = setup.load(model, chosen, device=str(device), dtype=dtype)
    with contextlib.ExitStack() as stack:
        for part, method, stage in STAGES:
            stack.enter_context(watched(getattr(pipe, part), method, stage, device, peaks))
        pipe(**call_arguments(pipe, clip))
    del pipe, stack
    free()
    return peaks


def lines(model: LoadableModel, name: str, way: str) -> Iterator[dict[str, Any]]:
    """Predicted and measured, by stage."""
    chosen = setup.Setup(offload=way)
    found = memory.forecast(model, chosen, "bfloat16", lambda pipe: call_arguments(pipe, CLIP))
    peaks = measured(model, chosen, torch.device("cuda"), "bfloat16", CLIP)
    for stage, predicted in found.stages(way).items():
        yield {"model": name, "offload": way, "stage": stage,
               "predicted_gib": round(predicted / GIB, 3),
               "measured_gib": round(peaks[stage] / GIB, 3),
               "ratio": round(predicted / peaks[stage], 3)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--offloads", default="none,model,group")
    parser.add_argument("--output", type=Path, help="a file that lines are appended to")
    given = parser.parse_args()
    before = given.output.read_text() if given.output and given.output.is_file() else ""
    done = {(line["model"], line["offload"]) for line in map(json.loads, before.splitlines())}
    for name in given.models.split(","):
        ways = [way for way in given.offloads.split(",") if (name, way) not in done]
        with tempfile.TemporaryDirectory() as place:
            if ways:
                write(Path(place), MODELS[name])
            for way in ways:
                found = [
                    json.dumps(line) for line in lines(loading.resolve_model(place), name, way)
                ]
                print("\n".join(found), flush=True)
                if given.output:
                    with given.output.open("a", encoding="utf-8") as file:
                        file.write("\n".join(found) + "\n")


if __name__ == "__main__":
    main()
