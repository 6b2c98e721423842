"""Run pages and comparison pages: their contents, and their behaviour in a real browser."""

import json
import logging
import os
import re
import runpy
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from bespoke.data.song import Song
from bespoke.evaluation.report import comparison, media, page, run_page, summary
from bespoke.evaluation.report.runs import find_runs
from bespoke.evaluation.report.song_page import write_song_page
from bespoke.evaluation.report.sweep import read_results
from bespoke.score.midi import Note
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import read_csv, write_csv
from conftest import ROOT

pytestmark = pytest.mark.slow


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def sweep(run_train, tiny_song, tmp_path_factory):
    """Two runs of the tiny song, and one that fails, with their pages."""
    folder = tmp_path_factory.mktemp("pages") / "sweep"
    changed = (
        "report=true",
        "curve_steps=1",
        f"song.reference={tiny_song.reference}",
        f"hydra.sweep.dir={folder}",
    )
    result = run_train("-m", *tiny_song.overrides, *changed, "seed=0,1,-1", cwd=folder.parent)
    assert result.returncode == 2
    assert str(folder / "comparison.html") in result.stdout
    assert str(folder / "0" / "report.html") in result.stdout
    return folder


def player_data(path):
    """What the players of a page are given."""
    found = re.findall(
        r'class="player-data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL
    )
    return [json.loads(text) for text in found]


def test_a_report_has_all_tracks_and_stands_alone(sweep, tiny_song):
    text = (sweep / "0" / "report.html").read_text(encoding="utf-8")
    [data] = player_data(sweep / "0" / "report.html")
    assert [lane["name"] for lane in data["lanes"]] == [
        "Mixture",
        "Target",
        "Residual",
        "Mask",
        "Reference",
        "Synthesized",
        "Score",
    ]
    assert data["duration"] == pytest.approx(3, abs=1e-3)
    assert data["score"].count("M") == 3  # notes
    assert not re.findall(
        r'(?:src|url)\s*[=(]\s*["\']?(?!data:|")[a-z]+:', text.partition("<script>")[0]
    )  # nothing from elsewhere
    assert "default-src 'none'" in text  # and the browser is told so
    for name in (
        "target.wav",
        "metrics.json",
        "checkpoints/last.ckpt",
        "seed: 0",
        "SI-SDR during training",
    ):
        assert name in text
    links = [
        link
        for link in re.findall(r'(?:href|src)="([^"]*)"', text.partition("<script>")[0])
        if not link.startswith(("data:", "https:"))
    ]
    assert "checkpoints/last.ckpt" in links
    assert [link for link in links if not (sweep / "0" / link).is_file()] == []
    metrics = json.loads((sweep / "0" / "metrics.json").read_text())
    assert metrics["seconds"]["report"] > 0
    assert f"{metrics['si_sdr_improvement']:+.2f}" in text


def test_a_comparison_tells_what_differs_and_what_failed(sweep):
    text = (sweep / "comparison.html").read_text(encoding="utf-8")
    [data] = player_data(sweep / "comparison.html")
    assert [(lane["name"], lane["rest"]) for lane in data["lanes"]] == [
        ("Mixture", False),
        ("Reference", False),
        *((name, rest) for name in ("seed=0", "seed=1") for rest in (False, True)),
    ]
    assert "3 runs of custom, 1 of which failed" in text
    assert "failed: seed=-1 is not possible" in text
    table = text[text.index('class="sortable runs"') :]
    heading = table[table.index("<thead>") : table.index("</thead>")]
    names = re.findall(r'scope="col"[^>]*><button type="button"[^>]*>([^<]*)', heading)
    assert names[:3] == ["run", "state", "improvement (dB)"]
    assert names.index("seed") > names.index("time (s)")  # settings after figures
    folded = re.findall(r'data-folded><button type="button"[^>]*>([^<]*)', heading)
    assert {"recording (dB)", "layers"} <= set(folded)
    assert not {"seed", "improvement (dB)"} & set(folded)
    # Two seeds of one group: none is the best.
    assert "★" not in re.sub("<details.*?</details>", "", text, flags=re.DOTALL)
    assert 'href="0/report.html"' in text


