"""A `CogVideoXImageToVideoPipeline` that runs accelerated; `wan.py` shows how to use it."""

from diffusers import CogVideoXImageToVideoPipeline
from dit_accel.pipelines.mixin import AcceleratedPipeline


class AcceleratedCogVideoXImageToVideoPipeline(AcceleratedPipeline, CogVideoXImageToVideoPipeline):
    """`CogVideoXImageToVideoPipeline`, accelerated in each call."""
