"""The data of a scene for each row of the batch: the classes of its tokens, and what it reads.

Coverage and a `SceneConfig` come in; `TokenRow`s and gather plans go out. Shots are the rows of one
batch, in order, followed by reference files. So a reference is denoised together with its readers:
at each step and layer, its row has just made the keys and values that are read. It knows no model,
pipeline or file. Shapes as in `core/tokens.py`.

Source: IR-Diffusion (arXiv 2411.19261) runs references and target as one batch too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace

import torch

from dit_accel.core.checks import check_types, is_integer, require
from dit_accel.core.tokens import TokenGrid
from dit_accel.scenes import masks
from dit_accel.scenes import reposition as reposition_maps
from dit_accel.scenes.masks import GatherPlan
from dit_accel.scenes.reposition import Rotary

BACKGROUNDS = ("open", "closed")
Fractions = tuple[float, float]
Tables = Callable[[torch.Tensor], Rotary]  # from positions `(n, 3)` float64


@dataclass(frozen=True)
class SceneConfig:
    """Settings of isolation, of references and of subjects' own prompts.

    Args:
        isolate: whether subjects cannot attend to each other.
        background: "open": it sees everything; "closed": it does not see the subjects, so nothing
            of one subject reaches another through it.
        share: whether subjects read their references.
        reposition: whether references are read as if they were in the target's box.
        alpha: strength of reposition, 0 to 1.
        amplify: read references in the conditional branch only, so that guidance amplifies their
            effect as it does the prompt's; False: in both branches, as in the source.
        text: weight of a subject's own prompt against the scene's, in its tokens, 0 to 1.
        steps, text_steps, share_steps: half-open fractions of the run in which subjects are
            isolated, have their own prompts, and read references. Places and colours are decided
            early. Later, isolation would damage the shapes of subjects, and reading would copy the
            reference's motion (docs/scenes.md).
        share_layers: half-open fraction of the layers in which references are read. The source's
            code uses the second half; on the miniature that has a quarter of the effect.
        least: fraction of a token that a subject must cover to own it, above 0, up to 1.
        seed: the seed of the noise of reference files, >= 0.

    Raises:
        ValueError: a value is out of range.
    """

    isolate: bool = True
    background: str = "open"
    share: bool = True
    reposition: bool = True
    alpha: float = 1.0
    amplify: bool = True
    text: float = 0.9
    steps: Fractions = (0.0, 0.4)
    text_steps: Fractions = (0.0, 1.0)
    share_steps: Fractions = (0.0, 0.4)
    share_layers: Fractions = (0.0, 1.0)
    least: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("isolate", "share", "reposition", "amplify"):
            value = getattr(self, name)
            require(isinstance(value, bool), name, value, "True, False")
        known = self.background in BACKGROUNDS
        require(known, "background", self.background, ", ".join(BACKGROUNDS))
        for name in ("alpha", "text"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")
        for name in ("steps", "text_steps", "share_steps", "share_layers"):
            span = getattr(self, name)
            valid = len(span) == 2 and 0 <= span[0] <= span[1] <= 1
            require(valid, name, span, "two fractions, 0 <= first <= end <= 1")
        require(0 < self.least <= 1, "least", self.least, "above 0, up to 1")
        require(is_integer(self.seed, 0), "seed", self.seed, "an integer >= 0")

    @property
    def isolation(self) -> str:
        """One of `masks.ISOLATIONS`."""
        return self.background if self.isolate else "off"


@dataclass(frozen=True)
class ActiveParts:
    """Which parts of a scene are active at a step or in a layer."""

    isolation: bool
    reads_references: bool
    own_text: bool

    def __bool__(self) -> bool:
        return any(astuple(self))

    def __and__(self, other: ActiveParts) -> ActiveParts:
        return ActiveParts(*(a and b for a, b in zip(astuple(self), astuple(other), strict=True)))


SPANS = {  # by the name in `ActiveParts`: its name in texts, and the setting for when it is active
    "isolation": ("Isolation", "steps"),
    "reads_references": ("Reading of references", "share_steps"),
    "own_text": ("The subjects' own text", "text_steps"),
}


def wanted(config: SceneConfig) -> ActiveParts:
    """The parts that are switched on."""
    return ActiveParts(config.isolate, config.share, config.text > 0)


def active_at_step(config: SceneConfig, step: int, num_steps: int) -> ActiveParts:
    """The parts that are active at a step.

    Example:
        >>> active_at_step(SceneConfig(), step=5, num_steps=10)
        ActiveParts(isolation=False, reads_references=False, own_text=True)
    """
    spans = config.steps, config.share_steps, config.text_steps
    isolate, read, text = (within(span, step, num_steps) for span in spans)
    return ActiveParts(isolate, read, text) & wanted(config)


def active_in_layer(config: SceneConfig, layer: int, layers: int) -> ActiveParts:
    """The parts that are active in a layer; isolation and own prompts are in all."""
    return ActiveParts(True, within(config.share_layers, layer, layers), True)


def within(span: Fractions, index: int, count: int) -> bool:
    """Whether an index is in a half-open fraction of `count`, whose ends are rounded."""
    return round(span[0] * count) <= index < round(span[1] * count)


@dataclass(frozen=True)
class ReferenceLink:
    """Subject `subject` of a row reads subject `source` of row `row`, all 0-based."""

    subject: int
    row: int
    source: int


@dataclass(frozen=True)
class ClipRow:
    """One clip of the batch.

    Args:
        name: the name of the row in messages.
        coverage: `(S, F, rows, columns)`, fractions from 0 to 1.
        z: one number per subject; the highest gets tokens that several cover.
        links: the references that its subjects read.
    """

    name: str
    coverage: torch.Tensor
    z: tuple[int, ...]
    links: tuple[ReferenceLink, ...] = ()


@dataclass(frozen=True)
class ReferenceTokens:
    """The tokens of a row that a subject reads, and their rotary embedding.

    Args:
        label: the class of the reading subject.
        row: the row of the batch that is read.
        tokens: `(n,)` int64, indices in that row.
        keys: the rotary embedding of the keys, `(1, n, 1, D)` each; LTX has one for each head.
        queries: the rotary embedding of the reading queries, `(1, N, 1, D)` each; None: their own.
    """

    label: int
    row: int
    tokens: torch.Tensor
    keys: Rotary
    queries: Rotary | None


@dataclass(frozen=True)
class TokenRow:
    """A row in tokens: number of subjects, classes `(N,)` int64, and what it reads."""

    name: str
    subjects: int
    labels: torch.Tensor
    sources: tuple[ReferenceTokens, ...]

    @property
    def references(self) -> torch.Tensor:
        """Classes of the reference keys, `(R,)`, source by source."""
        parts = [torch.full_like(source.tokens, source.label) for source in self.sources]
        return torch.cat(parts) if parts else self.labels.new_zeros(0)

    def tokens_of(self, label: int) -> torch.Tensor:
        """Indices of a class's tokens."""
        return (self.labels == label).nonzero().flatten()

    def counts(self) -> dict[str, int]:
        """Number of tokens by class: "background", then subjects from "1"."""
        found = torch.bincount(self.labels, minlength=self.subjects + 1).tolist()
        return {("background" if i == 0 else str(i)): n for i, n in enumerate(found)}

    def to(self, device: torch.device, dtype: torch.dtype) -> TokenRow:
        """A copy with its sources on a device, tables in the model's dtype."""

        def move(table: Rotary) -> Rotary:
            return table[0].to(device, dtype), table[1].to(device, dtype)

        sources = tuple(
            replace(
                s, tokens=s.tokens.to(device), keys=move(s.keys),
                queries=None if s.queries is None else move(s.queries),
            )
            for s in self.sources
        )  # fmt: skip
        return replace(self, sources=sources)

    @property
    def nbytes(self) -> int:
        """Bytes of indices and rotary tables."""
        tensors = [self.labels]
        for source in self.sources:
            tensors += [source.tokens, *source.keys, *(source.queries or ())]
        return sum(tensor.nbytes for tensor in tensors)


