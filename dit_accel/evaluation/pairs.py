"""Scores files of clips, paired by their names; an unfair comparison is refused.

In: two files or two folders. Out: scores of each pair, or an `UnfairPair` that names the argument
with which the pair is accepted.
Knows: a pair is refused if frames or sizes differ, or if codecs or pixel formats differ (a lossy
file against a lossless one scores the codec). Both clips are read together in chunks, so neither is
in memory as a whole. The convention `ffmpeg` reads the planes of the files (`planes`). Does not
know which clip is better, nor whether equal names mean equal prompts.
Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dit_accel.core import video
from dit_accel.evaluation.planes import score_planes
from dit_accel.metrics.clips import Clip
from dit_accel.metrics.row import Metric
from dit_accel.metrics.scoring import Score, Scorer

CHUNK = 16
SAME_RATE = 1.01  # largest ratio of two frame rates that are the same, such as 24 and 23.976
_LISTED = 5  # names in a message, at most
CAVEAT = (
    "both clips are {name}, which is lossy: 4:2:0 alone gives 34 to 39 dB against its "
    "own source, so differences above that are hidden; score .mkv (FFV1 of RGB) or .npy"
)


class UnfairPair(ValueError):
    """Two files, or two folders, that cannot be compared as they are."""


@dataclass(frozen=True)
class Pair:
    """Two files with the same id."""

    id: str
    reference: Path
    test: Path


@dataclass(frozen=True)
class Pairs:
    """The pairs, and for each side the ids without a partner."""

    pairs: tuple[Pair, ...]
    unpaired: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class PairScores:
    """The scores of one pair, with notes for the reader."""

    pair: Pair
    frames: int
    codecs: Mapping[str, str]
    scores: Mapping[str, Score]
    notes: tuple[str, ...]


def find_pairs(reference: Path, test: Path, *, allow_unpaired: bool = False) -> Pairs:
    """Two clips as one pair, or the clips of two folders by their file names without suffix.

    Args:
        reference: a file or a folder.
        test: the same kind.
        allow_unpaired: leave out clips without a partner, instead of refusing.

    Raises:
        UnfairPair: one is a file and the other a folder, an id occurs twice, or an id has no
            partner.
        FileNotFoundError: one of them does not exist.
    """
    for path in (reference, test):
        if not path.exists():
            raise FileNotFoundError(2, "no such file or folder", str(path))
    if reference.is_dir() != test.is_dir():
        folder, file = (reference, test) if reference.is_dir() else (test, reference)
        raise UnfairPair(
            f"{folder} is a folder and {file} is a file; accepted: two folders, or two files"
        )
    if reference.is_file():
        return Pairs((Pair(test.stem, reference, test),), {"reference": (), "test": ()})
    here, there = _clips(reference), _clips(test)
    alone = {
        "reference": tuple(sorted(here.keys() - there.keys())),
        "test": tuple(sorted(there.keys() - here.keys())),
    }
    common = sorted(here.keys() & there.keys())
    if not common or (any(alone.values()) and not allow_unpaired):
        raise _without_partner(reference, test, alone)
    return Pairs(tuple(Pair(name, here[name], there[name]) for name in common), alone)


def check_codecs(pair: Pair, *, allow_mixed: bool = False) -> tuple[dict[str, str], list[str]]:
    """How both files store their frames, and notes on it.

    Raises:
        UnfairPair: they store them in different ways, and at least one way is lossy.
        ValueError: a file is not a clip.
        FileNotFoundError: a file does not exist.
    """
    one, other = video.codec_of(pair.reference), video.codec_of(pair.test)
    names = {"reference": one.name, "test": other.name}
    notes = [
        f"{path} has an alpha channel, which is not compared"
        for path, codec in ((pair.reference, one), (pair.test, other))
        if codec.alpha
    ]
    if one.lossless and other.lossless:
        return names, notes
    if (one.name, one.pixels) == (other.name, other.pixels):
        return names, [*notes, CAVEAT.format(name=one.format)]
    mixed = (
        f"{pair.reference} is {_named(one)} and {pair.test} is {_named(other)}: "
        "the score is in part that of the codec"
    )
    if not allow_mixed:
        way_out = "to compare them anyway, or keep both in one lossless format"
        raise UnfairPair(f"{mixed}; pass allow_mixed=True {way_out}")
    return names, [*notes, mixed]


def score_pair(
    pair: Pair, rows: Mapping[str, Metric], *, allow_trim: bool = False, allow_mixed: bool = False
) -> PairScores:
    """Score one pair of files.

    Args:
        pair: two readable files.
        rows: the metrics, by name.
        allow_trim: cut both to the smaller number of frames, and around their centres to the
            smaller size.
        allow_mixed: accept files with different codecs.

    Raises:
        UnfairPair: the two cannot be compared as they are.
        ValueError: a file is not a complete clip, or a metric cannot score such frames.
    """
    codecs, notes = check_codecs(pair, allow_mixed=allow_mixed)
    rates = [video.frame_rate(path) for path in (pair.reference, pair.test)]
    stated = [rate for rate in rates if rate is not None]
    if stated and max(stated) > SAME_RATE * min(stated):
        notes.append(
            f"{pair.reference} has {stated[0]:.4g} frames a second, {pair.test} has "
            f"{stated[1]:.4g}; frame is compared with frame, at the reference's rate"
        )
    scorer = Scorer(rows, data_range=255, fps=stated[0] if stated else None)
    counts = {"reference": 0, "test": 0}
    sized: list[str] = []
    read: list[str] = []
    for one, other in _side_by_side(pair, counts, read):
        if one.shape[1:] != other.shape[1:]:
            note = _sizes(pair, one, other)
            if not allow_trim:
                raise UnfairPair(f"{note}; pass allow_trim=True to cut both to one size")
            sized = [f"{note}; both were cut to the same size around their centres"]
            one, other = _cropped(one, other)
        scorer.update(one, other)
    if counts["reference"] != counts["test"]:
        note = (
            f"{pair.reference} has {counts['reference']} frames, {pair.test} has {counts['test']}"
        )
        if not allow_trim:
            raise UnfairPair(f"{note}; pass allow_trim=True to score those that both have")
        notes.append(f"{note}; the first {min(counts.values())} were scored")
    files = (pair.reference, pair.test)
    of_planes = score_planes(files, rows, [video.codec_of(path) for path in files])
    said = (*notes, *sized, *read)
    scores = scorer.compute() | of_planes
    return PairScores(pair, min(counts.values()), codecs, scores, said)


def _side_by_side(
    pair: Pair, counts: dict[str, int], notes: list[str]
) -> Iterator[tuple[Clip, Clip]]:
    """Chunks of equal length from both clips, until one ends. `counts` is then the number of frames
    of each."""
    streams = {
        "reference": video.stream_video(pair.reference, chunk=CHUNK, notes=notes),
        "test": video.stream_video(pair.test, chunk=CHUNK, notes=notes),
    }
    while True:
        chunks = {name: next(stream, None) for name, stream in streams.items()}
        for name, chunk in chunks.items():
            counts[name] += 0 if chunk is None else len(chunk)
        one, other = chunks["reference"], chunks["test"]
        if one is None or other is None:
            break
        both = min(len(one), len(other))
        yield one[:both], other[:both]
    for name, stream in streams.items():
        counts[name] += sum(len(chunk) for chunk in stream)


def _cropped(one: Clip, other: Clip) -> tuple[Clip, Clip]:
    height, width = (min(sizes) for sizes in zip(one.shape[1:3], other.shape[1:3], strict=True))
    first, second = (_centre(clip, height, width) for clip in (one, other))
    return first, second


def _centre(clip: Clip, height: int, width: int) -> Clip:
    top, left = (clip.shape[1] - height) // 2, (clip.shape[2] - width) // 2
    return np.ascontiguousarray(clip[:, top : top + height, left : left + width])


def _sizes(pair: Pair, one: Clip, other: Clip) -> str:
    (height, width), (other_height, other_width) = one.shape[1:3], other.shape[1:3]
    sizes = f"frames of {height}x{width}", f"frames of {other_height}x{other_width}"
    return f"{pair.reference} has {sizes[0]}, {pair.test} has {sizes[1]}"


def _named(codec: video.Codec) -> str:
    return f"{codec.format} ({codec.loss or 'lossless'})"


def _clips(folder: Path) -> dict[str, Path]:
    """The clips of a folder by id."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in video.READABLE and path.is_file() and path.name[0] != ".":
            if path.stem in found:
                raise UnfairPair(f"{found[path.stem]} and {path} have the same id; keep one")
            found[path.stem] = path
    return found


def _without_partner(reference: Path, test: Path, alone: Mapping[str, Sequence[str]]) -> UnfairPair:
    folders = {"reference": (reference, test), "test": (test, reference)}
    reasons = [
        f"{_first(alone[side])} of {mine} {'has' if len(alone[side]) == 1 else 'have'} no partner "
        f"in {theirs}"
        for side, (mine, theirs) in folders.items()
        if alone[side]
    ]
    if not reasons:
        return UnfairPair(f"{reference} and {test} have no clip ({', '.join(video.READABLE)})")
    way_out = "pass allow_unpaired=True to leave them out (needs one pair at least)"
    return UnfairPair("; ".join([*reasons, way_out]))


def _first(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"
