"""The memory of a run, said before its weights are loaded."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from dit_accel.core.generation import ClipSpec, call_arguments
from dit_accel.models import loading, memory
from dit_accel.models.memory import MemoryEstimate, Part
from dit_accel.models.setup import Setup

CLIP = ClipSpec("a red circle", "", 0, 4, 4.0, 32, 32, 5, None, 64)


def test_worked_example(tmp_path):
    # 6 floats outside the blocks, 4 + 2 in block 0, 3 in block 1, 2 whole numbers: in 2 bytes each
    tensors = {
        "head.weight": np.zeros(6, np.float32),
        "blocks.0.a.weight": np.zeros(4, np.float32),
        "blocks.0.b.weight": np.zeros(2, np.float16),
        "blocks.1.a.weight": np.zeros(3, np.float32),
        "ids": np.zeros(2, np.int64),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    part = memory.part_of([path], 2)
    assert part.bytes == 2 * (6 + 4 + 2 + 3) + 8 * 2
    assert part.block == 2 * (6 + 4 + 2) + 16  # what is outside, and block 0
    assert part.layer == 16  # the ids; the largest of floats is the head with 12


def test_stages_by_way_of_offloading():
    parts = {"text_encoder": Part(50, 9, 5), "transformer": Part(80, 12, 8), "vae": Part(10, 3, 2)}
    found = MemoryEstimate(parts, {"text_encoder": 1, "transformer": 4, "vae": 30})
    assert found.stages("none") == {"text": 141, "denoise": 144, "decode": 170}
    assert found.stages("model") == {"text": 51, "denoise": 84, "decode": 40}
    assert found.stages("sequential") == {"text": 6, "denoise": 12, "decode": 32}
    assert found.stages("group") == {"text": 16, "denoise": 26, "decode": 40}  # the VAE stays


def test_of_two_experts_one_is_on_the_device_at_a_time():
    parts = {"transformer": Part(80, 1, 1), "transformer_2": Part(70, 1, 1)}
    found = MemoryEstimate(parts, {"transformer": 4, "transformer_2": 40})
    assert found.stages("model") == {"denoise": 110}
    assert found.stages("none") == {"denoise": 190}


def test_traced_activations_are_the_live_bytes_of_a_real_run():
    model = loading.resolve_model(None)
    found = memory.activations_of(
        model, Setup(), torch.float32, lambda pipe: call_arguments(pipe, CLIP)
    )
    pipe = loading.load(model, device="cpu", dtype="float32")
    peaks: dict[str, int] = {}

    def watch(part: str, method: str) -> None:
        module = getattr(pipe, part)
        own = getattr(module, method)

        def watched(*args, **kwargs):
            live = memory._Live([*module.parameters(), *module.buffers()])
            for one in memory.tree_leaves((args, kwargs)):
                if isinstance(one, torch.Tensor):
                    live.add(one)
            with live:
                out = own(*args, **kwargs)
            peaks[part] = max(peaks.get(part, 0), live.peak)
            return out

        setattr(module, method, watched)

    for part, method in (
        ("text_encoder", "forward"),
        ("transformer", "forward"),
        ("vae", "decode"),
    ):
        watch(part, method)
    pipe(**call_arguments(pipe, CLIP))
    assert found.keys() == peaks.keys()
    for part, peak in peaks.items():
        assert found[part] == pytest.approx(peak, rel=0.02), part


def test_a_convolution_copies_what_it_reads_and_makes():
    conv = torch.nn.Conv2d(2, 5, 3, padding=1, device="meta")
    live = memory._Live([*conv.parameters()])
    given = torch.zeros(1, 2, 4, 4, device="meta")
    live.add(given)
    with torch.no_grad(), live:
        out = conv(given)
        conv(out[:, :2])  # its tensors are alive beside the first output
    read, weight, made = 4 * 2 * 16, 4 * 5 * 2 * 9, 4 * 5 * 16
    assert live.now == read + made  # the second output is dropped, and copies live in the call
    assert live.peak == (read + made + made) + (read + weight + made)


def test_what_cannot_be_traced_says_why_and_keeps_the_weights():
    def broken(pipe):
        raise RuntimeError("no such thing\nmore")

    found = memory.forecast(loading.resolve_model(None), Setup(), "bfloat16", broken)
    assert found.why == "activations could not be traced: no such thing"
    assert found.parts["transformer"].bytes > 10_000_000
    full = memory.forecast(loading.resolve_model(None), Setup(), "float32", broken)
    assert full.parts["transformer"].bytes == 2 * found.parts["transformer"].bytes
    assert full.parts["vae"] == found.parts["vae"]  # in float32 always


def test_a_damaged_file_leaves_the_message_to_loading(tmp_path):
    shutil.copytree(loading.resolve_model(None).folder, tmp_path / "m")
    next((tmp_path / "m" / "vae").glob("*.safetensors")).write_bytes(b"\xff" * 20)
    model = loading.resolve_model(str(tmp_path / "m"))
    found = memory.forecast(model, Setup(), "float32", dict)
    assert found.stages("none") == {}
    assert "is no safetensors file" in (found.why or "")


def test_a_file_that_is_no_safetensors_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"\xff" * 20)
    with pytest.raises(ValueError, match=r"a\.safetensors is no safetensors file"):
        memory.header_of(path)


def test_a_part_whose_buffers_the_pipeline_reads(tmp_path):
    class Part(torch.nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.register_buffer("mean", torch.zeros(3))

    with torch.device("meta"):
        part = Part()
    stand = memory._Stand(part, "vae", {})
    assert stand.mean.device.type == "cpu" and stand.mean.shape == (3,)
    assert stand(torch.zeros(5, 2)).device.type == "cpu"
    assert stand.in_features == 2
