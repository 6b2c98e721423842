"""MIDI files as they are met: what is wrong around the notes, and what an instrument is."""

import io
import logging
import struct

import mido
import pytest

from bespoke.cli.app import main
from bespoke.score import smf
from bespoke.score.midi import (
    Note,
    Part,
    choose_part,
    choose_parts,
    merged,
    read_score,
    write_midi,
)
from bespoke.score.smf import as_text
from bespoke.utils.errors import BespokeError

END = b"\0\xff\x2f\0"
TEMPO = b"\0\xff\x51\3\x07\xa1\x20"  # 120 beats a minute
NOTE = b"\0\x90\x3c\x40\x83\x60\x80\x3c\0"  # 480 ticks of middle C
SECOND = [(0.0, 0.5, 60)]


def chunk(name, content, size=None, order=">"):
    return name + struct.pack(f"{order}I", len(content) if size is None else size) + content


def midi(*tracks, kind=1, count=None, head=b"", head_size=None):
    header = struct.pack(">HHH", kind, len(tracks) if count is None else count, 480) + head
    return chunk(b"MThd", header, head_size) + b"".join(
        track if track[:4] == b"MTrk" else chunk(b"MTrk", track) for track in tracks
    )


def riff(content, before=b"", after=b"", size=None):
    inside = b"RMID" + before + chunk(b"data", content, size, "<") + after
    return chunk(b"RIFF", inside, order="<")


def read(content, tmp_path):
    (tmp_path / "score.mid").write_bytes(content)
    return read_score(tmp_path / "score.mid")


def times(part):
    return [(note.start_seconds, note.end_seconds, note.pitch) for note in part.notes]


def event(kind, data):
    return b"\0\xff" + bytes([kind, len(data)]) + data


