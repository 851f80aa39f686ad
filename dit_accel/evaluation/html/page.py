"""Evidence and pictures -> one HTML text; no clock, no chance: the same folder, the same page."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from dit_accel.evaluation.html import clips, figures, front, maps, plots
from dit_accel.evaluation.html.evidence import PSNR, Evidence, gather, is_floor
from dit_accel.evaluation.html.svg import look
from dit_accel.evaluation.jobs import EvaluationSpec
from dit_accel.evaluation.methods import METHODS, UNCACHED, Setting
from dit_accel.evaluation.statistics import Interval
from dit_accel.evaluation.store import Store
from dit_accel.evaluation.summary import MethodSummary
from dit_accel.metrics import METRICS
from dit_accel.models import miniature

PREFERRED = ("psnr_db", "ssim", "tof", "lpips")
EMBEDDED = "embedded miniature"
_SIGNIFICANT = 5


def render(store: Store, plan: EvaluationSpec) -> str:
    """The page of an evaluation.

    Raises:
        StoreError: a result cannot be read.
    """
    import jinja2

    evidence = gather(store, plan)
    shown = clips.gallery(store, evidence)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dit_accel.evaluation.html", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"breakable": _breakable, "fixed": _fixed, "signed": _signed}
    environment.filters["zip_titles"] = _with_titles
    page = environment.get_template("page.html.j2")
    return page.render(
        plan=plan,
        model=f"the {EMBEDDED}" if plan.model.name == EMBEDDED else plan.model.name,
        ceiling=_ceiling(evidence),
        evidence=evidence,
        summary=evidence.summary,
        counts=_counts(evidence),
        metrics=_ordered(plan.metrics),
        preferred=_preferred(plan),
        title=figures.title,
        digits=figures.digits,
        METRICS=METRICS,
        METHODS=METHODS,
        rows=_rows(evidence),
        fronts=_fronts(evidence, plan),
        axes=front.AXES,
        key=figures.key(evidence),
        prompt_plots=_both(evidence, plan, plots.prompts),
        frame_plots=_both(evidence, plan, plots.frames),
        dots=plots.DOTS,
        paired=_script(_paired(evidence, plan)),
        can_pair=len(evidence.drawn()) > 0,
        maps=maps.plan_maps(evidence),
        gallery=shown,
        players=_players(shown, evidence),
        lists=_lists(shown),
        sheets=_script(shown.sheets),
        settings=_settings(plan),
        machines=evidence.machines(),
        journal=evidence.journal,
        command=command(plan),
        prompts_file=_prompts_file(plan),
        style=_data("style.css"),
        scripts=[_data(name) for name in ("player.js", "paired.js", "page.js")],
    )


def _with_titles(metrics: Iterable[str], title: Callable[[str], str]) -> list[tuple[str, str]]:
    return [(metric, title(metric).split(",")[0]) for metric in metrics]


def _breakable(label: str) -> Any:
    """A method's label that breaks before its number and after its owner."""
    from markupsafe import Markup, escape

    return Markup(str(escape(label)).replace(":", "<wbr>:").replace("/", "/<wbr>"))


def _fixed(value: float, decimals: int, scale: float = 1) -> str:
    return f"{value * scale:.{decimals}f}".replace("-", "−")


def _signed(value: float, decimals: int) -> str:
    return f"{value:+.{decimals}f}".replace("-", "−")


@dataclass(frozen=True)
class TableRow:
    """One row of the table, and what is told below it."""

    setting: Setting
    row: MethodSummary
    variable: str | None
    marker: str
    floor: bool
    verdicts: list[tuple[str, str, Interval]]
    notes: list[tuple[str, str]]


def _rows(evidence: Evidence) -> list[TableRow]:
    slots = evidence.slots()
    found = []
    for setting, row in evidence.rows.items():
        style = (
            None if setting.method == UNCACHED or is_floor(setting) else look(slots[setting.method])
        )
        found.append(
            TableRow(
                setting,
                row,
                style.variable if style else None,
                style.marker if style else "",
                is_floor(setting),
                _verdicts(row),
                _notes(row),
            )
        )
    return found


