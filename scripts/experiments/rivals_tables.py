"""Makes tables and curves from the measurements of `table_rivals.py`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dit_accel.core.files import placed
from dit_accel.evaluation.statistics import mean

BOUND = "bns"  # the widest family of weighted sums, trained: what 500 iterations find of its best
Cell = Callable[[dict[str, Any]], str]


def write(folder: Path) -> None:
    """Write `table.md` and, if matplotlib is installed, `curves.svg`. Prints the tables."""
    uncached = read_json(folder / "uncached.json")
    results = read(folder)
    text = tables(uncached, results)
    (folder / "table.md").write_text(text, encoding="utf-8")
    print(text)
    try:
        draw(folder / "curves.svg", results)
    except ImportError:
        print("No curves: matplotlib is not installed.")


def read(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Results by method and k."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted((folder / "results").glob("*.json")):
        result = read_json(path)
        found.setdefault(result["method"], {})[result["k"]] = result
    return found


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    with placed(path) as scratch:
        scratch.write_text(json.dumps(content) + "\n", encoding="utf-8")


def place(folder: Path, method: str, k: int) -> Path:
    """The file of a result in a folder."""
    return folder / "results" / f"{method.replace('/', '--')}-{k}.json"


def pack(folder: Path, target: Path) -> None:
    """All results of a folder in one file, scores to two decimals."""
    results = [result for runs in read(folder).values() for result in runs.values()]
    for result in results:
        for name, scores in result.get("scores", {}).items():
            result["scores"][name] = [_short(score) for score in scores]
    uncached = read_json(folder / "uncached.json")
    target.write_text(json.dumps({"uncached": uncached, "results": results}), encoding="utf-8")


def unpack(source: Path, folder: Path) -> None:
    """Write the results of such a file into a folder, unless the folder has them."""
    known = read_json(source)
    files = {folder / "uncached.json": known["uncached"]}
    files |= {place(folder, r["method"], r["k"]): r for r in known["results"]}
    for path, content in files.items():
        if not path.exists():
            path.write_text(json.dumps(content), encoding="utf-8")


def _short(score: float | None) -> float | None:
    return score if score is None else float(f"{score:.4g}") if abs(score) < 1 else round(score, 2)


def tables(uncached: dict[str, Any], results: dict[str, dict[int, dict[str, Any]]]) -> str:
    """One table for each metric, then costs. Methods are sorted by their mean over all k, the best
    first."""
    done = [r for runs in results.values() for r in runs.values() if "scores" in r]
    metrics = list(dict.fromkeys(name for result in done for name in result["scores"]))
    steps = sorted({k for runs in results.values() for k in runs}, reverse=True)
    machine = uncached["machine"]
    if not metrics:
        return f"{uncached['model']}: no method has a result yet.\n"
    parts = [
        f"{uncached['model']}, {uncached['prompts']} prompts (fewer where given), "
        f"{uncached['steps']} steps uncached: {uncached['seconds']:.2f} s a clip on "
        f"{machine['device_name']}, torch {uncached['torch']}. Calibration in uncached runs.\n"
    ]
    for metric in metrics:
        parts.append(_table(f"{metric}, mean ± half of its 95 % interval", results, steps,
                            lambda r, m=metric: _score(r, m), metrics[0]))  # fmt: skip
    parts.append(_table("calibration in uncached runs", results, steps, _runs, metrics[0]))
    parts.append(_table("seconds a clip; share of the FLOPs; computed steps", results, steps,
                        _cost, metrics[0]))  # fmt: skip
    if any("cpu_share" in result for result in done):
        parts.append(_table("share of the uncached CPU-seconds, one thread", results, steps,
                            _cpu, metrics[0]))  # fmt: skip
    parts += [f"{r['method']} {r['k']}: {r['error']}." for runs in results.values()
              for r in runs.values() if "error" in r]  # fmt: skip
    return "\n".join(parts) + "\n"


def _table(
    title: str, results: dict[str, dict[int, dict[str, Any]]], steps: list[int], cell: Cell,
    ranked_by: str,
) -> str:  # fmt: skip
    lines = [f"| {title} | calibration | " + " | ".join(f"{k}" for k in steps) + " |",
             "|---" * (len(steps) + 2) + "|"]  # fmt: skip
    for name in sorted(results, key=lambda n: -_level(results[n], ranked_by)):
        cells = [cell(results[name][k]) if k in results[name] else "" for k in steps]
        lines.append(f"| {name} | {_calibration(results[name])} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _level(runs: dict[int, dict[str, Any]], metric: str) -> float:
    means = [v for r in runs.values() if (v := value(r, metric)) is not None]
    return statistics.fmean(means) if means else -1e9


def value(result: dict[str, Any], metric: str) -> float | None:
    """The mean of a score over prompts."""
    known = [v for v in (result.get("scores") or {}).get(metric, []) if v is not None]
    return statistics.fmean(known) if known else None


def _score(result: dict[str, Any], metric: str) -> str:
    known = [v for v in (result.get("scores") or {}).get(metric, []) if v is not None]
    if not known:
        return "–"
    found, digits = mean(known), 1 if metric == "psnr_db" else 3
    half = "" if found.low is None or found.high is None else (
        f" ± {(found.high - found.low) / 2:.{digits}f}"
    )  # fmt: skip
    few = f" ({len(known)})" if result.get("alone") else ""
    return f"{found.value:.{digits}f}{half}{few}"


def _calibration(runs: dict[int, dict[str, Any]]) -> str:
    """A method's calibration: the range of runs and of seconds over its settings."""
    known = [r["calibration_runs"] for r in runs.values() if r.get("calibration_runs") is not None]
    if not known:
        return "–"
    seconds = [r["calibration_seconds"] or 0.0 for r in runs.values() if "calibration_seconds" in r]
    return f"{_span(known)} runs, {_span(seconds)} s" if max(known) else "none"


def _span(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.0f}" if round(low) == round(high) else f"{low:.0f} to {high:.0f}"


def _runs(result: dict[str, Any]) -> str:
    runs = result.get("calibration_runs")
    return "–" if runs is None else f"{runs:.1f}"


def _cpu(result: dict[str, Any]) -> str:
    return f"{result['cpu_share']:.0%}" if "cpu_share" in result else "–"


def _cost(result: dict[str, Any]) -> str:
    if "flops_kept" not in result:
        return "–"
    seconds = f"{result['seconds']:.2f}" if "seconds" in result else "–"  # – of a row from a CPU
    return f"{seconds}; {result['flops_kept']:.0%}; {result['steps_computed']:.1f}"


def draw(target: Path, results: dict[str, dict[int, dict[str, Any]]]) -> None:
    """Draw PSNR over FLOPs, with BNS in black."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 7))
    for name, runs in sorted(results.items()):
        points = sorted((r["flops_kept"], v) for r in runs.values()
                        if (v := value(r, "psnr_db")) is not None)  # fmt: skip
        if points:
            bound = name == BOUND
            axes.plot(*zip(*points, strict=True), label=name, marker=".",
                      lw=2.5 if bound else 1, color="black" if bound else None,
                      ls="--" if bound else "-")  # fmt: skip
    axes.set(xlabel="share of the uncached FLOPs", ylabel="PSNR to the uncached clip, dB")
    axes.legend(fontsize=6, ncols=3)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(target)
    pyplot.close(figure)
