"""Scores from notation programs, converted to the MIDI of a performance.

Repeats are unfolded, ties are joined, notes are at sounding pitch, and tempo marks are kept.

music21 reads MusicXML, and PyGuitarPro reads Guitar Pro 3 to 5; both are in an extra. They run in a
process of their own, `python -m bespoke.score.notation`, whose time and memory are limited, because
a short file can ask for an endless piece.
"""

import contextlib
import functools
import io
import os
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.parsers import expat

from bespoke.utils.errors import BespokeError, one_sentence

SUFFIXES = {
    ".musicxml",
    ".xml",
    ".mxl",
    ".mscz",
    ".mscx",
    ".gp",
    ".gp3",
    ".gp4",
    ".gp5",
    ".gpx",
    ".abc",
}
MAX_BYTES = 20_000_000
"""Of a file, and of what it unpacks to."""
MAX_SECONDS, MAX_MEMORY_BYTES = 180, 3_000_000_000
MAX_NOTES, MAX_DEPTH, MAX_MEASURES = 100_000, 100, 20_000
# What nothing here reads, and what tells it.
_OTHERS = {"MuseScore": (b"<museScore",), "Guitar Pro": (b"BCFZ", b"BCFS"), "ABC": (b"\nK:",)}
_LIBRARIES = {"MusicXML": "music21", "Guitar Pro": "guitarpro"}
_MISSING = 3  # the exit code where the library is not installed


def to_midi(path: Path, content: bytes) -> bytes | None:
    """What a score sounds like, as a MIDI file.

    Args:
        path: of the score, for messages.
        content: of the file.

    Returns:
        The MIDI file's bytes, or None where the content is of no notation program.

    Raises:
        BespokeError: the score cannot be read, has no notes, or nothing here reads it.
    """
    kind = "a compressed score" if content.startswith(b"PK") else "MusicXML"
    try:
        found = _recognized(content)
        if found is None:
            return None
        kind, inside = found
        if kind == "MusicXML" and inside is not None:
            _check_xml(inside)
    except (
        zipfile.BadZipFile,
        zlib.error,
        expat.ExpatError,
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
    ) as error:
        raise BespokeError(_unreadable(path, kind, one_sentence(error))) from error
    if inside is None:
        raise BespokeError(
            f"The score {path} is of {kind}: open it there, or in MuseScore, and export it as MIDI."
        )
    code, midi, reason = _converted(kind, inside)
    if code == _MISSING:
        raise BespokeError(
            f"The score {path} is of {kind}: open it there, or in MuseScore, and export it as"
            " MIDI, or have Bespoke read it"
            " (pip install 'bespoke-separation[scores]')."
        )
    if code:
        raise BespokeError(_unreadable(path, kind, reason))
    return midi


def _unreadable(path: Path, kind: str, reason: str) -> str:
    return (
        f"The score {path} cannot be read as {kind} ({reason}): open it in its own program, or in"
        " MuseScore, and export it as MIDI."
    )


def _recognized(content: bytes) -> tuple[str, bytes | None] | None:
    """The kind of score, and what its library is to read, if there is one."""
    if content.startswith(b"PK"):
        return _unpacked(content)
    head = content[:8000].replace(b"\0", b"")  # it may be UTF-16
    if b"<score-partwise" in head or b"<score-timewise" in head:
        return "MusicXML", content
    if re.match(rb"(?s).FICHIER GUITAR PRO v[345]", content):
        return "Guitar Pro", content
    if b"FICHIER GUITAR PRO" in head:
        return "Guitar Pro", None
    return next(
        ((kind, None) for kind, signs in _OTHERS.items() if any(sign in head for sign in signs)),
        None,
    )


