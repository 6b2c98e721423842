"""Reading and writing MIDI, and choosing an instrument."""

import io

import mido
import numpy as np
import pytest

from bespoke.score.midi import (
    Note,
    Part,
    choose_part,
    describe,
    perturb,
    program_name,
    read_score,
    shift,
    stretch,
    transpose,
    without_key_switches,
    write_midi,
)
from bespoke.utils.errors import BespokeError

SCALE = (Note(0.0, 0.4, 60, 100), Note(0.5, 0.9, 62, 80), Note(1.0, 2.5, 64, 1))
PARTS = [
    Part("Lead Guitar", 29, False, SCALE),
    Part("Rhythm Guitar", 27, False, SCALE[:2]),
    Part("Guitar", 30, False, SCALE),
    Part("Bass", 2, False, SCALE),
    Part("", 0, True, SCALE),
]


def test_midi_round_trip(tmp_path):
    write_midi(tmp_path / "score.mid", PARTS)
    again = read_score(tmp_path / "score.mid")
    assert [(part.name, part.program, part.is_drum) for part in again] == [
        (part.name, part.program, part.is_drum) for part in PARTS
    ]
    for part, expected in zip(again, PARTS, strict=True):
        assert [(note.pitch, note.velocity) for note in part.notes] == [
            (note.pitch, note.velocity) for note in expected.notes
        ]
        times = [time for note in part.notes for time in (note.start_seconds, note.end_seconds)]
        assert times == pytest.approx(
            [time for note in expected.notes for time in (note.start_seconds, note.end_seconds)],
            abs=1e-3,
        )


def test_tempo_changes_set_the_time(tmp_path):
    track = mido.MidiTrack(
        [
            mido.MetaMessage("set_tempo", tempo=500_000),
            mido.Message("note_on", note=60, velocity=90, time=0),
            mido.Message("note_off", note=60, time=480),  # a beat at 120
            mido.MetaMessage("set_tempo", tempo=1_000_000),
            mido.Message("note_on", note=62, velocity=90, time=0),
            mido.Message(
                "note_on", note=62, velocity=0, time=480
            ),  # a beat at 60, ended in the other way
        ]
    )
    mido.MidiFile(ticks_per_beat=480, tracks=[track]).save(tmp_path / "tempo.mid")
    [part] = read_score(tmp_path / "tempo.mid")
    assert part.notes == (Note(0.0, 0.5, 60, 90), Note(0.5, 1.5, 62, 90))


def test_notes_come_in_order_of_time_and_empty_tracks_are_left_out(tmp_path):
    write_midi(
        tmp_path / "score.mid", [Part("Empty", 3, False, ()), Part("Lead", 4, False, SCALE[::-1])]
    )
    [part] = read_score(tmp_path / "score.mid")
    assert part.name == "Lead"
    assert [note.pitch for note in part.notes] == [60, 62, 64]


@pytest.mark.parametrize(
    ("instrument", "index"),
    [
        ("Bass", 3),
        ("bASS ", 3),
        ("lead", 0),  # the beginning of a name
        ("hythm g", 1),  # the middle of one
        ("guitar", 2),  # a whole name goes before part of others
        ("Overdriven Guitar", 0),  # the name of program 29
        ("drums", 4),
        (29, 0),  # a program
        ("27", 1),
        (1, 1),  # an index
        (4, 4),
        ("index:2", 2),
        ("program:2", 3),
        ("Program: 30", 2),
        ("index:4", 4),
    ],
)
def test_instrument_is_chosen(instrument, index):
    assert choose_part(PARTS, instrument) is PARTS[index]


def test_only_instrument_needs_no_choice():
    assert choose_part(PARTS[:1], None) is PARTS[0]


