"""Draft ranking: rankings by hand, the choices, stored scores, the table and the command."""

from __future__ import annotations

import dataclasses
import json

import cv2
import numpy as np
import pytest
from clips import smooth
from commands import invoke
from fake_run import fake_plan, fake_run
from scipy.stats import spearmanr

from dit_accel.evaluation.html import seeds
from dit_accel.evaluation.html.page import render
from dit_accel.evaluation.methods import parse
from dit_accel.evaluation.ranking.agreement import Agreement, agree
from dit_accel.evaluation.ranking.choices import CHOICES, at_a_glance, colour, detail, motion
from dit_accel.evaluation.ranking.scores import read_scores, score_seeds
from dit_accel.evaluation.ranking.seed_scores import SeedScores
from dit_accel.evaluation.ranking.table import ranking
from dit_accel.evaluation.store import StoreError
from dit_accel.metrics import METRICS

LABELS = ("uncached", "edcw:0.1", "edcw/block:0.2", "rerun")
SEEDS = (0, 1, 2, 3)


def test_worked_example():
    # Four seeds. Ranks of the final scores: 1 2 3 4; of the drafts' ones: 1 3 4 2. The squares of
    # their differences are 0 + 1 + 1 + 4 = 6, so Spearman is 1 - 6 * 6 / (4 * 15) = 0.4.
    # The drafts' best seed is the third; the final's is the fourth: not the same.
    # The third has 3, which is the mean: nothing of the 6 - 3 is gained.
    assert agree([1, 2, 3, 6], [1, 3, 4, 2]) == Agreement(0.4, 0.0, 0.0)
    # Another draft: ranks 2 1 3 4, squares 1 + 1; 1 - 6 * 2 / 60 = 0.8; the best one is right.
    assert agree([1, 2, 3, 6], [5, 4, 6, 7]) == Agreement(0.8, 1.0, 1.0)


def test_ties_share_their_ranks_and_are_chosen_from_at_random():
    # Ranks 1 2.5 2.5 and 2.5 2.5 1, less their mean 2: products -0.5 + 0.25 - 0.5, squares 1.5.
    # The drafts' best are the first two seeds, of which the second is a best one: 1/2. Their mean
    # is 1.5, the mean of all 5/3: (1.5 - 5/3) / (2 - 5/3) = -0.5.
    found = agree([1, 2, 2], [5, 5, 0])
    assert found.spearman == pytest.approx(-0.75 / 1.5)
    assert (found.first, found.gain) == (0.5, pytest.approx(-0.5))
    assert agree([1, 2, 3], [4, 4, 4]) == Agreement(None, pytest.approx(1 / 3), 0.0)
    assert agree([2, 2, 2], [1, 2, 3]) == Agreement(None, 1.0, None)


def test_a_random_draft_reaches_what_chance_does():
    rng = np.random.default_rng(0)
    found = [agree(rng.normal(size=5), rng.normal(size=5)) for _ in range(2000)]
    assert np.mean([each.spearman for each in found]) == pytest.approx(0, abs=0.04)
    assert np.mean([each.first for each in found]) == pytest.approx(1 / 5, abs=0.03)
    assert np.mean([each.gain for each in found]) == pytest.approx(0, abs=0.04)
    final = rng.normal(size=5)
    assert agree(final, np.exp(3 * final)) == Agreement(1.0, 1.0, 1.0)  # any rising curve


@pytest.mark.parametrize(("final", "draft"), [([1.0], [1.0]), ([1.0, 2.0], [1.0])])
def test_too_few_or_unequal_seeds_are_refused(final, draft):
    with pytest.raises(ValueError, match="accepted: equal numbers of scores, 2 or more"):
        agree(final, draft)


# choices


def test_motion_is_the_mean_change():
    clip = np.zeros((3, 8, 8, 3), np.uint8)
    clip[1], clip[2] = 4, 10
    assert motion(clip) == 5.0 and motion(clip[:1]) == 0.0


def test_detail_is_0_of_a_flat_frame_and_less_after_a_blur():
    clip = smooth()
    assert detail(np.full_like(clip, 7)) == 0.0
    blurred = np.stack([cv2.GaussianBlur(frame, (5, 5), 0) for frame in clip])
    assert 0 < detail(blurred) < detail(clip)


