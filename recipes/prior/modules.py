"""Examples of real music whose stems and notes are all known: tracker modules.

A module (.xm .it .s3m .mod) is a score and the samples that play it. Each of its instruments is
rendered alone, and their notes are read from its patterns. From the project's folder:

    python -m recipes.prior.modules MODULES outputs/prior --rounds 4

MODULES has the modules, in folders or not. libopenmpt plays them (Debian: libopenmpt0). Where the
modules of the shipped network came from: docs/LAB.md.
"""

import argparse
import ctypes
import ctypes.util
import glob
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bespoke.audio.stft import STFT
from bespoke.models.features import ScoreFeatures
from bespoke.score.midi import Note
from recipes.prior.ensembles import Ensembles, Example
from recipes.prior.train_prior import STFT_SETTINGS, loosened, save_example, told

RATE, SECONDS, LONGEST_SECONDS = 22050, 20.0, 100.0
CHUNK = 64  # samples: how exactly the times of rows are known (3 ms)
ENDINGS = {".it", ".mod", ".mptm", ".s3m", ".xm"}
MAX_ERROR_DB = -30.0  # of the sum of the stems
SILENT_DB = -40.0  # below the stem's peak, a note has ended
PERIODIC = 0.2  # largest aperiodicity (YIN) of an instrument that has a pitch
OFF_SEMITONES, AGREEING = 0.35, 0.7  # of the notes must have a pitch so near the instrument's own
MAX_SLIDING = 0.3  # share of the rows of an instrument with arpeggios and slides
NOTES, PITCHES = 8, 3  # fewest of a target in an excerpt, and of an instrument that is no drum
EXCERPTS, TARGETS = 3, 3  # at most, of a module and of an excerpt
LEVELS_DB = (-20.0, 3.0)  # of the target against the rest
TRANSPOSED = 3  # semitones, at most
ROOM, HALF_TOLD = 0.3, 0.5  # shares of the examples
# libopenmpt's numbers of what a cell of a pattern may hold.
_NOTE, _INSTRUMENT, _VOLUME_EFFECT, _EFFECT, _VOLUME, _PARAMETER = range(6)
_HIGHEST_NOTE, _ENDS = 120, (253, 254, 255)  # notes count from 1, C 0; fade, cut, off
_SLIDES, _VOLUME_SLIDES = {1, 2, 3, 5}, {12, 13}  # arpeggio, slides up, down and to a note
_GLIDES, _VOLUME_GLIDE = {4, 6}, 11  # slide to a note: it does not start anew
_SET_VOLUME, _SET_VOLUME_EFFECT = 13, 1


class _Interactive(ctypes.Structure):
    """`openmpt_module_ext_interface_interactive`, in the order of libopenmpt_ext.h."""

    _fields_ = [
        (
            name,
            ctypes.CFUNCTYPE(
                {"d": ctypes.c_double, "i": ctypes.c_int32}[result],
                ctypes.c_void_p,
                *({"d": ctypes.c_double, "i": ctypes.c_int32}[kind] for kind in arguments),
            ),
        )
        for name, result, arguments in (
            ("set_current_speed", "i", "i"),
            ("set_current_tempo", "i", "i"),
            ("set_tempo_factor", "i", "d"),
            ("get_tempo_factor", "d", ""),
            ("set_pitch_factor", "i", "d"),
            ("get_pitch_factor", "d", ""),
            ("set_global_volume", "i", "d"),
            ("get_global_volume", "d", ""),
            ("set_channel_volume", "i", "id"),
            ("get_channel_volume", "d", "i"),
            ("set_channel_mute_status", "i", "ii"),
            ("get_channel_mute_status", "i", "i"),
            ("set_instrument_mute_status", "i", "ii"),
            ("get_instrument_mute_status", "i", "i"),
            ("play_note", "i", "iidd"),
            ("stop_note", "i", "i"),
        )
    ]


