"""Small models of every family are trained on what their pipelines do; their recipes in small."""

from __future__ import annotations

import sys
from pathlib import Path

import check_miniature
import families
import hints
import output
import photos
import pools
import pytest
import recipe
import run
import tiny
import torch
import torch.nn.functional as F
import train_miniature
import world
import worlds

SMOKE = {"wan": "smoke", "cogvideox": "smoke-cogvideox", "ltx": "smoke-ltx"}
CAPTION = "a big cyan diamond moving left on a plain black background"
CALL = {"height": 64, "width": 64, "num_frames": 17, "guidance_scale": 1.0,
        "max_sequence_length": 64, "output_type": "latent"}  # fmt: skip


def grid_of(name: str) -> tuple[int, int, int]:
    """Of the call's latents."""
    return recipe.grid_of((17, 64, 64), families.FAMILIES[name].compression)


def pipeline(name: str):
    """Its parts with weights that are drawn, none of them zero."""
    preset, family = recipe.PRESETS[SMOKE[name]], families.FAMILIES[name]
    tokenizer = recipe.build_tokenizer()
    parts = [family.vae(preset), family.transformer(preset), family.text_encoder(len(tokenizer))]
    for part in parts:
        tiny.draw_weights(part, seed=0)
    pipe = output.assemble(preset, *parts, tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe, name: str, steps: int) -> torch.Tensor:
    """Its last latents, (B, C, F, h, w)."""
    more = {"frame_rate": recipe.FPS} if name == "ltx" else {}
    draw = torch.Generator().manual_seed(1)
    found = pipe(CAPTION, num_inference_steps=steps, generator=draw, **CALL, **more).frames
    return as_latents(name, found)


def as_latents(name: str, values: torch.Tensor) -> torch.Tensor:
    """(B, C, F, h, w), from what the transformer of a family takes and gives."""
    if name == "ltx":
        from diffusers import LTXPipeline

        return LTXPipeline._unpack_latents(values, *grid_of(name))
    return values.transpose(1, 2) if name == "cogvideox" else values


def as_given(name: str, latents: torch.Tensor) -> torch.Tensor:
    if name == "ltx":
        from diffusers import LTXPipeline

        return LTXPipeline._pack_latents(latents)
    return latents.transpose(1, 2) if name == "cogvideox" else latents


@pytest.mark.parametrize("name", SMOKE)
def test_the_denoiser_is_trained_on_what_its_pipeline_gives_it(name: str) -> None:
    pipe, family = pipeline(name), families.FAMILIES[name]
    calls = []
    pipe.transformer.register_forward_hook(
        lambda module, args, given, made: calls.append((given, made[0])), with_kwargs=True
    )
    call(pipe, name, 2)
    given, made = calls[1]
    ids = F.pad(
        pools.ids_of([CAPTION], pipe.tokenizer), (0, recipe.TEXT_PADDED - recipe.TEXT_LENGTH)
    )
    with torch.no_grad():
        text = family.read(pipe.text_encoder, ids)
        latents = as_latents(name, given["hidden_states"])
        found = family.predict(pipe.transformer, latents, given["timestep"], text)
        other = family.predict(pipe.transformer, latents, given["timestep"] - 100, text)
    expected = as_latents(name, made)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (other - expected).abs().max() > 1e-3, "the timestep counts"


