"""Packing: bounds and round trips over seeded values, the rotation's gain, and what fits where."""

from __future__ import annotations

import math

import pytest
import torch

from dit_accel.core.quantization import (
    BITS,
    GROUP,
    OFFLOADED,
    choose_forms,
    hadamard,
    pack,
    packed_bytes,
    random_signs,
    typical_error,
    useful_bits,
)

SHAPES = [(1, 16, 3, 2, 2), (64,), (1,), (7, 13), (2, 4, 5, 6, 3)]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spiked(seed: int, *shape: int) -> torch.Tensor:
    """Normal values, one in a hundred of them fifty times as large."""
    values = draw(seed, *shape)
    large = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1)) < 0.01
    return torch.where(large, 50 * values, values)


def off(value: torch.Tensor, bits: int, signs: torch.Tensor | None, group: int = GROUP) -> float:
    return float(
        (pack(value, bits, signs=signs, group=group).unpack() - value).norm() / value.norm()
    )


def test_worked_example():
    """Four values in 4 bits: whole numbers from -7 to 7, and one scale."""
    value = torch.tensor([2.0, -6.0, 14.0, 0.9])
    packed = pack(value, 4, group=4)
    # the largest is 14, so a step is 14 / 7 = 2: 2 / 2 = 1, -6 / 2 = -3, 14 / 2 = 7, 0.45 -> 0
    assert packed.scales.tolist() == [2.0]
    assert packed.unpack().tolist() == [2.0, -6.0, 14.0, 0.0]
    # 4 values of half a byte and a scale of 4 bytes, instead of 16 bytes
    assert packed.nbytes == packed_bytes(4, 4, group=4) == 6
    # Rotated first by Hadamard's matrix / 2, one large value becomes four middling ones,
    assert hadamard(torch.tensor([[8.0, 0.0, 0.0, 0.0]])).tolist() == [[4.0, 4.0, 4.0, 4.0]]
    # so that the step is 4 / 7 instead of 8 / 7; rotated twice it is itself again.
    assert hadamard(hadamard(value[None])).flatten().tolist() == pytest.approx(value.tolist())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("make", [draw, spiked])
@pytest.mark.parametrize("group", [2, 16, 64])
def test_what_rounding_leaves_of_every_group_is_within_the_bound(shape, bits, make, group):
    """|x - unpacked| <= sqrt(g) / 2 largest / m in every group, with a rotation and without."""
    value, most = make(3, *shape), 2 ** (bits - 1) - 1
    for signs in (None, random_signs(group)):
        packed = pack(value, bits, signs=signs, group=group)
        back = packed.unpack()
        assert (back.shape, back.dtype) == (value.shape, value.dtype)
        ends = -value.numel() % group
        left, whole = (
            torch.nn.functional.pad(t.flatten(), (0, ends)).view(-1, group)
            for t in (back - value, value)
        )
        rotated = whole if signs is None else hadamard(whole * signs)
        bound = math.sqrt(group) / 2 * rotated.abs().amax(1) / most
        rounding = 1e-6 * whole.norm(dim=1)  # of float32 itself
        assert (left.norm(dim=1) <= bound + rounding).all()
        assert (bound <= math.sqrt(group) / 2 / most * whole.norm(dim=1) + rounding).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", [16, 64, 256])
def test_normal_values_lose_what_is_typical(bits, group):
    """The rule of thumb is never below the truth, and at most a quarter above it."""
    for signs in (None, random_signs(group)):
        assert 0.8 * typical_error(bits, group) < off(draw(1, 1 << 16), bits, signs, group)
        assert off(draw(1, 1 << 16), bits, signs, group) < 1.05 * typical_error(bits, group)


@pytest.mark.parametrize("bits", [8, 4])
def test_outliers_cost_less_once_they_are_rotated(bits):
    """One value in a hundred, fifty times as large: the others of its group are lost in its step.
    Of groups with one outlier the rotation leaves less than 0.6 of the error without it; where
    there are none it changes nothing to speak of."""
    value, signs = spiked(5, 1 << 15), random_signs()
    groups = value.view(-1, GROUP)
    single = ((groups.abs() > 6).sum(1) == 1).nonzero().flatten()
    assert len(single) > 50
    chosen = groups[single].contiguous()
    ordinary, rotated = off(chosen, bits, None), off(chosen, bits, signs)
    assert rotated < 0.6 * ordinary
    plain = draw(6, 1 << 15)
    assert off(plain, bits, signs) == pytest.approx(off(plain, bits, None), rel=0.1)


def test_smooth_values_gather_in_one_place_without_the_signs():
    """A constant group is one outlier to the bare Hadamard matrix; signs spread it again."""
    flat = torch.full((1, GROUP), 3.0)
    assert hadamard(flat).abs().amax() == pytest.approx(3.0 * math.sqrt(GROUP))
    assert hadamard(flat * random_signs()).abs().amax() < 0.5 * 3.0 * math.sqrt(GROUP)


