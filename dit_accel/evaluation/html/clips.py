"""Chooses the clips that the page shows, and encodes each as one picture with all its frames.

In: results and their stored clips. Out: players, which show the uncached clip, the method's clip,
and the difference.
Knows: a sheet has a clip's frames in rows, and a script draws one frame at a time. So any number of
sheets show the same frame in every browser. Small clips are exact; large ones are scaled and
compressed until they fit in the page. Differences are computed from exact frames.
Source: ours.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from dit_accel.core import video
from dit_accel.core.generation import FALLBACK_FPS
from dit_accel.evaluation.methods.row import Setting
from dit_accel.evaluation.results import Results, ScoredPair
from dit_accel.evaluation.store import Store, StoreError

WORST = 5
ALL = "all"
BUDGET = 10_000_000
FACTORS = (32, 16, 8, 4, 2, 1)
_SHARE_OF_FIRST = 0.7
_MOST_PIXELS = 9_000_000
_SIDE_LIMIT = 16_000


@dataclass(frozen=True)
class Tier:
    """How clips are encoded: longest side in pixels (None: unchanged), quality (None: exact)."""

    side: int | None
    quality: int | None


_CODED = ((640, 82), (416, 80), (320, 75), (240, 65), (160, 55))
TIERS = (Tier(None, None), *(Tier(side, quality) for side, quality in _CODED))


@dataclass(frozen=True)
class Chosen:
    """A clip, and why it is shown: its rank in each list. 0 is the worst clip, `WORST` is the
    median one."""

    pair: ScoredPair
    psnr_db: float
    ranks: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Player:
    """One clip beside its uncached reference: names of the three sheets, and their layout."""

    chosen: Chosen
    sheets: tuple[str, str, str]
    frames: int
    columns: int
    width: int
    height: int
    fps: float
    opens_at: int
    factor: int


@dataclass(frozen=True)
class Gallery:
    """All players, their sheets, and what the page says about them."""

    players: list[Player]
    sheets: dict[str, str]
    tier: Tier
    size: tuple[int, int]
    left_out: int
    unreadable: list[str]


def gallery(store: Store, results: Results, budget: int = BUDGET) -> Gallery:
    """The worst clips and the median clip, over all accelerated methods and for each of them.

    Args:
        budget: bytes that the sheets may have on the page.
    """
    wanted = choose(results)
    reader = _ClipReader(store)
    first = [c for c in wanted if ALL in c.ranks and reader.both(c.pair) is not None]
    tier = _tier(reader, first, budget)
    players: list[Player] = []
    sheets: dict[str, str] = {}
    left_out, used, size = 0, 0, (0, 0)
    for chosen in wanted:
        both = reader.both(chosen.pair)
        if both is None:
            continue
        size = both[0].shape[2], both[0].shape[1]
        if used > budget:
            left_out += 1
            continue
        player, new = _player(chosen, both, tier, known=sheets)
        cost = sum(map(len, new.values()))
        if used + cost > budget and ALL not in chosen.ranks:
            left_out += 1
            continue
        used += cost
        sheets.update(new)
        players.append(player)
    return Gallery(players, sheets, tier, size, left_out, reader.unreadable)


def choose(results: Results) -> list[Chosen]:
    """The clips to show, the most important first: those over all methods, then those of each
    method in turn."""
    found: dict[str, Chosen] = {}

    def take(ranked: Sequence[tuple[float, ScoredPair]], name: str, rank: int) -> None:
        at = len(ranked) // 2 if rank == WORST else rank
        if at < len(ranked):
            value, pair = ranked[at]
            found.setdefault(pair.job.id, Chosen(pair, value)).ranks.setdefault(name, rank)

    settings = results.accelerated()
    everything = _ranked([pair for s in settings for pair in results.pairs[s]])
    for rank in range(WORST + 1):
        take(everything, ALL, rank)
    each: dict[Setting, list[tuple[float, ScoredPair]]] = {
        s: _ranked(results.pairs[s]) for s in settings
    }
    for rank in (0, WORST, *range(1, WORST)):
        for setting, ranked in each.items():
            take(ranked, setting.label, rank)
    return list(found.values())


def _ranked(pairs: Sequence[ScoredPair]) -> list[tuple[float, ScoredPair]]:
    scored = [(value, pair) for pair in pairs if (value := pair.psnr_db) is not None]
    return sorted(scored, key=lambda entry: (entry[0], entry[1].job.id))


class _ClipReader:
    """Reads clips, and each uncached clip once. It remembers the clips that could not be read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._uncached: dict[str, video.Frames | None] = {}
        self.unreadable: list[str] = []

    def both(self, pair: ScoredPair) -> tuple[video.Frames, video.Frames] | None:
        """The uncached frames and those of the method, or None."""
        name = pair.reference["id"]
        if name not in self._uncached:
            self._uncached[name] = self._read(name, pair.reference["frames_sha256"])
        uncached = self._uncached[name]
        if uncached is None:
            return None
        mine = self._read(pair.job.id, pair.result["frames_sha256"])
        return None if mine is None or mine.shape != uncached.shape else (uncached, mine)

    def _read(self, job: str, sha256: str) -> video.Frames | None:
        if not self._store.clip_path(job).exists():
            return None
        try:
            return self._store.read_clip(job, sha256)
        except StoreError:
            if job not in self.unreadable:
                self.unreadable.append(job)
            return None


