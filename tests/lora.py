"""A LoRA of random weights on a tiny transformer. Needs peft."""

from __future__ import annotations

from typing import Any

import torch


def load(pipe: Any, scale: float = 0.5) -> None:
    """A LoRA on two projections of every attention, as `load_lora_weights` leaves it."""
    import peft  # takes seconds

    config = peft.LoraConfig(
        r=4, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False
    )
    pipe.transformer.add_adapter(config, adapter_name="one")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in pipe.transformer.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
