"""Isolation's maths: labels, the rules, and that a gather plan is the dense mask without N x N."""

import pytest
import torch
import torch.nn.functional as F
from calls import LargestTensor

from dit_accel.scenes import masks
from dit_accel.scenes.masks import dense_mask, gather_plan, isolated_attention, labels

SEEDS = range(40)


def drawn(seed, subjects=3, tokens=60, references=25):
    """A random layout: labels of tokens, classes of reference keys."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, subjects + 1, (tokens,), generator=generator)
    refs = torch.randint(1, subjects + 1, (references,), generator=generator)
    return classes, refs


def heads(seed, *tokens, width=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1000 + seed)
    return [torch.randn(2, n, 3, width, generator=generator, dtype=dtype) for n in tokens]


def sdpa(query, key, value, mask=None):
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def boxes(*spans, frames=2, rows=4, columns=6):
    """Coverage of boxes (y0, y1, x0, x1) of whole tokens."""
    cover = torch.zeros(len(spans), frames, rows, columns)
    for i, (y0, y1, x0, x1) in enumerate(spans):
        cover[i, :, y0:y1, x0:x1] = 1
    return cover


def test_worked_example():
    """Five tokens: two of the background, two of subject 1, one of subject 2."""
    classes = torch.tensor([0, 0, 1, 1, 2])
    # A subject attends to itself and to the background. The background attends to all (open).
    assert dense_mask(classes, "open").int().tolist() == [
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    # Closed: the background attends to itself alone.
    assert dense_mask(classes, "closed").int().tolist()[0] == [1, 1, 0, 0, 0]
    # A reference has keys of subjects 1 and 2: each subject reads those of its own class.
    read = dense_mask(classes, "open", torch.tensor([1, 2])).int()[:, 5:]
    assert read.tolist() == [[0, 0], [0, 0], [1, 0], [1, 0], [0, 1]]
    # The same without a mask, one call a class: 2 x 5 + 2 x 4 + 1 x 3 = 21 pairs instead of 25.
    plan = gather_plan(classes, "open")
    assert [(g.classes, plan.sizes(g)[:2]) for g in plan.groups] == [
        ((0,), (2, 5)),
        ((1,), (2, 4)),
        ((2,), (1, 3)),
    ]
    assert plan.pairs == 21


# --- labels ---


def test_the_highest_z_has_what_several_cover_and_of_equal_ones_the_later():
    cover = boxes((0, 4, 0, 4), (0, 4, 2, 6))
    above = labels(cover, [1, 0]).view(2, 4, 6)
    assert above[0, 0].tolist() == [1, 1, 1, 1, 2, 2]
    equal = labels(cover, [0, 0]).view(2, 4, 6)
    assert equal[1, 3].tolist() == [1, 1, 2, 2, 2, 2]


def test_a_token_belongs_to_a_subject_from_the_least_share():
    cover = torch.tensor([[[[0.49, 0.5, 1.0, 0.0]]]])
    assert labels(cover, [0]).tolist() == [0, 1, 1, 0]
    assert labels(cover, [0], least=0.4).tolist() == [1, 1, 1, 0]


def test_a_subject_smaller_than_a_token_keeps_the_one_it_covers_most():
    cover = torch.zeros(1, 2, 2, 2)
    cover[0, 0, 1, 0], cover[0, 0, 1, 1] = 0.1, 0.3
    assert labels(cover, [0]).tolist() == [0, 0, 0, 1, 0, 0, 0, 0]


def test_a_hidden_subject_takes_a_token_from_one_that_has_several():
    cover = boxes((0, 4, 0, 6), (1, 2, 1, 2))
    cover[1] *= 0.9
    found = labels(cover, [1, 0]).view(2, 4, 6)
    assert (found == 2).sum((1, 2)).tolist() == [1, 1] and int(found[0, 1, 1]) == 2


def test_the_last_token_of_another_is_not_taken_but_exchanged():
    cover = torch.zeros(2, 1, 1, 3)
    cover[0, 0, 0] = torch.tensor([1.0, 0.2, 0.0])  # owns the first token only
    cover[1, 0, 0] = torch.tensor([0.3, 0.0, 0.0])  # covers nothing else
    assert labels(cover, [1, 0]).tolist() == [2, 1, 0]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_subject_that_is_there_has_a_token_in_every_frame(seed):
    generator = torch.Generator().manual_seed(seed)
    cover = torch.rand(3, 3, 4, 4, generator=generator) * 0.7
    cover *= torch.rand(3, 3, 1, 1, generator=generator) < 0.8
    found = labels(cover, torch.randint(0, 3, (3,), generator=generator).tolist()).view(3, 4, 4)
    for subject in range(3):
        for frame in range(3):
            there = bool((cover[subject, frame] > 0).any())
            assert bool((found[frame] == subject + 1).any()) == there


def test_more_subjects_than_tokens_is_named():
    cover = torch.zeros(2, 1, 1, 2)
    cover[:, 0, 0, 0] = 0.2
    with pytest.raises(ValueError, match=r"no token for subject \d in latent frame 0"):
        labels(cover, [0, 0])


@pytest.mark.parametrize(
    ("cover", "z", "least", "message"),
    [
        (torch.zeros(2, 1, 2, 2), [0], 0.5, "z has 1 numbers"),
        (torch.zeros(1, 2, 2), [0], 0.5, r"accepted: \(S, F, rows, columns\)"),
        (torch.zeros(1, 1, 2, 2), [0], 0.0, "least is 0.0; accepted: above 0, up to 1"),
        (torch.full((1, 1, 2, 2), 1.5), [0], 0.5, "outside 0 to 1"),
        (torch.full((1, 1, 2, 2), torch.nan), [0], 0.5, "outside 0 to 1"),
    ],
)
def test_what_is_no_coverage_is_refused(cover, z, least, message):
    with pytest.raises(ValueError, match=message):
        labels(cover, z, least)


# --- the rules ---


@pytest.mark.parametrize(
    ("isolation", "table"),
    [
        ("off", [[1, 1, 1], [1, 1, 1], [1, 1, 1]]),
        ("open", [[1, 1, 1], [1, 1, 0], [1, 0, 1]]),
        ("closed", [[1, 0, 0], [1, 1, 0], [1, 0, 1]]),
    ],
)
def test_the_rules_between_classes(isolation, table):
    classes = torch.arange(3)
    assert dense_mask(classes, isolation).int().tolist() == table


def test_references_are_read_by_their_own_subject_only():
    mask = dense_mask(torch.tensor([0, 1, 2]), "off", torch.tensor([1, 2, 2]))
    assert mask[:, 3:].int().tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 1]]


def test_an_unknown_isolation_is_named():
    with pytest.raises(ValueError, match="isolation is 'ajar'; accepted: off, open, closed"):
        dense_mask(torch.zeros(2, dtype=torch.int64), "ajar")


# --- the plan ---


@pytest.mark.parametrize("isolation", masks.ISOLATIONS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_plan_is_the_mask(seed, isolation):
    """Every query in one call, and its keys are those of the mask; float64 within 1e-12."""
    classes, refs = drawn(seed)
    query, key, value = heads(seed, 60, 60, 60)
    ref_key, ref_value = heads(seed + 1, 25, 25)
    plan = gather_plan(classes, isolation, refs)
    mask = dense_mask(classes, isolation, refs)
    seen = torch.zeros_like(mask)
    for group in plan.groups:
        queries = torch.arange(60) if group.queries is None else group.queries
        keys = torch.arange(60) if group.keys is None else group.keys
        seen[queries[:, None], keys[None]] = True
        seen[queries[:, None], 60 + group.references[None]] = True
    assert torch.equal(seen, mask)
    assert plan.pairs == int(mask.sum()) <= mask.numel()
    ours = isolated_attention(plan, sdpa, query, key, value, (ref_key, ref_value))
    both = torch.cat([key, ref_key], 1), torch.cat([value, ref_value], 1)
    torch.testing.assert_close(ours, sdpa(query, *both, mask), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_plan_is_the_mask_in_half_precision(seed):
    """bfloat16: within one unit in the last place of the largest value."""
    classes, refs = drawn(seed)
    query, key, value = heads(seed, 60, 60, 60, dtype=torch.bfloat16)
    read = heads(seed + 1, 25, 25, dtype=torch.bfloat16)
    ours = isolated_attention(gather_plan(classes, "open", refs), sdpa, query, key, value, read)
    both = torch.cat([key, read[0]], 1), torch.cat([value, read[1]], 1)
    dense = sdpa(query, *both, dense_mask(classes, "open", refs))
    bound = 2**-7 * float(dense.abs().max())
    torch.testing.assert_close(ours, dense, rtol=0, atol=bound)


@pytest.mark.gpu
def test_the_plan_is_xformers_attention():
    """xformers has no attention on the CPU. Each call unmasked, against SDPA with the mask."""
    ops = pytest.importorskip("xformers.ops")
    classes, refs = drawn(0)
    query, key, value, ref_key, ref_value = (
        x.cuda() for x in heads(0, 60, 60, 60, 25, 25, dtype=torch.float16)
    )

    def memory_efficient(q, k, v):
        return ops.memory_efficient_attention(q, k, v)

    try:
        memory_efficient(query, key, value)
    except NotImplementedError as error:  # such as a wheel for CUDA 12 beside a torch for CUDA 13
        pytest.skip(f"this xformers has no operator for this torch: {str(error)[:200]}")

    plan = gather_plan(classes, "open", refs).to(query.device)
    ours = isolated_attention(plan, memory_efficient, query, key, value, (ref_key, ref_value))
    both = torch.cat([key, ref_key], 1), torch.cat([value, ref_value], 1)
    dense = sdpa(query, *both, dense_mask(classes, "open", refs).cuda())
    torch.testing.assert_close(ours, dense, rtol=0, atol=2e-3)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("seed", range(5))
def test_the_plan_is_flex_attention_with_a_mask_of_labels(seed):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    classes, _ = drawn(seed)
    query, key, value = heads(seed, 60, 60, 60, width=16, dtype=torch.float32)

    def rule(batch, head, q, k):
        own, other = classes[q], classes[k]
        return (own == other) | (other == 0) | (own == 0)

    mask = create_block_mask(rule, None, None, 60, 60, device="cpu")
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    flex = flex_attention(q, k, v, block_mask=mask).transpose(1, 2)
    ours = isolated_attention(gather_plan(classes, "open"), sdpa, query, key, value)
    torch.testing.assert_close(ours, flex, rtol=0, atol=2e-6)


@pytest.mark.parametrize("isolation", ["open", "closed"])
@pytest.mark.parametrize("seed", range(10))
def test_what_a_subject_may_not_see_changes_it_by_exactly_nothing(seed, isolation):
    classes, refs = drawn(seed)
    query, key, value = heads(seed, 60, 60, 60)
    read = heads(seed + 1, 25, 25)
    plan = gather_plan(classes, isolation, refs)
    before = isolated_attention(plan, sdpa, query, key, value, read)
    other, other_refs = classes == 2, refs == 2
    key, value = key.clone(), value.clone()
    key[:, other] += 100
    value[:, other] -= 100
    for tensor in read:
        tensor[:, other_refs] *= 50
    after = isolated_attention(plan, sdpa, query, key, value, read)
    assert torch.equal(before[:, classes == 1], after[:, classes == 1])
    assert torch.equal(before[:, classes == 3], after[:, classes == 3])
    assert not torch.equal(before[:, classes == 2], after[:, classes == 2]), "the control"
    background = torch.equal(before[:, classes == 0], after[:, classes == 0])
    assert background == (isolation == "closed")


def test_one_subject_covering_all_is_plain_attention_bit_by_bit():
    query, key, value = heads(0, 60, 60, 60, dtype=torch.float32)
    for classes in (torch.ones(60, dtype=torch.int64), torch.zeros(60, dtype=torch.int64)):
        plan = gather_plan(classes, "closed")
        assert plan.whole
        assert torch.equal(
            isolated_attention(plan, sdpa, query, key, value), sdpa(query, key, value)
        )


def test_classes_that_see_the_same_are_one_call():
    classes, _ = drawn(0, subjects=1)
    assert gather_plan(classes, "open").whole, "one subject and an open background: nothing is cut"
    assert gather_plan(classes, "off").whole
    assert len(gather_plan(classes, "closed").groups) == 2
    assert len(gather_plan(drawn(0)[0], "open").groups) == 4


def test_permuted_tokens_give_permuted_outputs():
    classes, _ = drawn(3)
    query, key, value = heads(3, 60, 60, 60)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    straight = isolated_attention(gather_plan(classes), sdpa, query, key, value)
    mixed = isolated_attention(
        gather_plan(classes[order]), sdpa, query[:, order], key[:, order], value[:, order]
    )
    torch.testing.assert_close(mixed, straight[:, order], rtol=0, atol=1e-13)


def test_nothing_of_n_by_n_is_made_by_the_plan():
    tokens = 4096
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 3, (tokens,), generator=generator)
    refs = torch.ones(500, dtype=torch.int64)
    query = torch.randn(1, tokens, 1, 8, generator=generator)
    with torch.no_grad(), LargestTensor() as sizes:
        plan = gather_plan(classes, "open", refs)
        isolated_attention(plan, sdpa, query, query, query, (query[:, :500], query[:, :500]))
    assert sizes.largest <= 2 * tokens * 8
    with torch.no_grad(), LargestTensor() as control:
        dense_mask(classes, "open")
    assert control.largest >= tokens * tokens, "the control: the oracle makes one"
