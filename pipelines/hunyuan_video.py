"""A `HunyuanVideoPipeline` that runs accelerated, used as the one of `wan.py`."""

from diffusers import HunyuanVideoPipeline
from dit_accel.pipelines.mixin import AcceleratedPipeline


class AcceleratedHunyuanVideoPipeline(AcceleratedPipeline, HunyuanVideoPipeline):
    """`HunyuanVideoPipeline` with an acceleration in each call."""
