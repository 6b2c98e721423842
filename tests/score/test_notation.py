"""Files of notation programs are read as they sound; the answers are known."""

import io
import json
import zipfile

import mido
import pytest

from bespoke.cli import app
from bespoke.score import notation
from bespoke.score.midi import read_score
from bespoke.utils.errors import BespokeError

QUARTER = 2  # in MusicXML's divisions


def note(pitch, beats, tie=(), chord=False):
    step, alter, octave = pitch[0], {"#": 1, "b": -1}.get(pitch[1:-1], 0), pitch[-1]
    ties = "".join(f'<tie type="{kind}"/>' for kind in tie)
    place = f"<pitch><step>{step}</step><alter>{alter}</alter><octave>{octave}</octave></pitch>"
    return (
        f"<note>{'<chord/>' if chord else ''}{place}<duration>"
        f"{round(beats * QUARTER)}</duration>{ties}<voice>1</voice></note>"
    )


def rest(beats):
    return f"<note><rest/><duration>{round(beats * QUARTER)}</duration><voice>1</voice></note>"


def tempo(beats_a_minute):
    return (
        "<direction><direction-type><words>tempo</words></direction-type><sound "
        f'tempo="{beats_a_minute}"/></direction>'
    )


def bar(side, ending=None, kind=None, repeat=None):
    ending = f'<ending number="{ending}" type="{kind}"/>' if ending else ""
    repeat = f'<repeat direction="{repeat}"/>' if repeat else ""
    return f'<barline location="{side}">{ending}{repeat}</barline>'


def musicxml(*parts, head=""):
    """Score of parts with measures, name, General MIDI program from 1, and transposition."""
    listing, bodies = "", ""
    for index, (name, program, semitones, measures) in enumerate(parts):
        listing += (
            f'<score-part id="P{index}"><part-name>{name}</part-name><score-instrument '
            f'id="I{index}"><instrument-name>{name}'
        )
        listing += (
            "</instrument-name></score-instrument><midi-instrument "
            f'id="I{index}"><midi-program>{program}</midi-program>'
        )
        listing += "</midi-instrument></score-part>"
        transpose = (
            f"<transpose><chromatic>{semitones}</chromatic></transpose>" if semitones else ""
        )
        first = (
            f"<attributes><divisions>{QUARTER}</divisions><time><beats>4</beats><beat-type>"
            f"4</beat-type></time>{transpose}</attributes>"
        )
        numbered = (
            f'<measure number="{number}">{first if number == 1 else ""}{body}</measure>'
            for number, body in enumerate(measures, 1)
        )
        bodies += f'<part id="P{index}">{"".join(numbered)}</part>'
    return (
        f'<?xml version="1.0"?>{head}<score-partwise version="4.0"><part-list>'
        f"{listing}</part-list>{bodies}</score-partwise>"
    ).encode()


HARMONY = (
    "<harmony><root><root-step>C</root-step></root><kind>major</kind>"
    "</harmony>"
)  # what accompanists read is not played
GRACE = (
    "<note><grace/><pitch><step>B</step><octave>3</octave></pitch><voice>1</voice><type>"
    "eighth</type></note>"
)
CLARINET = [
    tempo(120)
    + bar("left", repeat="forward")
    + HARMONY
    + GRACE
    + note("C4", 1)
    + rest(1)
    + note("D4", 2, ["start"]),
    bar("left", 1, "start")
    + note("D4", 1, ["stop"])
    + rest(3)
    + bar("right", 1, "stop", "backward"),
    bar("left", 2, "start") + note("F#4", 4) + bar("right", 2, "discontinue"),
    tempo(60) + note("G4", 1) + note("Bb4", 1, chord=True) + rest(3),
]
BASS = [
    bar("left", repeat="forward") + rest(4),
    bar("left", 1, "start") + rest(4) + bar("right", 1, "stop", "backward"),
    bar("left", 2, "start") + rest(4) + bar("right", 2, "discontinue"),
    rest(1) + note("C2", 1) + rest(2),
]
SCORE = musicxml(("Clarinet in B", 72, -2, CLARINET), ("Bass", 34, -12, BASS))
CONTAINER = (
    b'<?xml version="1.0"?><container><rootfiles><rootfile '
    b'full-path="a/score.xml"/></rootfiles></container>'
)


