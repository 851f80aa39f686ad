"""A `LTXPipeline` that runs accelerated, used as the one of `wan.py`."""

from diffusers import LTXPipeline
from dit_accel.pipelines.mixin import AcceleratedPipeline


class AcceleratedLTXPipeline(AcceleratedPipeline, LTXPipeline):
    """`LTXPipeline` with an acceleration in each call."""
