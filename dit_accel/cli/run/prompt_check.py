"""What a model ignores of what was typed.

In: a loaded pipeline and settings. Out: remarks, one line each, before the work.
Knows the pipeline's tokenizer, where it has one. Ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit_accel.cli.run.settings import Settings


def remarks(pipe: Any, settings: Settings) -> list[str]:
    """Words that the tokenizer does not know, a prompt cut off, an option without effect."""
    tokenizer, longest = getattr(pipe, "tokenizer", None), settings.max_sequence_length
    found = []
    if tokenizer is not None:
        unknown = unknown_words(tokenizer, settings.prompt)
        length = len(tokenizer(settings.prompt).input_ids)
        if unknown:
            found.append(f"the model does not know {', '.join(unknown)}; no such thing will show")
        if longest is not None and length > longest:
            found.append(f"the prompt is cut off after {longest} of its {length} tokens")
    if settings.negative and settings.guidance <= 1:
        found.append(f"--negative does nothing at --guidance {settings.guidance:g}: pass above 1")
    return found


def unknown_words(tokenizer: Any, prompt: str) -> list[str]:
    """The words of a prompt with a piece that becomes the tokenizer's unknown token."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None:
        return []
    words = dict.fromkeys(word.strip(".,;:!?\"'()") for word in prompt.split())
    return [word for word in words if word and unknown in tokenizer(word).input_ids]
