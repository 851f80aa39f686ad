"""JOD: equal to ColorVideoVDP's own package, and what a person would expect of it."""

from __future__ import annotations

import hashlib
from importlib.resources import files

import numpy as np
import pytest
import torch
from clips import noisy, smooth
from metric_pairs import metric_pairs, reference_package

from dit_accel.metrics import METRICS, Unavailable, jod, vdp
from dit_accel.metrics.scoring import score_clips
from dit_accel.metrics.viewing import Viewing, displays

PAIRS = metric_pairs()
BY_CVVDP = {  # what cvvdp 0.5.7 says of the pairs; `test_the_package_says_what_was_recorded`
    "little noise": 9.96234,
    "noise": 9.70012,
    "much noise": 7.88142,
    "shifted by a pixel": 9.54423,
    "blurred": 9.95452,
    "brighter": 9.87462,
    "less red": 9.54156,
    "flickers": 7.82929,
    "odd sizes, 24 frames a second": 9.77075,
    "stands still, on a phone": 7.23593,
}
DATA = {  # the first digits of the SHA-256 of the files in the wheel of cvvdp 0.5.7
    "cvvdp_parameters.json": "ef4dedb44f11f33f509e",
    "csf_lut_weber_fixed_size.json": "df39c869c0c53a9a2cb7",
    "display_models.json": "653979727e809fcd9e44",
}


def test_worked_example():
    # Two grey clips, at 128 and 138 of 255. sRGB's curve: ((128/255 + 0.055) / 1.055) ** 2.4 is
    # 0.2159, and 0.2542 at 138. The display shows that share of 200 - 0.2 cd/m², on top of 0.2 of
    # black and 250 / pi * 0.005 = 0.398 of the room's light. The eye's cones add up to 1.051 of it.
    grey = np.full((4, 16, 16, 3), 128, np.uint8)
    (darker,), (brighter,) = (Viewing().light(clip)[0].unique() for clip in (grey, grey + 10))
    assert float(darker) == pytest.approx(1.051 * (199.8 * 0.2159 + 0.598), rel=1e-3)
    assert float(brighter) == pytest.approx(1.051 * (199.8 * 0.2542 + 0.598), rel=1e-3)
    # Contrasts are relative to each clip's own mean, as the eye adapts. Grey has none in any band,
    # so that the two clips look equal.
    assert jod(grey, grey + 10, data_range=255) > 9.999
    # A visible difference D costs 0.043957 D ** 0.930204 from 0.1 on; below, it is a line to 0.
    differences = torch.tensor([0.0, 0.05, 1.0, 32.0])
    line = 0.043957 * 0.1 ** (0.930204 - 1) * 0.05
    expected = [10, 10 - line, 10 - 0.043957, 10 - 0.043957 * 32**0.930204]
    assert vdp.jods(differences).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", PAIRS)
def test_jod_is_what_the_package_says(kind):
    pair = PAIRS[kind]
    ours = jod(pair.reference, pair.test, data_range=255, fps=pair.fps, display=pair.display)
    assert ours == pytest.approx(BY_CVVDP[kind], abs=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAIRS)
def test_the_package_says_what_was_recorded(kind):
    """With `pip install --no-deps cvvdp`."""
    pair = PAIRS[kind]
    absent = ("torchvision", "einops", "ffmpeg")
    package = reference_package("pycvvdp", *absent, GaussianBlur=_Blur)
    metric = package.cvvdp(display_name=pair.display, quiet=True, device=torch.device("cpu"))
    found, _ = metric.predict(
        pair.test, pair.reference, dim_order="FHWC", frames_per_second=pair.fps
    )
    assert float(found) == pytest.approx(BY_CVVDP[kind], abs=5e-5)


