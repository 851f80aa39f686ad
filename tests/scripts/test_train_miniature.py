"""What the miniature's trainer knows of its clips; its recipe in small, whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import hints
import pytest
import recipe
import torch
import train_miniature
import world

ROOT = Path(__file__).parents[2]
FIRST = "a big cyan diamond moving left on the left on a plain black background"


def scenes_of(count: int) -> list:
    return [world.scene_at(7, i, mix=(1, 1, 1)) for i in range(count)]


def test_a_mix_says_how_many_subjects() -> None:
    assert {len(s.subjects) for s in scenes_of(30)} == {1, 2, 3}
    assert {len(world.scene_at(7, i, mix=(0, 0, 1)).subjects) for i in range(30)} == {3}


def test_prompts_that_were_judged_by_stay_what_they_are() -> None:
    assert world.scene_at(world.CHECK_STREAM, 0).caption() == FIRST
    lines = (ROOT / "assets/prompts/miniature.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["prompt"] == world.scene_at(world.PROMPT_STREAM, 0).caption()


def test_prompts_of_another_kind_are_of_that_kind() -> None:
    folder = ROOT / "assets/prompts"
    names = ("miniature", "calibration", "several")
    rows = {
        name: [
            json.loads(line)["prompt"]
            for line in (folder / f"{name}.jsonl").read_text().splitlines()
        ]
        for name in names
    }
    assert all(" and " in prompt and "the camera pans" in prompt for prompt in rows["several"])
    every = [prompt for prompts in rows.values() for prompt in prompts]
    assert len(set(every)) == len(every)
    assert [len(rows[name]) for name in names] == [64, 384, 64]


def test_words_belong_to_the_subject_that_they_name() -> None:
    scenes = scenes_of(60)
    tokenizer = recipe.build_tokenizer()
    found = hints.hints_of(scenes, 17, recipe.TEXT_LENGTH, "cpu")
    for scene, owners, kinds, count in zip(
        scenes, found.owners.tolist(), found.kinds.tolist(), found.count.tolist(), strict=True
    ):
        words = tokenizer.convert_ids_to_tokens(tokenizer(scene.caption()).input_ids)
        assert count == len(scene.subjects)
        for slot, subject in enumerate(scene.subjects):
            mine = [word for word, owner in zip(words, owners, strict=False) if owner == slot]
            assert " ".join(mine) == subject.caption()
            named = [kind[index] for kind, index in zip(hints.KINDS, kinds[slot], strict=True)]
            assert named == [subject.color, subject.shape, subject.motion, subject.size]


def test_paths_are_those_of_the_middle_of_latent_frames() -> None:
    scenes = [s for s in scenes_of(60) if s.subjects[0].motion in world.PANS]
    paths = hints.hints_of(scenes, 17, 48, "cpu").paths
    for scene, path in zip(scenes, paths, strict=True):
        true = torch.tensor(scene.subjects[0].path(17))
        torch.testing.assert_close(path[0, 0], true[0])
        torch.testing.assert_close(path[0, 1:], true[1:].view(4, 4, 3).mean(1))


def test_cells_inside_are_those_that_a_subject_is_painted_on() -> None:
    still = [s for s in scenes_of(200) if {x.motion for x in s.subjects} == {"still"}]
    assert len(still) > 5
    found = hints.inside(hints.hints_of(still, 17, 48, "cpu"), (5, 8, 8))
    grid = (torch.arange(64) + 0.5) / 64
    for scene, cells in zip(still, found, strict=True):
        covers = world._coverage(scene.subjects, 1, grid, grid, 64)[:, 0].amax(0)
        cut = covers.unfold(0, 8, 8).unfold(1, 8, 8)  # (8, 8) cells of (8, 8) pixels
        middles = cut[..., 3:5, 3:5].amin((2, 3)) > 0.9
        assert bool((cells.bool() | ~middles).all()), "no cell whose middle is painted is left out"
        assert cells[0].sum() <= 2 * (cut.amax((2, 3)) > 0.1).sum()
        assert bool((cells == cells[0]).all())


def right_answers(scenes: list, truth, grid: tuple[int, int, int]):
    """What a model that knows would have at every token, one by one."""
    frames, height, width = grid
    classes = [len(kind) for kind in hints.KINDS]
    answers = torch.zeros(len(scenes), frames, height, width, sum(classes) + 3)
    for i, scene in enumerate(scenes):
        for f, row, column in torch.cartesian_prod(*map(torch.arange, grid)).tolist():
            x, y = (column + 0.5) / width, (row + 0.5) / height
            slot = int(x * len(scene.subjects))
            first = 0
            for kind, size in enumerate(classes):
                answers[i, f, row, column, first + int(truth.kinds[i, slot, kind])] = 50.0
                first += size
            px, py, radius = truth.paths[i, slot, f].tolist()
            answers[i, f, row, column, first:] = 5 * torch.tensor([px - x, py - y, radius])
    return answers.flatten(1, 3)


def test_tokens_are_asked_for_the_subject_of_their_share_of_the_width() -> None:
    scenes, grid = scenes_of(9), (5, 2, 6)
    truth = hints.hints_of(scenes, 17, 48, "cpu")
    heads = hints.Heads(4, 4)
    heads.tokens = torch.nn.Identity()
    complete = torch.tensor([True] * 8 + [False])
    answers = right_answers(scenes, truth, grid)
    assert heads.token_loss(answers, grid, truth, complete) < 1e-6
    worse = answers.clone()
    worse[8] = 7.0
    assert heads.token_loss(worse, grid, truth, complete) < 1e-6, (
        "captions without colours do not count"
    )
    worse[3, :, -1] += 1.0
    missed = heads.token_loss(worse, grid, truth, complete)
    assert missed == pytest.approx(1 / 3 / 8, rel=1e-4), "of eight clips one, one of three values"
    assert heads.token_loss(answers, grid, truth, ~complete) < 1e-6
    assert heads.token_loss(answers, grid, truth, complete & False) == 0


def test_words_are_asked_for_their_subject() -> None:
    scenes = scenes_of(9)
    truth = hints.hints_of(scenes, 17, 48, "cpu")
    heads = hints.Heads(4, 4)
    heads.words = torch.nn.Identity()
    states = torch.zeros(9, 48, sum(heads.classes))
    for i, word in (truth.owners >= 0).nonzero().tolist():
        first = 0
        for kind, size in enumerate(heads.classes):
            states[i, word, first + int(truth.kinds[i, truth.owners[i, word], kind])] = 50.0
            first += size
    complete = torch.ones(9, dtype=torch.bool)
    assert heads.word_loss(states, truth, complete) < 1e-6
    states[truth.owners < 0] = 9.0
    assert heads.word_loss(states, truth, complete) < 1e-6, "words of nobody do not count"
    assert heads.word_loss(-states, truth, complete) > 10


def test_the_recipe_runs_whole_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from diffusers import WanPipeline

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "models" / "small"
    words = ["train", "--preset", "smoke", "--out", str(out), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", [*words, "--sheet-rows", "1"])
    train_miniature.main()
    pipe = WanPipeline.from_pretrained(out)
    assert not [name for name in pipe.transformer.state_dict() if "heads" in name]
    made = sorted(path.name for path in out.parent.iterdir())
    assert made == ["small", "small-loss.csv", "small-loss.png", "small-sheet.png"]
    before = {k: v.clone() for k, v in pipe.transformer.state_dict().items()}
    capsys.readouterr()
    train_miniature.main()
    assert "denoiser: finished before" in capsys.readouterr().out
    after = WanPipeline.from_pretrained(out).transformer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