@cache
def library() -> Any:
    """libopenmpt.

    Raises:
        OSError: if it is not installed.
    """
    name = ctypes.util.find_library("openmpt")
    if not name:
        raise OSError("libopenmpt is not installed (Debian: libopenmpt0).")
    openmpt = ctypes.CDLL(name)
    pointer, number, size = ctypes.c_void_p, ctypes.c_int32, ctypes.c_size_t
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_char_p, pointer)(lambda message, user: None)
    openmpt.quiet = quiet  # held, as long as the library is
    for function, result, arguments in (
        (
            "module_ext_create_from_memory",
            pointer,
            [ctypes.c_char_p, size, type(quiet), *[pointer] * 6],
        ),
        ("module_ext_get_module", pointer, [pointer]),
        ("module_ext_destroy", None, [pointer]),
        (
            "module_ext_get_interface",
            ctypes.c_int,
            [pointer, ctypes.c_char_p, pointer, size],
        ),
        ("module_get_num_channels", number, [pointer]),
        ("module_get_num_instruments", number, [pointer]),
        ("module_get_num_samples", number, [pointer]),
        ("module_get_duration_seconds", ctypes.c_double, [pointer]),
        ("module_get_current_order", number, [pointer]),
        ("module_get_current_pattern", number, [pointer]),
        ("module_get_current_row", number, [pointer]),
        ("module_set_position_seconds", ctypes.c_double, [pointer, ctypes.c_double]),
        ("module_read_float_mono", size, [pointer, number, size, pointer]),
        (
            "module_get_pattern_row_channel_command",
            ctypes.c_uint8,
            [pointer, number, number, number, ctypes.c_int],
        ),
    ):
        bound = getattr(openmpt, f"openmpt_{function}")
        bound.restype, bound.argtypes = result, arguments
    return openmpt


@dataclass(frozen=True)
class Row:
    """A row of a pattern as it is played.

    Attributes:
        start: in samples.
        cells: of each channel, by libopenmpt's order: note, instrument, volume effect, effect,
            volume, parameter.
    """

    start: int
    cells: tuple[tuple[int, ...], ...]


@dataclass
class Line:
    """What the patterns have for an instrument.

    Attributes:
        notes: start and end in samples, and the pitch as it is written, 60 for the C in the middle.
        rows, sliding: in which it sounds, and those of them in which its pitch moves.
    """

    notes: list[tuple[int, int, int]] = field(default_factory=list)
    rows: int = 0
    sliding: int = 0


@dataclass(frozen=True)
class Stem:
    """An instrument of a module.

    Attributes:
        waveform: `[time]`, of the whole module.
        notes: as they sound; none if the instrument has no pitch or slides too much.
    """

    waveform: np.ndarray
    notes: tuple[Note, ...]


