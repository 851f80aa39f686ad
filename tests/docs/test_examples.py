"""Every `Example:` of a docstring runs."""

import doctest
import importlib
import pkgutil

import pytest

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
