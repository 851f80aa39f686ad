"""A `LTX2Pipeline` that runs accelerated; `wan.py` shows how to use it."""

from diffusers import LTX2Pipeline
from dit_accel.pipelines.mixin import AcceleratedPipeline


class AcceleratedLTX2Pipeline(AcceleratedPipeline, LTX2Pipeline):
    """`LTX2Pipeline`, accelerated in each call."""