def test_colour_is_0_of_grey_and_the_formula_of_one_hue():
    clip = np.full((2, 8, 8, 3), 90, np.uint8)
    assert colour(clip) == 0.0
    clip[:] = (200, 0, 0)  # red-green 200, yellow-blue 100, no spread
    assert colour(clip) == pytest.approx(0.3 * np.hypot(200, 100))


def test_large_clips_are_made_small_and_small_ones_are_left():
    small = smooth(shape=(2, 48, 64, 3))
    assert at_a_glance(small) is small
    assert at_a_glance(smooth(shape=(2, 192, 320, 3))).shape == (2, 96, 160, 3)


# stored scores and the table


@pytest.fixture(scope="module")
def plan():
    plan = fake_plan(prompts=3, labels=LABELS, metrics=("psnr_db", "mae", "latent_cosine"))
    return dataclasses.replace(plan, seeds=SEEDS)


@pytest.fixture
def store(plan, tmp_path):
    return fake_run(tmp_path / "run", dataclasses.replace(plan, metrics=("psnr_db", "mae")))


def jobs_of(spec, label, prompt="p0"):
    """By seed."""
    return {
        job.clip.seed: job
        for group in spec.groups()
        for job in group
        if job.method.label == label and job.prompt_id == prompt
    }


def test_a_clip_is_scored_alone_and_against_the_uncached_clips_of_other_seeds(store):
    spec = store.spec()
    assert score_seeds(store, spec) == 3 * len(SEEDS) * len(LABELS)
    uncached, drafts = jobs_of(spec, "uncached"), jobs_of(spec, "edcw:0.1")
    scores = read_scores(store, spec)
    mine = scores[drafts[1].id]
    assert mine.closest.keys() == {"psnr_db", "mae"}
    assert mine.closest["mae"].keys() == {uncached[seed].id for seed in (0, 2, 3)}
    clips = {
        seed: store.read_clip(job.id, store.result(job.id)["frames_sha256"])
        for seed, job in uncached.items()
    }
    draft = store.read_clip(drafts[1].id, store.result(drafts[1].id)["frames_sha256"])
    assert mine.alone == {name: choice.score(draft) for name, choice in CHOICES.items()}
    expected = METRICS["mae"].function(clips[2], draft, data_range=255)
    assert mine.closest["mae"][uncached[2].id] == pytest.approx(expected)


def test_what_was_scored_is_not_scored_again_until_something_is_new(store):
    spec = store.spec()
    score_seeds(store, spec)
    seen = []
    assert score_seeds(store, spec, on_clip=seen.append) == 0
    assert len(seen) == 3 * len(SEEDS) * len(LABELS)
    more = store.open(dataclasses.replace(spec, metrics=("psnr_db", "mae", "ssim")))
    assert score_seeds(store, more) == len(seen)
    job = jobs_of(spec, "rerun")[0]
    (store.folder / "ranking" / f"{job.id}.json").unlink()
    assert score_seeds(store, more) == 1


def test_a_damaged_file_of_scores_is_named(store):
    spec = store.spec()
    score_seeds(store, spec)
    path = store.folder / "ranking" / f"{jobs_of(spec, 'rerun')[0].id}.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"alone": {"motion": "much"}}))
    with pytest.raises(StoreError, match=rf"{path.name} is damaged: alone.motion is 'much'"):
        read_scores(store, spec)
    path.write_text("{")
    with pytest.raises(StoreError, match="delete it, and rank again"):
        score_seeds(store, spec)


def test_the_table_is_the_mean_over_wanted_clips_and_prompts(store):
    spec = store.spec()
    score_seeds(store, spec)
    scores, results = read_scores(store, spec), store.results()
    rows = {(row.label, row.choice): row for row in ranking(results, scores)}
    assert rows.keys() == {
        (label, choice) for label in LABELS[1:] for choice in (*CHOICES, "psnr_db", "mae")
    }
    expected = []
    for prompt in ("p0", "p1", "p2"):
        uncached, drafts = (jobs_of(spec, m, prompt) for m in ("uncached", "edcw/block:0.2"))
        for wanted in SEEDS:
            others = [seed for seed in SEEDS if seed != wanted]
            final, draft = (
                [-scores[jobs[s].id].closest["mae"][uncached[wanted].id] for s in others]
                for jobs in (uncached, drafts)
            )
            expected.append(spearmanr(final, draft)[0])
    row = rows["edcw/block:0.2", "mae"]
    assert row.spearman.value == pytest.approx(np.mean(expected))
    assert row.by_chance == pytest.approx(1 / 3) and row.first.n == 3
    assert rows["rerun", "motion"].by_chance == pytest.approx(1 / 4)
    for choice in (*CHOICES, "psnr_db", "mae"):  # the same clip again ranks the same
        same = rows["rerun", choice]
        assert (same.spearman.value, same.first.value, same.gain.value) == (1.0, 1.0, 1.0)


