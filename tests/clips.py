"""Made-up clips for metrics: smooth waves that slide, and noise on them."""

from __future__ import annotations

import numpy as np


def smooth(seed=0, shape=(6, 48, 64, 3)):
    """A clip of sliding waves, uint8."""
    rng = np.random.default_rng(seed)
    t, y, x, c = np.indices(shape)
    waves = np.sin(x / rng.uniform(3, 6) + t / 3 + c) + np.cos(y / rng.uniform(3, 6) - t / 4)
    return np.rint(127.5 + 60 * waves).clip(0, 255).astype(np.uint8)


def noisy(clip, levels, seed=1):
    noise = np.random.default_rng(seed).integers(-levels, levels + 1, clip.shape)
    return np.clip(clip.astype(int) + noise, 0, 255).astype(np.uint8)
