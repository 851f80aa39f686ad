"""The pages: nine of them, every code block runs, every link and script exists, tables are true.

What runs how:

- `python`: the blocks of a page one after the other, in one namespace. Sizes and steps are made
  small; `pipe`, `prompt`, `call`, `generators`, `reference` and `test` are there from the start.
- `bash`: each command by itself, in a folder with the files that pages speak of. `dit-accel` runs
  on the miniature, with small sizes and few steps; a script must exist and know the options that it
  is called with. Commands of `docs/results.md` are measurements of hours: they are parsed only.
- `yaml`: must load as a layout. `text`: messages, which a layout with that fault must give.

A comment `<!-- test: slow -->` before a block leaves it to the slow tests.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import composition
import docs_tables
import numpy as np
import pytest
import tiny_folders
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from dit_accel import layout
from dit_accel.cli.app import app
from dit_accel.evaluation.methods import METHODS, parse
from dit_accel.models import memory

ROOT = Path(__file__).parents[2]


NAMES = (
    *("quickstart", "concepts", "how-it-works", "scenes", "evaluation", "results", "development"),
    "pipelines",
)
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in NAMES)]
RESEARCH = ROOT / "research"  # not in an sdist
LINKING = [p for p in (*PAGES, ROOT / "assets/README.md", RESEARCH / "LOG.md") if p.exists()]
MEASURED = "results.md"  # its commands take hours
OPTIONS_OF_SCRIPTS = (
    "--calibrated",
    "--computed",
    "--cpu-seconds",
    "--pairs",
    "--prompts",
    "--quality",
    "--references",
    "--seeds",
    "--lowest",
    "--unbounded",
    "--write",
)
SMALL = {
    "num_inference_steps=50": "num_inference_steps=8",
    "height=64, width=64, num_frames=17": "height=32, width=32, num_frames=5",
}
SIZES = ("--steps", "8", "--height", "32", "--width", "32", "--frames", "5")
AFFORDABLE = {  # options added, by verb
    "generate": SIZES,
    "calibrate": (*SIZES, "--speedups", "2", "--probes", "2", "--limit", "2"),
    "evaluate": (*SIZES, "--limit", "1"),
    "bench": ("--small", "--steps", "4", "--rounds", "1"),
}


STAND_INS = {  # tiny models in the place of those that a page names; the others: the miniature
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": tiny_folders.FOLDERS["wan-image"],
    "Lightricks/LTX-Video": tiny_folders.FOLDERS["ltx"],
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": tiny_folders.TWO_EXPERTS,
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    slow: bool
    text: str


def blocks_of(page: Path, *languages: str, slow: bool = True) -> list[Block]:
    pattern = r"(<!-- test: slow -->\n\n?)?^```(\w*)\n(.*?)^```$"
    text = page.read_text(encoding="utf-8")
    found = [
        Block(page, text[: m.start()].count("\n") + 1, m[2], bool(m[1]), m[3])
        for m in re.finditer(pattern, text, re.DOTALL | re.MULTILINE)
    ]
    return [b for b in found if b.language in languages and (slow or not b.slow)]


def with_blocks(language: str) -> list[Any]:
    """A parameter a page, and another for the slow tests where the page has slow blocks."""
    found = []
    for page in PAGES:
        blocks = blocks_of(page, language)
        if blocks:
            found.append(pytest.param(page, False, id=page.name))
        if any(block.slow for block in blocks):
            found.append(pytest.param(page, True, id=f"{page.name}-slow", marks=pytest.mark.slow))
    return found


# --- the pages ---------------------------------------------------------------------


def test_there_are_nine_pages_and_the_readme_is_short():
    assert sorted(page.stem for page in (ROOT / "docs").glob("**/*.md")) == sorted(NAMES)
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize(
    ("page", "first", "then"),
    [(PAGES[0], "## What is not shown", "| share of FLOPs"), (PAGES[6], "## Not measured", "| ")],
    ids=["README.md", "results.md"],
)
def test_what_is_not_measured_stands_above_the_results(page, first, then):
    text = page.read_text(encoding="utf-8")
    assert 0 <= text.index(first) < text.index(then)
    assert "real weights" in text[text.index(first) : text.index(then)].lower()


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_exist(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        if re.match(r"\w+:", link) or ("research/" in link and not RESEARCH.exists()):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_block_names_a_language_that_is_tested(page):
    text = page.read_text(encoding="utf-8")
    fences = re.findall(r"^```(.*)$", text, re.MULTILINE)
    assert set(fences[::2]) <= {"python", "bash", "yaml", "text"}
    assert set(fences[1::2]) <= {""}


@pytest.mark.parametrize("name", docs_tables.TABLES)
def test_tables_are_what_the_code_says(name):
    assert docs_tables.in_page(name) == docs_tables.TABLES[name](), (
        "run: python scripts/docs/docs_tables.py --write"
    )


def test_what_goes_together_is_recorded(request):
    """Of the tests that were collected; the whole suite also knows what is recorded in vain."""
    tests = request.config.pluginmanager.get_plugin("composition")
    recorded = composition.recorded()
    assert tests.on_any_machine <= recorded, (
        "run: python -m pytest -m composes --record-composition"
    )
    if request.config.args == request.config.getini("testpaths"):
        assert recorded <= tests.collected, "a cell without a test: take it out of the file"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_options_that_the_text_names_exist(page):
    text = re.sub(
        r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    named = {
        m
        for code in re.findall(r"`([^`\n]+)`", text)
        for m in re.findall(r"--[a-z][a-z0-9-]*", code)
    }
    assert named <= {*options_of(typer.main.get_command(app)), *OPTIONS_OF_SCRIPTS}


def options_of(command: Any) -> set[str]:
    """All options of a command and of its verbs."""
    found = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    return found.union(*map(options_of, getattr(command, "commands", {}).values()))


@pytest.mark.slow
def test_the_figure_can_be_drawn_again(tmp_path, monkeypatch, capsys):
    import draw_idea

    calibrate, quick = draw_idea.calibrate, {"speedups": (2.5,), "probes": 0}
    monkeypatch.setattr(
        draw_idea, "calibrate", lambda *given, **more: calibrate(*given, **more | quick)
    )
    monkeypatch.setattr(draw_idea, "CLIPS", 4)
    monkeypatch.setattr(draw_idea, "BATCH", 4)
    profile, picture = tmp_path / "ten.safetensors", tmp_path / "idea.png"
    monkeypatch.setattr(sys, "argv", ["", "--profile", str(profile), "--out", str(picture)])
    draw_idea.main()
    numbers = json.loads(capsys.readouterr().out)
    assert len(numbers["computed"]) == 4 and numbers["error"][0] == 0
    assert numbers["psnr_db"] > numbers["fewer_steps_psnr_db"]
    assert picture.stat().st_size > 10_000


# --- python ------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages' commands read, and a cache of its own."""
    from dit_accel.core.video import write_video

    for name in ("assets", "scripts", "pipelines"):
        (tmp_path / name).symlink_to(ROOT / name)
    lines = (ROOT / "assets" / "prompts" / "miniature.jsonl").read_text().splitlines()[:2]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "mine.yaml").write_text("steps: 12\nguidance: 3\ndeterministic: false\n")
    clips = dict(zip(("uncached", "cached"), clip_pair(), strict=True))
    for name, clip in clips.items():
        (tmp_path / name).mkdir()
        write_video(tmp_path / f"{name}.mkv", clip, fps=8)
        write_video(tmp_path / name / "one.mkv", clip, fps=8)
    Image.new("RGB", (48, 48), (200, 10, 10)).save(tmp_path / "cat.png")
    write_video(tmp_path / "cat.mp4", clips["uncached"], fps=8)
    tiny_folders.save_lora(tmp_path / "style.safetensors", *tiny_folders.TWO_EXPERTS.layer)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIT_ACCEL_CACHE", str(tmp_path / "cache"))
    # Tracing a run's memory takes a second; tests/cli and tests/models hold it.
    monkeypatch.setattr(memory, "activations_of", lambda *given: {})
    return tmp_path


