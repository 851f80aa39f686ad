"""Finds what a callback, the pipeline or its guider changed during a run, against its plan.

In: the guidance and the text of each step, and which forwards each step had. Out: notes. A plan has
the branch weights of the first step, and without a guard it goes on with predictions of an earlier
text. So after such a change no quality can be predicted.
Knows the session, but no plan. Ours; there is no source.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dit_accel.core.session import Session
from dit_accel.planning.plan import SecondExpert

# By transformer and branch: for each step, whether it was computed.
Computed = Mapping[tuple[str, str], Mapping[int, bool]]


class RunChanges:
    """The changes during the present run, or the last one."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._guidance: dict[int, float | None] = {0: None}  # by the step at which it began
        self._texts: list[tuple[int, bool | torch.Tensor]] = []  # steps with another text, perhaps

    def reset(self) -> None:
        """A run begins: forget the last one."""
        self._guidance, self._texts = {0: self.session.guidance}, []

    def note_guidance(self, step: int) -> None:
        """A step begins."""
        if self.session.guidance != [*self._guidance.values()][-1]:
            self._guidance[step] = self.session.guidance

    def note_text(self, other: bool | torch.Tensor) -> None:
        """A forward begins; `other` as `TextWatch.difference` returns it."""
        if other is not False:
            self._texts.append((self.session.step, other))

    def notes(self, computed: Computed, second: SecondExpert | None) -> tuple[str, ...]:
        """A note for each change, if the plan extrapolated anything.

        Args:
            second: the second expert, whose branch weights the plan has.
        """
        # Copies, as a report may be made in another thread during the run.
        if all(all(steps.values()) for steps in [*computed.values()]):
            return ()
        return (*self._guidance_notes(computed, second), *self._text_notes())

    def _text_notes(self) -> tuple[str, ...]:
        step = next((step for step, other in [*self._texts] if other), None)
        if step is None:
            return ()
        return (
            f"The text changed at step {step}, but a plan without guard still has predictions of "
            "the earlier text.",
        )

    def _guidance_notes(self, computed: Computed, second: SecondExpert | None) -> tuple[str, ...]:
        (_, before), *later = [*self._guidance.items()]
        if later and None not in (before, later[0][1]):
            step, after = later[0]
            what = f"Guidance changed from {before:g} to {after:g} at step {step}"
        else:
            found = self._changed_forwards(computed, second)
            if found is None:
                return ()
            step, now, first = found
            what = f"The forwards changed from {first} to {now} at step {step}"
        return (f"{what}, but the plan still has the branch weights of the first step.",)

    def _changed_forwards(
        self, computed: Computed, second: SecondExpert | None
    ) -> tuple[int, str, str] | None:
        """The first step with other branches than step 0, and the branches of both; None: all have
        the same, or a second expert begins there, for which the plan has weights."""
        branches: dict[int, dict[str, None]] = {}
        for (_, branch), steps in [*computed.items()]:
            for step in [*steps]:
                branches.setdefault(step, {})[branch] = None
        for step in sorted(branches):
            if step == self.session.steps_ran - 1 < (self.session.num_steps or 0) - 1:
                return None  # it may not be over
            if branches[step].keys() != branches[0].keys():
                here, first = (" and ".join(branches[at]) for at in (step, 0))
                return None if second is not None and step == second.begin else (step, here, first)
        return None
