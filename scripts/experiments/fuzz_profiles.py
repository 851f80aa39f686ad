"""Makes mutants of profiles and of files of what was learnt, and plans from accepted ones.

In: a random generator and a folder. Out: "refused" or "accepted"; anything that is raised is a raw
error. `fuzz_files.py` counts them. It knows both files' formats. Ours.
"""

from __future__ import annotations

import contextlib
import io
import math
import random
from pathlib import Path

import torch
from mutants import tensor_file, tensor_mutant

from dit_accel.cli.common import tables
from dit_accel.models import miniature
from dit_accel.planning import learned, learned_file, profile_file, selection
from dit_accel.planning.choice import describe
from dit_accel.planning.first_run import profile_of_gram
from dit_accel.planning.plan import SamplerCoefficients
from dit_accel.planning.profile import Profile, ProfileError


def profile(rng: random.Random, folder: Path) -> str:
    """Try a mutant of a profile, and make plans if it is accepted."""
    head, data = tensor_file(miniature.path() / "dit-accel-profile.safetensors")
    path = folder / "a.safetensors"
    path.write_bytes(tensor_mutant(head, data, rng, fixed=("levels",)))
    try:
        found = Profile.load(path)
    except ProfileError:
        return "refused"
    use_profile(found, rng)
    return "accepted"


def use_profile(found: Profile, rng: random.Random) -> None:
    """Its table, and a plan of it as `plan` shows it."""
    with contextlib.redirect_stdout(io.StringIO()):
        tables.print_table(tables.candidate_table(found))
    run = found.sampler
    if rng.random() < 0.05:  # a transferred plan needs a search
        steps = torch.linspace(1000, 20, 30, dtype=torch.float64)
        run = SamplerCoefficients(torch.full((30,), -1 / 30).double(), steps, run.branch_weights)
    use_plan(found, run, rng)


def use_plan(found: Profile, run: SamplerCoefficients, rng: random.Random) -> None:
    target = rng.choice((selection.Target(quality=32.0), selection.Target(speedup=3.0)))
    choice = None
    with contextlib.suppress(ValueError):  # the profile has no plan for this target
        choice = selection.choose(found, run, target)
    if choice is not None:
        expected = choice.prediction
        if math.isnan(expected.psnr_db + expected.low_db) or "nan" in describe(choice):
            raise AssertionError(f"predicts {expected}")


_LEARNED: list[bytes] = []


def written(folder: Path) -> bytes:
    """The content of a file that runs of the miniature could have written."""
    if not _LEARNED:
        own = Profile.load(miniature.path() / "dit-accel-profile.safetensors")
        found = learned.Learned(own.key)
        for numbers in (15_360, 15_360, 61_440):
            kind = learned.RunKind(own.sampler, 4.0, numbers)
            found = found.with_run(learned.Observations(kind, 1, own.gram[0].double()))
        for at in range(3):
            found = found.with_measured(learned.Measured(f"a{at}", learned.KINDS[1], 30.0, 31.0))
        learned_file.save(folder / "learned.safetensors", found)
        _LEARNED.append((folder / "learned.safetensors").read_bytes())
    return _LEARNED[0]


def learned_mutant(rng: random.Random, folder: Path) -> str:
    """Try a mutant. Half of them get the right digest, so that later checks are tested too."""
    whole, path = written(folder), folder / "a.safetensors"
    path.write_bytes(whole)
    path.write_bytes(tensor_mutant(*tensor_file(path), rng))
    sealed = rng.random() < 0.5 and seal(path)
    try:
        found = learned_file.load(path)
    except ProfileError as error:
        if str(path) not in str(error):
            raise AssertionError(f"names no file: {error}") from error
        found = None
    if found is None:
        return "refused"
    if not sealed:
        learned_file.save(path, found)
        if path.read_bytes() != whole:
            raise AssertionError("a changed file was accepted as it is")
        return "accepted"
    for one in found.observations:
        made = profile_of_gram(one.products / one.clips, one.kind.sampler, found.key)
        if rng.random() < 0.2:
            use_plan(made, made.sampler, rng)
    return "accepted"


def seal(path: Path) -> bool:
    """Give a file the digest of its content. Returns whether it could be read so far."""
    try:
        head, tensors = profile_file.read(path, learned_file.LEARNED_FORMAT)
        own = {k: v for k, v in head.value.items() if k not in ("digest", "format", "version")}
        own["digest"] = learned_file.digest_of(own, tensors.tensors)
        profile_file.write(path, own, tensors.tensors, form=learned_file.LEARNED_FORMAT)
    except (ValueError, TypeError, AttributeError, RuntimeError):
        return False
    return True
