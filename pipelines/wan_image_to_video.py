"""A `WanImageToVideoPipeline` that runs accelerated; `wan.py` shows how to use it."""

from diffusers import WanImageToVideoPipeline
from dit_accel.pipelines.mixin import AcceleratedPipeline


class AcceleratedWanImageToVideoPipeline(AcceleratedPipeline, WanImageToVideoPipeline):
    """`WanImageToVideoPipeline`, accelerated in each call."""
