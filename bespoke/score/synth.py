"""From notes to audio. The only room that knows FluidSynth.

Renders are cached by the hash of all that goes into them, in `$BESPOKE_CACHE` or the user's cache folder
(`~/.cache/bespoke` on Linux). The cache holds at most 2 GB (the least recently used go first) and can be deleted at any time.
"""

import functools
import hashlib
import os
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

SYNTH_RATE = 44100  # soundfont samples are made for it; rendering at a low rate would alias
DRUM_BANK = 128
CACHE_BYTES = 2_000_000_000
_GAIN = 0.2  # pinned: FluidSynth's own default
_TAIL_SECONDS = 3.0
_ALL_SOUND_OFF = 120  # the controller


@dataclass(frozen=True)
class SoundFont:
    """A soundfont file (SF2, or SF3 where libfluidsynth was built with libsndfile)."""

    path: Path

    @classmethod
    def find(cls, name: str | Path | None = None) -> "SoundFont":
        """Find a soundfont: a path, a name in one of the `soundfont_folders`, or None for TimGM6mb, which comes with pretty_midi.

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
                f"The soundfont {path} is incomplete, shorter than it says itself: download it again."
            )
        return cls(path)

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the file's content."""
        return file_hash(self.path)

    def preset_name(self, bank: int, program: int) -> str | None:
        """The name of a preset, or None where the soundfont has none there."""
        return _presets(self).get((bank, program))


@dataclass(frozen=True)
class Patch:
    """One sound: a General MIDI program (0–127) of a bank of a soundfont. Drum kits are in bank 128."""

    program: int
    bank: int = 0
    soundfont: SoundFont = field(default_factory=SoundFont.find)

    def check(self) -> "Patch":
        """Return the patch itself if its soundfont has it.

        Raises:
            BespokeError: it has not, or FluidSynth is not installed.
        """
        if self.soundfont.preset_name(self.bank, self.program) is None:
            raise BespokeError(
                f"The soundfont {self.soundfont.path.name} has no patch {self.program} in bank {self.bank}:"
                " choose a General MIDI program from 0 to 127, or another soundfont."
            )
        return self


def soundfont_folders() -> list[Path]:
    """Where soundfonts are looked for by name: the entries of `BESPOKE_SOUNDFONTS`, then the system's usual folders."""
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
            f"The soundfont {name} was not found: give a path to an SF2 or SF3 file, or put its folder into BESPOKE_SOUNDFONTS"
            f" (found by name: {names})."
        )
    return known[name.casefold()]


def render(notes: Iterable[Note], patch: Patch, sample_rate: int = SYNTH_RATE) -> np.ndarray:
    """Synthesize notes with one patch, dry (no reverb or chorus), at FluidSynth's own level, from the cache if it is there.

    Args:
        notes: any number of notes.
        patch: the sound.
        sample_rate: of the result, in Hz.

    Returns:
        Mono float32 `[1, time]`, full scale at 1 but never clipped, from time 0 to the end of the last release.

    Raises:
        BespokeError: FluidSynth is not installed, the soundfont has no such patch, or the cache cannot be written.
    """
    notes = sorted(notes)
    key = hashlib.sha256(
        repr((2, notes, patch.bank, patch.program, patch.soundfont.hash, sample_rate)).encode()
    ).hexdigest()
    cached = cache_folder() / "renders" / f"{key}.npy"
    try:
        waveform = np.load(cached)
        os.utime(cached)  # the least recently used are removed first
        return waveform
    except (OSError, ValueError, EOFError):
        pass
    waveform = resample(_synthesize(notes, patch), SYNTH_RATE, sample_rate)
    try:
        with atomic_path(cached) as temporary:
            np.save(temporary, waveform)
    except BespokeError as error:
        raise BespokeError(
            f"The cache of renders {cached.parent} cannot be written: set BESPOKE_CACHE to a folder with space."
        ) from error
    _prune(cached.parent)
    return waveform


