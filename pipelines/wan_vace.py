"""A `WanVACEPipeline` that runs accelerated, used as the one of `wan.py`."""

from diffusers import WanVACEPipeline
from dit_accel.pipelines.mixin import AcceleratedPipeline


class AcceleratedWanVACEPipeline(AcceleratedPipeline, WanVACEPipeline):
    """`WanVACEPipeline` with an acceleration in each call."""
