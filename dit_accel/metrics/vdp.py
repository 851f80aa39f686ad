"""Computes how visible the difference of two clips is, from contrasts at several scales.

    light -> two filters over time -> a pyramid of contrasts -> × sensitivity
          -> |difference| ** p / (1 + masking by what both have) -> a norm over the frame

In: the light of two clips, `(2, 3, T, H, W)`, the test first. Out: a visible difference for each
channel, frame and band. Channels: sustained luminance, red-green, yellow-violet, transient
luminance.
Does not know displays (`viewing`) or clips in chunks (`jod`).
Source: ColorVideoVDP, doi 10.1145/3658144, section 3; written after its package cvvdp 0.5.7 (MIT),
whose constants are in `data/`. The results agree to five digits. The order of the steps differs,
which needs a tenth of the time.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dit_accel.metrics.viewing import data

TEST, REFERENCE = 0, 1
SMALLEST_PYRAMID = 8
"""Least H and W at which the pyramid has two bands of contrast."""

_SOURCE = (0, 1, 2, 0)  # signal of each channel: luminance for the sustained and the transient one
_KERNEL = (0.05, 0.25, 0.4, 0.25, 0.05)
_LEAST_LUMINANCE, _MOST_CONTRAST = 0.01, 1000.0
_LOWEST_FREQUENCY = 0.2  # cycles per degree; there is no band of contrast below
_BASE_FREQUENCY = 0.1  # frequency that the lowest band counts as
_CHANGING = 5.0  # Hz; the fourth channel is sensitive around this frequency
_GAIN = (1.0, 1.45, 1.0, 1.0)  # factors of the channels' contrasts before masking
_BLUR = 6  # radius of the blur of masks; smaller maps are not blurred
_TINY = 1e-5
_KNEE = 0.1  # below this value, the scale of JOD is linear


@dataclass(frozen=True)
class Constants:
    """The fitted constants of cvvdp, by their names there. A list has one number for each channel.

    Attributes:
        mask_p, mask_q: powers of differences and of masks.
        mask_c, d_max: log10 of the masks' weight and of the largest difference.
        pu_dilate: pixels over which masks are blurred.
        beta, beta_sch, beta_tch, beta_t: powers of the norms over pixels, bands, channels, frames.
        sensitivity_correction: correction of the eye's sensitivity, in dB.
        xcm_weights: log2 of how much each channel masks each other one, 4 x 4, from x to.
        ch_chrom_w, ch_trans_w: weights of the colours and of the transient luminance.
        baseband_weight: weights of the lowest band.
        sigma_tf, beta_tf: parameters of the filters over time.
        jod_a, jod_exp: from visible differences to JOD.
    """

    mask_p: float
    mask_q: list[float]
    mask_c: float
    d_max: float
    pu_dilate: float
    beta: float
    beta_sch: float
    beta_tch: float
    beta_t: float
    sensitivity_correction: float
    xcm_weights: list[float]
    ch_chrom_w: float
    ch_trans_w: float
    baseband_weight: list[float]
    sigma_tf: list[float]
    beta_tf: list[float]
    jod_a: float
    jod_exp: float


@functools.cache
def constants() -> Constants:
    """The constants of cvvdp 0.5.7."""
    found = data("cvvdp_parameters.json")
    return Constants(**{field.name: found[field.name] for field in dataclasses.fields(Constants)})


def filters(fps: float) -> torch.Tensor:
    """The filters over time, `(4, N)`, with the newest frame last. They reach back a quarter of a
    second."""
    taps = math.ceil(0.25 * fps / 2) * 2 + 1
    frequency = torch.linspace(0, fps / 2, taps // 2 + 1)
    sigma, beta = constants().sigma_tf, constants().beta_tf
    lasting = [torch.exp(-(frequency ** beta[c]) / sigma[c]) for c in range(3)]
    shifted = frequency ** beta[3] - _CHANGING ** beta[3]
    responses = [*lasting, torch.exp(-(shifted**2) / sigma[3])]
    weights = [torch.fft.fftshift(torch.fft.irfft(each, n=taps)) for each in responses]
    return torch.stack(weights).flip(1)


def differences(
    light: torch.Tensor, filters: torch.Tensor, pixels_per_degree: float
) -> torch.Tensor:
    """The visible difference of each frame, after the first N - 1 frames.

    Args:
        light: `(2, 3, T + N - 1, H, W)`, that of the test first; H and W at least
            `SMALLEST_PYRAMID`.
        filters: `(4, N)`, from `filters`.

    Returns:
        `(4, bands, T)`, at least 0.
    """
    frames = light.shape[2] - filters.shape[1] + 1
    level = torch.zeros(2, 4, frames, *light.shape[3:])
    for tap in range(filters.shape[1]):
        level += light[:, _SOURCE, tap : tap + frames] * filters[:, tap].view(4, 1, 1, 1)
    found = []
    frequencies = _frequencies(light.shape[3], light.shape[4], pixels_per_degree)
    for band, frequency in enumerate(frequencies[:-1]):
        smaller = _halved(level)
        around = _doubled(smaller, level.shape[-2:])
        background = around[:, :1].clamp(min=_LEAST_LUMINANCE)
        contrast = ((level - around) / background).clamp(max=_MOST_CONTRAST)
        sensitivity = _sensitivity(frequency, background[REFERENCE])
        # the first band has all frequencies above its own; the others are half of a band
        seen = contrast * (sensitivity * _column(_GAIN) * (1.0 if band == 0 else 2.0))
        found.append(_norm(_masked(seen), (-2, -1), constants().beta))
        level = smaller
    found.append(_norm(_base(level), (-2, -1), constants().beta))
    return torch.stack(found, dim=1)


def pooled(differences: torch.Tensor) -> torch.Tensor:
    """One visible difference for each frame.

    Args:
        differences: `(4, bands, T)`.

    Returns:
        `(T,)`, at least 0.
    """
    fitted = constants()
    weights = torch.tensor([1.0, fitted.ch_chrom_w, fitted.ch_chrom_w, fitted.ch_trans_w])
    weighed = differences * weights.view(4, 1, 1)
    weighed[:, -1] *= torch.tensor(fitted.baseband_weight).view(4, 1)
    bands = _norm(weighed, 1, fitted.beta_sch, mean=False)
    return _norm(bands, 0, fitted.beta_tch, mean=False)


def over_time(frames: torch.Tensor) -> torch.Tensor:
    """The clip's visible difference, from those of its frames `(T,)`."""
    return _norm(frames, 0, constants().beta_t)


