"""Read and write clips, and lay two of them side by side.

The suffix of the path says how a clip is kept:

- `.mkv`, `.npy`: bit-exact (FFV1; a numpy array of uint8, which keeps no frame rate).
- `.mp4`: lossy, for sharing.
- `.png` (contact sheet), `.gif` (Pillow; frames last whole hundredths of a second): for the eye.

Score lossless files: 4:2:0 codecs read 34 to 39 dB against their own source, and so hide every
difference above that.

It knows no audio, colour space tags, variable frame rate or more than 8 bits; frame rates are kept
to 1/1000.
"""

from dit_accel.core.video.canvas import contact_sheet, film_strips, side_by_side
from dit_accel.core.video.frames import Frames, to_uint8
from dit_accel.core.video.reading import READABLE, Codec, codec_of, read_video, stream_video
from dit_accel.core.video.writing import LOSSLESS, WRITABLE, check_output, write_video

__all__ = [
    "LOSSLESS",
    "READABLE",
    "WRITABLE",
    "Codec",
    "Frames",
    "check_output",
    "codec_of",
    "contact_sheet",
    "film_strips",
    "read_video",
    "side_by_side",
    "stream_video",
    "to_uint8",
    "write_video",
]
