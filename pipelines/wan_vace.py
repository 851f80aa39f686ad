"""A `WanVACEPipeline` that runs accelerated; `wan.py` shows how to use it."""

from diffusers import WanVACEPipeline
from dit_accel.pipelines.mixin import AcceleratedPipeline


class AcceleratedWanVACEPipeline(AcceleratedPipeline, WanVACEPipeline):
    """`WanVACEPipeline`, accelerated in each call."""
