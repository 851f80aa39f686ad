"""Stand around calls and attributes of live objects, and restore them exactly.

An object and a factory come in; the object is changed until `undo`. Only instances are changed,
never classes. A call is taken at `torch.nn.Module._compiled_call_impl`, which `Module.__call__`
looks at first. Offloading, casting and other caches replace `forward`, which lies below, as
compilation does: they may come and go before and after us, and a skipped call skips them. PyTorch
leaves the attribute out of copies. research/LOG.md has the alternatives. Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, update_wrapper
from types import FunctionType
from typing import Any

import torch

from dit_accel.core.compiling import outside_graphs, uncompiled

Call = Callable[..., Any]
Make = Callable[[Call], Call]
_CALL = "_compiled_call_impl"


class Patches:
    """The patches of one handle.

    `active` says whether calls inside a transformer are the handle's now: those that another
    pipeline makes, with the same transformer, pass ours by.
    """

    def __init__(self, active: Callable[[], bool] = lambda: True) -> None:
        self.active = active
        self._hooks: list[CallHook] = []
        self._attributes: list[_Attribute] = []

    def around(
        self, module: torch.nn.Module, make: Make, *, callers: tuple[torch.nn.Module, ...] = ()
    ) -> None:
        """Call `make(inner)` in place of a module's call, on this instance only.

        Args:
            module: also one that `torch.compile(module)` returned.
            make: gets `inner`, which does what the module would do without us at that moment.
            callers: the modules that this one is inside of. Where one of them is compiled, now or
                later, the compiler does not look at our place, but at `forward`.

        Raises:
            RuntimeError: dit_accel stands around this module already.
        """
        if hook_of(module) is not None or is_patched(module, "forward"):
            raise RuntimeError(_twice(module, "forward"))
        if callers:
            make = partial(self._gated, make)
        if any(map(is_compiled, callers)):
            self._around_forward(module, make)
            return
        hook = CallHook(module, make, callers)
        self._hooks.append(hook)
        self.wrap(module, "compile", partial(self._compile, hook))

    def _compile(self, hook: CallHook, _: Call) -> Call:
        """A `module.compile` that compiles what is below us."""

        def compile_below(*args: Any, **kwargs: Any) -> None:
            hook.compile(*args, **kwargs)
            self.settle()

        return compile_below

    def settle(self) -> None:
        """Stand where we stood, after somebody compiled a module or a caller of it."""
        for hook in self._hooks:
            hook.stand()
        for hook in [one for one in self._hooks if any(map(is_compiled, one.callers))]:
            hook.remove()
            self._hooks.remove(hook)
            self._around_forward(hook.module, hook.make)

    def _around_forward(self, module: torch.nn.Module, make: Make) -> None:
        """At `forward`: there a compiler finds us that traces the module's caller."""
        self.wrap(module, "forward", lambda inner: outside_graphs(make(inner)))

    def _gated(self, make: Make, inner: Call) -> Call:
        ours = make(inner)

        def call(*args: Any, **kwargs: Any) -> Any:
            return (ours if self.active() else inner)(*args, **kwargs)

        return call

    def wrap(
        self, owner: Any, name: str, make: Callable[[Any], Any], *, replaceable: bool = False
    ) -> None:
        """Replace `owner.name` by `make(old value)`, on this instance only.

        Args:
            replaceable: whether users put values of their own there: those stay.

        Raises:
            RuntimeError: dit_accel has patched this attribute already.
        """
        owner = uncompiled(owner)
        if is_patched(owner, name):
            raise RuntimeError(_twice(owner, name))
        before = getattr(owner, name)
        after = make(before)
        if isinstance(after, FunctionType):
            after = Replacement(owner, name, after)
        mark = after._dit_accel_patch = Mark(stands=True)
        own = name in vars(owner)
        self._attributes.append(_Attribute(owner, name, before, after, own, replaceable, mark))
        setattr(owner, name, after)

    @property
    def replaced(self) -> bool:
        """Whether a user put another value in the place of one of ours."""
        return any(one.replaceable and not one.stands for one in self._attributes)

    def __bool__(self) -> bool:
        """Whether something is patched."""
        return bool(self._hooks or self._attributes)

    def undo(self) -> None:
        """Restore everything; a second call does nothing. What others wrapped over one of our
        attributes stays, and passes ours by."""
        for hook in self._hooks:
            hook.remove()
        for one in reversed(self._attributes):
            one.restore()
        self._hooks.clear()
        self._attributes.clear()


