"""`dit-accel layout`: what it says and draws; no model is loaded for any of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import invoke

from dit_accel.cli import model_config
from dit_accel.cli.layout_picture import COLOURS, Drawn, film, sheet
from dit_accel.core.tokens import TokenGrid
from dit_accel.core.video import read_video, write_video
from dit_accel.layout import Keyframe, Shot, Subject, coverage, load
from dit_accel.scenes.masks import labels

ROOT = Path(__file__).parents[2]
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


@pytest.mark.parametrize("verb", ["validate", "preview"])
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


def test_the_fields_of_a_file_are_not_options(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"quality": 3}')
    for words in (("layout", "validate", str(path)), ("generate", "--layout", str(path))):
        said = invoke(*words).stderr
        assert "accepted: version, negative_prompt, subjects, shots" in said


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
        np.save(tmp_path / f"{name}.npy", np.full((length, 8, 8, 3), 255, np.uint8))
    subjects = [{"id": name, "prompt": name, "mask": f"{name}.npy"} for name in "ab"]
    document = {"version": 1, "shots": [{"id": "s", "prompt": "s", "subjects": subjects}]}
    (tmp_path / "a.json").write_text(json.dumps(document))
    result = invoke("layout", "validate", str(tmp_path / "a.json"))
    assert (result.exit_code == 0) == (said is None)
    assert said is None or said in result.stderr


@pytest.mark.parametrize("value", [0, 1, 127])
def test_a_mask_with_its_subject_nowhere_is_refused(value, tmp_path):
    """Of 0 and 1 instead of 0 and 255: it would be accepted, and do nothing."""
    np.save(tmp_path / "a.npy", np.full((17, 8, 8, 3), value, np.uint8))
    subjects = [{"id": "a", "prompt": "a", "mask": "a.npy"}]
    shots = [{"id": "s", "prompt": "two", "subjects": subjects}]
    (tmp_path / "l.json").write_text(json.dumps({"version": 1, "shots": shots}))
    for verb, more in (("validate", ()), ("preview", ("--output", str(tmp_path / "a.png")))):
        result = invoke("layout", verb, str(tmp_path / "l.json"), *more)
        assert result.exit_code == 2
        said = f"subjects[0].mask is 'a.npy', whose brightest pixel is {value}"
        assert f"shots[0].{said}" in result.stderr and "accepted: 255" in result.stderr


def test_a_mask_that_is_no_clip_is_named(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no clip")
    subjects = [{"id": "a", "prompt": "a", "mask": "a.mp4"}]
    document = {"version": 1, "shots": [{"id": "s", "prompt": "s", "subjects": subjects}]}
    (tmp_path / "a.json").write_text(json.dumps(document))
    result = invoke("layout", "validate", str(tmp_path / "a.json"))
    assert result.exit_code == 2
    assert "shots[0].subjects[0].mask is 'a.mp4', which cannot be read" in result.stderr


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
        (["--out", "a.gif"], "--output is 'a.gif'; accepted: a name that ends in .png or .mp4"),
        (["--out", "a.png", "--columns", "0"], "--columns is 0; accepted: 1 to 16"),
        (["--out", "a.png", "--over", "x.npy"], "--over is given 1 times; accepted: 2, one for"),
        (["--out", "a.png", "--height", "50"], "--height is 50; accepted: a multiple of 16"),
        (
            ["--out", "a.png", "--frames", "16"],
            "--frames is 16; accepted: 1 more than a mul",
        ),
        (["--out", "a.png", "--model", "./no"], "--model is './no': no such folder"),
        (
            ["--out", "taken.png"],
            "--output: taken.png exists; pass --overwrite, or another --output",
        ),
    ],
)
def test_options_that_are_not_accepted(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.png").write_bytes(b"")
    result = invoke("layout", "preview", str(SHOTS), *words)
    assert result.exit_code == 2 and said in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["taken.png"]
    assert (tmp_path / "taken.png").read_bytes() == b""


def test_a_folder_that_is_not_there_is_refused_before_the_drawing(tmp_path):
    result = invoke("layout", "preview", str(SHOTS), "--out", str(tmp_path / "no" / "a.png"))
    assert result.exit_code == 2 and "its folder does not exist" in result.stderr


def test_tokens_are_tinted_where_labels_say_so():
    grid = TokenGrid.from_pixels(5, 64, 64)
    shot = Shot("s", "a " * 400, (Subject("a", "a", (Keyframe(0, (0.5, 0, 1, 1)),)),))
    owner = labels(coverage(shot, grid), [0]).view(2, 4, 4)
    (page,) = sheet([Drawn(shot, owner, grid)], count=1)
    height = page.shape[0] - 28 - 44 - 20
    inside, outside = page[height - 100, 20 + 200], page[height - 100, 20 + 40]
    assert np.abs(inside.astype(int) - outside).sum() > 60  # right half is the subject's
    assert film([Drawn(shot, owner, grid)]).shape[0] == 5


# --- sizes of a model ------------------------------------------------------------------------


def test_sizes_are_read_of_configuration_files_alone(wan):
    found = model_config.read(str(wan), height=None, width=None, frames=None)
    assert (found.height, found.width, found.frames) == (480, 832, 81)
    assert found.grid.video_tokens == 32_760
    fewer = model_config.read(str(wan), height=None, width=None, frames=17)
    assert fewer.grid.video_tokens == 32_760 // 21 * 5


def test_a_model_without_its_configuration_is_named(wan, tmp_path):
    folder = tmp_path / "wan"
    shutil.copytree(wan, folder)
    (folder / "vae" / "config.json").unlink()
    out = str(tmp_path / "a.png")
    result = invoke("layout", "preview", str(SHOTS), "--out", out, "--model", str(folder))
    assert result.exit_code == 2 and "incomplete: vae/config.json missing" in result.stderr
    result = invoke("generate", "a cat", "--model", str(wan))
    assert result.exit_code == 2 and "incomplete: transformer/*.safetensors, " in result.stderr


def test_the_document_shows_a_layout_that_is_valid():
    page = (ROOT / "docs" / "scenes.md").read_text(encoding="utf-8")
    document = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    examples = ROOT / "assets" / "layouts" / "two-shots.yaml"
    shots = yaml.safe_load(examples.read_text(encoding="utf-8"))["shots"]
    assert document["shots"][1] == shots[1]


def test_of_a_hub_model_configuration_files_will_do(wan, monkeypatch):
    from dit_accel.models import loading
    from dit_accel.models.folder import ModelLoadError

    monkeypatch.setattr(loading, "_cached", lambda model, revision: wan)
    assert loading.resolve_model("owner/wan", whole=False).folder == wan
    with pytest.raises(
        ModelLoadError, match="only partly in the local cache, and HF_HUB_OFFLINE is"
    ):
        loading.resolve_model("owner/wan")


def test_of_a_hub_model_nothing_but_configuration_is_downloaded(wan, monkeypatch):
    import huggingface_hub

    from dit_accel.models import loading

    asked = {}

    def snapshot(model: str, revision: None, allow_patterns: list[str]) -> str:
        asked[model] = allow_patterns
        return str(wan)

    monkeypatch.setattr(loading, "_cached", lambda model, revision: None)
    monkeypatch.setattr(loading, "_check_reachable", lambda model, state, revision: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    index = str(wan / "model_index.json")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda model, name, revision: index)
    assert loading.resolve_model("owner/wan", whole=False).folder == wan
    assert asked == {"owner/wan": loading.CONFIG_FILES}
    assert not any("safetensors" in pattern or pattern == "*" for pattern in loading.CONFIG_FILES)