class Module:
    """A module that libopenmpt plays in mono.

    Args:
        path: of the file.

    Raises:
        ValueError: if it cannot be read.
    """

    def __init__(self, path: Path):
        self._openmpt, data = library(), path.read_bytes()
        self._extended = self._openmpt.openmpt_module_ext_create_from_memory(
            data, len(data), self._openmpt.quiet, *[None] * 6
        )
        if not self._extended:
            raise ValueError(f"{path} is no module that libopenmpt plays.")
        self._module = self._openmpt.openmpt_module_ext_get_module(self._extended)
        self._interactive = _Interactive()
        self._openmpt.openmpt_module_ext_get_interface(
            self._extended,
            b"interactive",
            ctypes.byref(self._interactive),
            ctypes.sizeof(self._interactive),
        )
        self.channels = self._get("num_channels")
        # The samples are the instruments where there are no others.
        self.instruments = self._get("num_instruments") or self._get("num_samples")
        self.seconds = min(self._get("duration_seconds"), LONGEST_SECONDS)

    def close(self) -> None:
        """Free the module."""
        self._openmpt.openmpt_module_ext_destroy(self._extended)

    def transpose(self, semitones: float) -> None:
        """Play all samples so much faster from now on; the tempo stays."""
        self._call("set_pitch_factor", 2 ** (semitones / 12))

    def mixture(self) -> tuple[np.ndarray, list[Row]]:
        """All instruments, and the rows that are played meanwhile."""
        self._solo(None)
        rows: list[Row] = []
        waveform = np.zeros(int(self.seconds * RATE), np.float32)
        before = None
        for start in range(0, len(waveform), CHUNK):
            self._read(waveform[start : start + CHUNK])
            place = tuple(self._get(f"current_{name}") for name in ("order", "pattern", "row"))
            if place != before:
                rows.append(Row(start, self._cells(*place[1:])))
                before = place
        return waveform, rows

    def alone(self, instrument: int | None = None) -> np.ndarray:
        """An instrument alone, or all."""
        self._solo(instrument)
        waveform = np.zeros(int(self.seconds * RATE), np.float32)
        self._read(waveform)
        return waveform

    def play(self, instrument: int, pitch: int, seconds: float) -> np.ndarray:
        """One note of an instrument, and nothing else."""
        self._solo(None)
        for channel in range(self.channels):
            self._call("set_channel_mute_status", channel, 1)
        waveform = np.zeros(int(seconds * RATE), np.float32)
        channel = self._call("play_note", instrument, pitch, 1.0, 0.0)
        self._read(waveform)
        self._call("stop_note", channel)
        return waveform

    def _solo(self, instrument: int | None) -> None:
        """Go back to the start, and let one instrument be heard, or all."""
        for channel in range(self.channels):
            self._call("set_channel_mute_status", channel, 1)
        self._openmpt.openmpt_module_set_position_seconds(self._module, 0.0)
        self._read(np.zeros(RATE // 10, np.float32))  # what was heard before fades out
        self._openmpt.openmpt_module_set_position_seconds(self._module, 0.0)
        for channel in range(self.channels):
            self._call("set_channel_mute_status", channel, 0)
        for other in range(self.instruments):
            muted = instrument is not None and other != instrument
            self._call("set_instrument_mute_status", other, int(muted))

    def _read(self, waveform: np.ndarray) -> None:
        self._openmpt.openmpt_module_read_float_mono(
            self._module, RATE, len(waveform), waveform.ctypes.data
        )

    def _cells(self, pattern: int, row: int) -> tuple[tuple[int, ...], ...]:
        command = self._openmpt.openmpt_module_get_pattern_row_channel_command
        return tuple(
            tuple(command(self._module, pattern, row, channel, kind) for kind in range(6))
            for channel in range(self.channels)
        )

    def _get(self, name: str) -> Any:
        return getattr(self._openmpt, f"openmpt_module_get_{name}")(self._module)

    def _call(self, name: str, *arguments: float) -> Any:
        return getattr(self._interactive, name)(self._extended, *arguments)


def read_lines(rows: Sequence[Row], length: int) -> dict[int, Line]:
    """The notes of each instrument, from 0, that the rows have.

    A note ends with the next one in its channel, where it is released or cut, or where the volume
    is set to 0.

    Args:
        rows: in order of time.
        length: of the module, in samples.
    """
    lines: dict[int, Line] = defaultdict(Line)
    chosen: dict[int, int] = {}  # instruments of channels, from 1
    sounding: dict[int, tuple[int, int, int]] = {}  # in channels: start, pitch and instrument

    def end(channel: int, sample: int) -> None:
        if channel in sounding:
            start, pitch, instrument = sounding.pop(channel)
            lines[instrument - 1].notes.append((start, sample, pitch))

    for row in rows:
        for channel, cell in enumerate(row.cells):
            note, instrument = cell[_NOTE], cell[_INSTRUMENT]
            glides = cell[_EFFECT] in _GLIDES or cell[_VOLUME_EFFECT] == _VOLUME_GLIDE
            silent = (cell[_EFFECT] == _SET_VOLUME and not cell[_PARAMETER]) or (
                cell[_VOLUME_EFFECT] == _SET_VOLUME_EFFECT and not cell[_VOLUME]
            )
            if instrument and not (glides and channel in sounding):
                chosen[channel] = instrument
            if note in _ENDS or silent:
                end(channel, row.start)
            elif 1 <= note <= _HIGHEST_NOTE and channel in chosen:
                end(channel, row.start)
                sounding[channel] = row.start, note - 1, chosen[channel]
            if channel in sounding:
                line = lines[sounding[channel][2] - 1]
                line.rows += 1
                arpeggio = cell[_EFFECT] == 1 and not cell[_PARAMETER]  # none, but written
                slides = cell[_EFFECT] in _SLIDES and not arpeggio
                line.sliding += slides or cell[_VOLUME_EFFECT] in _VOLUME_SLIDES
    for channel in list(sounding):
        end(channel, length)
    return lines


def pitch_of(waveform: np.ndarray) -> float | None:
    """The pitch of a note, as a MIDI number with its fraction (YIN).

    None if most of it has no period, or none that lasts.

    Args:
        waveform: `[time]`, one note.
    """
    size = 2048  # samples of each window, which holds two periods of 22 Hz
    parts = [
        waveform[start : start + 2 * size].astype(np.float64)
        for start in range(size // 2, len(waveform) - 2 * size + 1, size // 2)
    ]
    loudest = max((np.sum(part**2) for part in parts), default=0.0)
    parts = [part for part in parts if np.sum(part**2) > max(1e-3 * loudest, 1e-9)]
    found = [pitch for part in parts if (pitch := _period(part)) is not None]
    if not found or len(found) < 0.6 * len(parts):
        return None
    middle = float(np.median(found))
    return middle if np.mean(np.abs(np.array(found) - middle) < 0.5) >= AGREEING else None


def _period(part: np.ndarray) -> float | None:
    """The pitch of two windows of a note."""
    size = len(part) // 2
    lags = np.arange(size + 1)
    energy = np.concatenate([[0], np.cumsum(part**2)])
    spectra = np.fft.rfft(part, 4 * size), np.fft.rfft(part[:size], 4 * size)
    product = np.fft.irfft(spectra[0] * spectra[1].conj())[: size + 1]
    difference = energy[size] + (energy[lags + size] - energy[lags]) - 2 * product
    normal = np.ones(size + 1)
    normal[1:] = difference[1:] * lags[1:] / np.maximum(np.cumsum(difference[1:]), 1e-12)
    inner = normal[1:-1]
    valleys = (inner < PERIODIC) & (inner <= normal[:-2]) & (inner <= normal[2:])
    valleys[:4] = False
    if not valleys.any():
        return None
    lag = int(np.argmax(valleys)) + 1  # the first
    below, here, above = normal[lag - 1 : lag + 2]
    curve = below - 2 * here + above
    return float(69 + 12 * np.log2(RATE / (lag + 0.5 * (below - above) / max(curve, 1e-9)) / 440))


def sounding_offsets(module: Module, lines: Mapping[int, Line]) -> tuple[dict[int, int], float]:
    """How many semitones higher instruments sound than they are written, and the module's tuning.

    An instrument is left out that has no clear pitch, that slides too much, or that is out of tune
    with the others.

    Args:
        module: as it is tuned by its samples.
        lines: of its instruments.

    Returns:
        whole semitones by instrument, from 0, and what all instruments are sharp, in semitones.
    """
    measured: dict[int, list[tuple[int, float | None]]] = {}  # how often, and the offset
    for instrument, line in lines.items():
        counts = Counter(pitch for *_, pitch in line.notes)
        if len(counts) < PITCHES or line.sliding > MAX_SLIDING * line.rows:
            continue
        measured[instrument] = []
        for pitch, count in counts.most_common(6):
            sounding = pitch_of(module.play(instrument, pitch, 0.6))
            measured[instrument].append((count, None if sounding is None else sounding - pitch))
    turns = sum(
        count * np.exp(2j * np.pi * offset)
        for found in measured.values()
        for count, offset in found
        if offset is not None
    )
    tuning = float(np.angle(turns) / 2 / np.pi)
    offsets = {}
    for instrument, found in measured.items():
        pitched = [offset for _, offset in found if offset is not None]
        if not pitched:
            continue
        offset = round(float(np.median(pitched)) - tuning)
        near = sum(
            count
            for count, other in found
            if other is not None and abs(other - tuning - offset) < OFF_SEMITONES
        )
        if near >= AGREEING * sum(count for count, _ in found):
            offsets[instrument] = offset
    return offsets, tuning


def audible(
    notes: Sequence[tuple[int, int, int]], waveform: np.ndarray, semitones: int
) -> tuple[Note, ...]:
    """Notes as they sound: each ends where the stem has decayed, and silent ones are left out.

    Args:
        notes: start and end in samples, and pitch.
        waveform: `[time]`, the stem.
        semitones: added to the pitches.
    """
    hop = 256
    frames = np.sqrt(np.mean(waveform[: len(waveform) // hop * hop].reshape(-1, hop) ** 2, axis=1))
    loud = frames > frames.max() * 10 ** (SILENT_DB / 20)
    heard = set()
    for start, end, pitch in notes:
        sounding = np.flatnonzero(loud[start // hop : -(-end // hop)])
        if len(sounding) < 3 or not 0 <= pitch + semitones <= 127:
            continue
        end = min(end, (start // hop + int(sounding[-1]) + 1) * hop)
        heard.add(Note(start / RATE, end / RATE, pitch + semitones))
    return tuple(sorted(heard))


def render(path: Path, semitones: int) -> tuple[np.ndarray, list[Stem]]:
    """A module's mixture, and all instruments that sound, tuned to 440 Hz.

    Args:
        path: of the module.
        semitones: by which all is transposed.

    Raises:
        ValueError: if it cannot be read, or is shorter than an excerpt.
    """
    with closing(Module(path)) as module:
        if module.seconds < SECONDS:
            raise ValueError(f"{path} has only {module.seconds:.1f} s.")
        mixture, rows = module.mixture()
        lines = read_lines(rows, len(mixture))
        offsets, tuning = sounding_offsets(module, lines)
    with closing(Module(path)) as module:  # in which no note of those that were tried still sounds
        module.transpose(semitones - tuning)
        mixture = module.alone()
        stems = []
        for instrument, line in sorted(lines.items()):
            waveform, notes = module.alone(instrument), ()
            if instrument in offsets:
                notes = audible(line.notes, waveform, offsets[instrument] + semitones)
            if np.abs(waveform).max() >= 1e-4:
                stems.append(Stem(waveform, notes))
    return mixture, stems


def excerpt(
    mixture: np.ndarray, stems: Sequence[Stem], start: int, rng: np.random.Generator
) -> list[Example]:
    """Examples of a part of a module: up to `TARGETS` of its instruments against the others.

    None if the stems do not add up to the mixture there.

    Args:
        mixture: `[time]`.
        stems: of the module.
        start: in samples.
        rng: draws the targets and their levels.
    """
    part = slice(start, start + int(SECONDS * RATE))
    whole = mixture[part]
    error = whole - np.sum([stem.waveform[part] for stem in stems], axis=0)
    if np.sum(error**2) >= 10 ** (MAX_ERROR_DB / 10) * np.sum(whole**2):
        return []
    notes = [
        tuple(
            Note(
                max(0.0, note.start_seconds - start / RATE),
                min(SECONDS, note.end_seconds - start / RATE),
                note.pitch,
            )
            for note in stem.notes
            if start / RATE - 0.05 < note.start_seconds < start / RATE + SECONDS - 0.05
            and note.end_seconds > start / RATE + 0.05
        )
        for stem in stems
    ]
    examples = []
    able = [index for index in range(len(stems)) if len(notes[index]) >= NOTES]
    for index in rng.permutation(able):
        target = stems[index].waveform[part]
        background = whole - target
        energy = np.sum(target**2), np.sum(background**2)
        if min(energy) < 1e-4 * np.sum(whole**2) or len(examples) == TARGETS:
            continue
        level_db = 10 * np.log10(energy[0] / energy[1])
        wanted_db = np.clip(level_db + rng.normal(0, 3), *LEVELS_DB)
        target = target * 10 ** ((wanted_db - level_db) / 20)
        if rng.random() < ROOM:
            target, background = _room(target, background, rng)
        scale = 0.9 / np.abs(target + background).max()
        others = tuple(part for other, part in enumerate(notes) if part and other != index)
        examples.append(
            Example(
                (scale * target).astype(np.float32),
                (scale * background).astype(np.float32),
                notes[index],
                others,
                is_faithful=True,
            )
        )
    return examples


def _room(
    target: np.ndarray, background: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Both in the same room."""
    seed, ensembles = int(rng.integers(2**31)), Ensembles([], RATE, SECONDS)
    return (
        ensembles._reverb(target, np.random.default_rng(seed)),
        ensembles._reverb(background, np.random.default_rng(seed)),
    )


def make_examples(modules: Sequence[Path], folder: Path, rounds: int, seed: int) -> None:
    """Write the examples of modules. Each round transposes them and cuts them otherwise.

    A second call goes on where the first one stopped.

    Args:
        modules: files; those that cannot be played are left out.
        folder: for the examples, see `recipes.prior.train_prior.save_example`.
        rounds: how often each module is taken.
        seed: of all that is drawn.
    """
    features = ScoreFeatures(STFT(**STFT_SETTINGS))
    strangers: tuple[tuple[Note, ...], ...] = ()
    for turn in range(rounds):
        for number in np.random.default_rng([seed, turn]).permutation(len(modules)):
            path = modules[number]
            name = f"{path.parent.name}-{path.stem}_{seed}_{turn}".replace(" ", "-")
            if any(folder.glob(f"{glob.escape(name)}_*.npz")):
                continue
            rng = np.random.default_rng([seed, turn, zlib.crc32(name.encode())])
            semitones = int(rng.integers(-TRANSPOSED, TRANSPOSED + 1))
            try:
                mixture, stems = render(path, semitones)
            except ValueError as error:
                print(error, flush=True)
                continue
            length, count = int(SECONDS * RATE), 0
            first = int(rng.uniform(0, min(length, len(mixture) - length + 1)))
            starts = np.arange(first, len(mixture) - length + 1, length)
            for start in rng.permutation(starts)[:EXCERPTS]:
                for example in excerpt(mixture, stems, start, rng):
                    others: Sequence[Sequence[Note]] = example.others
                    if rng.random() < HALF_TOLD and len(others) > 1:
                        some = rng.permutation(len(others))[: len(others) // 2]
                        others = [others[index] for index in some]
                    others = [loosened(part, rng) for part in told(others, strangers, rng)]
                    save_example(
                        folder / f"{name}_{count:02d}.npz",
                        example,
                        loosened(example.notes, rng),
                        others,
                        features,
                    )
                    strangers, count = example.others, count + 1
            print(f"{name}: {count} examples", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", type=Path, help="a folder")
    parser.add_argument("folder", type=Path, help="for the examples, 4 MB each")
    parser.add_argument("--rounds", type=int, default=4, help="how often each module is taken")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    files = (path for path in options.modules.rglob("*") if path.suffix.lower() in ENDINGS)
    make_examples(sorted(files), options.folder, options.rounds, options.seed)


if __name__ == "__main__":
    main()
