"""What a sound file holds, whatever the lengths in its headers say.

libsndfile believes the announced length: of a WAV whose recorder never wrote one it reads nothing,
of an MP3 of varying rate without a table as much as the first frame's rate makes of it, and of two
streams that were joined the first. Here the file itself is looked through, and handed to libsndfile
in pieces whose headers tell the truth.
"""

import functools
import io
import itertools
import mmap
import os
import re
import struct
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from bespoke.utils.errors import BespokeError

Bytes = bytes | mmap.mmap
Spans = tuple[bytes | tuple[int, int], ...]
"""What a piece is made of, in order: bytes, or places in the file (first, last)."""

NEVER_WRITTEN = 0x7FFF0000  # programs write as much, or more, who do not know the length yet
_FEW_BYTES = 1 << 10  # after the samples: so many may be anything, and are too short to be heard
_SLACK_BYTES = 64  # by which a header's length may be wrong
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")


class Piece(io.RawIOBase):
    """A part of a file, with some bytes replaced: a file that libsndfile can read.

    Args:
        path: of the file.
        spans: what it is made of.
    """

    def __init__(self, path: Path, spans: Spans):
        super().__init__()
        self._file = open(path, "rb")  # noqa: SIM115 (it is closed with the piece)
        self._spans = spans
        lengths = (len(s) if isinstance(s, bytes) else s[1] - s[0] for s in self._spans)
        self._starts = [0, *itertools.accumulate(lengths)]
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._starts[-1]}
        self._position = max(0, base[whence] + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view, count = memoryview(buffer).cast("B"), 0
        for span, start, end in zip(self._spans, self._starts, self._starts[1:], strict=False):
            inside = self._position - start
            if not start <= self._position < end or count == len(view):
                continue
            wanted = min(len(view) - count, end - self._position)
            if isinstance(span, bytes):
                part = span[inside : inside + wanted]
            else:
                self._file.seek(span[0] + inside)
                part = self._file.read(wanted)
            view[count : count + len(part)] = part
            count, self._position = count + len(part), self._position + len(part)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True)
class Pieces:
    """What a file is made of.

    Attributes:
        path: of the file.
        spans: of each piece; none where the file is one, and its header says the truth.
        missing: how many samples are not there, at least, that it says it has.
    """

    path: Path
    spans: tuple[Spans, ...] = ()
    missing: int = 0

    def each(self) -> Generator[Path | Piece, None, None]:
        """What libsndfile is to read, one after the other."""
        if not self.spans:
            yield self.path
        for spans in self.spans:
            with Piece(self.path, spans) as piece:
                yield piece


def pieces_of(path: Path) -> Pieces:
    """Look through a file of a kind that libsndfile reads.

    Raises:
        BespokeError: it announces less than it has, in a way that nothing here puts right.
    """
    stat = path.stat()
    return _pieces(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)  # a run reads its recording several times
def _pieces(path: Path, size: int, _changed_ns: int) -> Pieces:
    if not size:
        return Pieces(path)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        first = _after_id3(data, 0)
        for magic, look in _KINDS:
            if re.match(magic, data[first : first + 12], re.DOTALL):
                return look(path, data, first)
    return Pieces(path)


def _after_id3(data: Bytes, position: int) -> int:
    """The place after all ID3 tags that begin at this one."""
    while data[position : position + 3] == b"ID3" and position + 10 <= len(data):
        size = functools.reduce(
            lambda total, byte: total << 7 | byte & 127, data[position + 6 : position + 10]
        )
        position += 10 + size + (10 if data[position + 5] & 16 else 0)
    return position


# WAV, AIFF and CAF: chunks, one of which holds the samples


