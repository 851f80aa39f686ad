"""Trained samplers: they begin as their base, gradients are right, training helps and resumes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_clips

from dit_accel.evaluation.methods import METHODS, MethodContext, runs, trained
from dit_accel.evaluation.methods.trained import Training
from dit_accel.evaluation.methods.training_state import TrainingState
from dit_accel.evaluation.methods.unrolled import VARIANTS, Trainable, errors_db, unrolled
from dit_accel.planning.nodes import Nodes, adams_bashforth

STEPS = 6
CLIPS = tiny_clips(STEPS, 4)
SHORT = Training(clips=4, held_out=1, batch=2, iterations=8, rate=0.001, every=4)
TIMES = torch.tensor([1.0, 0.7, 0.3, 0.0], dtype=torch.float64)
NODES = Nodes("flow", TIMES, 1000 * TIMES[:-1])


def context(scratch: Any = None, memory: dict[str, Any] | None = None) -> MethodContext:
    return MethodContext(
        CLIPS[0], lambda name, measure: measure(lambda: None), calibration_clips=CLIPS, batch=4,
        scratch=scratch, memory={} if memory is None else memory,
    )  # fmt: skip


def predict(latents: torch.Tensor, labels: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
    """A model that is no line in anything."""
    return torch.tanh(latents) * (1 + labels[:, None] / 1000) + clips[:, None]


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_untrained_samplers_are_their_base(variant):
    trainable = Trainable(NODES, VARIANTS[variant], "cpu", 1000.0)
    base, found = adams_bashforth(NODES, 2), trainable.sampler()
    for name in ("labels", "noise", "weights"):
        assert getattr(found, name) == pytest.approx(getattr(base, name), abs=1e-4)
    noise, clips = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    with torch.no_grad():
        made = unrolled([trainable], predict, noise, clips)[0]
    x, values = noise, []
    for step in range(3):  # the base, written out
        values.append(predict(x, NODES.labels[step].float().expand(3), clips))
        x = noise + sum(float(w) * v for w, v in zip(base.weights[step], values, strict=False))
    assert made == pytest.approx(x, abs=1e-5)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_gradients_are_those_of_differences(variant):
    """Through all steps, with every parameter off its start."""
    trainable = Trainable(NODES, VARIANTS[variant], "cpu", 1000.0)
    for parameter in trainable.parameters.values():
        parameter.data = 0.1 * torch.randn(parameter.shape).double()
    trainable.base, trainable.mask = trainable.base.double(), trainable.mask.double()
    noise, clips = torch.randn(2, 5).double(), torch.arange(2)

    def loss() -> torch.Tensor:
        return errors_db(unrolled([trainable], predict, noise, clips)[0], noise * 0.3 + 1).sum()

    loss().backward()
    free = {"weights": (2, 1), "noise": 1, "labels": 1}
    for name, place in free.items():
        parameter = trainable.parameters[name]
        if parameter.grad is None:
            assert name == "noise" or not VARIANTS[variant].labels
            continue
        gradient, values = float(parameter.grad[place]), []
        for moved in (1e-5, -1e-5):
            parameter.data[place] += moved
            with torch.no_grad():
                values.append(float(loss()))
            parameter.data[place] -= moved
        assert gradient == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-3, abs=1e-6)


def test_several_samplers_run_together_as_they_do_alone():
    several = [Trainable(NODES.at(steps), VARIANTS["bns"], "cpu", 1000.0)
               for steps in ([0], [0, 2], [0, 1, 2])]  # fmt: skip
    noise, clips = torch.randn(3, 5), torch.arange(3)
    with torch.no_grad():
        together = unrolled(several, predict, noise, clips)
        alone = [unrolled([one], predict, noise, clips)[0] for one in several]
    for a, b in zip(together, alone, strict=True):
        assert a == pytest.approx(b)


def test_a_state_that_is_wrong_is_refused_by_name(tmp_path):
    path = tmp_path / "bns-3.safetensors"
    TrainingState(Trainable(NODES, VARIANTS["bns"], "cpu", 1000.0)).save(path)
    other = TrainingState(Trainable(NODES.at([0, 2]), VARIANTS["bns"], "cpu", 1000.0))
    with pytest.raises(ValueError, match=r"bns-3.*parameters.weights is \(3, 3\)"):
        other.load(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"bns-3.*delete it"):
        other.load(path)


def test_training_helps_and_resumes_where_it_stopped(pipe, tmp_path):
    wanted, memory = [("bns", 3), ("dyweight", 2)], {}
    whole = trained.train(pipe, context(memory=memory), wanted, training=SHORT)
    first = trained.train(pipe, context(tmp_path, memory), wanted, training=SHORT, seconds=0.0)
    assert first == {}  # late at the first look: nothing is done, the state is written
    clock = iter([0.0, 0.0, 1e9])  # the begin, the first look, and the second: after four of eight
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        assert not trained.train(pipe, context(tmp_path, memory), wanted, training=SHORT, seconds=1)
    resumed = trained.train(pipe, context(tmp_path, memory), wanted, training=SHORT)
    assert resumed.keys() == whole.keys()
    for pair in wanted:
        for name in ("weights", "noise", "labels"):
            a, b = torch.tensor(whole[pair][name]), torch.tensor(resumed[pair][name])
            assert a == pytest.approx(b, abs=1e-4)
    base = _level(pipe, memory)
    assert whole["dyweight", 2]["held_out_db"] < base - 0.1
    assert whole["bns", 3]["runs"] == pytest.approx(4 + 4 * 8 * 2 * 0.5 + 5 * 1 * 0.5)
    assert all(p.requires_grad for p in pipe.transformer.parameters())


def _level(pipe: Any, memory: dict[str, Any]) -> float:
    """Of the sampler that training begins with, on the held-out clip."""
    training = Training(**{**vars(SHORT), "iterations": 0})
    return trained.train(pipe, context(memory=memory), [("dyweight", 2)], training=training)[
        "dyweight", 2
    ]["held_out_db"]


def test_gradients_take_fast_matmuls_on_cuda_alone():
    before = torch.get_float32_matmul_precision()
    for device, expected in (("cuda", "high"), ("cpu", before)):
        with trained.fast_matmuls(torch.device(device)):
            assert torch.get_float32_matmul_precision() == expected
        assert torch.get_float32_matmul_precision() == before == "highest"


@pytest.mark.parametrize("row", trained.TRAINED_METHODS, ids=lambda row: row.name)
def test_a_row_carries_out_what_was_trained(pipe, row, monkeypatch):
    monkeypatch.setattr(trained, "Training", lambda: SHORT)
    own = context()
    with row.apply(pipe, 3, own) as handle:
        made = runs.final_latents(pipe, CLIPS[3:], 1, handle.overrides)
    found = float(errors_db(made, runs.final_latents(pipe, CLIPS[3:], 1)).mean())
    found_by_training = trained.train(pipe, own, [(row.name, 3)], training=SHORT)[row.name, 3]
    assert found == pytest.approx(found_by_training["held_out_db"], abs=0.01)
    assert handle.calibration_runs == found_by_training["runs"]
    assert METHODS[row.name] is row
