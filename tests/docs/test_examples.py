"""Every `Example:` of a docstring runs."""

import doctest
import importlib
import pkgutil

import import_graph
import pytest
import words

import dit_accel

MODULES = [
    module.name
    for module in pkgutil.walk_packages(dit_accel.__path__, "dit_accel.")
    if not module.name.endswith(("__main__", "triton_programs"))
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.failed == 0


@pytest.mark.parametrize("module", [import_graph, words])
def test_the_examples_of_scripts_that_tests_use(module) -> None:
    found = doctest.testmod(module)
    assert found.failed == 0 and found.attempted > 0