@dataclass(frozen=True)
class _Chunks:
    """A kind of file that is made of chunks.

    Attributes:
        head: of a chunk, its name and size, for `struct`.
        start: of the first chunk.
        name: of the chunk that holds the samples.
        extra: what this chunk holds before them, in bytes.
        even: whether each chunk begins at an even place.
    """

    head: str
    start: int
    name: bytes
    extra: int
    even: bool

    def read(self, data: Bytes, place: int) -> tuple[bytes, int] | None:
        """A chunk's name and size, if there is one at this place."""
        size = struct.calcsize(self.head)
        if place + size > len(data):
            return None
        name, length = struct.unpack(self.head, data[place : place + size])
        is_possible = all(31 < byte < 127 for byte in name) and (length >= 0 or name == self.name)
        return (name, length) if is_possible else None

    def after(self, place: int, length: int) -> int:
        """Where the chunk after this one begins."""
        return place + struct.calcsize(self.head) + length + (length % 2 if self.even else 0)

    def look(self, path: Path, data: Bytes, first: int) -> Pieces:
        """Find where the samples end."""
        spans: list[Spans] = []
        while True:
            place, wide = first + self.start, None
            while (chunk := self.read(data, place)) and chunk[0] != self.name:
                wide = place + 16 if chunk[0] == b"ds64" else wide
                place = self.after(place, chunk[1])
            if not chunk:  # libsndfile says what is wrong
                return Pieces(path)
            length_place, form = place + 4, self.head[0] + self.head[-1]
            length, samples = chunk[1], place + struct.calcsize(self.head)
            if wide is not None and length == 0xFFFFFFFF:  # RF64, which has it elsewhere
                length_place, form = wide, "<Q"
                (length,) = struct.unpack(form, data[wide : wide + 8])
            left = len(data) - samples
            if (
                length < 0
                or NEVER_WRITTEN <= length > left
                or (length <= self.extra < left and not self.read(data, samples + length))
            ):
                true = struct.pack(form, min(left, 0xFFFFFFFF) if form[-1] in "Ii" else left)
                end = length_place + len(true)
                spans.append(((first, length_place), true, (end, len(data))))
                return Pieces(path, tuple(spans))
            if length > left:
                spans.append(((first, len(data)),))
                is_cut = length > left + _SLACK_BYTES
                return Pieces(path, tuple(spans) if len(spans) > 1 else (), int(is_cut))
            following = self._next(data, self.after(place, length), first)
            if following is None:  # without the byte that makes it even
                following = self._next(data, samples + length, first)
            if following is None:
                raise BespokeError(
                    f"{path} says that {length} bytes of it are sound, and {left - length} more"
                    " follow: give what ffmpeg -i IN OUT.wav makes of it, which has what it says,"
                    " or, of a WAV, ffmpeg -ignore_length 1 -i IN OUT.wav, which has all."
                )
            if following == len(data) and not spans:
                return Pieces(path)
            spans.append(((first, following),))
            if following == len(data):
                return Pieces(path, tuple(spans))
            first = following

    def _next(self, data: Bytes, place: int, first: int) -> int | None:
        """Where another file of this kind begins, from this place on, or where all ends; None where
        what is there cannot be told."""
        while place < len(data):
            if data[place : place + 4] == data[first : first + 4]:
                return place
            if data[place : place + 11].startswith(_TAGS) or len(data) - place < _FEW_BYTES:
                return len(data)
            chunk = self.read(data, place)
            if not chunk or not place < self.after(place, chunk[1]) <= len(data) + 1:
                return None if any(data[place:]) else len(data)
            place = self.after(place, chunk[1])
        return len(data)


def _au(path: Path, data: Bytes, first: int) -> Pieces:
    """AU has one header, and 0xFFFFFFFF for a length that is not known."""
    start, length = struct.unpack(">II", data[first + 4 : first + 12].ljust(8, b"\0"))
    left = len(data) - first - start
    if length == 0xFFFFFFFF or left - _FEW_BYTES < length <= left + _SLACK_BYTES:
        return Pieces(path)
    if length > left:
        return Pieces(path, missing=1)
    return Pieces(path, (((first, first + 8), b"\xff" * 4, (first + 12, len(data))),))


# FLAC

_FLAC_TAIL_BYTES = 1 << 20  # which hold two frames of any kind


def _flac(path: Path, data: Bytes, first: int) -> Pieces:
    """Streams one after the other, each with the number of samples that its last frame tells."""
    starts = [first]
    while (place := data.find(b"fLaC\0\0\0\x22", starts[-1] + 8)) >= 0:
        starts.append(place)
    spans, is_true = [], len(starts) == 1
    for start, end in zip(starts, [*starts[1:], len(data)], strict=True):
        field = start + 18  # rate, channels, bits and, in its last 36 bits, the number of samples
        announced = int.from_bytes(data[field : field + 8], "big")
        count, total = announced & (1 << 36) - 1, _flac_samples(data, start, end)
        if total > count or len(starts) > 1:
            is_true = is_true and total <= count
            true = (announced >> 36 << 36 | max(total, count)).to_bytes(8, "big")
            spans.append(((start, field), true, (field + 8, end)))
    return Pieces(path) if is_true else Pieces(path, tuple(spans))