def jods(difference: torch.Tensor) -> torch.Tensor:
    """Visible differences on the scale of JOD; 10 for no difference."""
    scale, power = constants().jod_a, constants().jod_exp
    line = scale * _KNEE ** (power - 1) * difference
    curve = scale * difference.clamp(min=_KNEE) ** power
    return 10 - torch.where(difference <= _KNEE, line, curve)


# the pyramid


def _frequencies(height: int, width: int, pixels_per_degree: float) -> list[float]:
    """The frequencies of the bands in cycles per degree, from fine to coarse; the last is the
    base."""
    most = int(math.log2(min(height, width))) - 1
    highest = pixels_per_degree / 2
    bands = [highest] + [highest * 0.3228 * 2.0**-octave for octave in range(14)]
    below = [index for index, band in enumerate(bands) if band <= _LOWEST_FREQUENCY]
    count = min(below[0] + 1 if below else most, most)
    return [*bands[:count], _BASE_FREQUENCY]


def _halved(image: torch.Tensor) -> torch.Tensor:
    """Every second row and column after a blur: `(..., (H + 1) // 2, ...)` from `(..., H, W)`."""
    odd = image.shape[-2] % 2 == 1
    rows = _halved_rows(image, odd=odd)
    # In the package, the last column depends on whether the number of *rows* is odd, and
    # its constants are fitted to that. We do the same.
    return _halved_rows(rows.transpose(-1, -2), odd=odd).transpose(-1, -2)


def _halved_rows(image: torch.Tensor, *, odd: bool) -> torch.Tensor:
    count = (image.shape[-2] + 1) // 2
    padded = F.pad(image, (0, 0, 2, 2))
    half = torch.zeros(*image.shape[:-2], count, image.shape[-1])
    for tap, weight in enumerate(_KERNEL):
        half += weight * padded[..., tap : tap + 2 * count - 1 : 2, :]
    # values outside are mirrored
    half[..., 0, :] += _KERNEL[1] * image[..., 0, :] + _KERNEL[0] * image[..., 1, :]
    if odd:
        half[..., -1, :] += _KERNEL[3] * image[..., -1, :] + _KERNEL[4] * image[..., -2, :]
    else:
        half[..., -1, :] += _KERNEL[4] * image[..., -1, :]
    return half


