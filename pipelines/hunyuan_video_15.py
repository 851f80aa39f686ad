"""A `HunyuanVideo15Pipeline` that runs accelerated; `wan.py` shows how to use it."""

from diffusers import HunyuanVideo15Pipeline
from dit_accel.pipelines.mixin import AcceleratedPipeline


class AcceleratedHunyuanVideo15Pipeline(AcceleratedPipeline, HunyuanVideo15Pipeline):
    """`HunyuanVideo15Pipeline`, accelerated in each call."""
