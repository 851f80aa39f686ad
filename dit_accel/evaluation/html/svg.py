"""Turns matplotlib figures into SVG elements of a page, with the page's colours and font.

In: a figure. Out: one `<svg>` element, which refers to nothing outside the page.
Knows: figures are drawn in placeholder colours, one for each CSS variable of the page. The
variables then replace them, so plots change with the page from light to dark. Text stays text.
Source: ours.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

HUES = 8
CSS_INK, CSS_MUTED, CSS_GRID, CSS_PAPER, CSS_FLOOR = (f"#0{i}0{i}0{i}" for i in range(1, 6))
HUE = tuple(f"#0a01{index:02x}" for index in range(HUES))
VARIABLES = {
    CSS_INK: "--ink",
    CSS_MUTED: "--muted",
    CSS_GRID: "--grid",
    CSS_PAPER: "--paper",
    CSS_FLOOR: "--floor",
    **{colour: f"--s{index}" for index, colour in enumerate(HUE)},
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)))
TIP = "tip-"


@dataclass(frozen=True)
class Size:
    """The size of a figure, in CSS pixels at the width for which it is made."""

    width: int
    height: int
    font: float

    @property
    def narrow(self) -> bool:
        """Whether the size is for a phone."""
        return self.width < 500


@dataclass(frozen=True)
class Look:
    """How a method is drawn, by its slot. When all hues are used, the dashes change."""

    colour: str
    marker: str
    dashes: Any

    @property
    def variable(self) -> str:
        """The name of the colour on the page."""
        return VARIABLES[self.colour]


def look(slot: int) -> Look:
    """The look of a slot; controls have slot -1."""
    if slot < 0:
        return Look(CSS_MUTED, "o", (0, (1.5, 2)))
    return Look(HUE[slot % HUES], MARKERS[slot % HUES], _DASHES[slot // HUES % len(_DASHES)])


@contextmanager
def drawing(size: Size) -> Iterator[Any]:
    """A `matplotlib.figure.Figure` in the page's style; the user's own settings have no effect."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE | {"font.size": size.font})
        yield Figure(figsize=(size.width / 72, size.height / 72), dpi=72)


def to_svg(figure: Any, name: str, alt: str, tips: Mapping[str, str] | None = None) -> str:
    """A figure as one `<svg>` element.

    Args:
        name: distinguishes its ids from those of other figures on the page.
        alt: the text for readers who cannot see the figure.
        tips: texts that appear over artists, by the artist's gid, which begins with `TIP`.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'font-family:[^;"]*;?\s*', "", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r"<g>\s*</g>|<defs>\s*</defs>", "", text)
    text = _own_ids(_with_tips(text, tips or {}), name)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    view = re.search(r'viewBox="[^"]*"', text)
    head = f'<svg class="plot" {view.group() if view else ""} role="img" aria-label="'
    return head + html.escape(alt) + '">' + re.sub(r"\s*\n\s*", "\n", text[text.index(">") + 1 :])


def _with_tips(text: str, tips: Mapping[str, str]) -> str:
    for gid, tip in tips.items():
        text = text.replace(
            f'<g id="{gid}">', f'<g class="tip"><title>{html.escape(tip)}</title>', 1
        )
    return text


def _own_ids(text: str, name: str) -> str:
    """Put the figure's name before each id that is referred to, and remove the other ids."""
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', text))
    text = re.sub(r'\sid="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'xlink:href="#', 'href="#', text)
    return re.sub(r'(href="|url\()#([\w.-]+)', rf"\1#{name}-\2", text)


_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dit-accel",
    "text.color": CSS_INK,
    "text.parse_math": False,
    "axes.labelcolor": CSS_MUTED,
    "axes.edgecolor": CSS_GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 1,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "grid.color": CSS_GRID,
    "grid.linewidth": 0.7,
    "xtick.color": CSS_GRID,
    "ytick.color": CSS_GRID,
    "xtick.labelcolor": CSS_MUTED,
    "ytick.labelcolor": CSS_MUTED,
    "lines.linewidth": 2,
    "lines.markersize": 7,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
}
