"""Isolation: which tokens may attend to which, by the subject of each token (docs/scenes.md).

Coverage of tokens by subjects comes in; token classes, masks and gather plans go out. Class 0 is
the background, i + 1 is subject i. `dense_mask` is the written-out reference of N x N entries, for
the tests. `gather_plan` states the same as a few unmasked calls, which any attention backend can
run. It knows no model, step or file. Shapes as in `core/tokens.py`; S subjects, R reference keys.

Source: IR-Diffusion (arXiv 2411.19261), isolation attention, with the background rule of its code;
the closed background and the gather plan are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from dit_accel.attention.lse_merge import attention_part, merge
from dit_accel.core.checks import require

ISOLATIONS = ("off", "open", "closed")
BACKGROUND = 0

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def labels(coverage: torch.Tensor, z: Sequence[int], least: float = 0.5) -> torch.Tensor:
    """The class of every token.

    Args:
        coverage: `(S, F, rows, columns)`, the fraction of each token that a subject covers, 0 to 1.
        z: one number per subject. The subject with the highest number gets a token that several
            cover; of equal numbers, the later subject gets it.
        least: fraction from which a token counts as covered, in (0, 1].

    Returns:
        `(N,)` int64 on the CPU: 0 background, i + 1 subject i. A subject that covers anything in a
        latent frame has at least one token there.

    Raises:
        ValueError: an argument is out of range, or a latent frame has too few tokens for its
            subjects.

    Example:
        >>> labels(torch.tensor([[[[0.0, 0.6, 1.0]]], [[[0.0, 0.0, 0.7]]]]), z=(0, 1)).tolist()
        [0, 1, 2]
    """
    if coverage.ndim != 4 or len(z) != len(coverage):
        raise ValueError(
            f"coverage is {tuple(coverage.shape)} and z has {len(z)} numbers; "
            "accepted: (S, F, rows, columns) and S numbers"
        )
    require(0 < least <= 1, "least", least, "above 0, up to 1")
    shares = coverage.detach().to("cpu", torch.float64).flatten(2)  # (S, F, cells)
    if shares.numel() and not bool(((shares >= 0) & (shares <= 1 + 1e-6)).all()):
        raise ValueError("coverage has values outside 0 to 1; accepted: shares from 0 to 1")
    owner = torch.zeros(shares.shape[1:], dtype=torch.int64)
    for subject in sorted(range(len(z)), key=lambda i: z[i]):  # stable: of equal z the later wins
        owner[shares[subject] >= least] = subject + 1
    present = (shares > 0).any(-1)  # (S, F)
    for frame in range(owner.shape[0]):
        here = [s for s in range(len(z)) if present[s, frame]]
        if any(not bool((owner[frame] == s + 1).any()) for s in here):
            _seat(owner[frame], shares[:, frame], here, frame)
    return owner.flatten()


def _seat(owner: torch.Tensor, shares: torch.Tensor, here: list[int], frame: int) -> None:
    """Give every subject of a frame a token (Kuhn's bipartite matching, few changes)."""
    wants = {s: _wishes(owner, shares[s], s + 1) for s in here}
    seated: dict[int, int] = {}  # cell -> subject

    def seat(subject: int, tried: set[int]) -> bool:
        for cell in wants[subject]:
            if cell in tried:
                continue
            tried.add(cell)
            if cell not in seated or seat(seated[cell], tried):
                seated[cell] = subject
                return True
        return False

    for subject in sorted(here, key=lambda s: not bool((owner == s + 1).any())):
        if not seat(subject, set()):
            raise ValueError(
                f"coverage leaves no token for subject {subject} in latent frame {frame}: "
                "others need the tokens that it covers; accepted: larger or separate boxes"
            )
    for cell, subject in seated.items():
        owner[cell] = subject + 1


def _wishes(owner: torch.Tensor, share: torch.Tensor, mine: int) -> list[int]:
    """The cells that a subject covers, by preference: first its own cells, then free ones, then
    those of others; within each by share."""
    cells = (share > 0).nonzero().flatten().tolist()
    rank = {mine: 0, BACKGROUND: 1}
    return sorted(cells, key=lambda c: (rank.get(int(owner[c]), 2), -float(share[c])))


def sees(query: int, key: int, isolation: str) -> bool:
    """Whether tokens of one class attend to tokens of another class of the same clip.

    Raises:
        ValueError: `isolation` is not one of `ISOLATIONS`.
    """
    require(isolation in ISOLATIONS, "isolation", isolation, ", ".join(ISOLATIONS))
    if isolation == "off" or query == key:
        return True
    return key == BACKGROUND or (query == BACKGROUND and isolation == "open")


def dense_mask(
    labels: torch.Tensor, isolation: str = "open", references: torch.Tensor | None = None
) -> torch.Tensor:
    """The written-out reference: which query attends to which key, `(N, N + R)` bool, references
    last.

    Args:
        labels: `(N,)` int64, classes of the clip's tokens.
        isolation: "off", or the background's rule: "open" or "closed".
        references: `(R,)` int64, classes of the reference keys, >= 1; None: no references.
    """
    top = int(labels.max()) + 1
    table = torch.tensor([[sees(q, k, isolation) for k in range(top)] for q in range(top)])
    table = table.to(labels.device)
    own = table[labels][:, labels]
    if references is None:
        return own
    read = (labels[:, None] == references[None]) & (labels[:, None] != BACKGROUND)
    return torch.cat([own, read], dim=1)


@dataclass(frozen=True)
class Group:
    """One unmasked call: these queries attend to all of these keys.

    Args:
        classes: the classes of the queries.
        queries, keys: ascending indices of tokens; None: all.
        references: ascending indices of reference keys; may be empty.
    """

    classes: tuple[int, ...]
    queries: torch.Tensor | None
    keys: torch.Tensor | None
    references: torch.Tensor


@dataclass(frozen=True)
class GatherPlan:
    """A clip's attention as unmasked calls: N, R, and the groups; each query is in one group."""

    tokens: int
    references: int
    groups: tuple[Group, ...]

    @property
    def whole(self) -> bool:
        """Whether this is plain attention: one call with all queries and all keys."""
        first = self.groups[0]
        return first.queries is None and first.keys is None and not first.references.numel()

    @property
    def pairs(self) -> int:
        """Computed pairs of query and key; a dense mask computes N (N + R)."""
        return sum(self.sizes(group)[0] * sum(self.sizes(group)[1:]) for group in self.groups)

    def sizes(self, group: Group) -> tuple[int, int, int]:
        """Queries, own keys and reference keys of one call."""
        queries, keys = (
            self.tokens if x is None else x.numel() for x in (group.queries, group.keys)
        )
        return queries, keys, group.references.numel()

    def to(self, device: torch.device) -> GatherPlan:
        """The plan with its indices on a device."""

        def move(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x.to(device)

        groups = (
            Group(g.classes, move(g.queries), move(g.keys), g.references.to(device))
            for g in self.groups
        )
        return replace(self, groups=tuple(groups))


def gather_plan(
    labels: torch.Tensor, isolation: str = "open", references: torch.Tensor | None = None
) -> GatherPlan:
    """`dense_mask` as unmasked calls. The arguments are the same, all on one device.

    Example:
        >>> gather_plan(torch.tensor([0, 1, 2]), "open").pairs
        7
    """
    none = labels.new_zeros(0)
    present = sorted(set(labels.tolist()))
    merged: dict[tuple[tuple[int, ...], int], list[tuple[int, torch.Tensor]]] = {}
    for one in present:
        keys = tuple(other for other in present if sees(one, other, isolation))
        reads = one != BACKGROUND and references is not None and bool((references == one).any())
        merged.setdefault((keys, one if reads else 0), []).append((one, labels == one))
    groups = []
    for (keys, read), members in merged.items():
        queries = torch.stack([part for _, part in members]).any(0)
        seen = torch.isin(labels, torch.tensor(keys, device=labels.device))
        refs = (references == read).nonzero().flatten() if read and references is not None else none
        groups.append(Group(tuple(c for c, _ in members), _indices(queries), _indices(seen), refs))
    return GatherPlan(len(labels), 0 if references is None else len(references), tuple(groups))


def _indices(chosen: torch.Tensor) -> torch.Tensor | None:
    return None if bool(chosen.all()) else chosen.nonzero().flatten()


def isolated_attention(
    plan: GatherPlan, attend: Attend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    references: tuple[torch.Tensor, torch.Tensor] | None = None,
    moved_queries: Mapping[int, torch.Tensor] | None = None,
) -> torch.Tensor:  # fmt: skip
    """Attention with a gather plan, `(B, N, H, D)`.

    Args:
        plan: the plan for these tokens, on their device.
        attend: unmasked attention of `(B, n, H, D)` queries over `(B, m, H, D)` keys and values.
        query, key, value: `(B, N, H, D)`.
        references: keys and values `(B, R, H, D)`, if the plan reads references.
        moved_queries: by class, queries `(B, N, H, D)` rotated for reading the references. Their
            result is merged with that of the clip's own keys.
    """
    if plan.whole:
        return attend(query, key, value)
    out = torch.empty((*query.shape[:3], value.shape[-1]), dtype=query.dtype, device=query.device)
    for group in plan.groups:
        queries = take(query, group.queries)
        own = take(key, group.keys), take(value, group.keys)
        if not group.references.numel():
            mixed = attend(queries, *own)
        else:
            assert references is not None, "the plan reads references"
            read = take(references[0], group.references), take(references[1], group.references)
            moved = (moved_queries or {}).get(group.classes[0])
            if moved is None:
                mixed = attend(
                    queries, *(torch.cat(pair, 1) for pair in zip(own, read, strict=True))
                )
            else:
                parts = (queries, *own), (take(moved, group.queries), *read)
                mixed = merge([attention_part(*part) for part in parts])
        if group.queries is None:
            return mixed.to(out.dtype)
        out[:, group.queries] = mixed.to(out.dtype)
    return out


def take(rows: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor:
    """Tokens of `(B, N, ...)` by index; None: all."""
    return rows if indices is None else rows[:, indices]
