"""`bespoke preview`: the first mixes of the training, on a page, before training."""

import base64
import io
import json
import re

import numpy as np
import pytest
import soundfile
import yaml

from bespoke.__main__ import main
from conftest import SMALL

MINE = """defaults: [none, _self_]
target_gain_db: [-6, -6]
target:
  low: {_target_: audiomentations.LowPassFilter, p: 1.0}
mix:
  hiss: {_target_: audiomentations.AddGaussianSNR, p: 0.0}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "conf" / "aug").mkdir(parents=True)
    (tmp_path / "conf" / "aug" / "mine.yaml").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lanes(page):
    """The tracks of each player of a page, by name, as mono samples at 48 kHz."""
    found = []
    for data in re.findall(r'class="player-data">(.*?)</script>', page.read_text(), re.DOTALL):
        sounds = {}
        for lane in json.loads(data)["lanes"]:
            content = base64.b64decode(lane["audio"].partition(",")[2])
            sounds[lane["name"]] = soundfile.read(io.BytesIO(content))[0]
        found.append(sounds)
    return found


@pytest.mark.slow
def test_a_preview_plays_the_mixes_and_each_effect(folder, tiny_song, capsys):
    files = [str(tiny_song.mixture), str(tiny_song.score)]
    assert main(["preview", *files, *SMALL, "aug=mine", "--mixes", "3"]) == 0
    page = folder / "mix.mine.preview.html"
    assert capsys.readouterr().out.strip() == page.name
    text = page.read_text()
    assert text.count('<td class="number">-6.0 dB</td>') == 3  # the gain of each mix
    policy = yaml.safe_load(re.search(r"<pre>(_target_.*?)</pre>", text, re.DOTALL)[1])
    assert list(policy["target"]) == ["low"]
    *mixes, target, mix = lanes(page)
    assert len(mixes) == 3
    assert list(target) == ["Plain", "low"]
    assert list(mix) == ["Plain", "hiss"]
    for sounds in mixes:
        assert list(sounds)[:3] == ["Mixture", "Target", "Background"]
        whole, parts = sounds["Mixture"], sounds["Target"] + sounds["Background"]
        assert len(whole) == pytest.approx(0.5 * 48000, abs=100)
        # To what is lost by Ogg Opus.
        assert np.square(whole - parts).mean() < 0.05 * np.square(whole).mean()
    # The same page again is made anew; what is no such page stays.
    assert main(["preview", *files, *SMALL, "aug=mine", "--mixes", "1"]) == 0
    assert len(lanes(page)) == 3
    page.write_text("my notes")
    capsys.readouterr()
    assert main(["preview", *files, *SMALL, "aug=mine"]) == 2
    assert "already there" in capsys.readouterr().err
    assert page.read_text() == "my notes"


@pytest.mark.slow
def test_what_is_wrong_with_a_preview_is_one_sentence(folder, tiny_song, capsys):
    def said(*words):
        assert main(["preview", *map(str, words)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    (folder / "conf" / "aug" / "bad.yaml").write_text(MINE.replace("LowPass", "LowPas"))
    wrong = said(tiny_song.mixture, tiny_song.score, *SMALL, "aug=bad")
    assert wrong.startswith("error: conf/aug/bad.yaml: aug.target.low._target_")
    assert "needs its MIDI" in said(tiny_song.mixture, "aug=mine")
    assert "nosuch.mid is no file" in said(tiny_song.mixture, "nosuch.mid")
    assert "There is no song=nosuch" in said("nosuch", "aug=mine")
    assert list(folder.glob("*.html")) == []
