"""Reposition's maths: box maps, real-valued rotary embeddings, and the two sides' agreement."""

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

from dit_accel.attention.lse_merge import attention_part, merge
from dit_accel.core.tokens import TokenGrid
from dit_accel.scenes import reposition
from dit_accel.scenes.reposition import box_map, rotary, subject_boxes, token_positions

GRID = TokenGrid(3, 5, 6)
SEEDS = range(20)


def box(*edges, frames=3):
    return torch.tensor([edges], dtype=torch.float64).expand(frames, 4)


def random_boxes(seed, frames=3):
    """Boxes of sizes that stay within the scales, each frame its own."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(frames, 2, generator=generator, dtype=torch.float64) * 3
    size = 1.5 + torch.rand(frames, 2, generator=generator, dtype=torch.float64) * 1.4
    return torch.cat([corner, corner + size], 1)


def turned(rows, table):
    """Rows `(B, n, H, D)` rotated in float64."""
    cos, sin = (x.double() for x in table)
    x1, x2 = rows.unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos[..., 0::2], sin[..., 0::2]
    return torch.stack([x1 * c - x2 * s, x1 * s + x2 * c], -1).flatten(-2)


def exact(where, width):
    """Rotary embeddings in float64, without the table's rounding to float32."""
    angles = torch.cat(
        [
            torch.outer(where[:, axis], reposition._frequencies(n))
            for axis, n in reposition._axes(width)
        ],
        1,
    ).repeat_interleave(2, 1)
    return angles.cos()[None, :, None], angles.sin()[None, :, None]


def test_worked_example():
    """A reference fills columns 0 to 2 of its frame; the target is columns 2 to 5 of another."""
    source, target = box(0, 0, 2, 2, frames=1), box(2, 0, 5, 2, frames=1)
    there = box_map(source, target)
    # p' = (p + 1/2 - 0) (5 - 2) / (2 - 0) + 2 - 1/2: column 0 goes to 2.25, column 1 to 3.75.
    # Rows stay, as the boxes have the same rows.
    where = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    assert there(where).tolist() == [[0.0, 1.0, 2.25], [0.0, 1.0, 3.75]]
    # At half the strength a token goes half the way: from 0 to 1.125.
    assert box_map(source, target, alpha=0.5)(where).tolist()[0] == [0.0, 1.0, 1.125]
    # The inverse brings it back.
    assert torch.allclose(there.inverse()(there(where)), where)


# --- maps ---


def test_the_map_is_the_formula():
    source, target = random_boxes(0), random_boxes(1)
    where = token_positions(GRID)
    found = box_map(source, target)(where)
    for (frame, row, column), (_, y, x) in zip(where.tolist(), found.tolist(), strict=True):
        for p, got, (r0, r1), (t0, t1) in (
            (row, y, source[int(frame), [1, 3]].tolist(), target[int(frame), [1, 3]].tolist()),
            (column, x, source[int(frame), [0, 2]].tolist(), target[int(frame), [0, 2]].tolist()),
        ):
            assert got == pytest.approx((p + 0.5 - r0) * (t1 - t0) / (r1 - r0) + t0 - 0.5)


@pytest.mark.parametrize("seed", SEEDS)
def test_equal_boxes_leave_every_place_bit_by_bit(seed):
    same = box_map(random_boxes(seed), random_boxes(seed), alpha=0.7)
    assert not same.gain.any() and not same.offset.any()
    assert torch.equal(same(token_positions(GRID)), token_positions(GRID))


