"""Carry out a scene at the attentions: isolated subjects, references, subjects' own prompts.

A session, a `SceneConfig` and the rows of a layout come in; the pipeline's attentions compute the
scene, and a `SceneReport` goes out. Each shot is a row of the batch. A row reads the unrotated keys
and the values that another row makes in the same call. So nothing is stored from step to step, any
sampler works, and a cached step caches both. It decides which parts are active at a step and a
layer; the maths is in the other modules of this folder. If no part is active, the stock call is
made.

Source: IR-Diffusion (arXiv 2411.19261), brought to video; our reading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from dit_accel.core.families import Family
from dit_accel.core.interceptor import Forward, ForwardCall, Interceptor
from dit_accel.core.patching import Patches
from dit_accel.core.report import SceneReport
from dit_accel.core.session import Session
from dit_accel.core.tokens import TokenGrid
from dit_accel.scenes import masks, subject_text, support
from dit_accel.scenes import rows as clip_rows
from dit_accel.scenes.geometry import GEOMETRIES, Given
from dit_accel.scenes.joint import JointPlan, own_plan
from dit_accel.scenes.layers import JointLayer, SceneLayer
from dit_accel.scenes.masks import GatherPlan
from dit_accel.scenes.references import ReferenceClips
from dit_accel.scenes.rows import ActiveParts, SceneConfig, TokenRow
from dit_accel.scenes.subject_text import SubjectPrompts, SubjectText, SubjectTextProcessor

Rows = Callable[[TokenGrid], Sequence[clip_rows.ClipRow]]


class SceneAttention(Interceptor):
    """The state that all layers share: rows in tokens, the active parts of a step, and counters.

    Args:
        session: the session of the pipeline.
        family: the family of its transformers.
        config: the settings.
        prompts: per shot, the prompt of each subject; None: it has none.
        rows: makes all rows for a token grid: shots, then reference files.
        clips: the frames of the reference files.
    """

    def __init__(
        self, session: Session, family: Family, config: SceneConfig,
        prompts: Sequence[Sequence[str | None]], rows: Rows, clips: ReferenceClips,
    ) -> None:  # fmt: skip
        self.session, self.family, self.config = session, family, config
        self.geometry = GEOMETRIES.get(family.name, GEOMETRIES["wan"])
        self.prompts, self.rows, self.clips = prompts, rows, clips
        self.texts = SubjectPrompts(session, family)
        self.layers: list[SceneLayer] = []
        self._tables: dict[str, torch.dtype] = {}
        self._token_rows: dict[Any, tuple[TokenRow, ...]] = {}
        self.token_rows: tuple[TokenRow, ...] = ()
        # masks of texts, and the texts' lengths
        self._masks: list[tuple[torch.Tensor, tuple[int, ...]]] = []
        self.text_lengths: tuple[int, ...] = ()  # by row, without padding
        self.run_begins(None)

    def install(self, patches: Patches) -> None:
        """Patch all attentions, and the encoding of prompts and latents.

        Raises:
            ValueError: the transformers are not supported; the caller undoes the patches.
        """
        support.check_family(self.family)
        for name, module in self.session.transformers.items():
            blocks = [block for group in self.family.blocks for block in getattr(module, group)]
            layer = SceneLayer if self.family.cross_attention else JointLayer
            for index, block in enumerate(blocks):
                staged = support.staged(getattr(block, self.family.attention), patches)
                self.layers.append(layer(self, index, len(blocks), staged))
                if self.family.cross_attention:
                    self._read_own_texts(patches, name, block)
            if not self.family.cross_attention:
                support.check_no_image(module)
                embedder = module.get_submodule(self.family.text_embedder or "")
                patches.around(embedder, partial(self._with_own_texts, name))
            # Checked after the attentions: on a divided model, some angles are wrong.
            self._tables[name] = support.check_rotary(module, self.family)
        self.texts.install(patches, self.session.pipe, self._wanted_prompts)
        self.clips.install(patches, self.session.pipe)

    def _read_own_texts(self, patches: Patches, name: str, block: Any) -> None:
        other = getattr(block, self.family.cross_attention or "")
        support.check_text_only(other)
        make = partial(SubjectTextProcessor, texts=partial(self._texts_of_call, name))
        patches.wrap(other, "processor", make, replaceable=True)

    def _wanted_prompts(self, count: int) -> list[tuple[int, int, str]]:
        """The prompts that a call for `count` clips needs: row, class, prompt."""
        self._check_rows(count)
        shots = self.prompts if self.config.text > 0 else ()
        own = [(i, s + 1, t) for i, many in enumerate(shots) for s, t in enumerate(many) if t]
        further = enumerate(self.clips.texts, start=len(self.prompts))
        return own + [(i, 1, text) for i, text in further if text]

    def _check_rows(self, count: int) -> None:
        shots = len(self.prompts)
        if count != shots:
            raise ValueError(
                f"the call is for {count} clips; accepted: {shots}, one for each shot of the layout"
            )

    # --- a forward ---

    def around(self, call: ForwardCall, forward: Forward) -> Any:
        """The output for the user's rows, from a call that also has the rows of files after
        them."""
        self._check_rows(len(call.latents) // len(self.halves))
        for layer in self.layers:
            support.check_undivided(layer.staged)
        given = dict(zip(call.names, call.args, strict=False)) | call.kwargs
        self._make_token_rows(call.transformer, given, call.latents.device)
        self._note_text(given.get("encoder_attention_mask"))
        args, kwargs = self.clips.extend(call.args, call.kwargs, self.session, self.texts)
        output = forward(ForwardCall(call.transformer, args, kwargs))
        return self.clips.cut(output, len(call.latents))

    @property
    def halves(self) -> tuple[str, ...]:
        """The branches of this call's rows, in order: both may be in one batch."""
        if self.family.branches != "batched":
            return (self.session.branch,)
        return ("uncond", "cond") if (self.session.guidance or 1.0) > 1 else ("cond",)

    def _make_token_rows(self, name: str, given: Given, device: torch.device) -> None:
        """Set `token_rows` for this size and device."""
        module: Any = self.session.transformers[name]
        dtype = self._tables[name]
        strides = support.strides_of(self.session.pipe, module)
        frames, height, width = self.geometry.sizes(module, given)
        grid = TokenGrid(frames, height, width, strides=strides)
        key = grid, device, dtype, self.geometry.depends(given)
        if key not in self._token_rows:
            tables = self.geometry.tables(module, given)
            made = clip_rows.token_rows(self.rows(grid), grid, self.config, tables)
            self._token_rows = {key: tuple(row.to(device, dtype) for row in made)}
        self.token_rows = self._token_rows[key]
        self.device = device

    # --- video and text in one sequence ---

    def _note_text(self, mask: torch.Tensor | None) -> None:
        """Find the number of text tokens in every row, without padding. Each mask needs one host
        sync."""
        if self.family.cross_attention or mask is None:
            return
        lengths = next((known for one, known in self._masks if one is mask), None)
        if lengths is None:
            lengths = tuple(mask.sum(1).long().tolist())
            self._masks = [(mask, lengths), *self._masks[:3]]
        self.text_lengths = lengths

    def own_texts(self) -> dict[int, list[tuple[int, torch.Tensor]]]:
        """For each row, the class and the text `(1, L, C)` of every subject that has its own text
        now."""
        found: dict[int, list[tuple[int, torch.Tensor]]] = {}
        if self.active_now.own_text and "cond" in self.halves:
            for (row, label), text in sorted(self.texts.encoded.items(), key=lambda one: one[0]):
                found.setdefault(row, []).append((label, text))
        return found

    def _with_own_texts(self, name: str, inner: Any) -> Any:
        """The text embedder, with the subjects' own texts after the scene's text in its output."""

        def forward(text: torch.Tensor, time: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            known = inner(text, time, *args, **kwargs)
            own = self.own_texts() if self.session.is_active() else {}
            if not own:
                return known
            rows = [
                [inner(one.to(text), time[row : row + 1], one.new_ones(one.shape[:2]).long())
                 for _, one in own.get(row, ())]
                for row in range(len(text))
            ]  # fmt: skip
            longest = max(sum(one.shape[1] for one in many) for many in rows)
            behind = known.new_zeros(len(text), longest, known.shape[-1])
            for row, many in enumerate(rows):
                if many:
                    joined = torch.cat(many, 1)
                    behind[row, : joined.shape[1]] = joined[0]
            return torch.cat([known, behind], 1)

        return forward

    def joint_plans(self, layer: int, layers: int, text: int) -> list[JointPlan | None] | None:
        """`plans_of_batch` for video and text; `text` is the number of tokens after the video."""
        active = self.active(layer, layers, self.halves[0])
        own = self.own_texts()
        key = replace(active, own_text=bool(own)), text, self.text_lengths
        if key not in self._joint:
            longest = max((sum(t.shape[1] for _, t in many) for many in own.values()), default=0)
            rows = range(len(self.token_rows))
            made = [self._joint_plan(row, active, own.get(row, []), text - longest) for row in rows]
            self._joint[key] = made if any(plan is not None for plan in made) else None
        return self._joint[key]

    def _joint_plan(
        self, row: int, active: ActiveParts, own: list[tuple[int, torch.Tensor]], text: int
    ) -> JointPlan | None:
        """The plan of a row; None: stock attention, because no part of the scene is active in this
        row."""
        tokens = self.token_rows[row]
        plan = clip_rows.gather_plan_for(tokens, active, self.config)
        if plan.whole and not own:
            return None
        isolation = self.config.isolation if active.isolation else "off"
        read = tokens.references if active.reads_references and tokens.sources else None
        words = tokens.labels.new_zeros(self.text_lengths[row])
        scene = masks.gather_plan(torch.cat([tokens.labels, words]), isolation, read)
        texts = [(label, one.shape[1]) for label, one in own]
        found, blended, written = own_plan(tokens.labels, texts, text, isolation, read)
        found = None if found is None else found.to(self.device)
        return JointPlan(
            scene.to(self.device), found, blended.to(self.device), written.to(self.device)
        )

    # --- parts ---

    def active(self, layer: int, layers: int, branch: str) -> ActiveParts:
        """The parts that are active at this step in a layer, in the rows of a branch."""
        parts = self.active_now
        if self.config.amplify and branch == "uncond":
            parts = replace(parts, reads_references=False)
        return parts & clip_rows.active_in_layer(self.config, layer, layers)

    def plans_of_batch(self, layer: int, layers: int) -> list[GatherPlan | None] | None:
        """The gather plan of every row of the batch; None for a row with plain attention. None as a
        whole if all rows have plain attention."""
        found: list[GatherPlan | None] = []
        for branch in self.halves:
            active = self.active(layer, layers, branch)
            works = active.isolation or active.reads_references
            plans = self.gather_plans(active) if works else None
            found += plans if plans is not None else [None] * len(self.token_rows)
        return found if any(plan is not None for plan in found) else None

    def gather_plans(self, active: ActiveParts) -> tuple[GatherPlan, ...] | None:
        """The gather plan of every row; None: plain attention in all of them."""
        key = replace(active, own_text=False)
        if key not in self._plans:
            made = tuple(
                clip_rows.gather_plan_for(row, active, self.config).to(self.device)
                for row in self.token_rows
            )
            self._plans[key] = None if all(plan.whole for plan in made) else made
        return self._plans[key]

    def _texts_of_call(self, transformer: str) -> list[SubjectText]:
        """The texts of the present call; no text if another pipeline that shares the transformer
        made the call."""
        return self.subject_texts(transformer) if self.session.is_active() else []

    def subject_texts(self, transformer: str) -> list[SubjectText]:
        """Row, tokens, text `(1, L, C)` and weight of every subject that has its own text now."""
        if not self.active_now.own_text or "cond" not in self.halves:
            return []
        before = self.halves.index("cond") * len(self.token_rows)  # rows of the other branch
        if transformer not in self._subject_texts:
            self._subject_texts[transformer] = [
                (
                    before + row,
                    self.token_rows[row].tokens_of(label).to(self.device),
                    text,
                    self.config.text,
                )
                for (row, label), text in self.texts.embedded(transformer).items()
                # the row of a reference file has its prompt for all tokens
                if row < len(self.prompts)
            ]
        for _, tokens, text, _ in self._subject_texts[transformer]:
            self.extra_flops += subject_text.flops(len(tokens), *text.shape[1:])
        return self._subject_texts[transformer]

    def changes_denoiser(self, step: int) -> bool:
        """Whether another set of parts is active at this step than at the one before."""
        num_steps = self.session.num_steps
        if num_steps is None or step == 0:
            return False
        steps = (step - 1, step)
        one, other = (clip_rows.active_at_step(self.config, s, num_steps) for s in steps)
        return one & self._possible != other & self._possible

    @property
    def _possible(self) -> ActiveParts:
        """The parts that can be active at all, e.g. no reading without references."""
        closed = self.config.background == "closed"
        return ActiveParts(
            any(row.subjects > (0 if closed else 1) for row in self.token_rows),
            any(row.sources for row in self.token_rows),
            any(text for texts in self.prompts for text in texts),
        )

    # --- runs and steps ---

    def run_begins(self, num_steps: int | None) -> None:
        """Reset. Gather plans are cached for a run by active parts, because nothing else changes
        them."""
        self._plans: dict[ActiveParts, tuple[GatherPlan, ...] | None] = {}
        self._subject_texts: dict[str, list[SubjectText]] = {}
        self._joint: dict[Any, list[JointPlan | None] | None] = {}
        self._masks.clear()
        self.text_lengths = ()
        self.active_now = ActiveParts(False, False, False)
        self._were_active: set[str] = set()  # parts that were active at any step of this run
        self.calls = self.extra_flops = self.gathered_bytes = 0
        for layer in self.layers:
            layer.forget()

    def step_begins(self, step: int) -> None:
        """Set the active parts of this step."""
        self.active_now = clip_rows.active_at_step(
            self.config, step, self.session.num_steps or step + 1
        )
        self._were_active |= {name for name, now in asdict(self.active_now).items() if now}

    def clear(self) -> None:
        """Free all tensors."""
        self.run_begins(None)
        self._token_rows.clear()
        self.texts.clear()
        self.clips.clear()

    # --- for the report ---

    def report(self) -> SceneReport:
        """The report of the last run, for the handle's report."""
        return SceneReport(
            tokens={row.name: row.counts() for row in self.token_rows},
            reference_tokens={s.name: len(s.references) for s in self.token_rows if s.sources},
            reference_rows=len(self.clips),
            split_calls=self.calls,
            extra_flops=self.extra_flops,
            table_bytes=sum(row.nbytes for row in self.token_rows) + self.clips.nbytes,
            reference_bytes=self.gathered_bytes,
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        """Notes on parts that were never active in a short run, and on how references are
        repositioned."""
        possible = asdict(self._possible & clip_rows.wanted(self.config))
        idle = (
            f"{what} was active at none of the {self.session.steps_ran} steps: {name} is "
            f"{getattr(self.config, name)}; accepted: a span with at least one step."
            for part, (what, name) in clip_rows.SPANS.items()
            if possible[part] and part not in self._were_active
        )
        return (*idle, *self._reposition_notes())

    def _reposition_notes(self) -> tuple[str, ...]:
        if not (self.config.reposition and self.config.share):
            return ()
        sources = [source for row in self.token_rows for source in row.sources]
        sides = sorted({"key" if source.queries is None else "query" for source in sources})
        return tuple(f"References are repositioned on the {side} side." for side in sides)
