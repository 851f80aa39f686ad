"""ST-LPIPS: equal to its own package, weights that are found or not, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clips import noisy, smooth
from metric_pairs import metric_pairs, reference_package

from dit_accel.metrics import METRICS, Unavailable, st_lpips
from dit_accel.metrics.scoring import Scorer, rows_of, score_clips
from dit_accel.metrics.st_lpips import FILE, ST_VARIABLE, find_network

PAIRS = {kind: (pair.reference[:3], pair.test[:3]) for kind, pair in metric_pairs().items()}
BY_PACKAGE = {  # what stlpips-pytorch 0.0.2 says of the pairs' first three frames
    "little noise": 0.000235716,
    "noise": 0.0885349,
    "much noise": 0.721962,
    "shifted by a pixel": 0.00356474,
    "blurred": 5.53483e-05,
    "brighter": 0.00242258,
    "less red": 0.038626,
    "flickers": 0.000768613,
    "odd sizes, 24 frames a second": 0.0115529,
    "stands still, on a phone": 0.0111487,
}
BY_RANDOM_WEIGHTS = {  # what it says with the weights of the fixture `weights`
    "little noise": 9.57209e-07,
    "noise": 4.26028e-05,
    "much noise": 0.000610562,
    "shifted by a pixel": 0.000218077,
    "blurred": 1.72121e-06,
    "brighter": 0.000418358,
    "less red": 0.000588965,
    "flickers": 0.000129613,
    "odd sizes, 24 frames a second": 1.38028e-05,
    "stands still, on a phone": 0.00114799,
}
LAYERS = {
    "net.slice1.0": (64, 3, 11),
    "net.slice2.5": (192, 64, 5),
    "net.slice3.9": (384, 192, 3),
    "net.slice4.11": (256, 384, 3),
    "net.slice5.13": (256, 256, 3),
}


def random_weights():
    """By the names of the package's file: enough for the arithmetic, no measure of anything."""
    rng = np.random.default_rng(0)
    tensors = {}
    for index, (layer, (out, into, width)) in enumerate(LAYERS.items()):
        scale = (2 / (into * width * width)) ** 0.5
        tensors[f"{layer}.weight"] = scale * rng.standard_normal((out, into, width, width))
        tensors[f"{layer}.bias"] = 0.1 * rng.standard_normal(out)
        tensors[f"lin{index}.model.1.weight"] = rng.random((1, out, 1, 1)) / out
    return {name: torch.from_numpy(values).float() for name, values in tensors.items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(random_weights(), path)
    return path


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.delenv(ST_VARIABLE, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def test_worked_example(tmp_path):
    # A network whose convolutions read the middle of their window alone: the first one gives red
    # in channel 0 and a constant 1 in channel 1, the others hand the two on.
    tensors = {name: torch.zeros_like(values) for name, values in random_weights().items()}
    for index, (layer, (_, _, width)) in enumerate(LAYERS.items()):
        tensors[f"{layer}.weight"][0, 0, width // 2, width // 2] = 1
        if index:
            tensors[f"{layer}.weight"][1, 1, width // 2, width // 2] = 1
    tensors["net.slice1.0.bias"][1] = 1
    tensors["lin0.model.1.weight"][0, 0] = 1  # the first layer's channel 0 alone counts
    torch.save(tensors, tmp_path / "two.pth")
    # Red of 255 is 1 in [-1, 1], and (1 + 0.030) / 0.458 = 2.249 as input; 128 is 0.0741. Features
    # (2.249, 1) and (0.0741, 1) have lengths 2.461 and 1.0027: as unit vectors, channel 0 is 0.9137
    # and 0.0739. Blurs change no flat frame. The distance is their squared difference.
    red = np.zeros((1, 32, 32, 3), np.uint8)
    red[..., 0] = 255
    half = red // 2 + (red > 0)
    distance = st_lpips(red, half, data_range=255, weights=tmp_path / "two.pth")
    assert distance == pytest.approx((0.9137 - 0.0739) ** 2, rel=1e-3)


@pytest.mark.parametrize("kind", PAIRS)
def test_the_arithmetic_is_the_packages(kind, weights):
    ours = st_lpips(*PAIRS[kind], data_range=255, weights=weights)
    assert ours == pytest.approx(BY_RANDOM_WEIGHTS[kind], rel=1e-3)


@pytest.mark.parametrize("kind", PAIRS)
def test_with_the_packages_weights_it_is_the_packages_number(kind):
    try:
        find_network()
    except Unavailable as unavailable:
        pytest.skip(str(unavailable))
    ours = st_lpips(*PAIRS[kind], data_range=255)
    assert ours == pytest.approx(BY_PACKAGE[kind], rel=1e-3, abs=1e-6)


def by_package(pair, weights=None):
    """What the package says; `weights` take the place of its own."""
    package = reference_package("stlpips_pytorch.stlpips", "torchvision", "IPython", "torchsummary")
    metric = package.LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    if weights is not None:
        metric.load_state_dict(weights, strict=False)
    one, other = (torch.tensor(clip).permute(0, 3, 1, 2).float() / 127.5 - 1 for clip in pair)
    with torch.no_grad():
        return float(metric(one, other).mean())


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAIRS)
def test_the_package_says_what_was_recorded(kind):
    """With `pip install --no-deps stlpips-pytorch`."""
    assert by_package(PAIRS[kind]) == pytest.approx(BY_PACKAGE[kind], rel=1e-4, abs=1e-7)
    random = by_package(PAIRS[kind], random_weights())
    assert random == pytest.approx(BY_RANDOM_WEIGHTS[kind], rel=1e-4)


def test_equal_clips_are_at_0_and_more_noise_is_farther(weights):
    clip = smooth(shape=(2, 32, 40, 3))
    levels = (0, 2, 8, 32, 96)
    far = [st_lpips(clip, noisy(clip, n), data_range=255, weights=weights) for n in levels]
    assert far[0] == 0.0 == METRICS["st_lpips"].range[0]
    assert far == sorted(far) and far[1] > 0


def test_chunks_and_floats_score_as_the_whole(weights, monkeypatch):
    monkeypatch.setenv(ST_VARIABLE, str(weights))
    clip = smooth(shape=(5, 32, 40, 3))
    test = noisy(clip, 20)
    scorer = Scorer(rows_of(["st_lpips"]), data_range=255)
    for part in (slice(0, 2), slice(2, 5)):
        scorer.update(clip[part], test[part])
    score = scorer.compute()["st_lpips"]
    whole = st_lpips(clip, test, data_range=255)
    assert score.value == pytest.approx(whole, rel=1e-6) and len(score.frames) == 5
    as_float = st_lpips(clip / 255, test / 255, data_range=1.0)
    assert as_float == pytest.approx(whole, rel=1e-6)


def test_without_the_package_there_is_no_score_and_the_reason_says_how(no_package):
    clip = smooth()
    score = score_clips(clip, clip, data_range=255, metrics=["st_lpips"])["st_lpips"]
    assert score.value is None
    assert "pip install 'dit-accel[st-lpips]'" in score.reason and ST_VARIABLE in score.reason


def test_weights_are_found_by_path_then_variable_then_package(weights, monkeypatch, tmp_path):
    packaged = tmp_path / "stlpips_pytorch" / FILE
    packaged.parent.mkdir(parents=True)
    packaged.write_bytes(weights.read_bytes())
    origin = str(tmp_path / "stlpips_pytorch" / "__init__.py")
    spec = type("Spec", (), {"origin": origin})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    monkeypatch.delenv(ST_VARIABLE, raising=False)
    assert find_network() == packaged
    monkeypatch.setenv(ST_VARIABLE, str(weights))
    assert find_network() == weights
    assert find_network(packaged) == packaged
    with pytest.raises(Unavailable, match=r"no weights: gone\.pth is no file"):
        find_network("gone.pth")


def test_what_is_refused(weights, tmp_path):
    clip = smooth()
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="torch cannot read it"):
        st_lpips(clip, clip, data_range=255, weights=tmp_path / "bad.pth")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"no 'net.slice1.0.weight'; the shift-tolerant AlexNet"):
        st_lpips(clip, clip, data_range=255, weights=tmp_path / "other.pth")
    with pytest.raises(ValueError, match="accepted: at least 21x21"):
        st_lpips(clip[:, :20], clip[:, :20], data_range=255, weights=weights)
    smallest = clip[:, :21, :21]
    assert st_lpips(smallest, smallest, data_range=255, weights=weights) == 0.0