def packed(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def heard(part):
    return [
        (round(note.start_seconds, 3), round(note.end_seconds, 3), note.pitch)
        for note in part.notes
    ]


@pytest.mark.parametrize("name", ["score.musicxml", "score.mxl"])
def test_musicxml_is_played_as_written(name, tmp_path, capsys):
    pytest.importorskip("music21", reason="an extra")
    content = (
        packed(**{"META-INF/container.xml": CONTAINER, "a/score.xml": SCORE})
        if name == "score.mxl"
        else SCORE
    )
    (tmp_path / name).write_bytes(content)
    clarinet, bass = read_score(tmp_path / name)
    assert (clarinet.name, clarinet.program, bass.name, bass.program) == (
        "Clarinet in B",
        71,
        "Bass",
        33,
    )
    once = [(0.0, 0.5, 58), (1.0, 2.5, 60)]  # the tied note is one
    again = [(4.0, 4.5, 58), (5.0, 6.0, 60)]
    assert heard(clarinet) == [*once, *again, (6.0, 8.0, 64), (8.0, 9.0, 65), (8.0, 9.0, 68)]
    assert heard(bass) == [(9.0, 10.0, 24)]  # the tempo marks are in the other part
    assert app.main(["inspect", str(tmp_path / name), "--json"]) == 0
    assert [part["notes"] for part in json.loads(capsys.readouterr().out)["parts"]] == [7, 1]


@pytest.mark.parametrize("code", ["utf-8", "iso-8859-1", "utf-16"])
def test_part_names_that_are_not_ascii_are_shown_as_written(code, tmp_path):
    pytest.importorskip("music21", reason="an extra")
    name = "Flöte" if code == "iso-8859-1" else "Flöte フルート"
    content = musicxml((name, 74, 0, [note("C5", 4)])).decode()
    content = content.replace('version="1.0"?', f'version="1.0" encoding="{code}"?')
    (tmp_path / "score.musicxml").write_bytes(content.encode(code))
    assert [part.name for part in read_score(tmp_path / "score.musicxml")] == [name]


def guitar_pro(version):
    """Two endings, a capo, a tie, a muffled note, a change of tempo, and drums."""
    import guitarpro as gp

    song = gp.Song(tempo=120)
    song.measureHeaders = [
        gp.MeasureHeader(number=number, start=960 + 3840 * (number - 1)) for number in (1, 2, 3)
    ]
    song.measureHeaders[0].isRepeatOpen = True
    song.measureHeaders[1].repeatAlternative, song.measureHeaders[1].repeatClose = 1, 1
    song.measureHeaders[2].repeatAlternative = 2
    lead = gp.Track(
        song,
        number=1,
        name="Lead",
        offset=2,
        channel=gp.MidiChannel(channel=0, effectChannel=1, instrument=29),
    )
    drums = gp.Track(
        song,
        number=2,
        name="Kit",
        isPercussionTrack=True,
        channel=gp.MidiChannel(channel=9, effectChannel=9, instrument=0),
    )
    drums.strings = [gp.GuitarString(number, 0) for number in range(1, 7)]
    song.tracks = [lead, drums]

    def write(track, number, *beats):
        voice = track.measures[number].voices[0]
        for value, notes, *effect in beats:
            beat = gp.Beat(
                voice,
                duration=gp.Duration(value),
                status=gp.BeatStatus.normal if notes else gp.BeatStatus.rest,
            )
            beat.notes = [
                gp.Note(beat, value=fret, string=string, type=kind) for string, fret, kind in notes
            ]
            beat.effect = effect[0] if effect else beat.effect
            voice.beats.append(beat)

    normal, tie, dead = gp.NoteType.normal, gp.NoteType.tie, gp.NoteType.dead
    write(lead, 0, (4, [(1, 0, normal)]), (4, []), (2, [(2, 1, normal)]))
    write(lead, 1, (2, [(2, 1, tie)]), (2, [(1, 3, dead)]))
    slower = gp.BeatEffect(
        mixTableChange=gp.MixTableChange(tempo=gp.MixTableItem(60), hideTempo=False)
    )
    write(lead, 2, (2, [(1, 5, normal)]), (2, [(1, 7, normal)], slower))
    write(drums, 0, (1, [(1, 38, normal)]))
    write(drums, 1, (1, []))
    write(drums, 2, (1, []))
    file = io.BytesIO()
    gp.write(song, file, version=version)
    return file.getvalue()


@pytest.mark.parametrize("version", [(4, 0, 6), (5, 1, 0)])
def test_guitar_pro_is_played_as_written(version, tmp_path):
    pytest.importorskip("guitarpro", reason="an extra")
    (tmp_path / "tab.gp").write_bytes(guitar_pro(version))
    lead, drums = sorted(read_score(tmp_path / "tab.gp"), key=lambda part: part.is_drum)
    assert (lead.name, lead.program, drums.name, drums.is_drum) == ("Lead", 29, "Kit", True)
    # E4 and B3 are the open strings; the capo is at the second fret.
    assert heard(lead) == [
        (0.0, 0.5, 66),
        (1.0, 3.0, 62),
        (4.0, 4.5, 66),
        (5.0, 6.0, 62),
        (6.0, 7.0, 71),
        (7.0, 9.0, 73),
    ]
    assert heard(drums) == [(0.0, 2.0, 38), (4.0, 6.0, 38)]


class Header:
    def __init__(self, is_open=False, close=-1, ending=0):
        self.isRepeatOpen, self.repeatClose, self.repeatAlternative = is_open, close, ending


@pytest.mark.parametrize(
    ("headers", "order"),
    [
        ([Header(), Header(), Header()], [0, 1, 2]),
        ([Header(), Header(True), Header(close=2), Header()], [0, 1, 2, 1, 2, 1, 2, 3]),
        # Without a start sign, a repeat starts after the previous one.
        ([Header(), Header(close=1), Header(close=1)], [0, 1, 0, 1, 2, 2]),
        (
            [Header(True), Header(ending=0b011, close=1), Header(ending=0b100), Header()],
            [0, 1, 0, 1, 0, 2, 3],
        ),
        (
            [
                *(Header(True), Header(ending=1), Header(close=1), Header(ending=2)),
                *(Header(), Header(True), Header(close=1)),
            ],
            [0, 1, 2, 0, 3, 4, 5, 6, 5, 6],
        ),
    ],
)
def test_repeats_of_a_tablature_are_unfolded(headers, order):
    assert notation._order(headers) == order


def test_library_that_is_not_there_is_named(tmp_path, monkeypatch):
    (tmp_path / "music21.py").write_text("raise ModuleNotFoundError(name='music21')")
    (tmp_path / "score.musicxml").write_bytes(musicxml(("A", 1, 0, [note("C4", 4)])))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(
        BespokeError,
        match=r"is of MusicXML: .* export it as MIDI, or have Bespoke read it \(pip install "
        r"'bespoke-separation\[scores\]'\)",
    ):
        read_score(tmp_path / "score.musicxml")


@pytest.mark.slow
def test_endless_piece_is_left(tmp_path, monkeypatch):
    pytest.importorskip("music21", reason="an extra")
    monkeypatch.setattr(notation, "MAX_SECONDS", 4)
    endless = note("C4", 4) + bar("right", repeat="backward").replace(
        "<repeat", '<repeat times="100000000"'
    )
    (tmp_path / "endless.xml").write_bytes(musicxml(("A", 1, 0, [endless])))
    with pytest.raises(
        BespokeError, match=r"it takes more than 4 seconds, or too much memory|MemoryError"
    ):
        read_score(tmp_path / "endless.xml")


@pytest.mark.parametrize(
    ("content", "program"),
    [
        (b"<?xml version='1.0'?><museScore version='4.0'>", "MuseScore"),
        (
            packed(**{"META-INF/container.xml": CONTAINER, "song.mscx": b"<museScore/>"}),
            "MuseScore",
        ),
        (packed(**{"Content/score.gpif": b"<GPIF/>"}), "Guitar Pro"),
        (b"BCFZ" + bytes(100), "Guitar Pro"),
        (b"\x18FICHIER GUITAR PRO v2.21", "Guitar Pro"),
        (b"X:1\nT:Air\nK:C\nCDEF|", "ABC"),
    ],
)
def test_score_that_nothing_reads_is_named_with_the_remedy(content, program, tmp_path):
    (tmp_path / "score.any").write_bytes(content)
    with pytest.raises(
        BespokeError,
        match=f"is of {program}: open it there, or in MuseScore, and export it as MIDI",
    ):
        read_score(tmp_path / "score.any")


def test_midi_of_the_tablature_is_a_midi_file():
    pytest.importorskip("guitarpro", reason="an extra")
    midi = mido.MidiFile(file=io.BytesIO(notation._play_guitar_pro(guitar_pro((5, 1, 0)))))
    assert [track.name for track in midi.tracks] == ["", "Lead", "Kit"]
    assert midi.length == pytest.approx(9.0)
