"""Every example in a docstring of the package runs, and gives what it says."""

from __future__ import annotations

import doctest
import importlib

import import_graph
import pytest
import words

MODULES = [name for name in import_graph.modules() if "triton_programs" not in name]
MODULES = [name for name in MODULES if not name.endswith("__main__")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_the_package(name):
    module = importlib.import_module(f"dit_accel.{name}" if name else "dit_accel")
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert failed == 0


@pytest.mark.parametrize("module", [import_graph, words])
def test_examples_of_the_scripts_that_tests_use(module):
    failed, tried = doctest.testmod(module)
    assert failed == 0 and tried > 0
