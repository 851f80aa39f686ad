"""One tiny pipeline of each family, of real diffusers classes: what the contract tests run on.

A new family needs a row in `models/families.py` and an entry in `MODELS`: a function that builds
its pipeline, and the arguments of its smallest call. `tests/contract/` does the rest.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import small_denoisers
import tiny
import torch
import without_row
from diffusers import HunyuanVideoPipeline
from pipeline_rows import ROWS

from dit_accel.core.families import without_row as without_row_of
from dit_accel.core.generation import call_arguments
from dit_accel.evaluation import speed
from dit_accel.models.families import FAMILIES, Family

STEPS = 8  # the fewest that a plan takes


@dataclass(frozen=True)
class TinyModel:
    """A pipeline that can be built again, and the arguments of its smallest call.

    Args:
        family: the row's name; of a model without a row: the transformer's class.
        build: makes a pipeline, with the same weights each time, in eval mode.
        arguments: of the call, without steps, generator and output type.
        separate: whether guidance runs as separate forwards, where no row says it.
        scene: more arguments of a call for a layout: a size that has room for its subjects.
        guidance: its scale, where the call does not say it.
    """

    family: str
    build: Callable[[], Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    separate: bool = False
    scene: dict[str, Any] = field(default_factory=dict)
    guidance: float = 1.0

    @property
    def branches(self) -> str:
        """As of `Family`."""
        return self.row.branches if self.row.blocks else "separate" if self.separate else "batched"

    @property
    def row(self) -> Family:
        found = (row for row in FAMILIES.values() if row.name == self.family)
        return next(found, None) or without_row_of(self.family, "")

    def run(self, pipe: Any, **changes: Any) -> torch.Tensor:
        """The last latents of a call with `STEPS` steps; a prompt replaces the embeddings."""
        given = {"num_inference_steps": STEPS, "output_type": "latent"} | self.arguments | changes
        if changes.get("prompt") is not None:
            ready = "_embeds", "_attention_mask"
            given = {k: v for k, v in given.items() if not k.endswith(ready)} | self.scene
        latents: torch.Tensor = pipe(
            **given, generator=torch.Generator().manual_seed(0), return_dict=False
        )[0]
        return latents


class HunyuanWithTexts(HunyuanVideoPipeline):  # type: ignore[misc]
    """Texts of 8 tokens, some of them padding, that depend on the prompt alone."""

    def _rows(self, prompt: Any, *shape: int) -> torch.Tensor:
        many = [prompt] if isinstance(prompt, str) else prompt
        seeds = (zlib.crc32(one.encode()) for one in many)
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(drawn).to(self.transformer.dtype)

    def _get_llama_prompt_embeds(self, prompt: Any, *_: Any, **__: Any) -> Any:
        many = [prompt] if isinstance(prompt, str) else prompt
        lengths = torch.tensor([min(2 + len(one.split()), 8) for one in many])
        mask = (torch.arange(8) < lengths[:, None]).long()
        return self._rows(prompt, 8, self.transformer.config.text_embed_dim), mask

    def _get_clip_prompt_embeds(self, prompt: Any, *_: Any, **__: Any) -> torch.Tensor:
        return self._rows(prompt, self.transformer.config.pooled_projection_dim)


def of_checkpoint(family: str, name: str, text: str = "") -> TinyModel:
    """A denoiser of `checkpoints.yaml`, without VAE, with weights drawn anew; a text encoder for
    prompts as wide as this field of its configuration says, if any."""
    case = small_denoisers.trial(name)

    def build() -> Any:
        pipe = speed.build(case)
        tiny.draw_weights(pipe.transformer, seed=0)
        if text:
            encoder = tiny.text_encoder(pipe.transformer.config[text])
            tiny.draw_weights(encoder, seed=1)
            pipe.register_modules(text_encoder=encoder, tokenizer=tiny.tiny_tokenizer())
        if family == "hunyuan-video":
            pipe.__class__ = HunyuanWithTexts  # a sibling of its parts has them too
        return pipe

    given = speed.embeddings(case.prompt, case.guidance, "cpu", torch.float32)
    arguments = call_arguments(build(), case.clip) | given
    for name in ("num_inference_steps", "output_type", "generator"):
        del arguments[name]
    return TinyModel(family, build, arguments, scene={"height": 64, "width": 128} if text else {})


def of_row(family: str, title: str, **more: Any) -> dict[str, TinyModel]:
    """A row of `pipeline_rows.py`; nothing where this diffusers does not have it."""
    row = next(row for row in ROWS if row.title == title)
    if not row.is_there:
        return {}
    arguments = row.arguments
    for name in ("num_inference_steps", "output_type"):
        del arguments[name]
    return {family: TinyModel(family, row.build, arguments, **more)}


WAN = {name: value for name, value in tiny.CALL.items() if name != "num_inference_steps"}
WAN["output_type"] = "latent"

MODELS: dict[str, TinyModel] = {
    "wan": TinyModel("wan", tiny.tiny_wan, WAN),
    "wan-two-experts": TinyModel("wan", lambda: tiny.tiny_wan(transformer_2=True), WAN),
    "hunyuan-video": of_checkpoint("hunyuan-video", "hunyuan-video"),
    "cogvideox": of_checkpoint("cogvideox", "cogvideox-2b"),
    "ltx": of_checkpoint("ltx", "ltx-video", text="caption_channels"),
    **of_row("wan-vace", "WanVACEPipeline"),
    **of_row("wan-animate", "WanAnimatePipeline"),
    **of_row("hunyuan-video-1.5", "HunyuanVideo15Pipeline", guidance=4.0),
    **of_row("ltx-2", "LTX2Pipeline"),
    **{
        one.pipeline: TinyModel(one.transformer, one.build, one.call, one.separate)
        for one in without_row.PIPELINES
        if one.is_there
    },
}
# Their plans are tried by `models/test_every_pipeline.py`; here their sites, in the slow tests.
FURTHER = ("wan-vace", "wan-animate", "hunyuan-video-1.5", "ltx-2")
# Of a family that is there already, and without a row: left to the slow tests.
VARIANTS = ("wan-two-experts", *(one.pipeline for one in without_row.PIPELINES[1:]))