@pytest.mark.parametrize(
    ("instrument", "problem"),
    [
        (None, "has several instruments"),
        ("gui", "has more than one instrument 'gui'"),
        (2, "has more than one instrument 2"),  # the index of one and the program of another
        ("kazoo", "has no instrument 'kazoo'"),
        (99, "has no instrument 99"),
        ("index:5", "has no instrument 'index:5'"),
        ("program:0", "has no instrument 'program:0'"),  # a kit's number is no program
    ],
)
def test_unclear_choice_lists_all_instruments(instrument, problem):
    with pytest.raises(BespokeError) as caught:
        choose_part(PARTS, instrument, "band.mid", "song.others[1].instrument")
    message = str(caught.value)
    assert message.startswith(
        f"band.mid {problem}; set song.others[1].instrument to a name, or to index:N"
    )
    assert message.endswith(
        "0: Lead Guitar (Overdriven Guitar, 3 notes); 1: Rhythm Guitar (Electric Guitar (clean), 2 "
        "notes);"
        " 2: Guitar (Distortion Guitar, 3 notes); 3: Bass (Electric Grand Piano, 3 notes); 4: "
        "unnamed (Drums, 3 notes)."
    )


def test_sounds_have_general_midi_names():
    assert [program_name(part) for part in PARTS[2:]] == [
        "Distortion Guitar",
        "Electric Grand Piano",
        "Drums",
    ]
    assert describe(PARTS[1]) == "Rhythm Guitar (Electric Guitar (clean), 2 notes)"


def test_stretch_multiplies_times():
    assert stretch(SCALE[:2], 2) == (Note(0.0, 0.8, 60, 100), Note(1.0, 1.8, 62, 80))
    assert stretch(stretch(SCALE, 0.5), 2) == SCALE


def test_transpose_drops_what_leaves_the_range():
    notes = (Note(0, 1, 0), Note(1, 2, 60), Note(2, 3, 127))
    assert [note.pitch for note in transpose(notes, 12)] == [12, 72]
    assert [note.pitch for note in transpose(notes, -12)] == [48, 115]
    assert transpose(notes, 0) == notes


