"""A `WanPipeline` that runs accelerated: everything else is the parent's.

    from dit_accel.pipelines import AcceleratedWanPipeline
    pipe = AcceleratedWanPipeline.from_pretrained(path)
    out = pipe("a red circle moving right", threshold=0.1, site="model")
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

from dit_accel import Report, accelerate
from dit_accel.windows import DEFAULT_THRESHOLD


@dataclass
class AcceleratedWanPipelineOutput(WanPipelineOutput):
    """The parent's `frames`, and the `report` of the run."""

    report: Report | None = None


class AcceleratedWanPipeline(WanPipeline):
    """`WanPipeline` with error-aware dynamic cache windows (UniCP, arXiv 2502.04393) in each call.

    Two more keyword arguments of the call, `threshold` and `site`, go to `dit_accel.accelerate`;
    `threshold=0` is bit-equal to the parent. With `return_dict=False` the parent's tuple comes
    back, and the report is in `pipe.last_report` either way. The pipeline is saved as a plain
    `WanPipeline`, so that whoever loads the folder needs no dit_accel.
    """

    last_report: Report | None = None

    @functools.wraps(WanPipeline.__call__)
    def __call__(
        self, *args: Any, threshold: float = DEFAULT_THRESHOLD, site: str = "model", **kwargs: Any
    ) -> Any:
        with accelerate(self, threshold=threshold, site=site) as handle:
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
