"""The folder of an evaluation: each field that is not accepted is named, with its file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_run import fake_plan, fake_run

from dit_accel.evaluation.store import Store, StoreError, name_of

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return fake_run(tmp_path / "run", fake_plan(1, ("uncached", "edcw:0.1")))


def changed(path: Path, change: Change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_worked_example(store):
    """What was written is read; one field of another type, and its file and place are named."""
    assert len(store.results().by_id) == 2
    changed(store.folder / "manifest.json", lambda m: m["clip"].update(steps="12"))
    with pytest.raises(StoreError) as error:
        store.spec()
    path = store.folder / "manifest.json"
    assert str(error.value).startswith(f"{path} is damaged: clip.steps is '12'; accepted: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(profile="../../../etc/passwd"), "profile is '../../../etc/passwd'"),
        (lambda m: m.update(learned="../x"), "learned is '../x'"),
        (lambda m: m.update(no_learn=3), "no_learn is 3"),
        (lambda m: m["prompts"][0].update(id="../x"), r"prompts\[0\].id is '../x'"),
        (lambda m: m["prompts"].append(m["prompts"][0]), r"prompts\[1\] has p0 again"),
        (lambda m: m.update(seeds=[True]), r"seeds\[0\] is True"),
        (lambda m: m.update(methods=["magic"]), r"methods\[0\]: method is 'magic'"),
        (lambda m: m.update(metrics=["beauty"]), r"metrics\[0\] is 'beauty'; accepted: psnr_db"),
        (lambda m: m.update(extra=1), "it has 'extra'; accepted: format, model"),
        (lambda m: m.update(versions={"torch": 2}), "versions.torch is 2; accepted: a text"),
        (lambda m: m.pop("prompts"), "prompts is missing"),
        (lambda m: m["model"].update(name="a\0"), r"model.name is 'a\\x00'"),
    ],
)
def test_a_field_of_the_manifest_is_named(store, change, message):
    changed(store.folder / "manifest.json", change)
    with pytest.raises(StoreError, match=message) as error:
        store.spec()
    assert str(store.folder / "manifest.json") in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(id="0" * 20), "id is '00000000000000000000'; accepted: "),
        (lambda r: r["job"].update(dtype="float16"), "job is not the job with the hash "),
        (lambda r: r.update(status="fine"), "status is 'fine'; accepted: ok, no effect, failed"),
        (lambda r: r.update(flops=["x"]), r"flops\[0\] is 'x'; accepted: a finite number"),
        (lambda r: r["computed"].update(a=[1]), "computed has lists of several lengths"),
        (lambda r: r["scores"]["ssim"].update(value="good"), "scores.ssim.value is 'good'"),
        (lambda r: r["scores"]["ssim"].update(frames=[None, {}]), r"scores.ssim.frames\[1\] is"),
        (lambda r: r["clock"].pop("denoising_seconds"), "clock.denoising_seconds is missing"),
        (lambda r: r.update(frames_sha256="../x"), "frames_sha256 is '../x'"),
        (lambda r: r.update(remarks="one"), "remarks is 'one'; accepted: a list"),
    ],
)
def test_a_field_of_a_result_is_named(store, change, message):
    job = store.spec().groups()[0][1].id
    changed(store.folder / "jobs" / f"{job}.json", change)
    with pytest.raises(StoreError, match=message) as error:
        store.results()
    assert f"jobs/{job}.json is damaged" in str(error.value)
    assert str(error.value).endswith("delete it, and resume")


@pytest.mark.parametrize("value", [np.zeros(3), np.zeros((1, 2, 3, 4, 5)), None, {"a": 1}])
def test_latents_that_are_none_are_named(store, value):
    path = store.folder / "latents" / "a.npy"
    np.save(path, value, allow_pickle=True)  # of the last two a pickle, which is not read
    with pytest.raises(StoreError, match=r"latents/a\.npy cannot be read"):
        store.read_latents("a")


def test_what_a_method_measured_is_plain_data(store):
    store.write_calibration("a", [1.0, 0.5])
    assert store.calibration("a") == [1.0, 0.5] and store.calibration("b") is None
    for text in ("[", "[NaN]", '["a\\ud800"]'):
        (store.folder / "calibration" / "a.json").write_text(text)
        with pytest.raises(StoreError, match=r"calibration/a\.json is "):
            store.calibration("a")


def test_what_plans_are_made_from_is_settled_when_a_folder_is_begun(tmp_path):
    """Its clips teach, so that another process that begins later finds more."""
    store, spec = Store(tmp_path / "run"), fake_plan(1, ("uncached", "speedup:2"))
    states = b"some", b"more"
    specs = [dataclasses.replace(spec, learned=name_of(state)) for state in states]
    assert not store.is_planned
    for one, state in zip(specs, states, strict=True):
        assert store.open(one, [state]).learned == name_of(b"some")
        (copy,) = (store.folder / "profiles").iterdir()
        assert copy == store.profile_path(name_of(b"some")) and copy.read_bytes() == b"some"
    assert store.is_planned and store.spec().learned == name_of(b"some")
    named = dataclasses.replace(spec, profile=name_of(b"profile"))
    assert store.open(named, [b"profile"]).profile == name_of(b"profile")
    (job,) = (job for group in store.spec().groups() for job in group if job.method.profiled)
    assert job.versions["profile"] == name_of(b"profile") and "learned" not in job.versions


def test_a_prompt_of_the_folder_under_another_id_is_refused(store):
    """Its clips exist already, and would count as those of a second prompt."""
    spec = store.spec()
    again = dataclasses.replace(spec.prompts[0], id="again")
    message = "has an evaluation with the prompt 'again' under the id 'p0': give it that id, or"
    with pytest.raises(StoreError, match=message):
        store.open(dataclasses.replace(spec, prompts=(again,)))
    negative = dataclasses.replace(again, negative="blurred")
    assert len(store.open(dataclasses.replace(spec, prompts=(negative,))).prompts) == 2
