"""Counts raw errors on mutated files: each file must be read, or refused with its name.

    nice python scripts/experiments/fuzz_files.py --count 10000
    python scripts/experiments/fuzz_files.py --sorts profile result --count 300

Sorts: `profile`; `learned`, what was learnt from runs; `manifest`, `result` and `journal` of an
evaluation; `work`, the folder of a calibration; `layout`; `prompts`; `model`, the JSON files of a
model's folder. From an accepted file, the output of a command is made: plans, tables, sometimes a
page. The name of a mutant is its sort and number: `--sorts profile --first 123 --count 1` makes it
again. Ours.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from fuzz_profiles import learned_mutant, profile
from mutants import change_bytes, json_mutant

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from fake_run import fake_plan, fake_run  # noqa: E402

from dit_accel import layout  # noqa: E402
from dit_accel.calibration.checkpoint import Checkpoint  # noqa: E402
from dit_accel.cli.common import tables  # noqa: E402
from dit_accel.cli.common.errors import BadInput  # noqa: E402
from dit_accel.evaluation import statistics  # noqa: E402
from dit_accel.evaluation.html.page import render  # noqa: E402
from dit_accel.evaluation.prompts import read_prompts  # noqa: E402
from dit_accel.evaluation.store import Store, StoreError  # noqa: E402
from dit_accel.evaluation.summary import summarise  # noqa: E402
from dit_accel.layout import LayoutError  # noqa: E402
from dit_accel.models import miniature  # noqa: E402
from dit_accel.models.folder import ModelError, inspect_folder  # noqa: E402
from dit_accel.planning.plan import SamplerCoefficients  # noqa: E402

Trial = Callable[[random.Random, Path], str]  # "refused", "accepted"; or raises a raw error


_RUN: list[Path] = []


def evaluation(folder: Path) -> Path:
    """A folder of an evaluation, made once."""
    if not _RUN:
        few = ("uncached", "edcw:0.1", "diffusers/faster-cache:2", "fewer-steps:6", "rerun")
        _RUN.append(fake_run(folder / "run", fake_plan(2, few)).folder)
    return _RUN[0]


def of_evaluation(name: str) -> Trial:
    def trial(rng: random.Random, folder: Path) -> str:
        run = evaluation(folder)
        path = rng.choice(sorted(run.glob(name)))
        whole = path.read_bytes()
        try:
            if name.endswith(".jsonl"):
                path.write_bytes(change_bytes(whole, rng))
                Store(run).journal()
                return "accepted"
            path.write_bytes(json_mutant(json.loads(whole), rng))
            return use_evaluation(Store(run), rng)
        except StoreError as error:
            if str(run) not in str(error):
                raise AssertionError(f"names no file: {error}") from error
            return "refused"
        finally:
            path.write_bytes(whole)

    return trial


def use_evaluation(store: Store, rng: random.Random) -> str:
    spec = store.spec()
    summary = summarise(store.results(spec))
    with contextlib.redirect_stdout(io.StringIO()):
        tables.print_table(tables.summary_table(summary, spec.metrics))
    json.dumps(summary.to_dict(), allow_nan=False)
    if rng.random() < 0.02:
        render(store, spec).encode()
    return "accepted"


PIECE = SamplerCoefficients(torch.ones(3).double(), torch.arange(3, 0, -1).double(), (1.0, -3.0))


class _Work(Checkpoint):
    """A checkpoint without a pipeline."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds = folder, {}


def work(rng: random.Random, folder: Path) -> str:
    """A piece: the stored one, or made again."""
    where = folder / "work"
    where.mkdir(exist_ok=True)
    checkpoint = _Work(where)
    checkpoint.get("sampler", lambda: PIECE)
    (path,) = where.glob("*.pt")
    path.write_bytes(change_bytes(path.read_bytes(), rng))
    made: list[int] = []
    found = checkpoint.get("sampler", lambda: made.append(1) or PIECE)
    same = torch.equal(found.timesteps, PIECE.timesteps) and found.branch_weights == (1.0, -3.0)
    if not same:
        raise AssertionError("a damaged piece was used")
    return "refused" if made else "accepted"


LAYOUTS = [
    yaml.safe_load(path.read_text("utf-8"))
    for path in sorted((ROOT / "assets" / "layouts").glob("*.yaml"))
]


