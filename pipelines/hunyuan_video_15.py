"""A `HunyuanVideo15Pipeline` that runs accelerated, used as the one of `wan.py`."""

from diffusers import HunyuanVideo15Pipeline
from dit_accel.pipelines.mixin import AcceleratedPipeline


class AcceleratedHunyuanVideo15Pipeline(AcceleratedPipeline, HunyuanVideo15Pipeline):
    """`HunyuanVideo15Pipeline` with an acceleration in each call."""
