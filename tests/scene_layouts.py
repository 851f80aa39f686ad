"""Layouts of a few subjects, for tests of scenes on families."""

from __future__ import annotations

from dit_accel import layout


def scene_of(*subjects: tuple[str, str, tuple[float, float]], shots: int = 1) -> layout.Layout:
    """A layout of equal shots: of each subject id, prompt and the span of the width."""
    placed = tuple(
        layout.Subject(id, prompt, (layout.Keyframe(0, (x0, 0, x1, 1)),))
        for id, prompt, (x0, x1) in subjects
    )
    return layout.Layout(tuple(layout.Shot(f"s{i}", "a", placed) for i in range(shots)))
