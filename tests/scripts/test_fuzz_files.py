"""Mutated files of each sort: read, or refused by the file's name, and nothing else."""

from __future__ import annotations

import fuzz_files
import pytest

from dit_accel.evaluation import statistics

FIRST = 100_000  # other mutants than those that the script tries


@pytest.mark.parametrize("sort", fuzz_files.SORTS)
def test_no_mutant_ends_in_a_raw_error(sort, monkeypatch, capsys):
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    found = fuzz_files.fuzz(sort, 60, FIRST)
    assert found["raw"] == 0, capsys.readouterr().out
    assert found["accepted"] + found["refused"] == 60
    assert found["refused"] or sort == "journal"  # whose damaged lines are left out
