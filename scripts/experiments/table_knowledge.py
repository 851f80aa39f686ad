"""Measures what a user gets without any data on a model, and after some clips.

    python scripts/experiments/table_knowledge.py MODEL[=PROFILE]... --output knowledge.jsonl

It uses the public interface: `accelerate(pipe, speedup=...)` or `quality=`, with a separate cache
of learnt runs for each row. The shipped prior must not contain the model, and the model's folder
must have no profile; the profile after "=" is for the rows of its own clips. Goes in: folders of
models. Comes out: one row in each line; existing rows are not run again. A state has the name of
the runs behind it:

    prior                  none
    N references           N clips of other prompts, computed whole and recorded, one a call
    calibrated, N clips    `calibrate` with minutes for plans on N clips of other prompts, and for
                           probes of the start of four; "from M", where their first is not the
                           first of these; "without probes", with `--no-probes`
    own clips              the profile

Scored clips run in one batch, without a guard. A plan that depends on the text is that of the
hardest prompt. Scores are the PSNR of the frames in 8 bits against the uncached ones.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from table_first_clip import Model, Rows

from dit_accel import accelerate, recorded
from dit_accel.caching.learning import learning_of
from dit_accel.calibration import calibrate as calibrating
from dit_accel.calibration.calibrate import CalibrationRun
from dit_accel.core.generation import ClipSpec
from dit_accel.evaluation.prompts import read_prompts
from dit_accel.planning.lookup import PROFILE_FILE
from dit_accel.planning.prior import Prior
from dit_accel.planning.profile import Profile

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ROOT / "assets/prompts"
REFERENCES = (0, 1, 2, 4)  # uncached clips that were recorded
CALIBRATED = (1, 2, 4)  # clips
FIRST_SEED = 5000  # of the clips that are learnt from
TEACHING = 17  # number of their prompts
Target = dict[str, float]


class FewClips(CalibrationRun):
    """A calibration whose minutes are over after plans on some clips."""

    def __init__(self, pipe: Any, clips: list[ClipSpec], number: int) -> None:
        super().__init__(pipe, clips, minutes=1e6)
        self.number = number

    def _pays(self, place: int) -> bool:
        return place < self.number


class Subject:
    """A model, its scored clips, and the prompts that are learnt from."""

    def __init__(self, given: str, prompts: list[str], teaching: list[str], device: str) -> None:
        self.model = Model(given, None, prompts)
        self.profile = given.partition("=")[2] or None
        self.model.pipe.to(device)
        self.name, self.steps, self.teaching = self.model.name, self.model.steps, teaching
        self.uncached = in_bytes(self.model.clips())

    def teach(self, number: int) -> None:
        """Make an uncached clip and learn from it."""
        pipe = self.model.pipe
        seed = torch.Generator().manual_seed(FIRST_SEED + number)
        given = {"prompt": self.teaching[number], "generator": seed, "output_type": "latent"}
        call = self.model.call | given
        with recorded(pipe) as reference:
            pipe(**call)
        learning = learning_of(pipe)
        if learning is None or reference.run.profile is None:
            raise RuntimeError("the reference teaches nothing")
        learning.add_whole(reference.run)

    def calibrated(self, clips: int, first: int = 0) -> Profile:
        """The profile that `calibrate` measures with minutes for plans on this number of clips.

        There is one clip in each call.
        """
        call = self.model.call
        specs = [
            ClipSpec(
                prompt, None, FIRST_SEED + number, call["num_inference_steps"],
                call["guidance_scale"], call["height"], call["width"], call["num_frames"],
                max_sequence_length=call.get("max_sequence_length"),
            )
            for number, prompt in list(enumerate(self.teaching))[first:]
        ]  # fmt: skip
        return FewClips(self.model.pipe, specs, clips).run()

    def score(self, target: Target, **settings: Any) -> dict[str, Any]:
        with accelerate(self.model.pipe, **target, guard=False, **settings) as handle:
            clips = in_bytes(self.model.clips())
            report = handle.report()
        errors = (clips - self.uncached).square().flatten(1).mean(1).clamp_min(1e-12)
        predicted = report.prediction or {}
        return {
            "computed": report.steps_computed, "predicted_db": predicted.get("psnr_db"),
            "low_db": predicted.get("low_db"), "high_db": predicted.get("high_db"),
            "basis": predicted.get("basis"), "psnr_db": (-10 * errors.log10()).tolist(),
        }  # fmt: skip


def in_bytes(frames: torch.Tensor) -> torch.Tensor:
    """Frames in [0, 1], rounded as in a file."""
    return frames.double().mul(255).round() / 255


@contextmanager
def cache() -> Iterator[None]:
    """An empty cache for learnt data."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DIT_ACCEL_CACHE"] = folder
        yield


def table(
    subject: Subject, target: Target, references: list[int], calibrated: dict[str, Profile],
    rows: Rows,
) -> None:  # fmt: skip
    """Make all states of one target."""
    ((name, value),) = target.items()
    said, known = f"{name} {value:.4g}", sorted(Prior.load().models)

    def add(source: str, runs: float, **settings: Any) -> None:
        row = {"model": subject.name, "source": source, "target": said, "runs": runs,
               "prior": known}  # fmt: skip
        if not any(row.items() <= other.items() for other in rows.all):
            rows.add(**row | subject.score(target, **settings))

    with cache():
        made = 0
        for count in references:
            for number in range(made, count):
                subject.teach(number)
            made = max(made, count)
            add("prior" if not count else f"{count} reference{'s' * (count > 1)}", float(count))
    for source, profile in calibrated.items():
        add(source, profile.metadata["cost_runs"], profile=profile, learn=False)
    if subject.profile:
        add("own clips", 0, profile=subject.profile, learn=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL[=PROFILE]")
    parser.add_argument("--computed", type=int, nargs="*", default=[20, 13, 25, 17, 10])
    parser.add_argument("--quality", type=float, nargs="*", default=[28, 32, 36])
    parser.add_argument("--references", type=int, nargs="*", default=list(REFERENCES))
    parser.add_argument("--calibrated", type=int, nargs="*", default=list(CALIBRATED))
    parser.add_argument("--first", type=int, default=0, help="of the prompts of `--calibrated`")
    parser.add_argument("--no-probes", action="store_true", help="of `--calibrated`")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--file", type=Path, default=PROMPTS / "miniature.jsonl")
    parser.add_argument("--teaching", type=Path, default=PROMPTS / "calibration.jsonl")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.no_probes:
        calibrating.START_CLIPS = 0
    prompts = [one.prompt for one in read_prompts(given.file)][: given.prompts]
    teaching = [one.prompt for one in read_prompts(given.teaching)][-TEACHING:]
    rows, known = Rows(given.output), set(Prior.load().models)
    for name in given.models:
        folder = Path(name.partition("=")[0])
        if folder.name in known:
            raise ValueError(f"the prior that ships is made of {folder.name}, too")
        if (folder / PROFILE_FILE).exists():
            raise ValueError(f"{folder} has a profile; give a copy without it")
        subject = Subject(name, prompts, teaching, given.device)
        with cache():
            first = given.first
            profiles = {
                f"calibrated, {clips} clips" + (f" from {first}" if first else "")
                + (", without probes" if given.no_probes else ""):
                subject.calibrated(clips, first) for clips in given.calibrated
            }  # fmt: skip
        targets = [{"speedup": subject.steps / count} for count in given.computed]
        for target in [*targets, *({"quality": q} for q in given.quality)]:
            table(subject, target, sorted(given.references), profiles, rows)


if __name__ == "__main__":
    main()
