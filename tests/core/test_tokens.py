import pytest

from dit_accel.core.tokens import TokenGrid, TokenStrides

# 9 pixel frames of 32 x 48 pixels at strides 4, 8 and patch 2: a token's side is 16 pixels, so
# 3 latent frames x 2 rows x 3 columns = 18 tokens; frame 1 begins at 6, frame 2 at 12.
GRID = TokenGrid.from_pixels(9, 32, 48, text=5)


def test_sizes_by_hand():
    assert TokenGrid(3, 2, 3, text=5) == GRID
    assert (GRID.video_tokens, GRID.tokens, GRID.text_span) == (18, 23, (18, 23))
    assert GRID.num_frames == 9


def test_without_text_the_span_is_empty_at_the_end():
    assert TokenGrid(3, 2, 3).text_span == (18, 18)
    assert TokenGrid(3, 2, 3).tokens == 18


def test_wan_at_its_own_size_by_hand():
    # 81 frames of 480 x 832: 20 x 4 + 1 -> 21 latent frames; 480 / 16 = 30 rows; 832 / 16 = 52.
    assert TokenGrid.from_pixels(81, 480, 832) == TokenGrid(21, 30, 52)
    assert TokenGrid.from_pixels(81, 480, 832).tokens == 32_760


def test_the_miniature_by_hand():
    # 17 frames of 64 x 64, patch 1: a token's side is 8 pixels; 5 x 8 x 8 tokens.
    grid = TokenGrid.from_pixels(17, 64, 64, strides=TokenStrides(patch=1))
    assert (grid.frames, grid.height, grid.width, grid.tokens) == (5, 8, 8, 320)


def test_causal_frames_by_hand():
    assert [GRID.pixel_frames(k) for k in range(3)] == [(0, 1), (1, 5), (5, 9)]
    assert [GRID.latent_frame(t) for t in range(9)] == [0, 1, 1, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("temporal", [1, 2, 4, 8])
def test_latent_frames_share_out_the_pixel_frames(temporal):
    grid = TokenGrid.from_pixels(6 * temporal + 1, 16, 16, strides=TokenStrides(temporal))
    spans = [grid.pixel_frames(k) for k in range(grid.frames)]
    assert [t for span in spans for t in range(*span)] == list(range(6 * temporal + 1))
    assert all(grid.latent_frame(t) == k for k, span in enumerate(spans) for t in range(*span))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: TokenGrid(0, 2, 3), "frames is 0; accepted: an integer >= 1"),
        (lambda: TokenGrid(3, 2.0, 3), "height is 2.0; accepted: an integer >= 1"),
        (lambda: TokenGrid(3, 2, True), "width is True; accepted: an integer >= 1"),
        (lambda: TokenGrid(3, 2, 3, text=-1), "text is -1; accepted: an integer >= 0"),
        (lambda: TokenStrides(patch=0), "patch is 0; accepted: an integer >= 1"),
        (
            lambda: TokenGrid.from_pixels(16, 32, 32),
            "frames is 16; accepted: 1 more than a multiple of 4",
        ),
        (lambda: TokenGrid.from_pixels(0, 32, 32), "frames is 0; accepted: an integer >= 1"),
        (
            lambda: TokenGrid.from_pixels(17, 32, 40),
            "width is 40; accepted: a multiple of 16",
        ),
        (lambda: GRID.latent_frame(9), "pixel_frame is 9; accepted: an integer from 0 to 8"),
        (lambda: GRID.pixel_frames(-1), "latent_frame is -1; accepted: an integer from 0 to 2"),
    ],
)
def test_bad_input_is_named(make, text):
    with pytest.raises(ValueError, match=text):
        make()