def clip_pair() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    reference = draw.integers(0, 200, (8, 32, 32, 3), dtype=np.uint8)
    return reference, reference + draw.integers(0, 9, reference.shape, dtype=np.uint8)


@pytest.fixture(scope="session")
def small_pipe() -> Any:
    """The miniature, whose calls have few steps and small clips where nothing else is said."""
    from diffusers import WanPipeline

    defaults = {
        "height": 64, "width": 64, "num_frames": 5, "num_inference_steps": 8,
        "guidance_scale": 4.0, "max_sequence_length": 32,
    }  # fmt: skip

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return WanPipeline.__call__(self, *args, **defaults | kwargs)

    small = type("WanPipeline", (WanPipeline,), {"__call__": call})
    pipe = small.from_pretrained(ROOT / "assets" / "mini-wan")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(("page", "slow"), with_blocks("python"))
def test_python_blocks_run(page, slow, here, small_pipe):
    import dit_accel
    from dit_accel import EDCW, UniCP, accelerate

    reference, test = clip_pair()
    space: dict[str, Any] = {
        "dit_accel": dit_accel, "accelerate": accelerate, "EDCW": EDCW, "UniCP": UniCP,
        "pipe": small_pipe, "prompt": "a red circle moving right on a plain gray background",
        "call": {}, "generators": [torch.Generator().manual_seed(seed) for seed in (0, 1)],
        "reference": reference, "test": test,
    }  # fmt: skip
    for block in blocks_of(page, "python", slow=slow):
        text = block.text
        for large, little in SMALL.items():
            text = text.replace(large, little)
        code = compile("\n" * block.line + text, str(page), "exec")
        exec(code, space)


