"""The arrows between modules point down only: maths < knowledge < plumbing < use.

Read from the sources, so imports inside functions and under `TYPE_CHECKING` count too. What this
does not see: `importlib.import_module` with a name made at run time.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "dit_accel"

MATHS = (
    "tokens",
    "drift",
    "forecast",
    "packing",
    "windows",
    "difficulty",
    "planner",
    "plans",
    "fitting",
    "steering",
    "pca",
    "pruning",
    "shift",
    "visibility",
    "positions",
    "merging",
)
KNOWLEDGE = (
    *("families", "profile", "layout", "miniature", "outcome", "staging", "video"),
    *("outlook", "carrying", "targets"),
)
PLUMBING = (
    *("patching", "programs", "kernels", "session", "courses", "watching"),
    *("attention", "caching", "keeping", "following", "pcas", "trimming", "unicp"),
    *("blending", "lockstep", "supported", "isolation"),
)
LAYERS = {
    "assets": 0,  # data, no code: free to all
    **dict.fromkeys(MATHS, 1),
    **dict.fromkeys(KNOWLEDGE, 2),
    **dict.fromkeys(PLUMBING, 3),
}
USE = 4  # every module that is not named above
NAMES = {0: "data", 1: "maths", 2: "knowledge", 3: "plumbing", 4: "use"}
PLUMBING_RANKS = {
    **dict.fromkeys(("patching", "programs"), 0),
    **dict.fromkeys(("session", "kernels", "keeping", "courses"), 1),
    **dict.fromkeys(("attention", "caching", "pcas", "trimming", "watching"), 2),
    "blending": 2,
    "following": 3,
    "lockstep": 3,
    "supported": 3,
    "unicp": 3,
    "isolation": 4,
}
ALONE = {"metrics", "video", "bench"}  # `video` knows files alone, so that `layout` may know it
ROOT_MODULE = ""  # `dit_accel` itself: lazy, so its constants are free to all, its names are not


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """What `source` imports against the rules, as the module `dit_accel.<module>`."""
    found = []
    for target in imported(module, source, is_package):
        top, _, rest = target.partition(".")
        fault = internal_fault(module, rest) if top == PACKAGE else external_fault(module, target)
        if fault:
            found.append(f"{PACKAGE}.{module} imports {target}: {fault}")
    return found


def imported(module: str, source: str, is_package: bool = False) -> Iterator[str]:
    """The dotted names that `source` imports, relative ones resolved: `package.module.name`."""
    here = [PACKAGE, *module.split(".")] if module else [PACKAGE]
    folder = here if is_package else here[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            yield from (".".join([*base, alias.name]) for alias in node.names)


def internal_fault(module: str, target: str) -> str | None:
    """Why `dit_accel.<module>` must not import `dit_accel.<target>`, or None."""
    source_part, target_part = part(module), part(target)
    if source_part in (target_part, ROOT_MODULE) or target == "__version__":
        return None
    if source_part in ALONE:
        return f"{source_part} stands alone"
    if target_part == "cli":
        return "nothing stands above the command line"
    up, down = LAYERS.get(source_part, USE), LAYERS.get(target_part, USE)
    if up < down:
        return f"{NAMES[up]} must not know {NAMES[down]}"
    if up == 3 == down and PLUMBING_RANKS[source_part] <= PLUMBING_RANKS[target_part]:
        return "inside plumbing: attention, caching -> session -> patching"
    return None


def external_fault(module: str, target: str) -> str | None:
    """Why `dit_accel.<module>` must not import `target` from outside, or None."""
    top, *rest = target.split(".")
    if LAYERS.get(part(module)) == 1 and top != "torch" and top not in sys.stdlib_module_names:
        return "maths takes torch and the standard library only"
    hidden = rest[:1] == ["hooks"] or any(name.startswith("_") for name in rest)
    if top == "diffusers" and hidden and part(module) != "patching":
        return "only patching knows diffusers' hooks and private names"
    return None


def part(module: str) -> str:
    """`metrics.psnr` -> `metrics`, which the rules are about."""
    return module.split(".")[0]


def modules() -> list[tuple[str, Path]]:
    """Every module of the installed package, by its name below `dit_accel`."""
    folders = {"": ROOT / PACKAGE, "pipelines": ROOT / "pipelines", "assets": ROOT / "assets"}
    return [
        (".".join([*filter(None, [prefix]), *_dotted(path.relative_to(folder))]), path)
        for prefix, folder in folders.items()
        for path in sorted(folder.rglob("*.py"))
    ]


def _dotted(path: Path) -> tuple[str, ...]:
    parts = path.with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


@pytest.mark.parametrize(
    ("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_arrows_point_down_only(module, path):
    faults = violations(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    assert not faults, "\n".join(faults)


def test_the_sources_are_found():
    names = {module for module, _ in modules()}
    assert {"", "video", "metrics", "metrics.psnr", "cli", "pipelines", "assets"} <= names


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("drift", "import dit_accel.caching.sites", "maths must not know plumbing"),
        (
            "drift",
            "from dit_accel.models.families import FAMILIES",
            "maths must not know knowledge",
        ),
        ("drift", "from dit_accel import profile", "maths must not know knowledge"),
        ("drift", "from . import session", "maths must not know plumbing"),
        ("drift", "from .accelerate import accelerate", "maths must not know use"),
        ("drift", "def f():\n    import dit_accel.core.measure", "maths must not know use"),
        ("drift", "if TYPE_CHECKING:\n    from .layout import Layout", "maths must not know"),
        ("drift", "from dit_accel import accelerate", "maths must not know use"),
        ("drift", "import numpy as np", "torch and the standard library only"),
        ("drift", "from diffusers import WanPipeline", "torch and the standard library only"),
        ("families", "from .patching import Patches", "knowledge must not know plumbing"),
        ("session", "from dit_accel.caching.sites import Cache", "inside plumbing"),
        ("patching", "from dit_accel.core.session import Session", "inside plumbing"),
        ("attention", "from dit_accel import caching", "inside plumbing"),
        ("caching", "from dit_accel.core.measure import Stopwatch", "plumbing must not know use"),
        ("caching", "from diffusers.hooks import HookRegistry", "only patching"),
        ("caching", "import diffusers.hooks.hooks", "only patching"),
        ("accelerate", "from diffusers import hooks", "only patching"),
        ("accelerate", "from diffusers.models.attention import _chunked", "only patching"),
        ("cli.generate", "from diffusers.hooks._common import x", "only patching"),
        ("metrics.psnr", "from dit_accel import video", "metrics stands alone"),
        ("metrics.psnr", "from ..drift import relative_l1", "metrics stands alone"),
        ("video", "from dit_accel.metrics import psnr", "video stands alone"),
        ("bench", "import dit_accel.core.tokens", "bench stands alone"),
        ("evaluate.worker", "from dit_accel.cli import errors", "nothing stands above"),
        ("pipelines.wan", "from diffusers.hooks import HookRegistry", "only patching"),
    ],
)
def test_the_checker_catches_a_made_up_fault(module, source, reason):
    (fault,) = violations(module, source)
    assert fault.startswith(f"{PACKAGE}.{module} imports ")
    assert reason in fault


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("drift", "import math\nimport torch.nn.functional as F\nfrom .tokens import Grid"),
        (
            "profile",
            "from dit_accel.core.drift import relative_l1\nfrom dit_accel import __version__",
        ),
        ("patching", "from diffusers.hooks import HookRegistry"),
        ("caching", "from dit_accel.core.session import Session\nfrom .patching import Patches"),
        ("attention", "from diffusers.models.attention_dispatch import dispatch_attention_fn"),
        ("accelerate", "from dit_accel.caching.sites import Cache\nfrom .bench import Stopwatch"),
        ("metrics.psnr", "from dit_accel.metrics.clips import check\nfrom .clips import check"),
        ("cli.generate", "from ..accelerate import accelerate\nfrom .errors import Refusal"),
        ("miniature", "import dit_accel.assets"),
    ],
)
def test_the_checker_lets_downward_imports_pass(module, source):
    assert violations(module, source) == []


def test_a_package_resolves_its_relative_imports_from_itself():
    assert list(imported("metrics", "from .psnr import psnr", is_package=True)) == [
        "dit_accel.metrics.psnr.psnr"
    ]
    assert list(imported("metrics.ssim", "from .psnr import psnr")) == [
        "dit_accel.metrics.psnr.psnr"
    ]
    assert list(imported("drift", "from .. import x")) == ["x"]


def test_importing_the_package_imports_neither_torch_nor_diffusers():
    code = (
        "import sys, dit_accel, dit_accel.cli\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'cv2', 'sklearn'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[]"
