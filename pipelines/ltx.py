"""A `LTXPipeline` that runs accelerated; `wan.py` shows how to use it."""

from diffusers import LTXPipeline
from dit_accel.pipelines.mixin import AcceleratedPipeline


class AcceleratedLTXPipeline(AcceleratedPipeline, LTXPipeline):
    """`LTXPipeline`, accelerated in each call."""
