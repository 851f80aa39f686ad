"""What works on this machine: backends are tried, packages are looked for."""

from __future__ import annotations

import json

import diffusers
import pytest
import torch
from commands import invoke

from dit_accel.models import backends, quantizing


def test_the_doctor_says_what_works_and_how_to_get_the_rest() -> None:
    result = invoke("doctor", "--device", "cpu", "--json")
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    assert content["versions"]["diffusers"] == diffusers.__version__
    assert content["attention"].keys() == set(backends.names())
    assert content["devices"]["cpu"]["free_bytes"] > 0
    for package, one in content["missing"].items():
        assert content["optional"][package] is None
        assert one["get"].startswith("pip install") and one["for"]
    gains = content["gains"]
    working = {name for name, one in content["attention"].items() if one["works"]}
    assert gains["attention_seconds"].keys() == working
    assert gains["dtype_seconds"]["float32"] > 0
    assert gains["pruned_attention"] == "there is no kernel for cpu"
    text = invoke("doctor", "--device", "cpu").stdout
    assert "--dtype, one matrix product: float32" in text
    assert "work on cpu: " in text and torch.__version__ in text


@pytest.mark.skipif("native" not in backends.names(), reason="this diffusers has no backends")
def test_a_backend_is_called_and_its_values_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends.attempt("native", "cpu") == backends.Attempt("native", True, masks=True)
    if "flash_hub" in backends.names():
        assert backends.attempt("flash_hub", "cpu").why == backends.FROM_HUB
    assert not backends.attempt("nothing", "cpu").works
    own = torch.nn.functional.scaled_dot_product_attention
    wrong = [True]

    def broken(*args, **kwargs):  # the backend's call, but not the one it is compared with
        return own(*args, **kwargs) + wrong.pop() if wrong else own(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", broken)
    assert backends.attempt("native", "cpu").why == "its values are wrong"


def test_quantising_is_refused_with_the_package_that_it_needs() -> None:
    for method, (_, package) in quantizing.QUANTIZERS.items():
        if quantizing.installed(method):
            continue
        result = invoke("generate", "a cat", "--quantize", method)
        assert result.exit_code == 2
        assert f"{package} is not installed: pip install {package}" in result.stderr