def test_runs_from_elsewhere_need_only_their_folders_and_the_best_are_heard(
    sweep, tmp_path, monkeypatch
):
    for name in ("0", "1"):
        shutil.copytree(sweep / name, tmp_path / "there" / name)
        config = yaml.safe_load((tmp_path / "there" / name / "config.yaml").read_text())
        config["song"] |= {"mixture": "gone/mix.wav", "reference": "gone/target.wav"}
        (tmp_path / "there" / name / "config.yaml").write_text(yaml.safe_dump(config))
        (tmp_path / "there" / name / "training.csv").unlink()
    (tmp_path / "there" / "1" / "wandb" / "run-1" / "files").mkdir(parents=True)
    (tmp_path / "there" / "1" / "wandb" / "run-1" / "files" / "config.yaml").touch()  # W&B's own
    runs = find_runs(tmp_path / "there")
    assert [run.name for run in runs] == ["0", "1"]
    path = comparison.write_comparison(
        read_results([*runs, sweep / "2"]), tmp_path / "comparison.html", "from two machines"
    )
    [data] = player_data(path)
    heard = [(lane["run"] and Path(lane["run"]).name, lane["rest"]) for lane in data["lanes"]]
    runs_heard = [(run, rest) for run in ("0", "1") for rest in (False, True)]
    assert heard == [(None, False), *runs_heard]
    assert "from two machines" in path.read_text()
    monkeypatch.setattr(comparison, "MAX_HEARD", 1)
    [data] = player_data(comparison.write_comparison(read_results(runs), path))
    best = max(runs, key=lambda run: json.loads((run / "metrics.json").read_text())["si_sdr"])
    assert [lane["run"] for lane in data["lanes"]] == [None, best.name, best.name]
    assert "1 more runs are in the table only" in path.read_text()


def test_a_page_to_pass_on_is_as_small_as_asked_and_names_no_file_of_here(sweep, tmp_path):
    path = tmp_path / "listen.html"
    runs = read_results([sweep / "0", sweep / "1"])
    comparison.write_small_comparison(runs, path, "Small", 400_000, "By <us>")
    assert 300_000 < path.stat().st_size <= 400_000 < (sweep / "comparison.html").stat().st_size
    text = path.read_text(encoding="utf-8")
    [data] = player_data(path)
    assert [lane["name"] for lane in data["lanes"]] == ["Mixture", "Reference", "seed=0", "seed=1"]
    assert str(sweep.parent) not in text
    assert "All settings that differ" not in text
    assert "By &lt;us&gt;" in text
    with pytest.raises(BespokeError, match="name fewer runs"):
        comparison.write_small_comparison(runs, path, max_bytes=1000)
    assert path.read_text(encoding="utf-8") == text


def test_runs_of_a_benchmark_are_told_apart_by_their_methods(sweep, tmp_path):
    for method in ("auto", "paper"):
        folder = tmp_path / "cells" / "toy_one" / method / "0"
        shutil.copytree(sweep / "0", folder)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["cell"] = {"case": "toy_one", "source": "toy", "method": method}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        metrics = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps(metrics | {"overrides": ["+cell=00000"]}))
    main = runpy.run_path(str(ROOT / "scripts" / "compare.py"))["main"]
    page = tmp_path / "page.html"

    def names(*options):
        assert main([str(tmp_path / "cells"), "--out", str(page), *options]) == 0
        [data] = player_data(page)
        return [lane["name"] for lane in data["lanes"]][2:]

    assert names()[::2] == ["method=auto", "method=paper"]
    assert len(names("--only", "*/paper/0,*/nosuch/0", "--max-mb", "1")) == 1


def test_the_score_is_drawn_at_its_seconds_and_frequencies():
    pictures = media.Pictures(44100)
    path = page.score_path(
        [Note(0.5, 1.5, 69), Note(9, 10, 69), Note(0, 1, 5)], pictures, seconds=2.0
    )
    x, y, width, height = map(
        float, re.fullmatch(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h-[\d.]+z", path).groups()
    )
    assert (x, width) == (0.5, 1.0)  # the second note is after the end, the third below the picture
    assert 1 - (y + height / 2) == pytest.approx(pictures.height(440), abs=1e-4)
    assert height == pytest.approx(
        pictures.height(440 * 2 ** (1 / 12)) - pictures.height(440), abs=1e-4
    )


def test_warnings_are_collected_and_a_page_that_fails_is_one(
    tmp_path, tiny_song, song_config, caplog
):
    song = Song.load(song_config(*tiny_song.overrides))
    warnings = []
    with summary.collect_warnings(warnings):
        logging.getLogger("bespoke.training.run").warning("The score fits badly: %.1f", 0.3)
        logging.getLogger("bespoke.training.run").info("fine")
        logging.getLogger("elsewhere").warning("not ours")
        summary.write_page(tmp_path, song, {})  # there are no stems
    logging.getLogger("bespoke.training.run").warning("too late")
    assert warnings[0] == "The score fits badly: 0.3"
    assert len(warnings) == 2
    assert "report.html could not be made" in warnings[1]


def test_figures_that_speak_against_a_result_are_put_in_words():
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 1000))
    assert run_page.level_db(0.5 * noise, noise) == pytest.approx(-6.02, abs=0.01)
    assert run_page.doubts({"si_sdr_improvement": 1.0}, -6.0) == []
    worse, faded = run_page.doubts(
        {"si_sdr_improvement": -3.0}, run_page.level_db(0.001 * noise, noise)
    )
    assert "worse than doing nothing" in worse
    assert "60 dB below" in faded


