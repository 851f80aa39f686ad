"""Prints what the user reads at the end of a run: aligned lines, and a strip of its steps.

In: files, settings, the run and its report. Out: text on stdout.
Knows how values are shown; measures nothing. Ours.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.text import Text

from dit_accel.cli.common.files import Files
from dit_accel.cli.common.text import (
    bytes_text,
    counted,
    plain_console,
    print_aligned,
    seconds_text,
    shades_of,
    strip,
)

if TYPE_CHECKING:
    from dit_accel import Report, SiteReport
    from dit_accel.cli.common.text import Row
    from dit_accel.cli.run.settings import Settings
    from dit_accel.core.generation import Generation
    from dit_accel.planning.choice import PlanChoice


def show(files: Files, settings: Settings, result: Generation, content: dict[str, Any]) -> None:
    """Print the summary of a run on stdout.

    Args:
        content: the run's record, from `sidecar.record`.
    """
    console = plain_console()
    rows = [*_file_rows(files), *_setting_rows(settings), *_cost_rows(result, settings.device)]
    rows[-1:-1] = _stage_rows(content["costs"]["stage_seconds"])
    if result.report is not None:
        rows += _report_rows(result.report, shades_of(console))
    if content["comparison"] is not None:
        rows += _comparison_rows(content["comparison"])
    if content["target"] is not None:
        rows += _target_rows(content["target"])
    print_aligned(console, rows)


def show_clip(files: Files, content: dict[str, Any]) -> None:
    """Print one line on stdout: a clip of many, its seconds, and the PSNR if it is known."""
    line = f"{files.video}  {seconds_text(content['costs']['whole_seconds'])}"
    if content["comparison"] is not None:
        line += f"  {_psnr(content['comparison'])}"
    plain_console().print(line, soft_wrap=True)


def show_stages(stages: dict[str, float]) -> None:
    """Print the seconds of all clips by stage."""
    print_aligned(plain_console(), [("", ""), *_stage_rows(stages)])


def show_plan(settings: Settings, more: list[Row]) -> None:
    """Print the settings of a run that is not made."""
    print_aligned(plain_console(), [*_setting_rows(settings)[1:], ("", ""), *more])


def announcement(settings: Settings, choice: PlanChoice) -> str:
    """One line before the run: the target, and the prediction."""
    from dit_accel.planning.choice import describe

    by_quality = settings.quality is not None
    target = f"quality {settings.quality:g} dB" if by_quality else f"speedup {settings.speedup:g}x"
    return " ".join((f"{target}: {describe(choice)}.", *choice.said))


def shares_computed(sites: Iterable[SiteReport], steps: int) -> list[float]:
    """The share of computed sites at each step, among the sites that ran at that step."""
    computed, ran = [0] * steps, [0] * steps
    for site in sites:
        for step in site.computed:
            computed[step] += 1
            ran[step] += 1
        for step in site.not_computed:
            ran[step] += 1
    return [done / total if total else 0.0 for done, total in zip(computed, ran, strict=True)]


def _file_rows(files: Files) -> list[Row]:
    return [
        (name, Text(str(path), style="bold" if name == "video" else ""))
        for name, path in files.present().items()
    ]


def _setting_rows(settings: Settings) -> list[Row]:
    second = "" if settings.guidance_2 is None else f", then {settings.guidance_2:g}"
    clip = (
        f"{settings.width}x{settings.height}, {counted(settings.frames, 'frame')} at "
        f"{settings.fps:g} fps, {counted(settings.steps, 'step')}, "
        f"guidance {settings.guidance:g}{second}, seed {settings.seed}"
    )
    where = f"{settings.model} ({settings.pipeline}), {settings.dtype} on {settings.device}"
    prompts = settings.prompts or (settings.prompt,)
    rows: list[Row] = [("prompt" if i == 0 else "", text) for i, text in enumerate(prompts)]
    return [("", ""), *rows, ("clip", clip), ("model", where)]


def _cost_rows(result: Generation, device: str) -> list[Row]:
    rows: list[Row] = [("", ""), ("time", _times(result.denoising_seconds, result.whole_seconds))]
    if result.peak_memory_bytes is not None:
        whose = "the whole process" if device == "cpu" else device
        rows.append(("peak memory", f"{bytes_text(result.peak_memory_bytes)} ({whose})"))
    return rows


def _stage_rows(stages: dict[str, float]) -> list[Row]:
    """Seconds of each stage, and their shares."""
    whole = sum(stages.values()) or 1.0
    texts = [f"{name} {seconds_text(s)} ({s / whole:.0%})" for name, s in stages.items()]
    return [("by stage" if not i else "", text) for i, text in enumerate(texts)]


def _times(denoising: float, whole: float) -> str:
    return f"{seconds_text(denoising)} denoising, {seconds_text(whole)} in all"


def _report_rows(report: Report, shades: str) -> list[Row]:
    computed, flops = round(report.steps_computed, 1), report.flops_kept
    rest = round(report.steps - report.steps_computed, 1)
    rows: list[Row] = [
        ("cache", f"site {report.site}, {report.rule}"),
        ("steps", f"{computed:g} computed, {rest:g} {_other_steps(report)} (mean over the sites)"),
        *_strip_rows(report, shades),
        ("FLOPs", "not counted" if flops is None else f"{flops:.1%} of the uncached run's"),
        ("cached values", _cached(report)),
        *_scene_rows(report),
        *(("", Text(note, style="yellow")) for note in report.notes),
    ]
    if not any(site.not_computed for site in report.sites):
        rows.append(("", Text(_nothing_cached(report), style="yellow")))
    return rows


def _scene_rows(report: Report) -> list[Row]:
    """Tokens by class of every row, and the cost or savings of isolation and references."""
    scene = report.scene
    if scene is None:
        return []
    rows: list[Row] = []
    for name, classes in scene.tokens.items():
        counts = ", ".join(f"{label} {count}" for label, count in classes.items())
        read = f"; reads {scene.reference_tokens[name]}" if name in scene.reference_tokens else ""
        rows.append(("scene" if not rows else "", f"{name}: tokens of {counts}{read}"))
    rows.append(("", f"{scene.extra_flops / 1e9:+.2f} GFLOPs against the stock attention"))
    return [*rows, *(("", note) for note in scene.notes)]


def _other_steps(report: Report) -> str:
    """A word for the steps that were not computed."""
    return "extrapolated" if any(site.extrapolated for site in report.sites) else "cached"


def _cached(report: Report) -> str:
    text = bytes_text(report.cached_bytes)
    packed, offloaded = report.packed_bytes, report.offloaded_bytes
    if packed:
        text += f", {bytes_text(packed)} of them packed to {report.packed_bits} bits"
    if offloaded:
        text += f" in GPU memory, {bytes_text(offloaded)} offloaded to the CPU"
    return text


def _nothing_cached(report: Report) -> str:
    if report.threshold == 0:
        what = "the scene without a cache" if report.scene is not None else "the stock pipeline"
        return f"threshold 0 caches nothing: this is {what}"
    if report.threshold is None:
        return "every step was computed, so nothing was saved"
    return "every step was computed, so nothing was saved: raise --threshold or --steps"


def _strip_rows(report: Report, shades: str) -> list[Row]:
    """A strip for each branch; equal strips are one. A sign stands for a share of the branch's
    sites."""
    sites: dict[str, list[SiteReport]] = defaultdict(list)
    for site in report.sites:
        sites[site.branch].append(site)
    equal: dict[str, list[str]] = defaultdict(list)
    for branch, group in sites.items():
        equal[strip(shares_computed(group, report.steps), shades)].append(branch)
    rows: list[Row] = [
        (f"  {', '.join(branches)}", Text(line, style="cyan")) for line, branches in equal.items()
    ]
    legend = f"{shades[-1]} computed, {shades[0]} {_other_steps(report)}"
    if any(len(group) > 1 for group in sites.values()):
        legend = f"share of the sites computed at a step, none to all: {' '.join(shades)}"
    return [*rows, ("", Text(legend, style="dim"))]


def _comparison_rows(comparison: dict[str, Any]) -> list[Row]:
    fidelity, reference = comparison["fidelity"], comparison["uncached"]
    return [
        ("", ""),
        ("uncached", _times(reference["denoising_seconds"], reference["whole_seconds"])),
        ("speedup", _speedup(comparison)),
        ("PSNR", Text(_psnr(comparison), style="bold")),
        ("SSIM", Text(f"{fidelity['ssim']['value']:.4f}", style="bold")),
    ]


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


def _target_rows(target: dict[str, Any]) -> list[Row]:
    """Predicted and measured values."""
    predicted, measured = target["predicted"], target["measured"]
    steps = f"{predicted['speedup']:.2f}x predicted, {measured['speedup']:.2f}x measured"
    rows: list[Row] = [("", ""), ("step ratio", f"{steps} (total / computed steps)")]
    if target["speedup"] is not None:
        reasons = "; ".join(target["speedup_reasons"])
        reached = f"{target['speedup']:g}x asked, {measured['speedup']:.2f}x reached in steps"
        rows.append(("", reached + (f" ({reasons})" if reasons else "")))
    if not math.isinf(predicted["psnr_db"]):
        interval = f"[{predicted['low_db']:.1f}, {predicted['high_db']:.1f}]"
        text = f"{predicted['psnr_db']:.1f} dB {interval} predicted"
        rows.append(("quality", text + _measured(target)))
    if target["reached"] is not None:
        result = "reached" if target["reached"] else "missed"
        style = "bold green" if target["reached"] else "bold yellow"
        rows.append(("", Text(f"target {target['quality']:g} dB: {result}", style=style)))
    return rows


def _measured(target: dict[str, Any]) -> str:
    psnr = target["measured"]["psnr_db"]
    if psnr is None:
        return "; --compare measures it"
    where = "above" if psnr > target["predicted"]["psnr_db"] else "below"
    return f", {psnr:.1f} dB measured" + ("" if target["in_interval"] else f" ({where} it)")
