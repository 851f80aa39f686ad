"""The layout file: what is read from it, what it covers, and every way in which it can be wrong."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from layout_faults import FAULTS, document

from dit_accel.core.tokens import TokenGrid, TokenStrides
from dit_accel.core.video import write_video
from dit_accel.layout import (
    Keyframe,
    Layout,
    LayoutError,
    Reference,
    Shot,
    Subject,
    coverage,
    load,
    parse,
    reference_coverage,
)
from dit_accel.layout.parse import DEEPEST, LARGEST_BYTES

LEFT, RIGHT, WHOLE = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)
GRID = TokenGrid.from_pixels(17, 64, 64)  # 5 latent frames of 4 x 4 tokens of 16 pixels


def read(found: object, folder: Path = Path(), **settings: bool) -> Layout:
    return parse(json.dumps(found).encode(), folder, json_only=True, **settings)


def test_a_document_becomes_a_layout():
    layout = read(document())
    assert layout.prompts == ["a red star and a blue ring", "a small red star"]
    assert layout.negative_prompt == "blurry"
    hero, ring = layout.shots[0].subjects
    assert (hero.prompt, ring.prompt, ring.z) == ("a red star", "a blue ring", -1)
    assert ring.keyframes == (Keyframe(0, (0.6, 0, 1, 1)),)
    again = layout.shot("second").subject("hero")
    assert again.prompt == "a red star" and again.reference == Reference(shot="first")
    assert layout.source(again) == (0, 0)
    assert layout.source(hero) is None


def test_yaml_and_json_say_the_same(tmp_path):
    import yaml

    (tmp_path / "a.json").write_text(json.dumps(document()), encoding="utf-8")
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(document()), encoding="utf-8")
    assert load(tmp_path / "a.json") == load(tmp_path / "a.yaml") == read(document())


def test_yaml_words_and_dates_are_text():
    text = """
version: 1
shots:
- id: "1"
  prompt: 2001-01-01
  subjects:
  - id: no
    prompt: yes
    box: [.5, 0., 1, 1e0]
