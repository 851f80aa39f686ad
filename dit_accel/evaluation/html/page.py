"""Renders results and pictures as one HTML text, and writes it.

In: the folder of an evaluation. Out: one file, which needs no network.
Knows: the template and its data. It uses no clock and no random numbers, so the same folder gives
the same page.
Source: ours.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_accel.core.files import placed
from dit_accel.evaluation.html import clips, figures, front, lacking, made, maps, plots, seeds
from dit_accel.evaluation.html.svg import look
from dit_accel.evaluation.jobs import EvaluationSpec
from dit_accel.evaluation.methods import METHODS, UNCACHED
from dit_accel.evaluation.ranking.scores import read_scores
from dit_accel.evaluation.ranking.table import ranking
from dit_accel.evaluation.results import PSNR, Results
from dit_accel.evaluation.statistics import Interval
from dit_accel.evaluation.store import Store
from dit_accel.evaluation.summary import MethodSummary, Summary, digits, runs_text, summarise
from dit_accel.metrics import METRICS
from dit_accel.metrics.psnr import EXACT_DB

PREFERRED = ("psnr_db", "jod", "ssim", "tof", "st_lpips", "lpips")
_VERDICTS = 2
_READ_BY_SCRIPT = ("sheets", "frames", "columns", "width", "height", "fps")
_SIGNIFICANT = 5
_INTERVAL = ("value", "low", "high", "n")
Pictures = tuple[str, str]  # for a desktop and for a phone


def write_report(store: Store, spec: EvaluationSpec, path: Path) -> int:
    """Write the page of an evaluation so far. The file is written whole or not at all.

    Args:
        store: the folder of the evaluation.
        spec: as `store.spec()` reads it.
        path: the file of the page; an existing file is replaced.

    Returns:
        The size of the file in bytes.

    Raises:
        ModuleNotFoundError: the extra `report` is not installed.
        StoreError: a result cannot be read.
        OSError: the page cannot be written.
    """
    if needed := lacking():
        raise ModuleNotFoundError(needed)
    content = render(store, spec).encode("utf-8")
    with placed(path) as scratch:
        scratch.write_bytes(content)
    return len(content)


def render(store: Store, spec: EvaluationSpec) -> str:
    """The page of an evaluation.

    Raises:
        StoreError: a result cannot be read.
    """
    results = store.results(spec)
    summary = summarise(results)
    shown = clips.gallery(store, results)
    metrics = _preferred(spec)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            spec=spec,
            model=f"the {made.EMBEDDED}" if spec.model.name == made.EMBEDDED else spec.model.name,
            ceiling=_ceiling(results),
            summary=summary,
            counts=_counts(summary),
            metrics=_ordered(spec.metrics),
            preferred=metrics,
            title=figures.title,
            digits=digits,
            runs_text=runs_text,
            METRICS=METRICS,
            rows=_rows(results, summary),
            fronts=_fronts(results, summary),
            key=_key(results),
            prompt_plots=_drawn(metrics, lambda metric: plots.prompts(results, summary, metric)),
            frame_plots=_drawn(metrics, lambda metric: plots.frames(results, metric)),
            dots=plots.DOTS,
            paired=_script(_paired(results, summary)),
            seeds=seeds.table(ranking(results, read_scores(store, spec)), metrics),
            maps=maps.plan_maps(results),
            gallery=shown,
            players=_players(shown, results),
            lists=_lists(shown),
            sheets=_script(shown.sheets),
            settings=made.settings(spec),
            machines=results.machines(),
            journal=store.journal(),
            command=made.command(spec),
            prompts_file=made.prompts_file(spec),
            style=_data("style.css"),
            scripts=[_data(name) for name in ("player.js", "paired.js", "page.js")],
        )
    )


def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dit_accel.evaluation.html", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"breakable": _breakable, "fixed": _fixed, "signed": _signed}
    environment.filters["zip_titles"] = _with_titles
    return environment


def _with_titles(metrics: Iterable[str], title: Callable[[str], str]) -> list[tuple[str, str]]:
    return [(metric, title(metric).split(",")[0]) for metric in metrics]


def _breakable(label: str) -> Any:
    """A method's label, in which lines may break before the number and after the owner."""
    from markupsafe import Markup, escape

    return Markup(str(escape(label)).replace(":", "<wbr>:").replace("/", "/<wbr>"))


def _fixed(value: float, decimals: int, scale: float = 1) -> str:
    return f"{value * scale:.{decimals}f}".replace("-", "−")


def _signed(value: float, decimals: int) -> str:
    return f"{value:+.{decimals}f}".replace("-", "−")


@dataclass(frozen=True)
class TableRow:
    """One row of the table, and the notes below it."""

    row: MethodSummary
    variable: str | None
    marker: str
    floor: bool
    verdicts: list[tuple[str, str, Interval]]
    notes: list[tuple[str, str]]


def _rows(results: Results, summary: Summary) -> list[TableRow]:
    slots = results.slots()
    found = []
    for setting, row in summary.by_setting.items():
        plain = setting.method == UNCACHED or setting.is_rerun
        style = None if plain else look(slots[setting.method])
        variable, marker = (style.variable, style.marker) if style else (None, "")
        notes = _notes(row)
        found.append(TableRow(row, variable, marker, setting.is_rerun, _verdicts(row), notes))
    return found


def _key(results: Results) -> list[tuple[str, str, str, str]]:
    """(method, CSS colour, marker, description) of all curves."""
    looks = {name: look(results.slots()[name]) for name in results.families()}
    return [
        (name, style.variable, style.marker, METHODS[name].summary) for name, style in looks.items()
    ]