def test_the_fast_rotation_is_the_hadamard_matrix():
    """Written out: H2 = [[1, 1], [1, -1]], and the next is the Kronecker product of it."""
    matrix, two = torch.ones(1, 1), torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    for size in (2, 4, 8, 16, 32, 64):
        matrix = torch.kron(two, matrix)
        rows = draw(size, 5, size)
        assert torch.allclose(hadamard(rows), rows @ matrix / math.sqrt(size), atol=1e-5)
        assert torch.allclose(hadamard(hadamard(rows)), rows, atol=1e-5)


@pytest.mark.parametrize("signs", [None, random_signs()])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_only_the_scale_of_a_group_shows_a_value_that_is_not_finite(signs, bits, bad):
    value = draw(2, 5 * GROUP)
    value[GROUP + 3] = bad
    packed = pack(value, bits, signs=signs)
    finite = packed.scales.isfinite().tolist()
    assert finite == [True, False, True, True, True]
    back = packed.unpack().view(5, GROUP)
    assert not back[1].isfinite().any()
    assert back[[0, 2, 3, 4]].isfinite().all()


def test_zeros_and_ends_are_exact():
    assert pack(torch.zeros(3, 5)).unpack().equal(torch.zeros(3, 5))
    for bits in BITS:
        most = 2.0 ** (bits - 1) - 1
        ends = torch.tensor([most, -most, 0.0, 1.0])
        assert pack(ends, bits, group=4).unpack().equal(ends)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_are_those_computed_beforehand(shape, dtype):
    for bits in BITS:
        packed = pack(draw(1, *shape).to(dtype), bits, signs=random_signs())
        assert packed.nbytes == packed_bytes(math.prod(shape), bits)
        assert packed.unpack().dtype == dtype


def test_eight_bits_of_float32_are_a_quarter_and_a_little():
    """64 codes and a scale of 4 bytes a group."""
    assert packed_bytes(640, 8) == 10 * 68
    assert packed_bytes(641, 8) == 11 * 68
    assert packed_bytes(640, 4) == 10 * 36
    assert packed_bytes(640, 16) == 10 * 132


def test_signs_are_the_same_for_a_seed_and_draw_from_no_global_generator():
    before = torch.random.get_rng_state()
    one, other = random_signs(seed=4), random_signs(seed=4)
    assert one.equal(other) and not one.equal(random_signs(seed=5))
    assert set(one.tolist()) == {1.0, -1.0}
    assert torch.random.get_rng_state().equal(before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bits": 7}, "bits is 7; accepted: 16, 8, 4"),
        ({"group": 48}, "group is 48; accepted: a power of two, at least 2"),
        ({"group": 1}, "group is 1; accepted"),
        ({"signs": torch.ones(3)}, r"signs has shape \(3,\); accepted: \(64,\)"),
        ({"value": torch.arange(3)}, "value has dtype torch.int64; accepted: floating"),
    ],
)
def test_what_cannot_be_packed_is_refused_by_name(given, message):
    with pytest.raises(ValueError, match=message):
        pack(**{"value": torch.ones(4), **given})


# --- what fits where ---


@pytest.mark.parametrize(
    ("memory", "count"), [(None, 0), (60, 0), (59, 1), (50, 1), (49, 2), (0, 3)]
)
def test_the_oldest_go_until_the_others_fit(memory, count):
    assert choose_forms([[10], [20], [30]], memory, offload=True) == [OFFLOADED] * count + [0] * (
        3 - count
    )


def test_all_are_packed_before_one_is_packed_further_and_before_one_leaves():
    """Three of 100 bytes, 50 in the first form and 25 in the second."""
    sizes = [[100, 50, 25]] * 3
    for memory, expected in (
        (300, [0, 0, 0]), (250, [1, 0, 0]), (249, [1, 1, 0]), (150, [1, 1, 1]), (149, [2, 1, 1]),
        (75, [2, 2, 2]), (74, [OFFLOADED, 2, 2]),
        (25, [OFFLOADED, OFFLOADED, 2]), (0, [OFFLOADED] * 3),
    ):  # fmt: skip
        assert choose_forms(sizes, memory, offload=True) == expected
        stays = [form if form != OFFLOADED else 2 for form in expected]
        assert choose_forms(sizes, memory, offload=False) == stays
    assert choose_forms([[100], [100, 50]], 160, offload=False) == [0, 1]
    assert choose_forms([], 5, offload=True) == []


def test_forms_are_those_that_save_something():
    assert useful_bits(640, 4, fewest=16) == [16]
    assert useful_bits(640, 4, fewest=4) == [16, 8, 4]
    assert useful_bits(640, 2, fewest=8) == [8]
    assert useful_bits(640, 2, fewest=16) == []
    assert useful_bits(1, 4, fewest=4) == [], "a group is larger than a single value"