def test_scores_made_by_hand_give_the_table_by_hand(plan, tmp_path):
    """Motion of four seeds, final 1 2 3 6 as in the worked example, in both prompts."""
    plan = dataclasses.replace(
        plan, prompts=plan.prompts[:2], methods=(parse("uncached"), parse("edcw:0.1"))
    )
    store = fake_run(tmp_path / "run", dataclasses.replace(plan, metrics=("psnr_db",)))
    spec = store.spec()
    drafts = {"p0": (1, 3, 4, 2), "p1": (5, 4, 6, 7)}
    scores = {}
    for prompt, draft in drafts.items():
        for label, values in (("uncached", (1, 2, 3, 6)), ("edcw:0.1", draft)):
            for seed, job in jobs_of(spec, label, prompt).items():
                scores[job.id] = SeedScores("", {"motion": float(values[seed])})
    rows = {row.choice: row for row in ranking(store.results(), scores)}
    assert rows["motion"].spearman.value == pytest.approx((0.4 + 0.8) / 2)
    assert rows["motion"].first.value == 0.5 and rows["motion"].gain.value == 0.5
    assert rows["motion"].by_chance == 0.25
    assert rows["detail"].spearman is None and rows["psnr_db"].first is None


def test_nothing_is_ranked_before_it_was_scored(store):
    assert ranking(store.results(), read_scores(store, store.spec())) == ()


def test_the_page_shows_the_ranking_where_there_is_one(store):
    pytest.importorskip("jinja2")
    spec = store.spec()
    assert seeds.table((), spec.metrics) == seeds.SeedTable([], [])
    score_seeds(store, spec)
    page = render(store, spec)
    assert 'href="#seeds"' in page and "the most motion" in page
    assert "first 100 %" in page and "first by chance 25 %" in page
    assert "closest to a wanted clip" in page


# the command


@pytest.fixture
def command(tmp_path, tiny_wan):
    folder = tmp_path / "tiny"
    tiny_wan().save_pretrained(folder)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle moving right\n")
    size = ["--height", "16", "--width", "16", "--frames", "5", "--steps", "3", "--guidance", "1"]
    return [
        "evaluate",
        str(prompts),
        "--model",
        str(folder),
        "--output",
        str(tmp_path / "run"),
        *size,
    ]


def test_fewer_than_three_seeds_and_clips_that_are_not_stored_are_refused(command):
    more = ["--methods", "fewer-steps:2", "--ranking"]
    few = invoke(*command, *more, "--seeds", "0,1")
    assert few.exit_code == 2 and "accepted: at least 3 seeds" in " ".join(few.stderr.split())
    unkept = invoke(*command, *more, "--seeds", "0,1,2", "--no-keep-clips")
    refusal = "--ranking is given; accepted: without --no-keep-clips"
    assert unkept.exit_code == 2 and refusal in " ".join(unkept.stderr.split())


def test_the_command_ranks_and_prints_and_keeps_the_table(command, tmp_path):
    run = invoke(
        *command, "--methods", "fewer-steps:2", "--seeds", "0,1,2", "--ranking", "--json",
        "--metrics", "psnr_db,mae",
    )  # fmt: skip
    assert run.exit_code == 0, run.stderr
    rows = json.loads(run.stdout)["ranking"]
    assert [row["choice"] for row in rows] == ["motion", "detail", "colour", "psnr_db", "mae"]
    assert {row["label"] for row in rows} == {"fewer-steps:2"}
    assert all(-1 <= row["spearman"]["value"] <= 1 for row in rows)
    stored = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert stored["ranking"] == rows
    assert "| fewer-steps:2 | motion |" in (tmp_path / "run" / "summary.md").read_text()
