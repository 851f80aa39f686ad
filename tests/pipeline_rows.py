"""Every video pipeline of diffusers that has a transformer, as tiny as it can be.

Data for `every_pipeline.py`: `ROWS`, one a pipeline, with more where a pipeline has several kinds
of checkpoints. The widths are small; the classes and the schedulers are those of each family's
checkpoints. Source: the pipelines of diffusers.
"""

from __future__ import annotations

from typing import Any

import torch
from every_pipeline import Row, class_of, picture

TEXT, WIDTH, POOLED = 8, 16, 8  # tokens of a prompt, width of its embedding, of the pooled one


class NothingToCheck:
    """Stands for Cosmos' safety checker, which is another package."""

    def to(self, *_: Any, **__: Any) -> NothingToCheck:
        return self

    def check_text_safety(self, _: str) -> bool:
        return True

    def check_video_safety(self, clip: Any) -> Any:
        return clip


class Talk:
    """Stands for the tokenizer of Cosmos 3: some tokens for the last thing that was said."""

    eos_token_id = 1

    def convert_tokens_to_ids(self, _: str) -> int:
        return 2

    def apply_chat_template(self, said: list[dict[str, str]], **_: Any) -> Any:
        from transformers import BatchEncoding

        return BatchEncoding(
            {"input_ids": [3, *(3 + ord(sign) % 20 for sign in said[-1]["content"])]}
        )


def encoded(*_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
    """Stands for a text encoder that a pipeline asks for each of its windows."""
    draw, mask = torch.Generator().manual_seed(5), torch.ones(1, TEXT, dtype=torch.bool)
    one, other = (torch.randn(1, TEXT, WIDTH, generator=draw) for _ in range(2))
    return one, mask, other, mask


def clip_parts() -> dict[str, Any]:
    """What encodes a picture for Wan: 17 tokens, 4 wide."""
    return {"image_encoder": _clip, "image_processor": _clip_processor}


def _clip() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=4, projection_dim=4, num_hidden_layers=2, num_attention_heads=2,
            image_size=4, intermediate_size=16, patch_size=1,
        )
    )  # fmt: skip


def _clip_processor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(crop_size=4, size=4)


def _siglip() -> Any:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            image_size=16, patch_size=4,
        )
    )  # fmt: skip


def _siglip_processor() -> Any:
    from transformers import SiglipImageProcessor

    return SiglipImageProcessor(size={"height": 16, "width": 16})


def condition(kind: str, **more: Any) -> Any:
    """A function that makes a condition of LTX-2: noise as its first frames."""
    frames = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    return lambda: class_of(f"pipelines.ltx2.{kind}")(frames=frames, strength=1.0, **more)


SIGLIP = {"image_encoder": _siglip, "feature_extractor": _siglip_processor}


