"""What goes together with what: the tests' mark `composes`, and the recording of those that ran.

    @pytest.mark.composes("plan", "model offload")
    @pytest.mark.composes("plan", "threads", refused="a pipeline for each thread")

In: the marks of tests, and their outcomes. Out: `docs/composition.json`, which
`scripts/docs/docs_tables.py` turns into a table. `conftest.py` has the hooks. A test that checks a
refusal says with `refused` what is accepted instead; one that checks a limit says it with `limit`.

    python -m pytest -m "composes and not gpu" --record-composition

It knows pytest, and nothing of what is tested. Source: ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "docs" / "composition.json"

TECHNIQUES = (
    "plan",  # by speedup or quality, or one of your own
    "static plan",
    "packed plan",  # cache_memory: quantized and offloaded values
    "windows at model",
    "windows at block",
    "windows at attention",
    "UniCP",
    "scene",  # isolation, references and reposition of a layout
)
COMPANIONS = (
    "model offload",
    "group offload",
    "sequential offload",
    "layerwise casting",
    "regional compile",
    "whole compile",
    "assigned compile",
    "fullgraph",
    "bf16",
    "fp16",
    "LoRA",
    "two experts",
    "several forwards a step",
    "a later begin",
    "several prompts",
    "context parallel",
    "branch parallel",
    "threads",
    "interrupts",
    "deepcopy",
    "pickle",
    "shared parts",
    "replaced parts",
    "other diffusers cache",
    "attention backends",
    "quantized weights",
)


@dataclass(frozen=True, order=True)
class Cell:
    """One mark: `refused` says what is accepted instead, `limit` what must be minded; else ""."""

    technique: str
    companion: str
    refused: str = ""
    limit: str = ""

    def __post_init__(self) -> None:
        for value, known in ((self.technique, TECHNIQUES), (self.companion, COMPANIONS)):
            if value not in known:
                raise ValueError(f"composes has {value!r}; accepted: {', '.join(known)}")


def cells_of(item: pytest.Item) -> list[Cell]:
    """The cells of a collected test."""
    return [Cell(*mark.args, **mark.kwargs) for mark in item.iter_markers("composes")]


class Recorder:
    """A plugin of pytest: knows the cells of all tests, and writes those of the tests that ran.

    Nothing is written after a failure.
    """

    def __init__(self, writes: bool) -> None:
        self.collected: set[Cell] = set()
        self.on_any_machine: set[Cell] = set()
        self.ran: set[Cell] = set()
        self._writes = writes

    @pytest.hookimpl(tryfirst=True)  # before tests are left out by their marks
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            cells = cells_of(item)
            self.collected.update(cells)
            if item.get_closest_marker("gpu") is None:
                self.on_any_machine.update(cells)
            # Of a test in another process, its properties reach the process that writes.
            item.user_properties += [("composes", list(astuple(cell))) for cell in cells]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            found = (value for name, value in report.user_properties if name == "composes")
            self.ran.update(Cell(*value) for value in found)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self._writes and not exitstatus and not hasattr(session.config, "workerinput"):
            record(self.ran)


def record(cells: Iterable[Cell]) -> None:
    """Write cells of tests that ran and passed; places of other tests stay as they were."""
    new = set(cells)
    places = {(one.technique, one.companion) for one in new}
    others = {one for one in recorded() if (one.technique, one.companion) not in places}
    packages = {name: version(name) for name in ("diffusers", "torch")}
    # One line a cell: two branches that add some can be merged.
    lines = [json.dumps(astuple(one), ensure_ascii=False) for one in sorted(new | others)]
    parts = {
        "recorded_with": json.dumps(packages),
        "techniques": json.dumps(TECHNIQUES),
        "companions": json.dumps(COMPANIONS),
        "cells": "[\n  " + ",\n  ".join(lines) + "\n ]",
    }
    text = ",\n".join(f' "{name}": {value}' for name, value in parts.items())
    FILE.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


def recorded() -> set[Cell]:
    """The cells of the file."""
    if not FILE.exists():
        return set()
    return {Cell(*line) for line in json.loads(FILE.read_text(encoding="utf-8"))["cells"]}
