"""The table of supported models: one row per transformer class.

In: nothing. Out: `FAMILIES`, by the name of the diffusers class. A row says where the blocks and
their attentions are, and how a block is called. It has only names: nothing is imported, so the
table can be read without torch. `core/families.py` looks it up.
Source: the classes of diffusers. A new model is a new row here; `register_family` adds a user's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

EXPERTS = ("transformer", "transformer_2")  # attributes of a pipeline that may hold a denoiser
SITES = ("attention", "block", "model")
BRANCHES = ("separate", "batched", "embedded")
TOKENS = (
    "time", "audio_time", "text", "text_2", "image", "context", "joint", "audio", "none",
)  # fmt: skip
Argument = tuple[str, int]  # of a block's forward: its name, and its position


@dataclass(frozen=True, kw_only=True)
class Family:
    """One transformer class.

    Args:
        name: short name, for the command line and reports.
        transformer: name of the diffusers class.
        pipelines: the diffusers pipelines that are tested with it.
        components: attributes of a pipeline that may hold such a transformer.
        blocks: attributes of the transformer that hold its blocks, in the order they run.
        hidden: a block's argument that carries the tokens through the stack, and its position.
        text: the same for the text that a block returns after the tokens; None: it returns none.
            The text that the last block returns is not used.
        audio: the same for the audio that a block, and also the stack, returns after the tokens.
        control: a list of blocks that return a hint, followed by the tokens of this argument. The
            transformer adds the hint to the output of another block.
        frames: the dimension of the latents with the latent frames, if it is known.
        attention: a block's submodule that computes self-attention.
        stages: whether it has a processor in stages (`attention/processor.py`), and can be pruned.
        audio_attention: the same for audio; both are cached together.
        branches: how guidance runs: "separate" forwards, one "batched", or "embedded" in weights.
        sigmas: whether its pipelines give the sampler noise levels, from 1 down to 1/n.
        sites: the sites that are safe. The whole stack is safe only if nothing is added between
            blocks; the others only if a value is one tensor.
        notes: one phrase for people.
        by_command: whether the command makes its clips. Else its call needs arguments that the
            command does not have, or returns a result that the command does not write.
        cross_attention: a block's submodule that reads the text. It and the next two are None if
            scenes are not known to work.
        text_embedder: the transformer's submodule that every text passes before its blocks.
        rotary: the transformer's submodule that makes the rotary embedding of its tokens.
        rows: layers whose rows are not the video tokens: a regular expression for their paths, and
            the kind of their rows. The kinds are "time" and "audio_time" for the timesteps; "text",
            "text_2" (of a second encoder) or "image" for tokens that are read; "context" for all
            three; "joint" for video and text in one sequence; "audio"; "none" for layers that are
            not counted. The first match counts.
    """

    name: str
    transformer: str
    pipelines: tuple[str, ...]
    components: tuple[str, ...] = ("transformer",)
    blocks: tuple[str, ...]
    hidden: Argument = ("hidden_states", 0)
    text: Argument | None = None
    audio: Argument | None = None
    control: tuple[str, Argument] | None = None
    frames: int = 2
    attention: str
    stages: bool = False
    audio_attention: str | None = None
    branches: str
    sigmas: bool = False
    sites: tuple[str, ...]
    notes: str
    by_command: bool = True
    cross_attention: str | None = None
    text_embedder: str | None = None
    rotary: str | None = None
    rows: tuple[tuple[str, str], ...]

    def streams(self, group: str) -> tuple[Argument | None, ...]:
        """The outputs of a block of a list, in order: for each tensor the argument that it
        continues; None if the tensor is new."""
        if self.control is not None and group == self.control[0]:
            return None, self.control[1]
        return tuple(one for one in (self.hidden, self.text, self.audio) if one is not None)


_WAN_ROWS = (
    (r"condition_embedder\.time", "time"),
    (r"image_embedder|add_[kv]_proj|to_added_kv", "image"),
    (r"text_embedder|attn2\.to_(k|v|kv)\b", "text"),
)
FAMILIES: dict[str, Family] = {
    row.transformer: row
    for row in (
        Family(
            name="wan",
            transformer="WanTransformer3DModel",
            pipelines=("WanPipeline",),
            components=("transformer", "transformer_2"),
            blocks=("blocks",),
            attention="attn1",
            stages=True,
            branches="separate",
            sites=SITES,
            notes="Wan 2.1 and 2.2, both experts",
            cross_attention="attn2",
            text_embedder="condition_embedder.text_embedder",
            rotary="rope",
            rows=_WAN_ROWS,
        ),
        Family(
            name="wan-vace",
            transformer="WanVACETransformer3DModel",
            pipelines=("WanVACEPipeline",),
            components=("transformer", "transformer_2"),
            # All hints are made first. Each is a value of its block's site, and is added outside
            # of all sites, to a cached block as well as to a computed one.
            blocks=("vace_blocks", "blocks"),
            control=("vace_blocks", ("control_hidden_states", 2)),
            attention="attn1",
            stages=True,
            branches="separate",
            sites=("attention", "block"),
            notes="Wan VACE, both experts",
            by_command=False,
            rows=_WAN_ROWS,
        ),
        Family(
            name="wan-animate",
            transformer="WanAnimateTransformer3DModel",
            pipelines=("WanAnimatePipeline",),
            blocks=("blocks",),
            attention="attn1",
            stages=True,
            branches="separate",
            sites=("attention", "block"),  # the face adapter adds to the tokens between blocks
            notes="Wan 2.2 Animate; the FLOPs of its face encoder are not counted",
            by_command=False,
            rows=(
                *_WAN_ROWS,
                (r"motion_encoder|face_encoder|face_adapter\.to_(k|v|kv)\b", "none"),
            ),
        ),
        Family(
            name="hunyuan-video",
            transformer="HunyuanVideoTransformer3DModel",
            pipelines=("HunyuanVideoPipeline",),
            blocks=("transformer_blocks", "single_transformer_blocks"),
            text=("encoder_hidden_states", 1),
            attention="attn",
            stages=True,
            branches="embedded",
            sigmas=True,
            sites=SITES,
            notes="HunyuanVideo 1.0",
            text_embedder="context_embedder",
            rotary="rope",
            rows=(
                (r"time_text_embed|norm\w*\.linear$", "time"),
                (r"^context_embedder|add_[qkv]_proj|to_add_out|ff_context", "text"),
                (r"^single_transformer_blocks", "joint"),
            ),
        ),
        Family(
            name="hunyuan-video-1.5",
            transformer="HunyuanVideo15Transformer3DModel",
            pipelines=("HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline"),
            blocks=("transformer_blocks",),
            text=("encoder_hidden_states", 1),
            attention="attn",
            stages=True,
            branches="separate",
            sigmas=True,
            sites=SITES,
            notes="HunyuanVideo 1.5",
            by_command=False,
            rows=(
                (r"time_(text_)?embed|norm\w*\.linear$", "time"),
                (r"^context_embedder_2", "text_2"),
                (r"^context_embedder", "text"),
                (r"^image_embedder", "image"),
                (r"add_[qkv]_proj|to_add_out|ff_context", "context"),
            ),
        ),
        Family(
            name="cogvideox",
            transformer="CogVideoXTransformer3DModel",
            pipelines=("CogVideoXPipeline",),
            blocks=("transformer_blocks",),
            text=("encoder_hidden_states", 1),
            attention="attn1",
            stages=True,
            frames=1,
            branches="batched",
            sites=SITES,
            notes="CogVideoX 2B, 5B and 1.5",
            rows=(
                (r"(time|ofs)_embedding|norm\w*\.linear$", "time"),
                (r"text_proj", "text"),
                (r"^transformer_blocks", "joint"),
            ),
        ),
        Family(
            name="ltx",
            transformer="LTXVideoTransformer3DModel",
            pipelines=("LTXPipeline",),
            blocks=("transformer_blocks",),
            attention="attn1",
            branches="batched",
            sigmas=True,
            sites=SITES,
            notes="LTX-Video 0.9",
            cross_attention="attn2",
            text_embedder="caption_projection",
            rotary="rope",
            rows=(
                (r"^time_embed", "time"),
                (r"caption_projection|attn2\.to_(k|v|kv)\b", "text"),
            ),
        ),
        Family(
            name="ltx-2",
            transformer="LTX2VideoTransformer3DModel",
            pipelines=("LTX2Pipeline", "LTX2ImageToVideoPipeline", "LTX2ConditionPipeline"),
            blocks=("transformer_blocks",),
            audio=("audio_hidden_states", 1),
            attention="attn1",
            audio_attention="audio_attn1",
            branches="batched",
            sigmas=True,
            sites=SITES,
            notes="LTX-2, video and audio",
            by_command=False,
            rows=(
                (r"prompt_adaln|audio_time_embed|av_cross_attn_audio", "audio_time"),
                (r"^time_embed|av_cross_attn_video", "time"),
                (r"caption_projection|attn2\.to_(k|v|kv)\b", "text"),
                (r"^audio_|\.audio_(attn|ff)|video_to_audio_attn\.to_(q|out|gate)", "audio"),
                (r"audio_to_video_attn\.to_(k|v|kv)\b", "audio"),
            ),
        ),
    )
}


def register_family(row: Family) -> None:
    """Add a row, so that thresholds also work with your own transformer, at the row's sites.

    A row says where a cached value equals a computed one if nothing has changed. Test that first:
    with `threshold=0.0`, each site must give the stock clip bit for bit.

    Args:
        row: the row of a transformer class that has none.

    Raises:
        ValueError: the class or the name has a row already, or a field is not accepted.

    Example:
        >>> row = Family(
        ...     name="mine", transformer="MyTransformer", pipelines=("MyPipeline",),
        ...     blocks=("blocks",), attention="attn1", branches="separate", sites=("model",),
        ...     notes="my model", rows=(),
        ... )
        >>> register_family(row)
        >>> FAMILIES.pop("MyTransformer").name
        'mine'
    """
    names = [known.name for known in FAMILIES.values()]
    known = row.transformer in FAMILIES
    _check("transformer", row.transformer, not known, "a class that has no row yet")
    _check("name", row.name, bool(row.name) and row.name not in names, "a name that no row has")
    _check("blocks", row.blocks, bool(row.blocks), "the attributes that hold the blocks")
    _check("branches", row.branches, row.branches in BRANCHES, ", ".join(BRANCHES))
    _check("sites", row.sites, {*row.sites} <= {*SITES}, f"some of {', '.join(SITES)}")
    for path, tokens in row.rows:
        _check("rows", (path, tokens), tokens in TOKENS and _is_pattern(path),
               f"a regular expression, and one of {', '.join(TOKENS)}")  # fmt: skip
    FAMILIES[row.transformer] = row


def _check(field: str, value: object, holds: bool, accepted: str) -> None:
    if not holds:
        raise ValueError(f"row has {field}={value!r}; accepted: {accepted}")


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
