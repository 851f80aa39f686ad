"""Is the memory of a run what the command says before it? At true size, with random weights.

In: names of models and ways of offloading. Out: a line each: predicted and measured bytes by stage,
and their ratio. Measured is the allocator's highest mark within the stage.
Knows three text-to-video models of true size; needs a CUDA device. Nothing is downloaded.
Example: python scripts/experiments/check_memory.py --models wan-1.3b --offloads none,model
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from dit_accel.core.generation import ClipSpec, call_arguments
from dit_accel.models import loading, memory, setup

GIB = 2**30
# Blocks, heads and width of the feed-forward; the text encoder is UMT5-xxl with fewer layers, so
# that its random weights are soon written. The VAE is Wan 2.1's own.
MODELS: dict[str, dict[str, Any]] = {
    "wan-1.3b": {"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960},
    "wan-5b": {"num_layers": 30, "num_attention_heads": 24, "ffn_dim": 14336},
    "wan-14b": {"num_layers": 40, "num_attention_heads": 40, "ffn_dim": 13824},
}
CLIP = ClipSpec("a cat", "", 0, 2, 5.0, 480, 832, 81, None, 512)


def write(folder: Path, config: dict[str, Any]) -> None:
    """A pipeline of random weights, in bfloat16."""
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
    torch.cuda.empty_cache()


def tokenizer() -> PreTrainedTokenizerFast:
    """The miniature's: which tokens there are does not matter."""
    folder = loading.resolve_model(None).folder
    found: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder / "tokenizer")
    return found


def measured(pipe: Any) -> dict[str, int]:
    """The allocator's highest mark in each stage of a call."""
    peaks: dict[str, int] = {}

    def enter() -> None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()

    def leave(stage: str) -> None:
        torch.cuda.synchronize()
        peaks[stage] = max(peaks.get(stage, 0), torch.cuda.max_memory_allocated())

    for part, method, stage in (
        ("text_encoder", "forward", "text"),
        ("transformer", "forward", "denoise"),
        ("vae", "decode", "decode"),
    ):
        module = getattr(pipe, part)
        own = getattr(module, method)

        def watched(*args: Any, own: Any = own, stage: str = stage, **kwargs: Any) -> Any:
            enter()
            out = own(*args, **kwargs)
            leave(stage)
            return out

        setattr(module, method, watched)
    pipe(**call_arguments(pipe, CLIP))
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--offloads", default="none,model,group")
    given = parser.parse_args()
    for name in given.models.split(","):
        with tempfile.TemporaryDirectory() as place:
            write(Path(place), MODELS[name])
            model = loading.resolve_model(place)
            for way in given.offloads.split(","):
                chosen = setup.Setup(offload=way)
                found = memory.forecast(
                    model, chosen, "bfloat16", lambda pipe: call_arguments(pipe, CLIP)
                )
                pipe = setup.load(model, chosen, device="cuda", dtype="bfloat16")
                peaks = measured(pipe)
                for stage, predicted in found.stages(way).items():
                    line = {"model": name, "offload": way, "stage": stage,
                            "predicted_gib": round(predicted / GIB, 3),
                            "measured_gib": round(peaks[stage] / GIB, 3),
                            "ratio": round(predicted / peaks[stage], 3)}  # fmt: skip
                    print(json.dumps(line), flush=True)
                del pipe
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