def broken(tmp_path):
    """Files that are no MIDI, by what is wrong with them."""
    write_midi(tmp_path / "good.mid", PARTS)
    good = (tmp_path / "good.mid").read_bytes()
    return {
        "empty": b"",
        "text": b"C major, please",
        "random": bytes((7 * index * index + 13) % 256 for index in range(2000)),
        "truncated": good[: len(good) // 2],
        "header only": good[:14],
        "damaged": good[:22] + bytes((11 * index * index + 5) % 256 for index in range(len(good))),
    }


@pytest.mark.parametrize(
    "wrong", ["empty", "text", "random", "truncated", "header only", "damaged"]
)
def test_corrupt_midi_is_refused(wrong, tmp_path):
    (tmp_path / "bad.mid").write_bytes(broken(tmp_path)[wrong])
    with pytest.raises(
        BespokeError,
        match=r"^The score .*bad\.mid cannot be read as MIDI \(.+\): export it again as a \.mid "
        r"file\.$",
    ):
        read_score(tmp_path / "bad.mid")


def test_score_without_notes_is_refused(tmp_path):
    write_midi(tmp_path / "rest.mid", [Part("Lead", 80, False, ())])
    with pytest.raises(BespokeError, match=r"rest\.mid has no notes: export the part"):
        read_score(tmp_path / "rest.mid")


def test_missing_score_is_refused(tmp_path):
    with pytest.raises(
        BespokeError, match=r"The score .*nosuch\.mid does not exist: check the path"
    ):
        read_score(tmp_path / "nosuch.mid")


def test_shifting_keeps_lengths():
    assert shift([Note(1.0, 1.5, 60), Note(2.0, 4.0, 62)], -0.5) == (
        Note(0.5, 1.0, 60),
        Note(1.5, 3.5, 62),
    )


def test_perturbed_notes_have_the_errors_that_are_promised():
    notes = [Note(index, index + 0.5, 60) for index in range(200)]
    rng = np.random.default_rng(0)
    draws = [perturb(notes, rng) for _ in range(300)]
    together = [
        np.mean(
            [
                note.start_seconds % 1
                if note.start_seconds % 1 < 0.5
                else note.start_seconds % 1 - 1
                for note in draw
            ]
        )
        for draw in draws
        if len(draw) == 200
    ]
    assert np.std(together) == pytest.approx(0.012, rel=0.25)
    octave_low = [np.median([note.pitch for note in draw]) == 48 for draw in draws]
    assert np.mean(octave_low) == pytest.approx(1 / 12, abs=0.05)
    assert np.mean([len(draw) == 200 for draw in draws]) == pytest.approx(0.5, abs=0.1)
    assert all(
        note.end_seconds > note.start_seconds and 0 <= note.pitch <= 127
        for draw in draws
        for note in draw
    )
    assert perturb(notes, np.random.default_rng(3)) == perturb(notes, np.random.default_rng(3))
    assert perturb([], rng) == ()


def smf(*tracks, kind=1, division=480):
    """The bytes of a MIDI file of these messages."""
    file = mido.MidiFile(
        type=kind, ticks_per_beat=division, tracks=[mido.MidiTrack(track) for track in tracks]
    )
    buffer = io.BytesIO()
    file.save(file=buffer)
    return buffer.getvalue()


def on(pitch, time=0, channel=0):
    return mido.Message("note_on", note=pitch, velocity=80, time=time, channel=channel)


def off(pitch, time=480, channel=0):
    return mido.Message("note_off", note=pitch, time=time, channel=channel)


def times(part):
    return [(note.start_seconds, note.end_seconds, note.pitch) for note in part.notes]


def read(content, tmp_path):
    (tmp_path / "score.mid").write_bytes(content)
    return read_score(tmp_path / "score.mid")


def test_tempo_map_of_any_track_holds_for_all(tmp_path):
    tempos = [
        mido.MetaMessage("set_tempo", tempo=1_000_000),
        mido.MetaMessage("set_tempo", tempo=250_000, time=480),
    ]
    melody = [on(60), off(60), on(62), off(62)]
    for tracks in ([tempos, melody], [melody, tempos]):
        (part,) = read(smf(*tracks), tmp_path)
        assert times(part) == [(0.0, 1.0, 60), (1.0, 1.25, 62)]


def test_one_track_of_several_channels_is_several_parts(tmp_path):
    song = [on(60), on(40, channel=1), on(36, channel=9), off(60), off(40, 0, 1), off(36, 0, 9)]
    parts = read(
        smf([mido.Message("program_change", program=33, channel=1), *song], kind=0), tmp_path
    )
    assert [(part.program, part.is_drum) for part in parts] == [(0, False), (33, False), (0, True)]


def test_part_goes_through_its_programs(tmp_path):
    changes = [mido.Message("program_change", program=program) for program in (27, 30, 27)]
    (part,) = read(
        smf(
            [changes[0], on(60), off(60), changes[1], on(62), off(62), changes[2], on(64), off(64)]
        ),
        tmp_path,
    )
    assert part.program == 27
    assert [note.pitch for note in part.notes] == [60, 62, 64]


def test_bends_and_controllers_are_passed_over_and_a_note_without_end_lasts_to_the_tracks_end(
    tmp_path,
):
    bend, pedal = (
        mido.Message("pitchwheel", pitch=4000, time=240),
        mido.Message("control_change", control=64, value=127, time=240),
    )
    (part,) = read(smf([on(60), bend, pedal, on(72), off(72, 960)]), tmp_path)
    assert times(part) == [(0.0, 1.5, 60), (0.5, 1.5, 72)]


def test_next_note_may_start_before_the_last_one_ends_at_one_tick(tmp_path):
    (part,) = read(smf([on(60), on(60, 480), off(60, 0), off(60, 480)]), tmp_path)
    assert times(part) == [(0.0, 0.5, 60), (0.5, 1.0, 60)]


def test_division_in_frames_of_film_is_read(tmp_path):
    content = bytearray(smf([on(60), off(60, 1000)]))
    content[12:14] = bytes([256 - 25, 40])  # 25 frames of 40 ticks: milliseconds
    (part,) = read(bytes(content), tmp_path)
    assert times(part) == [(0.0, 1.0, 60)]


def test_key_switches_are_left_out_and_a_bass_is_not():
    melody = [Note(0.5 * index, 0.5 * index + 0.4, 64 + index % 7) for index in range(20)]
    switches = [Note(0.0, 0.1, 24), Note(5.0, 5.1, 26)]
    assert without_key_switches([*switches, *melody]) == tuple(melody)
    bass = [Note(0.5 * index, 0.5 * index + 0.4, 28 + index % 7) for index in range(20)]
    for notes in (melody, bass, [*bass, *melody], [*bass, Note(0.0, 1.0, 70)]):
        assert without_key_switches(notes) == tuple(notes)
