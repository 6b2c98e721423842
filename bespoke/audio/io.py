"""Audio, in from files and out to files.

Reading checks all that can be wrong with a user's file. It goes through the file in blocks, so that
an hour needs no more memory than a minute. Writing is atomic, see `bespoke.utils.files`.
"""

import contextlib
import itertools
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile

from bespoke.audio.dsp import resample_blocks
from bespoke.audio.pieces import NEVER_WRITTEN, Piece, pieces_of
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import atomic_path, existing

LOWEST_RATE, HIGHEST_RATE = (
    4000,
    768_000,
)  # Hz; a rate of 1 Hz would turn a second's worth of samples into a day
MAX_CHANNELS = 64
# Samples of all channels: 6 hours of stereo at 44.1 kHz. A malicious file of a few MB may unpack to
# years.
MAX_VALUES = 2_000_000_000
BLOCK_VALUES = 1 << 20  # that are read at once
_BYTES = {
    "PCM_U8": 1,
    "PCM_S8": 1,
    "PCM_16": 2,
    "PCM_24": 3,
    "PCM_32": 4,
    "DOUBLE": 8,
}  # a sample, where that is not 4
# What FFmpeg reads and libsndfile does not: the offset and the bytes by which a file is recognized,
# and FFmpeg's name of the format.
# Only these are tried: FFmpeg's playlists would open other files and addresses.
_FFMPEG_FORMATS = (
    (4, b"ftyp", "mov"),
    (0, b"\xff\xf1", "aac"),
    (0, b"\xff\xf9", "aac"),
    (0, b"ADIF", "aac"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "asf"),
)
_FORMATS = {
    ".wav": "WAV",
    ".flac": "FLAC",
    ".aiff": "AIFF",
    ".aif": "AIFF",
    ".ogg": "OGG",
    ".opus": "OGG",
    ".mp3": "MP3",
    ".m4a": "M4A",
}
WRITABLE = tuple(_FORMATS)
"""The endings of what `write_like` writes."""
_BEST = {"OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}  # what libsndfile calls the only encoding
# libsndfile's names of the tags, and FFmpeg's.
_FFMPEG_TAGS = {
    name: name for name in ("title", "artist", "album", "date", "genre", "comment", "copyright")
} | {"tracknumber": "track"}


@dataclass(frozen=True)
class Recording:
    """An audio file that was checked from end to end, or a part of it.

    The samples stay in the file.

    Attributes:
        path: of the file.
        sample_rate: in Hz.
        channels: their number.
        first: which of the file's samples is its first.
        samples: its length.
    """

    path: Path
    sample_rate: int
    channels: int
    first: int
    samples: int

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.samples / self.sample_rate

    def cut(self, first: int, last: int) -> "Recording":
        """The part from sample `first` to before sample `last`."""
        return replace(self, first=self.first + first, samples=last - first)

    def blocks(self) -> Iterator[np.ndarray]:
        """Its samples in order, in blocks that fit in little memory.

        Yields:
            Float32 `[channel, time]`, full scale at 1.
        """
        position, last = 0, self.first + self.samples
        for _, block in _decode(self.path):
            part = block[:, max(self.first - position, 0) : max(last - position, 0)]
            position += block.shape[1]
            if part.shape[1]:
                yield part
            if position >= last:
                return

    def read(self) -> np.ndarray:
        """All of it: float32 `[channel, time]`, full scale at 1."""
        waveform = np.empty((self.channels, self.samples), np.float32)
        position = 0
        for block in self.blocks():
            waveform[:, position : position + block.shape[1]] = block
            position += block.shape[1]
        return waveform

    def read_mono(self, sample_rate: int) -> np.ndarray:
        """Its channel mean at `sample_rate`, `[1, time]`."""
        mono = (block.mean(axis=0, keepdims=True) for block in self.blocks())
        # Write into one array. A list of an hour's blocks and then their concatenation would take
        # twice the memory and fragment it.
        waveform, position = (
            np.empty((1, -(-self.samples * sample_rate // self.sample_rate)), np.float32),
            0,
        )
        for block in resample_blocks(mono, self.sample_rate, sample_rate):
            waveform[:, position : position + block.shape[1]] = block
            position += block.shape[1]
        return waveform

    def levels(self) -> tuple[float, float]:
        """The largest absolute sample, and that of the channel mean."""
        peaks = [(np.abs(block).max(), np.abs(block.mean(axis=0)).max()) for block in self.blocks()]
        return float(max(peak for peak, _ in peaks)), float(max(peak for _, peak in peaks))


def open_audio(path: str | Path, role: str = "recording") -> Recording:
    """Check an audio file of 4 to 768 kHz with up to 64 channels.

    Any format that libsndfile knows is possible (WAV, FLAC, Ogg, Opus, MP3, AIFF, …). Where PyAV is
    installed, M4A/AAC, WebM and WMA are possible too.

    Args:
        path: the file.
        role: what the file is to the user; named in error messages.

    Raises:
        BespokeError: the file is missing, is no audio, or is incomplete, empty, too long, silent or
            not finite.
    """
    path = existing(path, role)
    sample_rate = channels = samples = 0
    is_silent = True
    try:
        for sample_rate, block in _decode(path):
            channels, samples = block.shape[0], samples + block.shape[1]
            if not LOWEST_RATE <= sample_rate <= HIGHEST_RATE or channels > MAX_CHANNELS:
                raise BespokeError(
                    f"The {role} {path} has {channels} channels at {sample_rate} Hz: convert it to"
                    " one or two channels at 44100 Hz."
                )
            if samples * channels > MAX_VALUES:
                hours = MAX_VALUES / channels / sample_rate / 3600
                raise BespokeError(
                    f"The {role} {path} is longer than {hours:.1f} hours: cut it into pieces."
                )
            if not np.isfinite(block).all():
                raise BespokeError(
                    f"The {role} {path} contains NaN or infinite samples: export it again."
                )
            is_silent = is_silent and not block.any()
    except (
        OSError,
        RuntimeError,
        ValueError,
        MemoryError,
    ) as error:  # also what libsndfile and FFmpeg raise
        raise BespokeError(
            f"The {role} {path} cannot be read as audio: convert it to WAV or FLAC first (ffmpeg"
            " -i IN OUT.wav)."
        ) from error
    missing = _missing_samples(path, samples)
    if missing:
        raise BespokeError(
            f"The {role} {path} is incomplete, shorter than it says itself by {missing} samples or"
            " more: copy it again, or use what is there (ffmpeg -i IN OUT.wav)."
        )
    if not samples:
        raise BespokeError(f"The {role} {path} is empty: it has no samples.")
    if is_silent:
        raise BespokeError(f"The {role} {path} is silent: every sample is zero.")
    return Recording(path, sample_rate, channels, 0, samples)


def read_audio(path: str | Path, role: str = "recording") -> tuple[np.ndarray, int]:
    """Read a whole audio file.

    Args:
        path, role: as of `open_audio`.

    Returns:
        The waveform, float32 `[channel, time]`, full scale at 1, and its sample rate in Hz.

    Raises:
        BespokeError: as of `open_audio`.
    """
    recording = open_audio(path, role)
    return recording.read(), recording.sample_rate


def _decode(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Decode a file in blocks, at least one, which may be empty.

    Yields:
        The sample rate in Hz, and a block of the samples `[channel, time]`.
    """
    with open(path, "rb") as file:
        head = file.read(16)
    for place, magic, name in _FFMPEG_FORMATS:
        if head[place:].startswith(magic):
            yield from _decode_by_ffmpeg(path, name)
            return
    form = None
    for piece in pieces_of(path).each():
        with soundfile.SoundFile(piece) as file:
            if form not in (None, (file.samplerate, file.channels)):
                raise BespokeError(
                    f"{path} is several recordings in one, of different sample rates or channels:"
                    " convert it to WAV first (ffmpeg -i IN OUT.wav)."
                )
            form = (file.samplerate, file.channels)
            size = max(1, BLOCK_VALUES // file.channels)
            for count in itertools.count():
                block = file.read(size, dtype="float32", always_2d=True).T
                if count == 0 or block.shape[1]:
                    yield file.samplerate, np.ascontiguousarray(block)
                if not block.shape[1]:
                    break


def _decode_by_ffmpeg(path: Path, name: str) -> Iterator[tuple[int, np.ndarray]]:
    try:
        import av
    except ImportError as error:
        raise BespokeError(
            f"Reading {path} needs PyAV: pip install av, or convert it to WAV or FLAC first."
        ) from error
    resampler, sample_rate, held, seconds = None, 0, [], 0.0
    with (
        open(path, "rb") as file,
        av.open(file, "r", format=name, metadata_errors="replace") as container,
    ):
        if not container.streams.audio:
            raise ValueError("there is no audio in it")
        for decoded in container.decode(audio=0):
            if resampler is None:
                sample_rate = decoded.sample_rate
                resampler = av.AudioResampler("fltp", decoded.layout, sample_rate)
            held += [frame.to_ndarray() for frame in resampler.resample(decoded)]
            seconds += decoded.samples / decoded.sample_rate
            if sum(part.size for part in held) >= BLOCK_VALUES:
                yield sample_rate, np.concatenate(held, axis=1)
                held = []
        if held:
            yield sample_rate, np.concatenate(held, axis=1)
        stream = container.streams.audio[0]
        announced = float((stream.duration or 0) * (stream.time_base or 0))
        if seconds < 0.95 * announced - 1:
            raise ValueError("it is incomplete")


def _missing_samples(path: Path, samples: int) -> int:
    """How many samples fewer a file has than it announces.

    0 if it announces no number, or if libsndfile does not read it.
    """
    announced = missing = 0
    try:
        pieces = pieces_of(path)
        for piece in pieces.each():
            frames, cut = _announced(piece)
            announced, missing = announced + frames, missing + cut
    except (soundfile.LibsndfileError, OSError, RuntimeError):
        return 0
    if missing or pieces.missing:
        return max(missing, pieces.missing)
    return max(0, announced - samples) if announced < MAX_VALUES else 0


def _announced(piece: Path | Piece) -> tuple[int, int]:
    """Read what a file announces.

    Returns:
        How many samples the file says that it has, as far as this can be trusted, and how many of
        them libsndfile has found missing.
    """
    with soundfile.SoundFile(piece) as file:
        announced, log, kind = file.frames, file.extra_info, file.format
        width = file.channels * _BYTES.get(file.subtype, 4)
    if kind == "OGG" and re.search(r"(without|lacks) an end-of-stream", log, re.IGNORECASE):
        return 0, 1  # at least
    shortened = re.search(
        r"^ *(?:data|SSND) *: (\d+) \(should be (\d+)\)", log, re.MULTILINE
    )  # libsndfile does so itself
    if shortened and int(shortened[1]) < NEVER_WRITTEN:
        return announced, max(0, int(shortened[1]) - int(shortened[2])) // width
    return (0 if kind == "MP3" else announced), 0  # whose table was looked at, if it has one


@contextlib.contextmanager
def wav_writer(
    path: str | Path, sample_rate: int, channels: int, samples: int
) -> Iterator[Callable[[np.ndarray], object]]:
    """Write a float32 WAV block by block, atomically and reproducibly.

    The file is that of SciPy, byte for byte, but SciPy needs the whole signal in memory. libsndfile
    is not used, because it writes the time of day into float WAVs. Above 4 GB the file is an RF64.

    Args:
        path: of the file.
        sample_rate: in Hz.
        channels, samples: that will be written.

    Yields:
        A function that takes the next block `[channel, time]`.

    Raises:
        BespokeError: the folder cannot be written, or the disk is full.
    """
    size = 4 * channels * samples
    form = struct.pack(
        "<4sIHHIIHHH",
        b"fmt ",
        18,
        3,
        channels,
        sample_rate,
        4 * channels * sample_rate,
        4 * channels,
        32,
        0,
    )
    fact = struct.pack("<4sII", b"fact", 4, min(samples, 0xFFFFFFFF))
    body = form + fact + struct.pack("<4sI", b"data", min(size, 0xFFFFFFFF))
    if len(body) + 4 + size <= 0xFFFFFFFF:
        header = struct.pack("<4sI4s", b"RIFF", len(body) + 4 + size, b"WAVE") + body
    else:
        sizes = struct.pack("<4sIQQQI", b"ds64", 28, len(body) + 40 + size, size, samples, 0)
        header = struct.pack("<4sI4s", b"RF64", 0xFFFFFFFF, b"WAVE") + sizes + body
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(header)
        yield lambda block: file.write(np.ascontiguousarray(block.T, dtype="<f4").data)


def write_wav(path: str | Path, waveform: np.ndarray, sample_rate: int) -> None:
    """Write `[channel, time]` as a float32 WAV, see `wav_writer`.

    Raises:
        BespokeError: the folder cannot be written, or the disk is full.
    """
    with wav_writer(path, sample_rate, *waveform.shape) as write:
        write(waveform)


def write_like(path: str | Path, stem: str | Path, like: str | Path) -> None:
    """Write a stem in the format that the ending of `path` names.

    The stem gets the bit depth and the tags of the recording that it comes from. A lossy recording
    has no bit depth: its stems get 24 bits if the new format has a bit depth, else the best quality
    of the encoder. Samples beyond full scale are clipped, except in a float WAV. Tags that both
    formats know are kept: title, artist, album, track number, date, genre, comment, copyright,
    license. Pictures are not kept.

    Args:
        path: ends in wav, flac, aiff, ogg, opus, mp3 or (where PyAV is installed) m4a.
        stem: audio, such as a run's target.wav.
        like: the recording.

    Raises:
        BespokeError: a file cannot be read or written, or the format cannot hold the stem.
    """
    path, stem, like = Path(path), existing(stem, "stem"), existing(like, "recording")
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise BespokeError(
            f"{path} ends in no format that can be written: choose {', '.join(_FORMATS)}."
        )
    subtype, tags = _character(like)
    if kind == "M4A":
        _write_m4a(path, stem, tags)
        return
    known = soundfile.available_subtypes(kind)
    subtype = (
        "OPUS"
        if path.suffix.lower() == ".opus"
        else subtype
        if subtype in known
        else _BEST.get(kind, "PCM_24")
    )
    with soundfile.SoundFile(stem) as source:
        rate, channels = source.samplerate, source.channels
        if kind == "WAV" and 4 * source.frames * channels > 0xFFFF0000:
            kind = "RF64"
        try:
            if not soundfile.check_format(kind, subtype):
                raise ValueError(f"{kind} has no {subtype}")
            quality = {"compression_level": 0.0} if kind in ("MP3", "OGG") else {}
            with (
                atomic_path(path) as temporary,
                soundfile.SoundFile(
                    temporary, "w", rate, channels, subtype, format=kind, **quality
                ) as destination,
            ):
                for name, value in tags.items():
                    with contextlib.suppress(RuntimeError):  # a tag that this format does not know
                        setattr(destination, name, value)
                for block in source.blocks(
                    max(1, BLOCK_VALUES // channels), dtype="float32", always_2d=True
                ):
                    destination.write(block)
        except (soundfile.LibsndfileError, ValueError, TypeError) as error:
            raise BespokeError(
                f"{path} cannot hold {channels} channels at {rate} Hz ({error}): choose wav or"
                " flac."
            ) from error


def _character(path: Path) -> tuple[str, dict[str, str]]:
    """Read what a stem takes over from an audio file.

    Returns:
        The libsndfile subtype, which is the bit depth (empty if there is none), and the tags, by
        libsndfile's names.
    """
    try:
        with soundfile.SoundFile(path) as file:
            tags = {
                name: value
                for name, value in file.copy_metadata().items()
                if value and name != "software"
            }
            return (file.subtype if file.subtype in _BYTES or file.subtype == "FLOAT" else ""), tags
    except (soundfile.LibsndfileError, RuntimeError):
        pass
    try:
        import av

        with open(path, "rb") as file, av.open(file, metadata_errors="replace") as container:
            found = {name.casefold(): value for name, value in container.metadata.items()}
    except (ImportError, OSError, ValueError):
        return "", {}
    return "", {name: found[key] for name, key in _FFMPEG_TAGS.items() if key in found}


def _write_m4a(path: Path, stem: Path, tags: Mapping[str, str]) -> None:
    try:
        import av
    except ImportError as error:
        raise BespokeError(
            f"Writing {path} needs PyAV: pip install av, or choose wav or flac."
        ) from error
    with soundfile.SoundFile(stem) as source:
        try:
            layout = {1: "mono", 2: "stereo"}[source.channels]
            with (
                atomic_path(path) as temporary,
                av.open(str(temporary), "w", format="ipod") as container,
            ):
                container.metadata.update(
                    {
                        _FFMPEG_TAGS[name]: value
                        for name, value in tags.items()
                        if name in _FFMPEG_TAGS
                    }
                )
                stream = container.add_stream("aac", rate=source.samplerate, layout=layout)
                stream.bit_rate = 128_000 * source.channels
                position = 0
                for block in source.blocks(
                    BLOCK_VALUES // source.channels, dtype="float32", always_2d=True
                ):
                    frame = av.AudioFrame.from_ndarray(
                        np.ascontiguousarray(block.T), format="fltp", layout=layout
                    )
                    frame.sample_rate, frame.pts, frame.time_base = (
                        source.samplerate,
                        position,
                        Fraction(1, source.samplerate),
                    )
                    position += len(block)
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
        except (KeyError, ValueError, av.FFmpegError) as error:
            raise BespokeError(
                f"{path} cannot hold {source.channels} channels at {source.samplerate} Hz: choose"
                " wav or flac."
            ) from error
