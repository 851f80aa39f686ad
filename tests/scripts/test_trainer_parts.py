"""Parts of the miniature's trainer: Muon's updates, captions without colours, bfloat16."""

from __future__ import annotations

from pathlib import Path

import muon
import pools
import pytest
import run
import torch
import torch.nn.functional as F


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_muon_makes_updates_nearly_orthogonal(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(muon.orthogonal(matrix))
    assert values.min() > 0.3 and values.max() < 1.3


@pytest.mark.parametrize("shape", [(8, 8), (32, 6), (6, 32)])
def test_muon_keeps_that_in_bfloat16(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    update = muon.orthogonal(matrix, torch.bfloat16)
    assert update.dtype == torch.float32
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.4 and values.max() < 1.3


def test_muon_treats_alike_matrices_one_by_one() -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = [(6, 9), (4, 2, 3), (6, 9), (9, 6)]
    values, gradients = ([torch.randn(shape, generator=draw) for shape in shapes] for _ in "vg")

    def step(weights: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        return weights

    together = step([torch.nn.Parameter(value.clone()) for value in values])
    muon.Muon(together, lr=0.1, weight_decay=0.01).step()
    alone = step([torch.nn.Parameter(value.clone()) for value in values])
    for weight in alone:
        muon.Muon([weight], lr=0.1, weight_decay=0.01).step()
    for one, other, value in zip(together, alone, values, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
        assert (one - value).abs().min() > 0


def test_muon_minimises_and_resumes() -> None:
    target = torch.randn(8, 4, 3, generator=torch.Generator().manual_seed(0))

    def run(steps: int, weight: torch.nn.Parameter, saved: list | None = None) -> list[dict]:
        optimizer = muon.Together(muon.Muon([weight], lr=0.2))
        if saved:
            optimizer.load_state_dict(saved)
        for _ in range(steps):
            optimizer.zero_grad()
            (weight - target).square().mean().backward()
            optimizer.step()
        return optimizer.state_dict()

    whole, halves = (torch.nn.Parameter(torch.zeros_like(target)) for _ in range(2))
    run(100, whole)
    run(50, halves, run(50, halves))
    assert torch.equal(whole, halves)
    assert (whole - target).square().mean() < 0.1 * target.square().mean()


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("an orange ring on a plain gray background", "a ring on a plain gray background"),
        ("a small red ring growing and an orange circle", "a small ring growing and a circle"),
        ("a ring standing still", "a ring standing still"),
    ],
)  # fmt: skip
def test_colours_are_left_out_of_captions(said: str, left: str) -> None:
    assert pools.without_colors(said) == left


@pytest.mark.parametrize("named", [True, False])
def test_attention_stays_in_float32_within_bfloat16(named: bool) -> None:
    heads = torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    leaf = heads.bfloat16().requires_grad_()
    query, key, value = leaf.unbind()
    exact = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    with torch.autocast("cpu", torch.bfloat16), run.Float32Attention():
        found = (
            F.scaled_dot_product_attention(query=query, key=key, value=value)
            if named
            else F.scaled_dot_product_attention(query, key, value)
        )
        assert (query @ key.mT).dtype == torch.bfloat16, "all else is as autocast has it"
    assert torch.equal(found, exact.bfloat16())
    found.float().sum().backward()
    assert leaf.grad is not None and bool((leaf.grad[2] > 0).all()), "weights of values"


@pytest.mark.parametrize("can", [True, False])
def test_a_cpu_multiplies_in_bfloat16_only_where_it_has_the_instruction(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, can: bool
) -> None:
    capabilities = {"avx512_bf16": can, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    cpu = torch.device("cpu")
    assert run.multiplies_bfloat16(cpu) is can
    matrix = torch.ones(2, 2)
    with run.Run(tmp_path, cpu, 1.0).autocast_matrices():
        assert (matrix @ matrix).dtype == (torch.bfloat16 if can else torch.float32)