def _doubled(image: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """The map enlarged to `size`, with the same kernel."""
    rows = _doubled_rows(image, size[0])
    return _doubled_rows(rows.transpose(-1, -2), size[1]).transpose(-1, -2)


def _doubled_rows(image: torch.Tensor, count: int) -> torch.Tensor:
    before = torch.cat((image[..., :1, :], image[..., :-1, :]), dim=-2)
    after = torch.cat((image[..., 1:, :], image[..., -1:, :]), dim=-2)
    double = torch.empty(*image.shape[:-2], count, image.shape[-1])
    even = 2 * (_KERNEL[0] * (before + after) + _KERNEL[2] * image)
    double[..., 0::2, :] = even[..., : (count + 1) // 2, :]
    double[..., 1::2, :] = (2 * _KERNEL[1] * (image + after))[..., : count // 2, :]
    return double


# sensitivity and masking


def _sensitivity(frequency: float, luminance: torch.Tensor) -> torch.Tensor:
    """The eye's sensitivity to contrast, `(4, T, H, W)`, at luminances `(1, T, H, W)` in cd/m²."""
    lums, table = _at_frequency(frequency)
    place = (torch.log10(luminance) - lums[0]) / (lums[-1] - lums[0]) * (len(lums) - 1)
    place = place.clamp(0, len(lums) - 1)
    low = place.to(torch.int64)
    high = (low + 1).clamp(max=len(lums) - 1)
    share = place - low
    log = table[:, low[0]] * (1 - share) + table[:, high[0]] * share
    correction = constants().sensitivity_correction / 20
    return 10 ** (log + correction)


@functools.lru_cache(maxsize=256)
def _at_frequency(frequency: float) -> tuple[torch.Tensor, torch.Tensor]:
    """log10 of the table's luminances `(L,)`, and of the sensitivity there, `(4, L)`."""
    found = data("csf_lut_weber_fixed_size.json")
    lums, known = (torch.log10(torch.tensor(found[name])) for name in ("L_bkg", "rho"))
    at = math.log10(frequency)
    index = int(np.clip(np.searchsorted(known.numpy(), at) - 1, 0, len(known) - 2))
    share = (at - known[index]) / (known[index + 1] - known[index])
    rows = []
    for name in ("o0_c1", "o0_c2", "o0_c3", "o5_c1"):  # at 0 and 5 Hz
        table = torch.tensor(found[name])
        rows.append(table[:, index] + share * (table[:, index + 1] - table[:, index]))
    return lums, torch.stack(rows)


def _masked(seen: torch.Tensor) -> torch.Tensor:
    """Differences of contrasts `(2, 4, T, H, W)`. They are reduced where both clips have
    contrast."""
    fitted = constants()
    both = _blurred(seen.abs().amin(dim=0)) * 10**fitted.mask_c
    masks = _power(both, _column(fitted.mask_q))
    across = 2 ** torch.tensor(fitted.xcm_weights).view(4, 4)
    mask = torch.einsum("fthw,fc->cthw", masks, across)
    raw = _power((seen[TEST] - seen[REFERENCE]).abs(), fitted.mask_p) / (1 + mask)
    most = 10**fitted.d_max
    return most * raw / (most + raw)


def _base(level: torch.Tensor) -> torch.Tensor:
    """Differences of the lowest band, with the frame's mean as background."""
    background = level[:, :1].clamp(min=_LEAST_LUMINANCE).mean(dim=(-2, -1), keepdim=True)
    contrast = (level / background).clamp(max=_MOST_CONTRAST)
    sensitivity = _sensitivity(_BASE_FREQUENCY, background[REFERENCE])
    return (contrast[TEST] - contrast[REFERENCE]).abs() * sensitivity


def _blurred(maps: torch.Tensor) -> torch.Tensor:
    """The maps `(4, T, H, W)` blurred with a Gaussian of `pu_dilate` pixels, mirrored at the
    edges."""
    if min(maps.shape[-2:]) <= _BLUR:
        return maps
    places = torch.arange(-_BLUR, _BLUR + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (places / constants().pu_dilate) ** 2)
    kernel = kernel / kernel.sum()
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    padded = F.pad(flat, (_BLUR,) * 4, mode="reflect")
    rows = F.conv2d(padded, kernel.view(1, 1, -1, 1))
    return F.conv2d(rows, kernel.view(1, 1, 1, -1)).reshape(maps.shape)


def _column(values: Any) -> torch.Tensor:
    return torch.tensor(values).view(4, 1, 1, 1)


def _power(values: torch.Tensor, power: Any) -> torch.Tensor:
    """`values ** power`, shifted so that the slope at 0 is finite."""
    least = torch.tensor(_TINY)
    return (values + least) ** power - least**power


def _norm(values: torch.Tensor, dim: Any, power: float, *, mean: bool = True) -> torch.Tensor:
    """The `power`-norm over `dim`, as a mean or as a sum."""
    powers = _power(values, float(power))
    total = powers.mean(dim=dim) if mean else powers.sum(dim=dim)
    return _power(total, 1 / power)
