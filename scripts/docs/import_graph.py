"""Measures the import graph of `dit_accel`: floors, circles, and which module imports which.

In: the source files, read as text; nothing is imported or run. Out: a table on the terminal, or
JSON.
Knows: every `import` of the package's own modules, also inside functions and under `TYPE_CHECKING`.
Does not know: names that `importlib` resolves at run time.
Source: ours. `tests/test_layering.py` has the order of the packages, and uses this module.

    python scripts/docs/import_graph.py [--json]
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "dit_accel"
FRONT_DOOR = ("handle", "config")  # the top of the package, which counts as one place
Graph = dict[str, set[str]]  # importer -> imported


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the package by its dotted name, without the package's own name."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(module: str, source: str, *, is_package: bool = False) -> Iterator[str]:
    """The dotted names of this package that a module imports, as written.

    Args:
        module: the importer, such as "planning.plan".
        source: its text.
        is_package: whether the text is that of an `__init__.py`.

    Example:
        >>> list(imported("core.drift", "from dit_accel.core import session"))
        ['core.session']
        >>> list(imported("metrics.ssim", "from .psnr import psnr"))
        ['metrics.psnr.psnr']
    """
    here = [PACKAGE, *module.split(".")] if module else [PACKAGE]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + is_package] if node.level else []
            base += node.module.split(".") if node.module else []
            names = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        prefix = PACKAGE + "."
        yield from (name.removeprefix(prefix) for name in names if name.startswith(prefix))


def module_graph(root: Path = ROOT) -> Graph:
    """Modules and the modules that they import; `from module import name` counts as the module."""
    known = modules(root)
    graph: Graph = {}
    for module, path in known.items():
        names = imported(module, path.read_text("utf-8"), is_package=path.name == "__init__.py")
        graph[module] = {found for name in names if (found := _module_of(name, known))} - {module}
    return graph


def _module_of(name: str, known: Mapping[str, Path]) -> str:
    """The longest part of a dotted name that is a module; empty if there is none."""
    parts = name.split(".")
    tries = (".".join(parts[:size]) for size in range(len(parts), 0, -1))
    return next((part for part in tries if part in known), "")


def package_of(module: str) -> str:
    """The first folder of a module; "front door" for the files on top."""
    first = module.split(".")[0]
    return "front door" if first in FRONT_DOOR else first


def package_graph(graph: Mapping[str, set[str]]) -> Graph:
    """Packages and the other packages that they import."""
    found: Graph = {}
    for module, others in graph.items():
        if module:  # the package's own __init__ only resolves names
            package = package_of(module)
            found.setdefault(package, set()).update(package_of(m) for m in others if m)
    return {package: others - {package} for package, others in found.items()}


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of two or more nodes that reach each other (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            cut = stack.index(node)
            group = sorted(stack[cut:])
            del stack[cut:]
            if len(group) > 1:
                found.append(group)

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def floors(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """1 for a node that imports nothing, else one more than the highest that it imports.

    Raises:
        ValueError: the graph has a circle.
    """
    if found := circles(graph):
        raise ValueError(f"there are circles: {found}")
    height: dict[str, int] = {}

    def of(node: str) -> int:
        if node not in height:
            height[node] = 1 + max((of(other) for other in graph.get(node, ())), default=0)
        return height[node]

    for node in graph:
        of(node)
    return height


def importers(graph: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """The importers of each node."""
    return {node: sorted(n for n, others in graph.items() if node in others) for node in graph}


def measured(root: Path = ROOT) -> dict[str, object]:
    """All measurements, JSON-able."""
    graph = module_graph(root)
    packages = package_graph(graph)
    top = [p.name for p in (root / PACKAGE).iterdir() if p.name != "__pycache__"]
    inside = {package: {m: {o for o in graph[m] if package_of(o) == package} for m in graph
                        if package_of(m) == package} for package in packages}  # fmt: skip
    return {
        "entries_on_top": sorted(top),
        "modules": len(graph),
        "lines": sum(len(path.read_text("utf-8").splitlines()) for path in modules(root).values()),
        "floors": floors(packages) if not circles(packages) else None,
        "circles_of_packages": circles(packages),
        "circles_of_modules": circles({m: o for m, o in graph.items() if m}),
        "floors_inside": {p: max(floors(g).values()) for p, g in inside.items() if not circles(g)},
        "imported_by": importers(packages),
    }


def main() -> None:
    """Print the measurements."""
    found = measured()
    if "--json" in sys.argv[1:]:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name}: {len(value) if name == 'entries_on_top' else value}")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