@pytest.mark.parametrize("name", SMOKE)
def test_a_denoiser_that_gives_the_target_gives_the_clip(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, family = pipeline(name), families.FAMILIES[name]
    x = torch.randn(1, 8, *grid_of(name), generator=torch.Generator().manual_seed(0))
    seen = []

    def knows(hidden_states: torch.Tensor, timestep: torch.Tensor, **rest) -> tuple[torch.Tensor]:
        level = timestep.long() if name == "cogvideox" else timestep / 1000
        offset, share = (family.mix(*pair, level)[0] for pair in ((x, 0 * x), (0 * x, 0 * x + 1)))
        noise = (as_latents(name, hidden_states) - offset) / share
        _, target, given = family.mix(x, noise, level)
        torch.testing.assert_close(given.float(), timestep.float())
        seen.append(float(share.flatten()[0]))
        return (as_given(name, target),)

    monkeypatch.setattr(pipe.transformer, "forward", knows)
    torch.testing.assert_close(call(pipe, name, 5), x, atol=1e-4, rtol=1e-4)
    assert seen[0] == pytest.approx(1, abs=1e-3) and seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("name", SMOKE)
def test_latents_have_unit_size_and_come_back(name: str) -> None:
    family, preset = families.FAMILIES[name], recipe.PRESETS[SMOKE[name]]
    vae = family.vae(preset)
    latents = torch.randn(64, 8, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 3
    values = latents.transpose(0, 1).flatten(1)
    family.set_scale(vae, values.mean(1), values.std(1))
    assert family.normalized(vae, latents).square().mean() == pytest.approx(1, rel=0.02)
    again = family.vae(preset)
    again.load_state_dict(vae.state_dict())
    family.restore_scale(again, dict(vae.config))
    assert torch.equal(family.normalized(again, latents), family.normalized(vae, latents))


def test_levels_are_those_of_the_schedulers() -> None:
    draw = torch.Generator().manual_seed(0)
    found = {
        name: family.level(draw, 4000, world.DEFAULT).float()
        for name, family in families.FAMILIES.items()
    }
    assert found["wan"].min() > 0 and found["wan"].max() < 1
    middles = {name: float(levels.median()) for name, levels in found.items()}
    assert middles["wan"] == pytest.approx(2 / 3, abs=0.02), "shift 2"
    assert middles["ltx"] == pytest.approx(0.648, abs=0.02), "exp(0.612) at 80 tokens"
    assert middles["cogvideox"] == pytest.approx(500, abs=25)
    assert found["cogvideox"].min() < 5 and found["cogvideox"].max() > 994


@pytest.mark.parametrize(
    ("preset", "most"), [("mini-cogvideox", 15.0), ("mini-ltx", 15.0), ("photos", 80.0)]
)
def test_full_recipes_have_the_size_that_they_shall(preset: str, most: float) -> None:
    said = output.sizes_of(recipe.PRESETS[preset])
    assert float(said.split("about ")[1].split()[0]) < most
    denoiser = float(said.split("transformer ")[1].split()[0])
    assert denoiser > (15 if preset == "photos" else 3.5)


def train(monkeypatch: pytest.MonkeyPatch, preset: str, out: Path, work: Path, *more: str) -> bool:
    """Whether it came to its end."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["train", "--preset", preset, "--out", str(out), "--work", str(work), *more]
    monkeypatch.setattr(sys, "argv", [*words, "--sheet-rows", "1"])
    codes: list[int] = []
    monkeypatch.setattr(sys, "exit", codes.append)
    train_miniature.main()
    assert codes in ([], [train_miniature.STOPPED])
    return not codes


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["smoke-cogvideox", "smoke-ltx", "smoke-photos"])
def test_recipes_run_whole_and_make_a_clip(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "small"
    assert train(monkeypatch, preset, out, tmp_path / "work")
    family = families.FAMILIES[recipe.PRESETS[preset].family]
    pipe = family.pipeline.from_pretrained(out)
    defaults = out / "generation_defaults.json"
    text = defaults.read_text()
    assert '_steps": 50' in text
    defaults.write_text(text.replace('_steps": 50', '_steps": 3'))
    clip = output.sample(pipe, [CAPTION], 0, **output.settings_of(out, pipe))
    assert clip.shape == (1, 17, 64, 64, 3) and 0.01 < clip.std() < 1
    name = "photos" if preset == "smoke-photos" else "shapes"
    words = ["check", "--model", str(out), "--world", name, "--prompts", "1"]
    monkeypatch.setattr(sys, "argv", words)
    capsys.readouterr()
    check_miniature.main()
    assert '"color"' in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_a_training_in_pieces_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert train(monkeypatch, "smoke-ltx", whole, tmp_path / "a")
    for _ in range(5):  # four iterations of the VAE, one of the denoiser
        assert not train(monkeypatch, "smoke-ltx", pieces, tmp_path / "b", "--minutes", "1e-9")
    assert train(monkeypatch, "smoke-ltx", pieces, tmp_path / "b")
    said = capsys.readouterr().out
    assert said.count("stopped after iteration 1; the same command goes on") == 2
    for part in ("transformer", "vae"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        assert (whole / name).read_bytes() == (pieces / name).read_bytes()


def test_an_end_needs_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "--end", "--work", str(tmp_path)])
    with pytest.raises(SystemExit):
        train_miniature.arguments()
    assert "has no denoiser.pt" in capsys.readouterr().err
    (tmp_path / "denoiser.pt").touch()
    assert train_miniature.arguments().end


def test_a_stage_ends_by_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(run.time, "time", lambda: now[0])
    limited = run.Run(tmp_path, torch.device("cpu"), 1e9, run.Limits(denoiser=2.0))
    limited.begin("denoiser")
    assert limited.position("denoiser", 7, 1000) == 7
    now[0] = 60.0
    assert limited.position("denoiser", 7, 1000) == 500, "half of the time, half of the schedule"
    assert limited.position("denoiser", 600, 1000) == 600
    assert limited.position("vae", 7, 1000) == 7
    limited.spent = 60.0
    assert limited.position("denoiser", 7, 1000) == 1000, "earlier calls count"


def test_words_of_every_world_are_known_and_few_enough() -> None:
    for row in worlds.WORLDS.values():
        tokenizer = recipe.build_tokenizer(row.words)
        captions = [row.scene_at(9, i, mix=(0, 0, 1)).caption() for i in range(200)]
        ids = [tokenizer(caption).input_ids for caption in captions]
        assert max(map(len, ids)) <= recipe.TEXT_LENGTH
        assert not any(tokenizer.unk_token_id in one for one in ids)


def test_photographs_are_no_subjects() -> None:
    pytest.importorskip("skimage")
    row = worlds.WORLDS["photos"]
    scenes = check_miniature.choose(12, 1, 3, row)
    clips = (row.render(scenes, 17, 64, 64).permute(0, 2, 3, 4, 1).numpy() + 1) / 2
    verdicts = [check_miniature.judge(c, s) for c, s in zip(clips, scenes, strict=True)]
    assert all(color and motion for clip in verdicts for color, motion in clip)
    backgrounds = photos.backgrounds(scenes, 2, 64, 64, "cpu")
    assert backgrounds.std((1, 2, 3, 4)).min() > 0.01, "each is a picture"
    moving = [i for i, scene in enumerate(scenes) if scene.camera]
    still = [i for i, scene in enumerate(scenes) if not scene.camera]
    change = (backgrounds[:, :, 1] - backgrounds[:, :, 0]).abs().amax((1, 2, 3))
    assert len(moving) > 3 and change[moving].min() > 0.02
    assert len(still) > 1 and change[still].max() < 1e-5


@pytest.mark.parametrize(
    ("camera", "pixel", "axis", "sign"),
    [
        ("the camera pans right", (32, 32), 0, 1),
        ("the camera pans up", (32, 32), 1, -1),
        ("the camera zooms in", (32, 60), 0, -1),
        ("the camera zooms out", (32, 60), 0, 1),
        ("the camera turns right", (4, 32), 0, 1),
        ("the camera turns left", (4, 32), 0, -1),
    ],
)
def test_where_a_pixel_lies_in_the_photograph(
    camera: str, pixel: tuple[int, int], axis: int, sign: int
) -> None:
    plain = world.scene_at(0, 0)
    scene = photos.PhotoScene(
        plain.subjects, "moon", "", plain.tones, plain.texture, True, camera=camera
    )
    path = photos.positions([scene], 9, 64, 64)[0, :, pixel[0], pixel[1], axis]
    steps = path.diff() * sign
    assert bool((steps > 0.005).all())
    assert photos.positions([scene], 9, 64, 64).abs().max() < 1.2, "mostly inside"


def test_hints_are_read_from_every_familys_blocks() -> None:
    grid = (1, 2, 2)
    heads = hints.Heads(8, 8)
    truth = hints.hints_of([world.scene_at(7, 0)], 1, 48, "cpu")
    tokens = torch.ones(1, 4, 8)
    import denoiser

    losses = [
        heads.token_loss(denoiser.tokens_of(made), grid, truth, torch.tensor([True]))
        for made in (tokens, (tokens, torch.zeros(1, 3, 8)))
    ]
    assert torch.equal(*losses) and losses[0] > 0
