"""A mixin that makes each call of a diffusers pipeline run accelerated.

In: a pipeline class, as the second base. Out: its call with more arguments, a report beside its
output, and settings that are saved with the model.
Knows diffusers' public methods and `accelerate`; knows no family. Each pipeline class has a file of
its own, because `custom_pipeline=` accepts one class per file and copies only that file. Ours.
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
    """The first base class of an accelerated pipeline; the second one is a pipeline of diffusers.

    The call has six more keyword arguments: `quality`, `speedup`, `profile`, `threshold`, `site`
    and `config` (one object with all settings). They mean the same as in `dit_accel.accelerate`.
    Without them the call uses the settings in `acceleration`. If these are None, it uses windows at
    the default threshold. `threshold=0` is bit-equal to the parent.

    With a quality or a speedup, the plan comes from the model's profile. If there is none, it comes
    from the prior and from what was learnt in earlier calls. If neither covers the run, every step
    is computed, and later calls learn from it. If nothing is learnt (static, a layout, or
    learn=False), such a call is refused.

    The output is the parent's, with one more attribute, the `report` of the run. With
    `return_dict=False` the parent's tuple is returned. `last_report` has the report in both cases.

    `save_pretrained` writes the settings and the profile beside the model. `model_index.json` has
    the parent's class name, so the folder can be loaded without dit_accel.

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
        """The settings of a call without our arguments; None: windows at the default threshold.

        Raises:
            ValueError: the settings file in the model's folder is damaged. The message names the
                file and the field.
        """
        if self._acceleration is _NOT_READ:
            # Read here, because `custom_pipeline=` does not call this class's from_pretrained.
            self._acceleration = _saved(getattr(self.config, "_name_or_path", None))
        return self._acceleration

    @acceleration.setter
    def acceleration(self, config: AccelConfig | None) -> None:
        if config is not None and not isinstance(config, AccelConfig):
            raise ValueError(f"acceleration is {config!r:.80}; accepted: an AccelConfig, or None")
        self._acceleration = config

    @classmethod
    def from_pipe(cls, pipeline: Any, **given: Any) -> Any:
        """As the parent's, but with the dtype of `pipeline` (the parent casts to float32) and with
        its acceleration."""
        if "torch_dtype" not in given and "dtype" not in given:
            given["torch_dtype"] = pipeline.dtype
        found = super().from_pipe(pipeline, **given)
        if isinstance(pipeline, AcceleratedPipeline):
            found.acceleration = pipeline.acceleration
        return found

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **given: Any
    ) -> None:
        """As the parent's; also writes the settings and the profile.

        Raises:
            ValueError: a setting has no JSON form. Nothing is written then.
        """
        _portable(self.acceleration)
        super().save_pretrained(save_directory, *args, **given)

    def save_config(self, save_directory: str | os.PathLike[str], **given: Any) -> None:
        """As the parent's; also writes our files. `save_pretrained` calls this last, before it
        uploads anything."""
        super().save_config(save_directory, **given)
        folder = Path(save_directory)
        index = folder / "model_index.json"
        content = json.loads(index.read_text(encoding="utf-8"))
        content["_class_name"] = self.parent.__name__
        index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        settings = _portable(self.acceleration)
        if settings is None:
            (folder / SETTINGS_FILE).unlink(missing_ok=True)  # the one of an earlier save
        else:
            with placed(folder / SETTINGS_FILE) as scratch:
                scratch.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        _save_profile(self, getattr(self.acceleration, "profile", None), folder / PROFILE_FILE)


def _call_of(parent: type[Any]) -> Any:
    """The call of a pipeline class, with our arguments after the parent's."""

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
        if isinstance(chosen, PlannedConfig):
            # Each call has a handle of its own: a record in the handle would be of no use.
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
    """The settings in a model's folder; None if there is no such file."""
    path = Path(folder or "") / SETTINGS_FILE
    if not folder or not path.is_file():
        return None
    try:
        fields = read_document(path).fields()
        return AccelConfig.from_dict({name: field.value for name, field in fields.items()})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _portable(config: AccelConfig | None) -> dict[str, Any] | None:
    """The settings as plain JSON values, without the profile, which has a file of its own."""
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
