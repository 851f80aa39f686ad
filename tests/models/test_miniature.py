"""Where the miniature is found, which call defaults a folder may name, how its trainer steps."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from dit_accel.models import miniature


def write_defaults(folder: Path, text: str) -> Path:
    (folder / miniature.DEFAULTS_FILE).write_text(text, encoding="utf-8")
    return folder


def test_path_prefers_the_installed_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    monkeypatch.setattr(miniature, "_installed", lambda folder: tmp_path)
    assert miniature.path() == tmp_path


def test_path_falls_back_to_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "assets" / miniature.MINIATURE_NAME
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    monkeypatch.setattr(miniature, "_installed", lambda folder: None)
    monkeypatch.setattr(miniature, "__file__", str(tmp_path / "dit_accel" / "miniature.py"))
    assert miniature.path() == folder


def test_a_missing_miniature_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(miniature, "_installed", lambda folder: tmp_path)
    monkeypatch.setattr(miniature, "__file__", str(tmp_path / "dit_accel" / "miniature.py"))
    with pytest.raises(FileNotFoundError, match="the embedded miniature is missing") as caught:
        miniature.path()
    assert str(tmp_path) in str(caught.value)


def test_the_miniature_of_this_checkout_names_its_defaults() -> None:
    try:
        folder = miniature.path()
    except FileNotFoundError:
        pytest.skip("the miniature is not built here")
    assert set(miniature.call_defaults(folder)) == set(miniature.DEFAULT_KEYS)


def test_call_defaults_are_read_as_they_stand(tmp_path: Path) -> None:
    stated = {"height": 64, "guidance_scale": 4.5, "fps": 8}
    assert miniature.call_defaults(write_defaults(tmp_path, json.dumps(stated))) == stated


def test_a_folder_without_the_file_has_no_defaults(tmp_path: Path) -> None:
    assert miniature.call_defaults(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not JSON"),
        ("[1]", "must be an object of height, width"),
        ('{"heigth": 64}', "must be an object of height, width"),
        ('{"height": 0}', "height is 0 in .*must be a whole number above 0"),
        ('{"height": 64.5}', "height is 64.5 in .*must be a whole number above 0"),
        ('{"height": true}', "height is True in .*must be a whole number above 0"),
        ('{"fps": "8"}', "fps is '8' in .*must be a number above 0"),
    ],
)
def test_wrong_defaults_are_refused_by_name(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        miniature.call_defaults(write_defaults(tmp_path, text))


@pytest.fixture
def muon() -> ModuleType:
    return importlib.import_module("muon")


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_muon_makes_updates_nearly_orthogonal(muon: ModuleType, shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(muon.orthogonal(matrix))
    assert values.min() > 0.3 and values.max() < 1.3


@pytest.mark.parametrize("shape", [(8, 8), (32, 6), (6, 32)])
def test_muon_keeps_that_in_bfloat16(muon: ModuleType, shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    update = muon.orthogonal(matrix, torch.bfloat16)
    assert update.dtype == torch.float32
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.4 and values.max() < 1.3


def test_muon_treats_alike_matrices_one_by_one(muon: ModuleType) -> None:
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


def test_muon_minimises_and_resumes(muon: ModuleType) -> None:
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
    assert importlib.import_module("pools").without_colors(said) == left


@pytest.fixture
def run() -> ModuleType:
    return importlib.import_module("run")


@pytest.mark.parametrize("named", [True, False])
def test_attention_stays_in_float32_within_bfloat16(run: ModuleType, named: bool) -> None:
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
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, can: bool
) -> None:
    told = {"avx512_bf16": can, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    cpu = torch.device("cpu")
    assert run.multiplies_bfloat16(cpu) is can
    matrix = torch.ones(2, 2)
    with run.Run(tmp_path, cpu, 1.0).autocast_matrices():
        assert (matrix @ matrix).dtype == (torch.bfloat16 if can else torch.float32)
