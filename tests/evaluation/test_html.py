"""The report: one page that stands alone, has every row, and plays its clips in step."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_run import ERROR, FRAMES, LABELS, STEPS, fake_plan, fake_run
from typer.testing import CliRunner

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from dit_accel.cli.app import app
from dit_accel.cli.common.tables import summary_table
from dit_accel.evaluation import html as html_report
from dit_accel.evaluation.html import clips, figures, labels, made, page
from dit_accel.evaluation.html.front import AXES, points
from dit_accel.evaluation.html.maps import share_computed
from dit_accel.evaluation.html.plots import DOTS, thinned
from dit_accel.evaluation.methods import Setting
from dit_accel.evaluation.results import Results
from dit_accel.evaluation.store import Store
from dit_accel.evaluation.summary import Summary, summarise
from dit_accel.models.setup import Setup

FEW = ("uncached", "edcw:0.1")
VOID = {"meta", "link", "br", "wbr", "input", "img", "hr"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return fake_run(tmp_path_factory.mktemp("run") / "a")


@pytest.fixture(scope="module")
def results(store: Store) -> Results:
    return store.results()


@pytest.fixture(scope="module")
def summary(results: Results) -> Summary:
    return summarise(results)


@pytest.fixture(scope="module")
def html(store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "page.html"
    size = page.write_report(store, store.spec(), path)
    assert size == path.stat().st_size
    return path.read_text(encoding="utf-8")


def written(store: Store, tmp_path: Path) -> str:
    page.write_report(store, store.spec(), tmp_path / "r.html")
    return (tmp_path / "r.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Follows the open elements, and keeps ids, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.ids: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


# one file that stands alone


def test_jod_stands_beside_psnr_when_it_is_measured(tmp_path):
    spec = fake_plan(2, ("uncached", "edcw:0.1"), metrics=("mae", "ssim", "jod", "psnr_db"))
    assert page._ordered(spec.metrics) == ["psnr_db", "jod", "ssim", "mae"]
    assert page._preferred(spec) == ["psnr_db", "jod", "ssim"]
    summary = summarise(fake_run(tmp_path / "run", spec).results())
    heads = [str(column.header) for column in summary_table(summary, spec.metrics).columns]
    assert heads[heads.index("psnr_db") :] == ["psnr_db", "jod", "ssim"]
    assert figures.title("jod") == "JOD" and figures.title("st_lpips") == "ST-LPIPS"


def test_every_element_is_closed_and_every_id_is_there_once(html):
    reader = read(html)
    assert reader.faults == [] and reader.open == []
    assert sorted(set(reader.ids)) == sorted(reader.ids)
    referred = {
        value
        for _, attributes in reader.found
        for name in ("aria-labelledby", "aria-describedby", "href")
        if (value := (attributes.get(name) or "").removeprefix("#")) and value != "data:,"
    }
    assert referred <= set(reader.ids)


def test_the_page_refers_to_nothing_outside_of_it(html):
    assert not re.search(r"https?:|//cdn|@import|xmlns", html)
    sources = {attributes.get("src") for _, attributes in read(html).found} - {None}
    assert all(str(source).startswith("data:image/") for source in sources)
    assert "default-src 'none'" in html


def test_the_same_folder_gives_the_same_bytes(store, html, tmp_path):
    assert written(store, tmp_path) == html


def test_the_page_is_small(html):
    assert len(html) < 2_000_000


def test_what_users_wrote_cannot_become_markup(html):
    assert "<b>more</b>" not in html
    prompt = "a square &lt;/script&gt; number 0 &amp; &lt;b&gt;more&lt;/b&gt;"
    assert prompt in html
    assert f"<bdi>{prompt}</bdi>" in html  # text from right to left ends with the prompt
    assert ERROR in "".join(read(html).text)


def test_pictures_have_texts_and_the_table_has_headers(html):
    found = read(html).found
    assert all(a.get("alt") for tag, a in found if tag == "img")
    plots = [a for tag, a in found if tag == "svg" and a.get("class") == "plot"]
    assert len(plots) == 2 * (4 + 2 + 2) and all(a.get("aria-label") for a in plots)
    scopes = [a.get("scope") for tag, a in found if tag == "th"]
    assert scopes.count("row") == len(LABELS) and None not in scopes


def test_plots_take_their_colours_from_the_page(html):
    plots = re.findall(r'<svg class="plot".*?</svg>', html, re.DOTALL)
    for plot in plots:
        assert set(re.findall(r"#[0-9a-f]{6}\b", plot)) == set()
        assert "var(--ink)" in plot or "var(--muted)" in plot


# what it says


def test_every_method_is_a_row_with_its_numbers(html, summary):
    text = " ".join("".join(read(html).text).split())
    for row in summary.rows:
        assert row.label in text
        if row.scores.get("psnr_db") is not None:
            assert f"{row.scores['psnr_db'].value:.1f}" in text
    assert "1 × 12" in text and "60 of 60" in text


def test_failed_idle_and_floor_methods_are_marked_as_such(html):
    rows = re.findall(r'<tr class="(?!note)[^"]*">.*?</tr>', html, re.DOTALL)
    by_label = {label: next(r for r in rows if f">{label}\n" in re.sub("<wbr>", "", r))
                for label in LABELS}  # fmt: skip
    assert "5 failed" in by_label["diffusers/faster-cache:2"]
    assert "no effect" in by_label["diffusers/taylor-seer:3"]
    assert "noise floor" in by_label["rerun/dtype"]
    assert "≈ floor" not in by_label["fewer-steps:3"]
    assert "▼ worse" in by_label["edcw/block:0.2"]
    assert "▲ better" in by_label["edcw:0.2"]


def test_psnr_is_said_to_measure_alignment(html):
    assert "how closely a clip matches its uncached reference" in html
    assert "does not say how good the clip looks" in html


def test_the_command_names_every_setting(results):
    command = made.command(results.spec).replace(" \\\n ", "")
    assert command.startswith("dit-accel evaluate prompts.jsonl --model owner/model --methods ")
    assert ",".join(LABELS) in command
    for part in ("--steps 12", "--guidance 4", "--height 24", "--frames 7", "--fps 8",
                 "--seeds 0", "--dtype float32", "--metrics psnr_db,ssim"):  # fmt: skip
        assert part in command
    clip = dataclasses.replace(results.spec.clip, guidance_2=3.0, image="a b.png")
    setup = Setup(lora=("one.safetensors", "two.safetensors:0.5"), vae_tiling=True)
    rare = dataclasses.replace(results.spec, clip=clip, setup=setup)
    for part in ("--guidance-2 3", "--image 'a b.png'", "--lora one.safetensors", "--vae-tiling",
                 "--lora two.safetensors:0.5", "--output runs/again"):  # fmt: skip
        assert part in made.command(rare)
    assert dict(made.settings(rare))["lora"] == "one.safetensors, two.safetensors:0.5"


def test_the_settings_of_plans_are_on_the_page_and_in_the_command_where_they_are_set(results):
    plain = results.spec
    capped = dataclasses.replace(plain, static=True, cache_memory=1024)
    for plan, there in ((plain, False), (capped, True)):
        command, settings = made.command(plan), dict(made.settings(plan))
        assert ("--deterministic" in command) is ("--cache-memory 1024" in command) is there
        assert (settings.get("cached values of plans") == "at most 1024 bytes") is there
        assert settings.get("plans", "").startswith("static") is there


def test_the_front_holds_what_no_other_setting_beats(results, summary):
    shown = points(results, summary, AXES[0], "psnr_db")
    assert {p.setting.label for p in shown} == set(NOISE_SHOWN)
    for point in shown:
        beaten = any(
            other.x.value >= point.x.value and other.y.value > point.y.value for other in shown
        )
        assert point.front == (not beaten), point.setting.label


NOISE_SHOWN = ("edcw:0.1", "edcw:0.2", "edcw/block:0.2", "diffusers/first-block:0.08",
               "fewer-steps:9", "fewer-steps:6", "fewer-steps:3")  # fmt: skip


def test_differences_to_fewer_steps_average_to_the_tables(results, summary):
    for setting in results.accelerated():
        row = summary.by_setting[setting]
        found = results.minus_steps(setting, "psnr_db")
        table = row.against_steps["psnr_db"]
        assert np.mean(list(found.values())) == pytest.approx(table["value"])
        assert len(found) == table["n"]


def test_the_map_is_the_share_of_the_uncached_calls(results):
    shares = share_computed(results.pairs[Setting("edcw", 0.2)])
    assert shares is not None
    for share in shares.values():
        assert share.shape == (STEPS,) and share.sum() == 5 and set(share) == {0.0, 1.0}
    assert share_computed(results.pairs[Setting("fewer-steps", 6)]) is None


def test_of_many_dots_some_are_drawn_at_even_ranks():
    assert thinned([3, 1, 2]) == [1, 2, 3]
    many = thinned(list(range(1000)))
    assert len(many) == DOTS and many[0] == 0 and many[-1] == 999 and many == sorted(many)


# clips


def test_the_worst_five_and_the_median_come_first(results):
    chosen = clips.choose(results)
    scores = sorted(
        value
        for setting in results.accelerated()
        for value in results.scores(setting, "psnr_db").values()
    )
    over_all = sorted((c for c in chosen if clips.ALL in c.ranks), key=lambda c: c.ranks[clips.ALL])
    assert [c.psnr_db for c in over_all[:5]] == scores[:5]
    assert over_all[5].psnr_db == scores[len(scores) // 2]
    assert {name for c in chosen for name in c.ranks} - {clips.ALL} == {
        s.label for s in results.accelerated()
    }


def test_small_clips_are_exact(store, results):
    shown = clips.gallery(store, results)
    assert shown.tier.quality is None and shown.left_out == 0
    player = shown.players[0]
    pair = player.chosen.pair
    mine = store.read_clip(pair.job.id, pair.result["frames_sha256"])
    sheet = picture(shown.sheets[player.sheets[1]])
    for index, frame in enumerate(mine):
        y, x = (n * s for n, s in zip(divmod(index, player.columns), (24, 24), strict=True))
        assert (sheet[y : y + 24, x : x + 24] == frame).all()


def test_the_heat_map_is_the_difference_times_the_stated_factor(store, results):
    import matplotlib

    shown = clips.gallery(store, results)
    player = max(shown.players, key=lambda p: p.chosen.psnr_db)
    pair = player.chosen.pair
    one = store.read_clip(pair.reference["id"], pair.reference["frames_sha256"])[0]
    other = store.read_clip(pair.job.id, pair.result["frames_sha256"])[0]
    apart = np.abs(one.astype(int) - other.astype(int)).max(-1)
    colours = matplotlib.colormaps["inferno"](np.minimum(apart * player.factor, 255))[..., :3]
    sheet = picture(shown.sheets[player.sheets[2]])[:24, :24]
    assert (sheet == (colours * 255).round()).all()
    assert player.factor > 1


def test_large_clips_are_coded_and_made_smaller_until_the_page_has_room(tmp_path):
    store = fake_run(tmp_path / "a", fake_plan(3, ("uncached", "edcw:0.2"), side=176))
    results = store.results()
    exact = clips.gallery(store, results, 10**9)
    assert exact.tier.quality is None and len(exact.players) == 3
    full = sum(map(len, exact.sheets.values()))
    coded = clips.gallery(store, results, full // 2)
    assert coded.tier.quality is not None and len(coded.players) == 3
    assert sum(map(len, coded.sheets.values())) <= full // 2
    least = clips.gallery(store, results, 1)
    assert least.players[0].width == 160 and least.left_out == 2


def picture(uri: str) -> np.ndarray:
    import base64
    import io

    from PIL import Image

    content = base64.b64decode(uri.removeprefix("data:image/webp;base64,"))
    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))


def test_without_stored_clips_the_page_says_so(tmp_path):
    store = fake_run(tmp_path / "a", fake_plan(3, FEW, keep_clips=False))
    html = written(store, tmp_path)
    assert "were not stored" in html and '<figure class="player"' not in html


def test_a_damaged_clip_is_named_and_the_others_play(tmp_path):
    store = fake_run(tmp_path / "a", fake_plan(3, FEW))
    results = store.results()
    job = clips.choose(results)[0].pair.job.id
    store.clip_path(job).write_bytes(b"broken")
    html = written(store, tmp_path)
    assert f"could not be read or holds other frames than its result says: {job}" in html
    assert '<figure class="player"' in html


# what is not whole


def test_an_unfinished_evaluation_gives_a_page_of_what_is_there(tmp_path):
    store = fake_run(tmp_path / "a", groups=2)
    text = " ".join("".join(read(written(store, tmp_path)).text).split())
    assert "This evaluation is not finished: 36 of 60 clips are still to be made" in text


def test_an_evaluation_that_has_not_begun_gives_a_page_too(tmp_path):
    store = fake_run(tmp_path / "a", groups=0)
    text = "".join(read(written(store, tmp_path)).text)
    assert "Nothing to draw yet" in text and "No clip has been made yet" in text


def test_one_prompt_and_one_method_are_enough(tmp_path):
    store = fake_run(tmp_path / "a", fake_plan(1, FEW))
    text = " ".join("".join(read(written(store, tmp_path)).text).split())
    assert "1 prompt gives no intervals" in text


def test_a_failed_write_leaves_the_old_page(store, tmp_path, monkeypatch):
    target = tmp_path / "r.html"
    target.write_text("old")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "render", lambda *_: "new")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        page.write_report(store, store.spec(), target)
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
    assert target.read_text() == "old"


# the command


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["report", *arguments])


def test_the_command_writes_the_page_into_the_folder_and_does_not_overwrite(tmp_path):
    store = fake_run(tmp_path / "a", fake_plan(3, FEW))
    first = run(str(store.folder))
    assert first.exit_code == 0, first.output
    assert str(store.folder / "report.html") in first.output and "MB" in first.output
    again = run(str(store.folder))
    assert again.exit_code == 2 and "exists; pass --overwrite" in again.output
    (store.folder / "report.html").write_text("old")
    assert run(str(store.folder), "--overwrite").exit_code == 0
    assert (store.folder / "report.html").read_text().startswith("<!doctype html>")


def test_json_says_what_was_written(tmp_path):
    folder = fake_run(tmp_path / "a", fake_plan(1, FEW)).folder
    found = json.loads(run(str(folder), "--json").stdout)
    assert found == {"page": str(folder / "report.html"), "bytes": found["bytes"]}
    assert (folder / "report.html").stat().st_size == found["bytes"]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda run: shutil.rmtree(run), "no such folder"),
        (lambda run: (run / "manifest.json").unlink(), "has no evaluation"),
        (lambda run: (run / "manifest.json").write_text("{"), "is not JSON"),
        (lambda run: (run / "manifest.json").write_text('{"format": 1}'), "is damaged"),
        (lambda run: spoil_a_result(run), "is not JSON"),
    ],
)
def test_a_folder_that_cannot_be_read_is_named(tmp_path, spoil, expected):
    folder = fake_run(tmp_path / "a", fake_plan(1, FEW)).folder
    spoil(folder)
    found = run(str(folder), "--output", str(tmp_path / "r.html"))
    assert found.exit_code == 2 and expected in found.output
    assert str(folder) in found.output
    assert not (tmp_path / "r.html").exists()


def spoil_a_result(folder: Path) -> None:
    next((folder / "jobs").iterdir()).write_text("{")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("page.pdf", "a name that ends in .html"),
        ("none/page.html", "its folder does not exist"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_the_work(store, tmp_path, output, expected):
    found = run(str(store.folder), "--output", str(tmp_path / output))
    assert found.exit_code == 2 and expected in found.output


def test_a_missing_extra_is_named(store, monkeypatch, tmp_path):
    monkeypatch.setattr(html_report, "PACKAGES", ("jinja2", "surely_not_installed"))
    found = run(str(store.folder), "--output", str(tmp_path / "r.html"))
    assert found.exit_code == 2
    assert "surely_not_installed is not installed: pip install 'dit-accel[report]'" in found.output
    with pytest.raises(ModuleNotFoundError, match=r"dit-accel\[report\]"):
        page.write_report(store, store.spec(), tmp_path / "r.html")


# labels


def test_labels_cover_neither_each_other_nor_the_points():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=72)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 1), ylim=(0, 1))
    near = [labels.Label(0.5 + 0.01 * i, 0.5, f"label {i}", "#000000", 11) for i in range(4)]
    labels.place(axes, near, [])
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 4
    for index, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[index + 1 :])


# in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        pytest.skip(f"none of {', '.join(CHROMIUM)} is installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield started
        started.close()


CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture
def opened(browser: Any, html: str, tmp_path: Path) -> Iterator[Any]:
    """The page on a phone; every message of the console and every request is recorded."""
    (tmp_path / "r.html").write_text(html, encoding="utf-8")
    tab = browser.new_page(viewport={"width": 390, "height": 844})
    tab.set_default_timeout(20_000)
    tab.said, tab.asked = [], []
    tab.on("console", lambda message: tab.said.append(message.text))
    tab.on("pageerror", lambda error: tab.said.append(str(error)))
    tab.on("request", lambda request: tab.asked.append(request.url))
    tab.goto((tmp_path / "r.html").as_uri())
    yield tab
    tab.close()


def frames_shown(group: Any) -> list[int]:
    shown = group.locator("canvas").evaluate_all("all => all.map(c => +c.dataset.frame)")
    return [int(frame) for frame in shown]


def first_group(tab: Any) -> Any:
    group = tab.locator(".player:visible").first
    group.scroll_into_view_if_needed()
    group.locator("canvas[data-frame]").nth(2).wait_for()
    return group


def test_nothing_is_asked_for_and_nothing_goes_wrong(opened):
    first_group(opened)
    assert [url for url in opened.asked if not url.startswith(("file:", "data:"))] == []
    assert opened.said == []


@pytest.mark.parametrize("width", [320, 390, 768, 1440])
def test_no_width_scrolls_sideways(opened, width):
    opened.set_viewport_size({"width": width, "height": 900})
    opened.wait_for_timeout(50)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


def test_all_pictures_of_a_group_show_the_frame_that_was_scrubbed_to(opened):
    group = first_group(opened)
    for frame in (0, FRAMES - 1, 3):
        group.locator(".scrub").fill(str(frame))
        assert frames_shown(group) == [frame] * 3
        assert group.locator(".counter").inner_text() == f"{frame + 1} / {FRAMES}"


def test_playing_keeps_the_pictures_together_and_pausing_holds_them(opened):
    group = first_group(opened)
    group.locator(".scrub").fill("0")
    group.get_by_role("button", name="Play").click()
    seen = set()
    for _ in range(200):
        shown = frames_shown(group)
        assert len(set(shown)) == 1
        seen.add(shown[0])
        if len(seen) >= 3:
            break
        opened.wait_for_timeout(40)
    assert len(seen) >= 3
    group.get_by_role("button", name="Pause").click()
    before = frames_shown(group)
    opened.wait_for_timeout(300)
    assert frames_shown(group) == before and len(set(before)) == 1


def test_the_keys_play_and_step(opened):
    group = first_group(opened)
    group.locator(".scrub").fill("2")
    group.locator(".scrub").press("ArrowRight")
    assert frames_shown(group) == [3] * 3
    group.locator(".scrub").press("Home")
    assert frames_shown(group) == [0] * 3
    group.locator(".scrub").press("Space")
    group.get_by_role("button", name="Pause").wait_for()
    group.locator(".scrub").press("Space")
    group.get_by_role("button", name="Play").wait_for()


def test_a_canvas_holds_the_very_pixels_of_its_frame(opened, store, results):
    group = first_group(opened)
    group.locator(".scrub").fill("4")
    drawn = (
        group.locator("canvas")
        .nth(1)
        .evaluate("c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
    )
    pair = clips.choose(results)[0].pair
    frame = store.read_clip(pair.job.id, pair.result["frames_sha256"])[4]
    assert (np.array(drawn).reshape(24, 24, 4)[..., :3] == frame).all()


def test_the_reader_chooses_a_method_and_sees_its_clips(opened):
    first_group(opened)
    opened.locator("#clip-list").select_option("edcw:0.1")
    names = opened.locator(".player:visible .player-head strong").all_inner_texts()
    assert len(names) == 5 and set(names) == {"edcw:0.1"}
    ranks = opened.locator(".player:visible .rank").all_inner_texts()
    assert ranks[0] == "the worst"
    opened.get_by_role("button", name="Play all").click()
    opened.get_by_role("button", name="Pause all").wait_for()


def test_switches_change_the_plots(opened):
    panels = opened.locator('.panel[data-group="front"]:visible')
    assert panels.count() == 1 and panels.get_attribute("data-y") == "psnr_db"
    opened.locator('.choice[data-group="front"] label', has_text="SSIM").click()
    opened.locator('.choice[data-group="front"] label', has_text="Seconds").click()
    assert (panels.get_attribute("data-y"), panels.get_attribute("data-x")) == ("ssim", "seconds")


def test_paired_differences_follow_the_chosen_baseline(opened, html):
    data = json.loads(re.search(r'id="paired-data">(.*?)</script>', html, re.DOTALL)[1])
    assert "fewer steps at equal FLOPs" in opened.locator("#paired-note").inner_text()
    opened.locator("#baseline").select_option(label="edcw:0.1")
    assert "less its PSNR with edcw:0.1" in opened.locator("#paired-note").inner_text()
    scores = data["metrics"]["psnr_db"]["scores"]
    at = data["methods"].index("edcw:0.2")
    gap = np.mean(np.subtract(scores[at], scores[data["methods"].index("edcw:0.1")]))
    texts = opened.locator("#paired-plot text").all_text_contents()
    assert any(text.startswith(f"−{abs(gap):.1f} [") for text in texts)


def test_exact_clips_do_not_stretch_the_axis_of_differences(opened, html):
    written = re.search(r'id="paired-data">(.*?)</script>', html, re.DOTALL)[1]
    data = json.loads(written)
    at = data["methods"].index("edcw:0.2")
    assert data["metrics"]["psnr_db"]["exact"] == 100
    data["metrics"]["psnr_db"]["scores"][at][0] = 100
    page = opened.context.browser.new_page()
    page.set_content(html.replace(written, json.dumps(data)))
    page.locator("#baseline").select_option(label="edcw:0.1")
    assert page.locator("#paired-plot path.capped").count() == 1
    texts = page.locator("#paired-plot text.muted").all_text_contents()
    ticks = [float(text.replace("−", "-")) for text in texts if re.fullmatch(r"−?[\d.]+", text)]
    assert len(ticks) > 2 and max(map(abs, ticks)) < 30, "the difference itself is about 60 dB"
    assert "A triangle at the edge" in page.locator("#paired-note").inner_text()
    page.close()


def test_light_and_dark_differ_and_the_plots_follow(opened):
    colours = []
    for scheme in ("light", "dark"):
        opened.emulate_media(color_scheme=scheme)
        colours.append(
            opened.evaluate(
                "[getComputedStyle(document.body).backgroundColor,"
                " getComputedStyle(document.querySelector('.plot text')).fill]"
            )
        )
    assert colours[0][0] != colours[1][0] and colours[0][1] != colours[1][1]
