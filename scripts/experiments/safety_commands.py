"""The cases of the safety net that run `dit-accel`: every verb, and the files that it leaves.

Goes in: nothing. Comes out: `cases()`, functions by name. Each returns, for every command, its exit
code, the JSON or the text on stdout, the error of a refusal, and the content of every file. It
knows only the command line, which it calls in this process as the console script does. Models are
the embedded miniature and the tests' tiny Wan pipeline. Ours; there is no source.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safety_plain
import tiny_families
from tiny_families import PROMPTS, ROOT

Case = Callable[[], dict[str, Any]]

STEPS = 10
DEFAULTS = {
    "height": 16,
    "width": 16,
    "num_frames": 5,
    "num_inference_steps": STEPS,
    "guidance_scale": 4.0,
    "max_sequence_length": 16,
    "fps": 8,
}
CALIBRATE = (
    "--prompts", "prompts.txt", "--speedups", "1.5,2", "--probes", "2", "--limit", "3",
    "--minutes", "0",
)  # fmt: skip
METHODS = "uncached,edcw:0.6,unicp-paper:0.6,fewer-steps:5,quality:8,speedup:2"
SCORES = "psnr_db,ssim,mae,tdiff,flicker,tof,latent_rel_l2,latent_cosine"
TIMED = {"speedup"}  # in `evaluate` and `bench`: a ratio of seconds
GENERATE: dict[str, tuple[str, ...]] = {
    "threshold": ("--threshold", "0.6", "--compare"),
    "block": ("--threshold", "0.6", "--site", "block"),
    "unicp-paper": ("--accel", "unicp-paper", "--threshold", "0.6"),
    "quality": ("--profile", "tiny.safetensors", "--quality", "8", "--compare"),
    "speedup": ("--profile", "tiny.safetensors", "--speedup", "2", "--no-guard"),
    "static": ("--profile", "tiny.safetensors", "--speedup", "2", "--static"),
    "cache-memory": ("--profile", "tiny.safetensors", "--speedup", "2", "--cache-memory", "1KiB"),
    "no-profile": ("--quality", "8"),
    "bad-option": ("--threshold", "-1"),
}
MINIATURE: dict[str, tuple[str, ...]] = {
    "quality": (PROMPTS[0], "--quality", "32", "--compare"),
    "default": (PROMPTS[1],),
    "layout": ("--layout", str(ROOT / "assets/layouts/two-shots.yaml"), "--speedup", "2.5",
               "--steps", "20"),
}  # fmt: skip
PLAN: dict[str, tuple[str, ...]] = {
    "candidates": (),
    "quality": ("--quality", "32"),
    "speedup": ("--speedup", "2.5"),
    "transferred": ("--quality", "30", "--steps", "30", "--guidance", "5"),
    "cache-memory": ("--quality", "32", "--cache-memory", "300KiB"),
    "unreachable": ("--quality", "90"),
}


def cases() -> dict[str, Case]:
    """Every case by its name, `cli/verb`, in the order in which they run."""
    verbs = (calibrate, generate, miniature, plan, evaluate, score, bench, models, layouts)
    return {f"cli/{verb.__name__}": functools.partial(_inside, verb) for verb in verbs}


def calibrate() -> dict[str, Any]:
    """A profile of the tiny model."""
    return {"json": _calibrated()}


def generate() -> dict[str, Any]:
    """Clips of the tiny model, with every way to decide what is computed."""
    _calibrated()
    clip = (PROMPTS[0], "--model", "tiny", "--json", "--output", "clip.npy", "--overwrite")
    found = {name: _ran("generate", *clip, *more) for name, more in GENERATE.items()}
    return found | {"text": _ran("generate", PROMPTS[0], "--model", "tiny", "--output", "a.npy")}


def miniature() -> dict[str, Any]:
    """Clips with the model and the profile of the package."""
    clip = ("--json", "--output", "clip.npy", "--overwrite")
    return {name: _ran("generate", *more, *clip) for name, more in MINIATURE.items()}


def plan() -> dict[str, Any]:
    """Plans of the miniature's profile, as JSON and as text."""
    found = {name: _ran("plan", "--json", *more) for name, more in PLAN.items()}
    return found | {"text": _ran("plan", *PLAN["quality"])}


def evaluate() -> dict[str, Any]:
    """A comparison of methods, its page, and the clips for VBench."""
    _calibrated()
    options = ("--model", "tiny", "--methods", METHODS, "--metrics", SCORES, "--limit", "2")
    options += ("--profile", "tiny.safetensors", "--out", "run", "--json")
    return {
        "evaluate": _without(_ran("evaluate", "prompts.txt", *options), TIMED),
        "again": _without(_ran("evaluate", "prompts.txt", *options), TIMED),
        "report": _ran("report", "run"),
        "vbench-export": _ran("vbench-export", "run", "--out", "vbench"),
    }


