"""Batch evaluation on a tiny real pipeline: results, resume, claims, statuses, and bad input."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from typer.testing import CliRunner

from dit_accel.cli.app import app
from dit_accel.evaluation import statistics
from dit_accel.evaluation.methods import LISTED, METHODS, parse, parse_list
from dit_accel.evaluation.prompts import read_prompts
from dit_accel.evaluation.store import Store, StoreError
from dit_accel.evaluation.summary import paired, summarise
from dit_accel.planning.learned_file import load

SIZE = ["--height", "16", "--width", "16", "--frames", "9", "--steps", "8", "--guidance", "4"]
PROMPTS = ("a red circle moving right", "a blue square moving left", "the green triangle")
METHODS_RUN = "uncached,edcw:9,edcw:0,fewer-steps:2,diffusers/pab:2"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny.tiny_wan().save_pretrained(folder)
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [{"id": f"p{i}", "prompt": text} for i, text in enumerate(PROMPTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(prompts: Path, model: Path, out: Path, *more: str) -> list[str]:
    return ["evaluate", str(prompts), "--model", str(model), "--out", str(out), *SIZE, *more]


def evaluate(prompts: Path, model: Path, out: Path, *more: str) -> Any:
    wide = {"COLUMNS": "200"}
    return CliRunner().invoke(
        app, command(prompts, model, out, *more), env=wide, catch_exceptions=False
    )


def results(out: Path) -> dict[str, Any]:
    """Every result without the moment it was made in, as bytes."""
    found = {}
    for path in sorted((out / "jobs").glob("*.json")):
        content = json.loads(path.read_text())
        del content["clock"]
        found[path.stem] = json.dumps(content, sort_keys=True)
    return found


def needs(*methods: str) -> None:
    for name in methods:
        lacking = METHODS[name].lacking()
        if lacking:
            pytest.skip(lacking)


def statuses(out: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in (out / "jobs").glob("*.json"):
        content = json.loads(path.read_text())
        found.setdefault(content["job"]["method"], set()).add(content["status"])
    return found


# what comes out


def test_a_run_scores_every_method_and_says_what_had_no_effect(prompts, model, tmp_path):
    needs("diffusers/taylor-seer", "diffusers/faster-cache")
    out = tmp_path / "a"
    methods = "edcw:9,edcw:0,fewer-steps:2,diffusers/taylor-seer:3,diffusers/faster-cache:2"
    run = evaluate(prompts, model, out, "--methods", methods)
    assert run.exit_code == 0, run.output
    assert statuses(out) == {
        "uncached": {"ok"},
        "edcw:9": {"ok"},
        "edcw:0": {"no effect"},
        "fewer-steps:2": {"ok"},
        "diffusers/taylor-seer:3": {"no effect"},  # its default names no module of Wan
        "diffusers/faster-cache:2": {"failed"},  # it expects both branches in one batch
    }
    assert "no effect" in run.output and "failed" in run.output
    assert "diffusers/faster-cache:2: IndexError" in run.stdout
    assert "clips failed; --retry-failed tries again" in run.stderr
    rows = {row.label: row for row in summarise(Store(out).results()).rows}
    assert rows["edcw:0"].scores["psnr_db"].value == 100
    assert rows["edcw:0"].exact_frames == rows["edcw:0"].frames == 27
    assert rows["edcw:0"].flops_kept.value == 1
    assert rows["fewer-steps:2"].flops_kept.value == pytest.approx(0.25)
    assert rows["fewer-steps:2"].steps_computed.value == 2
    assert 0 < rows["edcw:9"].flops_kept.value < 1
    assert rows["edcw:9"].scores["ssim"].value < 1
    assert "IndexError" in rows["diffusers/faster-cache:2"].errors[0]


def test_after_a_failure_the_next_method_runs_on_a_clean_pipeline(prompts, model, tmp_path):
    needs("diffusers/faster-cache")
    one, other = tmp_path / "one", tmp_path / "other"
    evaluate(prompts, model, one, "--methods", "diffusers/faster-cache:2,edcw:9,rerun")
    evaluate(prompts, model, other, "--methods", "edcw:9,rerun")
    alone, after = results(other), results(one)
    assert alone.items() <= after.items()


def test_the_uncached_reference_is_made_once_and_the_flops_are_those_dispatched(
    prompts, model, tmp_path
):
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    evaluate(prompts, model, tmp_path / "a", "--methods", "edcw:9", "--limit", "1")
    lines = (tmp_path / "a" / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["begin", "end"] * 2
    uncached = next(
        r for r in map(json.loads, results(tmp_path / "a").values()) if not r["reference"]
    )
    transformer = tiny.tiny_wan().transformer
    inputs = {
        "hidden_states": torch.zeros(1, 16, 3, 2, 2),
        "timestep": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, 512, tiny.TEXT_WIDTH),
    }
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        transformer(**inputs)
    assert uncached["flops"] == [2 * counter.get_total_flops()] * 8
    assert all(calls == [2] * 8 for calls in uncached["computed"].values())


def test_uncached_references_teach_and_their_results_are_the_same(
    prompts, model, tmp_path, monkeypatch
):
    one, other = tmp_path / "one", tmp_path / "other"
    evaluate(prompts, model, one, "--methods", "edcw:9", "--limit", "1")
    monkeypatch.setenv("DIT_ACCEL_CACHE", str(tmp_path))
    assert not (tmp_path / "learned").exists()
    monkeypatch.delenv("DIT_ACCEL_NO_LEARN")
    evaluate(prompts, model, other, "--methods", "edcw:9", "--limit", "1")
    assert results(one) == results(other)  # FLOPs by step among them
    (path,) = (tmp_path / "learned").glob("*.safetensors")
    (whole,) = load(path).observations
    assert whole.clips == 1 and whole.kind.sampler.num_steps == 8


def test_the_noise_floor_flags_what_is_as_close_as_a_rerun(prompts, model, tmp_path):
    out = tmp_path / "a"
    run = evaluate(prompts, model, out, "--methods", "edcw:0,fewer-steps:2", "--noise-floor")
    assert run.exit_code == 0, run.output
    summary = summarise(Store(out).results())
    rows = {row.label: row for row in summary.rows}
    assert rows["rerun"].scores["psnr_db"].value == 100
    assert summary.floor["psnr_db"][0] == "rerun/dtype"
    assert summary.floor["psnr_db"][1] < 100
    assert rows["edcw:0"].in_floor["psnr_db"]
    assert not rows["fewer-steps:2"].in_floor["psnr_db"]


def test_a_batch_of_two_seeds_pairs_each_with_its_own_reference(prompts, model, tmp_path):
    evaluate(prompts, model, tmp_path / "a", "--methods", "edcw:0", "--seeds", "0,7")
    found = [json.loads(text) for text in results(tmp_path / "a").values()]
    assert len(found) == 12
    uncached = {r["id"]: r for r in found if r["reference"] is None}
    for result in (r for r in found if r["reference"]):
        assert result["job"]["clip"]["seed"] == uncached[result["reference"]]["job"]["clip"]["seed"]
        assert result["frames_sha256"] == uncached[result["reference"]]["frames_sha256"]


# it survives


def test_resuming_makes_nothing_again_and_adds_what_is_new(prompts, model, tmp_path):
    out = tmp_path / "a"
    evaluate(prompts, model, out, "--methods", "edcw:9", "--limit", "2")
    before = {path.name: path.stat().st_mtime_ns for path in (out / "jobs").iterdir()}
    run = evaluate(prompts, model, out, "--methods", "fewer-steps:2")
    assert "4 of 9 clips are there already" in run.stderr
    after = {path.name: path.stat().st_mtime_ns for path in (out / "jobs").iterdir()}
    assert before.items() <= after.items()
    assert len(after) == 9  # 3 prompts x (uncached, edcw, fewer steps)


def start(words: list[str]) -> multiprocessing.context.ForkProcess:
    """The command in a process of its own, which need not load the packages (seconds)."""
    process = multiprocessing.get_context("fork").Process(target=run_and_exit, args=(words,))
    process.start()
    return process


def run_and_exit(words: list[str]) -> None:
    os._exit(CliRunner().invoke(app, words).exit_code)


@pytest.mark.slow
def test_two_processes_share_a_folder_and_do_nothing_twice(prompts, model, tmp_path):
    """Started with the same command, at the same time; both end when all is done."""
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    evaluate(prompts, model, whole, "--methods", METHODS_RUN)
    words = command(prompts, model, shared, "--methods", METHODS_RUN)
    processes = [start(words) for _ in range(2)]
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    assert results(shared) == results(whole)
    for job, result in results(shared).items():  # raises where the frames are not those
        Store(shared).read_clip(job, json.loads(result)["frames_sha256"])
    entries = [json.loads(line) for line in (shared / "journal.jsonl").read_text().splitlines()]
    begun = [entry["job"] for entry in entries if entry["event"] == "begin"]
    assert sorted(begun) == sorted(results(whole)), "each job was begun once"
    assert len({entry["pid"] for entry in entries}) == 2
    assert [path.name for path in (shared / "claims").iterdir()] == [".lock"]


@pytest.mark.slow
def test_killed_at_any_moment_it_loses_nothing_and_does_nothing_twice(prompts, model, tmp_path):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    assert evaluate(prompts, model, calm, "--methods", METHODS_RUN).exit_code == 0
    draw = random.Random(0)
    words = command(prompts, model, killed, "--methods", METHODS_RUN)
    for _ in range(3):
        before = len(results(killed)) if killed.exists() else 0
        process = start(words)
        deadline = time.monotonic() + 120
        wanted = before + draw.randint(1, 4)
        while process.is_alive() and time.monotonic() < deadline:
            if killed.exists() and len(list((killed / "jobs").glob("*.json"))) >= wanted:
                time.sleep(draw.random() * 0.2)  # into the middle of some job
                process.kill()
        process.join()
        assert len(results(killed)) > before
    process = start(words)
    process.join(300)
    assert process.exitcode == 0
    assert results(killed) == results(calm)
    finished = set()
    for line in (killed / "journal.jsonl").read_text().splitlines():
        entry = json.loads(line)
        assert entry["job"] not in finished
        if entry["event"] == "end":
            finished.add(entry["job"])


@pytest.mark.slow
def test_a_local_ray_cluster_equals_one_run(prompts, model, tmp_path):
    pytest.importorskip("ray")
    alone, cluster = tmp_path / "alone", tmp_path / "cluster"
    evaluate(prompts, model, alone, "--methods", "edcw:9")
    run = evaluate(
        prompts, model, cluster, "--methods", "edcw:9", "--backend", "ray", "--workers", "2"
    )
    assert run.exit_code == 0, run.output
    assert results(cluster) == results(alone)
    pids = {
        json.loads(line)["pid"] for line in (cluster / "journal.jsonl").read_text().splitlines()
    }
    assert len(pids) == 2 and os.getpid() not in pids


@pytest.mark.slow
def test_cache_dit_runs_in_a_process_of_its_own(prompts, model, tmp_path):
    needs("cache-dit/dbcache")
    run = evaluate(
        prompts, model, tmp_path / "a", "--methods", "cache-dit/dbcache:0.5", "--limit", "1"
    )
    assert run.exit_code == 0, run.output
    from diffusers import WanPipeline

    assert "cache_dit" not in WanPipeline.__call__.__module__
    lines = (tmp_path / "a" / "journal.jsonl").read_text().splitlines()
    assert len({json.loads(line)["pid"] for line in lines}) == 2
    found = {r["job"]["method"]: r for r in map(json.loads, results(tmp_path / "a").values())}
    assert found["cache-dit/dbcache:0.5"]["status"] in ("ok", "no effect")
    assert "cache-dit" in found["cache-dit/dbcache:0.5"]["job"]["versions"]
    assert "cache-dit" not in found["uncached"]["job"]["versions"]


def test_peers_that_need_it_are_calibrated_once(prompts, model, tmp_path):
    needs("diffusers/mag-cache")
    out = tmp_path / "a"
    run = evaluate(prompts, model, out, "--methods", "diffusers/mag-cache:*")
    assert run.exit_code == 0, run.output
    ratios = json.loads((out / "calibration" / "mag-cache-8.json").read_text())
    assert len(ratios) == 8 and ratios[0] == 1
    assert statuses(out)["diffusers/mag-cache:0.06"] <= {"ok", "no effect"}


# bad input


def test_a_clip_that_was_damaged_is_named_and_nothing_is_lost(prompts, model, tmp_path):
    out = tmp_path / "a"
    evaluate(prompts, model, out, "--methods", "edcw:9", "--limit", "1")
    before = results(out)
    uncached = next(r for r in map(json.loads, before.values()) if r["reference"] is None)
    clip = out / "clips" / f"{uncached['id']}.mkv"
    clip.write_bytes(clip.read_bytes()[:200])
    run = evaluate(prompts, model, out, "--methods", "fewer-steps:2", "--limit", "1")
    assert run.exit_code == 2
    assert f"clips/{uncached['id']}.mkv" in run.stderr and "delete jobs/" in run.stderr
    assert results(out) == before
    (out / "jobs" / f"{uncached['id']}.json").unlink()
    assert evaluate(prompts, model, out, "--limit", "1").exit_code == 0
    assert before.items() <= results(out).items()


def test_results_of_another_version_or_half_a_file_are_refused_by_name(prompts, model, tmp_path):
    out = tmp_path / "a"
    evaluate(prompts, model, out, "--methods", "edcw:9", "--limit", "1")
    job = next((out / "jobs").iterdir())
    whole = job.read_text()
    job.write_text(whole[: len(whole) // 2])
    run = evaluate(prompts, model, out, "--methods", "edcw:9", "--limit", "1")
    assert run.exit_code == 2 and job.name in run.stderr and "delete it" in run.stderr
    job.write_text(json.dumps(json.loads(whole) | {"format": 99}))
    run = evaluate(prompts, model, out, "--methods", "edcw:9", "--limit", "1")
    assert run.exit_code == 2 and "made by another version" in run.stderr


def test_other_settings_in_the_same_folder_are_refused_with_the_difference(
    prompts, model, tmp_path
):
    out = tmp_path / "a"
    evaluate(prompts, model, out, "--limit", "1", "--methods", "edcw:9")
    run = evaluate(prompts, model, out, "--limit", "1", "--methods", "edcw:9", "--guidance", "2")
    assert run.exit_code == 2
    assert "clip guidance (4.0 before, 2.0 now)" in run.stderr


def test_a_disk_that_is_full_ends_it_and_keeps_what_is_done(prompts, model, tmp_path, monkeypatch):
    out = tmp_path / "a"
    write, calls = Store.write_result, []

    def full(self: Store, job: str, result: Any) -> None:
        calls.append(job)
        if len(calls) == 3:
            raise OSError(28, "No space left on device", str(out / "jobs"))
        write(self, job, result)

    monkeypatch.setattr(Store, "write_result", full)
    run = evaluate(prompts, model, out, "--methods", "edcw:9,fewer-steps:2", "--limit", "1")
    assert run.exit_code == 1
    assert "No space left on device; what is done is saved" in run.stderr
    assert len(results(out)) == 2
    monkeypatch.undo()
    assert evaluate(prompts, model, out, "--methods", "edcw:9", "--limit", "1").exit_code == 0


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": 3}\n', "line 2: prompt is 3"),
        ("a.jsonl", '{"prompt": "x"}\n\n{nonsense\n', "line 3: not JSON"),
        ("a.jsonl", '{"text": "x"}\n', "line 1: {'text': 'x'}; accepted: an object with prompt"),
        ("a.jsonl", '{"id": "../x", "prompt": "x"}\n', "line 1: id is '../x'"),
        ("a.jsonl", '{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}', "earlier prompt"),
        ("a.json", '[{"prompt": "x"}]', "entry 1"),
        ("a.txt", "\n\n", "has no prompt; accepted: at least one"),
        ("a.csv", "x", "ends in '.csv'; accepted: .jsonl, .txt, .json"),
    ],
)
def test_a_malformed_prompt_file_is_named_with_the_line(tmp_path, name, text, expected):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_prompts(path)
    assert expected in str(error.value) and str(path) in str(error.value)


def test_plain_text_and_vbench_lists_are_read_and_a_line_that_comes_twice_counts_once(tmp_path):
    (tmp_path / "a.txt").write_text("a cat\n\na dog\na cat\n")
    (tmp_path / "a.json").write_text(
        json.dumps([{"prompt_en": "a cat", "dimension": ["x"]}, {"prompt_en": "a dog"}])
    )
    plain, vbench = read_prompts(tmp_path / "a.txt"), read_prompts(tmp_path / "a.json")
    assert [p.prompt for p in plain] == ["a cat", "a dog"]
    assert plain == vbench


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--methods", "magic:1"], "method is 'magic'; accepted: uncached, edcw"),
        (["--methods", "edcw:lots"], "threshold δ: a number, at least 0"),
        (["--methods", "fewer-steps:2.5"], "steps: a whole number from 1"),
        (["--methods", "uncached:1"], "takes no number"),
        (["--methods", "fewer-steps:8"], "method is 'fewer-steps:8'; accepted: below the 8 steps"),
        (["--methods", ","], "methods is ','"),
        (["--metrics", "psnr_db,beauty"], "--metrics has 'beauty'; accepted: psnr_db"),
        (["--seeds", "0,x"], "--seeds is '0,x'"),
        (["--backend", "mpi"], "--backend is 'mpi'; accepted: local or ray"),
        (["--height", "17"], "--height is 17"),
    ],
)
def test_bad_options_are_named_before_any_work(prompts, model, tmp_path, options, expected):
    run = evaluate(prompts, model, tmp_path / "a", *options)
    assert run.exit_code == 2
    assert expected in run.stderr
    assert not (tmp_path / "a").exists()


def test_prompts_that_are_cut_to_one_text_are_said_and_counted_once(tmp_path):
    long = "a red circle " * 200
    path = tmp_path / "long.txt"
    path.write_text(f"{long}one\n{long}two\na blue square\n")
    out = tmp_path / "a"
    words = ["evaluate", str(path), "--output", str(out), "--methods", "fewer-steps:2"]
    words += ["--steps", "8", "--height", "16", "--width", "16", "--frames", "5"]
    run = CliRunner().invoke(app, words, catch_exceptions=False)
    assert run.exit_code == 0, run.output
    assert "2 of 3 prompts are cut off" in run.stderr
    assert "prompts that are the same for the model are used once" in run.stderr
    assert len(results(out)) == 4  # two prompts by two methods


def test_lines_of_prompts_end_at_newlines_alone(tmp_path):
    prompt = "a circle\u2028and a square\u0085\x0b\x1c, slowly"
    (tmp_path / "a.txt").write_text(f"{prompt}\r\na dog\n", encoding="utf-8", newline="")
    line = json.dumps({"prompt": prompt}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_text(f"{line}\n", encoding="utf-8")
    assert [p.prompt for p in read_prompts(tmp_path / "a.txt")] == [prompt, "a dog"]
    assert [p.prompt for p in read_prompts(tmp_path / "a.jsonl")] == [prompt]


@pytest.mark.parametrize("text", ['{"prompt": "a\\ud800"}', '{"prompt": "a\\u0000b"}', "[" * 9999])
def test_prompts_that_cannot_be_written_are_refused_with_the_line(tmp_path, text):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x"}\n' + text)
    with pytest.raises(ValueError, match="line 2") as error:
        read_prompts(path)
    str(error.value).encode()


def test_a_folder_with_other_files_is_refused_and_left_alone(prompts, model, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("all of it")
    run = evaluate(prompts, model, out)
    assert run.exit_code == 2 and "has other files (thesis.txt)" in run.stderr
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_workers_need_ray(prompts, model, tmp_path):
    run = evaluate(prompts, model, tmp_path / "a", "--workers", "3")
    assert run.exit_code == 2 and "--workers is 3; accepted: with --backend ray" in run.stderr


def test_without_a_terminal_each_job_is_a_line_and_the_table_is_whole(prompts, model, tmp_path):
    narrow = {"COLUMNS": "40"}
    words = command(prompts, model, tmp_path / "a", "--methods", "edcw:9", "--limit", "2")
    run = CliRunner().invoke(app, words, env=narrow, catch_exceptions=False)
    lines = [line for line in run.stderr.splitlines() if " of 4  " in line]
    assert [line.split(",")[0] for line in lines] == [
        "1 of 4  uncached p0", "2 of 4  edcw:9 p0", "3 of 4  uncached p1", "4 of 4  edcw:9 p1",
    ]  # fmt: skip
    row = next(line for line in run.stdout.splitlines() if "edcw:9" in line)
    assert "…" not in run.stdout and row.count("│") >= 7 and len(row) > 70


def test_a_missing_prompt_file_is_named(model, tmp_path):
    run = evaluate(tmp_path / "none.jsonl", model, tmp_path / "a")
    assert run.exit_code == 2
    assert "none.jsonl" in run.stderr and "No such file" in run.stderr


def test_a_folder_that_is_no_evaluation_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"has no evaluation: manifest\.json is"):
        Store(tmp_path).spec()


# parts


def test_methods_parse_with_numbers_defaults_and_sweeps():
    assert parse("edcw").label == "edcw:0.1"
    assert parse("fewer-steps:10").number == 10
    labels = [setting.label for setting in parse_list("uncached, edcw:*,edcw:0.1")]
    assert labels == ["uncached", "edcw:0.05", "edcw:0.1", "edcw:0.2", "edcw:0.4"]
    assert [s.number for s in parse_list("fewer-steps:*", steps=20)] == [15, 10]
    several = parse_list("edcw:0.1,0.2,uncached,diffusers/pab:2,4")
    assert [s.label for s in several] == [
        "edcw:0.1", "edcw:0.2", "uncached", "diffusers/pab:2", "diffusers/pab:4"
    ]  # fmt: skip
    for name, row in METHODS.items():
        assert parse(row.swept()[0].label).method == name


RESEARCH = {"edcw-line", "edcw-parabola", "edcw/block", "edcw/attention", "unicp-paper/no-tail",
            "pcas/slice"}  # fmt: skip


def test_research_rows_are_accepted_by_name_and_not_listed():
    assert set(METHODS) - set(LISTED) == RESEARCH
    assert parse("edcw-line:0.2").label == "edcw-line:0.2"
    with pytest.raises(ValueError, match="accepted: uncached, edcw, unicp-paper, ") as refused:
        parse("magic")
    assert not any(f"{name}," in str(refused.value) for name in RESEARCH)
    for verb in ("evaluate", "bench"):
        said = CliRunner().invoke(app, [verb, "--help"]).output
        assert not any(name in said for name in RESEARCH)


def test_a_difference_names_a_winner_only_when_its_interval_leaves_out_zero():
    draw = np.random.default_rng(0)
    base = draw.normal(30, 4, 40)
    clear = statistics.difference(base + 1 + draw.normal(0, 0.5, 40), base)
    assert clear.low < 1 < clear.high
    assert statistics.verdict(clear, "higher") == "better"
    assert statistics.verdict(clear, "lower") == "worse"
    noise = statistics.difference(base + draw.normal(0, 2, 40), base)
    assert statistics.verdict(noise, "higher") == "undecided"
    few = statistics.difference([2.0, 3.0], [1.0, 1.0])
    assert few.low is None and statistics.verdict(few, "higher") == "undecided"


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(1)
    hits = 0
    for _ in range(60):
        interval = statistics.mean(draw.normal(5, 2, 40))
        hits += interval.low <= 5 <= interval.high
    assert 50 <= hits <= 60  # 57 expected; a 90 % interval would give 54


def test_a_ratio_is_of_sums_and_interpolation_stays_inside():
    assert statistics.ratio([2, 4, 6], [1, 2, 3]).value == 2
    assert statistics.interpolate(0.5, [1.0, 0.0], [10.0, 20.0]) == 15
    assert statistics.interpolate(1.1, [1.0, 0.0], [10.0, 20.0]) is None
    assert statistics.interpolate(0.50007, [0.5, 0.35], [30.0, 20.0]) == 30, "a forecast has a few"
    assert statistics.interpolate(0.52, [0.5, 0.35], [30.0, 20.0]) is None
    assert statistics.interpolate(0.34, [0.5, 0.35], [30.0, 20.0]) is None
    with pytest.raises(ValueError, match="2, 1 values"):
        statistics.ratio([1, 2], [1])


def test_two_methods_are_compared_on_the_prompts_that_both_have(prompts, model, tmp_path):
    out = tmp_path / "a"
    evaluate(prompts, model, out, "--methods", "edcw:0,fewer-steps:2")
    store = Store(out)
    interval, verdict = paired(store.results(), parse("edcw:0"), parse("fewer-steps:2"), "psnr_db")
    assert interval.n == 3 and interval.value > 0
    assert verdict == "better"


def test_a_new_metric_is_scored_on_the_stored_clips_without_making_them_again(
    prompts, model, tmp_path
):
    out = tmp_path / "a"
    methods = ("--methods", "edcw:9,fewer-steps:2", "--limit", "1")
    evaluate(prompts, model, out, *methods, "--metrics", "ssim")
    run = evaluate(prompts, model, out, *methods, "--metrics", "psnr_db,ssim")
    assert "2 clips scored again" in run.stderr
    both = tmp_path / "both"
    evaluate(prompts, model, both, *methods, "--metrics", "ssim,psnr_db")
    assert results(out) == results(both)
    assert len((out / "journal.jsonl").read_text().splitlines()) == 6


def test_the_vbench_export_has_its_names_and_refuses_what_cannot_be_one(prompts, model, tmp_path):
    from dit_accel.core.video import read_video

    out, there = tmp_path / "a", tmp_path / "vbench"
    evaluate(prompts, model, out, "--methods", "edcw:9", "--seeds", "3,5", "--limit", "1")
    run = CliRunner().invoke(app, ["report", str(out), "--vbench", str(there)])
    assert run.exit_code == 0, run.output
    names = sorted(str(path.relative_to(there)) for path in there.rglob("*.mp4"))
    assert names == [
        f"{folder}/{PROMPTS[0]}-{index}.mp4"
        for folder in ("edcw-9", "uncached")
        for index in (0, 1)
    ]
    assert read_video(there / names[0])[0].shape == (9, 16, 16, 3)
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"id": "long", "prompt": "red " * 80}))
    evaluate(long, model, tmp_path / "b", "--methods", "edcw:9")
    run = CliRunner().invoke(app, ["report", str(tmp_path / "b"), "--vbench", str(there)])
    assert run.exit_code == 2 and "prompts long cannot be file names" in run.stderr
    for more in (["--overwrite"], ["--output", "a.html"]):
        run = CliRunner().invoke(app, ["report", str(out), "--vbench", str(there), *more])
        assert run.exit_code == 2 and f"{more[0]} is given" in run.stderr