# --- bash --------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "slow"), with_blocks("bash"))
def test_bash_blocks_run(page, slow, here):
    for block in blocks_of(page, "bash", slow=slow):
        for words in commands(block.text):
            try:
                run(words, page)
            except AssertionError as error:
                raise AssertionError(
                    f"{page.name}:{block.line}: {shlex.join(words)}: {error}"
                ) from error


def commands(text: str) -> Iterator[list[str]]:
    """Words of every command, without comments, prompts and variables before it."""
    for line in text.replace("\\\n", "").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            del words[0]
        if words:
            yield words


def run(words: list[str], page: Path) -> None:
    match words:
        case ["dit-accel", *rest]:
            check_options(rest)
            if page.name != MEASURED and "ray" not in rest:
                run_command(rest)
        case ["torchrun", _, _, script, *rest] if script.endswith(".py"):
            check_script(script, rest)
        case ["torchrun", *rest]:
            assert rest[2:4] == ["-m", "dit_accel.cli"]
            check_options(rest[4:])
        case ["python", script, *rest] if script.endswith(".py"):
            check_script(script, rest)
        case ["python", "-m", "pytest", *_]:
            pass  # this very run
        case ["python", "-X", "importtime", "-c", code]:
            compile(code, "docs", "exec")
        case ["bash", script, *_]:
            assert (ROOT / script).is_file()
        case ["export", setting]:
            name = setting.partition("=")[0]
            assert any(name in path.read_text() for path in (ROOT / "scripts").glob("*.sh"))
        case ["pip", "install", *rest]:
            check_extras(rest)
        case _:
            raise AssertionError("no test knows this command")