def token_rows(
    rows: Sequence[ClipRow], grid: TokenGrid, config: SceneConfig, tables: Tables
) -> tuple[TokenRow, ...]:
    """All rows of a batch in tokens. `grid` is the grid of one row, and `tables` makes the rotary
    embedding of positions.

    Raises:
        ValueError: a row's coverage does not have this grid, or a subject has no token.
    """
    shape = (grid.frames, grid.height, grid.width)
    classes = []
    for row in rows:
        if tuple(row.coverage.shape[1:]) != shape:
            raise ValueError(
                f"{row.name} covers {tuple(row.coverage.shape[1:])} tokens; accepted: {shape}"
            )
        try:
            classes.append(masks.labels(row.coverage, row.z, config.least))
        except ValueError as error:
            raise ValueError(f"{row.name}: {error}") from error
    where = reposition_maps.token_positions(grid)
    return tuple(
        TokenRow(
            row.name, len(row.z), classes[i],
            tuple(_source(rows, i, r, classes, where, config, tables) for r in row.links),
        )
        for i, row in enumerate(rows)
    )  # fmt: skip


def _source(
    rows: Sequence[ClipRow], row: int, link: ReferenceLink, classes: Sequence[torch.Tensor],
    where: torch.Tensor, config: SceneConfig, tables: Tables,
) -> ReferenceTokens:  # fmt: skip
    tokens = (classes[link.row] == link.source + 1).nonzero().flatten()
    native = tables(where[tokens])
    made = ReferenceTokens(link.subject + 1, link.row, tokens, native, None)
    seen = bool((classes[row] == link.subject + 1).any())
    if not config.reposition or not len(tokens) or not seen:
        return made  # reposition is off, or no token reads or is read
    source = reposition_maps.subject_boxes(rows[link.row].coverage[link.source])
    target = reposition_maps.subject_boxes(rows[row].coverage[link.subject])
    to_target = reposition_maps.box_map(source, target, config.alpha)
    if to_target.static:
        return replace(made, keys=tables(to_target(where[tokens])))
    return replace(made, queries=tables(to_target.inverse()(where)))


def gather_plan_for(row: TokenRow, active: ActiveParts, config: SceneConfig) -> GatherPlan:
    """The gather plan of a row's attention when these parts are active."""
    isolation = config.isolation if active.isolation else "off"
    reads = active.reads_references and row.sources
    return masks.gather_plan(row.labels, isolation, row.references if reads else None)
