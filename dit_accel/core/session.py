"""Which run, step, branch and role a forward of the transformer belongs to.

Where the pipeline enters `transformer.cache_context(name, step_index=...)`, the branch is that name
and the step that index (diffusers >= 0.36 gives the index for Wan, 0.35 the name only). Else the
step is the position of the `timestep` argument among the scheduler's timesteps, and the branch is
told by which text embedding is passed. Call parity is never used: it breaks without guidance.

A new run begins when a step comes back: an earlier one, or one whose forward was already seen. So
an aborted run leaves nothing behind for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch.utils._pytree import tree_map_only

from dit_accel.core.patching import Patches


class Observer(Protocol):
    """What wants to be told about a run."""

    def run_begins(self, total: int | None) -> None: ...

    def step_begins(self, step: int) -> None: ...

    def forward_ends(self, transformer: str) -> None: ...


def _compute(forward: Callable[[], Any]) -> Any:
    return forward()


def _call(name: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    return forward(*args, **kwargs)


def _never(step: int) -> bool:
    return False


class Session:
    """Where a pipeline is: `step`, `total`, `branch`, `role`; told to the observers in order.

    `answer` makes the output of each forward from the call of what is wrapped, which it may leave;
    `carry` makes that call, by the transformer's name, and may change what it is given. `changes`
    says whether the denoiser itself is another one from a step on, which is computed then.
    """

    def __init__(self, pipe: Any, transformers: dict[str, torch.nn.Module]) -> None:
        self.pipe = pipe
        self.transformers = transformers
        self.observers: list[Observer] = []
        self.answer: Callable[[Callable[[], Any]], Any] = _compute
        self.carry: Callable[[str, Callable[..., Any], Any, Any], Any] = _call
        self.changes: Callable[[int], bool] = _never
        self.inputs: dict[tuple[str, str], tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.role = "target"
        self.transformer = ""  # the name of the one that is running
        self.latents: Any = None  # what it was given, while it runs
        self.text: Any = None
        self._context: tuple[str, int | None, int | None] | None = None
        self._forget()

    def install(self, patches: Patches) -> None:
        """Wrap `forward` and, where there is one, `cache_context` of every transformer."""
        for name, module in self.transformers.items():
            if hasattr(module, "cache_context"):
                patches.wrap(module, "cache_context", self._wrap_context)
            patches.wrap(module, "forward", partial(self._wrap_forward, name))

    def _forget(self) -> None:
        self.step, self.branch = -1, ""
        self.num_steps: int | None = None
        self._seen: set[tuple[str, str]] = set()
        self._texts: list[int] = []
        self._times: list[float] = []
        self._located: tuple[Any, ...] = None, None, 0, []
        self.inputs.clear()

    @property
    def time(self) -> float:
        """The scheduler's timestep of this step; all of a run are read from the device at once."""
        return self.time_of(self.step)

    def time_of(self, step: int) -> float:
        """The scheduler's timestep of a step."""
        if not self._times:
            self._times = self.pipe.scheduler.timesteps.flatten().tolist()
        return self._times[step]

    def _wrap_context(self, inner: Any) -> Any:
        @contextmanager
        def cache_context(name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
            before = self._context
            self._context = (name, kwargs.get("step_index"), kwargs.get("num_inference_steps"))
            try:
                with inner(name, *args, **kwargs):
                    yield
            finally:
                self._context = before

        return cache_context

    def _wrap_forward(self, name: str, inner: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self.latents = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            self.text = kwargs.get("encoder_hidden_states")
            self._enter(name, args, kwargs)
            output = self.answer(partial(self.carry, name, inner, args, kwargs))
            self.latents = self.text = None
            for observer in self.observers:
                observer.forward_ends(name)
            return output

        return outside_graphs(forward)

    def _enter(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        context, index, total = self._context or (None, None, None)
        timesteps = self.pipe.scheduler.timesteps
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        branch = context or self._branch_of(kwargs.get("encoder_hidden_states"))
        step = self._which(self._positions(timestep), name, branch) if index is None else index
        again = step == self.step and (name, branch) in self._seen
        if again or step < self.step or self.step < 0:
            self._forget()
            self.num_steps = len(timesteps) if total is None else total
            for observer in self.observers:
                observer.run_begins(self.num_steps)
        if context is None:  # after _forget: the texts of a new run are numbered afresh
            branch = self._branch_of(kwargs.get("encoder_hidden_states"))
        if step != self.step:
            self.step, self._seen = step, set()
            for observer in self.observers:
                observer.step_begins(step)
        self.branch, self.transformer = branch, name
        self._seen.add((name, branch))
        if (name, branch) not in self.inputs:
            self.inputs[name, branch] = tree_map_only(torch.Tensor, _shape_of, (args, kwargs))

    def _positions(self, timestep: torch.Tensor) -> list[int]:
        """As `positions`; a tensor that a step's forwards share is read from the device once."""
        timesteps = self.pipe.scheduler.timesteps
        written = 0 if timestep.is_inference() else timestep._version
        seen, schedule, version, found = self._located
        if seen is not timestep or schedule is not timesteps or version != written:
            found = positions(timestep, timesteps)
            self._located = timestep, timesteps, written, found
        return found

    def _which(self, steps: list[int], name: str, branch: str) -> int:
        """Of several steps with the same rounded timestep, the one that comes next."""
        if len(steps) == 1 or getattr(self.pipe.scheduler, "step_index", 0) is None:
            return steps[0]  # the scheduler has not stepped yet: it is the run's first
        if self.step in steps and (name, branch) not in self._seen:
            return self.step
        return next((step for step in steps if step > self.step), steps[0])

    def _branch_of(self, text: torch.Tensor | None) -> str:
        """Name of a text embedding that stays the same over a run: diffusers runs cond first."""
        key = 0 if text is None else text.data_ptr()
        if key not in self._texts:
            self._texts.append(key)
        index = self._texts.index(key)
        return ("cond", "uncond")[index] if index < 2 else f"branch{index}"


def outside_graphs(forward: Any) -> Any:
    """Keep torch.compile from tracing our bookkeeping; what is wrapped is still compiled."""
    return torch.compiler.disable(forward, recursive=False)  # type: ignore[no-untyped-call]


def _shape_of(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="meta")


def positions(timestep: torch.Tensor, timesteps: torch.Tensor) -> list[int]:
    """0-based steps that a forward's timestep may be of, among the scheduler's.

    A timestep that is a view of the schedule (as diffusers' pipelines pass it) is located by its
    place in memory, without reading the device; any other by its value, as its dtype rounds it:
    bfloat16 has one number for 994 and 997, so that there can be several.

    Args:
        timestep: any shape; all elements equal, or zero where a frame is given (Wan 2.2 TI2V).
        timesteps: shape (steps,).

    Raises:
        ValueError: the value is not in the schedule.
    """
    if timestep.untyped_storage().data_ptr() == timesteps.untyped_storage().data_ptr():
        return [
            int((timestep.storage_offset() - timesteps.storage_offset()) // timesteps.stride(0))
        ]
    value = timestep.max().to(timesteps.device)
    schedule = timesteps.to(value.dtype).float()
    *gaps, now = torch.cat([(schedule - value).abs(), value.float()[None]]).tolist()
    if min(gaps) > 1e-3 * max(1.0, abs(now)):
        raise ValueError(
            f"timestep {now:g} is not one of the scheduler's {len(timesteps)} timesteps"
        )
    return [step for step, gap in enumerate(gaps) if gap == min(gaps)]