def _unpacked(content: bytes) -> tuple[str, bytes | None] | None:
    """The same for a ZIP archive: compressed MusicXML, MuseScore, Guitar Pro from 7 on."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        if any(name.endswith(".mscx") for name in names):
            return "MuseScore", None
        if "Content/score.gpif" in names:
            return "Guitar Pro", None
        if "META-INF/container.xml" not in names:
            return None
        roots: list[str] = []
        parser = _parser()
        parser.StartElementHandler = lambda name, attributes: (
            roots.append(attributes["full-path"]) if name == "rootfile" else None
        )
        parser.Parse(_read(archive, "META-INF/container.xml"), True)
        if not roots:
            raise ValueError("its container names no score")
        return "MusicXML", _read(archive, roots[0])


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_BYTES / 1e6:g} MB")
    return content


def _parser() -> expat.XMLParserType:
    """An XML parser that refuses all entities that a file defines, which may grow without end.

    It opens no other files in any case.
    """

    def refuse(*_: Any) -> None:
        raise ValueError("it defines entities")

    parser = expat.ParserCreate()
    parser.EntityDeclHandler = refuse
    return parser


def _check_xml(content: bytes) -> None:
    """Find what would take the library long to read, or what it would read as an empty score.

    Raises:
        ValueError: the score has such a fault.
    """
    depth = notes = 0
    root = None

    def start(name: str, _: Any) -> None:
        nonlocal depth, notes, root
        root, depth, notes = root or name, depth + 1, notes + (name in ("pitch", "unpitched"))
        if depth > MAX_DEPTH or notes > MAX_NOTES:
            raise ValueError(
                f"it has more than {MAX_NOTES} notes"
                if notes > MAX_NOTES
                else "its elements are nested too deep"
            )

    def end(_: str) -> None:
        nonlocal depth
        depth -= 1

    parser = _parser()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.Parse(content, True)
    if root != "score-partwise":
        raise ValueError(
            "it is timewise" if root == "score-timewise" else "it is another kind of XML"
        )
    if not notes:
        raise ValueError("it has no notes")


@functools.lru_cache(maxsize=8)  # a command reads its score more than once
def _converted(kind: str, content: bytes) -> tuple[int, bytes, str]:
    """Read a score in a process of its own.

    Returns:
        The exit code of the process, the MIDI file, and the reason if there is no MIDI file.
    """
    root = Path(__file__).resolve().parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",  # whose buffers, one a core, would count as memory
    }
    command = [
        sys.executable,
        "-m",
        "bespoke.score.notation",
        kind,
        str(MAX_SECONDS),
        str(MAX_MEMORY_BYTES),
    ]
    try:  # on a busy machine a second of work takes several
        done = subprocess.run(
            command,
            input=content,
            capture_output=True,
            env=environment,
            timeout=5 * MAX_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode < 0:
        return (
            1,
            b"",
            f"it takes more than {MAX_SECONDS} seconds, or too much memory; the part alone may do",
        )
    reason = (
        done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2] or "the reader ended"
    )
    return done.returncode, done.stdout, reason


def _play_musicxml(content: bytes) -> bytes:
    from music21.harmony import Harmony
    from music21.midi.translate import streamToMidiFile
    from music21.musicxml.xmlToM21 import MusicXMLImporter

    importer = MusicXMLImporter()
    importer.readFile(io.BytesIO(content))
    score = importer.stream.toSoundingPitch()
    for note in list(score.recurse().notes):
        # A grace note has no length: in MIDI it would end before it begins, and so never end. Chord
        # symbols are not played.
        if note.duration.isGrace or isinstance(note, Harmony):
            note.activeSite.remove(note)
    return streamToMidiFile(score).writestr()


def _play_guitar_pro(content: bytes) -> bytes:
    import guitarpro

    song = guitarpro.parse(io.BytesIO(content))
    jump = next(
        (header.fromDirection.name for header in song.measureHeaders if header.fromDirection), None
    )
    if jump:
        raise ValueError(f"it has a {jump}, which only Guitar Pro follows")
    ticks, tempos = (
        [],
        {0: song.tempo},
    )  # where each measure is played, and the beats a minute from there on
    tick = 0
    order = _order(song.measureHeaders)
    for index in order:
        ticks.append(tick)
        tick += song.measureHeaders[index].length
    tracks = []
    for track in song.tracks:
        notes: list[list[int]] = []  # start, end, pitch, velocity
        for index, place in zip(order, ticks, strict=True):
            for voice in track.measures[index].voices:
                for beat in voice.beats:
                    start = place + beat.start - song.measureHeaders[index].start
                    change = beat.effect.mixTableChange
                    if change and change.tempo:
                        tempos[start] = change.tempo.value
                    _add(notes, beat, start, 0 if track.isPercussionTrack else track.offset)
        tracks.append((track, notes))
    return _midi(tracks, tempos)


def _add(notes: list[list[int]], beat: Any, start: int, capo: int) -> None:
    """Add what a beat strikes, and hold what it ties."""
    for note in beat.notes:
        end, pitch = start + beat.duration.time, note.realValue + capo
        if note.type.name == "tie":
            held = next((earlier for earlier in reversed(notes) if earlier[2] == pitch), None)
            if held and held[1] <= start:
                held[1] = end
                continue
        if note.type.name in ("normal", "tie") and 0 <= pitch <= 127:  # a dead note has no pitch
            notes.append([start, end, pitch, min(max(note.velocity, 1), 127)])


def _order(headers: Sequence[Any]) -> list[int]:
    """The measures in the order in which they are played.

    Measures between repeat signs are played again, with the ending of each turn.
    """
    order: list[int] = []
    index = first = turn = ending = 0
    furthest = -1
    while index < len(headers):
        header = headers[index]
        if header.isRepeatOpen and index > furthest:
            first, turn, ending = index, 0, 0
        furthest = max(furthest, index)
        ending = ending or header.repeatAlternative  # it lasts to the repeat sign
        is_played = not ending or bool(ending >> turn & 1)
        if is_played:
            order.append(index)
        if len(order) > MAX_MEASURES:
            raise ValueError(f"it plays more than {MAX_MEASURES} measures")
        index += 1
        if header.repeatClose > 0:
            if is_played and (ending or turn < header.repeatClose):
                index, turn = first, turn + 1
            elif is_played:
                first, turn = index, 0
            ending = 0
    return order


def _midi(tracks: Sequence[tuple[Any, list[list[int]]]], tempos: dict[int, int]) -> bytes:
    import mido

    def timed(events: list[tuple[int, Any]]) -> mido.MidiTrack:
        events.sort(
            key=lambda event: (event[0], event[1].type == "note_on")
        )  # a note ends before the next begins
        track, before = mido.MidiTrack(), 0
        for tick, message in events:
            track.append(message.copy(time=tick - before))
            before = tick
        return track

    midi = mido.MidiFile(ticks_per_beat=960, charset="utf-8")
    changes = [
        (tick, mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(tempo)))
        for tick, tempo in tempos.items()
        if tempo > 0
    ]
    midi.tracks.append(timed(changes))
    for track, notes in tracks:
        channel = 9 if track.isPercussionTrack else 0  # the reader tells parts by their tracks
        events: list[tuple[int, Any]] = [(0, mido.MetaMessage("track_name", name=track.name))]
        events.append(
            (
                0,
                mido.Message(
                    "program_change",
                    channel=channel,
                    program=max(0, track.channel.instrument) % 128,
                ),
            )
        )
        for start, end, pitch, velocity in notes:
            events.append(
                (start, mido.Message("note_on", channel=channel, note=pitch, velocity=velocity))
            )
            events.append((end, mido.Message("note_off", channel=channel, note=pitch)))
        midi.tracks.append(timed(events))
    file = io.BytesIO()
    midi.save(file=file)
    return file.getvalue()


def _main(kind: str, seconds: str, memory_bytes: str) -> int:
    with contextlib.suppress(
        ImportError, ValueError, OSError
    ):  # Windows has no such limits, macOS none of memory
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
        resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes), int(memory_bytes)))
    content, play = (
        sys.stdin.buffer.read(),
        {"MusicXML": _play_musicxml, "Guitar Pro": _play_guitar_pro}[kind],
    )
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the libraries say things
            midi = play(content)
    except ModuleNotFoundError as error:
        if error.name != _LIBRARIES[kind]:
            raise
        return _MISSING
    except Exception as error:  # whatever a library raises on bad bytes
        print(one_sentence(error)[:200], file=sys.stderr)
        return 1
    sys.stdout.buffer.write(midi)
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
