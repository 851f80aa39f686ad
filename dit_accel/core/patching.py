"""Replace attributes of live objects, and restore them exactly.

An object, an attribute's name and a factory come in; the object has the new attribute until `undo`.
Only instances are patched, never classes, so other pipelines of the process are untouched. Undoing
runs in reverse order. It refuses, and changes nothing, where someone wrapped our patch: taking ours
out from under theirs would drop theirs silently. Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_MARK = "_dit_accel_patch"


class Patches:
    """The patches of one handle."""

    def __init__(self) -> None:
        self._done: list[tuple[Any, str, Any, bool, Any]] = []

    def wrap(self, owner: Any, name: str, make: Callable[[Any], Callable[..., Any]]) -> None:
        """Replace `owner.name` by `make(old value)`, on this instance only.

        Raises:
            RuntimeError: dit_accel has patched this attribute already.
        """
        if is_patched(owner, name):
            raise RuntimeError(
                f"{type(owner).__name__}.{name} is accelerated already; "
                "call remove() on its handle first"
            )
        own = name in vars(owner)
        before = getattr(owner, name)
        after = make(before)
        setattr(after, _MARK, True)
        setattr(owner, name, after)
        self._done.append((owner, name, after, own, before))

    def undo(self) -> None:
        """Restore everything; a second call does nothing.

        Raises:
            RuntimeError: one of our patches was wrapped by something else; nothing is changed.
        """
        for owner, name, after, _, _ in self._done:
            if vars(owner).get(name) is not after:
                raise RuntimeError(
                    f"{type(owner).__name__}.{name} was wrapped again after accelerate() "
                    "(by offloading or another cache?); undo that first, then call remove()"
                )
        for owner, name, _, own, before in reversed(self._done):
            if own:
                setattr(owner, name, before)
            else:
                delattr(owner, name)
        self._done.clear()


def is_patched(owner: Any, name: str) -> bool:
    """Whether the attribute is one of dit_accel's patches now."""
    return hasattr(vars(owner).get(name), _MARK)
