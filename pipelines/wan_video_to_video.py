"""A `WanVideoToVideoPipeline` that runs accelerated; `wan.py` shows how to use it."""

from diffusers import WanVideoToVideoPipeline
from dit_accel.pipelines.mixin import AcceleratedPipeline


class AcceleratedWanVideoToVideoPipeline(AcceleratedPipeline, WanVideoToVideoPipeline):
    """`WanVideoToVideoPipeline`, accelerated in each call."""