@dataclass(frozen=True, eq=False)
class _Attribute:
    """An attribute of an instance that was replaced, `before` by `after`."""

    owner: Any
    name: str
    before: Any
    after: Any
    own: bool  # whether the instance had one itself, and not from its class
    replaceable: bool
    mark: Mark

    @property
    def stands(self) -> bool:
        return vars(self.owner).get(self.name) is self.after

    def restore(self) -> None:
        self.mark.stands = False
        if isinstance(self.after, Replacement):
            self.after.function = self.before
        if not self.stands:
            return
        if self.own:
            setattr(self.owner, self.name, self.before)
        else:
            delattr(self.owner, self.name)


class Mark:
    """Says that something is a patch of ours, while it `stands`. What wraps a function takes its
    attributes over, so the mark outlives it there. In a copy nothing of ours stands."""

    def __init__(self, stands: bool = False) -> None:
        self.stands = stands

    def __reduce__(self) -> tuple[Any, ...]:
        return Mark, ()


class CallHook:
    """What stands around the calls of one module, until `remove`."""

    def __init__(
        self, module: torch.nn.Module, make: Make, callers: tuple[torch.nn.Module, ...]
    ) -> None:
        self.module, self.make, self.callers = module, make, callers
        self._compiled: Call | None = vars(module).get(_CALL)
        self._call = make(self.inner)
        # A compiled module passes attributes on to the one that it compiled, but not this way.
        object.__setattr__(module, _CALL, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def inner(self, *args: Any, **kwargs: Any) -> Any:
        """The module's call without us: compiled where it is, with everybody's hooks."""
        call = self._compiled or self.module._call_impl
        return call(*args, **kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As `torch.nn.Module.compile`, but we stay where we stand: around the compiled call."""
        self._compiled = torch.compile(self.module._call_impl, *args, **kwargs)

    def stand(self) -> None:
        """Stand around the call again, where somebody compiled the module past our `compile`."""
        there = vars(self.module).get(_CALL)
        if there is not self and not hasattr(there, "_dit_accel_patch"):
            self._compiled = there
            object.__setattr__(self.module, _CALL, self)

    def remove(self) -> None:
        """Leave the module as if we had never been there, compiled where it was since."""
        self.stand()
        if self._compiled is not None:
            object.__setattr__(self.module, _CALL, self._compiled)
        else:
            del vars(self.module)[_CALL]


def before_calls(module: torch.nn.Module, callback: Callable[[], None]) -> Callable[[], None]:
    """Call back before every call of a module, above all that stands around it now.

    Returns:
        What takes it off again: before anything that was put on later.
    """
    above = vars(module).get(_CALL)

    def call(*args: Any, **kwargs: Any) -> Any:
        callback()
        return (above or module._call_impl)(*args, **kwargs)

    def remove() -> None:
        if above is None:
            del vars(module)[_CALL]
        else:
            object.__setattr__(module, _CALL, above)

    call._dit_accel_patch = Mark(stands=True)  # type: ignore[attr-defined]
    call._above = above  # type: ignore[attr-defined]
    object.__setattr__(module, _CALL, call)
    return remove


def _call_of(module: torch.nn.Module) -> Any:
    """What stands around a module's calls below those that only wait for them; None: nothing."""
    call: Any = vars(module).get(_CALL)
    while hasattr(call, "_above"):
        call = call._above
    return call


class Replacement:
    """A function in place of a method, which copies and pickles as that method of the copy.

    `function` may be exchanged: others may keep this object, wrapped in theirs.
    """

    def __init__(self, owner: Any, name: str, function: Call) -> None:
        # Without its attributes: by them a compiler would leave out what wraps us, as it does ours.
        update_wrapper(self, function, updated=())
        self._owner, self._name, self.function = owner, name, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._owner, self._name)


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether calls of this module run as one graph, so that its own modules are not called."""
    hook, inside = hook_of(module), uncompiled(module)
    compiled = _call_of(module) if hook is None else hook._compiled
    forward = vars(inside).get("forward")  # assigned compiled, or excluded from it
    graph = hasattr(forward, "_torchdynamo_orig_callable")
    graph = graph and not getattr(forward, "_torchdynamo_disable", False)
    return compiled is not None or inside is not module or graph


def hook_of(module: Any) -> CallHook | None:
    """Our hook around a module's calls; None where there is none."""
    hook = _call_of(module)
    return hook if isinstance(hook, CallHook) else None


def is_patched(owner: Any, name: str) -> bool:
    """Whether the attribute is one of dit_accel's patches now."""
    mark = getattr(vars(owner).get(name), "_dit_accel_patch", None)
    return mark is not None and mark.stands


def _twice(owner: Any, name: str) -> str:
    kind = type(uncompiled(owner)).__name__
    return (
        f"{kind}.{name} is accelerated already; call remove() on its handle first, which a "
        "pipeline that shares it may have"
    )
