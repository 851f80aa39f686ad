"""A `WanPipeline` that runs accelerated: everything else is the parent's.

    from dit_accel.pipelines import AcceleratedWanPipeline
    pipe = AcceleratedWanPipeline.from_pretrained(path)
    out = pipe("a red circle moving right", quality=32)    # dB, by the model's profile
    out = pipe("a red circle moving right", speedup=2.5)
    out = pipe("a red circle moving right", threshold=0.1, site="model")
    out = pipe("a red circle moving right", config=QualityConfig(32, guard=False))
    out.frames, out.report

Also by path, for which newer diffusers want your consent to run the file:

    DiffusionPipeline.from_pretrained(
        path, custom_pipeline="pipelines/wan.py", trust_remote_code=True
    )
"""

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import WanPipeline
from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput

from dit_accel import EDCW, AccelConfig, Report, UniCP, accelerate
from dit_accel.config import PlannedConfig, config_of
from dit_accel.planning.lookup import find_profile


@dataclass
class AcceleratedWanPipelineOutput(WanPipelineOutput):
    """The parent's `frames`, and the `report` of the run."""

    report: Report | None = None


class AcceleratedWanPipeline(WanPipeline):
    """`WanPipeline` accelerated in each call: to a quality or a speed by the model's profile, or by
    error-aware dynamic cache windows (UniCP, arXiv 2502.04393).

    Six more keyword arguments of the call, `quality`, `speedup`, `profile`, `threshold`, `site` and
    `config` (one object with all there is to say), mean what they do in `dit_accel.accelerate`;
    none given: windows at the default threshold, as there; `threshold=0` is bit-equal to the
    parent. A quality or a speed needs a profile (`dit-accel calibrate`): given, or found in the
    model's folder or the cache. With `return_dict=False` the parent's tuple comes back, and the
    report is in `pipe.last_report` either way. The pipeline is saved as a plain `WanPipeline`, so
    that whoever loads the folder needs no dit_accel.
    """

    last_report: Report | None = None

    @functools.wraps(WanPipeline.__call__)
    def __call__(
        self,
        *args: Any,
        threshold: float | None = None,
        site: str = "model",
        quality: float | None = None,
        speedup: float | None = None,
        profile: Any = None,
        config: AccelConfig | EDCW | UniCP | None = None,
        **kwargs: Any,
    ) -> Any:
        chosen = config_of(
            config, threshold=threshold, site=site, quality=quality, speedup=speedup,
            profile=profile,
        )  # fmt: skip
        planned = isinstance(chosen, PlannedConfig) and chosen.profile is None
        if planned and find_profile(self) is None:
            raise ValueError(
                "quality and speedup need a profile, and none of this model was found in its "
                "folder or the cache: `dit-accel calibrate` measures one"
            )
        with accelerate(self, chosen) as handle:
            output = super().__call__(*args, **kwargs)
            self.last_report = handle.report()
        if isinstance(output, tuple):
            return output
        return AcceleratedWanPipelineOutput(frames=output.frames, report=self.last_report)

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """As the parent's, but in the dtype that `pipeline` has (the parent casts to float32)."""
        for name in ("torch_dtype", "dtype"):
            if name in kwargs:
                return super().from_pipe(pipeline, **kwargs)
        return super().from_pipe(pipeline, torch_dtype=pipeline.dtype, **kwargs)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """As the parent's; `model_index.json` names the parent class."""
        super().save_pretrained(save_directory, *args, **kwargs)
        index = Path(save_directory) / "model_index.json"
        settings = json.loads(index.read_text())
        settings["_class_name"] = WanPipeline.__name__
        index.write_text(json.dumps(settings, indent=2) + "\n")