def test_the_first_card_tells_a_musician_where_the_part_is():
    metrics = {
        "steps": 300,
        "seconds": {"total": 65.0},
        "alignment": {"confidence": 0.94, "used": True},
    }
    notes = [Note(62.4, 70.0, 60), Note(65.0, 125.2, 62)]
    cards = {
        tile["name"]: (tile["value"], tile["tone"])
        for tile in run_page.tiles(metrics, notes, -7.42)
    }
    assert list(cards.items()) == [
        ("Plays", ("1:02 to 2:05", "")),
        ("Alignment", ("0.94", "good")),
        ("Level", ("-7.4", "")),
        ("Training", ("300", "")),
    ]
    metrics["alignment"] = {"confidence": 0.1, "used": False}
    cards = {
        tile["name"]: (tile["value"], tile["tone"])
        for tile in run_page.tiles(metrics, notes, -250.0)
    }
    assert cards["Alignment"] == ("0.10", "bad")
    assert cards["Level"] == ("silent", "bad")
    assert "Plays" not in cards


def test_curves_of_a_group_are_its_mean_and_range_from_the_first_step(tmp_path):
    for name, offset in (("0", 0.0), ("1", 2.0)):
        (tmp_path / name).mkdir()
        rows = [{"step": step, "loss": step + offset} for step in range(1, 201)]
        write_csv(tmp_path / name / "training.csv", rows)
    (chart,) = page.charts({"aug=none": [tmp_path / "0", tmp_path / "1"]})
    (line,) = chart["series"]
    assert (line["x"][0], line["x"][-1]) == (1, 200)
    # The average is over the steps so far, then over the last tenth of all.
    assert (line["y"][0], line["low"][0], line["high"][0]) == (2.0, 1.0, 3.0)
    assert line["y"][-1] == pytest.approx(np.mean(range(181, 201)) + 1)


