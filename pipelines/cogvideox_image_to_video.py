"""A `CogVideoXImageToVideoPipeline` that runs accelerated, used as the one of `wan.py`."""

from diffusers import CogVideoXImageToVideoPipeline
from dit_accel.pipelines.mixin import AcceleratedPipeline


class AcceleratedCogVideoXImageToVideoPipeline(AcceleratedPipeline, CogVideoXImageToVideoPipeline):
    """`CogVideoXImageToVideoPipeline` with an acceleration in each call."""
