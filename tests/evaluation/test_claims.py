"""Claims on jobs: one holder at a time, and none that outlives its holder."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from dit_accel.evaluation.claims import Claims

LEASE = 0.4


@pytest.fixture
def claims(tmp_path: Path) -> Claims:
    return Claims(tmp_path / "claims", LEASE)


def test_worked_example(claims):
    """One has it in the body; after it the claim is free."""
    with claims.claim("a") as mine, claims.claim("a") as again, claims.claim("b") as other:
        assert (mine, again, other) == (True, False, True)
        assert sorted(path.name for path in claims.folder.iterdir()) == ["a", "b"]
    with claims.claim("a") as mine:
        assert mine


def test_a_claim_is_renewed_until_its_body_ends(claims):
    with claims.claim("a") as mine:
        assert mine
        time.sleep(2 * LEASE)
        with claims.claim("a") as again:
            assert not again


def hold(folder: Path, ready: Any) -> None:
    with Claims(folder, LEASE).claim("a") as mine:
        ready.put(mine)
        time.sleep(60)


def test_the_claim_of_a_process_that_was_killed_lapses_at_once(claims):
    context = multiprocessing.get_context("fork")
    ready = context.Queue()
    holder = context.Process(target=hold, args=(claims.folder, ready))
    holder.start()
    assert ready.get(timeout=30)
    slow = Claims(claims.folder, 1000.0)  # so that it is not the lease that ends it
    with slow.claim("a") as mine:
        assert not mine
    os.kill(holder.pid or 0, signal.SIGKILL)
    holder.join()
    with slow.claim("a") as mine:
        assert mine


def elsewhere(claims: Claims, text: str, age: float) -> Path:
    """A claim by another machine, renewed so many seconds ago."""
    claims.folder.mkdir(exist_ok=True)
    path = claims.folder / "a"
    path.write_text(text)
    now = time.time() - age
    os.utime(path, (now, now))
    return path


OTHER = json.dumps({"host": "another", "pid": 1, "began": "x 1", "claim": "0"})


@pytest.mark.parametrize("text", [OTHER, "", "{", "[]", "nonsense", '{"host": 3}'])
def test_a_claim_from_elsewhere_lapses_with_its_lease(claims, text):
    path = elsewhere(claims, text, age=0)
    with claims.claim("a") as mine:
        assert not mine and path.exists()
    elsewhere(claims, text, age=3 * LEASE)
    with claims.claim("a") as mine:
        assert mine


def test_what_was_taken_over_is_not_given_back(claims):
    """A holder that was stopped for longer than the lease leaves the new claim alone."""
    with claims.claim("a") as mine:
        assert mine
        elsewhere(claims, OTHER, age=0)
    assert (claims.folder / "a").read_text() == OTHER


def race(folder: Path, barrier: Any, won: Any) -> None:
    claims = Claims(folder, LEASE)
    barrier.wait()
    with claims.claim("a") as mine:
        won.put(mine)
        barrier.wait()


def test_a_lapsed_claim_is_taken_over_by_one(claims):
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        elsewhere(claims, OTHER, age=3 * LEASE)
        barrier, won = context.Barrier(6), context.Queue()
        racers = [
            context.Process(target=race, args=(claims.folder, barrier, won)) for _ in range(6)
        ]
        for racer in racers:
            racer.start()
        assert sum(won.get(timeout=30) for _ in racers) == 1
        for racer in racers:
            racer.join()