class _Blur:
    """torchvision's, written out."""

    def __init__(self, width, sigma):
        places = torch.arange(width) - width // 2
        kernel = torch.exp(-0.5 * (places / sigma) ** 2)
        self.kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2

    def forward(self, image):
        edge = [len(self.kernel) // 2] * 4
        padded = torch.nn.functional.pad(image, edge, mode="reflect")
        return torch.nn.functional.conv2d(padded, self.kernel[None, None])


@pytest.mark.parametrize("name", DATA)
def test_the_constants_are_the_packages(name):
    """They are another project's, under its own licence: a copy, to the byte."""
    content = (files("dit_accel.metrics") / "data" / name).read_bytes()
    assert hashlib.sha256(content).hexdigest().startswith(DATA[name])


def test_the_licence_of_the_constants_lies_beside_them():
    text = (files("dit_accel.metrics") / "data" / "LICENSE.cvvdp").read_text(encoding="utf-8")
    assert "MIT License" in text and "Graphics and Displays group" in text


@pytest.mark.parametrize("seed", range(3))
def test_an_equal_clip_has_the_top_value_and_more_error_has_less(seed):
    clip = smooth(seed)
    scores = [jod(clip, noisy(clip, n), data_range=255) for n in (0, 1, 2, 4, 8, 16, 32, 64)]
    assert scores[0] == 10.0 == METRICS["jod"].range[1]
    assert scores == sorted(scores, reverse=True) and scores[1] < 10


def test_flicker_is_seen_that_psnr_does_not_see():
    """Both tests have the same error in every frame; in one of them its sign changes."""
    clip = smooth(shape=(16, 48, 48, 3)).clip(20, 235)
    steady = clip + 6
    flickering = clip.copy()
    flickering[::2] += 6
    flickering[1::2] -= 6
    psnr = [
        METRICS["psnr_db"].function(clip, test, data_range=255) for test in (steady, flickering)
    ]
    assert psnr[0] == pytest.approx(psnr[1])
    scores = [jod(clip, test, data_range=255, fps=16) for test in (steady, flickering)]
    assert scores[1] < scores[0] - 0.2


def test_from_nearer_more_is_seen():
    clip = smooth()
    test = noisy(clip, 20)
    far, own, near = (jod(clip, test, data_range=255, distance_m=d) for d in (3.0, None, 0.2))
    assert near < own < far
    assert own == jod(clip, test, data_range=255, distance_m=0.7472)


def test_a_grey_clip_is_one_of_three_equal_channels():
    grey = smooth(shape=(4, 24, 24, 1))
    test = noisy(grey, 10)
    three = [np.repeat(clip, 3, axis=3) for clip in (grey, test)]
    assert jod(grey, test, data_range=255) == jod(*three, data_range=255)


def test_the_frames_a_second_reach_it():
    clip = smooth()
    test = noisy(clip, 20)
    for fps in (8.0, 30.0):
        score = score_clips(clip, test, data_range=255, metrics=["jod"], fps=fps)["jod"]
        assert score.value == jod(clip, test, data_range=255, fps=fps)
        assert len(score.frames) == len(clip) and max(score.frames) <= 10
    unknown = score_clips(clip, test, data_range=255, metrics=["jod"])["jod"]
    assert unknown.value == jod(clip, test, data_range=255, fps=16.0)


def test_what_is_refused():
    clip = smooth()
    with pytest.raises(Unavailable, match="needs at least 2 frames, and has 1"):
        jod(clip[:1], clip[:1], data_range=255)
    with pytest.raises(ValueError, match="accepted: at least 8x8"):
        jod(clip[:, :7], clip[:, :7], data_range=255)
    with pytest.raises(ValueError, match=r"fps is 0; accepted: a finite number above 0"):
        jod(clip, clip, data_range=255, fps=0)
    with pytest.raises(ValueError, match=r"display is 'wall'; accepted: standard_4k, "):
        jod(clip, clip, data_range=255, display="wall")
    with pytest.raises(ValueError, match="distance_m is nan; accepted: a finite"):
        jod(clip, clip, data_range=255, distance_m=float("nan"))


def test_every_display_is_one_that_can_be_seen():
    assert {"standard_4k", "standard_fhd", "standard_phone"} <= displays().keys()
    assert all(5 < Viewing(name).pixels_per_degree < 200 for name in displays())