def difference(one: video.Frames, other: video.Frames) -> video.Frames:
    """The largest difference of the three channels, `(T, H, W)`."""
    apart = np.abs(one.astype(np.int16) - other.astype(np.int16)).max(axis=-1)
    return cast("video.Frames", apart.astype(np.uint8))


def _factor(apart: video.Frames) -> int:
    """The largest factor with which at most 1 pixel in 100 is beyond the end of the scale."""
    end = max(1.0, float(np.quantile(apart, 0.99)))
    return next((factor for factor in FACTORS if factor * end <= 255), 1)


def _tier(reader: _ClipReader, first: Sequence[Chosen], budget: int) -> Tier:
    """The best tier with which the clips over all methods fit in most of the budget.

    It is estimated from the worst clip and the median clip, whose heat maps differ most.
    """
    samples = [(c, both) for c in (*first[:1], *first[1:][-1:]) if (both := reader.both(c.pair))]
    for tier in TIERS:
        costs = [0]
        for chosen, both in samples:
            width, height = _scaled(both[0].shape[2], both[0].shape[1], tier)
            if len(both[0]) * width * height > _MOST_PIXELS:
                costs.append(budget)
                break
            _, sheets = _player(chosen, both, tier, known={})
            costs.append(sum(map(len, sheets.values())))
        if len(first) * max(costs) <= _SHARE_OF_FIRST * budget:
            return tier
    return TIERS[-1]


def _player(
    chosen: Chosen, both: tuple[video.Frames, video.Frames], tier: Tier, known: dict[str, str]
) -> tuple[Player, dict[str, str]]:
    """A player, and its sheets that were not encoded yet."""
    uncached, mine = both
    job, reference = chosen.pair.job, chosen.pair.reference["id"]
    apart = difference(uncached, mine)
    factor = _factor(apart)
    width, height = _scaled(uncached.shape[2], uncached.shape[1], tier)
    columns = min(len(mine), max(1, _SIDE_LIMIT // width), math.ceil(math.sqrt(len(mine))))
    names = f"u-{reference}", f"m-{job.id}", f"d-{job.id}"
    clips = (uncached, mine, _heat(apart, factor))
    new = {
        name: encode(_sheet(_resized(clip, width, height), columns), tier.quality)
        for name, clip in zip(names, clips, strict=True)
        if name not in known
    }
    squares = np.square(uncached.astype(np.float32) - mine).mean(axis=(1, 2, 3))
    player = Player(
        chosen=chosen,
        sheets=names,
        frames=len(mine),
        columns=columns,
        width=width,
        height=height,
        fps=job.clip.fps or FALLBACK_FPS,
        opens_at=int(squares.argmax()),
        factor=factor,
    )
    return player, new


def _scaled(width: int, height: int, tier: Tier) -> tuple[int, int]:
    scale = min(1.0, (tier.side or math.inf) / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _resized(clip: video.Frames, width: int, height: int) -> video.Frames:
    if clip.shape[2] == width and clip.shape[1] == height:
        return clip
    return np.stack(
        [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in clip]
    )


def _sheet(clip: video.Frames, columns: int) -> video.Frames:
    count, height, width, _ = clip.shape
    rows = math.ceil(count / columns)
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for index, frame in enumerate(clip):
        y, x = divmod(index, columns)
        sheet[y * height : (y + 1) * height, x * width : (x + 1) * width] = frame
    return sheet


def _heat(apart: video.Frames, factor: int) -> video.Frames:
    scaled = np.minimum(apart.astype(np.int32) * factor, 255).astype(np.uint8)
    return _colours()[scaled]


def _colours() -> npt.NDArray[np.uint8]:
    """256 colours from black over red to near white: matplotlib's `inferno`."""
    import matplotlib

    table = matplotlib.colormaps["inferno"](np.arange(256))[:, :3]
    return cast("npt.NDArray[np.uint8]", (table * 255).round().astype(np.uint8))


def encode(picture: video.Frames, quality: int | None) -> str:
    """A picture as a data URI: WebP, exact if the quality is None."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    exact = quality is None  # then `quality` is the effort of the encoder
    image.save(buffer, "WEBP", lossless=exact, quality=80 if exact else quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
