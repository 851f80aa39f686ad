"""Carries out a scene at the attentions: isolated subjects, references read in lockstep, own texts.

A `SceneAttention` is put on all self- and cross-attentions of a pipeline's transformers. Rows of
a batch are
the shots of a layout; what a row reads is the keys, before their rotation, and values that another
row makes in the very same call, so that nothing is kept from step to step, any sampler works, and a
cache that serves a step serves writing and reading alike. Rows never see each other but for that:
kept values need no role of their own.

Both branches of guidance are isolated and read; subjects' own texts are in the conditional one, and
the negative prompt stays as it is. Where nothing is at work the stock call is made. Holds no
formula: scenes/masks.py, scenes/reposition.py, attention/lse_merge.py and scenes/rows.py do.

Source: IR-Diffusion (arXiv 2411.19261), brought to video; our reading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from dit_accel.attention import processor
from dit_accel.attention.processor import StagedAttnProcessor
from dit_accel.core.families import Family
from dit_accel.core.patching import Patches
from dit_accel.core.report import SceneReport
from dit_accel.core.session import Session, outside_graphs
from dit_accel.core.tokens import TokenGrid
from dit_accel.scenes import reposition, subject_text, support
from dit_accel.scenes import rows as clip_rows
from dit_accel.scenes.masks import GatherPlan, isolated_attention
from dit_accel.scenes.references import ReferenceClips
from dit_accel.scenes.rows import ActiveParts, SceneConfig, TokenRow
from dit_accel.scenes.subject_text import SubjectPrompts, SubjectTextProcessor

Rotary = reposition.Rotary
Rows = Callable[[TokenGrid], Sequence[clip_rows.ClipRow]]


class SceneAttention:
    """What all layers share: the rows in tokens, what is at work at this step, and the tally.

    Args:
        session: of the pipeline.
        family: its row.
        config: the settings.
        prompts: of the subjects of every row that the pipeline is called for; None: none of its
            own.
        rows: of a token grid, those rows and the further ones, in order.
        clips: the further rows' frames.
    """

    def __init__(
        self, session: Session, family: Family, config: SceneConfig,
        prompts: Sequence[Sequence[str | None]], rows: Rows, clips: ReferenceClips,
    ) -> None:  # fmt: skip
        self.session, self.family, self.config = session, family, config
        self.prompts, self.rows, self.clips = prompts, rows, clips
        self.texts = SubjectPrompts(session, family)
        self.layers: list[SceneLayer] = []
        self._tables: dict[str, torch.dtype] = {}
        self._token_rows: dict[Any, tuple[TokenRow, ...]] = {}
        self.token_rows: tuple[TokenRow, ...] = ()
        self.run_begins(None)

    def install(self, patches: Patches) -> None:
        """Put stages on every attention, and texts where they are encoded.

        Raises:
            ValueError: the transformers are not such as can be isolated; nothing is changed then
                but what the caller undoes.
        """
        support.check_family(self.family)
        for name, module in self.session.transformers.items():
            self._tables[name] = support.check_rotary(module, self.family)
            blocks = [block for group in self.family.blocks for block in getattr(module, group)]
            for index, block in enumerate(blocks):
                own = getattr(block, self.family.attention)
                other = getattr(block, self.family.cross_attention or "")
                support.check_text_only(other)
                self.layers.append(
                    SceneLayer(self, index, len(blocks), support.staged(own, patches))
                )
                patches.wrap(other, "processor", self._blended(name))
        self.session.carry = self.carry
        self.session.changes = self.changes
        self.texts.install(patches, self.session.pipe, self._ask)
        self.clips.install(patches, self.session.pipe)

    def _blended(self, transformer: str) -> Callable[[Any], Any]:
        return lambda stock: SubjectTextProcessor(stock, lambda: self.subject_texts(transformer))

    def _ask(self, count: int) -> list[tuple[int, int, str]]:
        """Whether a call for so many clips is for the shots; which texts it needs: row, class."""
        self._check_rows(count)
        rows = [*(self.prompts if self.config.text > 0 else ())]
        own = [(i, s + 1, t) for i, many in enumerate(rows) for s, t in enumerate(many) if t]
        further = enumerate(self.clips.texts, start=len(self.prompts))
        return own + [(i, 1, text) for i, text in further if text]

    def _check_rows(self, count: int) -> None:
        shots = len(self.prompts)
        if count != shots:
            raise ValueError(
                f"the call is for {count} clips; accepted: {shots}, one a shot of the layout"
            )

    # --- a forward ---

    def carry(self, name: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a transformer's forward: with the rows of files behind the user's, cut off again."""
        latents = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        self._check_rows(len(latents))
        for layer in self.layers:
            support.check_undivided(layer.staged)
        self._make_token_rows(name, args, kwargs, latents)
        args, kwargs = self.clips.extend(args, kwargs, self.session, self.texts)
        return self.clips.cut(forward(*args, **kwargs), len(latents))

    def _make_token_rows(self, name: str, args: Any, kwargs: Any, latents: torch.Tensor) -> None:
        """The rows in tokens, for this size on this device."""
        module: Any = self.session.transformers[name]
        dtype = self._tables[name]
        grid = processor.grid_of(module, args, kwargs)
        strides = support.strides_of(self.session.pipe, module)
        grid = TokenGrid(grid.frames, grid.height, grid.width, strides=strides)
        key = grid, latents.device, dtype
        if key not in self._token_rows:
            width = module.config.attention_head_dim
            made = clip_rows.token_rows(self.rows(grid), grid, self.config, width)
            self._token_rows = {key: tuple(row.to(latents.device, dtype) for row in made)}
        self.token_rows = self._token_rows[key]
        self.device = latents.device

    def active(self, layer: int, layers: int) -> ActiveParts:
        """What is at work at this step in this layer."""
        branch = self.active_now
        if self.config.amplify and self.session.branch == "uncond":
            branch = replace(branch, reads_references=False)
        return branch & clip_rows.active_in_layer(self.config, layer, layers)

    def gather_plans(self, active: ActiveParts) -> tuple[GatherPlan, ...] | None:
        """What every row computes; None: all of them plain attention."""
        key = replace(active, own_text=False)
        if key not in self._plans:
            made = tuple(
                clip_rows.gather_plan_for(row, active, self.config).to(self.device)
                for row in self.token_rows
            )
            self._plans[key] = None if all(plan.whole for plan in made) else made
        return self._plans[key]

    def subject_texts(
        self, transformer: str
    ) -> list[tuple[int, torch.Tensor, torch.Tensor, float]]:
        """Row, tokens, text `(1, L, C)` and weight of every subject that has its own text now."""
        if not self.active_now.own_text or self.session.branch != "cond":
            return []
        if transformer not in self._subject_texts:
            self._subject_texts[transformer] = [
                (row, self.token_rows[row].tokens_of(label).to(self.device), text, self.config.text)
                for (row, label), text in self.texts.embedded(transformer).items()
                if row < len(self.prompts)  # a further row has its text already, as a whole
            ]
        for _, tokens, text, _ in self._subject_texts[transformer]:
            self.extra_flops += subject_text.flops(len(tokens), *text.shape[1:])
        return self._subject_texts[transformer]

    def changes(self, step: int) -> bool:
        """Whether another set of parts is at work at this step than at the one before."""
        total = self.session.num_steps
        if total is None or step == 0:
            return False
        one, other = (clip_rows.active_at_step(self.config, s, total) for s in (step - 1, step))
        return one & self._possible != other & self._possible

    @property
    def _possible(self) -> ActiveParts:
        """What can be at work at all: a scene without references reads none, whatever is set."""
        closed = self.config.background == "closed"
        return ActiveParts(
            any(row.subjects > (0 if closed else 1) for row in self.token_rows),
            any(row.sources for row in self.token_rows),
            any(text for texts in self.prompts for text in texts),
        )

    # --- observer of the session ---

    def run_begins(self, total: int | None) -> None:
        """Forget the last run; layout and settings are the same for all of a run, so that plans
        differ from step to step only by what is at work."""
        self._plans: dict[ActiveParts, tuple[GatherPlan, ...] | None] = {}
        self._subject_texts: dict[str, list[tuple[int, torch.Tensor, torch.Tensor, float]]] = {}
        self.active_now = ActiveParts(False, False, False)
        self.calls = self.extra_flops = self.gathered_bytes = 0
        for layer in self.layers:
            layer.raw = None

    def step_begins(self, step: int) -> None:
        """Find what is at work now."""
        self.active_now = clip_rows.active_at_step(
            self.config, step, self.session.num_steps or step + 1
        )

    def forward_ends(self, transformer: str) -> None:
        """Nothing to do."""

    def clear(self) -> None:
        """Free what is held."""
        self.run_begins(None)
        self._token_rows.clear()
        self.texts.clear()
        self.clips.clear()

    # --- for the report ---

    def report(self) -> SceneReport:
        """What the last run did."""
        held = sum(row.held_bytes for row in self.token_rows) + self.clips.held_bytes
        return SceneReport(
            classes={row.name: row.counts() for row in self.token_rows},
            reads={s.name: len(s.references) for s in self.token_rows if s.sources},
            further_rows=len(self.clips),
            calls=self.calls,
            extra_flops=self.extra_flops,
            held_bytes=held,
            gathered_bytes=self.gathered_bytes,
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        sides = {
            ("query" if source.queries is not None else "key")
            for row in self.token_rows
            for source in row.sources
        }
        found = [f"References are repositioned on the {side} side." for side in sorted(sides)]
        return tuple(found) if self.config.reposition and self.config.share else ()


class SceneLayer:
    """One self-attention: its stages, and the keys of this call before their rotation."""

    def __init__(
        self, scene: SceneAttention, index: int, count: int, staged: StagedAttnProcessor
    ) -> None:
        self.scene, self.index, self.count = scene, index, count
        self.staged, self.inner = staged, staged.attend
        self.raw: tuple[torch.Tensor, torch.Tensor] | None = None
        staged.position, staged.attend = outside_graphs(self.position), outside_graphs(self.attend)

    def position(
        self, query: torch.Tensor, key: torch.Tensor, rotary: Rotary
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The stage: as stock; what is not rotated yet is noted for whoever reads it."""
        reads = self.scene.active(self.index, self.count).reads_references
        self.raw = (query, key) if reads else None
        return processor.rotate_pairs(query, key, rotary)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The stage: `(B, N, H, D)` -> `(B, N, H, D)`, row by row where rows differ."""
        scene = self.scene
        active = scene.active(self.index, self.count)
        plans = scene.gather_plans(active) if active.isolation or active.reads_references else None
        if plans is None:
            self.raw = None
            return self.inner(query, key, value)
        out = torch.empty_like(query)
        for row, plan in enumerate(plans):
            own = slice(row, row + 1)
            read, moved_queries = self._read(row, value) if plan.references else (None, {})
            out[own] = isolated_attention(
                plan, self.inner, query[own], key[own], value[own], read, moved_queries
            )
            self._count(plan, query)
        self.raw = None
        return out

    def _read(
        self, row: int, value: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], dict[int, torch.Tensor]]:
        """Keys and values that a row reads, `(1, R, H, D)`, and its queries by class where they
        stand moved_queries to read."""
        assert self.raw is not None, "what is read was positioned in this call"
        queries, keys = self.raw
        found, values, moved_queries = [], [], {}
        for source in self.scene.token_rows[row].sources:
            of = slice(source.row, source.row + 1)
            found.append(processor.rotate(keys[of, source.tokens], source.keys))
            values.append(value[of, source.tokens])
            if source.queries is not None:
                own = queries[row : row + 1]
                moved_queries[source.label] = processor.rotate(own, source.queries)
        read = torch.cat(found, 1), torch.cat(values, 1)
        self.scene.gathered_bytes = max(
            self.scene.gathered_bytes, sum(tensor.nbytes for tensor in read)
        )
        return read, moved_queries

    def _count(self, plan: GatherPlan, query: torch.Tensor) -> None:
        heads = query.shape[2] * query.shape[3]
        self.scene.calls += len(plan.groups)
        self.scene.extra_flops += 4 * heads * (plan.pairs - plan.tokens**2)