def score() -> dict[str, Any]:
    """Two clips, two folders, and the conventions of other tools."""
    draw = np.random.default_rng(0)
    for name in ("one", "two"):
        clip = draw.integers(0, 256, (9, 48, 64, 3), np.uint8)
        for folder, values in (("ref", clip), ("test", clip // 2 + 30)):
            Path(folder).mkdir(exist_ok=True)
            np.save(f"{folder}/{name}.npy", values)
    pair = ("ref/one.npy", "test/one.npy")
    return {
        "files": _ran("score", *pair, "--json"),
        "folders": _ran("score", "ref", "test", "--json", "--metrics", "psnr_db,ssim"),
        **{
            name: _ran("score", *pair, "--json", "--convention", name)
            for name in ("teacache", "cache-dit", "easycache", "svg")
        },
        "text": _ran("score", *pair, "--metrics", "psnr_db,ssim,mae"),
    }


def bench() -> dict[str, Any]:
    """Small denoisers of all families, without times."""
    options = ("--small", "--steps", "6", "--rounds", "1", "--json")
    options += ("--methods", "uncached,edcw:0.8")
    return {name: _without(_ran("bench", *options, "--model", name), TIMED)
            for name in ("wan2.1-1.3b", "hunyuan-video", "cogvideox-5b", "ltx-video")}  # fmt: skip


def models() -> dict[str, Any]:
    """The table of families."""
    return {"json": _ran("models", "--json"), "text": _ran("models")}


def layouts() -> dict[str, Any]:
    """Every layout of the assets: checked, drawn, and its cost."""
    paths = sorted((ROOT / "assets" / "layouts").glob("*.yaml"))
    return {
        "validate": {p.stem: _ran("layout", "validate", str(p), "--json") for p in paths},
        "preview": {
            p.stem: _ran("layout", "preview", str(p), "--out", f"{p.stem}.png") for p in paths
        },
        "plan": {p.stem: _ran("layout", "plan", str(p), "--json") for p in paths},
    }


def _inside(verb: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a case in its own folder, with the tiny model, prompts, and no profile in the cache."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["DIT_ACCEL_CACHE"] = str(Path(folder, "cache"))
        tiny_families.tiny_wan().pipe.save_pretrained("tiny")
        Path("tiny", "generation_defaults.json").write_text(json.dumps(DEFAULTS))
        Path("prompts.txt").write_text("\n".join(PROMPTS))
        return verb()


def _calibrated() -> dict[str, Any]:
    return _ran("calibrate", "--model", "tiny", *CALIBRATE, "--out", "tiny.safetensors", "--json")


def _ran(*words: str) -> dict[str, Any]:
    """Run one command in the current folder. Files that it did not write are left out."""
    before = _stamps()
    with _captured("dit-accel", *words) as (stdout, stderr):
        code = _exit_code()
    written = {name for name, stamp in _stamps().items() if before.get(name) != stamp}
    content = safety_plain.files(Path.cwd())
    return {
        "exit": code,
        "stdout": _stdout(stdout.getvalue()),
        "error": safety_plain.text(stderr.getvalue()) if code else None,
        "files": {name: content[name] for name in sorted(written)},
    }


def _exit_code() -> int:
    from dit_accel import cli

    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@contextlib.contextmanager
def _captured(*argv: str) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Replace our command line, and capture the output."""
    stdout, stderr, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = list(argv)
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            yield stdout, stderr
    finally:
        sys.argv = before


def _stdout(words: str) -> Any:
    """The JSON that is all of stdout, or its last line; else the text."""
    for part in (words, words.rstrip().rpartition("\n")[2]):
        with contextlib.suppress(ValueError):
            return safety_plain.plain(json.loads(part))
    return safety_plain.text(words)


def _stamps() -> dict[str, tuple[int, int]]:
    found = (path for path in Path.cwd().rglob("*") if path.is_file())
    stats = {path.relative_to(Path.cwd()).as_posix(): path.stat() for path in found}
    return {name: (stat.st_mtime_ns, stat.st_size) for name, stat in stats.items()}


def _without(value: Any, keys: set[str]) -> Any:
    """A value less some keys, at any depth."""
    if isinstance(value, dict):
        return {name: _without(one, keys) for name, one in value.items() if name not in keys}
    return [_without(one, keys) for one in value] if isinstance(value, list) else value
