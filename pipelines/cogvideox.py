"""A `CogVideoXPipeline` that runs accelerated, used as the one of `wan.py`."""

from diffusers import CogVideoXPipeline
from dit_accel.pipelines.mixin import AcceleratedPipeline


class AcceleratedCogVideoXPipeline(AcceleratedPipeline, CogVideoXPipeline):
    """`CogVideoXPipeline` with an acceleration in each call."""
