"""What a run tells the reader at its end: a few aligned lines, and a strip of the steps."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from dit_accel.cli.common.files import Files

if TYPE_CHECKING:
    from dit_accel import Report, SiteReport
    from dit_accel.cli.run.settings import Settings
    from dit_accel.core.generation import Generation
    from dit_accel.planning.prediction import PlanChoice

SHADES = "·░▒▓█"
PLAIN_SHADES = ".-+x#"
STRIP_WIDTH = 50
LABEL_WIDTH = 16

Row = tuple[str, str | Text]


def show(
    files: Files,
    settings: Settings,
    take: Generation,
    comparison: dict[str, Any] | None,
    promise: dict[str, Any] | None = None,
) -> None:
    """Print the summary of a run on stdout."""
    console = Console(highlight=False)
    plain = not console.encoding.lower().startswith("utf")
    rows = [*_file_rows(files), *_setting_rows(settings), *_cost_rows(take, settings.device)]
    if take.report is not None:
        rows += _report_rows(take.report, PLAIN_SHADES if plain else SHADES)
    if comparison is not None:
        rows += _comparison_rows(comparison)
    if promise is not None:
        rows += _promise_rows(promise)
    print_aligned(console, rows)


def foretold(settings: Settings, choice: PlanChoice) -> str:
    """One line before the run: what was asked for, and what is expected of it."""
    from dit_accel.planning.prediction import describe

    by_quality = settings.quality is not None
    asked = f"quality {settings.quality:g} dB" if by_quality else f"speedup {settings.speedup:g}x"
    return " ".join((f"{asked}: {describe(choice)}.", *choice.notes))


def strip(shares: Sequence[float], shades: str = SHADES) -> str:
    """One sign a step: how much of it was computed, from none to all of the sites."""
    signs = [shades[_shade(share, len(shades))] for share in shares]
    lines = [signs[at : at + STRIP_WIDTH] for at in range(0, len(signs), STRIP_WIDTH)]
    return "\n".join("".join(line) for line in lines)


def shares_computed(sites: Iterable[SiteReport], steps: int) -> list[float]:
    """For every step the share of the sites that were computed at it, among those that ran."""
    computed, ran = [0] * steps, [0] * steps
    for site in sites:
        for step in site.computed:
            computed[step] += 1
            ran[step] += 1
        for step in site.served:
            ran[step] += 1
    return [done / total if total else 0.0 for done, total in zip(computed, ran, strict=True)]


def seconds_text(seconds: float) -> str:
    """Seconds as people read them: `0.42 s`, `12.3 s`, `3 min 20 s`."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def bytes_text(count: int) -> str:
    """Bytes in the unit that leaves one to four digits before the point."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _shade(share: float, count: int) -> int:
    """None and all have a sign of their own; what lies between never reads as either."""
    if share <= 0 or share >= 1:
        return 0 if share <= 0 else count - 1
    return 1 + min(count - 3, int(share * (count - 2)))


def print_aligned(console: Console, rows: Sequence[Row]) -> None:
    """Label and value a line; long values are left to the terminal, so that paths can be copied."""
    for label, value in rows:
        text = value if isinstance(value, Text) else Text(value)
        for index, line in enumerate(text.split("\n", allow_blank=True)):
            start = f"{label if index == 0 else '':<{LABEL_WIDTH}}"
            shown = Text.assemble((start, "dim"), line) if line else Text()
            console.print(shown, soft_wrap=True)


def _file_rows(files: Files) -> list[Row]:
    return [
        (name, Text(str(path), style="bold" if name == "video" else ""))
        for name, path in files.present().items()
    ]


def _setting_rows(settings: Settings) -> list[Row]:
    clip = (
        f"{settings.width}x{settings.height}, {settings.frames} frames at {settings.fps:g} fps, "
        f"{settings.steps} steps, guidance {settings.guidance:g}, seed {settings.seed}"
    )
    where = f"{settings.model} ({settings.pipeline}), {settings.dtype} on {settings.device}"
    prompts = settings.prompts or (settings.prompt,)
    said = [("prompt" if i == 0 else "", prompt) for i, prompt in enumerate(prompts)]
    return [("", ""), *said, ("clip", clip), ("model", where)]


def _cost_rows(take: Generation, device: str) -> list[Row]:
    rows: list[Row] = [("", ""), ("time", _times(take.denoising_seconds, take.whole_seconds))]
    if take.peak_memory_bytes is not None:
        whose = "the whole process" if device == "cpu" else device
        rows.append(("peak memory", f"{bytes_text(take.peak_memory_bytes)} ({whose})"))
    return rows


def _times(denoising: float, whole: float) -> str:
    return f"{seconds_text(denoising)} denoising, {seconds_text(whole)} in all"


def _report_rows(report: Report, shades: str) -> list[Row]:
    computed = f"{report.steps_computed:.1f}".removesuffix(".0")
    rest = f"{report.steps - report.steps_computed:.1f}".removesuffix(".0")
    rows: list[Row] = [
        ("cache", f"site {report.site}, {report.rule}"),
        ("steps", f"{computed} computed, {rest} {_served(report)} (mean over the sites)"),
        *_strip_rows(report, shades),
        ("FLOPs kept", _flops(report)),
        ("kept values", _kept(report)),
        *_scene_rows(report),
        *(("", Text(note, style="yellow")) for note in report.notes),
    ]
    if not any(site.served for site in report.sites):
        rows.append(("", Text(_nothing_reused(report), style="yellow")))
    return rows


def _scene_rows(report: Report) -> list[Row]:
    """Tokens by class of every row, and what isolation and references added or saved."""
    scene = report.scene
    if scene is None:
        return []
    rows: list[Row] = []
    for name, classes in scene.classes.items():
        counts = ", ".join(f"{label} {count}" for label, count in classes.items())
        read = f"; reads {scene.reads[name]}" if name in scene.reads else ""
        rows.append(("scene" if not rows else "", f"{name}: tokens of {counts}{read}"))
    rows.append(("", f"{scene.extra_flops / 1e9:+.2f} GFLOPs beside the stock attention's"))
    return [*rows, *(("", note) for note in scene.notes)]


def _served(report: Report) -> str:
    """What became of the steps that were not computed."""
    return "forecast" if any(site.forecast for site in report.sites) else "reused"


def _kept(report: Report) -> str:
    held = bytes_text(report.kept_bytes)
    packed, away = report.packed_bytes, report.offloaded_bytes
    if packed:
        held += f", {bytes_text(packed)} of them packed to {report.packed_bits} bits"
    return f"{held} on the device, {bytes_text(away)} on the CPU" if away else held


def _flops(report: Report) -> str:
    if report.flops_kept is None:
        return "not counted"
    return f"{report.flops_kept:.1%} of the uncached run's"


def _nothing_reused(report: Report) -> str:
    if report.threshold == 0 and report.scene is not None:
        return "threshold 0 reuses nothing: this is the scene without a cache"
    if report.threshold == 0:
        return "threshold 0 reuses nothing: this is the stock pipeline's clip"
    if report.threshold is None:
        return "every step was computed, so nothing was saved"
    return "nothing was reused, so nothing was saved: raise --threshold, or take more --steps"


def _strip_rows(report: Report, shades: str) -> list[Row]:
    """A strip for each branch, those alike in one; a sign is a share of the branch's sites."""
    sites: dict[str, list[SiteReport]] = defaultdict(list)
    for site in report.sites:
        sites[site.branch].append(site)
    alike: dict[str, list[str]] = defaultdict(list)
    for branch, group in sites.items():
        alike[strip(shares_computed(group, report.steps), shades)].append(branch)
    rows: list[Row] = [
        (f"  {', '.join(branches)}", Text(line, style="cyan")) for line, branches in alike.items()
    ]
    legend = f"{shades[-1]} computed, {shades[0]} {_served(report)}"
    if any(len(group) > 1 for group in sites.values()):
        legend = f"share of the sites computed at a step, none to all: {' '.join(shades)}"
    return [*rows, ("", Text(legend, style="dim"))]


