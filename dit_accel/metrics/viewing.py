"""Models how a clip is seen: the light of a display, and the angular size of its pixels.

In: the name of a display and a distance. Out: the light of 8-bit RGB in cd/m², as one luminance and
two colour-opponent signals; pixels per degree.
Knows only displays of standard dynamic range. One pixel of the clip is one pixel of the display. An
enlarged clip corresponds to a distance that is smaller by the same factor.
Source: ColorVideoVDP, doi 10.1145/3658144, section 3.1; its package cvvdp 0.5.7 (MIT), which has
`data/display_models.json`.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

DISPLAY = "standard_4k"
_INCH = 0.0254
_REFLECTED = 0.005  # share of the room's light that the panel reflects
_RGB_TO_XYZ = (  # sRGB
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
_XYZ_TO_LMS = (
    (0.187596268556126, 0.585168649077728, -0.026384263306304),
    (-0.133397430663221, 0.405505777260049, 0.034502127690364),
    (0.000244379021663, -0.000542995890619, 0.019406849066323),
)
_LMS_TO_DKL = (  # white point D65
    (1.0, 1.0, 0.0),
    (1.0, -2.311130179947035, 0.0),
    (-1.0, -1.0, 50.977571328718781),
)


@dataclass(frozen=True)
class Viewing:
    """A display, and the eye in front of it.

    Args:
        display: a name of `displays()`.
        distance_m: distance from the eye to the display in metres; None: the display's own.

    Raises:
        ValueError: if the display is unknown, or the distance is not finite and above 0.

    Example:
        >>> round(Viewing().pixels_per_degree, 1)
        75.4
        >>> round(Viewing(distance_m=0.3736).pixels_per_degree, 1)
        37.7
    """

    display: str = DISPLAY
    distance_m: float | None = None

    def __post_init__(self) -> None:
        if self.display not in displays():
            accepted = ", ".join(displays())
            raise ValueError(f"display is {self.display!r}; accepted: {accepted}")
        distance = self.distance_m
        if distance is not None and not (math.isfinite(distance) and distance > 0):
            raise ValueError(f"distance_m is {distance}; accepted: a finite number above 0")

    @property
    def distance(self) -> float:
        """Distance from the eye to the display, in metres."""
        return self.distance_m or _own_distance(displays()[self.display])

    @property
    def pixels_per_degree(self) -> float:
        """Pixels per degree of the visual field, in the middle of the display."""
        model = displays()[self.display]
        columns, rows = model["resolution"]
        shape = columns / rows
        height = model["diagonal_size_inches"] * _INCH / math.sqrt(1 + shape**2)
        return 1 / (2 * math.degrees(math.atan(shape * height / columns / 2 / self.distance)))

    def light(self, frames: npt.NDArray[np.uint8]) -> torch.Tensor:
        """The light that the display emits and reflects.

        Args:
            frames: `(T, H, W, 3)`, sRGB.

        Returns:
            `(3, T, H, W)` float32: luminance, red minus green, yellow minus violet, in cd/m².
        """
        import torch

        linear = torch.from_numpy(self._levels()[frames])
        matrix = torch.tensor(_LMS_TO_DKL) @ torch.tensor(_XYZ_TO_LMS) @ torch.tensor(_RGB_TO_XYZ)
        return torch.einsum("ck,thwk->cthw", matrix, linear).contiguous()

    def _levels(self) -> npt.NDArray[np.float32]:
        """The light of each of the 256 levels `(256,)`: sRGB's curve from black to the peak."""
        model = displays()[self.display]
        level = np.arange(256) / 255
        curve = np.where(level > 0.04045, ((level + 0.055) / 1.055) ** 2.4, level / 12.92)
        peak = model["max_luminance"]
        black = model["min_luminance"] if "min_luminance" in model else peak / model["contrast"]
        room = model.get("E_ambient", 0) / math.pi * _REFLECTED
        return ((peak - black) * curve + black + room).astype(np.float32)


@functools.cache
def displays() -> dict[str, dict[str, Any]]:
    """The displays of cvvdp that show sRGB and state their size, by name."""
    return {
        name: model
        for name, model in data("display_models.json").items()
        if "colorspace" not in model and "diagonal_size_inches" in model
    }


def data(name: str) -> Any:
    """The content of a JSON file of cvvdp 0.5.7."""
    folder = importlib.resources.files("dit_accel.metrics") / "data"
    return json.loads((folder / name).read_text(encoding="utf-8"))


def _own_distance(model: dict[str, Any]) -> float:
    if "viewing_distance_meters" in model:
        return float(model["viewing_distance_meters"])
    return float(model["viewing_distance_inches"]) * _INCH
