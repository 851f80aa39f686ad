"""A `CogVideoXPipeline` that runs accelerated; `wan.py` shows how to use it."""

from diffusers import CogVideoXPipeline
from dit_accel.pipelines.mixin import AcceleratedPipeline


class AcceleratedCogVideoXPipeline(AcceleratedPipeline, CogVideoXPipeline):
    """`CogVideoXPipeline`, accelerated in each call."""
