"""`dit-accel score`: measures the fidelity of clips to references, in two files or two folders.

In: clips. Out: a table, or JSON.
Knows which options allow which pairs; `evaluation/pairs.py` and `metrics/` score. Ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.cli.common import options
from dit_accel.cli.common.errors import BadInput, RunFailed, as_option, refused, say
from dit_accel.cli.common.files import all_or_none, check_file, print_json, write_json
from dit_accel.cli.common.options import COMPARISON, argument, check_choice, listed, option
from dit_accel.cli.common.verb import verb
from dit_accel.core.files import reason_of

if TYPE_CHECKING:
    from dit_accel.evaluation.pairs import Pairs, PairScores
    from dit_accel.metrics.row import Metric
    from dit_accel.metrics.scoring import Score

CONVENTION_NAMES = ("teacache", "cache-dit", "easycache", "svg", "ffmpeg")
SCORE_FORMAT = 1
DESCRIBED = ("unit", "direction", "convention", "version", "per_frame")  # of a metric


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """The options of `score`."""

    reference: Path = argument(..., "The uncached clip, or a folder of them.", "REF")
    test: Path = argument(
        ..., "The clip to score, or a folder. Pairs have equal names; suffixes may differ.", "TEST"
    )
    metrics: str | None = option(
        None, "Metrics, e.g. psnr_db,ssim.", shown="all without extra packages, and lpips"
    )
    convention: str | None = option(
        None, f"Score as another tool: {', '.join(CONVENTION_NAMES)}.", metavar="NAME",
        shown="ours",
    )  # fmt: skip
    lpips_weights: Path | None = option(
        None, "File of AlexNet's weights.", metavar="FILE",
        shown="$DIT_ACCEL_LPIPS_WEIGHTS, else torch's hub cache",
    )  # fmt: skip
    allow_trim: bool = option(False, "Crop both clips to one length and size.", panel=COMPARISON)
    allow_mixed_codecs: bool = option(
        False, "Compare files of different lossy codecs.", panel=COMPARISON
    )
    allow_unpaired: bool = option(False, "Leave out clips without a partner.", panel=COMPARISON)
    output: Path | None = options.output(None, "Write the JSON here (.json).")
    overwrite: bool = options.overwrite()
    as_json: bool = options.as_json()
    verbose: bool = options.verbose()


@verb(ScoreOptions)
def score(given: ScoreOptions) -> None:
    """Score clips against their references: two files, or two folders."""
    if given.output is not None:
        check_file("--output", given.output, suffixes=(".json",), overwrite=given.overwrite)
    explicit = given.metrics is not None
    rows = _rows(given.metrics, given.convention, given.lpips_weights)
    pairs = _pairs(given)
    _refuse_unavailable(rows, explicit=explicit)
    scored = [_score(pair, rows, given) for pair in pairs.pairs]
    record = _record(given, rows, pairs, scored)
    if given.output is not None:
        with all_or_none([given.output]) as folder:
            write_json(folder, given.output, record)
    if given.as_json:
        print_json(record)
    else:
        _show(rows, pairs, scored, record)
    _refuse_missing(scored, explicit=explicit)


def _rows(metrics: str | None, convention: str | None, weights: Path | None) -> dict[str, Metric]:
    from dit_accel.metrics import METRICS
    from dit_accel.metrics.conventions import CONVENTIONS as conventions
    from dit_accel.metrics.scoring import rows_of

    check_choice("convention", convention, tuple(conventions))
    if weights is not None and not weights.is_file():
        raise BadInput(f"--lpips-weights is {str(weights)!r}: no such file")
    known = METRICS if convention is None else conventions[convention]
    names = [name for name, row in known.items() if row.family == "pixels"]
    if metrics is None:
        usual = (
            row for row in known.values() if not (row.needs or row.slow) or row.name == "lpips"
        )
        chosen = names if convention else [row.name for row in usual if row.name in names]
    else:
        chosen = listed(metrics)
    whose = "" if convention is None else f" with --convention {convention}"
    for name in chosen or [metrics or ""]:
        if name not in names:
            raise BadInput(f"--metrics has {name!r}; accepted: {', '.join(names)}{whose}")
    return rows_of(chosen, convention=convention, lpips_weights=weights)


def _pairs(given: ScoreOptions) -> Pairs:
    from dit_accel.evaluation.pairs import UnfairPair, find_pairs

    try:
        with refused("", (UnfairPair,)):
            return find_pairs(given.reference, given.test, allow_unpaired=given.allow_unpaired)
    except OSError as error:
        raise BadInput(f"{error.filename} cannot be read: {reason_of(error)}") from error


def _refuse_unavailable(rows: dict[str, Metric], *, explicit: bool) -> None:
    """Refuse a requested metric that cannot be measured here, before the first frame."""
    from dit_accel.metrics.scoring import Scorer

    with refused("--lpips-weights: "):
        unavailable = Scorer(rows, data_range=255).unavailable
    for name, reason in unavailable.items():
        if explicit:
            why = as_option(reason)
            raise BadInput(f"--metrics has {name!r}, which cannot be measured here: {why}")


def _score(pair: Any, rows: dict[str, Metric], given: ScoreOptions) -> PairScores:
    from dit_accel.evaluation.pairs import UnfairPair, score_pair

    trim, mixed = given.allow_trim, given.allow_mixed_codecs
    cannot = f"{pair.reference} and {pair.test} cannot be scored: "
    try:
        with refused(cannot), refused("", (UnfairPair,)):
            return score_pair(pair, rows, allow_trim=trim, allow_mixed=mixed)
    except OSError as error:
        raise BadInput(f"{error.filename} cannot be read: {reason_of(error)}") from error


def _record(
    given: ScoreOptions, rows: dict[str, Metric], pairs: Pairs, scored: list[PairScores]
) -> dict[str, Any]:
    """All measurements, JSON-able; infinity is the string "inf"."""
    import dit_accel

    return {
        "format": SCORE_FORMAT,
        "dit_accel": dit_accel.__version__,
        "reference": str(given.reference),
        "test": str(given.test),
        "convention": given.convention,
        "metrics": {
            name: {key: getattr(row, key) for key in DESCRIBED} for name, row in rows.items()
        },
        "pairs": [_pair_record(pair) for pair in scored],
        "unpaired": {side: list(names) for side, names in pairs.unpaired.items()},
        "mean": {name: _mean(name, scored) for name in rows},
    }


def _pair_record(scored: PairScores) -> dict[str, Any]:
    return {
        "id": scored.pair.id,
        "reference": str(scored.pair.reference),
        "test": str(scored.pair.test),
        "frames": scored.frames,
        "codecs": dict(scored.codecs),
        "notes": list(scored.notes),
        "scores": {name: _score_record(score) for name, score in scored.scores.items()},
    }


def _score_record(score: Score) -> dict[str, Any]:
    return score.to_dict() | {"reason": score.reason and as_option(score.reason)}


def _mean(name: str, scored: list[PairScores]) -> dict[str, Any]:
    """The mean over the clips that have a score. Exact clips count as 100 dB, unless all are
    exact."""
    from dit_accel.metrics.psnr import EXACT_DB

    values = [score.value for clip in scored if (score := clip.scores[name]).value is not None]
    if not values:
        return {"value": None, "clips": 0}
    if all(value == float("inf") for value in values):
        return {"value": "inf", "clips": len(values)}
    capped = [EXACT_DB if value == float("inf") else value for value in values]
    return {"value": sum(capped) / len(capped), "clips": len(values)}


def _refuse_missing(scored: list[PairScores], *, explicit: bool) -> None:
    """Fail after the output if a requested metric has no score."""
    for clip in scored:
        for name, score in clip.scores.items():
            if explicit and score.value is None:
                why = as_option(score.reason or "")
                raise RunFailed(f"{name} of {clip.pair.test} was not measured: {why}")


def _show(
    rows: dict[str, Metric], pairs: Pairs, scored: list[PairScores], record: dict[str, Any]
) -> None:
    from dit_accel.cli.common.tables import show_scores

    show_scores(rows, scored, record["mean"])
    for note in dict.fromkeys(note for clip in scored for note in clip.notes):
        say(note, kind="note")
    for side, names in pairs.unpaired.items():
        if names:
            say(f"left out of {side}, without a partner: {', '.join(names)}", kind="note")