def _verdicts(row: MethodSummary) -> list[tuple[str, str, Interval]]:
    """(metric, verdict, difference) for the preferred metrics that were compared."""
    return [
        (name, str(told["verdict"]), Interval(told["value"], told["low"], told["high"], told["n"]))
        for name in PREFERRED[:2]
        if (told := row.against_steps.get(name)) and told["value"] is not None
    ]


def _notes(row: MethodSummary) -> list[tuple[str, str]]:
    notes = [("failed", error) for error in row.errors]
    if row.status["no effect"]:
        alike = "bit-equal to the uncached clip, and nothing was saved"
        notes.append(("no effect", f"{row.status['no effect']} of its clips: {alike}"))
    if row.exact_frames and not row.status["no effect"]:
        notes.append(
            ("exact", f"{row.exact_frames} of {row.frames} frames equal the uncached ones")
        )
    return notes + [("remark", text) for text in row.remarks]


def _counts(evidence: Evidence) -> dict[str, int]:
    statuses = [row.status for row in evidence.summary.rows]
    return {name: sum(status[name] for status in statuses) for name in statuses[0]}


def _ordered(metrics: tuple[str, ...]) -> list[str]:
    first = [name for name in PREFERRED if name in metrics]
    return first + [name for name in metrics if name not in first]


def _preferred(plan: EvaluationSpec) -> list[str]:
    """The metrics that are drawn: the preferred ones, else the first that there is."""
    return [name for name in PREFERRED if name in plan.metrics][:3] or list(plan.metrics[:1])


def _fronts(evidence: Evidence, plan: EvaluationSpec) -> dict[tuple[str, str], tuple[str, str]]:
    return {
        (axis.key, metric): found
        for metric in _preferred(plan)
        for axis in front.AXES
        if (found := front.front(evidence, axis, metric)) is not None
    }


def _ceiling(evidence: Evidence) -> float | None:
    """The PSNR at which scores are drawn at the edge, if some are."""
    ceiling = figures.CEILING[PSNR]
    scores = (evidence.by_prompt(setting, PSNR).values() for setting in evidence.drawn())
    return ceiling if any(value > ceiling for values in scores for value in values) else None


def _both(evidence: Evidence, plan: EvaluationSpec, draw: Any) -> dict[str, tuple[str, str]]:
    return {
        metric: found
        for metric in _preferred(plan)
        if (found := draw(evidence, metric)) is not None
    }


# what the scripts read


def _paired(evidence: Evidence, plan: EvaluationSpec) -> dict[str, Any]:
    """Every prompt's scores, and their differences to fewer steps at equal FLOPs."""
    slots, rows = evidence.slots(), evidence.rows
    drawn = evidence.drawn()
    names = [prompt.id for prompt in plan.prompts]
    metrics = {}
    for metric in _preferred(plan):
        scores, steps, told = [], [], []
        for setting in drawn:
            scores.append(_values(evidence.by_prompt(setting, metric), names))
            control = METHODS[setting.method].control
            steps.append(None if control else _values(evidence.minus_steps(setting, metric), names))
            against = rows[setting].against_steps.get(metric)
            told.append(_rounded(against) if against else None)
        metrics[metric] = {
            "title": figures.title(metric),
            "digits": figures.digits(metric),
            "higher": METRICS[metric].direction == "higher",
            "scores": scores,
            "minusSteps": steps,
            "told": told,
        }
    return {
        "prompts": names,
        "methods": [s.label for s in drawn],
        "colours": [look(slots[s.method]).variable for s in drawn],
        "metrics": metrics,
    }


def _values(by_prompt: dict[str, float], names: list[str]) -> list[float | None]:
    return [None if name not in by_prompt else _short(by_prompt[name]) for name in names]


def _rounded(told: dict[str, Any]) -> dict[str, Any]:
    return {k: _short(v) if isinstance(v, float) else v for k, v in told.items()}


def _short(value: float) -> float:
    return float(f"{value:.{_SIGNIFICANT}g}")


