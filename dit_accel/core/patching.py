"""Wrap the calls and attributes of live objects, and restore them exactly.

An object and a factory come in; the object is changed until `undo`. Only instances are changed,
never classes.

Calls of a module are wrapped at `torch.nn.Module._compiled_call_impl`, because `Module.__call__`
looks there first. Offloading, casting and other caches replace `forward`, which is called below
this place; compiled code is below it too. So they can be added and removed before and after us, and
a call that we skip skips them as well. PyTorch does not copy the attribute, so a copied module has
no wrapper. research/LOG.md has the alternatives. Source: ours.
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

    `active` returns whether the current call of a transformer comes from the handle's pipeline. If
    another pipeline uses the same transformer, its calls bypass our wrappers.
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
            module: may be compiled, also by `torch.compile(module)`.
            make: gets `inner`, which does what the module would do at that moment without us.
            callers: the modules that contain this one. If one of them is compiled, now or later,
                the compiler traces only `forward`; so the wrapper moves there.

        Raises:
            RuntimeError: dit_accel has already wrapped this module.
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
        """A replacement for `module.compile` that compiles the module below our wrapper."""

        def compile_below(*args: Any, **kwargs: Any) -> None:
            hook.compile(*args, **kwargs)
            self.settle()

        return compile_below

    def settle(self) -> None:
        """Restore the order of the wrappers after somebody compiled a module or a caller of it."""
        for hook in self._hooks:
            hook.stand()
        for hook in [one for one in self._hooks if any(map(is_compiled, one.callers))]:
            hook.remove()
            self._hooks.remove(hook)
            self._around_forward(hook.module, hook.make)

    def _around_forward(self, module: torch.nn.Module, make: Make) -> None:
        """Wrap `forward` instead: a compiler that traces the module's caller finds it there."""
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
            replaceable: whether users may assign values of their own there, which then stay.

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
        """Whether a user replaced one of our values by another one."""
        return any(one.replaceable and not one.stands for one in self._attributes)

    def __bool__(self) -> bool:
        """Whether something is patched."""
        return bool(self._hooks or self._attributes)

    def undo(self) -> None:
        """Restore everything. A second call does nothing.

        If others have wrapped one of our attributes, their wrapper stays and bypasses ours.
        """
        for hook in self._hooks:
            hook.remove()
        for one in reversed(self._attributes):
            one.restore()
        self._hooks.clear()
        self._attributes.clear()


@dataclass(frozen=True, eq=False)
class _Attribute:
    """An attribute of an instance whose value `before` was replaced by `after`."""

    owner: Any
    name: str
    before: Any
    after: Any
    own: bool  # whether the instance itself had the attribute, and not only its class
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
    """Marks something as our patch; `stands` is False once the patch is removed.

    `functools.wraps` copies attributes, so somebody else's wrapper may have our mark after our
    patch is gone. In a pickled or deep copy the mark does not stand.
    """

    def __init__(self, stands: bool = False) -> None:
        self.stands = stands

    def __reduce__(self) -> tuple[Any, ...]:
        return Mark, ()


class CallHook:
    """Our wrapper around the calls of one module, until `remove`."""

    def __init__(
        self, module: torch.nn.Module, make: Make, callers: tuple[torch.nn.Module, ...]
    ) -> None:
        self.module, self.make, self.callers = module, make, callers
        self._compiled: Call | None = vars(module).get(_CALL)
        self._call = make(self.inner)
        # A compiled module forwards `setattr` to the module inside; `object.__setattr__` does not.
        object.__setattr__(module, _CALL, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def inner(self, *args: Any, **kwargs: Any) -> Any:
        """The module's call without us: compiled if the module is, and with the hooks of others."""
        call = self._compiled or self.module._call_impl
        return call(*args, **kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As `torch.nn.Module.compile`, but our wrapper stays around the compiled call."""
        self._compiled = torch.compile(self.module._call_impl, *args, **kwargs)

    def stand(self) -> None:
        """Wrap the call again, if somebody compiled the module without our `compile`."""
        there = vars(self.module).get(_CALL)
        if there is not self and not hasattr(there, "_dit_accel_patch"):
            self._compiled = there
            object.__setattr__(self.module, _CALL, self)

    def remove(self) -> None:
        """Restore the module. If it was compiled after we wrapped it, it stays compiled."""
        self.stand()
        if self._compiled is not None:
            object.__setattr__(self.module, _CALL, self._compiled)
        else:
            del vars(self.module)[_CALL]


def before_calls(module: torch.nn.Module, callback: Callable[[], None]) -> Callable[[], None]:
    """Call `callback` before every call of a module, outside of all wrappers that it has now.

    Returns:
        A function that removes the callback. Remove wrappers that were added later first.
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
    """The wrapper around a module's calls, without those of `before_calls`; None: there is none."""
    call: Any = vars(module).get(_CALL)
    while hasattr(call, "_above"):
        call = call._above
    return call


class Replacement:
    """A function in place of a method. A copy or a pickle of it is the method of the copied owner.

    `function` can be exchanged. So `undo` also works inside of wrappers that others have made.
    """

    def __init__(self, owner: Any, name: str, function: Call) -> None:
        # Do not copy the function's attributes. One of them excludes it from compilation; others'
        # wrappers would copy it from us, and would not be compiled either.
        update_wrapper(self, function, updated=())
        self._owner, self._name, self.function = owner, name, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._owner, self._name)


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether calls of this module run as a graph, without calls of the modules inside."""
    hook, inside = hook_of(module), uncompiled(module)
    compiled = _call_of(module) if hook is None else hook._compiled
    forward = vars(inside).get("forward")  # may be a compiled function, or one that is excluded
    graph = hasattr(forward, "_torchdynamo_orig_callable")
    graph = graph and not getattr(forward, "_torchdynamo_disable", False)
    return compiled is not None or inside is not module or graph


def hook_of(module: Any) -> CallHook | None:
    """Our hook around a module's calls; None: there is none."""
    hook = _call_of(module)
    return hook if isinstance(hook, CallHook) else None


def is_patched(owner: Any, name: str) -> bool:
    """Whether the attribute is currently a patch of dit_accel."""
    mark = getattr(vars(owner).get(name), "_dit_accel_patch", None)
    return mark is not None and mark.stands


def _twice(owner: Any, name: str) -> str:
    kind = type(uncompiled(owner)).__name__
    return (
        f"{kind}.{name} is accelerated already; call remove() on the earlier handle first. It may "
        "be of another pipeline that shares this module"
    )
