"""The token grid: how a clip's pixels become latent frames, rows and columns of tokens.

Sizes in pixels or in tokens come in; counts, index ranges and frame ranges go out.

Shape legend for every docstring of the package:

    B  batch (both guidance branches where they share one forward)
    N  tokens of a sequence: F x rows x columns of video, then the text tokens, if they join it
    H  attention heads
    D  width of one head
    F  latent frames

A video token's index runs over columns first, then rows, then latent frames. The module does not
know models with the text before the video. Nor does it know how far a token depends on neighbouring
pixels through the VAE.

Source: the causal VAE of Wan (arXiv 2503.20314 §4.1). Latent frame 0 is pixel frame 0 alone. With a
temporal stride of 4, latent frame k > 0 has the pixel frames 4k - 3 to 4k.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dit_accel.core.checks import is_integer, require

Span = tuple[int, int]  # half-open: (first, end)


@dataclass(frozen=True)
class TokenStrides:
    """How many pixels one token spans.

    Args:
        temporal: pixel frames per latent frame, >= 1; the first latent frame has only one.
        spatial: pixels per side of a latent cell, >= 1.
        patch: latent cells per side of a token, >= 1.

    Raises:
        ValueError: a stride is not an integer >= 1.
    """

    temporal: int = 4
    spatial: int = 8
    patch: int = 2

    def __post_init__(self) -> None:
        for name in ("temporal", "spatial", "patch"):
            _check_integer(name, getattr(self, name), 1)

    @property
    def side(self) -> int:
        """Pixels per side of a token."""
        return self.spatial * self.patch


@dataclass(frozen=True)
class TokenGrid:
    """The tokens of one sequence.

    Args:
        frames: latent frames F, >= 1.
        height: rows of tokens, >= 1.
        width: columns of tokens, >= 1.
        text: text tokens that follow the video in the same sequence, >= 0.
        strides: pixels per token.

    Raises:
        ValueError: a size is out of range.

    Example:
        >>> grid = TokenGrid.from_pixels(17, 256, 448)
        >>> grid.frames, grid.height, grid.width, grid.tokens
        (5, 16, 28, 2240)
    """

    frames: int
    height: int
    width: int
    text: int = 0
    strides: TokenStrides = field(default_factory=TokenStrides)

    def __post_init__(self) -> None:
        for name, least in (("frames", 1), ("height", 1), ("width", 1), ("text", 0)):
            _check_integer(name, getattr(self, name), least)

    @classmethod
    def from_pixels(
        cls, frames: int, height: int, width: int, *, strides: TokenStrides | None = None,
        text: int = 0,
    ) -> TokenGrid:  # fmt: skip
        """The grid of a clip of `frames` x `height` x `width` pixels. Without `strides`, those of
        Wan 2.1 are used.

        Raises:
            ValueError: a side is not a multiple of a token's side, or `frames` is not 1 more than
                a multiple of the temporal stride.
        """
        strides = strides or TokenStrides()
        _check_integer("frames", frames, 1)
        accepted = f"1 more than a multiple of {strides.temporal}"
        require((frames - 1) % strides.temporal == 0, "frames", frames, accepted)
        for name, value in (("height", height), ("width", width)):
            _check_integer(name, value, 1)
            require(value % strides.side == 0, name, value, f"a multiple of {strides.side}")
        latent = (frames - 1) // strides.temporal + 1
        return cls(latent, height // strides.side, width // strides.side, text, strides)

    @property
    def video_tokens(self) -> int:
        """F x rows x columns."""
        return self.frames * self.height * self.width

    @property
    def tokens(self) -> int:
        """N: all tokens of the sequence."""
        return self.video_tokens + self.text

    @property
    def text_span(self) -> Span:
        """Half-open range of the text tokens' indices; (N, N) if there is no text."""
        return self.video_tokens, self.tokens

    @property
    def num_frames(self) -> int:
        """Pixel frames of the whole clip."""
        return (self.frames - 1) * self.strides.temporal + 1

    def latent_frame(self, pixel_frame: int) -> int:
        """The latent frame that contains a pixel frame."""
        _check_index("pixel_frame", pixel_frame, self.num_frames)
        return -(-pixel_frame // self.strides.temporal)

    def pixel_frames(self, latent_frame: int) -> Span:
        """The pixel frames of a latent frame: (0, 1), (1, 5), (5, 9), ... at a stride of 4."""
        _check_index("latent_frame", latent_frame, self.frames)
        last = latent_frame * self.strides.temporal
        return (last - self.strides.temporal + 1 if latent_frame else 0), last + 1


def _check_integer(name: str, value: int, least: int) -> None:
    require(is_integer(value, least), name, value, f"an integer >= {least}")


def _check_index(name: str, value: int, end: int) -> None:
    valid = is_integer(value, 0) and value < end
    require(valid, name, value, f"an integer from 0 to {end - 1}")
