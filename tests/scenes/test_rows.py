"""Rows in tokens: what is at work when, and what is read from where."""

from functools import partial

import pytest
import torch

from dit_accel.core.tokens import TokenGrid
from dit_accel.scenes import reposition, rows
from dit_accel.scenes.rows import (
    ActiveParts,
    ClipRow,
    ReferenceLink,
    SceneConfig,
    active_at_step,
    active_in_layer,
    gather_plan_for,
    token_rows,
)

GRID = TokenGrid(2, 2, 4)
ALL = ActiveParts(True, True, True)
TABLES = partial(reposition.rotary, width=12)


def cover(*columns, frames=2):
    """One subject over these columns, in every frame."""
    shares = torch.zeros(1, frames, 2, 4)
    shares[..., list(columns)] = 1
    return shares


def two_rows(second):
    return [
        ClipRow("one", cover(0, 1), (0,)),
        ClipRow("two", second, (0,), (ReferenceLink(0, 0, 0),)),
    ]


@pytest.mark.parametrize(
    ("span", "inside"),
    [((0, 1), range(10)), ((0.2, 0.5), range(2, 5)), ((0, 0.04), ()), ((0.55, 1), range(6, 10))],
)
def test_a_part_of_the_run_is_whole_steps(span, inside):
    assert [step for step in range(10) if rows.within(span, step, 10)] == list(inside)


def test_what_is_at_work_at_a_step_and_in_a_layer():
    halves = {"steps": (0, 0.5), "text_steps": (0, 0.5), "share_steps": (0.5, 1)}
    config = SceneConfig(**halves, share_layers=(0.5, 1))
    assert active_at_step(config, 0, 4) == ActiveParts(True, False, True)
    assert active_at_step(config, 3, 4) == ActiveParts(False, True, False)
    assert active_at_step(config, 3, 4) & active_in_layer(config, 0, 4) == ActiveParts(
        False, False, False
    )
    assert not active_at_step(SceneConfig(isolate=False, share=False, text=0), 0, 4)


def test_a_static_source_is_moved_by_its_keys():
    _, stage = token_rows(two_rows(cover(2, 3)), GRID, SceneConfig(), TABLES)
    (source,) = stage.sources
    assert source.queries is None and source.row == 0 and source.label == 1
    assert source.tokens.tolist() == [0, 1, 4, 5, 8, 9, 12, 13]
    where = reposition.token_positions(GRID)[source.tokens]
    where[:, 2] += 2
    expected = reposition.rotary(where, 12)
    assert all(torch.equal(a, b) for a, b in zip(source.keys, expected, strict=True))


def test_a_source_that_moves_otherwise_is_met_by_the_queries():
    moving = cover(0, 1)
    moving[:, 1] = cover(2, 3)[:, 1]
    _, stage = token_rows(two_rows(moving), GRID, SceneConfig(), TABLES)
    (source,) = stage.sources
    native = reposition.rotary(reposition.token_positions(GRID)[source.tokens], 12)
    assert torch.equal(source.keys[0], native[0]) and source.queries is not None
    where = reposition.token_positions(GRID)
    where[8:, 2] -= 2  # the second latent frame goes back to where the reference stands
    expected = reposition.rotary(where, 12)
    torch.testing.assert_close(source.queries[0], expected[0])


def test_a_subject_that_is_never_seen_reads_nothing():
    unseen = [
        ClipRow("one", cover(0, 1), (0,)),
        ClipRow("two", torch.zeros(1, 2, 2, 4), (0,), (ReferenceLink(0, 0, 0),)),
    ]
    _, stage = token_rows(unseen, GRID, SceneConfig(), TABLES)
    assert gather_plan_for(stage, ALL, SceneConfig()).whole


def test_a_row_of_another_grid_and_one_without_room_are_named():
    with pytest.raises(ValueError, match=r"two covers \(3, 2, 4\) tokens; accepted: \(2, 2, 4\)"):
        token_rows(two_rows(cover(0, frames=3)), GRID, SceneConfig(), TABLES)
    crowded = torch.zeros(2, 2, 2, 4)
    crowded[..., 0, 0] = 0.2
    with pytest.raises(ValueError, match="crowd: coverage leaves no token"):
        token_rows([ClipRow("crowd", crowded, (0, 0))], GRID, SceneConfig(), TABLES)


def test_all_of_a_subjects_tokens_read_its_reference():
    _, stage = token_rows(two_rows(cover(2, 3)), GRID, SceneConfig(), TABLES)
    (group,) = [
        g for g in gather_plan_for(stage, ALL, SceneConfig()).groups if g.references.numel()
    ]
    assert group.queries.tolist() == [2, 3, 6, 7, 10, 11, 14, 15]


def test_planning_moves_no_global_generator():
    before = torch.random.get_rng_state()
    _, stage = token_rows(two_rows(cover(2, 3)), GRID, SceneConfig(), TABLES)
    gather_plan_for(stage, ALL, SceneConfig())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_row_counts_its_tokens_by_class():
    (stage,) = token_rows([ClipRow("one", cover(0), (0,))], GRID, SceneConfig(), TABLES)
    assert stage.counts() == {"background": 12, "1": 4} and stage.nbytes == 16 * 8
