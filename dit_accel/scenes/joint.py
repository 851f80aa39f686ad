"""Scenes with video and text in one sequence: the subjects' own texts follow the scene's text.

Classes of the video's tokens, and the texts of a row, come in; `JointPlan`s of the whole sequence
go out. Two attentions are blended: one over video and the scene's text, which counts as background,
and one over video and a subject's own text, which belongs to its subject. So an own text does not
attend to the scene's text, and no subject attends to another one's text. It knows no step and no
model. Shapes as in `core/tokens.py`; V video tokens, L tokens of the scene's text with padding, E
tokens of own texts.

Source: ours, after IR-Diffusion (arXiv 2411.19261), whose models read text by cross-attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dit_accel.scenes.masks import Attend, GatherPlan, Group, isolated_attention, sees, take

Read = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class JointPlan:
    """One row's attention.

    Args:
        scene: the plan over video and the scene's text, the first tokens of the sequence.
        own: the plan over the whole sequence, for subjects with a text of their own; None: there
            are none.
        blended: the video tokens whose two results are blended, ascending.
        written: the tokens of own texts, ascending.
    """

    scene: GatherPlan
    own: GatherPlan | None
    blended: torch.Tensor
    written: torch.Tensor

    @property
    def pairs(self) -> int:
        """Computed pairs of query and key."""
        return self.scene.pairs + (0 if self.own is None else self.own.pairs)


def own_plan(
    labels: torch.Tensor, texts: Sequence[tuple[int, int]], text: int, isolation: str,
    references: torch.Tensor | None,
) -> tuple[GatherPlan | None, torch.Tensor, torch.Tensor]:  # fmt: skip
    """The plan for the subjects' own texts, the video tokens that read them, and the tokens of the
    texts.

    Args:
        labels: `(V,)` int64, classes of the video's tokens.
        texts: class and tokens of every own text, in the order of the sequence.
        text: L, the number of tokens of the scene's text.
        isolation, references: see `masks.gather_plan`.

    Example:
        >>> plan, video, own = own_plan(torch.tensor([0, 1, 2]), [(2, 1)], 4, "open", None)
        >>> plan.groups[0].keys.tolist(), video.tolist(), own.tolist()
        ([0, 2, 7], [2], [7])
    """
    groups, begin = [], len(labels) + text
    none = labels.new_zeros(0)
    total = begin + sum(count for _, count in texts)
    blended = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    for label, count in texts:
        mine = torch.arange(begin, begin + count, device=labels.device)
        seen = [k for k in sorted(set(labels.tolist())) if sees(label, k, isolation)]
        video = torch.isin(labels, torch.tensor(seen, device=labels.device)).nonzero().flatten()
        keys, queries = torch.cat([video, mine]), (labels == label).nonzero().flatten()
        read = none if references is None else (references == label).nonzero().flatten()
        groups += [Group((label,), queries, keys, read), Group((label,), mine, keys, none)]
        blended |= labels == label
        begin += count
    groups = [group for group in groups if group.queries is not None and group.queries.numel()]
    count = 0 if references is None else len(references)
    plan = GatherPlan(total, count, tuple(groups)) if groups else None
    written = torch.arange(len(labels) + text, total, device=labels.device)
    return plan, blended.nonzero().flatten(), written


def joint_attention(
    plan: JointPlan, attend: Attend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    weight: float, read: Read | None, moved: Mapping[int, torch.Tensor],
) -> torch.Tensor:  # fmt: skip
    """Attention with a plan, `(1, N, H, D)`; 0 for padding tokens.

    Args:
        plan: the plan of this row, on its device.
        attend: unmasked attention.
        query, key, value: `(1, N, H, D)`.
        weight: the weight of own texts against the scene's text.
        read, moved: see `masks.isolated_attention`; moved queries have all N tokens.
    """
    out, known = torch.zeros_like(query), plan.scene.tokens
    first = {label: rows[:, :known] for label, rows in moved.items()}
    q, k, v = (rows[:, :known] for rows in (query, key, value))
    out[:, :known] = isolated_attention(plan.scene, attend, q, k, v, read, first)
    if plan.own is not None:
        own = isolated_attention(plan.own, attend, query, key, value, read, moved)
        mixed = torch.lerp(take(out, plan.blended), take(own, plan.blended), weight)
        out[:, plan.blended] = mixed
        out[:, plan.written] = take(own, plan.written)
    return out


def dense_masks(
    labels: torch.Tensor, texts: Sequence[tuple[int, int]], text: int, isolation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The written-out reference without references: which query sees which key in each of the two
    attentions, `(N, N)` bool."""
    own = [label for label, count in texts for _ in range(count)]
    classes = [*labels.tolist(), *[0] * text, *own]
    kinds = ["video"] * len(labels) + ["scene"] * text + ["own"] * len(own)

    def mask(kind: str) -> torch.Tensor:
        rows = [
            [{a, b} <= {"video", kind} and sees(q, k, isolation)
             for k, b in zip(classes, kinds, strict=True)]
            for q, a in zip(classes, kinds, strict=True)
        ]  # fmt: skip
        return torch.tensor(rows)

    with_own = mask("own")
    for query, (q, kind) in enumerate(zip(classes, kinds, strict=True)):
        for key, (k, other) in enumerate(zip(classes, kinds, strict=True)):
            if other == "own" and q != k:  # only its subject reads an own text
                with_own[query, key] = False
        if kind == "video" and q not in own:
            with_own[query] = False
    return mask("scene"), with_own
