"""Begins a run at a later step: the first ones are replayed from a recorded run, and not computed.

In: a pipeline, and the guided prediction of each step to be replayed. Out: the pipeline's own run,
in which the forwards of these steps return what was recorded. Step 0 is computed all the same: its
output shows the form that a forward returns.
Knows a session's forwards. Every branch of guidance returns the guided prediction: whatever scale s
they are weighed with, u + s (c - u) is that prediction where c = u.
Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dit_accel.caching.outputs import Form, taken
from dit_accel.core.families import family_of, transformers_of
from dit_accel.core.interceptor import Forward, ForwardCall, Interceptor
from dit_accel.core.patching import Patches
from dit_accel.core.session import Session

Recorded = Callable[[int], torch.Tensor]  # of a step: `(P, N)`


class Replay(Interceptor):
    """Answers the forwards of steps 1 to `last`.

    Args:
        session: whose forwards they are.
        recorded: the guided prediction of a step, `(P, N)`.
        last: the last step that is replayed.

    Results: `computed`, the steps that a forward was computed at.
    """

    def __init__(self, session: Session, recorded: Recorded, last: int) -> None:
        self._session, self._recorded, self._last = session, recorded, last
        self._forms: dict[str, tuple[Form, torch.Tensor]] = {}  # at step 0, by branch
        self.computed: set[int] = set()

    def around(self, call: ForwardCall, forward: Forward) -> Any:
        """What was recorded, in the form that the same forward had at step 0."""
        step, branch = self._session.step, self._session.branch
        if 0 < step <= self._last and branch in self._forms:
            form, like = self._forms[branch]
            rows = self._recorded(step)
            if like.numel() % rows.numel() == 0:  # not where sound comes with the video
                both = rows.to(call.latents.device, like.dtype)
                return form.output(both.repeat(like.numel() // rows.numel(), 1).view(like.shape))
        self.computed.add(step)
        output = forward(call)
        if step == 0:
            value, form = taken(output)
            self._forms[branch] = form, value.to("meta")
        return output


@contextmanager
def replayed(pipe: Any, recorded: Recorded, last: int) -> Iterator[Replay]:
    """Steps 1 to `last` of the run in this context are replayed."""
    patches, session = Patches(), Session(pipe, transformers_of(pipe, family_of(pipe)))
    replay = Replay(session, recorded, last)
    session.interceptors = [replay]
    try:
        session.install(patches)
        yield replay
    finally:
        patches.undo()
