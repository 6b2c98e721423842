"""What a run says and keeps of an alignment."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from bespoke.data.song import Song, Voice
from bespoke.score.align import Alignment
from bespoke.score.midi import Note, Part
from bespoke.training.alignment import align_song
from conftest import MELODY


def voice(name, *notes):
    return Voice(Part(name, 0, False, notes), ())


@pytest.fixture
def aligned(tiny_song, song_config, tmp_path, caplog):
    """Align the tiny song as if this had been found, and return the facts and the log's lines."""

    def align(others=(), fits=(), course=(), seconds=3):
        loaded = Song.load(song_config(*tiny_song.overrides))
        song = replace(
            loaded,
            mixture=np.resize(loaded.mixture, (1, seconds * loaded.sample_rate)),
            others=tuple(voice(f"part {number}", *notes) for number, notes in enumerate(others)),
        )
        found = Alignment(
            MELODY, 1.0, 1.0, 0.0, (), tuple(map(tuple, others)), 9.0, fits, course=tuple(course)
        )
        with caplog.at_level(logging.INFO, "bespoke"):
            result = align_song(song, found, tmp_path, True)
        json.dumps(result.facts)
        return result, caplog.messages

    return align


def test_a_part_is_left_out_for_what_it_does(aligned):
    near, far, outside = Note(0.2, 1.0, 50), Note(20.0, 21.0, 50), Note(-9.0, -8.0, 50)
    result, lines = aligned([[near], [near], [far], [outside]], (5.0, 1.0, 0.0, 0.0), seconds=30)
    assert [voice.part.name for voice in result.song.others] == ["part 0"]
    assert [(part["used"], part["confidence"] is None) for part in result.facts["others"]] == [
        (True, False),
        (False, False),
        (False, True),
        (False, True),
    ]
    said = {
        reason: [line.rpartition(": ")[2] for line in lines if reason in line]
        for reason in ("do not fit", "rest while the target plays", "before or after")
    }
    assert said == {
        "do not fit": ["part 1."],
        "rest while the target plays": ["part 2."],
        "before or after": ["part 3."],
    }


def test_passages_of_low_confidence_are_named_and_kept(aligned):
    course = [(float(second), 0.1 if 42 <= second <= 55 else 0.9) for second in range(80)]
    result, lines = aligned(course=course)
    assert "The score and the recording part ways at 0:42 to 0:55." in lines
    assert result.facts["along"]["seconds"][:2] == [0.0, 1.0]
    assert result.facts["along"]["confidence"][41:43] == [0.9, 0.1]
    assert result.facts["along"]["apart"] == [[42.0, 55.0]]


def test_nothing_is_named_where_the_score_is_right(aligned):
    result, lines = aligned(course=[(float(second), 0.9) for second in range(80)])
    assert not [line for line in lines if "part ways" in line]
    assert result.facts["along"]["apart"] == []
