"""The table of supported models: one row per transformer class.

In: nothing. Out: `FAMILIES`, by the name of the diffusers class.
A row knows where the blocks and their attentions are and how a block is called. It holds names
only: nothing is imported, so the table can be read without torch. `core/families.py` looks it up.
Source: the classes of diffusers. A new model is a new row here; `register_family` adds a user's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SITES = ("attention", "block", "model")
BRANCHES = ("separate", "batched", "embedded")
TOKENS = ("time", "text", "image", "joint")


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
        text: the argument, and its position, of the text that a block returns beside the tokens,
            else None. The whole stack returns the tokens alone, in every family.
        attention: a block's submodule that computes self-attention.
        branches: how guidance runs: "separate" forwards, one "batched", or "embedded" in weights.
        sites: which sites are safe: the whole stack only where nothing is added between blocks,
            the others only where a value is one tensor.
        notes: one phrase for people.
        cross_attention: a block's submodule that reads the text; it and the next two are None where
            scenes are not known to work.
        text_embedder: the transformer's submodule that every text passes before its blocks.
        rotary: the transformer's submodule that makes the rotary embedding of its tokens.
        rows: layers whose rows are not the video tokens: a regular expression of their paths, and
            "time" for the timesteps, "text" or "image" for tokens that are read, "joint" for video
            and text in one sequence. The first that matches counts.
    """

    name: str
    transformer: str
    pipelines: tuple[str, ...]
    components: tuple[str, ...] = ("transformer",)
    blocks: tuple[str, ...]
    hidden: tuple[str, int] = ("hidden_states", 0)
    text: tuple[str, int] | None = None
    attention: str
    branches: str
    sites: tuple[str, ...]
    notes: str
    cross_attention: str | None = None
    text_embedder: str | None = None
    rotary: str | None = None
    rows: tuple[tuple[str, str], ...]


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
            branches="separate",
            sites=SITES,
            notes="Wan 2.1 and 2.2, both experts",
            cross_attention="attn2",
            text_embedder="condition_embedder.text_embedder",
            rotary="rope",
            rows=(
                (r"condition_embedder\.time", "time"),
                (r"image_embedder|add_[kv]_proj|to_added_kv", "image"),
                (r"text_embedder|attn2\.to_(k|v|kv)\b", "text"),
            ),
        ),
        Family(
            name="hunyuan-video",
            transformer="HunyuanVideoTransformer3DModel",
            pipelines=("HunyuanVideoPipeline",),
            blocks=("transformer_blocks", "single_transformer_blocks"),
            text=("encoder_hidden_states", 1),
            attention="attn",
            branches="embedded",
            sites=("model",),
            notes="HunyuanVideo 1.0",
            rows=(
                (r"time_text_embed|norm\w*\.linear$", "time"),
                (r"^context_embedder|add_[qkv]_proj|to_add_out|ff_context", "text"),
                (r"^single_transformer_blocks", "joint"),
            ),
        ),
        Family(
            name="cogvideox",
            transformer="CogVideoXTransformer3DModel",
            pipelines=("CogVideoXPipeline",),
            blocks=("transformer_blocks",),
            text=("encoder_hidden_states", 1),
            attention="attn1",
            branches="batched",
            sites=("model",),
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
    )
}


def register_family(row: Family) -> None:
    """Add a row, so that a transformer of yours takes thresholds too, at the row's sites.

    A row says where a cached value is the same as a computed one, if nothing has changed. Try that
    first: `threshold=0.0` at each site has to give the stock clip bit by bit.

    Args:
        row: of a transformer class that has none.

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
    _check("transformer", row.transformer, row.transformer not in FAMILIES, "a class without a row")
    _check("name", row.name, bool(row.name) and row.name not in names, "a name of its own")
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