FINE = midi(TEMPO + END, NOTE + END)
LIST = chunk(b"LIST", b"INFOINAM" + bytes(7), order="<") + b"\0"
WRONG = {
    "fine": FINE,
    "riff": riff(FINE),
    "riff with more": riff(FINE, LIST, LIST),
    "riff of no size": riff(FINE, size=0),
    "riff with sounds of 3 MB": riff(FINE, after=chunk(b"DLS ", bytes(3_000_000), order="<")),
    "old Mac's header": bytes(128) + FINE,
    "chunk of a vendor": (
        midi(TEMPO + END) + chunk(b"XFIH", b"anything") + chunk(b"MTrk", NOTE + END)
    ),
    "chunk of a vendor first": FINE[:14] + chunk(b"XFKM", bytes(9)) + FINE[14:],
    "chunk that ends too early": FINE + b"XFIH\0\0\1\0abc",
    "longer header": midi(TEMPO + END, NOTE + END, head=b"\1\2\3\4"),
    "header of 4 GB": midi(TEMPO + END, NOTE + END, head_size=0xFFFFFFFF),
    "header of no size": midi(TEMPO + END, NOTE + END, head_size=0),
    "says 5 tracks": midi(TEMPO + END, NOTE + END, count=5),
    "says 65535 tracks": midi(TEMPO + END, NOTE + END, count=65535),
    "says no track": midi(TEMPO + END, NOTE + END, count=0),
    "says 1 track": midi(TEMPO + END, NOTE + END, count=1),
    "first track says longer": midi(chunk(b"MTrk", TEMPO + END, 14), NOTE + END),
    "first track says shorter": midi(chunk(b"MTrk", TEMPO + END, 3), NOTE + END),
    "first track of 4 GB": midi(chunk(b"MTrk", TEMPO + END, 0xFFFFFFFF), NOTE + END),
    "last track says longer": midi(TEMPO + END, chunk(b"MTrk", NOTE + END, 500)),
    "last track says shorter": midi(TEMPO + END, chunk(b"MTrk", NOTE + END, 4)),
    "track of no size": midi(TEMPO + END, chunk(b"MTrk", NOTE + END, 0)),
    "no end marks": midi(TEMPO, NOTE),
    "bytes after the end": FINE + bytes(100),
    "bytes after a track's end": midi(TEMPO + END + b"junk", NOTE + END + b"\x90junk"),
    "key of 128 flats": midi(event(0x59, b"\x80\0") + TEMPO + END, NOTE + END),
    "key of no kind": midi(event(0x59, b"\0\7") + TEMPO + END, NOTE + END),
    "key signature of 0": midi(event(0x59, b"") + TEMPO + END, NOTE + END),
    "key signature of 1": midi(event(0x59, b"\1") + TEMPO + END, NOTE + END),
    "time signature of 2": midi(event(0x58, b"\4\2") + TEMPO + END, NOTE + END),
    "time signature of 9": midi(event(0x58, bytes(9)) + TEMPO + END, NOTE + END),
    "time signature of 255ths": midi(event(0x58, b"\4\xff\x18\x08") + TEMPO + END, NOTE + END),
    "film time of 1": midi(event(0x54, b"\1") + TEMPO + END, NOTE + END),
    "film time of 99 hours": midi(event(0x54, b"\xff" * 5) + TEMPO + END, NOTE + END),
    "tempo of 2": midi(event(0x51, b"\x07\xa1") + END, NOTE + END),
    "tempo of 0": midi(event(0x51, bytes(3)) + END, NOTE + END),
    "tempo of 4": midi(event(0x51, b"\x07\xa1\x20\0") + END, NOTE + END),
    "number of the sequence of 0": midi(event(0, b"") + TEMPO + END, NOTE + END),
    "port of 0": midi(TEMPO + END, event(0x21, b"") + event(0x20, b"") + NOTE + END),
    "unknown event": midi(TEMPO + END, event(0x77, b"abc") + NOTE + END),
    "end mark of 1": midi(TEMPO + b"\0\xff\x2f\1\0", NOTE + END),
    "message of a vendor": midi(TEMPO + END, b"\0\xf0\3\x43\x10\xf7" + NOTE + END),
    "running status across an event": midi(
        TEMPO + END, b"\0\x90\x3c\x40" + event(1, b"la") + b"\x83\x60\x3c\0" + END
    ),
    "running status across a message": midi(
        TEMPO + END, b"\0\x90\x3c\x40\0\xf0\2\x43\xf7\x83\x60\x3c\0" + END
    ),
    "clock in a file": midi(TEMPO + END, b"\0\xf8" + NOTE + END),
    "velocity beyond 127": midi(TEMPO + END, NOTE.replace(b"\x40", b"\xff") + END),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_around_the_notes_is_passed_over(name, tmp_path):
    (part,) = read(WRONG[name], tmp_path)
    assert times(part) == SECOND


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (midi(NOTE + END, count=3), "says that it has 3 tracks, and has 1"),
        (midi(event(0x51, b"\1") + NOTE + END), "a tempo in it is none"),
    ],
)
def test_what_may_matter_is_said_once(content, word, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    read(content, tmp_path)
    assert [word in message and "score.mid" in message for message in caplog.messages] == [True]


@pytest.mark.parametrize(
    "content",
    [
        FINE[:-3],
        FINE[:-8],
        midi(TEMPO + END, NOTE + END)[:-13],
        midi(NOTE + b"\0\xff\1\x7fla"),
        midi(NOTE)[:-3],
        FINE[:13],
        riff(FINE)[:-6],
        midi(TEMPO + END, count=2)[:14],
    ],
)
def test_file_that_ends_in_the_middle_is_refused(content, tmp_path):
    with pytest.raises(BespokeError, match=r"cannot be read as MIDI \("):
        read(content, tmp_path)


# Notes


def smf_of(*tracks, kind=1):
    buffer = io.BytesIO()
    mido.MidiFile(
        type=kind, ticks_per_beat=480, tracks=[mido.MidiTrack(track) for track in tracks]
    ).save(file=buffer)
    return buffer.getvalue()


def on(pitch, time=0, channel=0):
    return mido.Message("note_on", note=pitch, velocity=80, time=time, channel=channel)


def off(pitch, time=480, channel=0):
    return mido.Message("note_off", note=pitch, time=time, channel=channel)


def control(number, value, time=0, channel=0):
    return mido.Message("control_change", control=number, value=value, time=time, channel=channel)


def pedal(value, time=0, channel=0):
    return control(64, value, time, channel)


def program(number, channel=0, time=0):
    return mido.Message("program_change", program=number, channel=channel, time=time)


def bend(channel, time=0):
    return mido.Message("pitchwheel", pitch=500, channel=channel, time=time)


def test_first_end_of_a_key_is_its_first_notes(tmp_path):
    (part,) = read(smf_of([on(60), on(60, 480), off(60, 240), off(60, 960)]), tmp_path)
    assert times(part) == [(0.0, 0.75, 60), (0.5, 1.75, 60)]
    (part,) = read(
        smf_of([on(60), on(60, 240), on(60, 240), off(60, 240), off(60, 240), off(60, 240)]),
        tmp_path,
    )
    assert times(part) == [(0.0, 0.75, 60), (0.25, 1.0, 60), (0.5, 1.25, 60)]


def test_note_without_an_end_ends_where_its_key_is_struck_again(tmp_path):
    (part,) = read(smf_of([on(60), on(60, 480), off(60, 240), on(60, 240), off(60, 480)]), tmp_path)
    assert times(part) == [(0.0, 0.5, 60), (0.5, 0.75, 60), (1.0, 1.5, 60)]
    (part,) = read(smf_of([on(60), on(60, 480), on(60, 480), on(72), off(72)]), tmp_path)
    assert times(part) == [(0.0, 0.5, 60), (0.5, 1.0, 60), (1.0, 1.5, 60), (1.0, 1.5, 72)]


def test_notes_of_a_key_that_overlap_survive_being_written(tmp_path):
    notes = (Note(0.5, 1.5, 60), Note(1.0, 4.0, 60), Note(2.0, 5.0, 60))
    write_midi(tmp_path / "again.mid", [Part("", 0, False, notes)])
    (part,) = read_score(tmp_path / "again.mid")
    assert times(part) == [(note.start_seconds, note.end_seconds, 60) for note in notes]


@pytest.mark.parametrize(
    ("track", "expected"),
    [
        # Held to where the pedal comes up.
        ([pedal(127), on(60), off(60), pedal(0, 480)], [(0.0, 1.0, 60)]),
        # 64 is down, 63 is up; between, its place does not count.
        ([pedal(64), on(60), off(60), pedal(100, 240), pedal(63, 240)], [(0.0, 1.0, 60)]),
        ([pedal(63), on(60), off(60), pedal(0, 480)], SECOND),
        # Pressed only after the key: too late, or while it is down.
        ([on(60), off(60), pedal(127), pedal(0, 480)], SECOND),
        ([on(60), pedal(127, 240), off(60, 240), pedal(0, 480)], [(0.0, 1.0, 60)]),
        # Released before the key: the key alone counts.
        ([pedal(127), on(60), pedal(0, 240), off(60, 240)], SECOND),
        # Up and down again at once: what was held ends there.
        ([pedal(127), on(60), off(60), pedal(0, 480), pedal(127), pedal(0, 480)], [(0.0, 1.0, 60)]),
        # Struck again while it is held.
        (
            [pedal(127), on(60), off(60), on(60, 240), off(60, 240), pedal(0, 480)],
            [(0.0, 0.75, 60), (0.75, 1.5, 60)],
        ),
        # Another key goes on.
        (
            [pedal(127), on(60), off(60), on(62, 240), off(62, 240), pedal(0, 480)],
            [(0.0, 1.5, 60), (0.75, 1.5, 62)],
        ),
        # Never released: to the track's end.
        ([pedal(127), on(60), off(60), on(62), off(62, 960)], [(0.0, 1.5, 60), (0.5, 1.5, 62)]),
        # Drums and other channels are not held by it.
        ([pedal(127, channel=9), on(60, channel=9), off(60, channel=9), pedal(0, 480, 9)], SECOND),
        ([pedal(127, channel=3), on(60), off(60), pedal(0, 480, 3)], SECOND),
    ],
)  # fmt: skip
def test_sustain_pedal_holds_notes(track, expected, tmp_path):
    (part,) = read(smf_of(track), tmp_path)
    assert times(part) == expected


def test_pedal_of_another_track_holds_the_same_instrument_alone(tmp_path):
    left, right, pedals = [on(48), off(48)], [on(72), off(72)], [pedal(127), pedal(0, 960)]
    parts = read(smf_of([program(0), *left], [program(0), *right], pedals), tmp_path)
    assert [times(part) for part in parts] == [[(0.0, 1.0, 48)], [(0.0, 1.0, 72)]]
    parts = read(smf_of([program(0), *left], [program(40), *right, *pedals]), tmp_path)
    assert times(parts[0]) == [(0.0, 0.5, 48)]


# Instruments


def test_program_of_another_track_counts_where_there_is_none(tmp_path):
    melody = [on(60), off(60)]
    (part,) = read(smf_of([program(56)], melody), tmp_path)
    assert part.program == 56
    (part,) = read(smf_of(melody, [program(56)]), tmp_path)
    assert part.program == 56
    (part,) = read(smf_of([program(56)], [program(24), *melody]), tmp_path)
    assert part.program == 24
    (part,) = read(smf_of([program(56, channel=1)], melody), tmp_path)
    assert part.program == 0
    # From where on it holds.
    changes = [program(56), program(70, time=480)]
    (part,) = read(smf_of(changes, [*melody, on(62), off(62), on(64), off(64)]), tmp_path)
    assert part.program == 70
    parts = read(smf_of([program(56)], melody, kind=2), tmp_path)  # whose tracks are apart
    assert [part.program for part in parts] == [0]


def lines(channels, notes=24, gap=0):
    """A melody whose notes go through the channels."""
    track = []
    for index in range(notes):
        channel = channels[index % len(channels)]
        track += [on(50 + index % 20, gap, channel), off(50 + index % 20, 120, channel)]
    return track


def named(name):
    return mido.MetaMessage("track_name", name=name)


CONDUCTOR = [mido.MetaMessage("set_tempo", tempo=500_000)]
ZONE = [control(101, 0), control(100, 6), control(6, 10)]


@pytest.mark.parametrize(
    "channels",
    [(0, 1), (0, 1, 2, 3, 4, 5), (10, 11, 12, 13, 14, 15), (5, 6, 7, 8, 9, 10), range(11)],
)
def test_strings_of_a_guitar_are_one_part(channels, tmp_path):
    track = [named("Lead"), *(program(29, channel) for channel in channels), *lines(channels)]
    (part,) = read(smf_of(CONDUCTOR, track), tmp_path)
    assert (part.name, part.program, part.is_drum, len(part.notes)) == ("Lead", 29, False, 24)
    bass = [named("Bass"), program(33, 15), *lines([15], 3)]
    parts = read(smf_of(CONDUCTOR, track, bass) if 15 not in channels else smf_of(track), tmp_path)
    assert [part.name for part in parts] == ["Lead", "Bass"][: len(parts)]


@pytest.mark.parametrize("kind", [0, 1])
def test_mpe_is_one_part(kind, tmp_path):
    members = range(1, 11)  # among them the drums'
    expressive = [bend(channel) for channel in members]
    for head in (
        ZONE,
        [*ZONE, program(81)],
        [program(81, channel) for channel in range(1, 11)],
        expressive,
    ):
        (part,) = read(smf_of([*head, *lines(members)], kind=kind), tmp_path)
        assert (part.is_drum, len(part.notes)) == (False, 24), head
    # A master's notes belong to it; the program may be on its channel.
    upper = [control(101, 0, channel=15), control(100, 6, channel=15), control(6, 5, channel=15)]
    (part,) = read(
        smf_of([*upper, *lines([10, 11, 12, 13, 14]), on(40, 0, 15), off(40, 9, 15)], kind=kind),
        tmp_path,
    )
    assert len(part.notes) == 25


def test_channels_of_a_band_stay_apart(tmp_path):
    chords = [
        on(60, 0, 1),
        on(64, 0, 1),
        on(67, 0, 1),
        off(60, 480, 1),
        off(64, 0, 1),
        off(67, 0, 1),
    ]
    drums = [on(36, 0, 9), on(42, 0, 9), off(36, 60, 9), off(42, 0, 9)] * 4
    # In one track: with programs of their own, with none, and with the drums beside strings.
    band = [program(29), program(33, 1), *lines([0], 4), *lines([1], 4), *drums]
    for kind in (0, 1):
        parts = read(smf_of(band, kind=kind), tmp_path)
        assert [(part.program, part.is_drum) for part in parts] == [
            (29, False),
            (33, False),
            (0, True),
        ]
        parts = read(smf_of([*lines([0], 4), *chords * 4, *drums], kind=kind), tmp_path)
        assert [part.is_drum for part in parts] == [False, False, True]
        strings = [program(29, channel) for channel in range(6)]
        parts = read(smf_of([*strings, *lines(range(6)), *drums], kind=kind), tmp_path)
        assert [(len(part.notes), part.is_drum) for part in parts] == [(24, False), (8, True)]
    # Two guitars in one track of type 0.
    parts = read(smf_of([program(29), program(29, 1), *lines([0, 1], 8)], kind=0), tmp_path)
    assert len(parts) == 2
    # The same sound in two tracks.
    guitar = [program(29), *lines([0], 4)]
    assert len(read(smf_of(guitar, guitar), tmp_path)) == 2


LEAD, SECOND_LEAD, BASS, DRUMS = (
    Part("Lead", 29, False, (Note(0.0, 1.0, 60), Note(2.0, 3.0, 62))),
    Part("Lead 2", 30, False, (Note(0.0, 1.5, 60), Note(1.0, 2.0, 64), Note(3.0, 4.0, 65))),
    Part("Bass, fretless", 35, False, (Note(0.0, 1.0, 40),)),
    Part("", 0, True, (Note(0.0, 1.0, 36),)),
)
BAND = [LEAD, SECOND_LEAD, BASS, DRUMS]


@pytest.mark.parametrize(
    "instrument",
    [
        "Lead,Lead 2",
        "lead, LEAD 2",
        ["Lead", "Lead 2"],
        "index:0,index:1",
        [0, 1],
        "29,30",
        "1,0,0",
    ],
)
def test_several_parts_can_be_one(instrument):
    part = choose_part(BAND, instrument)
    assert {one.name for one in choose_parts(BAND, instrument)} == {"Lead", "Lead 2"}
    assert part.program == 30  # of most notes
    # Where both play the same the longer note is kept.
    assert [(note.start_seconds, note.end_seconds, note.pitch) for note in part.notes] == [
        (0.0, 1.5, 60),
        (1.0, 2.0, 64),
        (2.0, 3.0, 62),
        (3.0, 4.0, 65),
    ]


def test_name_with_a_comma_is_one_part():
    assert choose_part(BAND, "Bass, fretless") is BASS
    assert choose_part(BAND, "bass,") is BASS
    assert merged([BASS]) is BASS


@pytest.mark.parametrize(
    ("instrument", "problem"),
    [
        ("Lead,Oboe", "no instrument 'Oboe'"),
        ("Lead,Drums", "cannot be one target"),
        ([], "several"),
    ],
)
def test_parts_that_cannot_be_one_are_refused(instrument, problem):
    with pytest.raises(BespokeError, match=problem):
        choose_part(BAND, instrument)


# Names


@pytest.mark.parametrize(
    ("content", "text"),
    [
        *((name.encode("utf-8"), name) for name in ("Gitárre Zoë", "Ü", "Флейта", "笛", "🎸 solo")),
        *(
            (name.encode("cp1252"), name)
            for name in (
                *("Gitárre Zoë", "Flöte", "Für Elise", "CANÇÃO", "Läs", "Größe", "Señor", "É", "ß"),
                *("Don’t stop", "L’Été", "“Lead”", "Guitar – clean"),
                *("Öde", "Ténor", "Àéîõü", "Cœur"),
            )
        ),
        *(
            (name.encode("shift-jis"), name)
            for name in (
                *("ピアノ", "ギター (Electric Guitar Clean)", "主旋律", "笛", "ベース1"),
                *("メロディー", "さくら さくら", "第１バイオリン", "Piano 右手"),
                *("トランペット／Trumpet", "琴"),
            )
        ),
        ("ﾋﾟｱﾉ".encode("shift-jis"), "ﾋﾟｱﾉ"),
        (b"\xef\xbb\xbfLead", "Lead"),
        (b"Lead\0\0", "Lead"),
        (b"  Lead \t guitar\r\n", "Lead guitar"),
        (b"\x1b[31mred\x07\x7f", "[31mred"),
        ("a\u202egnp\u0085b\u200bc".encode(), "a gnp b c"),
        ("Flo\u0308te".encode(), "Flöte"),
        (b"", ""),
        (b"\xff\xfe", "ÿþ"),
    ],
)  # fmt: skip
def test_names_are_shown_as_written(content, text):
    assert as_text(content) == text
    assert as_text(content).isprintable()


@pytest.mark.parametrize("code", ["utf-8", "cp1252"])
@pytest.mark.parametrize("wanted", ["Flöte", "flÖTE", "Flo\u0308te", "löt"])
def test_part_is_found_by_its_name(wanted, code, tmp_path):
    name = "Flöte".encode(code)
    content = midi(TEMPO + END, event(3, name) + NOTE + END, event(3, b"Bass") + NOTE + END)
    parts = read(content, tmp_path)
    assert choose_part(parts, wanted).name == "Flöte"


def test_japanese_part_is_found_whatever_its_width(tmp_path):
    content = midi(event(3, "ﾋﾟｱﾉ".encode("shift-jis")) + NOTE + END, event(3, b"Bass") + NOTE + END)
    assert choose_part(read(content, tmp_path), "ピアノ").name == "ﾋﾟｱﾉ"


def test_names_survive_being_written_and_are_listed(tmp_path, capsys):
    names = ["ピアノ", "Flöte", "a\nb"]
    parts = [Part(name, 0, False, (Note(0.0, 1.0, 60),)) for name in names]
    write_midi(tmp_path / "score.mid", parts)
    assert [part.name for part in read_score(tmp_path / "score.mid")] == ["ピアノ", "Flöte", "a b"]
    assert main(["inspect", str(tmp_path / "score.mid")]) == 0
    out = capsys.readouterr().out
    assert [name in out for name in ("ピアノ", "Flöte", "a b")] == [True] * 3


def test_name_of_the_instrument_is_taken_where_the_track_has_none(tmp_path):
    content = midi(
        event(4, b"Strat") + NOTE + END, event(4, b"Strat") + event(3, b"Lead") + NOTE + END
    )
    assert [part.name for part in read(content, tmp_path)] == ["Strat", "Lead"]


def test_the_parser_gives_ticks_and_tempos():
    file = smf.read(midi(TEMPO + END, NOTE + b"\x60" + END[1:]))
    assert (file.kind, file.division, file.notices) == (1, 480, [])
    assert file.tracks[0].tempos == [(0, 500_000)]
    assert file.tracks[1].events == [(0, 0x90, 0, 60, 64), (480, 0x80, 0, 60, 0)]
    assert file.tracks[1].ticks == 576
