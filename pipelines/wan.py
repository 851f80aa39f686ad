"""A `WanPipeline` that runs accelerated. Everything else is inherited.

    from dit_accel.pipelines import AcceleratedWanPipeline
    pipe = AcceleratedWanPipeline.from_pretrained(path)
    out = pipe("a red circle moving right", quality=32)    # in dB
    out = pipe("a red circle moving right", speedup=2.5)
    out = pipe("a red circle moving right", threshold=0.1, site="model")
    out = pipe("a red circle moving right", config=QualityConfig(32, guard=False))
    out.frames, out.report

    pipe.acceleration = QualityConfig(32)    # for each call without arguments of its own
    pipe.save_pretrained(folder)             # also saves these settings and the profile

It can also be loaded by the file's path. Newer diffusers run the file only with
`trust_remote_code=True`:

    DiffusionPipeline.from_pretrained(
        path, custom_pipeline="pipelines/wan.py", trust_remote_code=True
    )
"""

from diffusers import WanPipeline
from dit_accel.pipelines.mixin import AcceleratedPipeline


class AcceleratedWanPipeline(AcceleratedPipeline, WanPipeline):
    """`WanPipeline`, accelerated in each call."""