def both(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    """An embedding of the prompt, and of the negative one."""
    return {name: (1, *shape), f"negative_{name}": (1, *shape)}


def text(width: int = WIDTH, *, masked: bool = False) -> dict[str, tuple[int, ...]]:
    mask = both("prompt_attention_mask", TEXT) if masked else {}
    return both("prompt_embeds", TEXT, width) | mask


HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_layers": 2}
GUIDED: dict[str, Any] = {"guidance_scale": 4.0}
EULER = ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})
UNIPC = (
    "UniPCMultistepScheduler",
    {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
)

# --- Wan ---

WAN = HEADS | {
    "attention_head_dim": 12, "in_channels": 16, "out_channels": 16, "text_dim": WIDTH,
    "freq_dim": 16, "ffn_dim": 16, "rope_max_seq_len": 32,
}  # fmt: skip
WITH_IMAGE = WAN | {"in_channels": 36, "image_dim": 4}
LONG = both("prompt_embeds", 512, WIDTH)  # beside a picture, its text has this many tokens
SEEN: dict[str, Any] = {"vae": "wan", "images": ("image",), "tensors": LONG, "parts": clip_parts()}
ANIMATE = WITH_IMAGE | {
    "latent_channels": 16, "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16},
    "motion_encoder_size": 16, "motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 16,
    "face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2, "inject_face_latents_blocks": 2,
}  # fmt: skip


def wan(pipeline: str, transformer: str, config: dict[str, Any], **more: Any) -> Row:
    given: dict[str, Any] = {"tensors": text(), "scheduler": EULER, "size": 16} | more
    return Row(pipeline, transformer, config, **given | {"call": GUIDED | given.get("call", {})})


def motif(pipeline: str, **more: Any) -> Row:
    config = HEADS | {"attention_head_dim": 12, "num_single_layers": 1, "patch_size": 1,
                      "text_embed_dim": WIDTH, "rope_axes_dim": (4, 4, 4)}  # fmt: skip
    parts = {"guider": ("ClassifierFreeGuidance", {"guidance_scale": 4.0})}
    given: dict[str, Any] = {"parts": parts, "size": 16, "vae": "wan",
                             "tensors": text(masked=True), "scheduler": EULER}  # fmt: skip
    return Row(pipeline, "MotifVideoTransformer3DModel", config, **given | more)


T2V, VACE, REELS = (
    "WanTransformer3DModel",
    "WanVACETransformer3DModel",
    "SkyReelsV2Transformer3DModel",
)
TWO = {"experts": True, "settings": {"boundary_ratio": 0.9}}
TI2V = {"settings": {"expand_timesteps": True}, "scheduler": UNIPC}
VACE_CONFIG = WAN | {"vace_layers": [0, 1], "vace_in_channels": 96}
WANS = (
    wan("WanPipeline", T2V, WAN),
    wan("WanPipeline", T2V, WAN, name="two experts", scheduler=UNIPC, **TWO),
    wan("WanPipeline", T2V, WAN, name="TI2V", **TI2V),
    wan("WanImageToVideoPipeline", T2V, WITH_IMAGE, **SEEN),
    wan("WanImageToVideoPipeline", T2V, WITH_IMAGE | {"pos_embed_seq_len": 34},
        name="first and last frame", **SEEN | {"images": ("image", "last_image")}),
    wan("WanImageToVideoPipeline", T2V, WAN | {"in_channels": 36}, vae="wan", name="two experts",
        images=("image",), **TWO),
    wan("WanImageToVideoPipeline", T2V, WAN, vae="wan", name="TI2V", images=("image",), **TI2V),
    wan("WanVideoToVideoPipeline", T2V, WAN, vae="wan", videos={"video": 9}, frames=None,
        call={"strength": 0.9}, steps=("num_inference_steps", 12)),
    wan("WanVACEPipeline", VACE, VACE_CONFIG, vae="wan", since="0.36"),
    wan("WanVACEPipeline", VACE, VACE_CONFIG, vae="wan", since="0.36", name="two experts", **TWO),
    wan("WanAnimatePipeline", "WanAnimateTransformer3DModel", ANIMATE,
        videos={"pose_video": 9, "face_video": 9}, frames=("segment_frame_length", 9), **SEEN),
    wan("LucyEditPipeline", T2V, WAN | {"in_channels": 32}, vae="wan", videos={"video": 9}),
    wan("ChronoEditPipeline", "ChronoEditTransformer3DModel", WITH_IMAGE, **SEEN),
    wan("SkyReelsV2Pipeline", REELS, WAN, scheduler=UNIPC),
    wan("SkyReelsV2ImageToVideoPipeline", REELS, WITH_IMAGE, scheduler=UNIPC, **SEEN),
    wan("SkyReelsV2DiffusionForcingPipeline", REELS, WAN, vae="wan", scheduler=UNIPC,
        call={"base_num_frames": 9}),
    wan("SkyReelsV2DiffusionForcingImageToVideoPipeline", REELS, WAN, vae="wan", scheduler=UNIPC,
        images=("image",), call={"base_num_frames": 9}),
    wan("SkyReelsV2DiffusionForcingVideoToVideoPipeline", REELS, WAN, vae="wan", scheduler=UNIPC,
        videos={"video": 9}, frames=("num_frames", 17),
        call={"base_num_frames": 9, "overlap_history": 5}),
    wan("AnyFlowPipeline", "AnyFlowTransformer3DModel", WAN, vae="wan",
        scheduler=("FlowMapEulerDiscreteScheduler", {"shift": 5.0})),
    wan("AnyFlowFARPipeline", "AnyFlowFARTransformer3DModel",
        WAN | {"chunk_partition": (1, 1, 1), "full_chunk_limit": 3}, vae="wan",
        scheduler=("FlowMapEulerDiscreteScheduler", {"shift": 5.0})),
    wan("HeliosPipeline", "HeliosTransformer3DModel",
        {name: value for name, value in WAN.items() if name != "rope_max_seq_len"}
        | {"rope_dim": (4, 4, 4)}, vae="wan",
        scheduler=("HeliosScheduler", {"stage_range": [0, 1], "stages": 1,
                                       "use_dynamic_shifting": True})),
    wan("HeliosPyramidPipeline", "HeliosTransformer3DModel",
        {name: value for name, value in WAN.items() if name != "rope_max_seq_len"}
        | {"rope_dim": (4, 4, 4)}, vae="wan", size=64,
        scheduler=("HeliosScheduler", {"gamma": 0.32}),
        steps=("pyramid_num_inference_steps_list", [8, 8, 8])),
    motif("MotifVideoPipeline", name="projected guidance",
          parts={"guider": ("AdaptiveProjectedGuidance", {"guidance_scale": 4.0})}),
    motif("MotifVideoPipeline"),
    motif("MotifVideoImage2VideoPipeline", images=("image",)),
)  # fmt: skip

# --- HunyuanVideo, Kandinsky ---

HUNYUAN = HEADS | {
    "attention_head_dim": 10, "in_channels": 4, "out_channels": 4, "num_single_layers": 1,
    "num_refiner_layers": 1, "patch_size": 2, "text_embed_dim": WIDTH,
    "pooled_projection_dim": POOLED, "rope_axes_dim": (2, 4, 4),
}  # fmt: skip
HUNYUAN_TEXT = {"prompt_embeds": (1, TEXT, WIDTH), "pooled_prompt_embeds": (1, POOLED),
                "prompt_attention_mask": (1, TEXT)}  # fmt: skip
NEGATIVE = {f"negative_{name}": shape for name, shape in HUNYUAN_TEXT.items()}
HUNYUAN_15 = HEADS | {
    "attention_head_dim": 8, "in_channels": 9, "out_channels": 4, "num_refiner_layers": 1,
    "mlp_ratio": 2.0, "text_embed_dim": WIDTH, "text_embed_2_dim": 32, "image_embed_dim": 12,
    "rope_axes_dim": (2, 2, 4), "target_size": 16,
}  # fmt: skip
TEXTS_15 = both("prompt_embeds", TEXT, WIDTH) | both("prompt_embeds_mask", TEXT)
TEXTS_15 |= both("prompt_embeds_2", TEXT, 32) | both("prompt_embeds_mask_2", TEXT)
FEW_15 = {"vision_num_semantic_tokens": 9}  # tokens of a picture, which is zero without one
KANDINSKY = {
    "in_visual_dim": 16, "out_visual_dim": 16, "in_text_dim": WIDTH, "in_text_dim2": POOLED,
    "time_dim": 16, "model_dim": 16, "ff_dim": 32, "num_text_blocks": 1, "num_visual_blocks": 2,
    "axes_dims": (1, 1, 2),
}  # fmt: skip
KANDINSKY_SR = {
    "in_visual_dim": 4, "out_visual_dim": 4, "time_dim": 16, "model_dim": 24, "ff_dim": 32,
    "num_visual_blocks": 2, "axes_dims": (4, 4, 4), "tile_sizes": ((128, 128),),
}  # fmt: skip
KANDINSKY_SR_VAE = {
    "latent_channels": 4, "layers_per_block": 1,
    "encoder_block_out_channels": (4, 8, 8, 8, 8), "decoder_block_out_channels": (4, 8, 8, 8, 8),
}  # fmt: skip
KANDINSKY_TEXT = both("prompt_embeds_qwen", TEXT, WIDTH) | both("prompt_embeds_clip", POOLED)
KANDINSKY_TEXT |= {"prompt_cu_seqlens": (0, TEXT), "negative_prompt_cu_seqlens": (0, TEXT)}


def hunyuan(pipeline: str, config: dict[str, Any], **more: Any) -> Row:
    given: dict[str, Any] = {"transformer": "HunyuanVideoTransformer3DModel",
                             "tensors": HUNYUAN_TEXT, "scheduler": EULER}  # fmt: skip
    return Row(pipeline, config=config, **given | more)


HUNYUANS = (
    hunyuan("HunyuanVideoPipeline", HUNYUAN),
    hunyuan("HunyuanVideoPipeline", HUNYUAN, name="true guidance",
            tensors=HUNYUAN_TEXT | NEGATIVE, call={"true_cfg_scale": 4.0}),
    hunyuan("HunyuanVideoImageToVideoPipeline",
            HUNYUAN | {"in_channels": 9, "guidance_embeds": False,
                       "image_condition_type": "latent_concat"},
            vae="hunyuan", images=("image",)),
    hunyuan("HunyuanVideoImageToVideoPipeline",
            HUNYUAN | {"image_condition_type": "token_replace"}, name="token replace",
            vae="hunyuan", images=("image",), call={"guidance_scale": 6.0}),
    hunyuan("HunyuanSkyreelsImageToVideoPipeline", HUNYUAN | {"in_channels": 8}, vae="hunyuan",
            images=("image",), tensors=HUNYUAN_TEXT | NEGATIVE, call={"true_cfg_scale": 4.0}),
    hunyuan("HunyuanVideoFramepackPipeline",
            HUNYUAN | {"has_clean_x_embedder": True, "has_image_proj": True, "image_proj_dim": 12},
            transformer="HunyuanVideoFramepackTransformer3DModel", vae="hunyuan",
            images=("image",), call={"latent_window_size": 3}, parts=SIGLIP),
    hunyuan("HunyuanVideo15Pipeline", HUNYUAN_15 | {"task_type": "t2v"}, vae="hunyuan-1.5",
            transformer="HunyuanVideo15Transformer3DModel", size=16, tensors=TEXTS_15,
            attributes=FEW_15,
            parts={"guider": ("ClassifierFreeGuidance", {"guidance_scale": 4.0})}),
    hunyuan("HunyuanVideo15ImageToVideoPipeline", HUNYUAN_15 | {"task_type": "i2v"},
            vae="hunyuan-1.5", transformer="HunyuanVideo15Transformer3DModel", size=None,
            tensors=TEXTS_15, images=("image",),
            parts=SIGLIP | {"guider": ("ClassifierFreeGuidance", {"guidance_scale": 4.0})}),
    hunyuan("Kandinsky5T2VPipeline", KANDINSKY, transformer="Kandinsky5Transformer3DModel",
            vae="hunyuan-16", tensors=KANDINSKY_TEXT, call=GUIDED),
    hunyuan("Kandinsky5I2VPipeline", KANDINSKY | {"visual_cond": True},
            transformer="Kandinsky5Transformer3DModel", vae="hunyuan-16", images=("image",),
            tensors=KANDINSKY_TEXT, call=GUIDED, frames=("num_frames", 25)),
    hunyuan("Kandinsky6TI2VAPipeline",
            KANDINSKY | {"visual_cond": False, "in_audio_dim": 4, "out_audio_dim": 4},
            transformer="Kandinsky6Transformer3DModel", vae="hunyuan-16",
            tensors=both("prompt_embeds", TEXT, WIDTH) | both("pooled_prompt_embeds", POOLED),
            call=GUIDED | {"sample_audio": False}),
    Row("Kandinsky6SRPipeline", "Kandinsky6SRTransformer3DModel", KANDINSKY_SR, {}, EULER,
        parts={"vae": ("Kandinsky6SRVAE", KANDINSKY_SR_VAE)}, frames=None, size=None,
        call={"video": [picture(0, 64)], "resolution_scale": 2.0,
              "output_type": "pt"}),
)  # fmt: skip

# --- LTX ---

LTX = HEADS | {"attention_head_dim": 8, "in_channels": 8, "out_channels": 8,
               "cross_attention_dim": 16, "caption_channels": WIDTH}  # fmt: skip
LTX2 = HEADS | {
    "attention_head_dim": 8, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 16,
    "audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4, "audio_cross_attention_dim": 8, "caption_channels": WIDTH,
    "rope_double_precision": False, "rope_type": "split",
}  # fmt: skip
CONNECTORS = {
    "caption_channels": WIDTH, "text_proj_in_factor": 2, "video_connector_num_attention_heads": 4,
    "video_connector_attention_head_dim": 4, "video_connector_num_layers": 1,
    "video_connector_num_learnable_registers": None, "audio_connector_num_attention_heads": 4,
    "audio_connector_attention_head_dim": 4, "audio_connector_num_layers": 1,
    "audio_connector_num_learnable_registers": None, "connector_rope_base_seq_len": 32,
    "rope_theta": 10000.0, "rope_double_precision": False, "causal_temporal_positioning": False,
    "rope_type": "split",
}  # fmt: skip
AUDIO_VAE = {
    "base_channels": 4, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": None,
    "resolution": 32, "latent_channels": 2, "norm_type": "pixel", "causality_axis": "height",
    "dropout": 0.0, "mid_block_add_attention": False, "mel_bins": 8,
}  # fmt: skip
VOCODER = {"in_channels": 16, "hidden_channels": 32, "out_channels": 2,
           "upsample_kernel_sizes": [4, 4], "upsample_factors": [2, 2],
           "resnet_kernel_sizes": [3], "resnet_dilations": [[1, 3, 5]]}  # fmt: skip
SOUND = {
    "connectors": ("pipelines.ltx2.connectors:LTX2TextConnectors", CONNECTORS),
    "audio_vae": ("AutoencoderKLLTX2Audio", AUDIO_VAE),
    "vocoder": ("pipelines.ltx2.vocoder:LTX2Vocoder", VOCODER),
}
NO_EXTRAS = {"stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0,
             "audio_guidance_scale": 4.0, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0,
             "audio_guidance_rescale": 0.0, "spatio_temporal_guidance_blocks": None,
             "use_cross_timestep": False}  # fmt: skip


def ltx(pipeline: str, **more: Any) -> Row:
    given: dict[str, Any] = {"vae": "ltx", "tensors": text(masked=True), "scheduler": EULER,
                             "call": GUIDED}  # fmt: skip
    return Row(pipeline, "LTXVideoTransformer3DModel", LTX, **given | more)


def ltx2(pipeline: str, **more: Any) -> Row:
    call = GUIDED | NO_EXTRAS | more.pop("call", {})
    given: dict[str, Any] = {"vae": "ltx2", "tensors": text(2 * WIDTH, masked=True), "size": 32,
                             "frames": ("num_frames", 5), "scheduler": EULER,
                             "parts": SOUND}  # fmt: skip
    return Row(pipeline, "LTX2VideoTransformer3DModel", LTX2, call=call, **given | more)


LTXS = (
    ltx("LTXPipeline"),
    ltx("LTXImageToVideoPipeline", images=("image",)),
    ltx("LTXConditionPipeline", images=("image",)),
    ltx("LTXI2VLongMultiPromptPipeline", tensors={}, attributes={"encode_prompt": encoded},
        call=GUIDED | {"prompt": "a"}),
    ltx2("LTX2Pipeline"),
    ltx2("LTX2Pipeline", name="three forwards", call={
        "stg_scale": 1.0, "modality_scale": 3.0, "audio_stg_scale": 1.0,
        "audio_modality_scale": 3.0, "spatio_temporal_guidance_blocks": [1]}),
    ltx2("LTX2Pipeline", name="rescaled guidance", call={
        "stg_scale": 1.0, "modality_scale": 3.0, "guidance_rescale": 0.7, "audio_stg_scale": 1.0,
        "audio_guidance_scale": 7.0, "audio_modality_scale": 3.0, "audio_guidance_rescale": 0.7,
        "spatio_temporal_guidance_blocks": [1], "use_cross_timestep": True}),
    ltx2("LTX2ImageToVideoPipeline", images=("image",), call={"image_crf": 0}),
    ltx2("LTX2ConditionPipeline", made={
        "conditions": condition("pipeline_ltx2_condition:LTX2VideoCondition", crf=0)}),
    ltx2("LTX2InContextPipeline", made={
        "reference_conditions": condition("pipeline_ltx2_ic_lora:LTX2ReferenceCondition")}),
    Row("LTX2DFRPipeline", "LTX2VideoTransformer3DModel",
        LTX2 | {"use_keyframes_abs_pos_embedding": True},
        {"prompt_embeds": (1, TEXT, 2 * WIDTH), "prompt_attention_mask": (1, TEXT)}, EULER,
        vae="ltx2", frames=("num_frames", 5), parts=SOUND, steps=("output_type", "latent")),
    Row("LTX2HDRPipeline", "LTX2VideoTransformer3DModel", LTX2, text(2 * WIDTH, masked=True),
        EULER, vae="ltx2", frames=("num_frames", 5), parts=SOUND,
        call={"guidance_scale": 1.0},
        made={"reference_conditions": [
            condition("pipeline_ltx2_hdr_lora:LTX2HDRReferenceCondition")]}),
)  # fmt: skip

# --- CogVideoX, EasyAnimate, and those that stand alone ---

COG = HEADS | {
    "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "time_embed_dim": 2,
    "text_embed_dim": WIDTH, "sample_width": 4, "sample_height": 4, "sample_frames": 9,
    "max_text_seq_length": TEXT, "use_rotary_positional_embeddings": True,
}  # fmt: skip
COG_IMAGE = COG | {"in_channels": 8}
IDENTITY = COG_IMAGE | {
    "cross_attn_interval": 1, "is_kps": False, "is_train_face": True, "cross_attn_dim_head": 1,
    "cross_attn_num_heads": 1, "LFE_id_dim": 2, "LFE_vit_dim": 2, "LFE_depth": 5,
    "LFE_dim_head": 8, "LFE_num_heads": 2, "LFE_num_id_token": 1, "LFE_num_querie": 1,
    "LFE_output_dim": 21, "LFE_ff_mult": 1, "LFE_num_scale": 1,
}  # fmt: skip
DDIM = ("CogVideoXDDIMScheduler", {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing"})  # fmt: skip
EASY = HEADS | {"attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
                "time_embed_dim": 2, "text_embed_dim": WIDTH, "sample_width": 16,
                "sample_height": 16, "patch_size": 2, "mmdit_layers": 2}  # fmt: skip
COSMOS = HEADS | {
    "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "mlp_ratio": 2,
    "text_embed_dim": WIDTH, "adaln_lora_dim": 4, "max_size": (4, 32, 32),
    "concat_padding_mask": False,
}  # fmt: skip
COSMOS_2 = COSMOS | {"in_channels": 17, "out_channels": 16}
COSMOS_1 = COSMOS | {"in_channels": 5}
COSMOS_3 = {
    "head_dim": 12, "hidden_size": 24, "intermediate_size": 24, "latent_channel": 16,
    "latent_patch_size": 1, "num_attention_heads": 2, "num_hidden_layers": 2,
    "num_key_value_heads": 2, "patch_latent_dim": 16, "rope_axes_dim": (2, 2, 2), "vocab_size": 32,
}  # fmt: skip
SAFE = {"safety_checker": NothingToCheck}
EDM = ("EDMEulerScheduler", {"sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras",
                             "final_sigmas_type": "sigma_min"})  # fmt: skip
KARRAS = ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True})
SANA = HEADS | {
    "attention_head_dim": 12, "num_cross_attention_heads": 2, "cross_attention_head_dim": 12,
    "cross_attention_dim": 24, "caption_channels": WIDTH, "rope_max_seq_len": 32,
}  # fmt: skip
SANA_WORLD = {
    "in_channels": 4, "num_layers": 2, "hidden_size": 48, "num_attention_heads": 2,
    "softmax_every_n": 2, "linear_head_dim": 24, "chunk_plucker_post_attn_blocks": 2,
    "chunk_plucker_channels": 24, "caption_channels": WIDTH, "mlp_ratio": 2.0,
}  # fmt: skip
NO_BINS: dict[str, Any] = {"negative_prompt": None, "use_resolution_binning": False}


def cog(pipeline: str, config: dict[str, Any] = COG_IMAGE, **more: Any) -> Row:
    given: dict[str, Any] = {"vae": "cogvideox", "tensors": text(), "scheduler": DDIM,
                             "transformer": "CogVideoXTransformer3DModel"} | more  # fmt: skip
    return Row(pipeline, config=config, **given | {"call": GUIDED | given.get("call", {})})


def easy(pipeline: str, config: dict[str, Any], **more: Any) -> Row:
    return Row(pipeline, "EasyAnimateTransformer3DModel", config, text(masked=True), EULER,
               vae="magvit", call=GUIDED, **more)  # fmt: skip


def cosmos(pipeline: str, config: dict[str, Any], **more: Any) -> Row:
    given: dict[str, Any] = {"tensors": text(), "parts": SAFE} | more
    return Row(pipeline, "CosmosTransformer3DModel", config,
               **given | {"call": GUIDED | given.get("call", {})})  # fmt: skip


OTHERS = (
    cog("CogVideoXPipeline", COG),
    cog("CogVideoXImageToVideoPipeline", images=("image",)),
    cog("CogVideoXVideoToVideoPipeline", COG, videos={"video": 9}, frames=None,
        call={"strength": 0.9}, steps=("num_inference_steps", 12)),
    cog("CogVideoXFunControlPipeline", videos={"control_video": 9}, frames=None),
    cog("ConsisIDPipeline", IDENTITY, transformer="ConsisIDTransformer3DModel", images=("image",),
        call={"id_vit_hidden": [torch.ones(1, 2, 2)], "id_cond": torch.ones(1, 2)}),
    easy("EasyAnimatePipeline", EASY),
    easy("EasyAnimateInpaintPipeline", EASY | {"in_channels": 9},
         clips={"video": (3, 9), "mask_video": (1, 9)},
         broken="object has no attribute 'cache_mag_vae'"),
    easy("EasyAnimateControlPipeline", EASY | {"in_channels": 8},
         clips={"control_video": (3, 9)},
         broken="unexpected keyword argument 'text_encoder_index'"),
    cosmos("CosmosTextToWorldPipeline", COSMOS, scheduler=EDM, vae="cosmos"),
    cosmos("CosmosVideoToWorldPipeline", COSMOS_1, scheduler=EDM, vae="cosmos",
           images=("image",)),
    cosmos("Cosmos2VideoToWorldPipeline", COSMOS_2, scheduler=KARRAS, vae="wan",
           images=("image",)),
    cosmos("Cosmos2TextToImagePipeline", COSMOS_2 | {"in_channels": 16}, scheduler=KARRAS,
           vae="wan", frames=None),
    cosmos("Cosmos2_5_PredictBasePipeline", COSMOS_2, scheduler=UNIPC, vae="wan"),
    Row("Cosmos3OmniPipeline", "Cosmos3OmniTransformer", COSMOS_3, {}, UNIPC, vae="wan",
        parts={"text_tokenizer": Talk}, settings={"enable_safety_checker": False},
        call=GUIDED | {"prompt": "a dog", "use_system_prompt": False}),
    Row("MochiPipeline", "MochiTransformer3DModel",
        HEADS | {"attention_head_dim": 8, "text_embed_dim": WIDTH, "pooled_projection_dim": 16,
                 "time_embed_dim": 8, "max_sequence_length": TEXT},
        text(masked=True), ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
        frames=("num_frames", 7), call=GUIDED),
    Row("AllegroPipeline", "AllegroTransformer3DModel",
        HEADS | {"attention_head_dim": 24, "cross_attention_dim": 48, "caption_channels": WIDTH,
                 "sample_height": 4, "sample_width": 4, "sample_frames": 3},
        text(masked=True), ("EulerDiscreteScheduler", {}),
        call=GUIDED | {"negative_prompt": None, "clean_caption": False}),
    Row("LattePipeline", "LatteTransformer3DModel",
        HEADS | {"attention_head_dim": 8, "in_channels": 4, "out_channels": 8,
                 "cross_attention_dim": 16, "caption_channels": WIDTH, "patch_size": 2,
                 "sample_size": 4, "norm_type": "ada_norm_single", "video_length": 4,
                 "norm_elementwise_affine": False},
        text(), ("DDIMScheduler", {"clip_sample": False}), frames=("video_length", 4),
        call=GUIDED | {"negative_prompt": None, "clean_caption": False, "mask_feature": False}),
    Row("SanaVideoPipeline", "SanaVideoTransformer3DModel", SANA, text(masked=True), EULER,
        frames=("frames", 9), call=GUIDED | NO_BINS),
    Row("SanaImageToVideoPipeline", "SanaVideoTransformer3DModel", SANA, text(masked=True), EULER,
        frames=("frames", 9), call=GUIDED | NO_BINS, vae="wan", images=("image",)),
    Row("SanaWMPipeline", "SanaWMTransformer3DModel", SANA_WORLD, text(masked=True), EULER,
        vae="ltx2", images=("image",),
        call=GUIDED | {"prompt": "a", "action": "w-8", "intrinsics": [30.0, 30.0, 16.0, 16.0]}),
)  # fmt: skip

ROWS = (*WANS, *HUNYUANS, *LTXS, *OTHERS)
NOT_TRIED = {
    "Cosmos2_5_TransferPipeline": "its control network needs torchvision",
    "LTX2DFRTemporalRefinePipeline": "it refines in four steps, and draws noise in each",
}
