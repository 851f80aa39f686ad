"""One self-attention of a scene: the patches of a layer, and the computation of its rows.

Queries, keys and values of a layer come in; its output goes out, computed row by row if rows
differ. `SceneLayer` has only the video's tokens; `JointLayer` has video and text in one sequence.
During a call they store unrotated keys for the rows that read them, and nothing else. The scene
decides which parts are active, and which row reads which (`scenes/isolation.py`).

Source: IR-Diffusion (arXiv 2411.19261), brought to video; our reading.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from dit_accel.attention.joint import JointText
from dit_accel.attention.processor import StagedAttnProcessor
from dit_accel.core.compiling import outside_graphs
from dit_accel.scenes.joint import JointPlan, joint_attention
from dit_accel.scenes.masks import GatherPlan, isolated_attention
from dit_accel.scenes.reposition import Rotary


class SceneLayer:
    """One self-attention: its stages, and the unrotated queries and keys of the running call."""

    def __init__(self, scene: Any, index: int, count: int, staged: StagedAttnProcessor) -> None:
        self.scene, self.index, self.count = scene, index, count
        self.staged, self.inner = staged, staged.attend
        self.raw: tuple[torch.Tensor, torch.Tensor] | None = None
        self._patch()

    def _patch(self) -> None:
        staged, self.rotate = self.staged, self.staged.position
        staged.position, staged.attend = outside_graphs(self.position), outside_graphs(self.attend)

    def forget(self) -> None:
        """Forget stored queries and keys. A run that failed during a call leaves them behind."""
        self.raw = None

    def _reads(self) -> bool:
        """Whether any row reads a reference in this call."""
        scene = self.scene
        active = (scene.active(self.index, self.count, branch) for branch in scene.halves)
        return any(one.reads_references for one in active)

    def position(
        self, query: torch.Tensor, key: torch.Tensor, rotary: Rotary
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The position stage of the stock attention. Unrotated queries and keys are stored for the
        readers."""
        self.raw = (query, key) if self._reads() else None
        return self.rotate(query, key, rotary)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The attend stage, from `(B, N, H, D)` to the same shape; row by row if rows differ."""
        plans = self.scene.plans_of_batch(self.index, self.count)
        if plans is None:
            self.raw = None
            return self.inner(query, key, value)
        out = torch.empty_like(query)
        for row, plan in enumerate(plans):
            own = slice(row, row + 1)
            if plan is None:
                out[own] = self.inner(query[own], key[own], value[own])
                continue
            read, moved = self._read(row, value) if plan.references else (None, {})
            out[own] = isolated_attention(
                plan, self.inner, query[own], key[own], value[own], read, moved
            )
            self._count(plan, query)
        self.raw = None
        return out

    def _read(
        self, row: int, value: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], dict[int, torch.Tensor]]:
        """The keys and values `(1, R, H, D)` that a row reads, and the row's moved queries by
        class."""
        assert self.raw is not None, "position stored them in this call"
        queries, keys = self.raw
        keys_read, values_read, moved = [], [], {}
        turn, shot = self.scene.geometry.turn, row % len(self.scene.token_rows)
        for source in self.scene.token_rows[shot].sources:
            other = row - shot + source.row  # in the same branch
            of = slice(other, other + 1)
            keys_read.append(turn(keys[of, source.tokens], source.keys))
            values_read.append(value[of, source.tokens])
            if source.queries is not None:
                own = queries[row : row + 1]
                moved[source.label] = turn(own, source.queries)
        read = torch.cat(keys_read, 1), torch.cat(values_read, 1)
        # A compiler cannot trace `nbytes` if a size varies.
        gathered = sum(tensor.numel() * tensor.element_size() for tensor in read)
        self.scene.gathered_bytes = max(self.scene.gathered_bytes, gathered)
        return read, moved

    def _count(self, plan: GatherPlan, query: torch.Tensor) -> None:
        width = query.shape[2] * query.shape[3]
        self.scene.calls += len(plan.groups)
        self.scene.extra_flops += 4 * width * (plan.pairs - plan.tokens**2)


class JointLayer(SceneLayer):
    """An attention over video and text; its processor is a `JointAttnProcessor`."""

    def _patch(self) -> None:
        staged: Any = self.staged
        self.turn, staged.turn = staged.turn, outside_graphs(self.store_and_turn)
        staged.attend = outside_graphs(self.attend_jointly)
        self._unrotated: list[torch.Tensor] = []

    def forget(self) -> None:
        super().forget()
        self._unrotated = []

    def store_and_turn(self, rows: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """The position stage of queries, then of keys. Both are stored unrotated."""
        if self._reads():
            self._unrotated.append(rows)
        turned: torch.Tensor = self.turn(rows, rotary)
        return turned

    def attend_jointly(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, text: JointText
    ) -> torch.Tensor:
        """The attend stage, from `(B, V + L + E, H, D)` to the same shape; row by row if rows
        differ."""
        unrotated, self._unrotated = self._unrotated, []
        plans: list[JointPlan | None] | None = self.scene.joint_plans(
            self.index, self.count, text.tokens
        )
        if plans is None:
            out: torch.Tensor = self.inner(query, key, value, text)
            return out
        self.raw = (unrotated[0], unrotated[1]) if unrotated else None
        rows = []
        for row, plan in enumerate(plans):
            own = slice(row, row + 1)
            heads = query[own], key[own], value[own]
            if plan is None:
                rows.append(self.inner(*heads, _text_of(text, row)))
                continue
            read, moved = self._read(row, value) if plan.scene.references else (None, {})
            words = heads[0][:, -text.tokens :]
            moved = {label: torch.cat([video, words], 1) for label, video in moved.items()}
            weight = self.scene.config.text
            rows.append(joint_attention(plan, self._plain, *heads, weight, read, moved))
            self._count_joint(plan, query)
        self.raw = None
        return torch.cat(rows)

    def _plain(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return self.staged.dense(query, key, value)

    def _count_joint(self, plan: JointPlan, query: torch.Tensor) -> None:
        width = query.shape[2] * query.shape[3]
        self.scene.calls += len(plan.scene.groups) + (len(plan.own.groups) if plan.own else 0)
        self.scene.extra_flops += 4 * width * (plan.pairs - plan.scene.tokens**2)


def _text_of(text: JointText, row: int) -> JointText:
    """The text of one row."""
    lengths, mask = (None if x is None else x[row : row + 1] for x in (text.lengths, text.mask))
    return replace(text, lengths=lengths, mask=mask)
