"""What makes a diffusers pipeline run accelerated in each call: all but the name of its class.

In: a pipeline class, as the second base. Out: its call with more arguments, a report beside its
output, and settings that are saved with the model.
Knows diffusers' public methods and `accelerate`; knows no family. Each class is in a file of its
own: `custom_pipeline=` accepts one class a file, and copies that file alone. Ours.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel import EDCW, AccelConfig, Report, UniCP, accelerate
from dit_accel.config import PlannedConfig
from dit_accel.config.keywords import config_of
from dit_accel.core.document import read_document
from dit_accel.core.files import placed
from dit_accel.planning.lookup import PROFILE_FILE, find_profile
from dit_accel.planning.profile import Profile

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as _Parent
else:
    _Parent = object

SETTINGS_FILE = "dit-accel.json"  # in a model's folder
_NOT_READ: Any = object()


class AcceleratedPipeline(_Parent):
    """Comes before a pipeline of diffusers: `class Mine(AcceleratedPipeline, WanPipeline)`.

    Six more keyword arguments of the call, `quality`, `speedup`, `profile`, `threshold`, `site` and
    `config` (one object with all there is to say), mean what they do in `dit_accel.accelerate`.
    With none of them the call follows `acceleration`; without that, windows at the default
    threshold. `threshold=0` is bit-equal to the parent. A quality or a speedup is planned by the
    model's profile, else from the prior and by what earlier calls taught. Where neither knows such
    runs, and calls teach nothing (static, a layout, or learn=False), the call is refused.

    The output is the parent's, with the run's `report` as one more attribute. With
    `return_dict=False` the parent's tuple comes back; `last_report` has the report either way.

    `save_pretrained` writes the settings and the profile beside the model, and the parent's name in
    `model_index.json`: whoever loads the folder needs no dit_accel.

    Example:
        >>> from diffusers import WanPipeline
        >>> class Mine(AcceleratedPipeline, WanPipeline): ...
        >>> Mine.parent.__name__
        'WanPipeline'
    """

    parent: type[Any]
    last_report: Report | None = None
    _acceleration: AccelConfig | None = _NOT_READ

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        if AcceleratedPipeline in cls.__bases__:
            cls.parent = next(base for base in cls.__bases__ if base is not AcceleratedPipeline)
            cls.__call__ = _call_of(cls.parent)

    @property
    def acceleration(self) -> AccelConfig | None:
        """What a call without arguments of ours does; None: windows at the default threshold.

        Raises:
            ValueError: the settings in the model's folder are damaged; names file and field.
        """
        if self._acceleration is _NOT_READ:
            # not in from_pretrained, which `custom_pipeline=` does not call on this class
            self._acceleration = _saved(getattr(self.config, "_name_or_path", None))
        return self._acceleration

    @acceleration.setter
    def acceleration(self, config: AccelConfig | None) -> None:
        if config is not None and not isinstance(config, AccelConfig):
            raise ValueError(f"acceleration is {config!r:.80}; accepted: an AccelConfig, or None")
        self._acceleration = config

    @classmethod
    def from_pipe(cls, pipeline: Any, **given: Any) -> Any:
        """As the parent's, but in the dtype that `pipeline` has (the parent casts to float32), and
        with its settings."""
        if "torch_dtype" not in given and "dtype" not in given:
            given["torch_dtype"] = pipeline.dtype
        found = super().from_pipe(pipeline, **given)
        if isinstance(pipeline, AcceleratedPipeline):
            found.acceleration = pipeline.acceleration
        return found

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **given: Any
    ) -> None:
        """As the parent's, with settings and profile.

        Raises:
            ValueError: a setting cannot be written; nothing is written then.
        """
        _portable(self.acceleration)
        super().save_pretrained(save_directory, *args, **given)

    def save_config(self, save_directory: str | os.PathLike[str], **given: Any) -> None:
        """As the parent's. `save_pretrained` comes here last, before anything is uploaded."""
        super().save_config(save_directory, **given)
        folder = Path(save_directory)
        index = folder / "model_index.json"
        content = json.loads(index.read_text(encoding="utf-8"))
        content["_class_name"] = self.parent.__name__
        index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        settings = _portable(self.acceleration)
        if settings is None:
            (folder / SETTINGS_FILE).unlink(missing_ok=True)  # of what was saved here before
        else:
            with placed(folder / SETTINGS_FILE) as scratch:
                scratch.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        _save_profile(self, getattr(self.acceleration, "profile", None), folder / PROFILE_FILE)


def _call_of(parent: type[Any]) -> Any:
    """The call of a pipeline class, with our arguments behind those of the parent."""

    @functools.wraps(parent.__call__)
    def call(
        self: AcceleratedPipeline,
        *args: Any,
        threshold: float | None = None,
        site: str = "model",
        quality: float | None = None,
        speedup: float | None = None,
        profile: Any = None,
        config: AccelConfig | EDCW | UniCP | None = None,
        **kwargs: Any,
    ) -> Any:
        given = (threshold, quality, speedup, profile, config)
        if site == "model" and all(one is None for one in given):
            config = self.acceleration
        chosen = config_of(
            config, threshold=threshold, site=site, quality=quality, speedup=speedup,
            profile=profile,
        )  # fmt: skip
        if isinstance(chosen, PlannedConfig):  # each call has a handle of its own
            chosen = dataclasses.replace(chosen, records=False)
        with accelerate(self, chosen) as handle:
            output = parent.__call__(self, *args, **kwargs)
            self.last_report = handle.report()
        if not isinstance(output, tuple):
            output.report = self.last_report
        return output

    ours = inspect.signature(call, follow_wrapped=False).parameters.values()
    theirs = inspect.signature(parent.__call__)
    more = [one for one in ours if one.kind is one.KEYWORD_ONLY]
    call.__signature__ = theirs.replace(  # type: ignore[attr-defined]
        parameters=[*theirs.parameters.values(), *more]
    )
    return call


def _saved(folder: str | None) -> AccelConfig | None:
    """The settings in a model's folder; None where there are none."""
    path = Path(folder or "") / SETTINGS_FILE
    if not folder or not path.is_file():
        return None
    try:
        fields = read_document(path).fields()
        return AccelConfig.from_dict({name: field.value for name, field in fields.items()})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _portable(config: AccelConfig | None) -> dict[str, Any] | None:
    """The settings as JSON has them, without the profile, which is a file of the folder."""
    if isinstance(config, PlannedConfig):
        config = dataclasses.replace(config, profile=None)
    return None if config is None else config.to_dict()


def _save_profile(pipe: Any, given: Any, target: Path) -> None:
    source = given if given is not None else find_profile(pipe)
    if isinstance(source, Profile):
        source.save(target)
    elif source is not None and Path(source).resolve() != target.resolve():
        with placed(target) as scratch:
            shutil.copyfile(source, scratch)
