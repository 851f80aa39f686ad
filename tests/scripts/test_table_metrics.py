"""The table of metrics: thresholds and correlations by hand, and the script on a made-up folder."""

from __future__ import annotations

import json
import sys

import pytest
import table_metrics
from fake_run import fake_plan, fake_run
from table_metrics import Clip, among_methods, correlations, disagreements, psnr_at


def clip(prompt, method, psnr, jod, control=False):
    return Clip(prompt, 0, method, control, {"psnr_db": psnr, "jod": jod, "st_lpips": 10 - jod})


def test_worked_example():
    # Five clips; 9.5 JOD are reached by those of 24, 30 and 40 dB. In the order of PSNR: no, yes,
    # no, yes, yes. The closest curve that never falls is 0, 1/2, 1/2, 1, 1: the second and third
    # are out of order and share their mean. A half is reached at 24 dB; 95 % between 27 dB (1/2)
    # and 30 dB (1), at 27 + 3 * 0.9 = 29.7 dB. 9.9 JOD are reached by none, and 8 by all.
    psnr, jods = (20.0, 24.0, 27.0, 30.0, 40.0), (9.0, 9.6, 9.2, 9.5, 9.8)
    assert psnr_at(psnr, jods, 9.5, 0.5) == pytest.approx(24, abs=0.02)
    assert psnr_at(psnr, jods, 9.5, 0.95) == pytest.approx(29.7, abs=0.02)
    assert psnr_at(psnr, jods, 9.9, 0.5) is None
    assert psnr_at(psnr, jods, 8.0, 0.5) == 20.0


def test_correlations_agree_on_what_is_better():
    # PSNR 1 2 3 against JOD 1 3 2: 1 - 6 * 2 / (3 * 8) = 0.5. ST-LPIPS falls as JOD rises, which
    # is the same opinion: 1.
    clips = [clip("p", f"m:{n}", 20 + n, jod) for n, jod in ((1, 8.1), (2, 8.3), (3, 8.2))]
    found = correlations(clips, ("psnr_db", "jod", "st_lpips"))
    assert found["psnr_db"]["jod"] == pytest.approx(0.5)
    assert found["jod"]["st_lpips"] == pytest.approx(1.0)
    # Another prompt, of lower PSNR and higher JOD, where both order the methods alike: the mean
    # over prompts is 0.75, while over all six clips they disagree.
    other = [clip("q", f"m:{n}", 10 + n, 9 + n / 10) for n in (1, 2, 3)]
    among = among_methods([*clips, *other], ("psnr_db", "jod"))
    assert among["psnr_db"]["jod"] == pytest.approx(0.75)
    assert correlations([*clips, *other], ("psnr_db", "jod"))["psnr_db"]["jod"] < 0


def test_the_clips_on_which_two_metrics_disagree_most_come_first():
    clips = [clip("p", "a", 30, 8.0), clip("p", "b", 20, 9.0), clip("p", "c", 25, 8.5)]
    # Ranks by JOD 1 3 2, by PSNR 3 1 2: b is two ranks of three better by JOD, a by PSNR.
    assert disagreements(clips, "jod", "psnr_db") == [(clips[1], pytest.approx(2 / 3))]
    assert disagreements(clips, "psnr_db", "jod") == [(clips[0], pytest.approx(2 / 3))]


def test_the_script_writes_tables_a_figure_and_json(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    labels = ("uncached", "edcw:0.1", "edcw:0.2", "edcw/block:0.2", "fewer-steps:6", "rerun")
    plan = fake_plan(4, labels, metrics=("psnr_db", "jod", "ssim"))
    store = fake_run(tmp_path / "run", plan)
    figure = tmp_path / "metrics.png"
    words = ["table_metrics.py", str(store.folder), "--figure", str(figure), "--distances", "0.19"]
    monkeypatch.setattr(sys, "argv", words)
    table_metrics.main()
    printed = capsys.readouterr().out
    record = json.loads(printed.splitlines()[-1])
    assert record["clips"] == 4 * 4 and record["methods"] == 4  # reruns are exact
    assert record["over_clips"]["jod"]["jod"] == pytest.approx(1)
    assert record["psnr_at"].keys() == {"own", "0.19 m"}
    nearer, own = (record["psnr_at"][w]["9.5"]["reach"] for w in ("0.19 m", "own"))
    assert nearer <= own
    assert "| Over all clips | psnr_db | jod | ssim |" in printed
    assert "| better by jod than by psnr_db |" in printed
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_an_evaluation_without_scores_is_refused(tmp_path, monkeypatch):
    store = fake_run(tmp_path / "run", fake_plan(1, ("uncached", "rerun"), metrics=("psnr_db",)))
    monkeypatch.setattr(sys, "argv", ["table_metrics.py", str(store.folder)])
    with pytest.raises(SystemExit, match="0 clips with scores by psnr_db"):
        table_metrics.main()
