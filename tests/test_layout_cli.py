"""`dit-accel layout`: what it says, draws and foretells; no model is loaded for any of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_cli import invoke

from dit_accel.cli.layout_picture import COLOURS, Drawn, film, sheet
from dit_accel.foretelling import Sizes, foretell
from dit_accel.layout import Keyframe, Layout, Reference, Shot, Subject, coverage, load
from dit_accel.staging import SceneConfig
from dit_accel.tokens import TokenGrid
from dit_accel.video import read_video, write_video
from dit_accel.visibility import labels

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "assets" / "layouts").glob("*.yaml"))
SHOTS = ROOT / "assets" / "layouts" / "similar-colours.yaml"
WIDE = (0.0, 0.0, 1.0, 1.0)
WAN = {
    "model_index.json": {
        "_class_name": "WanPipeline",
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    },
    "transformer/config.json": {
        "_class_name": "WanTransformer3DModel",
        "num_layers": 30,
        "num_attention_heads": 12,
        "attention_head_dim": 128,
        "ffn_dim": 8960,
    },
    "vae/config.json": {"_class_name": "AutoencoderKLWan"},
}


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration files of Wan 2.1 1.3B and nothing else."""
    folder = tmp_path_factory.mktemp("wan")
    for name, content in WAN.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


def png(path: Path) -> np.ndarray:
    import cv2

    return cv2.imread(str(path))[..., ::-1]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_valid(path):
    result = invoke("layout", "validate", str(path))
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("valid: ")


def test_validate_says_what_is_in_it():
    said = invoke("layout", "validate", str(SHOTS)).stdout
    assert "valid: 2 shots, 2 subjects" in said
    assert "circle: box 0.1 0.1 0.4 0.4 to 0.1 0.6 0.4 0.9 by 2 keyframes" in said
    assert "by 2 keyframes, reads circle of together" in said


def test_validate_as_json():
    found = json.loads(invoke("layout", "validate", str(SHOTS), "--json").stdout)
    assert found["valid"] and [shot["id"] for shot in found["shots"]] == ["together", "alone"]
    reference = found["shots"][1]["subjects"][0]["reference"]
    assert reference == {"shot": "together", "subject": "circle"}