def _comparison_rows(comparison: dict[str, Any]) -> list[Row]:
    fidelity, twin = comparison["fidelity"], comparison["uncached"]
    spent = _times(twin["denoising_seconds"], twin["whole_seconds"])
    return [
        ("", ""),
        ("uncached twin", spent),
        ("speedup", _speedup(comparison)),
        ("PSNR", Text(_psnr(comparison), style="bold")),
        ("SSIM", Text(f"{fidelity['ssim']['value']:.4f}", style="bold")),
    ]


def _promise_rows(promise: dict[str, Any]) -> list[Row]:
    """Promised against measured."""
    told, found = promise["foretold"], promise["measured"]
    speed = f"{told['speedup']:.2f}x foretold, {found['speedup']:.2f}x measured (computed steps)"
    rows: list[Row] = [("", ""), ("speed", speed)]
    if not math.isinf(told["psnr_db"]):
        text = f"{told['psnr_db']:.1f} dB [{told['low_db']:.1f}, {told['high_db']:.1f}] foretold"
        rows.append(("quality", f"{text}{_measured(promise)}"))
    if promise["quality"] is not None and promise["reached"] is not None:
        kept = "reached" if promise["reached"] else "missed"
        style = "bold green" if promise["reached"] else "bold yellow"
        rows.append(("", Text(f"{promise['quality']:g} dB asked for: {kept}", style=style)))
    return rows


def _measured(promise: dict[str, Any]) -> str:
    psnr = promise["measured"]["psnr_db"]
    if psnr is None:
        return "; --compare measures it"
    where = "above" if psnr > promise["foretold"]["psnr_db"] else "below"
    return f", {psnr:.1f} dB measured" + ("" if promise["inside"] else f" ({where} it)")


def _psnr(comparison: dict[str, Any]) -> str:
    if comparison["identical"]:
        return "the clips are identical"
    return f"{comparison['fidelity']['psnr_db']['value']:.2f} dB"


def _speedup(comparison: dict[str, Any]) -> Text:
    loop, whole = comparison["speedup_denoising"], comparison["speedup_whole"]
    if not loop or not whole:
        return Text("not measured")
    style = "bold green" if loop > 1 else "bold yellow"
    return Text(f"{loop:.2f}x denoising, {whole:.2f}x in all", style=style)
