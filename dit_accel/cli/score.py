"""`dit-accel score`: the fidelity of clips to their references, of two files or two folders."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dit_accel.cli.common.errors import BadInput, RunFailed, as_option, reported, say

if TYPE_CHECKING:
    from dit_accel.evaluation.pairs import Pairs, PairScores
    from dit_accel.metrics.row import Metric
    from dit_accel.metrics.scoring import Score

CONVENTION_NAMES = ("teacache", "cache-dit", "easycache", "svg", "ffmpeg")
SCORE_FORMAT = 1
_FAIR, _RESULT = "What is let pass", "The result"


@dataclass(frozen=True)
class Allowed:
    """What the user lets pass."""

    trim: bool
    mixed_codecs: bool
    unpaired: bool


def score(
    reference: Annotated[
        Path,
        typer.Argument(
            metavar="REF", help="The uncached clip, or a folder of them.", show_default=False
        ),
    ],
    test: Annotated[
        Path,
        typer.Argument(
            metavar="TEST",
            help="The clip to score, or a folder: paired by file name without suffix.",
            show_default=False,
        ),
    ],
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Names, with commas between.",
            show_default="all that need nothing installed, and lpips",
        ),
    ] = None,
    convention: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(CONVENTION_NAMES),
            help="Reproduce another tool's numbers.",
            show_default="ours",
        ),
    ] = None,
    lpips_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="AlexNet's weights.",
            show_default="$DIT_ACCEL_LPIPS_WEIGHTS, else torch's hub cache",
        ),
    ] = None,
    allow_trim: Annotated[
        bool,
        typer.Option(
            "--allow-trim",
            help="Cut both clips to what they share, frames and size.",
            rich_help_panel=_FAIR,
        ),
    ] = False,
    allow_mixed_codecs: Annotated[
        bool,
        typer.Option(
            "--allow-mixed-codecs",
            help="Compare files that lost differently much already.",
            rich_help_panel=_FAIR,
        ),
    ] = False,
    allow_unpaired: Annotated[
        bool,
        typer.Option(
            "--allow-unpaired",
            help="Leave out clips without a partner.",
            rich_help_panel=_FAIR,
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_RESULT)
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write that object to a file, replacing one that is there.",
            show_default=False,
            rich_help_panel=_RESULT,
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show tracebacks.", rich_help_panel=_RESULT)
    ] = False,
) -> None:
    """Score clips against their references: two files, or two folders paired by name."""
    with reported(verbose=verbose):
        allowed = Allowed(allow_trim, allow_mixed_codecs, allow_unpaired)
        _check_output(output)
        rows = _rows(metrics, convention, lpips_weights)
        pairs = _pairs(reference, test, allowed)
        _refuse_unavailable(rows, explicit=metrics is not None)
        scored = [_score(pair, rows, allowed) for pair in pairs.pairs]
        record = _record(reference, test, convention, rows, pairs, scored)
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
        if output is not None:
            _write(output, text)
        if as_json:
            sys.stdout.write(text + "\n")
        else:
            _show(rows, pairs, scored, record)
        _refuse_missing(scored, explicit=metrics is not None)


def _rows(metrics: str | None, convention: str | None, weights: Path | None) -> dict[str, Metric]:
    from dit_accel.metrics import METRICS
    from dit_accel.metrics.conventions import CONVENTIONS as conventions
    from dit_accel.metrics.scoring import rows_of

    if convention is not None and convention not in conventions:
        raise BadInput(f"--convention is {convention!r}: must be one of {', '.join(conventions)}")
    if weights is not None and not weights.is_file():
        raise BadInput(f"--lpips-weights is {str(weights)!r}: no such file")
    known = METRICS if convention is None else conventions[convention]
    names = [name for name, row in known.items() if row.family == "pixels"]
    if metrics is None:
        chosen = [name for name in names if convention or not known[name].needs or name == "lpips"]
    else:
        chosen = list(dict.fromkeys(part.strip() for part in metrics.split(",") if part.strip()))
    whose = "" if convention is None else f" with --convention {convention}"
    for name in chosen or [metrics or ""]:
        if name not in names:
            raise BadInput(f"--metrics has {name!r}: accepted are {', '.join(names)}{whose}")
    return rows_of(chosen, convention=convention, lpips_weights=weights)


def _pairs(reference: Path, test: Path, allowed: Allowed) -> Pairs:
    from dit_accel.evaluation.pairs import UnfairPair, find_pairs

    try:
        return find_pairs(reference, test, allow_unpaired=allowed.unpaired)
    except UnfairPair as error:
        raise BadInput(as_option(str(error))) from error
    except OSError as error:
        raise BadInput(f"{error.filename} cannot be read: {error.strerror}") from error


def _refuse_unavailable(rows: dict[str, Metric], *, explicit: bool) -> None:
    """Before the first frame: what was asked for by name and cannot be had is an error."""
    from dit_accel.metrics.scoring import Scorer

    try:
        unavailable = Scorer(rows, data_range=255).unavailable
    except ValueError as error:
        raise BadInput(f"--lpips-weights: {error}") from error
    for name, reason in unavailable.items():
        if explicit:
            raise BadInput(
                f"--metrics has {name!r}, which cannot be measured here: {as_option(reason)}"
            )


def _score(pair: Any, rows: dict[str, Metric], allowed: Allowed) -> PairScores:
    from dit_accel.evaluation.pairs import UnfairPair, score_pair

    try:
        scored = score_pair(pair, rows, allow_trim=allowed.trim, allow_mixed=allowed.mixed_codecs)
    except UnfairPair as error:
        raise BadInput(as_option(str(error))) from error
    except ValueError as error:
        raise BadInput(f"{pair.reference} and {pair.test} cannot be scored: {error}") from error
    except OSError as error:
        raise BadInput(f"{error.filename} cannot be read: {error.strerror}") from error
    return scored


def _record(
    reference: Path,
    test: Path,
    convention: str | None,
    rows: dict[str, Metric],
    pairs: Pairs,
    scored: list[PairScores],
) -> dict[str, Any]:
    """All that was measured, JSON-safe: infinity is the string "inf"."""
    import dit_accel

    return {
        "format": SCORE_FORMAT,
        "dit_accel": dit_accel.__version__,
        "reference": str(reference),
        "test": str(test),
        "convention": convention,
        "metrics": {name: _about(row) for name, row in rows.items()},
        "pairs": [_pair_record(pair) for pair in scored],
        "unpaired": {side: list(names) for side, names in pairs.unpaired.items()},
        "mean": {name: _mean(name, scored) for name in rows},
    }


def _about(row: Metric) -> dict[str, Any]:
    return {
        "unit": row.unit,
        "direction": row.direction,
        "convention": row.convention,
        "version": row.version,
        "per_frame": row.per_frame,
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
    """Over the clips that have a score; exact clips count as 100 dB, unless all are exact."""
    from dit_accel.metrics.psnr import EXACT_DB

    values = [score.value for clip in scored if (score := clip.scores[name]).value is not None]
    if not values:
        return {"value": None, "clips": 0}
    if all(value == float("inf") for value in values):
        return {"value": "inf", "clips": len(values)}
    capped = [EXACT_DB if value == float("inf") else value for value in values]
    return {"value": sum(capped) / len(capped), "clips": len(values)}


def _refuse_missing(scored: list[PairScores], *, explicit: bool) -> None:
    """After all is told: what was asked for by name and has no score is a failure."""
    for clip in scored:
        for name, score in clip.scores.items():
            if explicit and score.value is None:
                raise RunFailed(
                    f"{name} of {clip.pair.test} was not measured: {as_option(score.reason or '')}"
                )


def _show(
    rows: dict[str, Metric], pairs: Pairs, scored: list[PairScores], record: dict[str, Any]
) -> None:
    from dit_accel.cli.common.tables import show

    show(rows, scored, record["mean"])
    for note in dict.fromkeys(note for clip in scored for note in clip.notes):
        say(note, style="yellow")
    for side, names in pairs.unpaired.items():
        if names:
            say(f"left out of {side}, without a partner: {', '.join(names)}", style="yellow")


def _check_output(output: Path | None) -> None:
    if output is None:
        return
    if output.is_dir():
        raise BadInput(f"--output is {str(output)!r}: it is a folder, not a file")
    if not output.absolute().parent.is_dir():
        raise BadInput(f"--output is {str(output)!r}: its folder does not exist")


def _write(output: Path, text: str) -> None:
    """The file is replaced only by one that is whole and on the disk."""
    scratch = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=output.absolute().parent, prefix=".tmp-", delete=False
        ) as file:
            scratch = Path(file.name)
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        scratch.chmod(0o666 & ~_umask())
        os.replace(scratch, output)
    except OSError as error:
        raise RunFailed(f"{output} cannot be written: {error.strerror}") from error
    finally:
        if scratch is not None:
            scratch.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
