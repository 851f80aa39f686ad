import itertools

import pytest
import torch

from dit_accel.tokens import Box, TokenGrid, TokenStrides

# 9 pixel frames of 32 x 48 pixels at strides 4, 8 and patch 2: a token's side is 16 pixels, so
# 3 latent frames x 2 rows x 3 columns = 18 tokens; frame 1 begins at 6, frame 2 at 12.
GRID = TokenGrid.from_pixels(9, 32, 48, text=5)


def test_sizes_by_hand():
    assert TokenGrid(3, 2, 3, text=5) == GRID
    assert (GRID.video_tokens, GRID.tokens, GRID.text_span) == (18, 23, (18, 23))
    assert GRID.pixels == Box((0, 9), (0, 32), (0, 48))


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


def test_pixels_to_tokens_by_hand():
    # Frames 4 and 5 lie in latent frames 1 and 2; rows 15 to 16 touch both rows of tokens;
    # columns 16 to 31 are exactly the middle one.
    tokens = GRID.to_tokens(Box((4, 6), (15, 17), (16, 32)))
    assert tokens == Box((1, 3), (0, 2), (1, 2))
    assert GRID.indices(tokens).tolist() == [7, 10, 13, 16]
    assert GRID.to_pixels(tokens) == Box((1, 9), (0, 32), (16, 32))


def test_the_first_frame_alone_by_hand():
    tokens = GRID.to_tokens(Box((0, 1), (0, 1), (47, 48)))
    assert tokens == Box((0, 1), (0, 1), (2, 3))
    assert GRID.indices(tokens).tolist() == [2]
    assert GRID.to_pixels(tokens) == Box((0, 1), (0, 16), (32, 48))


def test_the_whole_clip_is_every_video_token():
    assert torch.equal(GRID.indices(GRID.to_tokens(GRID.pixels)), torch.arange(18))


def spans(end):
    return itertools.combinations(range(end + 1), 2)


def test_every_box_of_tokens_comes_back_from_its_pixels():
    for box in itertools.starmap(Box, itertools.product(spans(3), spans(2), spans(3))):
        assert GRID.to_tokens(GRID.to_pixels(box)) == box
        places = [GRID.place(i) for i in GRID.indices(box).tolist()]
        assert places == list(
            itertools.product(range(*box.frames), range(*box.rows), range(*box.columns))
        )


def test_place_by_hand():
    # 16 = 2 x 6 + 1 x 3 + 1
    assert GRID.place(16) == (2, 1, 1)


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
        (
            lambda: Box((0, 1), (2, 2), (0, 1)),
            r"rows is \(2, 2\); accepted: integers \(first, end\) with 0 <= first < end",
        ),
        (lambda: Box((0, 1), (0, 1), (-1, 1)), r"columns is \(-1, 1\); accepted: integers"),
        (lambda: Box((0, 1.5), (0, 1), (0, 1)), r"frames is \(0, 1.5\); accepted: integers"),
        (
            lambda: GRID.to_tokens(Box((0, 10), (0, 1), (0, 1))),
            r"frames of the box is \(0, 10\) in pixels; accepted: an end up to 9",
        ),
        (
            lambda: GRID.to_pixels(Box((0, 1), (0, 1), (0, 4))),
            r"columns of the box is \(0, 4\) in tokens; accepted: an end up to 3",
        ),
        (
            lambda: GRID.indices(Box((0, 1), (0, 3), (0, 1))),
            r"rows of the box is \(0, 3\) in tokens; accepted: an end up to 2",
        ),
        (lambda: GRID.place(18), "index is 18; accepted: an integer from 0 to 17"),
        (lambda: GRID.latent_frame(9), "pixel_frame is 9; accepted: an integer from 0 to 8"),
        (lambda: GRID.pixel_frames(-1), "latent_frame is -1; accepted: an integer from 0 to 2"),
    ],
)
def test_bad_input_is_named(make, text):
    with pytest.raises(ValueError, match=text):
        make()
