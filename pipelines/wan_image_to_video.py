"""A `WanImageToVideoPipeline` that runs accelerated, used as the one of `wan.py`."""

from diffusers import WanImageToVideoPipeline
from dit_accel.pipelines.mixin import AcceleratedPipeline


class AcceleratedWanImageToVideoPipeline(AcceleratedPipeline, WanImageToVideoPipeline):
    """`WanImageToVideoPipeline` with an acceleration in each call."""
