"""A `HunyuanVideoPipeline` that runs accelerated; `wan.py` shows how to use it."""

from diffusers import HunyuanVideoPipeline
from dit_accel.pipelines.mixin import AcceleratedPipeline


class AcceleratedHunyuanVideoPipeline(AcceleratedPipeline, HunyuanVideoPipeline):
    """`HunyuanVideoPipeline`, accelerated in each call."""
