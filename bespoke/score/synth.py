"""Synthesis of notes with FluidSynth.

Renders are cached by the hash of everything they depend on, in `$BESPOKE_CACHE` or the user's cache
folder (`~/.cache/bespoke` on Linux). The cache holds at most 2 GB, from which the least recently
used renders are removed. It can be deleted at any time.
"""

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from ctypes import c_int, c_void_p
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import platformdirs
import pretty_midi

from bespoke.audio.dsp import peak, resample
from bespoke.score.midi import Note
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import atomic_path, file_hash

SYNTH_RATE = 44100  # the rate that soundfonts are made for; rendering at a lower one would alias
DRUM_BANK = 128
CACHE_BYTES = 2_000_000_000
_GAIN = 0.2  # FluidSynth's default, set explicitly
_TAIL_SECONDS = 3.0
_PITCH_BEND_RANGE = 8192  # of the wheel's values, for two semitones
_ALL_SOUND_OFF = 120  # MIDI controller


@dataclass(frozen=True)
class SoundFont:
    """A soundfont file (SF2, or SF3 where libfluidsynth was built with libsndfile)."""

    path: Path

    @classmethod
    def find(cls, name: str | Path | None = None) -> "SoundFont":
        """Find a soundfont.

        Args:
            name: path of a file, or name of a soundfont in one of the `soundfont_folders`. None:
                TimGM6mb, which is part of pretty_midi.

        Raises:
            BespokeError: there is no such file, or it is not a soundfont.
        """
        if name is None:
            return cls(Path(pretty_midi.__file__).parent / "TimGM6mb.sf2")
        path = Path(name).expanduser()
        if not path.is_file():
            path = _search(str(name))
        with open(path, "rb") as file:
            head = file.read(12)
        if head[:4] != b"RIFF" or head[8:12] != b"sfbk":
            raise BespokeError(f"{path} is not a soundfont: give an SF2 or SF3 file.")
        if path.stat().st_size < 8 + int.from_bytes(head[4:8], "little"):
            raise BespokeError(
                f"The soundfont {path} is incomplete, shorter than it says itself: "
                "download it again."
            )
        return cls(path)

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the file's contents."""
        return file_hash(self.path)

    def preset_name(self, bank: int, program: int) -> str | None:
        """Name of a preset, or None if the soundfont does not have it."""
        return _presets(self).get((bank, program))


@dataclass(frozen=True)
class Patch:
    """A sound: a program (0-127) in a bank of a soundfont. Drum kits are in bank 128."""

    program: int
    bank: int = 0
    soundfont: SoundFont = field(default_factory=SoundFont.find)

    def check(self) -> "Patch":
        """Return the patch itself if its soundfont has it.

        Raises:
            BespokeError: the soundfont does not have it, or FluidSynth is not installed.
        """
        if self.soundfont.preset_name(self.bank, self.program) is None:
            raise BespokeError(
                f"The soundfont {self.soundfont.path.name} has no patch {self.program} in bank "
                f"{self.bank}: choose a General MIDI program from 0 to 127, or another soundfont."
            )
        return self


def soundfont_folders() -> list[Path]:
    """Folders of soundfonts: the entries of `BESPOKE_SOUNDFONTS`, then the system's usual ones."""
    own = [
        Path(entry).expanduser()
        for entry in os.environ.get("BESPOKE_SOUNDFONTS", "").split(os.pathsep)
        if entry
    ]
    usual = [
        "~/.local/share/soundfonts",
        "/usr/share/sounds/sf2",
        "/usr/share/sounds/sf3",
        "/usr/share/soundfonts",
        "/usr/local/share/soundfonts",
        "~/Library/Audio/Sounds/Banks",
        "/Library/Audio/Sounds/Banks",
        "C:/soundfonts",
    ]
    return own + [Path(folder).expanduser() for folder in usual]


def _search(name: str) -> Path:
    known: dict[str, Path] = {}
    for place in soundfont_folders():
        files = [place] if place.is_file() else sorted(place.glob("*.[sS][fF][23]"))
        for file in files:
            known.setdefault(file.name.casefold(), file)
            known.setdefault(file.stem.casefold(), file)
    if name.casefold() not in known:
        names = ", ".join(sorted({file.name for file in known.values()})) or "none"
        raise BespokeError(
            f"The soundfont {name} was not found: give a path to an SF2 or SF3 file, or put its "
            f"folder into BESPOKE_SOUNDFONTS (found by name: {names})."
        )
    return known[name.casefold()]


