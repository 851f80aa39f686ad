"""`dit-accel score` as its user meets it: pairs by id, refuses what is unfair, says why."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from dit_accel.cli.app import app
from dit_accel.cli.score import CONVENTION_NAMES as NAMED
from dit_accel.core import video
from dit_accel.evaluation import pairs
from dit_accel.metrics import METRICS
from dit_accel.metrics.conventions import CONVENTIONS
from dit_accel.metrics.scoring import score_clips


def clip(seed=0, shape=(5, 32, 48, 3)):
    noise = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return np.stack([cv2.GaussianBlur(frame, (9, 9), 2) for frame in noise])


def nudged(frames, levels=4):
    noise = np.random.default_rng(9).integers(-levels, levels + 1, frames.shape)
    return np.clip(frames.astype(int) + noise, 0, 255).astype(np.uint8)


def run(*words):
    known = inspect.signature(CliRunner.__init__).parameters
    options = {"mix_stderr": False} if "mix_stderr" in known else {}
    return CliRunner(**options).invoke(app, ["score", *map(str, words)])


def refused(*words, code=2):
    result = run(*words)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty current folder, and no weights anywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-cache"))
    monkeypatch.delenv("DIT_ACCEL_LPIPS_WEIGHTS", raising=False)
    return tmp_path


@pytest.fixture
def two(here):
    """A clip and a worse one, lossless."""
    video.write_video("ref.mkv", clip(), fps=8)
    video.write_video("test.mkv", nudged(clip()), fps=8)
    return "ref.mkv", "test.mkv"


# What it prints


def test_scores_are_those_of_the_function(two):
    result = run(*two, "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    (pair,) = record["pairs"]
    names = [name for name in record["metrics"] if name != "lpips"]
    expected = score_clips(clip(), nudged(clip()), data_range=255, metrics=names)
    for name in names:
        assert pair["scores"][name] == expected[name].to_dict()
        about = record["metrics"][name]
        assert about["convention"] == METRICS[name].convention
        assert about["version"] == METRICS[name].version
    assert pair["codecs"] == {"reference": "ffv1", "test": "ffv1"}
    assert pair["notes"] == []


def test_lpips_without_weights_is_null_with_its_reason(two):
    record = json.loads(run(*two, "--json").stdout)
    score = record["pairs"][0]["scores"]["lpips"]
    assert score["value"] is None
    assert "--lpips-weights" in score["reason"] and "DIT_ACCEL_LPIPS_WEIGHTS" in score["reason"]
    assert run(*two).stdout.count("lpips: not measured, no weights") == 1


def test_the_table_names_unit_direction_and_convention(two):
    shown = run(*two, "--metrics", "psnr_db,tof").stdout
    for name in ("psnr_db", "tof"):
        row = METRICS[name]
        assert row.convention in shown and f"{row.direction} is better [{row.unit}]" in shown
    assert "alignment with the reference, not quality" in shown


def test_an_exact_clip_is_infinite_and_its_frames_are_counted(two):
    record = json.loads(run(two[0], two[0], "--json", "--metrics", "psnr_db").stdout)
    score = record["pairs"][0]["scores"]["psnr_db"]
    assert (score["value"], score["frames"], score["exact_frames"]) == ("inf", ["inf"] * 5, 5)
    assert "all exact" in run(two[0], two[0], "--metrics", "psnr_db").stdout


def test_output_is_the_json_and_is_written_whole(two, here, monkeypatch):
    (here / "s.json").write_text("mine")
    result = run(*two, "--json", "--metrics", "mae", "--output", "s.json", "--overwrite")
    assert (here / "s.json").read_text() == result.stdout
    (here / "s.json").write_text("mine")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    given = "--metrics", "mae", "--output", "s.json", "--overwrite"
    message = refused(*two, *given, code=1)
    assert "s.json cannot be written: the disk is full: No space left on device" in message
    assert sorted(path.name for path in here.iterdir()) == ["ref.mkv", "s.json", "test.mkv"]
    assert (here / "s.json").read_text() == "mine"


def test_streaming_holds_no_whole_clip_and_gives_the_same_numbers(here, monkeypatch):
    frames = clip(shape=(40, 32, 48, 3))
    video.write_video("ref.npy", frames, fps=8)
    video.write_video("test.npy", nudged(frames), fps=8)
    longest = []
    update = pairs.Scorer.update

    def watch(scorer, reference, test):
        longest.append(len(reference))
        update(scorer, reference, test)

    monkeypatch.setattr(pairs.Scorer, "update", watch)
    names = "psnr_db,psnr_pooled_db,ssim,mae,tdiff,flicker,tof"
    record = json.loads(run("ref.npy", "test.npy", "--json", "--metrics", names).stdout)
    assert longest == [16, 16, 8]
    whole = score_clips(frames, nudged(frames), data_range=255, metrics=names.split(","))
    for name, score in record["pairs"][0]["scores"].items():
        assert score == whole[name].to_dict()


# Folders


@pytest.fixture
def folders(here):
    for folder, change in (("refs", lambda frames: frames), ("tests", nudged)):
        (here / folder).mkdir()
        for seed in range(3):
            frames = change(clip(seed))
            video.write_video(here / folder / f"clip-{seed}.mkv", frames, fps=8)
    (here / "tests" / "clip-0.mkv.json").write_text("{}")
    return "refs", "tests"


def test_folders_are_paired_by_name_and_averaged(folders, here):
    (here / "tests" / "clip-1.mkv").unlink()
    video.write_video(here / "tests" / "clip-1.npy", clip(1), fps=8)  # exact, another suffix
    result = run(*folders, "--json", "--metrics", "psnr_db,mae")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert [pair["id"] for pair in record["pairs"]] == ["clip-0", "clip-1", "clip-2"]
    first, exact, last = (pair["scores"]["psnr_db"]["value"] for pair in record["pairs"])
    assert exact == "inf"
    assert record["mean"]["psnr_db"]["value"] == pytest.approx((first + 100 + last) / 3)
    shown = run(*folders, "--metrics", "psnr_db").stdout
    assert "mean of 3" in shown and "clip-2" in shown


def test_a_clip_without_a_partner_is_named(folders, here):
    (here / "tests" / "clip-1.mkv").unlink()
    video.write_video(here / "tests" / "other.mkv", clip(), fps=8)
    message = refused(*folders)
    assert (
        "clip-1 of refs has no partner in tests; other of tests has no partner in refs" in message
    )
    result = run(*folders, "--allow-unpaired", "--json", "--metrics", "mae")
    record = json.loads(result.stdout)
    assert [pair["id"] for pair in record["pairs"]] == ["clip-0", "clip-2"]
    assert record["unpaired"] == {"reference": ["clip-1"], "test": ["other"]}


def test_two_files_of_one_id_are_refused(folders, here):
    video.write_video(here / "refs" / "clip-0.npy", clip(), fps=8)
    assert "clip-0.mkv and refs/clip-0.npy have the same id; keep one" in refused(*folders)


def test_empty_folders_and_a_folder_against_a_file_are_refused(folders, here):
    (here / "empty").mkdir()
    (here / "void").mkdir()
    assert "empty and void have no clip (.mp4, .mkv" in refused("empty", "void")
    message = refused("refs", "tests/clip-0.mkv")
    assert "refs is a folder and tests/clip-0.mkv is a file; accepted: two folders" in message


# What it refuses


def test_a_missing_file_is_named(two):
    assert "nowhere.mkv cannot be read: no such file" in refused(two[0], "nowhere.mkv")


def test_a_file_that_is_no_clip_is_named(two, here):
    (here / "bad.mkv").write_bytes(b"no clip" * 99)
    assert "path is 'bad.mkv': no frame of it can be decoded" in refused(two[0], "bad.mkv")
    (here / "notes.txt").write_text("hello")
    accepted = "path is 'notes.txt'; accepted: a name that ends in .mp4, .mkv"
    assert accepted in refused(two[0], "notes.txt")


def test_a_clip_that_was_cut_off_is_refused(here):
    frames = clip(shape=(20, 64, 64, 3))
    video.write_video("ref.mkv", frames, fps=8)
    whole = (here / "ref.mkv").read_bytes()
    (here / "cut.mkv").write_bytes(whole[: len(whole) * 6 // 10])
    message = refused("ref.mkv", "cut.mkv", "--metrics", "mae", "--allow-trim")
    assert "of 20 frames can be decoded; the file is damaged or was cut off" in message


def test_unequal_frames_are_refused_or_trimmed(two):
    video.write_video("short.mkv", nudged(clip())[:3], fps=8)
    message = refused(two[0], "short.mkv", "--metrics", "mae")
    assert "ref.mkv has 5 frames, short.mkv has 3; pass --allow-trim" in message
    record = json.loads(run(two[0], "short.mkv", "--allow-trim", "--json").stdout)
    (pair,) = record["pairs"]
    assert pair["frames"] == 3 and len(pair["scores"]["mae"]["frames"]) == 3
    assert pair["notes"] == ["ref.mkv has 5 frames, short.mkv has 3; the first 3 were scored"]


def test_unequal_sizes_are_refused_or_cut_around_their_centres(two):
    frames = clip()
    video.write_video("small.mkv", frames[:, 2:-2, 4:-4], fps=8)
    message = refused(two[0], "small.mkv", "--metrics", "mae")
    assert (
        "ref.mkv has frames of 32x48, small.mkv has frames of 28x40; pass --allow-trim" in message
    )
    record = json.loads(run(two[0], "small.mkv", "--allow-trim", "--json").stdout)
    assert record["pairs"][0]["scores"]["mae"]["value"] == 0.0
    assert "cut to the same size around their centres" in record["pairs"][0]["notes"][0]


def test_mixed_codecs_are_refused_or_noted(two):
    video.write_video("test.mp4", clip(), fps=8)
    message = refused(two[0], "test.mp4", "--metrics", "mae")
    assert "ref.mkv is ffv1 (lossless) and test.mp4 is" in message and "(lossy)" in message
    assert "--allow-mixed-codecs" in message
    result = run(two[0], "test.mp4", "--metrics", "mae", "--allow-mixed-codecs", "--json")
    assert "in part that of the codec" in json.loads(result.stdout)["pairs"][0]["notes"][0]


def test_two_files_of_one_lossy_codec_carry_the_caveat(here):
    video.write_video("ref.mp4", clip(), fps=8)
    video.write_video("test.mp4", nudged(clip()), fps=8)
    result = run("ref.mp4", "test.mp4", "--metrics", "mae")
    assert result.exit_code == 0
    assert "4:2:0 alone gives 34 to 39 dB" in result.stderr


def test_two_lossless_formats_are_one(two):
    video.write_video("test.npy", nudged(clip()), fps=8)
    assert run(two[0], "test.npy", "--metrics", "mae").stderr == ""


def test_an_unknown_metric_lists_those_that_are_known(two):
    message = refused(*two, "--metrics", "psnr_db,beauty")
    pixels = [name for name, row in METRICS.items() if row.family == "pixels"]
    assert f"--metrics has 'beauty'; accepted: {', '.join(pixels)}" in message
    assert "--metrics has ''" in refused(*two, "--metrics", "")


def test_latent_metrics_are_not_metrics_of_clips(two):
    assert "--metrics has 'latent_cosine'; accepted: " in refused(
        *two, "--metrics", "latent_cosine"
    )


def test_lpips_by_name_without_weights_fails_before_any_work(two, monkeypatch):
    monkeypatch.setattr(pairs, "score_pair", lambda *_, **__: pytest.fail("it worked"))
    message = refused(*two, "--metrics", "psnr_db,lpips")
    assert "--metrics has 'lpips', which cannot be measured here: no weights: pass" in message


def test_a_missing_weights_file_is_named(two):
    message = refused(*two, "--lpips-weights", "nowhere.pth")
    assert "--lpips-weights is 'nowhere.pth': no such file" in message


def test_weights_of_another_network_are_refused(two, here):
    torch = pytest.importorskip("torch")
    torch.save({"lin0.model.1.weight": torch.zeros(1)}, here / "odd.pth")
    message = refused(*two, "--lpips-weights", "odd.pth")
    assert "odd.pth" in message and "has no 'features.0.weight'" in message


def test_a_metric_asked_for_by_name_that_one_clip_lacks_is_a_failure(here):
    video.write_video("ref.npy", clip()[:1], fps=8)
    result = run("ref.npy", "ref.npy", "--metrics", "mae,tdiff")
    assert result.exit_code == 1
    assert "tdiff of ref.npy was not measured: needs at least 2 frames, and has 1" in result.stderr
    assert run("ref.npy", "ref.npy").exit_code == 0


def test_frames_too_small_for_a_metric_are_named(here):
    video.write_video("ref.npy", clip(shape=(2, 10, 16, 3)), fps=8)
    message = refused("ref.npy", "ref.npy", "--metrics", "psnr_db,ssim", code=1)
    said = "ssim of ref.npy was not measured: reference has frames of 10x16; accepted: at least 11"
    assert said in message
    assert "psnr_db            exact" in run("ref.npy", "ref.npy").stdout  # others are measured


def test_a_mean_of_fewer_clips_has_their_number(here):
    for folder in ("refs", "tests"):
        (here / folder).mkdir()
        for frames in (1, 2):
            video.write_video(here / folder / f"{frames}.npy", clip()[:frames], fps=8)
    shown = run("refs", "tests", "--metrics", "mae,tdiff").stdout
    assert "mean of 2 0.00 0.00 (of 1)" in " ".join(shown.split())


def test_clips_of_other_frame_rates_are_noted(here):
    for name, fps in (("ref.mkv", 16), ("slow.mkv", 8), ("near.mkv", 15.99)):
        video.write_video(name, clip(), fps=fps)
    said = "ref.mkv has 16 frames a second, slow.mkv has 8; frame is compared with frame"
    assert said in " ".join(run("ref.mkv", "slow.mkv", "--metrics", "mae").stderr.split())
    assert run("ref.mkv", "near.mkv", "--metrics", "mae").stderr == ""


def test_output_into_a_missing_folder_or_onto_a_folder_is_refused(two, here):
    (here / "folder.json").mkdir()
    assert "its folder does not exist" in refused(*two, "--output", "nowhere/s.json")
    assert "it is a folder" in refused(*two, "--output", "folder.json")


def test_output_never_replaces_a_clip_or_an_earlier_result(two, here):
    before = (here / "test.mkv").read_bytes()
    (here / "s.json").write_text("mine")
    assert "ends in .json" in refused(*two, "--output", "test.mkv")
    assert "s.json exists; pass --overwrite" in refused(*two, "--output", "s.json")
    assert (here / "test.mkv").read_bytes() == before
    assert (here / "s.json").read_text() == "mine"


# Conventions


def test_help_names_the_conventions_that_there_are():
    assert tuple(CONVENTIONS) == NAMED


@pytest.mark.parametrize("name", sorted(CONVENTIONS))
def test_a_convention_is_named_in_the_result(two, name):
    record = json.loads(run(*two, "--convention", name, "--json").stdout)
    assert record["convention"] == name
    for metric, about in record["metrics"].items():
        assert about["convention"].startswith(name)
        assert about["convention"] != METRICS[metric].convention


def test_cache_dits_wrapping_is_said_in_the_table(two):
    assert "WRAP AROUND" in run(*two, "--convention", "cache-dit").stdout


def test_unknown_conventions_and_metrics_that_one_lacks_are_refused(two):
    message = refused(*two, "--convention", "mine")
    assert "--convention is 'mine'; accepted: teacache, cache-dit, easycache, svg, ff" in message
    message = refused(*two, "--convention", "svg", "--metrics", "tof")
    assert "--metrics has 'tof'; accepted: ssim, lpips with --convention svg" in message


def test_the_help_imports_nothing_heavy():
    import os
    import subprocess
    import sys

    code = (
        "import sys\nfrom dit_accel.cli.app import app\n"
        "try:\n    app(['score', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'cv2', 'numpy'} & set(sys.modules)"
    )
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