def layouts(rng: random.Random, folder: Path) -> str:
    path = folder / rng.choice(("a.json", "a.yaml"))
    path.write_bytes(json_mutant(rng.choice(LAYOUTS), rng))
    try:
        layout.load(path)
    except LayoutError:
        return "refused"
    return "accepted"


def prompts(rng: random.Random, folder: Path) -> str:
    rows = [{"id": f"p{i}", "prompt": f"a circle {i}", "negative": "é"} for i in range(4)]
    suffix = rng.choice((".jsonl", ".txt", ".json"))
    path = folder / f"a{suffix}"
    if suffix == ".jsonl":
        content = b"\n".join(json_mutant(row, rng) for row in rows)
    elif suffix == ".txt":
        content = change_bytes("\n".join(row["prompt"] for row in rows).encode(), rng)
    else:
        content = json_mutant([{"prompt_en": row["prompt"]} for row in rows], rng)
    path.write_bytes(content)
    try:
        for found in read_prompts(path):
            found.prompt.encode()
    except ValueError as error:
        if str(path) not in str(error):
            raise AssertionError(f"names no file: {error}") from error
        return "refused"
    return "accepted"


def model(rng: random.Random, folder: Path) -> str:
    from dit_accel.cli.run import settings
    from dit_accel.cli.run.known import scheduler_of

    where = folder / "model"
    if not where.exists():
        shutil.copytree(miniature.path(), where, ignore=shutil.ignore_patterns("dit-accel-*"))
        index = {"metadata": {}, "weight_map": {"a": "model.safetensors"}}
        text = json.dumps(index)
        (where / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
        (where / "transformer" / "model.safetensors").touch()
    names = ("model_index.json", "generation_defaults.json", "transformer/config.json",
             "vae/config.json", "scheduler/scheduler_config.json",
             "transformer/diffusion_pytorch_model.safetensors.index.json")  # fmt: skip
    path = where / rng.choice(names)
    whole = path.read_bytes()
    try:
        path.write_bytes(json_mutant(json.loads(whole), rng))
        found = inspect_folder(where, name="a")
        settings.call_parameters(found)
        settings.folder_defaults(found)
        strides = settings.read_strides(found)
        settings.check_sizes(strides, 64, 64, 17)
        settings.latent_pixels(found)
        scheduler_of(found)
    except (ModelError, BadInput):
        return "refused"
    except Exception as error:
        if type(error).__name__ == "RunFailed":
            return "refused"
        raise
    finally:
        path.write_bytes(whole)
    return "accepted"


SORTS: dict[str, Trial] = {
    "profile": profile,
    "learned": learned_mutant,
    "manifest": of_evaluation("manifest.json"),
    "result": of_evaluation("jobs/*.json"),
    "journal": of_evaluation("journal.jsonl"),
    "work": work,
    "layout": layouts,
    "prompts": prompts,
    "model": model,
}


def fuzz(sort: str, count: int, first: int = 0) -> Counter[str]:
    """The numbers of mutants of a sort that were accepted, refused, and ended in a raw error."""
    found: Counter[str] = Counter(accepted=0, refused=0, raw=0)
    _RUN.clear()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, first + count):
            rng = random.Random(f"{sort} {number}")
            try:
                found[SORTS[sort](rng, Path(folder))] += 1
            except Exception as error:
                found["raw"] += 1
                print(f"{sort} {number}: {type(error).__name__}: {str(error)[:300]}")
                if found["raw"] <= 3:
                    traceback.print_exc(limit=-3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sorts", nargs="+", choices=SORTS, default=list(SORTS))
    parser.add_argument("--count", type=int, default=300, help="mutants of each sort")
    parser.add_argument("--first", type=int, default=0, help="the number of the first mutant")
    given = parser.parse_args()
    torch.set_num_threads(1)
    statistics.RESAMPLES = 50  # intervals are slow, and are not tested here
    rows = []
    for sort in given.sorts:
        began = time.monotonic()
        found = fuzz(sort, given.count, given.first)
        seconds = time.monotonic() - began
        rows.append(f"| {sort} | {given.count} | {found['accepted']} | {found['refused']} | "
                    f"{found['raw']} | {seconds:.0f} |")  # fmt: skip
        print(rows[-1], flush=True)
    heads = ("sort", "mutants", "accepted", "refused", "raw errors", "seconds")
    print("\n| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    print("\n".join(rows))


if __name__ == "__main__":
    main()
