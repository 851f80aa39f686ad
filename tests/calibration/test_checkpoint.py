"""Pieces of a calibration on disk: read again as they were, and never run as code."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from tiny import tiny_wan

from dit_accel.calibration.checkpoint import Checkpoint
from dit_accel.planning.plan import SamplerCoefficients

PIECE = SamplerCoefficients(torch.ones(3).double(), torch.arange(3, 0, -1).double(), (1.0, -3.0))


class Runs:
    """Writes a file where it is unpickled as code."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(tmp_path / "work", [], None, tiny_wan())


def the_piece(checkpoint: Checkpoint) -> Path:
    (path,) = checkpoint.folder.glob("*.pt")
    return path


def test_worked_example(checkpoint):
    """The first call makes the piece, the second reads it; no folder: both make it."""
    made: list[int] = []
    for _ in range(2):
        value = checkpoint.get("sampler", lambda: made.append(1) or PIECE)
        assert torch.equal(value.timesteps, PIECE.timesteps)
        assert value.branch_weights == PIECE.branch_weights
    assert made == [1]
    nowhere = Checkpoint(None, [], None, None)
    assert [nowhere.get("sampler", lambda: made.append(1)) for _ in range(2)] == [None, None]
    assert len(made) == 3


def test_a_file_with_code_is_not_run_and_made_again(checkpoint, tmp_path):
    checkpoint.get("sampler", lambda: PIECE)
    target = tmp_path / "it ran"
    for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        write(Runs(target), the_piece(checkpoint))
        assert checkpoint.get("sampler", lambda: PIECE) is PIECE
        assert not target.exists()
    assert checkpoint.get("sampler", lambda: None) is not None, "it was saved again"


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9], ids=str)
def test_a_file_that_was_cut_or_zeroed_is_made_again(checkpoint, keep):
    checkpoint.get("sampler", lambda: PIECE)
    whole = the_piece(checkpoint).read_bytes()
    size = int(len(whole) * keep)
    for damaged in (whole[:size], whole[:size] + bytes(len(whole) - size)):
        the_piece(checkpoint).write_bytes(damaged)
        assert checkpoint.get("sampler", lambda: PIECE) is PIECE
