"""The order of the packages, as one list: imports go to a lower floor only, never in circles."""

from __future__ import annotations

import re

import import_graph
import pytest

ORDER = [  # from the ground up; what stands on one floor does not know its neighbours
    {"metrics", "models"},
    {"core"},
    {"attention", "planning", "layout"},
    {"caching", "scenes"},
    {"front door"},  # handle.py and config
    {"calibration", "evaluation"},
    {"cli"},
]
FLOOR = {package: floor for floor, packages in enumerate(ORDER) for package in packages}
WIDELY_USED = {"core", "metrics"}  # all others are imported by six packages at most
MOST_IMPORTERS = 6
MOST_FLOORS_INSIDE = {"cli": 10}  # of one package; of all others:
MOST_FLOORS = 6


@pytest.fixture(scope="module")
def graph() -> import_graph.Graph:
    return import_graph.module_graph()


def arrow(importer: str, imported: str) -> str | None:
    """What is wrong with one module importing another; None where nothing is."""
    above, below = import_graph.package_of(importer), import_graph.package_of(imported)
    if above == below or not importer or FLOOR[below] < FLOOR[above]:
        return None
    return f"{importer} imports {imported}"


def test_every_package_has_a_floor(graph):
    assert {import_graph.package_of(module) for module in graph if module} == FLOOR.keys()


def test_imports_go_down(graph):
    wrong = [arrow(a, b) for a, others in sorted(graph.items()) for b in sorted(others) if b]
    assert [line for line in wrong if line] == []


def test_nothing_is_imported_in_circles(graph):
    assert import_graph.circles({m: others for m, others in graph.items() if m}) == []
    assert import_graph.circles(import_graph.package_graph(graph)) == []


def test_few_packages_import_a_package(graph):
    """What many packages need stands in `core`: so a change elsewhere reaches few of them."""
    importers = import_graph.importers(import_graph.package_graph(graph))
    wide = {package for package, others in importers.items() if len(others) > MOST_IMPORTERS}
    assert wide <= WIDELY_USED


def test_packages_are_flat_inside():
    floors = import_graph.measured()["floors_inside"]
    assert floors.keys() == FLOOR.keys()
    high = {p: n for p, n in floors.items() if n > MOST_FLOORS_INSIDE.get(p, MOST_FLOORS)}
    assert high == {}


def test_metrics_know_nothing_of_the_package(graph):
    modules = [module for module in graph if import_graph.package_of(module) == "metrics"]
    outside = {o for m in modules for o in graph[m] if import_graph.package_of(o) != "metrics"}
    assert outside == set()


def test_private_names_of_diffusers_are_known_in_one_module():
    """`core/private_names.py` alone imports what diffusers calls private."""
    for module, path in import_graph.modules().items():
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        private = [x for x in lines if x.startswith("from diffusers.") and " import _" in x]
        assert not private or module == "core.private_names", module


def test_the_library_names_no_option():
    """Messages outside `cli` name arguments; only the page says how it was made."""
    for module, path in import_graph.modules().items():
        if import_graph.package_of(module) != "cli" and not module.startswith("evaluation.html"):
            found = re.findall(r"(?<![\w-])--[a-z][\w-]*", path.read_text("utf-8"))
            assert set(found) <= {"--no-deps"}, module  # pip's


def test_the_package_has_few_entries_on_top():
    assert len(import_graph.measured()["entries_on_top"]) <= 15


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("core.session", "caching.executor"),
        ("planning.search", "caching.guard"),
        ("caching.sites", "scenes.rows"),  # the same floor
        ("models.loading", "cli.common.errors"),
        ("config", "calibration.record"),
    ],
)
def test_an_arrow_upwards_is_caught(importer, imported):
    assert arrow(importer, imported)


def test_imports_are_found_wherever_they_stand():
    found = import_graph.imported
    inside = "def f():\n    import dit_accel.core.measure"
    assert list(found("core.drift", inside)) == ["core.measure"]
    typed = "if TYPE_CHECKING:\n    from dit_accel.layout import Layout"
    assert list(found("core.drift", typed)) == ["layout.Layout"]
    assert list(found("metrics", "from .psnr import psnr", is_package=True)) == [
        "metrics.psnr.psnr"
    ]
    assert list(found("core.drift", "import math\nimport torch.nn.functional as F")) == []


def test_circles_and_floors_by_hand():
    ring = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert import_graph.circles(ring) == [["a", "b", "c"]]
    with pytest.raises(ValueError, match="circles"):
        import_graph.floors(ring)
    stack = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert import_graph.circles(stack) == []
    assert import_graph.floors(stack) == {"a": 3, "b": 2, "c": 1}
    assert import_graph.importers(stack) == {"a": [], "b": ["a"], "c": ["a", "b"]}
