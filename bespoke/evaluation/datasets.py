"""Recordings with stems and notes, from the data sets of the field as they are unpacked.

mirdata has loaders for two of them. They are not used: mirdata 1.0 fetches each data set's index
from the network before it reads anything, and adds 32 packages to ours (among them the clients of
three clouds) to read a YAML file or some lines of numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pretty_midi
import soundfile
import yaml

from bespoke.score.midi import Note, merged, read_score
from bespoke.utils.errors import BespokeError

_DRUMS = 128  # Slakh's number for what has no General MIDI program


@dataclass(frozen=True)
class Sound:
    """Where the sound of a stem is: files that add up, or one stream of a file of several.

    Attributes:
        files: of one sample rate.
        stream: number of the audio stream, in a file of the container MP4.
    """

    files: tuple[Path, ...]
    stream: int | None = None

    def read(self, start_seconds: float = 0.0, seconds: float | None = None) -> np.ndarray:
        """The sound, float32 `[channel, time]`; of files of unlike length, the longest's.

        Args:
            start_seconds, seconds: the excerpt; None: to the end.
        """
        parts = [self._read(file, start_seconds, seconds) for file in self.files]
        total = np.zeros(
            (max(len(part) for part in parts), max(part.shape[1] for part in parts)), np.float32
        )
        for part in parts:
            total[:, : part.shape[1]] += part
        return total

    @property
    def sample_rate(self) -> int:
        """In Hz."""
        if self.stream is None:
            return int(soundfile.info(self.files[0]).samplerate)
        import av

        with av.open(str(self.files[0])) as container:
            return int(container.streams.audio[self.stream].rate)

    def _read(self, file: Path, start_seconds: float, seconds: float | None) -> np.ndarray:
        if self.stream is not None:
            whole = self._decoded(file)
            first = round(start_seconds * self.sample_rate)
            last = None if seconds is None else first + round(seconds * self.sample_rate)
            return whole[:, first:last]
        with soundfile.SoundFile(file) as audio:
            audio.seek(min(round(start_seconds * audio.samplerate), audio.frames))
            count = -1 if seconds is None else round(seconds * audio.samplerate)
            return audio.read(count, dtype="float32", always_2d=True).T

    def _decoded(self, file: Path) -> np.ndarray:
        import av

        with av.open(str(file)) as container:
            audio = container.streams.audio[self.stream or 0]
            resampler = av.AudioResampler("fltp", audio.layout, audio.rate)
            frames = [
                frame.to_ndarray()
                for decoded in container.decode(audio)
                for frame in resampler.resample(decoded)
            ]
        return np.concatenate(frames, axis=1)


@dataclass(frozen=True)
class Stem:
    """What one instrument plays in a recording.

    Attributes:
        name: a word.
        sound: where its sound is.
        program: its General MIDI program; None for drums, and where it is not known: no target.
        notes: in seconds of the recording; none where they are not known.
        score: the data set's own score, not in time with the recording; none where there is none.
    """

    name: str
    sound: Sound
    program: int | None
    notes: tuple[Note, ...] = ()
    score: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Multitrack:
    """A recording with all of its stems.

    Attributes:
        name: of the recording, with the data set's before it: `slakh_Track00001`.
        licence: of the data set.
        stems: which add up to the recording.
        mixture: where the recording is; None: the stems make it.
        beats_seconds: its beats, where they are known.
    """

    name: str
    licence: str
    stems: tuple[Stem, ...]
    mixture: Sound | None = None
    beats_seconds: tuple[float, ...] = ()


def slakh(folder: Path) -> Iterator[Callable[[], Multitrack]]:
    """Slakh2100, its redux version and BabySlakh (Manilow et al., WASPAA 2019).

    A recording is a folder with `metadata.yaml`, `mix.flac` (or `.wav`), `stems/S00.flac`, ...,
    `MIDI/S00.mid`, ... and `all_src.mid`, at any depth (github.com/ethman/slakh-utils).
    """
    for file in sorted(folder.rglob("metadata.yaml")):
        yield partial(_slakh_track, file.parent)


def _slakh_track(track: Path) -> Multitrack:
    stems = []
    metadata = yaml.safe_load((track / "metadata.yaml").read_text(encoding="utf-8"))
    for name, facts in metadata["stems"].items():
        audio, score = _audio(track / "stems" / name), track / "MIDI" / f"{name}.mid"
        if audio is not None:  # sound effects are not rendered
            is_pitched = not facts["is_drum"] and facts["program_num"] < _DRUMS
            has_notes = is_pitched and score.is_file()
            stems.append(
                Stem(
                    name,
                    Sound((audio,)),
                    facts["program_num"] if has_notes else None,
                    merged(read_score(score)).notes if has_notes else (),
                )
            )
    beats: tuple[float, ...] = ()
    if (track / "all_src.mid").is_file():
        midi = pretty_midi.PrettyMIDI(str(track / "all_src.mid"))
        beats = tuple(map(float, midi.get_beats()))
    return Multitrack(
        f"slakh_{track.name}", "CC BY 4.0", tuple(stems), _sound(track / "mix"), beats
    )


_URMP = {
    "vn": 40, "va": 41, "vc": 42, "db": 43, "fl": 73, "ob": 68, "cl": 71, "sax": 65, "bn": 70,
    "tpt": 56, "hn": 60, "tbn": 57, "tba": 58,
}  # fmt: skip


def urmp(folder: Path) -> Iterator[Callable[[], Multitrack]]:
    """URMP (Li et al., IEEE Trans. Multimedia 2019).

    A recording is a folder `01_Jupiter_vn_vc` with `AuMix_01_Jupiter_vn_vc.wav`,
    `AuSep_1_vn_01_Jupiter.wav`, `Notes_1_vn_01_Jupiter.txt` (onset in seconds, frequency in Hz,
    duration in seconds) and the score `Sco_01_Jupiter_vn_vc.mid`, a track a part, in the order of
    the numbers.
    """
    for file in sorted(folder.rglob("AuMix_*.wav")):
        yield partial(_urmp_piece, file)


def _urmp_piece(mix: Path) -> Multitrack:
    piece = mix.parent
    files = sorted(piece.glob("AuSep_*.wav"), key=lambda file: int(file.stem.split("_")[1]))
    scores = sorted(piece.glob("Sco_*.mid"))
    parts = read_score(scores[0]) if scores else []
    stems = []
    for index, file in enumerate(files):
        _, number, instrument, *_ = file.stem.split("_")
        table = _numbers(file.with_name(file.stem.replace("AuSep", "Notes") + ".txt"))
        notes = tuple(
            Note(start, start + seconds, round(69 + 12 * np.log2(hz / 440)))
            for start, hz, seconds in table[:, :3]
            if seconds > 0
        )
        score = parts[index].notes if len(parts) == len(files) else ()
        stems.append(
            Stem(f"{number}-{instrument}", Sound((file,)), _URMP[instrument], notes, score)
        )
    return Multitrack(f"urmp_{piece.name}", "see the data set", tuple(stems), Sound((mix,)))


_BACH10 = {"violin": 40, "clarinet": 71, "saxphone": 66, "bassoon": 70}  # so it spells them


def bach10(folder: Path) -> Iterator[Callable[[], Multitrack]]:
    """Bach10 (Duan, Pardo & Zhang, IEEE Trans. Audio, Speech and Language Processing 2010).

    A recording is a folder `01-AchGottundHerr` with files of this name: `.wav`, `-violin.wav`,
    `-clarinet.wav`, `-saxphone.wav`, `-bassoon.wav`, the score `.mid`, and `.txt`, with a note a
    line: its start in the recording and in the score in ms, its pitch, and its part from 1 to 4.
    """
    for file in sorted(folder.rglob("*-violin.wav")):
        yield partial(_bach10_chorale, file.parent)


def _bach10_chorale(folder: Path) -> Multitrack:
    name = folder.name
    written = sorted(note for part in read_score(folder / f"{name}.mid") for note in part.notes)
    table = _numbers(folder / f"{name}.txt")
    table = table[np.argsort(table[:, 1], kind="stable")]
    starts = np.unique(table[:, 1])
    heard = np.array([np.median(table[table[:, 1] == start, 0]) for start in starts])
    stems = []
    for number, (instrument, program) in enumerate(_BACH10.items(), 1):
        notes, score = [], []
        for audio_ms, score_ms, pitch, _ in table[table[:, 3] == number, :4]:
            same = [note for note in written if note.pitch == pitch]
            if not same:
                raise BespokeError(f"{folder}: {name}.txt and {name}.mid have unlike notes.")
            note = min(same, key=lambda note: abs(note.start_seconds - score_ms / 1000))
            end_ms = 1000 * note.end_seconds
            # Beyond the last start the recording goes on as on the whole.
            slope = (heard[-1] - heard[0]) / max(starts[-1] - starts[0], 1e-9)
            heard_end = np.interp(end_ms, starts, heard) + slope * max(end_ms - starts[-1], 0.0)
            notes.append(Note(audio_ms / 1000, max(heard_end, audio_ms + 50) / 1000, int(pitch)))
            score.append(note)
        sound = Sound((folder / f"{name}-{instrument}.wav",))
        stems.append(Stem(instrument, sound, program, tuple(notes), tuple(score)))
    mix = Sound((folder / f"{name}.wav",))
    return Multitrack(f"bach10_{name}", "see the data set", tuple(stems), mix)


_PHENICX = {
    "violin": 40, "viola": 41, "cello": 42, "doublebass": 43, "flute": 73, "oboe": 68,
    "clarinet": 71, "bassoon": 70, "horn": 60, "trumpet": 56,
}  # fmt: skip


def phenicx(folder: Path) -> Iterator[Callable[[], Multitrack]]:
    """PHENICX-Anechoic (Miron et al., J. Electrical and Computer Engineering 2016).

    `audio/beethoven/violin1.wav`, `violin2.wav`, ... are the players of a section, whose notes are
    in `annotations/beethoven/violin.txt`, in time with the recording, and `violin_o.txt`, as
    written: start and end in seconds and the pitch's name, a line a note. There is no mix.
    """
    for piece in sorted(folder.glob("**/annotations/*/")):
        yield partial(_phenicx_piece, piece)


def _phenicx_piece(annotations: Path) -> Multitrack:
    audio = annotations.parent.parent / "audio" / annotations.name
    stems = []
    for instrument, program in _PHENICX.items():
        files = tuple(sorted(audio.glob(f"{instrument}[0-9]*.wav"))) or tuple(
            audio.glob(f"{instrument}.wav")
        )
        if files:
            notes, score = (
                _named_notes(annotations / f"{instrument}{ending}.txt") for ending in ("", "_o")
            )
            stems.append(Stem(instrument, Sound(files), program, notes, score))
    return Multitrack(f"phenicx_{annotations.name}", "CC BY-NC-SA 4.0", tuple(stems))


def _named_notes(file: Path) -> tuple[Note, ...]:
    notes = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip():
            start, end, name = line.split(",")[:3]
            pitch = pretty_midi.note_name_to_number(name.strip())
            notes.append(Note(float(start), float(end), pitch))
    return tuple(sorted(notes))


_MUSDB18 = ("drums", "bass", "other", "vocals")  # streams 1 to 4; 0 is the mix


def musdb18(folder: Path, scores: Path, is_in_time: bool) -> Iterator[Callable[[], Multitrack]]:
    """MUSDB18 and MUSDB18-HQ (Rafii et al. 2017 and 2019), with your own scores.

    A recording is a file `NAME.stem.mp4`, or a folder `NAME` with `mixture.wav`, `drums.wav`,
    `bass.wav`, `other.wav` and `vocals.wav`, at any depth. Its scores are `NAME/bass.mid` and the
    like in the folder of scores. Recordings without a score are passed over.

    Args:
        folder: of the data set.
        scores: the folder of your scores.
        is_in_time: whether they are in time with the recordings.
    """
    for file in sorted([*folder.rglob("*.stem.mp4"), *folder.rglob("mixture.wav")]):
        is_mp4 = file.suffix == ".mp4"
        name = file.name.removesuffix(".stem.mp4") if is_mp4 else file.parent.name
        if any((scores / name / f"{stem}.mid").is_file() for stem in _MUSDB18):
            yield partial(_musdb18_song, file, scores / name, is_in_time)


def _musdb18_song(file: Path, own: Path, is_in_time: bool) -> Multitrack:
    is_mp4 = file.suffix == ".mp4"
    stems = []
    for stream, name in enumerate(_MUSDB18, 1):
        sound = Sound((file,), stream) if is_mp4 else Sound((file.with_name(f"{name}.wav"),))
        program: int | None = None
        notes: tuple[Note, ...] = ()
        if (own / f"{name}.mid").is_file():
            part = merged([part for part in read_score(own / f"{name}.mid") if not part.is_drum])
            program, notes = part.program, part.notes
        stem = Stem(name, sound, program)
        stems.append(replace(stem, notes=notes) if is_in_time else replace(stem, score=notes))
    mix = Sound((file,), 0) if is_mp4 else Sound((file,))
    title = "".join(letter if letter.isalnum() else "-" for letter in own.name)
    return Multitrack(f"musdb18_{title}", "see the data set", tuple(stems), mix)


def _audio(path: Path) -> Path | None:
    """The file of this name, as FLAC or WAV."""
    files = (path.with_name(path.name + ending) for ending in (".flac", ".wav"))
    return next((file for file in files if file.is_file()), None)


def _sound(path: Path) -> Sound | None:
    file = _audio(path)
    return None if file is None else Sound((file,))


def _numbers(file: Path) -> np.ndarray:
    """A table of numbers, `[line, column]`."""
    return np.loadtxt(file, ndmin=2)


READERS: dict[str, Callable[[Path], Iterator[Callable[[], Multitrack]]]] = {
    "slakh": slakh,
    "urmp": urmp,
    "bach10": bach10,
    "phenicx": phenicx,
}
"""Readers by data set. Each finds the recordings, and reads one only where it is asked for it."""


def names() -> Sequence[str]:
    """The data sets that can be read."""
    return (*READERS, "musdb18")


def recordings(
    dataset: str, folder: Path, scores: Path | None = None, is_in_time: bool = False
) -> list[Callable[[], Multitrack]]:
    """Find the recordings of a data set in the folder that it was unpacked into.

    Args:
        dataset: one of `names()`.
        folder: of the data set.
        scores, is_in_time: as of `musdb18`, which needs them.

    Returns:
        A function for each recording, that reads its notes.

    Raises:
        BespokeError: there are none.
    """
    if dataset == "musdb18":
        if scores is None:
            raise BespokeError("MUSDB18 has no notes: give a folder of your own by --scores.")
        found = list(musdb18(folder, scores, is_in_time))
    else:
        found = list(READERS[dataset](folder))
    if not found:
        raise BespokeError(
            f"{folder} has no recording of {dataset}: give the folder into which the data set was"
            " unpacked" + (", and scores named as its recordings." if scores else ".")
        )
    return found
