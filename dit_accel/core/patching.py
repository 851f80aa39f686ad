"""Replace attributes of live objects, and undo it: nothing stays behind.

Only instances are patched, never classes, so that other pipelines of the process are untouched.
Undoing works in reverse order and refuses, changing nothing, when somebody else has wrapped what
we installed: taking ours out from under theirs would silently drop theirs.
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
        """Replace `owner.name` by `make(what it was)` on this instance only.

        Raises:
            RuntimeError: this attribute of this object is patched by dit_accel already.
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
        """Put everything back as it was; a second call does nothing.

        Raises:
            RuntimeError: something else was installed over one of our patches; nothing is changed.
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
    """Whether the attribute, as it is now, is one of dit_accel's patches."""
    return hasattr(vars(owner).get(name), _MARK)
