"""The command from an installed wheel, on tiny models of five families, as a user would call it.

What is accepted leaves its files; what cannot be combined is refused in words, with no weights
loaded. All commands run in one process of a fresh environment, and one runs by its script.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from source_copy import ENVIRONMENT, copy_source
from tiny_folders import FOLDERS

from dit_accel.models import setup

ROOT = Path(__file__).parents[1]
PROMPT = "a red circle moving right"
COMPILED = ("wan",)  # compilation is slow
HAS_PEFT = importlib.util.find_spec("peft") is not None
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]  # built once

Command = tuple[list[str], int, str, list[str]]  # words, exit code, words of its output, files


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with the wheel; what it depends on is that of this process."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    source = copy_source(folder)
    subprocess.run([*build, "--wheel-dir", str(folder), str(source)], check=True, env=ENVIRONMENT)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    found = folder / "venv" / "bin" / "python"
    install = [found, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([*map(str, install)], check=True, env=ENVIRONMENT)
    ours = [path for path in sys.path if "site-packages" in path]
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "shared.pth").write_text("\n".join(ours))
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and files to start from."""
    folder = tmp_path_factory.mktemp("here")
    for name, model in FOLDERS.items():
        model.save(folder / name)
    Image.new("RGB", (40, 40), (200, 10, 10)).save(folder / "red.png")
    draw = np.random.default_rng(0)
    np.save(folder / "clip.npy", draw.integers(0, 255, (9, 32, 32, 3), dtype=np.uint8))
    (folder / "prompts.txt").write_text("a red circle\na blue square\n")
    return folder


def commands() -> Iterator[Command]:
    """Of every family: what it takes, and what it refuses."""
    for name, model in FOLDERS.items():
        needed = ["--image", "red.png"] if model.pipeline == "WanImageToVideoPipeline" else []
        start = ["generate", PROMPT, "--model", name, "--threshold", "0.1", *needed]
        lora = f"{name}/lora.safetensors"

        def made(label: str, *more: str, start: list[str] = start, name: str = name) -> Command:
            file = f"{name}-{label}.npy"
            return [*start, *more, "--output", file], 0, "by stage", [file, f"{file}.json"]

        def refused(why: str, *more: str, start: list[str] = start) -> Command:
            return [*start, *more, "--output", "refused.npy"], 2, why, []

        yield made("plain")
        yield made("offload", "--offload", "model")
        yield made("group", "--offload", "group")
        if name in COMPILED:
            yield made("compile", "--compile")
        if model.image and not needed:
            yield made("image", "--image", "red.png")
        elif not model.image:
            yield refused("--image is 'red.png', but --model is a", "--image", "red.png")
        if model.video:
            yield made("video", "--video", "clip.npy", "--strength", "0.6")
            yield refused("--strength is", "--strength", "0.6")
        else:
            yield refused("--video is 'clip.npy', but --model is a", "--video", "clip.npy")
        if HAS_PEFT:
            yield made("lora", "--lora", f"{lora}:0.5")
            yield made("both", "--lora", lora, "--offload", "group")
        else:
            yield refused("pip install peft", "--lora", lora)
        yield refused("the model has no transformer_2", "--lora", f"transformer_2={lora}")
        yield refused("--compile and --offload sequential", "--compile", "--offload", "sequential")
        yield refused("--offload is 'sequential'; accepted: none", "--offload", "sequential")
        many = ["generate", "--model", name, "--threshold", "0.1", *needed,
                "--prompt-file", "prompts.txt"]  # fmt: skip
        yield [*many, "--output-dir", f"{name}-clips"], 0, "a-blue-square", []
        yield [*many, "--output-dir", f"{name}-clips"], 0, "2 of 2 clips are there already", []
        yield [*many, "--output", "x.mp4"], 2, "--output and --prompt-file are given", []


def test_five_families_from_an_installed_wheel(python: Path, here: Path) -> None:
    wanted = [*commands()]
    script = [str(python), str(ROOT / "tests" / "run_commands.py"), "ran.json"]
    words = json.dumps([one[0] for one in wanted])
    # graphs of a run that was killed may be damaged
    given = ENVIRONMENT | {"TORCHINDUCTOR_CACHE_DIR": str(here / "graphs")}
    subprocess.run(script, cwd=here, env=given, input=words, text=True, check=True)
    found: dict[str, Any] = json.loads((here / "ran.json").read_text())
    assert Path(found["package"]).is_relative_to(python.parents[1])
    for (words_, code, text, files), (exit_code, output, loads) in zip(
        wanted, found["ran"], strict=True
    ):
        shown = f"dit-accel {' '.join(words_)}\n{output}"
        assert exit_code == code and text in output, shown
        assert loads == (1 if code == 0 and "already" not in text else 0), shown
        assert all((here / file).is_file() for file in files), shown
    for name in FOLDERS:
        assert len([*(here / f"{name}-clips").glob("*.mp4")]) == 2
        plain = np.load(here / f"{name}-plain.npy").astype(int)
        for way in ("offload", "group", *(["compile"] if name in COMPILED else [])):
            levels = abs(plain - np.load(here / f"{name}-{way}.npy").astype(int)).max()
            assert levels <= 1, f"{name}: {way} changes {levels} levels of 255"


def test_the_script_of_the_wheel(python: Path, here: Path) -> None:
    script = str(python.with_name("dit-accel"))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [script, *words], cwd=here, env=ENVIRONMENT, capture_output=True, text=True, check=False
        )

    assert run("--version").stdout.startswith("dit-accel ")
    wrong = run("generate", PROMPT, "--model", "wan", "--offload", "disk")
    assert wrong.returncode == 2 and wrong.stdout == ""
    accepted = ", ".join(setup.OFFLOADS)
    assert wrong.stderr == f"error: --offload is 'disk'; accepted: {accepted}\n"