@pytest.mark.parametrize("verb", ["validate", "preview", "plan"])
def test_a_bad_layout_is_named_and_leaves_nothing(verb, tmp_path):
    document = yaml.safe_load(SHOTS.read_text(encoding="utf-8"))
    document["shots"][1]["subjects"][0]["keyframes"][1]["box"] = [0, 0, 2, 1]
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(document))
    out = ["--out", str(tmp_path / "a.png")] if verb == "preview" else []
    result = invoke("layout", verb, str(path), *out)
    assert result.exit_code == 2 and result.stdout == ""
    assert (
        "FILE is" in result.stderr
        and "bad.yaml': shots[1].subjects[0].keyframes[1].box is " in (result.stderr)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_a_layout_that_is_not_there(tmp_path):
    result = invoke("layout", "validate", str(tmp_path / "no.yaml"))
    assert result.exit_code == 2 and "no layout at" in result.stderr


def test_files_outside_need_leave(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "hero.png").write_bytes(b"")
    document = yaml.safe_load(SHOTS.read_text(encoding="utf-8"))
    document["shots"][1]["subjects"][0]["reference"] = {"file": "../hero.png"}
    path = tmp_path / "in" / "a.yaml"
    path.write_text(yaml.safe_dump(document))
    assert "a file inside the layout's folder" in invoke("layout", "validate", str(path)).stderr
    assert invoke("layout", "validate", str(path), "--outside").exit_code == 0


@pytest.mark.parametrize(
    ("lengths", "said"),
    [((17, 17), None), ((17, 9), "shots[0].subjects[1].mask has 9 frames; accepted: 17")],
)
def test_masks_of_a_shot_have_one_length(lengths, said, tmp_path):
    for name, length in zip("ab", lengths, strict=True):
        np.save(tmp_path / f"{name}.npy", np.zeros((length, 8, 8, 3), np.uint8))
    subjects = [{"id": name, "prompt": name, "mask": f"{name}.npy"} for name in "ab"]
    document = {"version": 1, "shots": [{"id": "s", "prompt": "s", "subjects": subjects}]}
    (tmp_path / "a.json").write_text(json.dumps(document))
    result = invoke("layout", "validate", str(tmp_path / "a.json"))
    assert (result.exit_code == 0) == (said is None)
    assert said is None or said in result.stderr


def test_a_mask_that_is_no_clip_is_named(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no clip")
    subjects = [{"id": "a", "prompt": "a", "mask": "a.mp4"}]
    document = {"version": 1, "shots": [{"id": "s", "prompt": "s", "subjects": subjects}]}
    (tmp_path / "a.json").write_text(json.dumps(document))
    result = invoke("layout", "validate", str(tmp_path / "a.json"))
    assert result.exit_code == 2 and "shots[0].subjects[0].mask cannot be read" in result.stderr


# --- the picture -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_can_be_drawn(path, tmp_path):
    out = tmp_path / "a.png"
    result = invoke("layout", "preview", str(path), "--out", str(out))
    assert result.exit_code == 0, result.stderr
    picture = png(out)
    shown = {tuple(map(int, pixel)) for pixel in picture.reshape(-1, 3)}
    layout = load(path)
    ids = dict.fromkeys(subject.id for shot in layout.shots for subject in shot.subjects)
    for index in range(len(ids)):
        assert COLOURS[index] in shown  # every subject has its outline and its tag
    assert COLOURS[len(ids)] not in shown


def test_a_film_has_every_frame_of_every_shot(tmp_path):
    out = tmp_path / "a.mp4"
    result = invoke("layout", "preview", str(SHOTS), "--out", str(out))
    assert result.exit_code == 0, result.stderr
    frames, fps = read_video(out)
    assert len(frames) == 2 * 17 and fps == 8


def test_it_is_drawn_over_clips(tmp_path):
    clips = [np.full((17, 64, 64, 3), grey, np.uint8) for grey in (0, 255)]
    words = []
    for i, clip in enumerate(clips):
        write_video(tmp_path / f"{i}.npy", clip, fps=8)
        words += ["--over", str(tmp_path / f"{i}.npy")]
    out = tmp_path / "a.png"
    result = invoke("layout", "preview", str(SHOTS), "--out", str(out), *words)
    assert result.exit_code == 0, result.stderr
    picture = png(out)
    assert picture[: len(picture) // 2].mean() < picture[len(picture) // 2 :].mean() - 60


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "a.gif"], "--out is 'a.gif': must end in .png or .mp4"),
        (["--out", "a.png", "--columns", "0"], "--columns is 0: must be from 1 to 16"),
        (["--out", "a.png", "--over", "x.npy"], "--over is given 1 times: must be 2, one a shot"),
        (["--out", "a.png", "--height", "50"], "--height is 50: must be a multiple of 16"),
        (
            ["--out", "a.png", "--frames", "16"],
            "--frames is 16: must be 1 more than a mul",
        ),
        (["--out", "a.png", "--model", "./no"], "--model is './no': no such folder"),
        (["--out", "taken.png"], "--out is 'taken.png': it exists; pass --overwrite to replace it"),
    ],
)
def test_options_that_are_not_accepted(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.png").write_bytes(b"")
    result = invoke("layout", "preview", str(SHOTS), *words)
    assert result.exit_code == 2 and said in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["taken.png"]
    assert (tmp_path / "taken.png").read_bytes() == b""


def test_a_folder_that_is_not_there_fails_the_drawing(tmp_path):
    result = invoke("layout", "preview", str(SHOTS), "--out", str(tmp_path / "no" / "a.png"))
    assert result.exit_code == 1 and "--out is" in result.stderr


def test_tokens_are_tinted_where_labels_say_so():
    grid = TokenGrid.from_pixels(5, 64, 64)
    shot = Shot("s", "a " * 400, (Subject("a", "a", (Keyframe(0, (0.5, 0, 1, 1)),)),))
    owner = labels(coverage(shot, grid), [0]).view(2, 4, 4)
    (page,) = sheet([Drawn(shot, owner, grid)], count=1)
    height = page.shape[0] - 28 - 44 - 20
    inside, outside = page[height - 100, 20 + 200], page[height - 100, 20 + 40]
    assert np.abs(inside.astype(int) - outside).sum() > 60  # right half is the subject's
    assert film([Drawn(shot, owner, grid)]).shape[0] == 5


# --- what it will cost -----------------------------------------------------------------------


def test_plan_of_the_miniature():
    result = invoke("layout", "plan", str(SHOTS))
    assert result.exit_code == 0, result.stderr
    assert "embedded miniature: 64x64, 17 frames, 320 tokens, 50 steps, 2 branches" in result.stdout
    assert "background 264, circle 28, square 28" in result.stdout


def test_plan_reads_configuration_files_alone(wan):
    words = ["layout", "plan", str(SHOTS), "--model", str(wan), "--json"]
    found = json.loads(invoke(*words).stdout)
    assert (found["height"], found["width"], found["frames"]) == (480, 832, 81)
    assert sum(found["rows"][0]["tokens"].values()) == 32_760
    # Wan 2.1 1.3B by hand: 30 blocks of width 1536, 512 text tokens, both branches of 50 steps.
    n, d, text, wide = 32_760, 1536, 512, 8960
    block = 12 * n * d**2 + 4 * n**2 * d + 4 * text * d**2 + 4 * n * text * d + 4 * n * d * wide
    assert found["stock_flops"] == 2 * 100 * 30 * block
    assert found["mask_bytes"] >= n**2
    less = json.loads(invoke(*words, "--frames", "17", "--steps", "10", "--guidance", "1").stdout)
    assert (less["steps"], less["branches"]) == (10, 1)
    assert sum(less["rows"][0]["tokens"].values()) == 32_760 // 21 * 5


def test_a_model_without_its_configuration_is_named(wan, tmp_path):
    folder = tmp_path / "wan"
    shutil.copytree(wan, folder)
    (folder / "vae" / "config.json").unlink()
    result = invoke("layout", "plan", str(SHOTS), "--model", str(folder))
    assert result.exit_code == 2 and "incomplete: vae/config.json missing" in result.stderr
    result = invoke("generate", "a cat", "--model", str(wan))
    assert result.exit_code == 2 and "incomplete: transformer/*.safetensors, " in result.stderr


def test_a_family_without_layouts_is_named(wan, tmp_path):
    folder = tmp_path / "ltx"
    shutil.copytree(wan, folder)
    index = WAN["model_index.json"] | {
        "_class_name": "LTXPipeline",
        "transformer": ["diffusers", "LTXVideoTransformer3DModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    sizes = ["--height", "480", "--width", "832", "--frames", "17"]
    result = invoke("layout", "plan", str(SHOTS), "--model", str(folder), *sizes)
    assert result.exit_code == 2 and "family is 'ltx'; accepted with a layout: wan" in result.stderr


SIZES = Sizes(layers=4, heads=2, head=12, feed_forward=48, text=8, value_bytes=2)
GRID = TokenGrid.from_pixels(5, 64, 64)


def placed(*boxes: tuple[float, ...], reference: Reference | None = None) -> tuple[Subject, ...]:
    return tuple(
        Subject(f"s{i}", "s", (Keyframe(0, box),), reference=reference)
        for i, box in enumerate(boxes)
    )


def test_one_subject_that_covers_all_costs_nothing():
    layout = Layout((Shot("a", "a", placed(WIDE)),))
    told = foretell(layout, GRID, SIZES, SceneConfig(text=0.0), steps=3, branches=2)
    assert told.extra == 0 and told.read_bytes == told.raw_bytes == told.bank_bytes == 0
    assert told.rows[0].calls == 1 and told.rows[0].pairs == 1


def test_two_halves_closed_to_each_other_halve_the_pairs():
    layout = Layout((Shot("a", "a", placed((0, 0, 0.5, 1), (0.5, 0, 1, 1))),))
    config = SceneConfig(text=0.0, background="closed", steps=(0, 1))
    told = foretell(layout, GRID, SIZES, config, steps=3, branches=2)
    assert told.rows[0].tokens == {"background": 0, "s0": 16, "s1": 16}
    assert told.rows[0].calls == 2 and told.rows[0].pairs == 0.5
    saved = 3 * 2 * 4 * 4 * 24 * (32**2 // 2)  # steps, branches, layers, 4 x width x pairs
    assert told.stock_flops - told.scene_flops == saved


def test_a_reference_is_read_in_its_layers_and_branches():
    shots = (
        Shot("a", "a", placed((0, 0, 0.5, 1))),
        Shot("b", "b", placed(WIDE, reference=Reference(shot="a"))),
    )
    both = {"isolate": False, "text": 0.0, "share_steps": (0.0, 1.0)}
    config = SceneConfig(**both, amplify=False, share_layers=(0.5, 1.0))
    told = foretell(Layout(shots), GRID, SIZES, config, steps=3, branches=2)
    more = 3 * 2 * 2 * 4 * 24 * 32 * 16  # half of the layers; 32 queries read 16 keys
    assert told.scene_flops - told.stock_flops == more
    one = foretell(Layout(shots), GRID, SIZES, SceneConfig(**both), steps=3, branches=2)
    assert one.scene_flops - one.stock_flops == more  # all of the layers, one branch
    assert told.read_bytes == 2 * 16 * 24 * 2
    assert told.bank_bytes == told.read_bytes * 4 * 3 * 2


@pytest.mark.parametrize(
    ("config", "rel"),
    [
        (SceneConfig(), 0.0),
        # The draws of dropout differ from step to step, and with them the pairs a little.
        (SceneConfig(dropout=0.5, share_steps=(0.0, 1.0)), 0.02),
    ],
)
def test_what_is_foretold_is_what_the_run_reports(tiny_wan, config, rel):
    from dit_accel import accelerate

    shots = (
        Shot("a", "a red circle", placed((0, 0, 0.5, 1), (0.5, 0, 1, 1))),
        Shot("b", "a red circle", placed((0.5, 0, 1, 1), reference=Reference(shot="a"))),
    )
    layout = Layout(shots)
    pipe = tiny_wan()
    with accelerate(pipe, layout=layout, scene=config) as handle:
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        pipe(prompt=layout.prompts, negative_prompt=["", ""], generator=generators, height=32,
             width=32, num_frames=5, num_inference_steps=3, guidance_scale=4.0,
             max_sequence_length=16, output_type="latent")  # fmt: skip
        scene = handle.report().scene
    found = pipe.transformer.config
    grid = TokenGrid.from_pixels(5, 32, 32, strides=_strides(pipe))
    sizes = Sizes(found.num_layers, found.num_attention_heads, found.attention_head_dim,
                  found.ffn_dim, 16, 4)  # fmt: skip
    told = foretell(layout, grid, sizes, config, steps=3, branches=2)
    for row in told.rows:
        assert list(row.tokens.values()) == list(scene.classes[row.name].values())
    assert {row.name: row.reads for row in told.rows if row.reads} == scene.reads
    extra = told.scene_flops - told.stock_flops
    assert extra == pytest.approx(scene.extra_flops, rel=rel, abs=0)
    assert told.read_bytes == scene.gathered_bytes


def _strides(pipe):
    from dit_accel.supported import strides_of

    return strides_of(pipe, pipe.transformer)


def test_the_documents_plan_and_errors_are_what_the_command_says():
    page = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
    said = invoke("layout", "plan", str(SHOTS)).stdout
    shown = page.split("```text\n")[1].split("```")[0]
    assert said.startswith(shown)
    document = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    examples = ROOT / "assets" / "layouts" / "two-shots.yaml"
    shots = yaml.safe_load(examples.read_text(encoding="utf-8"))["shots"]
    assert document["shots"][1] == shots[1]


def test_of_a_hub_model_configuration_files_will_do(wan, monkeypatch):
    from dit_accel import loading
    from dit_accel.errors import RunFailed

    monkeypatch.setattr(loading, "_cached", lambda model: wan)
    assert loading.find("owner/wan", whole=False).folder == wan
    with pytest.raises(RunFailed, match="only partly in the local cache, and HF_HUB_OFFLINE is"):
        loading.find("owner/wan")


def test_of_a_hub_model_nothing_but_configuration_is_downloaded(wan, monkeypatch):
    import huggingface_hub

    from dit_accel import loading

    asked = {}

    def snapshot(model: str, allow_patterns: list[str]) -> str:
        asked[model] = allow_patterns
        return str(wan)

    monkeypatch.setattr(loading, "_cached", lambda model: None)
    monkeypatch.setattr(loading, "_reach", lambda model, state: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    index = str(wan / "model_index.json")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda model, name: index)
    assert loading.find("owner/wan", whole=False).folder == wan
    assert asked == {"owner/wan": loading.CONFIGS}
    assert not any("safetensors" in pattern or pattern == "*" for pattern in loading.CONFIGS)
