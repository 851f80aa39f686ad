"""The options of `generate`, one line of help each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dit_accel.caching.windows import DEFAULT_THRESHOLD
from dit_accel.cli.run.request import ACCELS, BACKGROUNDS, DTYPE_NAMES
from dit_accel.models.families import SITES

_CACHE, _CLIP, _MACHINE, _RESULT = "What is reused", "The clip", "The machine", "The result"
_SCENE = "The scene"

Prompt = Annotated[
    str,
    typer.Argument(
        metavar="[PROMPT]", help="What the clip shows; not with --layout.", show_default=False
    ),
]
Layout = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Subjects, boxes and shots (YAML or JSON): one clip a shot, and a sheet of them.",
        show_default=False,
        rich_help_panel=_SCENE,
    ),
]
Isolation = Annotated[
    bool | None,
    typer.Option(
        "--isolation/--no-isolation",
        help="Whether subjects attend to each other no more.",
        show_default="isolation",
        rich_help_panel=_SCENE,
    ),
]
Reposition = Annotated[
    bool | None,
    typer.Option(
        "--reposition/--no-reposition",
        help="Whether references are read as if they stood in the subject's box.",
        show_default="reposition",
        rich_help_panel=_SCENE,
    ),
]
Alpha = Annotated[
    float | None,
    typer.Option(help="Strength of reposition, 0 to 1.", show_default="1", rich_help_panel=_SCENE),
]
Background = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(BACKGROUNDS),
        help="Whether the background sees the subjects.",
        show_default="open",
        rich_help_panel=_SCENE,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="A diffusers folder or a hub id; else the embedded miniature.",
        show_default=False,
        metavar="FOLDER|HUB/ID",
    ),
]
Quality = Annotated[
    float | None,
    typer.Option(
        metavar="DB",
        help="PSNR against the uncached clip, which 95 % of clips shall reach.",
        show_default="36 where a profile is found",
        rich_help_panel=_CACHE,
    ),
]
Speedup = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="So many times fewer computed steps.",
        show_default=False,
        rich_help_panel=_CACHE,
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        help="The largest drift that a reused value may have; 0 reuses nothing.",
        show_default=f"{DEFAULT_THRESHOLD} where no profile is found",
        rich_help_panel=_CACHE,
    ),
]
Profile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="What `calibrate` measured.",
        show_default="in the model's folder, or in the cache",
        rich_help_panel=_CACHE,
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Use the profile of another model all the same.", rich_help_panel=_CACHE
    ),
]
NoGuard = Annotated[
    bool,
    typer.Option(
        "--no-guard", help="Keep to the plan, whatever is measured.", rich_help_panel=_CACHE
    ),
]
Static = Annotated[
    bool,
    typer.Option(
        "--static",
        help="Every run does the same and the device is not read on the way: no guard.",
        rich_help_panel=_CACHE,
    ),
]
CacheMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="What kept values may hold on the device, e.g. 512MiB: packed, then moved to the CPU.",
        show_default="no bound",
        rich_help_panel=_CACHE,
    ),
]
Accel = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(ACCELS),
        help="All that pays, by a plan; or the paper's windows and pruning, by --threshold.",
        show_default=ACCELS[0],
        rich_help_panel=_CACHE,
    ),
]
Site = Annotated[
    str,
    typer.Option(
        metavar="|".join(SITES),
        help="The place whose output is kept and used again.",
        rich_help_panel=_CACHE,
    ),
]
Compare = Annotated[
    bool,
    typer.Option(
        "--compare",
        help="Make the uncached twin too: PSNR, SSIM, speedup, side-by-side clip.",
        rich_help_panel=_RESULT,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_RESULT),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Ends in .mp4, .mkv or .npy (both lossless), .gif or .png; else named by the prompt.",
        show_default=False,
        rich_help_panel=_RESULT,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace files that exist.", rich_help_panel=_RESULT),
]
Seed = Annotated[int, typer.Option(help="Draws the noise.", rich_help_panel=_CLIP)]
Steps = Annotated[
    int | None,
    typer.Option(help="Denoising steps.", show_default="the model's", rich_help_panel=_CLIP),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        help="Weight of the prompt; 1 or less is without guidance.",
        show_default="the model's",
        rich_help_panel=_CLIP,
    ),
]
Height = Annotated[
    int | None,
    typer.Option(
        help="Of the frames in pixels.", show_default="the model's", rich_help_panel=_CLIP
    ),
]
Width = Annotated[
    int | None,
    typer.Option(
        help="Of the frames in pixels.", show_default="the model's", rich_help_panel=_CLIP
    ),
]
Frames = Annotated[
    int | None,
    typer.Option(help="How many.", show_default="the model's", rich_help_panel=_CLIP),
]
Fps = Annotated[
    float | None,
    typer.Option(
        help="Frames per second of the file.", show_default="the model's", rich_help_panel=_CLIP
    ),
]
Negative = Annotated[
    str | None,
    typer.Option(help="What the clip must not show.", show_default=False, rich_help_panel=_CLIP),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(DTYPE_NAMES),
        help="What to compute in; the VAE stays in float32.",
        show_default="bfloat16 on CUDA, else float32",
        rich_help_panel=_MACHINE,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda, cuda:N or mps.",
        show_default="cuda if there is one, else cpu",
        rich_help_panel=_MACHINE,
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        help="Let diffusers and transformers speak, and show tracebacks.",
        rich_help_panel=_MACHINE,
    ),
]
