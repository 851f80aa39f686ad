"""Finds out which run, step, branch and role a forward of the transformer belongs to.

Goes in: the calls of a pipeline's transformers. Comes out: `Session`, which has the current run,
step, branch and role, and passes every call through its interceptors.

If the pipeline enters `transformer.cache_context(name, step_index=...)`, the step and the branch
come from there (diffusers >= 0.36 gives the index for Wan, 0.35 only the name). Otherwise the step
is the position of the `timestep` argument in the scheduler's timesteps, and the text embedding
identifies the branch. Call parity is never used: it breaks without guidance.

A run is one denoising loop. It may begin after the first timestep, and end before the last one. One
call of a pipeline may have several runs. The module knows no cache. Ours; there is no source.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from dit_accel.core.compiling import FULLGRAPH, is_refused_break, parameters_of
from dit_accel.core.interceptor import Forward, ForwardCall, Interceptor, RunInfo
from dit_accel.core.patching import Patches
from dit_accel.core.pipeline_calls import calling_pipeline, marks_of_calls, notifying
from dit_accel.core.places import Positions, Texts, are_unset, boundary_of, next_position
from dit_accel.core.private_names import parallel_group, second_guidance

_TWO_THREADS = "pipe was called in two threads at once; accepted: a pipeline for each thread"


class Session:
    """The position of a pipeline in its run: `step`, `num_steps`, `branch` and `role`.

    The `interceptors` are notified in order. For a forward, the first one is the outermost.
    """

    def __init__(self, pipe: Any, transformers: dict[str, torch.nn.Module]) -> None:
        self.pipe, self.transformers = pipe, transformers
        self.interceptors: list[Interceptor] = []
        self.on_call: Callable[[], None] = lambda: None  # called when a pipeline call begins
        self.inputs: dict[tuple[str, str], tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.role = "target"
        self.transformer = ""  # the name of the last one that was called
        # The device of the last forward's latents. That of the weights changes with offloading.
        self.device = torch.device("cpu")
        self.latents: Any = None  # of the forward, while it runs
        self.text: Any = None
        self.calls = 0  # of the pipeline; counted up when a call begins, and when it ends
        self._call_of_run = -1
        self._knows_calls = False  # whether calls are seen; else every run counts as a call
        self._in_call = False  # whether the pipeline calls the transformer, and not a user
        self.branch_group: Any = None  # the process group whose ranks compute one branch each
        self.unused = 0  # timesteps at the end of the schedule that the pipeline leaves out
        # By thread, because a pipeline that shares the transformer may run in another thread.
        self._contexts: dict[int, tuple[str, int | None] | None] = {}
        self._thread: int | None = None  # the thread of the run
        self._running: int | None = None  # the thread of the forward that is running, if any
        self._caller: int | None = None  # the thread of the pipeline's last call, if known
        self._reset()

    def install(self, patches: Patches) -> None:
        """Wrap `forward` and, where there is one, `cache_context` of every transformer.

        Raises:
            ValueError: context parallelism is on without a plan.
        """
        _ = self.groups
        for name, module in self.transformers.items():
            if hasattr(module, "cache_context"):
                patches.wrap(module, "cache_context", self._wrap_context)
            patches.around(module, partial(self._wrap_forward, name))
        first, last = marks_of_calls(self.pipe)
        self._knows_calls = bool(last)
        for name in first:
            patches.wrap(self.pipe, name, partial(notifying, self.pipe, self._call_begins))
        for name in last:
            patches.wrap(self.pipe, name, partial(notifying, self.pipe, self._call_ends))

    def is_active(self) -> bool:
        """Whether this thread is in a forward of this pipeline, and not of another pipeline."""
        return self._running == threading.get_ident()

    @property
    def is_elsewhere(self) -> bool:
        """Whether a run is going on in another thread."""
        over = self._running is None and self.steps_ran == self.num_steps
        return self._thread not in (None, threading.get_ident()) and not over

    def adopt(self, transformers: dict[str, torch.nn.Module]) -> None:
        """Forget the last run, because the pipeline has other transformers now."""
        self.transformers = transformers
        self._reset()

    def _reset(self) -> None:
        self.step, self.branch = -1, ""
        self.num_steps: int | None = None
        self._begin = 0  # position of the first step in the schedule
        self._is_named = False  # whether the run's last forward was in a `cache_context`
        self._schedule: torch.Tensor | None = None  # the scheduler's timesteps
        self._seen: set[tuple[str, str]] = set()  # this step's forwards: transformer and branch
        self._index: int | None = None  # the scheduler's count at the last forward
        self._texts = Texts()
        self._times: list[float] = []
        self._positions = Positions()
        self.inputs.clear()

    @property
    def steps_ran(self) -> int:
        """The number of steps that this run has made up to now."""
        return self.step + 1

    @property
    def time(self) -> float:
        """The scheduler's timestep of this step."""
        return self.time_of(self.step)

    def time_of(self, step: int) -> float:
        """The scheduler's timestep of a step. The first call reads all of a run from the device."""
        if not self._times:
            self._times = self.pipe.scheduler.timesteps.flatten().tolist()
        return self._times[self._begin + step]

    @property
    def guidance(self) -> float | None:
        """Scale of classifier-free guidance; 1: no guidance; None: the pipeline does not report
        it."""
        scale = getattr(self.pipe, "guidance_scale", None)
        return None if scale is None else float(scale or 1.0)

    @property
    def run(self) -> RunInfo:
        """What is known about the run when its first forward is called."""
        second = self._second_expert()
        return RunInfo(
            self.num_steps, self.guidance, self.latents, self.text, self._begin, second, self.groups
        )

    def _second_expert(self) -> tuple[int, float | None] | None:
        """The first step of the second transformer, and the guidance from there on."""
        boundary = boundary_of(self.pipe)
        if boundary is None or not self.num_steps:
            return None
        begin = sum(self.time_of(step) >= boundary for step in range(self.num_steps))
        there = second_guidance(self.pipe)
        found = begin, self.guidance if there is None else there
        return found if 0 < begin < self.num_steps else None

    @property
    def groups(self) -> tuple[Any, ...]:
        """The process groups whose ranks compute a run together, by diffusers' current settings.

        Raises:
            ValueError: context parallelism is on without a plan.
        """
        found = [*map(parallel_group, self.transformers.values()), self.branch_group]
        return tuple(dict.fromkeys(group for group in found if group is not None))

    def changes_denoiser(self, step: int) -> bool:
        """Whether an interceptor changes what the denoiser computes from this step on."""
        return any(one.changes_denoiser(step) for one in self.interceptors)

    def _wrap_context(self, inner: Any) -> Any:
        @contextmanager
        def cache_context(name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
            thread = threading.get_ident()
            before = self._contexts.get(thread)
            self._contexts[thread] = (name, kwargs.get("step_index"))
            try:
                with inner(name, *args, **kwargs):
                    yield
            finally:
                self._contexts[thread] = before

        return cache_context

    def _wrap_forward(self, name: str, inner: Any) -> Any:
        names = parameters_of(self.transformers[name])

        def stock(call: ForwardCall) -> Any:
            try:
                return inner(*call.args, **call.kwargs)
            except RuntimeError as error:
                if is_refused_break(error):
                    raise RuntimeError(FULLGRAPH) from error
                raise

        def forward(*args: Any, **kwargs: Any) -> Any:
            caller, in_callback = calling_pipeline()
            if in_callback or caller not in (None, self.pipe):
                return inner(*args, **kwargs)  # a user's call, or another pipeline's
            self._in_call = caller is not None
            call, thread = ForwardCall(name, args, kwargs, names), threading.get_ident()
            if self._running not in (None, thread):
                raise RuntimeError(_TWO_THREADS)
            if self._is_stray(call):
                return inner(*args, **kwargs)
            if not isinstance(call.latents, torch.Tensor):
                raise ValueError(
                    f"{name} is called without a tensor of latents; accepted: hidden_states, or a "
                    "tensor as the first argument"
                )
            self._running = thread
            try:
                self.latents, self.text = call.latents, call.text
                self.device = self.latents.device
                self._enter(call)
                output = self._chain(stock)(call)
            finally:
                self.latents = self.text = self._running = None
            if self.num_steps is None or self.step == self.num_steps - 1:
                for interceptor in self.interceptors:
                    interceptor.forward_ends(name)
            return output

        return forward

    @property
    def _context(self) -> tuple[str, int | None] | None:
        """The `cache_context` of this thread: its name, and the step's index if it is given."""
        return self._contexts.get(threading.get_ident())

    def _is_stray(self, call: ForwardCall) -> bool:
        """Whether a forward belongs to no step of a run: somebody else calls the transformer.

        Within a call of the pipeline, that is a forward without a `cache_context`, if the run's
        last forward had one. Outside of a call, the scheduler has no steps yet, or the forward is
        after its last step.
        """
        schedule = self.pipe.scheduler.timesteps
        if self._in_call:
            unnamed = self._is_named and self._context is None
            return unnamed and schedule is self._schedule
        return are_unset(self.pipe.scheduler) or (
            min(self._positions.of(call.timestep, self.pipe.scheduler)) >= len(schedule)
        )

    def _chain(self, stock: Forward) -> Forward:
        """The stock forward with all interceptors around it."""
        forward = stock
        for interceptor in reversed(self.interceptors):
            forward = partial(interceptor.around, forward=forward)
        return forward

    def _call_begins(self) -> None:
        self.calls += 1
        self._caller = threading.get_ident()
        self.on_call()

    def _call_ends(self) -> None:
        if not getattr(self.pipe, "interrupt", False):
            self._run_ends()
        self.calls += 1

    def _run_ends(self) -> None:
        """A run is over: the pipeline does not use the rest of the schedule."""
        if self.num_steps is None or self.step < 0:
            return
        self.unused += max(self.num_steps - self.steps_ran, 0)
        self.num_steps = self.steps_ran
        for interceptor in self.interceptors:
            interceptor.run_ends(self.steps_ran)

    def _enter(self, call: ForwardCall) -> None:
        """Find the step and the branch of a forward, and begin a run or a step if it is the first.

        A run begins when the timesteps were set again, when the step is an earlier one, or when
        this step already had the same forward. So an aborted run does not affect the next one.
        """
        context, index = self._context or (None, None)
        schedule = self.pipe.scheduler.timesteps
        other = schedule is not self._schedule  # every `set_timesteps` makes a new tensor
        branch = context or self._texts.branch_of(call.text)
        position = self._position_of(call, branch, index, other=other)
        step = position - self._begin
        again = step == self.step and (call.transformer, branch) in self._seen
        if again and not other and context is None and self._is_further():
            branch, again = self._further_name(call.transformer, branch), False
        begins = other or again or step < self.step or self.step < 0
        thread = threading.get_ident()
        # A pipeline may set its timesteps again at its end, which looks like a new run.
        is_older = self._in_call and self._caller not in (None, thread)
        is_ours = self._thread in (None, thread) or (begins and (other or step == 0))
        if is_older or not is_ours:
            raise RuntimeError(_TWO_THREADS)
        if begins:
            step = index or 0
            self._begin_run(call, position - step)
        self._is_named = context is not None
        if context is None and begins:  # the new run has reset the texts
            branch = self._texts.branch_of(call.text)
        if step != self.step:
            self._next_step(step)
        self._index = getattr(self.pipe.scheduler, "step_index", None)
        self.branch, self.transformer = branch, call.transformer
        self._seen.add((call.transformer, branch))
        if (call.transformer, branch) not in self.inputs:
            shapes = tree_map_only(torch.Tensor, _shape_of, (call.args, call.kwargs))
            self.inputs[call.transformer, branch] = shapes

    def _is_further(self) -> bool:
        """Whether a forward that this step had already is another one of the step: some guiders
        call the transformer again with the same text, and change something inside. The scheduler
        has made no step since the last forward then."""
        index = getattr(self.pipe.scheduler, "step_index", None)
        return self._in_call and (self.num_steps or 0) > 1 and index == self._index

    def _further_name(self, transformer: str, branch: str) -> str:
        """The name of a further forward with the text of a branch: `cond2`."""
        number = 2
        while (transformer, f"{branch}{number}") in self._seen:
            number += 1
        return f"{branch}{number}"

    def _begin_run(self, call: ForwardCall, begin: int) -> None:
        self.calls += not (self._knows_calls and self._in_call)
        # A further loop of the same call: the last one is over, although it may lack one step.
        if self.calls == self._call_of_run and self.steps_ran >= (self.num_steps or 0) - 1:
            self._run_ends()
        self._call_of_run = self.calls
        for interceptor in self.interceptors:
            interceptor.run_follows()
        self._reset()
        schedule = self.pipe.scheduler.timesteps
        self._thread, self._schedule, self._begin = threading.get_ident(), schedule, begin
        self.num_steps = len(schedule) - begin - self.unused
        self.transformer = call.transformer
        for interceptor in self.interceptors:
            interceptor.run_begins(self.num_steps)

    def _next_step(self, step: int) -> None:
        self.step, self._seen = step, set()
        # The pipeline uses the timesteps that an earlier run left out.
        if self.num_steps is not None and step >= self.num_steps:
            self.num_steps, self.unused = step + 1, 0
        for interceptor in self.interceptors:
            interceptor.step_begins(step)

    def _position_of(
        self, call: ForwardCall, branch: str, index: int | None, *, other: bool
    ) -> int:
        """The position of a forward in the scheduler's timesteps.

        Args:
            index: the step's index from the `cache_context`, counted from the run's first step.
            other: whether the timesteps were set again since the last forward.
        """
        if index is not None and not other and self.step >= 0:
            return self._begin + index
        found = self._positions.of(call.timestep, self.pipe.scheduler)
        seen = (call.transformer, branch) in self._seen
        return next_position(found, self.pipe.scheduler, self._begin + self.step, seen=seen)


def _shape_of(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="meta")
