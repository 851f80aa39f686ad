"""A `LTX2Pipeline` that runs accelerated, used as the one of `wan.py`."""

from diffusers import LTX2Pipeline
from dit_accel.pipelines.mixin import AcceleratedPipeline


class AcceleratedLTX2Pipeline(AcceleratedPipeline, LTX2Pipeline):
    """`LTX2Pipeline` with an acceleration in each call."""
