"""The record of what goes together: names are checked, and a recording replaces what ran."""

from __future__ import annotations

import composition
import docs_tables
import pytest
from composition import Cell


def test_worked_example(tmp_path, monkeypatch):
    """Two techniques beside threads: one is refused, one has a limit; then the second has none."""
    monkeypatch.setattr(composition, "FILE", tmp_path / "composition.json")
    monkeypatch.setattr(docs_tables, "COMPOSITION", composition.FILE)
    refused = Cell("plan", "threads", refused="a pipeline for each thread")
    limited = Cell("UniCP", "bf16", limit="drifts are of bfloat16")
    composition.record([refused, limited, Cell("UniCP", "threads")])
    assert composition.recorded() == {refused, limited, Cell("UniCP", "threads")}
    assert docs_tables.composition() == (
        "| with | plan | UniCP |\n|---|---|---|\n"
        "| bf16 | – | in part |\n"
        "| threads | no | yes |\n"
        "\n"
        "- bf16 (UniCP): drifts are of bfloat16.\n"
        "- threads (plan): refused; accepted: a pipeline for each thread.\n"
    )
    composition.record([Cell("UniCP", "bf16")])
    assert composition.recorded() == {refused, Cell("UniCP", "bf16"), Cell("UniCP", "threads")}


@pytest.mark.parametrize("given", [("plans", "threads"), ("plan", "thread")])
def test_a_name_that_is_not_known_is_refused(given):
    with pytest.raises(ValueError, match=r"composes has '.*'; accepted: "):
        Cell(*given)