"""
    (shot,) = parse(text.encode(), Path()).shots
    assert (shot.prompt, shot.subjects[0].id, shot.subjects[0].prompt) == (
        "2001-01-01",
        "no",
        "yes",
    )
    assert shot.subjects[0].keyframes[0].box == RIGHT


@pytest.mark.parametrize(
    ("u", "box"),
    [
        (0.0, (0.0, 0.1, 0.4, 0.9)),
        (0.25, (0.1, 0.1, 0.5, 0.9)),
        (0.5, (0.2, 0.1, 0.6, 0.9)),
        (0.9, (0.36, 0.1, 0.76, 0.9)),
        (1.0, (0.4, 0.1, 0.8, 0.9)),
    ],
)
def test_boxes_are_linear_between_keyframes(u, box):
    assert read(document()).shots[0].subjects[0].box_at(u) == pytest.approx(box)


def test_boxes_are_constant_before_the_first_and_after_the_last_keyframe():
    subject = Subject("a", "a", (Keyframe(0.25, LEFT), Keyframe(0.5, RIGHT)))
    assert subject.box_at(0.1) == LEFT and subject.box_at(0.9) == RIGHT


def test_a_box_covers_whole_tokens_and_parts_of_them():
    shares = coverage(_shot((0.25, 0.125, 0.6, 1.0)), GRID)
    assert shares.shape == (1, 5, 4, 4) and shares.dtype == torch.float32
    across, down = torch.tensor([0, 1, 0.4, 0]), torch.tensor([0.5, 1, 1, 1])
    assert torch.allclose(shares[0], (down[:, None] * across).expand(5, 4, 4))


def test_a_moving_box_is_averaged_over_the_frames_of_each_latent_frame():
    subject = Subject("a", "a", (Keyframe(0, (0, 0, 0.25, 1)), Keyframe(1, (0.75, 0, 1, 1))))
    shares = coverage(Shot("s", "s", (subject,)), GRID)[0, :, 0]
    assert torch.equal(shares[0], torch.tensor([1.0, 0, 0, 0]))  # latent frame 0 is frame 0 alone
    # Frames 1 to 4 of 17: the left edge is at 3/64, 6/64, 9/64, 12/64; a token is 16/64 wide.
    assert torch.allclose(shares[1], torch.tensor([1 - 7.5 / 16, 7.5 / 16, 0, 0]))
    assert torch.allclose(shares.sum(1), torch.ones(5))


@pytest.mark.parametrize("strides", [TokenStrides(4, 8, 1), TokenStrides(8, 32, 1)])
@pytest.mark.parametrize("box", [(0.1, 0.2, 0.37, 0.9), WHOLE, (0.5, 0.5, 0.51, 0.52)])
def test_the_area_of_a_box_stays_whatever_the_strides(strides, box):
    grid = TokenGrid.from_pixels(17, 64, 96, strides=strides)
    area = coverage(_shot(box), grid)[0].double().mean((1, 2))
    wanted = (box[2] - box[0]) * (box[3] - box[1])
    assert torch.allclose(area, torch.full_like(area, wanted), atol=1e-6)


def test_a_mask_video_says_what_a_box_says(tmp_path):
    frames = np.zeros((17, 64, 64, 3), np.uint8)
    frames[:, 8:, 16:40] = 255
    write_video(tmp_path / "mask.mkv", frames, fps=8)
    masked = Shot("s", "s", (Subject("a", "a", mask=tmp_path / "mask.mkv"),))
    assert torch.equal(coverage(masked, GRID), coverage(_shot((0.25, 0.125, 0.625, 1)), GRID))
    with pytest.raises(ValueError, match="has a mask"):
        masked.subjects[0].box_at(0)


@pytest.mark.parametrize("size", [(40, 56), (6, 10), (3, 3)])
def test_a_mask_of_another_size_is_averaged_exactly(tmp_path, size):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 2, (17, *size, 1)).repeat(3, 3).astype(np.uint8) * 255
    np.save(tmp_path / "mask.npy", frames)
    shares = coverage(Shot("s", "s", (Subject("a", "a", mask=tmp_path / "mask.npy"),)), GRID)[0]
    # The oracle: every pixel as a block of 16 x 16 equal pixels, which every token's edge divides.
    fine = np.kron(frames[..., 0] / 255, np.ones((1, 16, 16)))
    tokens = fine.reshape(17, 4, fine.shape[1] // 4, 4, fine.shape[2] // 4).mean((2, 4))
    latent = np.stack([tokens[0], *(tokens[4 * k - 3 : 4 * k + 1].mean(0) for k in range(1, 5))])
    assert np.allclose(shares.numpy(), latent, atol=1e-6)


@pytest.mark.parametrize(("count", "said"), [(16, "has 16"), (18, "has more than 17")])
def test_masks_of_other_lengths_are_refused(tmp_path, count, said):
    np.save(tmp_path / "mask.npy", np.full((count, 8, 8, 3), 255, np.uint8))
    subjects = (
        Subject("a", "a", (Keyframe(0, LEFT),)),
        Subject("b", "b", mask=tmp_path / "mask.npy"),
    )
    with pytest.raises(LayoutError, match=rf"subjects\[1\].mask {said} frames; accepted: 17"):
        coverage(Shot("s", "s", subjects), GRID)


def test_a_mask_that_is_no_clip_is_refused(tmp_path):
    (tmp_path / "mask.mp4").write_bytes(b"no clip")
    with pytest.raises(LayoutError, match=r"\[0\].mask is 'mask.mp4', which cannot be read"):
        coverage(Shot("s", "s", (Subject("a", "a", mask=tmp_path / "mask.mp4"),)), GRID)


def test_a_reference_to_a_file_has_boxes_of_its_own(tmp_path):
    (tmp_path / "hero.png").write_bytes(b"")
    found = document()
    found["shots"][1]["subjects"][0]["reference"] = {"file": "hero.png", "box": list(LEFT)}
    reference = read(found, tmp_path).shots[1].subjects[0].reference
    assert reference.file == tmp_path / "hero.png" and reference.box_at(0.3) == LEFT
    image = TokenGrid.from_pixels(1, 64, 64)
    assert torch.equal(reference_coverage(reference, image)[0, 0], torch.tensor([1.0, 1, 0, 0]))
    assert Reference(file=tmp_path / "hero.png").box_at(0.3) == WHOLE


def _shot(box: tuple[float, float, float, float]) -> Shot:
    return Shot("s", "s", (Subject("a", "a", (Keyframe(0, box),)),))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_by_its_field(name, tmp_path):
    change, said = FAULTS[name]
    found = document()
    change(found)
    with pytest.raises(LayoutError) as raised:
        read(found, tmp_path)
    assert said in str(raised.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(number, tmp_path):
    said = r"shots\[1\].subjects\[0\].box is \[0.7, 0.7, -?(nan|inf)"
    text = json.dumps(document()).replace("0.7, 0.7, 0.9, 0.9", f"0.7, 0.7, {number}, 0.9")
    with pytest.raises(LayoutError, match=said):
        parse(text.encode(), tmp_path, json_only=True)
    yaml = text.replace("NaN", ".nan").replace("Infinity", ".inf")
    with pytest.raises(LayoutError, match=said):
        parse(yaml.encode(), tmp_path)


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"
DOCUMENTS = {
    "not UTF-8": (b"version: 1\xff", "is not UTF-8 at byte 10"),
    "empty": (b"", "is null; accepted: a mapping with version, "),
    "aliases": (BOMB.encode(), "has an anchor or alias in line 1; accepted: none"),
    "merge key": (b"a: {<<: *x}", "has an anchor or alias in line 1"),
    "python tag": (
        b"!!python/object/apply:os.system ['true']",
        "has the tag 'tag:yaml.org",
    ),
    "binary tag": (b"version: !!binary aGk=", "has the tag"),
    "two documents": (b"version: 1\n---\nversion: 1", "has a second document"),
    "too deep": (b"[" * (DEEPEST + 1), f"is nested deeper than {DEEPEST}"),
    "deep mapping": (b"{a: " * (DEEPEST + 1), f"is nested deeper than {DEEPEST}"),
    "key that is a list": (b"? [a]\n: 1", "has a key that is not a text in line 1"),
    "key twice": (b"version: 1\nversion: 1", "has the key 'version' twice in one mapping"),
    "no YAML": (b"version: [1", "is not YAML: "),
    "null byte": (b"version: \x00", "is not YAML: "),
    "huge": (b"#" * (LARGEST_BYTES + 1), f"accepted: up to {LARGEST_BYTES}"),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_that_are_refused_as_a_whole(name, tmp_path):
    content, said = DOCUMENTS[name]
    (tmp_path / "layout.yaml").write_bytes(content)
    with pytest.raises(LayoutError) as raised:
        load(tmp_path / "layout.yaml")
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, f"is nested deeper than {DEEPEST}"),
        (b'{"version": ' + b"9" * 5000 + b"}", "is not JSON: "),
        (b'{"version": 1, "version": 1}', "has the key 'version' twice"),
        (b"{", "is not JSON: "),
    ],
)
def test_json_that_is_refused_as_a_whole(content, said, tmp_path):
    with pytest.raises(LayoutError) as raised:
        parse(content, tmp_path, json_only=True)
    assert said in str(raised.value)


def test_files_are_found_in_the_layouts_folder_and_outside_only_where_allowed(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "hero.png").write_bytes(b"")
    (inside / "link.png").symlink_to(outside / "hero.png")
    (inside / "near.png").symlink_to(inside / "hero.png")
    found = document()
    for name in ("link.png", "../outside/hero.png", str(outside / "hero.png")):
        found["shots"][1]["subjects"][0]["reference"] = {"file": name}
        with pytest.raises(LayoutError, match="accepted: a file inside the layout's folder"):
            read(found, inside)
        reference = read(found, inside, outside=True).shots[1].subjects[0].reference
        assert reference.file == outside / "hero.png"
    found["shots"][1]["subjects"][0]["reference"] = {"file": "near.png"}
    assert read(found, inside).shots[1].subjects[0].reference.file == inside / "hero.png"


def test_an_error_does_not_reveal_whether_a_file_outside_exists(tmp_path):
    found = document()
    said = set()
    for name in ("../is.png", "../no.png"):
        (tmp_path / "is.png").write_bytes(b"")
        (tmp_path / "in").mkdir(exist_ok=True)
        found["shots"][1]["subjects"][0]["reference"] = {"file": name}
        with pytest.raises(LayoutError) as raised:
            read(found, tmp_path / "in")
        said.add(str(raised.value).replace(name, ""))
    assert len(said) == 1


def test_a_circle_of_links_and_a_folder_are_no_files(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "c.png").mkdir()
    found = document()
    for name in ("a.png", "c.png"):
        found["shots"][1]["subjects"][0]["reference"] = {"file": name}
        with pytest.raises(LayoutError, match=r"reference.file is"):
            read(found, tmp_path)


def test_names_that_end_otherwise_and_files_that_are_not_there(tmp_path):
    with pytest.raises(LayoutError, match=r"'a.txt'; accepted: a name that ends in .yaml, .y"):
        load(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match="no layout at"):
        load(tmp_path / "a.yaml")


def test_without_pyyaml_json_still_works(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    assert read(document()).version == 1
    with pytest.raises(LayoutError, match="needs PyYAML: `pip install pyyaml`"):
        parse(b"version: 1", tmp_path)


def test_layouts_made_in_python_are_checked_too():
    with pytest.raises(LayoutError, match=r"^at is nan; accepted: a number from 0 to 1"):
        Keyframe(math.nan, WHOLE)
    with pytest.raises(LayoutError, match="names both of shot and file"):
        Reference(shot="a", file=Path("a.png"))
    with pytest.raises(LayoutError, match="mask is given beside keyframes"):
        Reference(file=Path("a.png"), mask=Path("a.mkv"), keyframes=(Keyframe(0, WHOLE),))
    with pytest.raises(LayoutError, match="subject is given with a file"):
        Reference(file=Path("a.png"), subject="a")
    with pytest.raises(LayoutError, match="names both of keyframes and mask"):
        Subject("a", "a", (Keyframe(0, WHOLE),), mask=Path("a.mkv"))


def test_reading_a_layout_imports_no_torch():
    import os
    import subprocess
    import sys

    code = "import sys, dit_accel.layout; print('torch' in sys.modules)"
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": root},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize("first", ["mask_chunks", "reference_coverage", "coverage"])
def test_coverage_is_a_function_whatever_is_imported_first(first: str) -> None:
    """A module of the package has the same name."""
    code = f"from dit_accel.layout import {first}, coverage; assert callable(coverage)"
    subprocess.run([sys.executable, "-c", code], check=True)