def render(
    notes: Iterable[Note],
    patch: Patch,
    sample_rate: int = SYNTH_RATE,
    tuning_cents: float = 0.0,
) -> np.ndarray:
    """Synthesize notes with one patch, or load the result from the cache.

    The sound is dry (no reverb or chorus) and at FluidSynth's own level.

    Args:
        notes: any number of notes.
        patch: the sound.
        sample_rate: of the result, in Hz.
        tuning_cents: how much sharper than A4 = 440 Hz it sounds, from -200 to 200; drums stay.

    Returns:
        Mono float32 `[1, time]`, full scale at 1 but never clipped, from time 0 to the end of the
        last release.

    Raises:
        BespokeError: FluidSynth is not installed, the soundfont does not have the patch, or the
            cache cannot be written.
    """
    notes = sorted(notes)
    key = hashlib.sha256(
        repr(
            (2, notes, patch.bank, patch.program, patch.soundfont.hash, sample_rate)
            + ((tuning_cents,) if tuning_cents else ())
        ).encode()
    ).hexdigest()
    cached = cache_folder() / "renders" / f"{key}.npy"
    try:
        waveform = np.load(cached)
        os.utime(cached)  # marks it as recently used
        return waveform
    except (OSError, ValueError, EOFError):
        pass
    waveform = resample(_synthesize(notes, patch, tuning_cents), SYNTH_RATE, sample_rate)
    try:
        with atomic_path(cached) as temporary:
            np.save(temporary, waveform)
    except BespokeError as error:
        raise BespokeError(
            f"The cache of renders {cached.parent} cannot be written: "
            "set BESPOKE_CACHE to a folder with space."
        ) from error
    _prune(cached.parent)
    return waveform


def cache_folder() -> Path:
    """Folder of the cache: `$BESPOKE_CACHE`, or the user's cache folder."""
    return Path(
        os.environ.get("BESPOKE_CACHE") or platformdirs.user_cache_dir("bespoke", appauthor=False)
    )


def _prune(folder: Path) -> None:
    sizes = {file: file.stat() for file in folder.glob("*.npy") if file.exists()}
    excess = sum(stat.st_size for stat in sizes.values()) - CACHE_BYTES
    for file, stat in sorted(sizes.items(), key=lambda item: item[1].st_mtime):
        if excess <= 0:
            break
        file.unlink(missing_ok=True)
        excess -= stat.st_size


def _fluidsynth():
    # A Python that is not Homebrew's finds Homebrew's libraries only with HOMEBREW_PREFIX.
    if Path("/opt/homebrew/lib/libfluidsynth.dylib").exists():
        os.environ.setdefault("HOMEBREW_PREFIX", "/opt/homebrew")
    try:
        import fluidsynth
    except (ImportError, OSError) as error:
        raise BespokeError(
            "FluidSynth is not installed: apt install libfluidsynth3 (Debian, Ubuntu), "
            "brew install fluid-synth (macOS), or choco install fluidsynth (Windows); "
            "or give a rendered target as song.target.audio."
        ) from error
    return fluidsynth


@functools.cache
def _write_float():
    """`fluid_synth_write_float`, which pyfluidsynth does not wrap.

    Its arguments are synth, samples, and buffer, offset and stride of left and right channel.
    """
    names = (
        ("left", c_void_p),
        ("left_offset", c_int),
        ("left_stride", c_int),
        ("right", c_void_p),
        ("right_offset", c_int),
    )
    arguments = (("synth", c_void_p), ("samples", c_int), *names, ("right_stride", c_int))
    return _fluidsynth().cfunc(
        "fluid_synth_write_float", c_int, *((name, kind, 1) for name, kind in arguments)
    )