def check_options(words: list[str]) -> None:
    """The verb and its options exist, and methods are rows."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, "no such verb"
        command, words = command.commands[words[0]], words[1:]
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    for word in words:
        if word.startswith("--"):
            assert word in known, f"{word} is no option"
    if "--methods" in words:
        for label in methods_in(words[words.index("--methods") + 1]):
            parse(label)


def methods_in(text: str) -> Iterator[str]:
    """Labels of a list such as `edcw:0.1,0.2,uncached`."""
    name = ""
    for part in text.split(","):
        if re.fullmatch(r"[\d.]+", part):
            yield f"{name}:{part}"
            continue
        name = part.partition(":")[0]
        assert name in METHODS, f"{name} is no method"
        if not part.endswith(":*"):
            yield part


def run_command(words: list[str]) -> None:
    """Run it on the miniature, small."""
    verb, rest = words[0], list(words[1:])
    if verb in ("generate", "calibrate") and "--model" in rest:
        place = rest.index("--model")
        name = rest.pop(place + 1)
        stand_in = Path(name.replace("/", "--"))
        if name not in STAND_INS:
            del rest[place]
        elif not stand_in.exists():
            STAND_INS[name].save(stand_in)
        rest[place + 1 : place + 1] = [str(stand_in)] if name in STAND_INS else []
    rest = [
        re.sub(r"fewer-steps:\d+", "fewer-steps:4", w)
        .replace("--full", "--small")
        .replace("0,1,2,3", "0,1,2")  # as many seeds as --ranking needs
        for w in rest
    ]
    added = list(AFFORDABLE.get(verb, ()))
    if "--layout" in rest:
        added = ["--steps", "8", "--frames", "5"]
    if verb in ("generate", "plan", "report") or words[:2] == ["layout", "preview"]:
        added += ["--overwrite"]
    known = inspect.signature(CliRunner.__init__).parameters
    options: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in known else {}
    result = CliRunner(**options).invoke(app, [verb, *rest, *added])
    if "--lora" in rest and importlib.util.find_spec("peft") is None:
        assert "pip install peft" in result.stderr
        return
    assert result.exit_code == 0, result.output + result.stderr


def check_script(script: str, words: list[str]) -> None:
    """A script of that name exists, and its text has the options."""
    found = list((ROOT / "scripts").rglob(Path(script).name))
    assert found, "no such script"
    text = found[0].read_text(encoding="utf-8")
    for word in words:
        if word.startswith("--"):
            assert f'"{word}"' in text, f"{word} is no option"


def check_extras(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


# --- yaml and messages -------------------------------------------------------------


def test_the_layout_of_the_page_loads(tmp_path):
    (block,) = blocks_of(PAGES[4], "yaml")
    path = tmp_path / "scene.yaml"
    path.write_text(block.text)
    assert [shot.id for shot in layout.load(path).shots] == ["far", "near"]


def faulty(change: str) -> dict[str, Any]:
    """A layout of two shots, with a fault."""
    frames = [{"at": at, "box": [0, 0, 1, 1]} for at in (0, 0.5, 1)]
    second: dict[str, Any] = {"id": "hero", "box": [0, 0, 1, 1]}
    if change == "box":
        frames[2]["box"] = [0, 0, 1.2, 1]
    elif change == "at":
        frames[2]["at"] = 0.25
    else:
        second["reference"] = {"file": "../hero.png"}
    shots = [("far", {"id": "hero", "keyframes": frames}), ("near", second)]
    return {
        "version": 1,
        "shots": [
            {"id": i, "prompt": "a shot", "subjects": [s | {"prompt": "a"}]} for i, s in shots
        ],
    }


def test_messages_are_as_the_page_has_them(tmp_path):
    (block,) = blocks_of(PAGES[4], "text")
    for line, change in zip(block.text.splitlines(), ("box", "at", "file"), strict=True):
        path = tmp_path / "scene.json"
        path.write_text(json.dumps(faulty(change)))
        with pytest.raises(ValueError, match=re.escape(line)):
            layout.load(path)
