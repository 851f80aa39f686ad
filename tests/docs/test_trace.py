"""The rooms that a `quality=` run enters, as docs/development.md says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "docs"))

import trace_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def entered() -> trace_run.Entered:
    return trace_run.run()


def test_a_computed_step_enters_fourteen_modules_after_the_session(entered):
    modules = entered["a computed step"]
    after = {*modules[modules.index("core/session") + 1 :]}
    names = "executor guard host_copy monitor outputs policy ranks run_changes store"
    caching = {f"caching/{name}" for name in names.split()}
    core = {
        f"core/{name}" for name in ("extrapolation", "interceptor", "measure", "pipeline_calls")
    }
    assert after == caching | core | {"planning/plan"}


def test_a_plan_is_chosen_inside_planning(entered):
    """From the chooser's question to its answer nothing of caching, scenes or the CLI runs."""
    modules = entered["first step, with the choice of the plan"]
    first = modules.index("caching/chooser") + 1
    chosen = modules[first : modules.index("planning/error_model") + 1]
    rooms = {module.split("/")[0] for module in chosen}
    assert rooms <= {"planning", "core"}, chosen
