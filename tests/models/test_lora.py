"""LoRAs before and after a pipeline is loaded: which file, which expert, which weight."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_folders
import torch
from calls import call

from dit_accel.models import loading, lora
from dit_accel.models.folder import LoadableModel, ModelError
from dit_accel.models.lora import Lora, lora_of

WIDTH, LAYER = 24, "blocks.0.attn1.to_q"  # of the tiny denoiser


def lora_file(path: Path, seed: int = 0, width: int = WIDTH, layer: str = LAYER) -> Path:
    return tiny_folders.save_lora(path, layer, width, seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny Wan 2.2: two experts."""
    path = tmp_path_factory.mktemp("models") / "two"
    tiny.tiny_wan(transformer_2=True).save_pretrained(path)
    return path


def test_worked_example(tmp_path):
    """Texts as they are typed, and as they are stored."""
    path = Path("a/b.safetensors")
    assert lora_of("a/b.safetensors:0.5") == Lora(path, 0.5)
    assert lora_of("a/b.safetensors") == Lora(path, 1.0)
    assert lora_of("C:/b.safetensors") == Lora(Path("C:/b.safetensors"), 1.0)
    assert lora_of("transformer_2=a/b.safetensors:2") == Lora(path, 2.0, "transformer_2")
    assert lora_of("x=1.safetensors") == Lora(Path("x=1.safetensors"))
    for text in ("transformer=a.safetensors:0.5", "a.safetensors", "a.safetensors:0.12345678"):
        assert str(lora_of(text)) == text
    assert lora_of(str(tmp_path)).file == tmp_path  # a folder without one
    made = lora_file(tmp_path / "one.safetensors")
    assert lora_of(str(tmp_path)).file == lora_of(f"{made}:2").file == made


def test_what_does_not_fit_is_refused_by_the_headers_alone(folder, tmp_path):
    model = loading.resolve_model(str(folder))
    one = LoadableModel(
        model.name, model.folder, model.index | {"transformer_2": [None, None]}, model.family
    )
    fits = lora_file(tmp_path / "fits.safetensors")
    wide = lora_file(tmp_path / "wide.safetensors", width=32)
    other = lora_file(tmp_path / "other.safetensors", layer="layers.0.q")
    refused = [
        (one, f"transformer_2={fits}", "the model has no transformer_2; it has transformer"),
        (model, str(wide), "to_q takes 24 values in transformer, and 32 in the LoRA"),
        (model, f"transformer_2={wide}", "24 values in transformer_2, and 32 in the LoRA"),
        (model, str(other), "transformer has none of its 1 layers"),
    ]
    for given, text, message in refused:
        with pytest.raises(ModelError) as error:
            lora.check(text, given)
        assert message in str(error.value) and repr(text) in str(error.value)
    if importlib.util.find_spec("peft") is None:
        with pytest.raises(ModelError, match="pip install peft"):
            lora.check(str(fits), model)
    else:
        lora.check(str(fits), model)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
def test_an_expert_has_its_own_loras_and_weights(folder, tmp_path):
    a, b = (lora_file(tmp_path / f"{n}.safetensors", seed=i) for i, n in enumerate("ab"))
    model = loading.resolve_model(str(folder))

    def clip(*texts: str) -> tuple[Any, Any]:
        pipe = loading.load(model, device="cpu", dtype="float32")
        if texts:
            lora.load(pipe, texts)
        with torch.no_grad():
            return call(pipe), pipe

    plain, _ = clip()
    first, pipe = clip(f"transformer={a}")
    assert pipe.get_list_adapters() == {"transformer": ["lora_0"]}
    second, pipe = clip(f"transformer_2={a}:0.5")
    assert pipe.get_list_adapters() == {"transformer_2": ["lora_0"]}
    both, pipe = clip(str(a))
    assert pipe.get_list_adapters() == {"transformer": ["lora_0"], "transformer_2": ["lora_0"]}
    apart, pipe = clip(f"transformer={a}", f"transformer_2={a}")
    assert np.array_equal(both, apart)
    clips = [plain, first, second, both, clip(f"transformer={b}:2", f"transformer_2={a}:0.5")[0]]
    assert len({one.tobytes() for one in clips}) == len(clips)
    nothing, _ = clip(f"transformer={a}", f"transformer={a}:-1", f"transformer_2={b}:0")
    assert np.allclose(nothing, plain, atol=1e-4)


def test_an_evaluation_tells_loras_of_a_folder_apart(folder, tmp_path):
    from dit_accel.evaluation.jobs import fingerprint
    from dit_accel.models.setup import Setup

    lora_file(tmp_path / "one.safetensors")
    setup = Setup(lora=(str(tmp_path),))
    before = fingerprint(folder, setup)
    lora_file(tmp_path / "one.safetensors", seed=1)
    assert fingerprint(folder, setup) != before
    assert json.dumps(setup.to_dict()) == json.dumps({"lora": [str(tmp_path)]})
