"""Finds parts of the input that a model ignores.

In: a loaded pipeline and settings, or a model's folder and many prompts. Out: remarks before the
work, one line each; and from many prompts those that differ for the model.
Knows the model's tokenizers, if it has any. Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit_accel.cli.run.settings import Settings
    from dit_accel.evaluation.prompts import EvaluationPrompt
    from dit_accel.models.folder import LoadableModel

LONGEST_SET = 100_000  # tokens; a tokenizer without a limit states a larger number


def remarks(pipe: Any, settings: Settings) -> list[str]:
    """Remarks on words that the tokenizer does not know, on a cut-off prompt, and on an option
    without effect."""
    tokenizer, longest = getattr(pipe, "tokenizer", None), settings.max_sequence_length
    found = []
    if tokenizer is not None:
        unknown = unknown_words(tokenizer, settings.prompt)
        length = len(tokenizer(settings.prompt).input_ids)
        if unknown:
            found.append(f"the model does not know {', '.join(unknown)}; the clip will not show it")
        if longest is not None and length > longest:
            found.append(f"the prompt is cut off after {longest} of its {length} tokens")
    if settings.negative and settings.guidance <= 1:
        given = f"--guidance {settings.guidance:g}"
        found.append(f"--negative has no effect at {given}; pass --guidance above 1")
    return found


def unknown_words(tokenizer: Any, prompt: str) -> list[str]:
    """The words of a prompt with a piece that becomes the tokenizer's unknown token."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None:
        return []
    words = dict.fromkeys(word.strip(".,;:!?\"'()") for word in prompt.split())
    return [word for word in words if word and unknown in tokenizer(word).input_ids]


def distinct(
    model: LoadableModel, prompts: Sequence[EvaluationPrompt], longest: int | None
) -> tuple[tuple[EvaluationPrompt, ...], list[str]]:
    """The prompts without those that become the same text when cut off, and remarks.

    Args:
        longest: number of tokens after which a prompt is cut off; None: the tokenizer's limit.
    """
    tokenizers = [one for part in model.index if (one := _tokenizer(model, part)) is not None]
    if not tokenizers:
        return tuple(prompts), []
    first: dict[Any, EvaluationPrompt] = {}
    same: list[str] = []
    cut = 0
    for prompt in prompts:
        texts = [
            [_tokens(tokenizer, text, longest) for tokenizer in tokenizers]
            for text in (prompt.prompt, prompt.negative or "")
        ]
        cut += any(was_cut for found in texts for _, was_cut in found)
        key = str([[ids for ids, _ in found] for found in texts]), prompt.negative is None
        if first.setdefault(key, prompt) is not prompt:
            same.append(f"{prompt.id} as {first[key].id}")
    remarks = [f"{cut} of {len(prompts)} prompts are cut off, as they are too long"] if cut else []
    if same:
        more = ", ..." if len(same) > 3 else ""
        shown = ", ".join(same[:3]) + more
        remarks.append(f"prompts that are the same for the model are used once: {shown}")
    return tuple(first.values()), remarks


def _tokenizer(model: LoadableModel, part: str) -> Any:
    """A tokenizer of the model's folder; None if the part is not a tokenizer, or cannot be
    loaded."""
    import transformers

    if not part.startswith("tokenizer"):
        return None
    entry = model.index[part]
    kind = getattr(transformers, str(entry[1]), None) if isinstance(entry, list) else None
    load = getattr(kind, "from_pretrained", None)
    if load is None:
        return None
    try:
        return load(str(model.folder / part), local_files_only=True)
    except Exception:  # the pipeline itself will then report the error
        return None


def _tokens(tokenizer: Any, text: str, longest: int | None) -> tuple[list[int], bool]:
    """The tokens of a text that the model gets, and whether the text was cut off."""
    ids = list(tokenizer(text).input_ids)
    limit = longest or int(min(getattr(tokenizer, "model_max_length", LONGEST_SET), LONGEST_SET))
    if len(ids) <= limit:
        return ids, False
    short = tokenizer(text, truncation=True, max_length=limit).input_ids
    return list(short), True