def cache_folder() -> Path:
    """The folder of the cache: `$BESPOKE_CACHE`, or the user's cache folder."""
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
    if Path(
        "/opt/homebrew/lib/libfluidsynth.dylib"
    ).exists():  # where a Python that is not Homebrew's looks only if it is told
        os.environ.setdefault("HOMEBREW_PREFIX", "/opt/homebrew")
    try:
        import fluidsynth
    except (ImportError, OSError) as error:
        raise BespokeError(
            "FluidSynth is not installed: apt install libfluidsynth3 (Debian, Ubuntu), brew install fluid-synth (macOS),"
            " or choco install fluidsynth (Windows); or give a rendered target as song.target.audio."
        ) from error
    return fluidsynth


@functools.cache
def _write_float():
    """`fluid_synth_write_float`, which pyfluidsynth does not wrap: (synth, samples, left, offset, stride, right, offset, stride)."""
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
    """A FluidSynth instance with one soundfont, as a context. Reverb and chorus are off, the gain is pinned."""

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
                f"FluidSynth cannot load the soundfont {self.soundfont.path}, damaged or of an unknown kind: give another SF2 or SF3."
            )
        return self

    def __exit__(self, *_):
        self.synth.delete()

    def write(self, samples: int) -> np.ndarray:
        """The next samples, the mean of left and right, float32 `[1, samples]`."""
        stereo = np.zeros((2, samples), np.float32)
        left, right = (channel.ctypes.data for channel in stereo)
        _write_float()(self.synth.synth, samples, left, 0, 1, right, 0, 1)
        return stereo.mean(axis=0, keepdims=True)

    def perform(self, notes: Iterable[Note], channel: int) -> list[np.ndarray]:
        """Play notes with the channel's patch, from time 0 to the last one's end: blocks of mono `[1, samples]`."""
        # At the same time, ends come before starts, so that a repeated note sounds again.
        events = sorted(
            [
                (round(note.start_seconds * SYNTH_RATE), 1, note.pitch, note.velocity)
                for note in notes
            ]
            + [(round(note.end_seconds * SYNTH_RATE), 0, note.pitch, 0) for note in notes]
        )
        blocks, now = [], 0
        for time, starts, pitch, velocity in events:
            if time > now:
                blocks.append(self.write(time - now))
                now = time
            if starts:
                self.synth.noteon(channel, pitch, velocity)
            else:
                self.synth.noteoff(channel, pitch)
        return blocks


class Player:
    """A soundfont that stays loaded, for many short renders; nothing is cached.

    Args:
        soundfont: to play.
    """

    def __init__(self, soundfont: SoundFont):
        self._loaded = _Synth(soundfont).__enter__()

    def play(
        self, notes: Iterable[Note], program: int, is_drum: bool, seconds: float
    ) -> np.ndarray | None:
        """Mono float32 `[1, time]` at `SYNTH_RATE`, of this length; None where the soundfont has no such program."""
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
        """Give the soundfont's memory back."""
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


def _synthesize(notes: list[Note], patch: Patch) -> np.ndarray:
    """Play the notes: mono float32 `[1, time]` at `SYNTH_RATE`.

    FluidSynth's float output is taken: its 16-bit one clips, and dithers with the C library's random numbers, which others draw from too.
    """
    channel = 9 if patch.bank == DRUM_BANK else 0
    with _Synth(patch.soundfont) as loaded:
        if loaded.synth.program_select(channel, loaded.id, patch.bank, patch.program) != 0:
            raise BespokeError(
                f"The soundfont {patch.soundfont.path.name} has no patch {patch.program} in bank {patch.bank}."
            )
        blocks = loaded.perform(notes, channel)
        for _ in range(round(_TAIL_SECONDS * 10)):
            blocks.append(loaded.write(SYNTH_RATE // 10))
            if loaded.synth.get_active_voice_count() == 0:
                break
    return np.concatenate(blocks, axis=1)


def is_silent(waveform: np.ndarray) -> bool:
    """Whether a render is below -80 dBFS everywhere: the patch cannot play these notes."""
    return peak(waveform) < 1e-4