class _Synth:
    """Context manager of a FluidSynth instance with one soundfont.

    Reverb and chorus are off, and the gain is fixed.
    """

    def __init__(self, soundfont: SoundFont):
        self.soundfont = soundfont

    def __enter__(self):
        settings = {
            "synth.reverb.active": 0,
            "synth.chorus.active": 0,
            "synth.polyphony": 1024,
            "synth.cpu-cores": 1,
        }
        self.synth = _fluidsynth().Synth(
            gain=_GAIN, samplerate=float(SYNTH_RATE), channels=16, **settings
        )
        self.id = self.synth.sfload(str(self.soundfont.path))
        if self.id < 0:
            self.synth.delete()
            raise BespokeError(
                f"FluidSynth cannot load the soundfont {self.soundfont.path}, damaged or of an "
                "unknown kind: give another SF2 or SF3."
            )
        return self

    def __exit__(self, *_):
        self.synth.delete()

    def write(self, samples: int) -> np.ndarray:
        """Synthesize further samples: mean of left and right, float32 `[1, samples]`."""
        stereo = np.zeros((2, samples), np.float32)
        left, right = (channel.ctypes.data for channel in stereo)
        _write_float()(self.synth.synth, samples, left, 0, 1, right, 0, 1)
        return stereo.mean(axis=0, keepdims=True)

    def perform(self, notes: Iterable[Note], channel: int) -> list[np.ndarray]:
        """Play notes from time 0 to the end of the last: blocks of mono `[1, samples]`."""
        # At equal times note ends come first, so that a repeated note is played again.
        events = sorted(
            [
                (round(note.start_seconds * SYNTH_RATE), 1, note.pitch, note.velocity)
                for note in notes
            ]
            + [(round(note.end_seconds * SYNTH_RATE), 0, note.pitch, 0) for note in notes]
        )
        blocks: list[np.ndarray] = []
        sounding: Counter[int] = Counter()
        now = 0
        for time, starts, pitch, velocity in events:
            if time > now:
                blocks.append(self.write(time - now))
                now = time
            sounding[pitch] += 1 if starts else -1
            if starts:
                self.synth.noteon(channel, pitch, velocity)
            elif sounding[pitch] <= 0:  # it would end a note too that was struck since
                self.synth.noteoff(channel, pitch)
        return blocks


class Player:
    """A soundfont that stays loaded, for many short renders without the cache.

    Args:
        soundfont: the soundfont.
    """

    def __init__(self, soundfont: SoundFont):
        self._loaded = _Synth(soundfont).__enter__()

    def play(
        self, notes: Iterable[Note], program: int, is_drum: bool, seconds: float
    ) -> np.ndarray | None:
        """Synthesize notes with one program.

        Args:
            notes: the notes.
            program: General MIDI program (0-127).
            is_drum: whether it is a drum kit.
            seconds: length of the result.

        Returns:
            Mono float32 `[1, time]` at `SYNTH_RATE`, or None if the soundfont does not have the
            program.
        """
        channel = 9 if is_drum else 0
        if (
            self._loaded.synth.program_select(
                channel, self._loaded.id, DRUM_BANK if is_drum else 0, program
            )
            != 0
        ):
            return None
        blocks, samples = self._loaded.perform(notes, channel), round(seconds * SYNTH_RATE)
        blocks.append(self._loaded.write(max(0, samples - sum(block.shape[1] for block in blocks))))
        self._loaded.synth.cc(channel, _ALL_SOUND_OFF, 0)
        self._loaded.write(SYNTH_RATE // 10)
        return np.concatenate(blocks, axis=1)[:, :samples]

    def close(self) -> None:
        """Free the soundfont's memory."""
        self._loaded.__exit__()


@functools.cache
def _presets(soundfont: SoundFont) -> dict[tuple[int, int], str]:
    with _Synth(soundfont) as loaded:
        names = {
            (bank, program): loaded.synth.sfpreset_name(loaded.id, bank, program)
            for bank in range(DRUM_BANK + 1)
            for program in range(128)
        }
    return {place: name for place, name in names.items() if name is not None}


def _synthesize(notes: list[Note], patch: Patch, tuning_cents: float) -> np.ndarray:
    """Play the notes: mono float32 `[1, time]` at `SYNTH_RATE`.

    FluidSynth's float output is used. Its 16-bit output clips, and is dithered with the C library's
    random numbers, which other code uses too.
    """
    channel = 9 if patch.bank == DRUM_BANK else 0
    with _Synth(patch.soundfont) as loaded:
        if loaded.synth.program_select(channel, loaded.id, patch.bank, patch.program) != 0:
            raise BespokeError(
                f"The soundfont {patch.soundfont.path.name} has no patch {patch.program} "
                f"in bank {patch.bank}."
            )
        if patch.bank != DRUM_BANK:
            loaded.synth.pitch_bend(channel, round(tuning_cents / 200 * _PITCH_BEND_RANGE))
        blocks = loaded.perform(notes, channel)
        for _ in range(round(_TAIL_SECONDS * 10)):
            blocks.append(loaded.write(SYNTH_RATE // 10))
            if loaded.synth.get_active_voice_count() == 0:
                break
    return np.concatenate(blocks, axis=1)


def is_silent(waveform: np.ndarray) -> bool:
    """Whether a render is below -80 dBFS throughout, which means that the patch lacks its notes."""
    return peak(waveform) < 1e-4
