"""Standard MIDI files as they are met: what is played is read, whatever is wrong around it.

Programs write wrong numbers and lengths of tracks, chunks of their own, and events of lengths that
no standard knows. A track is read up to its own end, and what is not needed is passed over.
"""

import re
import unicodedata
from dataclasses import dataclass, field

NOTE_OFF, NOTE_ON, CONTROL, PROGRAM, BEND = 0x80, 0x90, 0xB0, 0xC0, 0xE0
_DATA_BYTES = {0x80: 2, 0x90: 2, 0xA0: 2, 0xB0: 2, 0xC0: 1, 0xD0: 1, 0xE0: 2}
_SYSTEM_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1, 0xF6: 0} | dict.fromkeys(range(0xF8, 0xFF), 0)
_TRACK_NAME, _INSTRUMENT_NAME, _TRACK_END, _TEMPO = 0x03, 0x04, 0x2F, 0x51
_LONGEST_NUMBER = 8  # bytes; the standard has four
_MAX_TRACKS = 1000


@dataclass
class Track:
    """What a track plays.

    Attributes:
        name: as text, see `as_text`.
        events: ticks from the start, kind (such as `NOTE_ON`), channel, and two numbers.
        tempos: ticks from the start, and microseconds a beat from there on.
        ticks: its length.
    """

    name: str = ""
    events: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    tempos: list[tuple[int, int]] = field(default_factory=list)
    ticks: int = 0


@dataclass
class MidiFile:
    """A MIDI file.

    Attributes:
        kind: 0: one track, 1: tracks that play together, 2: tracks that do not.
        division: ticks a beat; below 0: frames a second and ticks a frame, see the standard.
        tracks: in order.
        notices: what is wrong with it and may matter, in words.
    """

    kind: int
    division: int
    tracks: list[Track]
    notices: list[str]


def unwrapped(content: bytes) -> bytes:
    """The MIDI file that a RIFF file holds (RMID), without the sounds that may be beside it."""
    if content[:4] != b"RIFF" or content[8:12] != b"RMID":
        return content
    place = 12
    while place + 8 <= len(content) and content[place : place + 4] != b"data":
        length = int.from_bytes(content[place + 4 : place + 8], "little")
        place += 8 + length + length % 2
    length = int.from_bytes(content[place + 4 : place + 8], "little")
    return content[place + 8 : place + 8 + length if length else None] or content


def read(content: bytes) -> MidiFile:
    """Read a MIDI file; what is before its header is passed over.

    Raises:
        ValueError: it is none, or ends in the middle of a track.
    """
    start = content.find(b"MThd")
    if start < 0 or len(content) < start + 14:
        raise ValueError("it has no header of a MIDI file")
    kind, count, division = (
        int.from_bytes(content[start + place : start + place + 2], "big") for place in (8, 10, 12)
    )
    division -= (division & 0x8000) << 1
    if division == 0 or (division < 0 and division & 0xFF == 0):
        raise ValueError("its unit of time is 0")
    tracks, notices = [], []
    place = start + 14
    if content.count(b"MTrk") > _MAX_TRACKS:
        raise ValueError(f"it has more than {_MAX_TRACKS} tracks")
    while (place := content.find(b"MTrk", place)) >= 0 and place + 8 <= len(content):
        said = place + 8 + int.from_bytes(content[place + 4 : place + 8], "big")
        following = content.find(b"MTrk", place + 8)
        # The announced end is right where another chunk, or nothing more, begins there.
        is_right = said == len(content) or _is_chunk(content, said)
        end = said if is_right else following if following >= 0 else len(content)
        parser = _Parser(content, place + 8, end)
        parser.run()
        if not parser.is_ended and said > len(content):
            raise ValueError("it ends too early")
        tracks.append(parser.track)
        notices += [notice for notice in parser.notices if notice not in notices]
        place = said if is_right and said >= parser.place else parser.place
    if count and not tracks:
        raise ValueError("it ends too early")
    if len(tracks) < count:
        notices.append(f"it says that it has {count} tracks, and has {len(tracks)}")
    return MidiFile(kind, division, tracks, notices)


def _is_chunk(content: bytes, place: int) -> bool:
    """Whether a chunk begins here: a name of four letters and a length that there is room for."""
    if re.match(rb"[ -~]{4}", content[place : place + 4]) is None or place + 8 > len(content):
        return False
    length = int.from_bytes(content[place + 4 : place + 8], "big")
    return content[place : place + 4] == b"MTrk" or place + 8 + length <= len(content)


