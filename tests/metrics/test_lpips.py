"""LPIPS: weights that are found or not, and the score against its definition."""

from __future__ import annotations

import pytest
from clips import noisy, smooth

from dit_accel.metrics import (
    Unavailable,
    lpips,
)
from dit_accel.metrics.lpips import find_weights
from dit_accel.metrics.scoring import Scorer, rows_of, score_clips


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-cache"))
    monkeypatch.delenv("DIT_ACCEL_LPIPS_WEIGHTS", raising=False)
    return tmp_path


@pytest.fixture
def weights(no_weights):
    """A file of random weights: enough for the arithmetic, no measure of anything."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    shapes = {
        0: (64, 3, 11),
        3: (192, 64, 5),
        6: (384, 192, 3),
        8: (256, 384, 3),
        10: (256, 256, 3),
    }
    tensors = {}
    for index, (layer, (out, into, width)) in enumerate(shapes.items()):
        scale = (2 / (into * width * width)) ** 0.5
        tensors[f"features.{layer}.weight"] = scale * torch.randn(
            out, into, width, width, generator=generator
        )
        tensors[f"features.{layer}.bias"] = 0.1 * torch.randn(out, generator=generator)
        tensors[f"lin{index}.model.1.weight"] = torch.rand(1, out, 1, 1, generator=generator)
    path = no_weights / "alex-and-heads.pth"
    torch.save(tensors, path)
    return path


def test_without_weights_lpips_is_none_with_the_reason(no_weights):
    a = smooth()
    score = score_clips(a, a, data_range=255, metrics=["lpips"])["lpips"]
    assert score.value is None
    for place in ("lpips_weights", "DIT_ACCEL_LPIPS_WEIGHTS", "alexnet-owt-7be5be79.pth"):
        assert place in score.reason
    with pytest.raises(Unavailable, match="no weights"):
        lpips(a, a, data_range=255)


def test_weights_are_found_by_path_then_variable_then_cache(weights, no_weights, monkeypatch):
    cached = no_weights / "no-cache" / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(weights.read_bytes())
    assert find_weights().backbone == cached
    named = no_weights / "named.pth"
    named.write_bytes(weights.read_bytes())
    monkeypatch.setenv("DIT_ACCEL_LPIPS_WEIGHTS", str(named))
    assert find_weights().backbone == named
    assert find_weights(weights).backbone == weights
    with pytest.raises(Unavailable, match=r"no weights: gone\.pth is no file"):
        find_weights("gone.pth")


def test_a_backbone_without_heads_is_refused_by_name(weights, no_weights, monkeypatch):
    torch = pytest.importorskip("torch")
    tensors = {k: v for k, v in torch.load(weights).items() if k.startswith("features")}
    torch.save(tensors, no_weights / "bare.pth")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="no linear heads"):
        find_weights(no_weights / "bare.pth")
    heads = {k: v for k, v in torch.load(weights).items() if k.startswith("lin")}
    torch.save(heads, no_weights / "alex.pth")
    a, b = smooth(), noisy(smooth(), 20)
    apart = lpips(a, b, data_range=255, weights=no_weights / "bare.pth")
    assert apart == lpips(a, b, data_range=255, weights=weights)


def test_a_file_that_is_no_network_is_refused(no_weights):
    (no_weights / "bad.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="torch cannot read it"):
        lpips(smooth(), smooth(), data_range=255, weights=no_weights / "bad.pth")


def lpips_by_modules(a, b, tensors, spatial):
    """LPIPS as its paper's code is built: a Sequential like torchvision's, tapped at each ReLU."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    net = nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip
    net.load_state_dict(
        {k.removeprefix("features."): v for k, v in tensors.items() if k.startswith("features")}
    )

    def taps(clip):
        x = torch.tensor(clip).permute(0, 3, 1, 2).float() / 255 * 2 - 1
        x = (x - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor(
            [0.458, 0.448, 0.450]
        )[:, None, None]
        found = []
        for layer in net:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10))
        return found

    total = 0
    with torch.no_grad():
        for index, (x, y) in enumerate(zip(taps(a), taps(b), strict=True)):
            head = tensors[f"lin{index}.model.1.weight"]
            error = (head[:, :, 0, 0][0][None, :, None, None] * (x - y) ** 2).sum(1, keepdim=True)
            if spatial:
                error = nn.Upsample(a.shape[1:3], mode="bilinear", align_corners=False)(error)
            total = total + error.mean(dim=(2, 3))
    return float(total.mean())


@pytest.mark.parametrize("spatial", [False, True])
def test_lpips_is_what_its_definition_says(weights, spatial):
    torch = pytest.importorskip("torch")
    a, b = smooth(), noisy(smooth(), 20)
    expected = lpips_by_modules(a, b, torch.load(weights), spatial)
    ours = lpips(a, b, data_range=255, weights=weights, spatial=spatial)
    assert ours == pytest.approx(expected, rel=1e-5)
    assert lpips(a, a, data_range=255, weights=weights, spatial=spatial) == 0.0
    as_float = lpips(a / 255.0, b / 255.0, data_range=1.0, weights=weights, spatial=spatial)
    assert as_float == pytest.approx(ours, rel=1e-5)


def test_lpips_streams_and_grows_with_noise(weights):
    a = smooth()
    scores = [lpips(a, noisy(a, n), data_range=255, weights=weights) for n in (4, 16, 64)]
    assert scores == sorted(scores) and scores[0] > 0
    scorer = Scorer(rows_of(["lpips"], lpips_weights=weights), data_range=255)
    for part in (slice(0, 1), slice(1, 6)):
        scorer.update(a[part], noisy(a, 16)[part])
    scored = scorer.compute()["lpips"]
    assert scored.value == pytest.approx(scores[1], rel=1e-6) and len(scored.frames) == 6
