"""The world's knowledge of its clips, as hints to the trainer: which subject is named where.

The flow's mean squared error says little about which word belongs to which of several subjects. At
high noise, where this is decided, a clip with the wrong motion has hardly more error than a blur. A
short run needs that information. Two linear heads, which are removed after training, read from the
model what the caption says about the subjects: one from every word of a subject's phrase (text
encoder), one from every token of the subject's part of the frame (denoiser, after a middle block).
The second one also reads the subject's place. Deep supervision (arXiv 1409.5185), with the world as
the teacher.

N clips, S = 3 subject slots, F latent frames, L words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import nn
from world import COLORS, MOTIONS, SHAPES, SIZES, SLOTS, Scene

KINDS = (tuple(COLORS), SHAPES, tuple(MOTIONS), tuple(SIZES))  # what a subject is named by
TEMPORAL = 4  # frames per latent frame, after the first


@dataclass(frozen=True)
class Hints:
    """Ground truth for N clips. `owners`, (N, L): the subject that a word belongs to, -1 for none.
    `count`, (N,): the number of subjects. `kinds`, (N, S, 4): the names of each subject, as indices
    into KINDS. `paths`, (N, S, F, 3): middle x, middle y and radius of each subject in each latent
    frame, in sides of a square frame."""

    owners: torch.Tensor
    count: torch.Tensor
    kinds: torch.Tensor
    paths: torch.Tensor

    def at(self, rows: torch.Tensor) -> Hints:
        """The hints of the clips in these rows."""
        return Hints(*(getattr(self, field.name)[rows] for field in fields(self)))


def hints_of(scenes: Sequence[Scene], frames: int, words: int, device: torch.device | str) -> Hints:
    """The hints of clips with this number of frames, and captions padded to this number of
    words."""
    starts = range(1, frames, TEMPORAL)
    middles = [0.0, *(start + (TEMPORAL - 1) / 2 for start in starts)]
    owners = torch.full((len(scenes), words), -1, dtype=torch.int8)
    kinds = torch.zeros(len(scenes), SLOTS, len(KINDS), dtype=torch.int8)
    paths = torch.zeros(len(scenes), SLOTS, len(middles), 3)
    for i, scene in enumerate(scenes):
        first = 0
        for slot, subject in enumerate(scene.subjects):
            last = first + len(subject.caption().split())
            owners[i, first:last] = slot
            first = last + 1  # the comma or the "and" between two
            names = (subject.color, subject.shape, subject.motion, subject.size)
            kinds[i, slot] = torch.tensor([k.index(n) for k, n in zip(KINDS, names, strict=True)])
            paths[i, slot] = torch.tensor([subject.at(m / max(frames - 1, 1)) for m in middles])
    count = torch.tensor([len(scene.subjects) for scene in scenes])
    return Hints(*(t.to(device) for t in (owners, count, kinds, paths)))


class Heads(nn.Module):
    """The two heads: logits of every kind, and from tokens also the place of their subject."""

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.classes = [len(kind) for kind in KINDS]
        self.words = nn.Linear(text_width, sum(self.classes))
        self.tokens = nn.Linear(width, sum(self.classes) + 3)

    def word_loss(self, states: torch.Tensor, hints: Hints, complete: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy of the text encoder's states (B, L, text width) of owned words.

        Only for complete captions, (B,).
        """
        owned = (hints.owners >= 0) & complete[:, None]
        return self._named(self.words(states), _of(hints.kinds, hints.owners.clamp(min=0)), owned)

    def token_loss(
        self, hidden: torch.Tensor, grid: tuple[int, int, int], hints: Hints, complete: torch.Tensor
    ) -> torch.Tensor:
        """Mean cross entropy, and squared distance, of tokens (B, F h w, width) of a grid F, h, w.

        A token belongs to the subject in whose share of the frame's width it is: captions say which
        subject is left, in the middle and right.
        """
        frames, height, width = grid
        found = self.tokens(hidden).unflatten(1, grid)
        x = (torch.arange(width, device=hidden.device) + 0.5) / width
        y = (torch.arange(height, device=hidden.device) + 0.5) / height
        slot = (x * hints.count[:, None]).long()  # (B, w)
        truth = _of(hints.kinds, slot)[:, None, None].expand(-1, frames, height, -1, -1)
        valid = complete[:, None, None, None].expand(found.shape[:-1])
        path = _of(hints.paths.flatten(2), slot).unflatten(-1, (frames, 3))  # (B, w, F, 3)
        path = path.transpose(1, 2)[:, :, None].expand(*found.shape[:-1], 3)
        here = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1)
        where = (path - F.pad(here, (0, 1))) * 5  # in fifths of the side
        missed = (found[..., -3:].float() - where).square().mean(-1)
        named = self._named(found[..., :-3], truth, valid)
        return named + (missed * valid).sum() / valid.sum().clamp(min=1)

    def _named(self, found: torch.Tensor, truth: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy of logits (..., classes) of all kinds (..., 4), where valid (...)."""
        losses = [
            F.cross_entropy(logits.float().flatten(0, -2), index.flatten().long(), reduction="none")
            for logits, index in zip(found.split(self.classes, -1), truth.unbind(-1), strict=True)
        ]
        return (torch.stack(losses).mean(0) * valid.flatten()).sum() / valid.sum().clamp(min=1)


def inside(hints: Hints, grid: Sequence[int]) -> torch.Tensor:
    """1 where a cell's middle (B, F, h, w) is within half a cell of the disc about a subject."""
    _, height, width = grid
    x = (torch.arange(width, device=hints.paths.device) + 0.5) / width
    y = (torch.arange(height, device=hints.paths.device) + 0.5) / height
    px, py, radius = (p[..., None, None] for p in hints.paths.unbind(-1))  # (B, S, F, 1, 1)
    near = torch.hypot(x - px, y[:, None] - py) < radius + 0.5 / width
    there = torch.arange(SLOTS, device=hints.paths.device) < hints.count[:, None]
    return (near & there[:, :, None, None, None]).any(1).float()


def _of(values: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Values (B, S, n) of each of the slots (B, m): (B, m, n)."""
    return torch.gather(values, 1, slots.long()[..., None].expand(-1, -1, values.shape[-1]))