def _flac_samples(data: Bytes, start: int, end: int) -> int:
    """The number of samples up to the end of a stream's last frame; 0 if no frame is found.

    Other bytes may look like the head of a frame. A frame is believed only if the frame before it
    is found too.
    """
    smallest, largest = struct.unpack(">HH", data[start + 8 : start + 12])
    found: dict[int, int] = {}  # the sample with which a frame ends, by that with which it begins
    place = end
    while (place := data.rfind(b"\xff", max(start, end - _FLAC_TAIL_BYTES), place)) >= 0:
        frame = _flac_frame(data[place : place + 16])
        if frame is None:
            continue
        number, samples, is_sample = frame
        first = number if is_sample or smallest != largest else number * largest
        if first + samples in found:
            return found[first + samples]
        if first == 0:
            return samples
        found[first] = first + samples
    return 0


def _flac_frame(head: bytes) -> tuple[int, int, bool] | None:
    """Parse the head of a FLAC frame.

    Returns:
        The frame's number, how many samples it has, and whether the number is that of its first
        sample; None if the bytes are no such head.
    """
    if len(head) < 6 or head[1] & 0xFE != 0xF8 or head[3] & 1:
        return None
    size, lead = head[2] >> 4, head[4]
    more = next((n for n in range(1, 7) if lead >> 6 - n == (1 << n + 2) - 2), 0)  # as in UTF-8
    if not size or (lead & 0x80 and not more):
        return None
    number = lead & ((1 << 6 - more) - 1 if more else 0x7F)
    for byte in head[5 : 5 + more]:
        number = number << 6 | byte & 0x3F
    at = 5 + more
    width = {6: 1, 7: 2}.get(size, 0)
    if width:
        samples = int.from_bytes(head[at : at + width], "big") + 1
    elif size == 1:
        samples = 192
    else:
        samples = 576 << size - 2 if size < 6 else 256 << size - 8
    at += width + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    if at >= len(head) or _crc8(head[:at]) != head[at]:
        return None
    return number, samples, bool(head[1] & 1)


def _crc8(content: bytes) -> int:
    value = 0
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ (0x07 if value & 0x80 else 0)) & 0xFF
    return value


# Ogg


def _ogg(path: Path, data: Bytes, first: int) -> Pieces:
    """The links of a chain: each begins with the first pages of its streams."""
    starts, place, was_begin = [], first, False
    while data[place : place + 4] == b"OggS" and place + 27 <= len(data):
        is_begin = bool(data[place + 5] & 2)
        if is_begin and not was_begin:
            starts.append(place)
        was_begin = is_begin
        table = data[place + 27 : place + 27 + data[place + 26]]
        following = place + 27 + len(table) + sum(table)
        if data[following : following + 4] != b"OggS":  # something lies between two pages
            following = data.find(b"OggS", following)
        if following < 0:
            break
        place = following
    ends = [*starts[1:], len(data)]
    spans = tuple(((start, end),) for start, end in zip(starts, ends, strict=True))
    return Pieces(path, spans) if len(spans) > 1 else Pieces(path)


# MP3


_DECODER_DELAY = 529  # in samples


@dataclass(frozen=True)
class _Frame:
    """What the four bytes before an MPEG audio frame say.

    Attributes:
        head: these four.
        kind: version, layer, sample rate and whether it is mono, which stay the same in a stream.
        length: in bytes, these four included.
        samples: in it.
        table: where in it a table of the stream's frames lies, if it has one.
    """

    head: bytes
    kind: tuple[int, int, int, bool]
    length: int
    samples: int
    table: int