@pytest.fixture(scope="module")
def browser():
    """A real Chromium, without a window."""
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    if chromium is None:
        pytest.skip("no Chromium on the PATH: apt install chromium")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install 'bespoke-separation[dev]'"
    )
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open a page and wait until its players are ready.

    Any error message of the page and any network request fails the test.
    """
    contexts, complaints = [], []

    def open_(path, width=1280, height=900, **settings):
        context = browser.new_context(
            viewport={"width": width, "height": height}, offline=True, **settings
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on(
            "console",
            lambda message: (
                complaints.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on(
            "request",
            lambda request: (
                complaints.append(request.url)
                if request.url.partition(":")[0] not in ("file", "data", "blob")
                else None
            ),
        )
        tab.goto(path.as_uri())
        until(tab, "Player.all.every((player) => player.section.dataset.ready)")
        return tab

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def until(tab, condition):
    """Wait until an expression is true in the page.

    Playwright's own waiting evaluates strings, which the page's policy forbids.
    """
    deadline = time.monotonic() + 60
    while not tab.evaluate(condition):
        assert time.monotonic() < deadline, condition
        tab.wait_for_timeout(20)


LOUDNESS = """async () => {
  const {clock} = Player.current, meter = clock.context.createAnalyser();
  const samples = new Float32Array(meter.fftSize);
  clock.output.connect(meter);
  let loudest = 0;
  for (let turn = 0; turn < 15; turn++) {
    await new Promise((done) => setTimeout(done, 20));
    meter.getFloatTimeDomainData(samples);
    loudest = Math.max(loudest, ...samples.map(Math.abs));
  }
  meter.disconnect();
  return loudest;
}"""

# How far from where it would be the position is after something was done.
JUMP = """() => {
  const {clock} = Player.current, before = clock.currentTime, began = clock.context.currentTime;
  %s;
  return Math.abs(clock.currentTime - before - (clock.context.currentTime - began));
}"""


HEAR_REST = """document.querySelector("[aria-label='Hear the residual of run 1']").click()"""


def test_every_track_plays_and_switching_keeps_the_position(open_page, sweep, tmp_path):
    tab = open_page(sweep / "0" / "report.html")
    tab.keyboard.press("Space")
    until(tab, "Player.current.clock.currentTime > 0.1")
    assert tab.get_by_role("button", name="Pause").is_visible()
    tab.evaluate("Player.current.setLoop([0.2, 0.7])")  # where the melody sounds
    names = ["Mixture", "Target", "Residual", "Reference", "Synthesized", "Score"]
    for key, name in enumerate(names, 1):
        event = f'new KeyboardEvent("keydown", {{code: "Digit{key}", bubbles: true}})'
        press = f"document.body.dispatchEvent({event})"
        jump = tab.evaluate(JUMP % press)
        assert jump < 0.02 or jump == pytest.approx(0.5, abs=0.02)  # the loop may have begun anew
        assert (
            tab.get_by_role("button", name=f"Hear only {name}").get_attribute("aria-pressed")
            == "true"
        )
        assert tab.evaluate(LOUDNESS) > 1e-3, name
    tab.evaluate(
        "Player.current.heard.clear(), Player.current.listen(Player.current.playable[0], true)"
    )
    tab.get_by_role("slider", name="Volume of Mixture").fill("0")
    tab.wait_for_timeout(100)
    assert tab.evaluate(LOUDNESS) < 1e-3
    assert not tab.evaluate("Player.current.clock.paused")
    # Every track is as long as the recording, to a few samples.
    lengths = tab.evaluate("Player.current.playable.map(lane => lane.track.buffer.duration)")
    assert max(lengths) - min(lengths) < 1e-3
    assert max(lengths) == pytest.approx(3, abs=2e-3)
    picture = Path(os.environ.get("BESPOKE_SCREENSHOTS") or tmp_path) / "report.png"
    tab.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 50_000
    waited = [tab.get_attribute(".player", f"data-{moment}") for moment in ("interactive", "ready")]
    print("interactive after {} ms, all tracks after {} ms".format(*waited))


def test_a_songs_page_is_a_mixer_of_its_stems(open_page, sweep):
    stems = {name: sweep / "0" / f"{name}.wav" for name in ("target", "residual")}
    write_song_page(sweep / "song.report.html", "song", stems, stems, {"target": sweep / "0"})
    tab = open_page(sweep / "song.report.html")
    heard = "[...Player.current.heard].map(lane => lane.name)"
    assert tab.evaluate(heard) == ["Target", "Residual"]
    tab.keyboard.press("Space")
    until(tab, "Player.current.clock.currentTime > 0.3")
    assert tab.evaluate(LOUDNESS) > 1e-3
    tab.get_by_role("button", name="Hear Residual together with others").click()
    assert tab.evaluate(heard) == ["Target"]
    tab.keyboard.press("1")
    assert tab.evaluate(heard) == ["Recording"]


def test_loops_cursor_and_seeking_are_shared_by_all_lanes(open_page, sweep):
    tab = open_page(sweep / "0" / "report.html")
    lane = tab.locator(".lane").nth(1).locator(".wave")
    box = lane.bounding_box()
    tab.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 20)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 0.40 * box["width"], box["y"] + 22, steps=4)
    tab.mouse.move(box["x"] + 0.50 * box["width"], box["y"] + 22, steps=4)
    tab.mouse.up()
    assert tab.evaluate("Player.current.clock.loop") == pytest.approx([0.75, 1.5], abs=0.05)
    regions = tab.evaluate(
        "Player.current.lanes.map(lane => lane.regions.getRegions().map(region => [region.start, "
        "region.end]))"
    )
    assert all(region == [pytest.approx([0.75, 1.5], abs=0.05)] for region in regions)
    tab.keyboard.press("Space")
    for _ in range(6):
        tab.wait_for_timeout(200)
        assert 0.7 < tab.evaluate("Player.current.clock.currentTime") < 1.55
    tab.keyboard.press("Space")
    tab.keyboard.press("Escape")
    assert tab.evaluate("Player.current.clock.loop") is None
    tab.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + 100)  # in the spectrogram
    assert tab.evaluate("Player.current.clock.currentTime") == pytest.approx(2.4, abs=0.05)
    cursors = tab.evaluate(
        "Player.current.lanes.map(lane => "
        "lane.surfer.getWrapper().querySelector('.cursor').style.left)"
    )
    assert len(set(cursors)) == 1
    assert float(cursors[0].rstrip("%")) == pytest.approx(80, abs=1.5)
    tab.keyboard.press("Home")
    tab.keyboard.press("ArrowRight")
    assert (
        tab.get_by_role("slider", name="Position").get_attribute("aria-valuetext")
        == "1.0 of 3.0 seconds"
    )


def test_a_page_fits_a_phone_knows_light_and_dark_and_names_all_controls(open_page, sweep):
    for path in (sweep / "0" / "report.html", sweep / "comparison.html"):
        tab = open_page(path, width=390, height=844, has_touch=True)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        grounds = set()
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            grounds.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(grounds) == 2
        nameless = """[...document.querySelectorAll("button, input, img, a")].filter((element) =>
          !(element.ariaLabel || element.alt || element.textContent.trim()
            || element.labels?.length)).map(({outerHTML}) => outerHTML)"""
        assert tab.evaluate(nameless) == []


def test_a_comparison_sorts_and_hears_one_run_where_the_other_is(open_page, sweep, tmp_path):
    tab = open_page(sweep / "comparison.html")
    order = (
        "[...document.querySelectorAll('table.runs tbody tr')].filter(row => !row.hidden)"
        ".map(row => row.dataset.run)"
    )
    gains = {
        run: json.loads((sweep / run / "metrics.json").read_text())["si_sdr_improvement"]
        for run in "01"
    }
    best_first = sorted(gains, key=gains.get, reverse=True)
    heading = tab.locator("table.runs thead th", has_text="improvement")
    heading.get_by_role("button").click()
    assert tab.evaluate(order) == [*best_first, "2"]
    assert heading.get_attribute("aria-sort") == "descending"
    heading.get_by_role("button").click()
    assert tab.evaluate(order) == [*reversed(best_first), "2"]  # what failed stays last
    tab.get_by_role("button", name="Hear run 0").click()
    until(tab, "Player.current.clock.currentTime > 0.2")
    assert (
        tab.evaluate(JUMP % """document.querySelector("[aria-label='Hear run 1']").click()""")
        < 0.02
    )
    assert tab.evaluate("[...Player.current.heard].map(lane => lane.run)") == ["1"]
    assert tab.get_by_role("button", name="Hear run 1").get_attribute("aria-pressed") == "true"
    # The residual is heard at the same position, from its button, or by a key and back.
    assert tab.evaluate(JUMP % HEAR_REST) < 0.02
    heard = "[...Player.current.heard].map(lane => [lane.run, Boolean(lane.rest)])"
    assert tab.evaluate(heard) == [["1", True]]
    until(tab, "[...Player.current.heard][0].track")
    tab.keyboard.press("r")
    assert tab.evaluate(heard) == [["1", False]]
    assert tab.evaluate("Player.current.playable[3].track") is None  # what was not heard
    # A filter hides rows and lanes.
    lanes = "[...document.querySelectorAll('.lane[data-run]:not(.rest)')].map(lane => !lane.hidden)"
    tab.get_by_role("searchbox").fill("seed=1")
    assert tab.evaluate(order) == ["1"]
    assert tab.evaluate(lanes) == [False, True]
    # Columns are chosen, and what is shown is exported with all decimals.
    tab.get_by_text("Columns", exact=True).click()
    tab.get_by_role("checkbox", name="model.layers").check()
    tab.get_by_role("checkbox", name="SI-SDR (dB)").uncheck()
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Export CSV").click()
    exported = read_csv(download.value.path())
    assert [(row["run"], row["seed"], row["model.layers"]) for row in exported] == [(1, 1, 1)]
    assert exported[0]["improvement (dB)"] == gains["1"]
    assert "SI-SDR (dB)" not in exported[0]
    tab.get_by_role("searchbox").fill("")
    # The group of both seeds opens into its runs.
    members = "[...document.querySelectorAll('.groups .member')].map(row => row.hidden)"
    assert tab.evaluate(members) == [True, True]
    tab.locator(".groups .open").click()
    assert tab.evaluate(members) == [False, False]
    assert tab.locator(".chart canvas").count() == 2
    tab.screenshot(
        path=Path(os.environ.get("BESPOKE_SCREENSHOTS") or tmp_path) / "comparison.png",
        full_page=True,
    )
