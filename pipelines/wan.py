"""A `WanPipeline` that runs accelerated: everything else is the parent's.

    from dit_accel.pipelines import AcceleratedWanPipeline
    pipe = AcceleratedWanPipeline.from_pretrained(path)
    out = pipe("a red circle moving right", quality=32)    # dB, by the model's profile
    out = pipe("a red circle moving right", speedup=2.5)
    out = pipe("a red circle moving right", threshold=0.1, site="model")
    out = pipe("a red circle moving right", config=QualityConfig(32, guard=False))
    out.frames, out.report

    pipe.acceleration = QualityConfig(32)    # of each call that says nothing else
    pipe.save_pretrained(folder)             # with these settings, and the profile

Also by path, for which newer diffusers want your consent to run the file:

    DiffusionPipeline.from_pretrained(
        path, custom_pipeline="pipelines/wan.py", trust_remote_code=True
    )
"""

from diffusers import WanPipeline
from dit_accel.pipelines.mixin import AcceleratedPipeline


class AcceleratedWanPipeline(AcceleratedPipeline, WanPipeline):
    """`WanPipeline` with an acceleration in each call."""
