"""Stand around calls and attributes of live objects, and restore them exactly.

An object and a factory come in; the object is changed until `undo`. Only instances are changed,
never classes. A call is taken at `torch.nn.Module._compiled_call_impl`, which `Module.__call__`
looks at first. Offloading, casting and other caches replace `forward`, which lies below, as
compilation does: they may come and go before and after us, and a skipped call skips them. PyTorch
leaves the attribute out of copies. research/LOG.md has the alternatives. Source: ours.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial, update_wrapper
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch

Call = Callable[..., Any]
Make = Callable[[Call], Call]
_CALL = "_compiled_call_impl"
_PIPELINES = ("DiffusionPipeline", "ModularPipeline")


class Patches:
    """The patches of one handle.

    `active` says whether calls inside a transformer are the handle's now: those that another
    pipeline makes, with the same transformer, pass ours by.
    """

    def __init__(self, active: Callable[[], bool] = lambda: True) -> None:
        self.active = active
        self._hooks: list[CallHook] = []
        self._inside: list[tuple[torch.nn.Module, Make, tuple[torch.nn.Module, ...]]] = []
        self._attributes: list[tuple[Any, str, Any, bool, Any]] = []
        self._replaceable: list[tuple[Any, str, Any]] = []

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
            self._inside.append((module, make, callers))
        if any(map(is_compiled, callers)):
            self._around_forward(module, make)
            return
        hook = CallHook(module, make)
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
        for module, make, callers in self._inside:
            hook_ = hook_of(module)
            if hook_ is not None and any(map(is_compiled, callers)):
                hook_.remove()
                self._hooks.remove(hook_)
                self._around_forward(module, make)

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
        own = name in vars(owner)
        before = getattr(owner, name)
        after = make(before)
        if isinstance(after, FunctionType):
            after = _Replacement(owner, name, after)
        after._dit_accel_patch = True
        setattr(owner, name, after)
        self._attributes.append((owner, name, after, own, before))
        if replaceable:
            self._replaceable.append((owner, name, after))

    @property
    def replaced(self) -> bool:
        """Whether a user put another value in the place of one of ours."""
        return any(vars(owner).get(name) is not after for owner, name, after in self._replaceable)

    def __bool__(self) -> bool:
        """Whether something is patched."""
        return bool(self._hooks or self._attributes)

    def undo(self) -> None:
        """Restore everything; a second call does nothing.

        Raises:
            RuntimeError: one of our attributes was wrapped by something else; nothing is changed.
        """
        theirs = [at for at in self._replaceable if vars(at[0]).get(at[1]) is not at[2]]
        ours = [at for at in self._attributes if not any(at[2] is one[2] for one in theirs)]
        for owner, name, after, _, _ in ours:
            if vars(owner).get(name) is not after:
                raise RuntimeError(
                    f"{type(owner).__name__}.{name} was wrapped again after accelerate() "
                    "(by another library?); undo that first, then call remove()"
                )
        for hook in self._hooks:
            hook.remove()
        for owner, name, _, own, before in reversed(ours):
            if own:
                setattr(owner, name, before)
            else:
                delattr(owner, name)
        self._hooks.clear()
        self._inside.clear()
        self._attributes.clear()
        self._replaceable.clear()


class CallHook:
    """What stands around the calls of one module, until `remove`."""

    def __init__(self, module: torch.nn.Module, make: Make) -> None:
        self.module = module
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

    call._dit_accel_patch = True  # type: ignore[attr-defined]
    call._above = above  # type: ignore[attr-defined]
    object.__setattr__(module, _CALL, call)
    return remove


def _call_of(module: torch.nn.Module) -> Any:
    """What stands around a module's calls below those that only wait for them; None: nothing."""
    call: Any = vars(module).get(_CALL)
    while hasattr(call, "_above"):
        call = call._above
    return call


def calling_pipeline() -> Any:
    """The pipeline of diffusers whose call is running in this thread, the innermost; None: none.

    A transformer does not know who calls it, and pipelines share transformers.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__call__" and code.co_varnames[:1] == ("self",):
            owner = frame.f_locals["self"]
            if any(kind.__name__ in _PIPELINES for kind in type(owner).__mro__):
                return owner
        frame = frame.f_back
    return None


class _Replacement:
    """A function in place of a method, which copies and pickles as that method of the copy."""

    def __init__(self, owner: Any, name: str, function: Call) -> None:
        update_wrapper(self, function)
        self._owner, self._name, self._function = owner, name, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._owner, self._name)


def parallel_group(module: torch.nn.Module) -> Any:
    """The process group over which diffusers divides a model; None where it does not.

    Raises:
        ValueError: context parallelism was asked for, and the model has no plan for it. Diffusers
            refuses that too, but leaves every attention in parallel mode.
    """
    module = uncompiled(module)
    config: Any = getattr(module, "_parallel_config", None)
    parts = "context_parallel_config", "tensor_parallel_config"
    context, tensor = (getattr(config, part, None) for part in parts)
    if context is not None and not any(_split_hooks(inner) for inner in module.modules()):
        raise ValueError(
            f"{type(module).__name__} has a context-parallel config without a plan; accepted: "
            "enable_parallelism with cp_plan, or a model that diffusers has a plan of"
        )
    mesh = getattr(context, "_flattened_mesh", None) or getattr(tensor, "_mesh", None)
    return None if mesh is None else mesh.get_group()


def local_arguments(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments as the module's own forward gets them: this rank's part of the tokens.

    Diffusers splits them below us, inside the call; a call that is skipped has to split them too.
    """
    module = uncompiled(module)
    if hook_of(module) is None and not is_patched(module, "forward"):
        return args, kwargs  # diffusers' hook came later, at `forward`, and stands above ours
    for hook in _split_hooks(module):
        args, kwargs = hook.pre_forward(module, *args, **kwargs)
    return args, kwargs


