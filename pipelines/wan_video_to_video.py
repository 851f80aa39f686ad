"""A `WanVideoToVideoPipeline` that runs accelerated, used as the one of `wan.py`."""

from diffusers import WanVideoToVideoPipeline
from dit_accel.pipelines.mixin import AcceleratedPipeline


class AcceleratedWanVideoToVideoPipeline(AcceleratedPipeline, WanVideoToVideoPipeline):
    """`WanVideoToVideoPipeline` with an acceleration in each call."""
