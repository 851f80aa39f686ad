"""Describes an evaluation and its jobs. The name of a job is the hash of all that decides its clip.

In: model, clip settings, prompts, seeds and methods. Out: jobs in groups of one prompt and seed,
and the hash of a model folder.
Knows: the same job has the same id in every process, on every machine, at every resume. Does not
know how a job is run (`runner`) or where its result is stored (`store`).
Source: ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dit_accel.core.generation import ClipSpec
from dit_accel.evaluation.methods.row import UNCACHED, Setting
from dit_accel.evaluation.prompts import EvaluationPrompt
from dit_accel.models.lora import lora_of
from dit_accel.models.setup import Setup
from dit_accel.planning.lookup import PROFILE_FILE

MANIFEST_FORMAT = 1
CALIBRATION_CLIPS = 64  # at most, for methods that measure before their first clip
CALIBRATION_SEED = 1_000_003
_WHOLE_FILE = 2**20

CORE = ("dit_accel", "torch", "diffusers", "transformers")


@dataclass(frozen=True)
class ModelSpec:
    """Which weights: a name for people, and a fingerprint of the folder, which does not depend on
    its path."""

    name: str
    pipeline: str
    fingerprint: str


@dataclass(frozen=True)
class EvaluationSpec:
    """A whole evaluation: every prompt × seed × method, and what they share.

    Args:
        clip: the settings that all jobs share; each job replaces prompt, negative and seed.
        device: a type ("cpu", "cuda"); each process chooses one of several devices.
        methods: as `methods.parse` makes them.
        profile, learned: hashes of the files that plans are made from: the model's profile, or what
            was learnt about the model before the evaluation began. The store has the files. Both
            None: plans are made from the prior.
        static, cache_memory: settings of the methods that plan; memory in bytes.
        no_learn: whether nothing is learnt from the clips, and plans use nothing that was learnt.
        setup: how the pipeline is set up; it is also part of the model's fingerprint.
    """

    model: ModelSpec
    clip: ClipSpec
    dtype: str
    device: str
    prompts: tuple[EvaluationPrompt, ...]
    seeds: tuple[int, ...]
    methods: tuple[Setting, ...]
    metrics: tuple[str, ...]
    versions: Mapping[str, str]
    keep_clips: bool = True
    profile: str | None = None
    static: bool = False
    cache_memory: int | None = None
    setup: Setup = field(default_factory=Setup)
    learned: str | None = None
    no_learn: bool = False

    @property
    def profiled(self) -> tuple[str, ...]:
        """Names of the methods that plan."""
        return tuple(dict.fromkeys(setting.method for setting in self.methods if setting.profiled))

    def groups(self) -> list[tuple[Job, ...]]:
        """Jobs by prompt and seed, the uncached reference first."""
        rest = [setting for setting in self.methods if setting.method != UNCACHED]
        return [
            tuple(self._job(prompt, seed, method) for method in (Setting(UNCACHED), *rest))
            for prompt in self.prompts
            for seed in self.seeds
        ]

    def jobs(self) -> list[Job]:
        """All jobs, in the order of `groups`."""
        return [job for group in self.groups() for job in group]

    def calibration_clips(self) -> tuple[ClipSpec, ...]:
        """Clips to calibrate on: the prompts in order, repeated if needed, with seeds that no
        scored clip has."""
        seeds = (s for s in itertools.count(CALIBRATION_SEED) if s not in self.seeds)
        pairs = ((prompt, seed) for seed in seeds for prompt in self.prompts)
        return tuple(
            self._job(prompt, seed, Setting(UNCACHED)).clip
            for prompt, seed in itertools.islice(pairs, CALIBRATION_CLIPS if self.prompts else 0)
        )

    def _job(self, prompt: EvaluationPrompt, seed: int, method: Setting) -> Job:
        negative = self.clip.negative if prompt.negative is None else prompt.negative
        clip = dataclasses.replace(self.clip, prompt=prompt.prompt, negative=negative, seed=seed)
        profiled = method.profiled
        source = {"profile": self.profile} if self.profile else {"learned": self.learned}
        known = {name: value for name, value in source.items() if value and profiled}
        return Job(
            prompt_id=prompt.id,
            clip=clip,
            method=method,
            fingerprint=self.model.fingerprint,
            dtype=self.dtype,
            device=self.device,
            versions={**self.versions, **method.versions(), **known},
            static=profiled and self.static,
            cache_memory=self.cache_memory if profiled else None,
        )


@dataclass(frozen=True)
class Job:
    """One clip by one method. `id` is the hash of all but the prompt's id."""

    prompt_id: str
    clip: ClipSpec
    method: Setting
    fingerprint: str
    dtype: str
    device: str
    versions: Mapping[str, str]
    static: bool = False
    cache_memory: int | None = None

    @property
    def id(self) -> str:
        """20 hexadecimal digits."""
        content = json.dumps(self.content(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()[:20]

    @property
    def reference(self) -> Job:
        """The job of the uncached reference. It does not depend on the versions of other
        packages."""
        ours = {name: self.versions[name] for name in CORE if name in self.versions}
        return dataclasses.replace(
            self, method=Setting(UNCACHED), versions=ours, static=False, cache_memory=None
        )

    def content(self) -> dict[str, Any]:
        """Everything that decides the clip, JSON-able."""
        found: dict[str, Any] = {
            "format": MANIFEST_FORMAT,
            "clip": self.clip.to_dict(),
            "method": self.method.label,
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "device": self.device,
            "versions": dict(self.versions),
        }
        if self.static:  # written only if set, so that older jobs keep their ids
            found["static"] = True
        if self.cache_memory is not None:
            found["cache_memory"] = self.cache_memory
        return found


def fingerprint(folder: Path, setup: Setup | None = None) -> str:
    """A hash of a model folder: names, sizes, and the content of all small files.

    Of a file larger than 1 MiB, only the first and the last MiB are read. A profile in the folder
    is not part of the model.

    Args:
        setup: it is part of the hash, with the content of its LoRAs, unless it is the default.
    """
    digest = hashlib.sha256()
    files = {path: path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    more = setup.to_dict() if setup is not None else {}
    if more:
        digest.update(json.dumps(more, sort_keys=True).encode())
        loras = [lora_of(text).file for text in more.get("lora", ())]
        files |= {path: path for path in loras if path.is_file()}
    for path, name in sorted(files.items()):
        if path == folder / PROFILE_FILE:
            continue
        size = path.stat().st_size
        digest.update(f"{name.as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_WHOLE_FILE))
            if size > _WHOLE_FILE:
                file.seek(max(_WHOLE_FILE, size - _WHOLE_FILE))
                digest.update(file.read())
    return digest.hexdigest()[:20]