class _Parser:
    """Reads a track's events, to its end mark or, without one, to the last byte.

    Args:
        content: of the file.
        place: of the first event.
        end: before which all events lie.
    """

    def __init__(self, content: bytes, place: int, end: int):
        self.content, self.place, self.end = content, place, end
        self.track, self.is_ended = Track(), False
        self.notices: list[str] = []

    def run(self) -> None:
        tick = status = 0
        while self.place < self.end and not self.is_ended:
            tick += self._number()
            if self._peek() >= 0x80:
                code = self._take(1)[0]
            elif status:  # also after an event in between that the standard says ends this
                code = status
            else:
                raise ValueError("an event in it has no kind")
            if code < 0xF0:
                status = code
                self._play(tick, code)
            elif code == 0xFF:
                self._meta(tick, self._take(1)[0], self._take(self._number()))
            elif code in (0xF0, 0xF7):
                self._take(self._number())
            elif code in _SYSTEM_BYTES:
                self._take(_SYSTEM_BYTES[code])
            else:
                raise ValueError("an event in it is of no known kind")
        self.track.ticks = tick

    def _play(self, tick: int, code: int) -> None:
        data = [min(byte, 127) for byte in self._take(_DATA_BYTES[code & 0xF0])]
        self.track.events.append((tick, code & 0xF0, code & 0x0F, data[0], data[-1]))

    def _meta(self, tick: int, kind: int, data: bytes) -> None:
        if kind == _TRACK_END:
            self.is_ended = True
        elif kind == _TRACK_NAME or (kind == _INSTRUMENT_NAME and not self.track.name):
            self.track.name = as_text(data) or self.track.name
        elif kind == _TEMPO:
            if len(data) == 3 and any(data):
                self.track.tempos.append((tick, int.from_bytes(data, "big")))
            else:
                self.notices.append("a tempo in it is none, and is passed over")

    def _number(self) -> int:
        """A number of MIDI: it goes on as long as its bytes are from 128."""
        value = 0
        for _ in range(_LONGEST_NUMBER):
            byte = self._take(1)[0]
            value = value << 7 | byte & 0x7F
            if byte < 0x80:
                return value
        raise ValueError("a number in it has no end")

    def _peek(self) -> int:
        if self.place >= self.end:
            raise ValueError("it ends too early")
        return self.content[self.place]

    def _take(self, count: int) -> bytes:
        if self.place + count > self.end:
            raise ValueError("it ends too early")
        self.place += count
        return self.content[self.place - count : self.place]


def as_text(content: bytes) -> str:
    """The text that a name's bytes are, in one line that can be printed: UTF-8, Shift-JIS or,
    where it can be neither, Latin-1 with the additions of Windows.

    >>> [as_text("Flöte".encode(code)) for code in ("utf-8", "latin-1")]
    ['Flöte', 'Flöte']
    >>> [as_text("ピアノ".encode(code)) for code in ("utf-8", "shift-jis")]
    ['ピアノ', 'ピアノ']
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = _shift_jis(content) or content.decode("cp1252", "replace").replace("\ufffd", " ")
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _shift_jis(content: bytes) -> str | None:
    """The text, if it is more likely to be Japanese than Latin letters with accents, which may be
    the same bytes."""
    try:
        text = content.decode("cp932")
    except UnicodeDecodeError:
        return None
    foreign = [letter for letter in text if letter > "\x7f"]
    if not all(_is_japanese(letter) for letter in foreign):
        return None
    taken = len("".join(foreign).encode("cp932"))
    latin = sum(letter.isascii() and letter.isalpha() for letter in text)
    is_run = any(len(run) > 1 for run in re.findall(r"[^\x00-\x7f]+", text))
    # Two bytes that begin a letter where Latin-1 has none, side by side, are no accident.
    pair = rb"[\x81-\x9f][\x40-\x7e\x80-\xfc]"
    is_sure = re.search(pair + pair, content) or (not latin and re.search(pair, content))
    return text if is_sure or (is_run and taken >= latin) else None


def _is_japanese(letter: str) -> bool:
    """Whether it is a sign, kana, a kanji, or of full or half width; no letter of one's own."""
    ranges = (
        ("\u2010", "\u266f"),
        ("\u3000", "\u30ff"),
        ("\u4e00", "\u9fff"),
        ("\uff00", "\uff9f"),
    )
    return any(first <= letter <= last for first, last in ranges)