def _verdicts(row: MethodSummary) -> list[tuple[str, str, Interval]]:
    """(metric, verdict, difference) of the preferred metrics that were compared."""
    compared = [
        (name, str(found["verdict"]), Interval(*map(found.__getitem__, _INTERVAL)))
        for name in PREFERRED
        if (found := row.against_steps.get(name)) and found["value"] is not None
    ]
    return compared[:_VERDICTS]


def _notes(row: MethodSummary) -> list[tuple[str, str]]:
    notes = [("failed", error) for error in row.errors]
    if row.status["no effect"]:
        count = row.status["no effect"]
        notes.append(("no effect", f"{count} clips equal the uncached ones, and nothing was saved"))
    if row.exact_frames and not row.status["no effect"]:
        notes.append(
            ("exact", f"{row.exact_frames} of {row.frames} frames equal the uncached ones")
        )
    said = " ".join(row.remarks)
    notes += [("planned from", source) for source in row.rests_on if source not in said]
    if row.remarks:  # in one line, because plans have several remarks
        notes.append(("remark", " ".join(f"{text.rstrip('.')}." for text in row.remarks)))
    return notes


def _counts(summary: Summary) -> dict[str, int]:
    statuses = [row.status for row in summary.rows]
    return {name: sum(status[name] for status in statuses) for name in statuses[0]}


def _ordered(metrics: tuple[str, ...]) -> list[str]:
    first = [name for name in PREFERRED if name in metrics]
    return first + [name for name in metrics if name not in first]


def _preferred(spec: EvaluationSpec) -> list[str]:
    """The metrics that are drawn: the preferred ones, else the first one."""
    return [name for name in PREFERRED if name in spec.metrics][:3] or list(spec.metrics[:1])


def _fronts(results: Results, summary: Summary) -> dict[tuple[str, str], Pictures]:
    return {
        (axis.key, metric): found
        for metric in _preferred(results.spec)
        for axis in front.AXES
        if (found := front.front(results, summary, axis, metric)) is not None
    }


def _ceiling(results: Results) -> float | None:
    """The PSNR above which scores are drawn at the edge, if there are such scores."""
    ceiling = figures.CEILING[PSNR]
    scores = (results.scores(setting, PSNR).values() for setting in results.drawn())
    return ceiling if any(value > ceiling for values in scores for value in values) else None


def _drawn(metrics: list[str], draw: Callable[[str], Pictures | None]) -> dict[str, Pictures]:
    return {metric: found for metric in metrics if (found := draw(metric)) is not None}


# data for the page's scripts


def _paired(results: Results, summary: Summary) -> dict[str, Any]:
    """The scores of every prompt, and their differences from fewer steps at equal FLOPs."""
    slots, drawn = results.slots(), results.drawn()
    return {
        "prompts": [prompt.id for prompt in results.spec.prompts],
        "methods": [setting.label for setting in drawn],
        "colours": [look(slots[setting.method]).variable for setting in drawn],
        "metrics": {
            metric: {
                "title": figures.title(metric),
                "digits": digits(metric),
                "higher": METRICS[metric].direction == "higher",
                "exact": EXACT_DB if metric.startswith("psnr") else None,
                "scores": [_values(results, results.scores(s, metric)) for s in drawn],
                "minusSteps": [
                    None if s.control else _values(results, results.minus_steps(s, metric))
                    for s in drawn
                ],
                "againstSteps": [_rounded(summary.by_setting[s], metric) for s in drawn],
            }
            for metric in _preferred(results.spec)
        },
    }


def _values(results: Results, by_prompt: dict[str, float]) -> list[float | None]:
    found = (by_prompt.get(prompt.id) for prompt in results.spec.prompts)
    return [None if value is None else _short(value) for value in found]


def _rounded(row: MethodSummary, metric: str) -> dict[str, Any] | None:
    found = row.against_steps.get(metric)
    if not found:
        return None
    return {key: _short(v) if isinstance(v, float) else v for key, v in found.items()}


def _short(value: float) -> float:
    return float(f"{value:.{_SIGNIFICANT}g}")


def _players(shown: clips.Gallery, results: Results) -> list[dict[str, Any]]:
    texts = {prompt.id: prompt.prompt for prompt in results.spec.prompts}
    slots = results.slots()
    return [_player(player, texts, slots) for player in shown.players]


def _player(player: clips.Player, texts: dict[str, str], slots: dict[str, int]) -> dict[str, Any]:
    job = player.chosen.pair.job
    read = {name: getattr(player, name) for name in _READ_BY_SCRIPT} | {"opensAt": player.opens_at}
    return {
        "label": job.method.label,
        "variable": look(slots[job.method.method]).variable,
        "prompt": texts[job.prompt_id],
        "prompt_id": job.prompt_id,
        "seed": job.clip.seed,
        "psnr": player.chosen.psnr_db,
        "ranks": player.chosen.ranks,
        "data": json.dumps(read),
        "width": player.width,
        "height": player.height,
        "frames": player.frames,
        "factor": player.factor,
    }


def _lists(shown: clips.Gallery) -> list[tuple[str, str]]:
    """(name, text of the choice) of every list that has a clip."""
    names = dict.fromkeys(name for player in shown.players for name in player.chosen.ranks)
    everything = "all accelerated methods together"
    return [(name, everything if name == clips.ALL else name) for name in names]


def _script(content: Any) -> str:
    """JSON that is safe inside a script element."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(name: str) -> str:
    return (importlib.resources.files("dit_accel.evaluation.html") / name).read_text(
        encoding="utf-8"
    )