def _split_hooks(module: torch.nn.Module) -> list[Any]:
    """The hooks of context parallelism that split a module's inputs or outputs."""
    registry = vars(module).get("_diffusers_hook")
    named = {} if registry is None else registry.hooks
    return [hook for name, hook in named.items() if name.startswith("cp_input")]


def weights_of(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by path, also those that accelerate keeps elsewhere between calls."""
    for path, owner in module.named_modules():
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None:
                yield f"{path}.{name}" if path else name, stored(owner, name, tensor)


def stored(owner: torch.nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A module's parameter or buffer; where it is on "meta", the one that accelerate keeps."""
    if tensor.device.type != "meta":
        return tensor
    hook = vars(owner).get("_hf_hook")
    maps = (getattr(one, "weights_map", None) for one in getattr(hook, "hooks", (hook,)))
    weights: Mapping[str, torch.Tensor] = next((one for one in maps if one is not None), {})
    return weights.get(name, tensor)


def outside_graphs(forward: Any) -> Any:
    """Keep torch.compile from tracing our bookkeeping; what is wrapped is still compiled."""
    return torch.compiler.disable(forward, recursive=False)  # type: ignore[no-untyped-call]


def is_refused_break(error: Exception) -> bool:
    """Whether the compiler found `outside_graphs` in a graph that must not break."""
    of_compiler = type(error).__module__ == "torch._dynamo.exc"  # not imported: it takes seconds
    return of_compiler and "torch.compiler.disable" in str(error)


def uncompiled(module: Any) -> Any:
    """The module that `torch.compile(module)` was given; any other object as it is."""
    return getattr(module, "__dict__", {}).get("_modules", {}).get("_orig_mod", module)


def uncompiled_path(path: str) -> str:
    """The path of a weight in the model that was compiled, as a whole or block by block."""
    return path.replace("_orig_mod.", "")


def parameters_of(module: Any) -> tuple[str, ...]:
    """The names of a module's arguments, in order, whatever stands at its `forward` now."""
    return tuple(inspect.signature(type(uncompiled(module)).forward).parameters)[1:]


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether calls of this module run as one graph, so that its own modules are not called."""
    hook, inside = hook_of(module), uncompiled(module)
    compiled = _call_of(module) if hook is None else hook._compiled
    forward = vars(inside).get("forward")  # assigned compiled, or excluded from it
    graph = hasattr(forward, "_torchdynamo_orig_callable")
    graph = graph and not getattr(forward, "_torchdynamo_disable", False)
    return compiled is not None or inside is not module or graph


def second_guidance(pipe: Any) -> float | None:
    """The scale of guidance of a pipeline's second transformer in this call; None: as the first."""
    scale = getattr(pipe, "_guidance_scale_2", None)
    return None if scale is None else float(scale)


def other_cache(module: Any) -> str | None:
    """The cache of another package that is on in a transformer, in words; None: there is none."""
    module = uncompiled(module)
    if getattr(module, "is_cache_enabled", False):
        return "a cache of diffusers on (enable_cache)"
    return "a cache of cache-dit on" if getattr(module, "_is_cached", False) else None


def marks_of_calls(pipe: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The methods that a pipeline's call uses first, and last, as its own code names them."""
    named = {name for code in _codes_of_calls(pipe) for name in code.co_names}
    marks = ("check_inputs",), ("maybe_free_model_hooks",)
    first, last = (tuple(name for name in names if name in named) for names in marks)
    return first, last


def notifying(pipe: Any, notify: Callable[[], None], inner: Call) -> Call:
    """A method that notifies where the pipeline's own call uses it, not a user."""
    codes = _codes_of_calls(pipe)

    def method(*args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        if frame.f_code is _Replacement.__call__.__code__ and frame.f_back is not None:
            frame = frame.f_back
        if frame.f_code in codes:
            notify()
        return inner(*args, **kwargs)

    return method


def _codes_of_calls(pipe: Any) -> list[CodeType]:
    """Of the pipeline's `__call__`, and of those that it inherits."""
    own = [vars(kind)["__call__"] for kind in type(pipe).__mro__ if "__call__" in vars(kind)]
    codes = [getattr(inspect.unwrap(call), "__code__", None) for call in own]
    return [code for code in codes if code is not None]


def hook_of(module: Any) -> CallHook | None:
    """Our hook around a module's calls; None where there is none."""
    hook = _call_of(module)
    return hook if isinstance(hook, CallHook) else None


def is_patched(owner: Any, name: str) -> bool:
    """Whether the attribute is one of dit_accel's patches now."""
    return hasattr(vars(owner).get(name), "_dit_accel_patch")


def _twice(owner: Any, name: str) -> str:
    kind = type(uncompiled(owner)).__name__
    return (
        f"{kind}.{name} is accelerated already; call remove() on its handle first, which a "
        "pipeline that shares it may have"
    )
