"""Begins a run at a later step: earlier steps are replayed from a recorded run, and not computed.

In: a pipeline, and the guided prediction of each step that is replayed. Out: the pipeline's own
run, in which the forward passes of these steps return the recorded predictions. Step 0 is still
computed, because its output shows the form that a forward pass returns.
Knows a session's forward passes. Every branch of guidance returns the guided prediction, so c = u.
Then u + s (c - u) is that prediction for any guidance scale s.
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

Recorded = Callable[[int], torch.Tensor]  # step -> guided prediction `(P, N)`


class Replay(Interceptor):
    """Returns recorded predictions in place of the forward passes of steps 1 to `last`.

    Args:
        session: the session whose forward passes are replaced.
        recorded: returns the guided prediction of a step, `(P, N)`.
        last: the last step that is replayed.

    Results: `computed`, the steps at which a forward pass was computed.
    """

    def __init__(self, session: Session, recorded: Recorded, last: int) -> None:
        self._session, self._recorded, self._last = session, recorded, last
        self._forms: dict[str, tuple[Form, torch.Tensor]] = {}  # at step 0, by branch
        self.computed: set[int] = set()

    def around(self, call: ForwardCall, forward: Forward) -> Any:
        """The recorded prediction, in the form that this branch's output had at step 0."""
        step, branch = self._session.step, self._session.branch
        if 0 < step <= self._last and branch in self._forms:
            form, like = self._forms[branch]
            rows = self._recorded(step)
            if like.numel() % rows.numel() == 0:  # false if the output has sound beside the video
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
    """Replay steps 1 to `last` of the run that is made inside this context."""
    patches, session = Patches(), Session(pipe, transformers_of(pipe, family_of(pipe)))
    replay = Replay(session, recorded, last)
    session.interceptors = [replay]
    try:
        session.install(patches)
        yield replay
    finally:
        patches.undo()