_BITRATES = {  # in kbit/s, by whether it is MPEG 1 and by layer
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


@functools.lru_cache(maxsize=4096)
def _frame(head: bytes) -> _Frame | None:
    """Read the four bytes before a frame; None where they are none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    rate, bitrate = head[2] >> 2 & 3, head[2] >> 4
    if version == 1 or layer == 4 or rate == 3 or not 1 <= bitrate <= 14:
        return None
    is_1, is_mono = version == 3, head[3] >> 6 == 3
    hertz = (44100, 48000, 32000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    samples = 384 if layer == 1 else 1152 if is_1 or layer == 2 else 576
    unit = 4 if layer == 1 else 1
    bits = 1000 * _BITRATES[is_1, layer][bitrate - 1] * samples
    length = (bits // (8 * unit * hertz) + (head[2] >> 1 & 1)) * unit
    table = 4 + (17 if is_mono else 32) if is_1 else 4 + (9 if is_mono else 17)
    return _Frame(head, (version, layer, hertz, is_mono), length, samples, table)


@dataclass
class _Stream:
    """One MP3 in a file: where it lies, how many frames of sound it has, and how many its table
    says, None where it has none."""

    first: int
    frame: _Frame
    tabled: int | None
    counted: int | None  # where in the file the table has the number
    frames: int = 0
    last: int = 0


def _mp3(path: Path, data: Bytes, first: int) -> Pieces:
    """Streams one after the other, each with a table that counts all its frames."""
    streams: list[_Stream] = []
    place, is_new = first, True
    while 0 <= place < len(data):
        frame = _frame(data[place : place + 4])
        if frame and not is_new and frame.kind != streams[-1].frame.kind:
            following = _frame(data[place + frame.length : place + frame.length + 4])
            frame = frame if following and following.kind == frame.kind else None
        if frame is None or place + frame.length > len(data):
            after = _after_id3(data, place)
            is_new = is_new or after > place
            place = after if after > place else _resync(data, place + 1)
            continue
        table, tabled, counted = _table(data, place, frame)
        if is_new or table or frame.kind != streams[-1].frame.kind:
            skipped = frame.length if table and counted is None else 0  # a table of no use here
            streams.append(_Stream(place + skipped, frame, tabled, counted))
            is_new = False
        streams[-1].frames += not table
        place += frame.length
        streams[-1].last = place
    streams = [stream for stream in streams if stream.frames]
    if any(stream.frame.kind[1] != 3 for stream in streams):  # other layers have no tables
        return Pieces(path)
    missing = sum(
        (stream.tabled - stream.frames) * stream.frame.samples
        for stream in streams
        if stream.tabled is not None and stream.frames < 0.95 * stream.tabled
    )
    if missing:
        return Pieces(path, missing=missing)
    if len(streams) == 1:
        (only,) = streams
        is_counted = only.counted is not None and only.tabled == only.frames
        if is_counted or soundfile.info(path).frames >= only.frames * only.frame.samples:
            return Pieces(path)
    return Pieces(path, tuple(map(_counted, streams)))


def _table(data: Bytes, place: int, frame: _Frame) -> tuple[bool, int | None, int | None]:
    """Whether a frame holds a table in place of sound, how many frames it counts, and where."""
    at = place + frame.table
    if data[at : at + 4] in (b"Xing", b"Info"):
        has_count = data[at + 7] & 1
        count = int.from_bytes(data[at + 8 : at + 12], "big") if has_count else None
        return True, count, at + 8 if has_count else None
    if data[place + 36 : place + 40] == b"VBRI":
        return True, int.from_bytes(data[place + 50 : place + 54], "big"), None
    return False, None, None


def _resync(data: Bytes, place: int) -> int:
    """Where the next frame begins that another follows; -1 where there is none."""
    while (place := data.find(b"\xff", place)) >= 0:
        frame = _frame(data[place : place + 4])
        if frame:
            following = _frame(data[place + frame.length : place + frame.length + 4])
            if following and following.kind == frame.kind:
                return place
        place += 1
    return -1


def _counted(stream: _Stream) -> Spans:
    """The stream, with a table that tells the truth: its own, or a frame with one before it."""
    count = stream.frames.to_bytes(4, "big")
    if stream.counted is not None:
        return ((stream.first, stream.counted), count, (stream.counted + 4, stream.last))
    frame = own = stream.frame
    head = own.head
    for bitrate in range(1, 15):  # the smallest frame that has room for a table
        head = bytes([255, own.head[1] | 1, bitrate << 4 | own.head[2] & 12, own.head[3]])
        frame = _frame(head) or own
        if frame.length >= frame.table + 36:
            break
    # With a table the decoder leaves out its own delay, which it keeps without one: a silent frame
    # goes before the others, and the table says that just this is to be left out.
    count = (stream.frames + 1).to_bytes(4, "big")
    left_out = (frame.samples - _DECODER_DELAY << 12).to_bytes(3, "big")
    tag = b"LAME3.100".ljust(21, b"\0") + left_out
    table = head + bytes(frame.table - 4) + b"Xing\0\0\0\1" + count + tag
    silence = head.ljust(frame.length, b"\0")
    return (table.ljust(frame.length, b"\0") + silence, (stream.first, stream.last))


_KINDS = (
    (rb"(RIFF|RF64|BW64)....WAVE", _Chunks("<4sI", 12, b"data", 0, True).look),
    (rb"FORM....AIF[FC]", _Chunks(">4sI", 12, b"SSND", 8, True).look),
    (rb"caff\x00\x01", _Chunks(">4sq", 8, b"data", 4, False).look),
    (rb"\.snd", _au),
    (rb"fLaC", _flac),
    (rb"OggS", _ogg),
    (rb"\xff[\xe2-\xff]", _mp3),
)
