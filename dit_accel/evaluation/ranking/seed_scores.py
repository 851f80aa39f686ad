"""The scores of one clip among the seeds of its prompt.

In: scores alone and against the uncached clips of other seeds. Out: whether they are complete.
Knows names and versions of metrics; no file (`scores`) and no ranking (`table`). Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dit_accel.metrics import METRICS


@dataclass(frozen=True)
class SeedScores:
    """The scores of one clip.

    Attributes:
        frames_sha256: the hash of the frames that were scored.
        alone: the scores of the clip alone, by choice.
        closest: the score against the clip of an uncached job, by metric and job.
        versions: the versions of the metrics.
    """

    frames_sha256: str
    alone: dict[str, float]
    closest: dict[str, dict[str, float]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    def has(self, metrics: Iterable[str], wanted: Iterable[str]) -> bool:
        """Whether all scores are there, with the present versions of the metrics."""
        return all(
            self.versions.get(metric) == METRICS[metric].version
            and set(wanted) <= self.closest[metric].keys()
            for metric in metrics
        )


def pixel_metrics(names: Iterable[str]) -> list[str]:
    """The metrics that score two clips."""
    return [name for name in names if METRICS[name].family == "pixels"]