@pytest.mark.parametrize("alpha", [0.25, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_inverse_undoes_the_map(seed, alpha):
    there = box_map(random_boxes(seed), random_boxes(seed + 100), alpha)
    torch.testing.assert_close(
        there.inverse()(there(token_positions(GRID))), token_positions(GRID), rtol=0, atol=1e-12
    )


def test_the_inverse_is_the_map_of_exchanged_boxes():
    one, other = random_boxes(0), random_boxes(1)
    back, swapped = box_map(one, other).inverse(), box_map(other, one)
    torch.testing.assert_close(back.gain, swapped.gain)
    torch.testing.assert_close(back.offset, swapped.offset)


def test_strength_goes_from_where_it_is_to_the_whole_map():
    source, target, where = random_boxes(0), random_boxes(1), token_positions(GRID)
    whole = box_map(source, target)(where)
    assert torch.equal(box_map(source, target, 0.0)(where), where)
    torch.testing.assert_close(box_map(source, target, 0.3)(where), 0.7 * where + 0.3 * whole)


def test_a_scale_beyond_the_bounds_is_clamped_about_the_centre():
    where = torch.tensor([[0.0, 0.5, 1.5]], dtype=torch.float64)  # the centre of the source box
    moved = box_map(box(1, 0, 3, 2), box(0, 0, 20, 2))  # 10 times as wide
    assert float(1 + moved.gain[0, 1]) == 2.0
    assert moved(where)[0].tolist() == [0.0, 0.5, 9.5]


def test_a_map_is_static_where_all_frames_share_it():
    still, moving = box(0, 0, 2, 2), torch.tensor([[i, 0.0, i + 2, 2] for i in range(3)]).double()
    assert box_map(still, still + 3).static
    assert not box_map(still, moving).static
    assert box_map(moving, moving + 1).static, "both move alike"


@pytest.mark.parametrize(
    ("source", "target", "alpha", "message"),
    [
        (box(0, 0, 1, 1), box(0, 0, 1, 1), 1.5, "alpha is 1.5; accepted: from 0 to 1"),
        (box(0, 0, 0, 1), box(0, 0, 1, 1), 1.0, "source has an empty box"),
        (box(0, 0, 1, 1), box(0, 0, float("nan"), 1), 1.0, "target has an empty box"),
    ],
)
def test_what_is_no_map_is_refused(source, target, alpha, message):
    with pytest.raises(ValueError, match=message):
        box_map(source, target, alpha)


# --- extents ---


def test_extents_give_back_the_box_that_was_rastered():
    cover = torch.zeros(2, 4, 6)
    cover[0, 1:3, 2:5] = 1.0
    cover[0, 1:3, 1] = 0.25  # the box begins at 1.75
    cover[0, 3, 2:5] = 0.5  # and ends at row 3.5
    cover[0, 3, 1] = 0.125
    found = subject_boxes(cover)
    assert found[0].tolist() == [1.75, 1.0, 5.0, 3.5]
    assert torch.equal(found[1], found[0]), "a frame without it takes the nearest"
    with pytest.raises(ValueError, match="coverage is 0 everywhere"):
        subject_boxes(torch.zeros(2, 4, 6))


# --- rotary embeddings ---


@pytest.mark.parametrize("width", [12, 24, 32, 128])
def test_whole_places_give_exactly_diffusers_table(width):
    """Not of 64: diffusers 0.35 cuts its table by D // 3, which is odd there, and other than the
    widths it was made by; such a model is refused when a scene is put on it."""
    table = WanRotaryPosEmbed(width, (1, 2, 2), 64)
    theirs = table(torch.empty(1, 16, 7, 2 * 11, 2 * 13))
    ours = rotary(token_positions(TokenGrid(7, 11, 13)), width)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("width", [12, 128])
def test_a_joint_shift_changes_no_logit(width):
    generator = torch.Generator().manual_seed(0)
    where = torch.rand(9, 3, generator=generator, dtype=torch.float64) * 5
    q, k = torch.randn(2, 1, 9, 2, width, generator=generator, dtype=torch.float64)
    shift = torch.tensor([2.0, 3.7, -1.2], dtype=torch.float64)

    def logits(offset):
        table = exact(where + offset, width)
        return torch.einsum("bnhd,bmhd->bhnm", turned(q, table), turned(k, table))

    torch.testing.assert_close(logits(0 * shift), logits(shift), rtol=0, atol=1e-11)


# --- the two sides ---


def sides(source, target, width=12, seed=0):
    """Outputs of queries over own and reference's keys: key-side and query-side, in float64."""
    generator = torch.Generator().manual_seed(seed)
    where, n = token_positions(GRID), GRID.tokens
    q, k, v, ref_k, ref_v = torch.randn(5, 1, n, 2, width, generator=generator).double()
    there, native = box_map(source, target), exact(where, width)
    own_q, own_k = turned(q, native), turned(k, native)
    moved = turned(ref_k, exact(there(where), width))
    key_side = attention_part(own_q, torch.cat([own_k, moved], 1), torch.cat([v, ref_v], 1))[0]
    back_q = turned(q, exact(there.inverse()(where), width))
    parts = attention_part(own_q, own_k, v), attention_part(back_q, turned(ref_k, native), ref_v)
    return key_side, merge(parts)


def test_both_sides_agree_for_translations():
    source = box(0.3, 0.1, 2.4, 3.3)
    key_side, query_side = sides(source, source + torch.tensor([2.2, 1.3, 2.2, 1.3]))
    torch.testing.assert_close(key_side, query_side, rtol=0, atol=1e-12)


def test_both_sides_differ_where_sizes_do():
    key_side, query_side = sides(box(0, 0, 2, 2), box(1, 1, 4, 3))
    assert float((key_side - query_side).abs().max()) > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_merged_parts_are_one_softmax(seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 2, 30, 3, 8, generator=generator).double() * 3
    whole = attention_part(q, k, v)[0]
    sdpa = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v))
    ).transpose(1, 2)
    torch.testing.assert_close(whole, sdpa, rtol=0, atol=1e-12)
    parts = [
        attention_part(q, k[:, a:b], v[:, a:b], most=7 * 6 * (b - a))
        for a, b in ((0, 11), (11, 30))
    ]
    torch.testing.assert_close(merge(parts), whole, rtol=0, atol=1e-12)
