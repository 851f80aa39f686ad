"""Read and write clips, and draw several beside each other.

Paths and frames `(T, H, W, 3)` come in; uint8 frames or files go out. The path's suffix chooses the
format:

- `.mkv`, `.npy`: bit-exact (FFV1; a numpy array of uint8, without a frame rate).
- `.mp4`: lossy, for sharing.
- `.png` (contact sheet), `.gif` (Pillow; frames last multiples of 10 ms): for looking at.

Compute scores from lossless files only. 4:2:0 codecs reach 34 to 39 dB against their own source,
and so hide all smaller differences. Audio, colour space tags, variable frame rates and more than 8
bits are not supported. Frame rates are stored to 1/1000. Source: ours, on OpenCV.
"""

from dit_accel.core.video.canvas import contact_sheet, film_strips, side_by_side
from dit_accel.core.video.container import EIGHT_BIT_RGB
from dit_accel.core.video.frames import Frames, to_uint8
from dit_accel.core.video.reading import (
    READABLE,
    Codec,
    codec_of,
    frame_rate,
    read_video,
    stream_video,
)
from dit_accel.core.video.writing import LOSSLESS, WRITABLE, check_output, write_video

__all__ = [
    "EIGHT_BIT_RGB",
    "LOSSLESS",
    "READABLE",
    "WRITABLE",
    "Codec",
    "Frames",
    "check_output",
    "codec_of",
    "contact_sheet",
    "film_strips",
    "frame_rate",
    "read_video",
    "side_by_side",
    "stream_video",
    "to_uint8",
    "write_video",
]
