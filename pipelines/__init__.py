"""diffusers pipelines with the acceleration built in, one class per file.

Each file also works by its path, as `custom_pipeline=`. Importing this package imports no pipeline:
a class is imported when its name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cogvideox import AcceleratedCogVideoXPipeline as AcceleratedCogVideoXPipeline
    from .cogvideox_image_to_video import (
        AcceleratedCogVideoXImageToVideoPipeline as AcceleratedCogVideoXImageToVideoPipeline,
    )
    from .hunyuan_video import AcceleratedHunyuanVideoPipeline as AcceleratedHunyuanVideoPipeline
    from .hunyuan_video_15 import (
        AcceleratedHunyuanVideo15Pipeline as AcceleratedHunyuanVideo15Pipeline,
    )
    from .ltx import AcceleratedLTXPipeline as AcceleratedLTXPipeline
    from .ltx2 import AcceleratedLTX2Pipeline as AcceleratedLTX2Pipeline
    from .mixin import AcceleratedPipeline as AcceleratedPipeline
    from .wan import AcceleratedWanPipeline as AcceleratedWanPipeline
    from .wan_image_to_video import (
        AcceleratedWanImageToVideoPipeline as AcceleratedWanImageToVideoPipeline,
    )
    from .wan_vace import AcceleratedWanVACEPipeline as AcceleratedWanVACEPipeline
    from .wan_video_to_video import (
        AcceleratedWanVideoToVideoPipeline as AcceleratedWanVideoToVideoPipeline,
    )

_HOMES = {
    "AcceleratedPipeline": "mixin",
    "AcceleratedWanPipeline": "wan",
    "AcceleratedWanImageToVideoPipeline": "wan_image_to_video",
    "AcceleratedWanVideoToVideoPipeline": "wan_video_to_video",
    "AcceleratedWanVACEPipeline": "wan_vace",
    "AcceleratedLTXPipeline": "ltx",
    "AcceleratedLTX2Pipeline": "ltx2",
    "AcceleratedHunyuanVideoPipeline": "hunyuan_video",
    "AcceleratedHunyuanVideo15Pipeline": "hunyuan_video_15",
    "AcceleratedCogVideoXPipeline": "cogvideox",
    "AcceleratedCogVideoXImageToVideoPipeline": "cogvideox_image_to_video",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
