"""What one clip scores among the seeds of its prompt.

In: scores alone and against the uncached clips of other seeds. Out: whether they are complete.
Knows names and versions of metrics; no file (`scores`) and no ranking (`table`). Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dit_accel.metrics import METRICS


@dataclass(frozen=True)
class SeedScores:
    """Of one clip.

    Attributes:
        frames_sha256: of the frames that were scored.
        alone: by choice.
        closest: by metric and uncached job, the score against that job's clip.
        versions: of the metrics.
    """

    frames_sha256: str
    alone: dict[str, float]
    closest: dict[str, dict[str, float]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    def has(self, metrics: Iterable[str], wanted: Iterable[str]) -> bool:
        """Whether all of it is there, in the versions of now."""
        return all(
            self.versions.get(metric) == METRICS[metric].version
            and set(wanted) <= self.closest[metric].keys()
            for metric in metrics
        )


def pixel_metrics(names: Iterable[str]) -> list[str]:
    """Those of the metrics that score two clips."""
    return [name for name in names if METRICS[name].family == "pixels"]
