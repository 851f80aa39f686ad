"""The interface of an engine: an object that caches during a run, at any kind of site.

Goes in: a session's runs, steps and forwards. Comes out: outputs, and the engine's part of the
report. Three classes implement it: `SiteCache`, `UniCPCache` and `PlanExecutor`. It knows no
technique. Ours; there is no source.
"""

from __future__ import annotations

from dataclasses import dataclass

from dit_accel.caching.policy import Policy
from dit_accel.core.interceptor import Interceptor
from dit_accel.core.patching import Patches
from dit_accel.core.report import CacheSite, SiteReport


@dataclass(frozen=True)
class CacheMemory:
    """Peak memory of cached values in a run. The fields are those of `Report`."""

    cached_bytes: int
    packed_bytes: int = 0
    packed_bits: int | None = None
    offloaded_bytes: int = 0


class Engine(Interceptor):
    """Caches at one site."""

    site: CacheSite
    host_syncs: int = 0  # of the last run
    policy = Policy()  # of the last run; an engine with windows leaves the default

    def install(self, patches: Patches) -> None:
        """Wrap modules inside the transformers, if the site is inside."""

    def flush(self) -> None:
        """Read the measurements that are still on the device."""

    def clear(self) -> None:
        """Free the cached values."""

    @property
    def memory(self) -> CacheMemory:
        """The peak memory in the last run."""
        raise NotImplementedError

    def site_reports(self) -> tuple[SiteReport, ...]:
        """One for each site and branch of the last run."""
        raise NotImplementedError

    def notes(self) -> tuple[str, ...]:
        """What a reader of the report must know about the last run."""
        return ()

    def run_changes(self) -> tuple[str, ...]:
        """Notes on changes during the last run for which its plan was not made. After such a
        change, no quality is predicted."""
        return ()