def _players(shown: clips.Gallery, evidence: Evidence) -> list[dict[str, Any]]:
    texts = {prompt.id: prompt.prompt for prompt in evidence.plan.prompts}
    slots = evidence.slots()
    return [
        {
            "label": (pair := player.chosen.pair).setting.label,
            "variable": look(slots[pair.setting.method]).variable,
            "prompt": texts[pair.prompt],
            "prompt_id": pair.prompt,
            "seed": pair.job.clip.seed,
            "psnr": player.chosen.psnr_db,
            "ranks": player.chosen.ranks,
            "data": json.dumps(
                {
                    "sheets": player.sheets,
                    "frames": player.frames,
                    "columns": player.columns,
                    "width": player.width,
                    "height": player.height,
                    "fps": player.fps,
                    "opensAt": player.opens_at,
                }
            ),
            "width": player.width,
            "height": player.height,
            "frames": player.frames,
            "factor": player.factor,
        }
        for player in shown.players
    ]


def _lists(shown: clips.Gallery) -> list[tuple[str, str]]:
    """(name, what the reader chooses) of every list that has a clip."""
    names = dict.fromkeys(name for player in shown.players for name in player.chosen.ranks)
    everything = "all accelerated methods together"
    return [(name, everything if name == clips.ALL else name) for name in names]


def _script(content: Any) -> str:
    """JSON that may stand inside a script element."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# how to make it again


def _settings(plan: EvaluationSpec) -> list[tuple[str, str]]:
    clip = plan.clip
    found = [
        ("model", plan.model.name),
        ("pipeline", plan.model.pipeline),
        ("fingerprint of the weights", plan.model.fingerprint),
        ("clip", f"{clip.frames} frames of {clip.width} × {clip.height} pixels"),
        ("steps", f"{clip.steps}"),
        ("guidance", f"{clip.guidance:g}"),
        ("negative prompt", clip.negative or "none"),
        ("seeds", ", ".join(map(str, plan.seeds))),
        ("dtype, device", f"{plan.dtype}, {plan.device}"),
    ]
    if clip.fps:
        found.insert(4, ("frames per second", f"{clip.fps:g}"))
    if plan.static:
        found.append(("plans", "static: every run does the same, without a guard"))
    if plan.cache_memory is not None:
        found.append(("kept values of plans", f"at most {plan.cache_memory} bytes"))
    return [*found, *((name, version) for name, version in plan.versions.items())]


def command(plan: EvaluationSpec) -> str:
    """The command that makes this evaluation, given its prompts as `prompts.jsonl`."""
    clip = plan.clip
    own = plan.model.name not in (EMBEDDED, miniature.MINIATURE_NAME)
    options: list[tuple[str, Any]] = [
        ("--model", plan.model.name if own else None),
        ("--methods", ",".join(setting.label for setting in plan.methods)),
        ("--metrics", ",".join(plan.metrics)),
        ("--seeds", ",".join(map(str, plan.seeds))),
        *((f"--{name}", getattr(clip, name)) for name in _OPTIONS),
        ("--dtype", plan.dtype),
        ("--device", plan.device),
        ("--cache-memory", plan.cache_memory),
        ("--out", "runs/again"),
    ]
    parts = ["dit-accel evaluate prompts.jsonl"]
    for name, value in options:
        if value is not None and (name != "--negative" or value):
            text = f"{value:g}" if isinstance(value, float) else str(value)
            parts.append(f"{name} {shlex.quote(text)}")
    if plan.static:
        parts.append("--static")
    if not plan.keep_clips:
        parts.append("--no-keep-clips")
    return " \\\n  ".join(parts)


_OPTIONS = ("steps", "guidance", "height", "width", "frames", "fps", "negative")


def _prompts_file(plan: EvaluationSpec) -> str:
    lines = (
        {key: value for key, value in dataclasses.asdict(prompt).items() if value is not None}
        for prompt in plan.prompts
    )
    return "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)


def _data(name: str) -> str:
    return (importlib.resources.files("dit_accel.evaluation.html") / name).read_text(
        encoding="utf-8"
    )
