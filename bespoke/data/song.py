"""A song: the recording, what is known of the target, and what else plays.

Everything that a user can get wrong in a song is checked here.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pretty_midi

from bespoke.audio.dsp import opposed, peak, resample, seen
from bespoke.audio.io import Recording, open_audio
from bespoke.score.crop import choose_spans, take_audio, take_notes
from bespoke.score.midi import (
    Part,
    choose_part,
    choose_parts,
    merged,
    read_score,
    without_key_switches,
)
from bespoke.score.synth import DRUM_BANK, Patch, SoundFont, is_silent, render
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import file_hash

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"name", "mixture", "target", "others", "background", "reference", "excerpt", "standin"}
BACKGROUNDS = ("mixture", "synth")
TARGET_KEYS = {"score", "audio", "instrument", "patches", "soundfonts"}
OTHER_KEYS = {"score", "instrument", "patches", "soundfonts"}
STANDIN_KEYS = {"replaces", "mixture", "score", "instrument", "reference"}
MIN_SECONDS = 0.1
MAX_HELD_VALUES = 60_000_000  # samples of all channels: 11 minutes of stereo at 44.1 kHz
_FORMATS = ("wav", "flac", "aiff", "aif", "ogg", "opus", "mp3", "m4a")  # of a user's own files
# A part that brings no patches gets its own program and this neighbour: two of each family of
# eight, as in section 3.2.
_NEIGHBOUR = 1


@dataclass(frozen=True)
class Voice:
    """A part and the patches it may be played with.

    Attributes:
        part: its notes.
        patches: at least one.
        tuning_cents: how much sharper than A4 = 440 Hz it is played.
    """

    part: Part
    patches: tuple[Patch, ...]
    tuning_cents: float = 0.0

    def render(self, sample_rate: int) -> list[np.ndarray]:
        """One mono waveform `[1, time]` for each patch, all of one length.

        Raises:
            BespokeError: a patch gives silence.
        """
        renders = [
            render(self.part.notes, patch, sample_rate, self.tuning_cents) for patch in self.patches
        ]
        for patch, waveform in zip(self.patches, renders, strict=True):
            if is_silent(waveform):
                raise BespokeError(
                    f"Patch {patch.program} of {patch.soundfont.path.name} is silent for the notes"
                    f" of {self.part.name or 'the score'}: choose another of song's patches."
                )
        longest = max(waveform.shape[-1] for waveform in renders)
        return [
            np.pad(waveform, ((0, 0), (0, longest - waveform.shape[-1]))) for waveform in renders
        ]


@dataclass(frozen=True)
class Song:
    """A recording and what is known of it.

    Attributes:
        name: of the song.
        mixture: the recording, float32 `[channel, time]`. If it is longer than about ten minutes,
            its channel mean, `[1, time]`.
        sample_rate: of the mixture, in Hz.
        target: the part to separate, or None where `target_audio` is given.
        target_audio: a rendered target `[channel, time]` and its sample rate in Hz, or None.
        others: the other parts, where they are known. Only the pitched ones where a run chose them
            itself (`others: auto`).
        reference: the true target `[channel, time]` of the recording's shape, for metrics only, or
            None.
        estimate: a first estimate of the target `[channel, time]` of the recording's shape, which
            the run makes before training a network that uses the score, or None.
        is_standin: whether the recording is our stand-in for one that may not be shipped.
        hashes: SHA-256 of every input file, by role.
        source: the recording's file.
        background: what the paper mixes the target with: `mixture`, the recording itself, or
            `synth`, the other parts.
        view: weights of the channels in whose sum the target is looked for, see
            `bespoke.audio.dsp.seen`.
    """

    name: str
    mixture: np.ndarray
    sample_rate: int
    target: Voice | None
    target_audio: tuple[np.ndarray, int] | None
    others: tuple[Voice, ...]
    reference: np.ndarray | None
    is_standin: bool
    hashes: Mapping[str, str]
    source: Recording
    estimate: np.ndarray | None = None
    background: str = "mixture"
    view: tuple[float, ...] | None = None

    @classmethod
    def load(
        cls,
        config: Mapping[str, Any],
        working_rate: int = 22050,
        like: "Song | None" = None,
    ) -> "Song":
        """Read and check a song as it is described in conf/song/custom.yaml.

        Args:
            config: of the song.
            working_rate: at which a recording of more than ten minutes is held in memory, in Hz.
            like: a song of the same recording and excerpt, which is then not read again.

        Raises:
            BespokeError: anything in it is missing, unreadable or contradictory.
        """
        _check_keys(config)
        config, is_standin = _with_own_files(config)
        name = str(config.get("name") or "custom")
        target = config["target"]
        if (target.get("score") is None) == (target.get("audio") is None):
            raise BespokeError(
                "Give exactly one of song.target.score (a MIDI file) and song.target.audio (a"
                " rendered target)."
            )
        files: dict[str, Path] = {}
        known: dict[str, str] = {}
        reference = reference_file = None
        if like is not None and config.get("reference") is None:
            source, mixture, sample_rate = like.source, like.mixture, like.sample_rate
            view, known = like.view, {"mixture": like.hashes["mixture"]}
        else:
            source, reference_file = _open_recording(config, files)
            mixture, sample_rate, view = _hold_seen(source, working_rate)
        if reference_file is not None:
            reference = _read_reference(reference_file, source, mixture, sample_rate)
        voice, target_audio, rest = _load_target(target, files, working_rate)
        voices = _others(config.get("others"), rest, voice, target.get("soundfonts"), files)
        return cls(
            name,
            mixture,
            sample_rate,
            voice,
            target_audio,
            voices,
            reference,
            is_standin,
            known | {role: file_hash(path) for role, path in files.items()},
            source,
            background=config.get("background") or "mixture",
            view=view,
        )

    @property
    def recording(self) -> tuple[np.ndarray, int]:
        """The mixture and its sample rate in Hz."""
        return self.mixture, self.sample_rate

    @property
    def seconds(self) -> float:
        """The recording's length."""
        return self.mixture.shape[-1] / self.sample_rate

    def to_train_on(self, limit_seconds: float, is_aligned: bool) -> "Song":
        """The song as training hears it.

        Of a long song, training hears only some minutes in which the target plays, joined together.

        Args:
            limit_seconds: of recording and score.
            is_aligned: whether the target's notes are in seconds of the recording, so that score
                and recording are cut alike. The other parts are cut as the target's score is.

        Returns:
            The song itself, if it is short enough; without estimate and reference if it is not.
        """
        notes = self.target.part.notes if self.target else ()
        voices = [voice for voice in (self.target, *self.others) if voice]
        spans = choose_spans(notes if is_aligned else (), self.seconds, limit_seconds)
        played = spans
        if not is_aligned and notes:
            score_seconds = max(note.end_seconds for voice in voices for note in voice.part.notes)
            played = (
                choose_spans(notes, score_seconds, limit_seconds)
                if score_seconds > limit_seconds
                else [(0.0, score_seconds)]
            )
        song = self
        if spans != [(0.0, self.seconds)]:
            song = replace(
                song,
                mixture=take_audio(song.mixture, song.sample_rate, spans),
                estimate=None,
                reference=None,
            )
        elif is_aligned or not notes or played == [(0.0, score_seconds)]:
            return song

        def cut(voice: Voice) -> Voice:
            notes = take_notes(voice.part.notes, played)
            return replace(voice, part=replace(voice.part, notes=notes))

        others = tuple(voice for voice in map(cut, song.others) if voice.part.notes)
        return replace(song, target=song.target and cut(song.target), others=others)

    def read_stem(self, path: Path, limit_seconds: float | None = None) -> np.ndarray:
        """Read a stem of the recording from a file, in the form and with the length of `mixture`.

        Args:
            path: of the stem's file.
            limit_seconds: read only the first seconds, up to this limit; None: read all.
        """
        stem = replace(self.source, path=path, first=0)
        if limit_seconds is None or limit_seconds >= self.seconds:
            return hold(stem, self.sample_rate)[0]
        # A second more, whose resampling is that of the whole at the limit.
        part = stem.cut(0, min(stem.samples, round((limit_seconds + 1) * stem.sample_rate)))
        waveform = part.read() if _is_held(stem) else part.read_mono(self.sample_rate)
        return waveform[:, : round(limit_seconds * self.sample_rate)]

    def render_target(self, sample_rate: int) -> list[np.ndarray]:
        """The target's waveforms at `sample_rate` in Hz, mono `[1, time]`.

        There is one for each patch, or only the one that was given as audio.
        """
        if self.target is not None:
            return self.target.render(sample_rate)
        assert self.target_audio is not None
        waveform, rate = self.target_audio
        return [resample(waveform.mean(axis=0, keepdims=True), rate, sample_rate)]

    def render_estimate(self, sample_rate: int) -> np.ndarray:
        """The channels of `estimate` as one, in the song's view, at `sample_rate`, `[1, time]`."""
        assert self.estimate is not None
        return resample(seen(self.estimate, self.view), self.sample_rate, sample_rate)

    def render_mixture(self, sample_rate: int) -> np.ndarray:
        """The recording's channels as one, in the song's view, at `sample_rate`, `[1, time]`."""
        return resample(seen(self.mixture, self.view), self.sample_rate, sample_rate)


def hold(recording: Recording, working_rate: int) -> tuple[np.ndarray, int]:
    """A recording in memory and its rate in Hz.

    Of a recording that is too large, only the channel mean at `working_rate` is held.
    """
    if _is_held(recording):
        return recording.read(), recording.sample_rate
    return recording.read_mono(working_rate), working_rate


def _is_held(recording: Recording) -> bool:
    return recording.samples * recording.channels <= MAX_HELD_VALUES


def locate(path: str | Path) -> Path:
    """Resolve a path against the folder in which the command started.

    If nothing is there, resolve it against the project's folder, which holds the shipped songs.
    """
    path = Path(str(path)).expanduser()  # YAML takes a name such as 1999 for a number
    try:
        return path if path.exists() or not (ROOT / path).exists() else ROOT / path
    except OSError:  # a name that is too long; whoever reads it says so
        return path


def _check_keys(config: Mapping[str, Any]) -> None:
    target = config.get("target")
    if not isinstance(target, Mapping):
        raise BespokeError(
            "The song needs a target: set song.target.score to a MIDI file or song.target.audio to"
            " a rendered target."
        )
    background = config.get("background")
    if background not in (None, *BACKGROUNDS):
        raise BespokeError(
            f"song.background={background} is not possible: give {' or '.join(BACKGROUNDS)}."
        )
    if background == "synth" and not config.get("others"):
        raise BespokeError(
            "song.background=synth means the other parts, synthesized: name them in song.others."
        )
    standin = config.get("standin")
    if standin is not None and not (
        isinstance(standin, Mapping) and {"replaces", "mixture", "score"} <= set(standin)
    ):
        raise BespokeError(
            f"song.standin={standin} is not possible: give null or {{replaces, mixture, score,"
            " instrument, reference}, of which the last two may be left out."
        )
    for where, keys, known in (
        ("song", config, KEYS),
        ("song.target", target, TARGET_KEYS | {"equalize"}),  # of before: without effect
        ("song.standin", standin or {}, STANDIN_KEYS),
    ):
        unknown = sorted(set(keys) - known)
        if unknown:
            raise BespokeError(
                f"{where} has no key {unknown[0]!r}: it knows {', '.join(sorted(known))}."
            )
    if config.get("mixture") in (
        None,
        "",
        "???",
    ):  # ??? is OmegaConf's mark for what is yet to be given
        raise BespokeError("The song needs a recording: set song.mixture to an audio file.")


def _with_own_files(config: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Of a song that may not be shipped: the user's own files if there are any, else the stand-in.

    In the folder that the stand-in replaces a recording may have any format and the score either
    name; a path to elsewhere is taken as it is.

    Returns:
        The config with the files to be used, and whether they are the stand-in's.
    """
    config = {**config, "target": dict(config["target"])}
    target, standin = config["target"], config.get("standin")
    if not standin:
        return config, False
    folder = Path(standin["replaces"])

    def find(path: Any, names: Sequence[str]) -> Any:
        if path is None or Path(str(path)).parent != folder:
            return path
        files = (locate(folder / name) for name in names)
        return next((file for file in files if file.is_file()), None)

    mixture = find(config["mixture"], [f"mix.{ending}" for ending in _FORMATS])
    score = find(target.get("score"), ["target.mid", "score.mid"])
    if mixture is None and score is None and target.get("audio") is None:
        target |= {"score": standin["score"], "instrument": standin.get("instrument")}
        return config | {key: standin.get(key) for key in ("mixture", "reference")}, True
    target["score"] = score or target.get("score")
    reference = find(config.get("reference"), [f"target.{ending}" for ending in _FORMATS])
    return config | {"mixture": mixture or config["mixture"], "reference": reference}, False


def _open_recording(
    config: Mapping[str, Any], files: dict[str, Path]
) -> tuple[Recording, Recording | None]:
    """Open the excerpt of the recording, and of its reference if there is one. Note their files."""
    files["mixture"] = locate(config["mixture"])
    source = open_audio(files["mixture"])
    reference = None
    if config.get("reference") is not None:
        files["reference"] = locate(config["reference"])
        reference = _open_reference(files["reference"], source)
    start, end = _excerpt(config.get("excerpt"), source.sample_rate, source.samples)
    source = source.cut(start, end)
    if source.seconds < MIN_SECONDS:
        raise BespokeError(
            f"The recording lasts {source.seconds:.3f} seconds: {MIN_SECONDS} are needed at least."
        )
    return source, reference and reference.cut(start, end)


def _hold_seen(
    source: Recording, working_rate: int
) -> tuple[np.ndarray, int, tuple[float, ...] | None]:
    """The recording in memory, its rate in Hz, and the view of its channels.

    Raises:
        BespokeError: it is silent, or its channels cancel each other.
    """
    loudest, _ = source.levels()
    if loudest == 0:
        raise BespokeError("The recording is silent in song.excerpt: choose another part of it.")
    mixture, sample_rate = hold(source, working_rate)
    view = opposed(mixture)
    if peak(seen(mixture, view)) < 1e-4 * loudest:
        raise BespokeError(f"The channels of {source.path} cancel each other: invert one of them.")
    return mixture, sample_rate, view


def _open_reference(path: Path, source: Recording) -> Recording:
    reference = open_audio(path, "reference")
    if (reference.sample_rate, reference.samples) != (source.sample_rate, source.samples):
        raise BespokeError(
            f"The reference {path} ({reference.samples} samples at {reference.sample_rate} Hz)"
            " does not fit the recording"
            f" ({source.samples} samples at {source.sample_rate} Hz): export both with the same"
            " start, length and sample rate."
        )
    if reference.channels not in (1, source.channels):
        raise BespokeError(
            f"The reference {path} has {reference.channels} channels, the recording"
            f" {source.channels}: export both alike."
        )
    return reference


def _read_reference(
    reference: Recording, source: Recording, mixture: np.ndarray, sample_rate: int
) -> np.ndarray:
    """The reference, held as the recording is, whatever its channels."""
    waveform = reference.read() if _is_held(source) else reference.read_mono(sample_rate)
    if not waveform.any():
        raise BespokeError(
            "The reference is silent in song.excerpt: choose another part of it, or leave"
            " song.reference out."
        )
    return np.repeat(waveform, len(mixture), axis=0) if len(waveform) == 1 else waveform


def _load_target(
    target: Mapping[str, Any], files: dict[str, Path], working_rate: int
) -> tuple[Voice | None, tuple[np.ndarray, int] | None, list[Part]]:
    """The target as its score has it, or as it was rendered, and the other parts of the score."""
    if target.get("score") is None:
        files["audio"] = locate(target["audio"])
        return None, hold(open_audio(files["audio"], "rendered target"), working_rate), []
    files["score"] = locate(target["score"])
    parts = read_score(files["score"])
    chosen = choose_parts(parts, target.get("instrument"), files["score"])
    whole = merged(chosen)
    part = _played(whole)
    if dropped := len(whole.notes) - len(part.notes):
        log.info(
            "%d notes of the score are so low that they must be key switches: they are left out.",
            dropped,
        )
    patches = target.get("patches")
    if patches == "auto":  # which once chose by the sound
        log.warning(
            "song.target.patches=auto is no longer a choice: program %d, the score's own, is used.",
            part.program,
        )
        patches = None
    voice = Voice(part, _patches(patches, target.get("soundfonts"), part, "song.target"))
    return voice, None, [part for part in parts if all(part is not one for one in chosen)]


def _played(part: Part) -> Part:
    """The part without key switches. (A drum note's number is no pitch.)"""
    return part if part.is_drum else replace(part, notes=without_key_switches(part.notes))


def _excerpt(excerpt: Sequence[float] | None, sample_rate: int, length: int) -> tuple[int, int]:
    if excerpt is None:
        return 0, length
    try:
        start, end = (round(float(edge) * sample_rate) for edge in excerpt)
    except (TypeError, ValueError, OverflowError) as error:
        raise BespokeError(f"song.excerpt is {excerpt!r}: give [start, end] in seconds.") from error
    end = min(end, length)
    if not 0 <= start < end:
        raise BespokeError(
            f"song.excerpt {list(excerpt)} is no part of the recording of"
            f" {length / sample_rate:.1f} seconds: give [start, end] within it."
        )
    return start, end


def _fonts(soundfonts: Any) -> list[SoundFont]:
    return [SoundFont.find(name) for name in _as_list(soundfonts)] or [SoundFont.find()]


def _patches(choice: Any, soundfonts: Any, part: Part, where: str) -> tuple[Patch, ...]:
    """The patches of a part: every number that was given, in every soundfont that is listed.

    Without numbers, the patch is the program that the score names.
    """
    fonts = _fonts(soundfonts)
    bank = DRUM_BANK if part.is_drum else 0
    patches: list[Patch] = []
    for item in _as_list(choice) or [part.program]:
        if isinstance(item, Mapping):
            unknown = set(item) - {"soundfont", "bank", "program"}
            if unknown or "program" not in item:
                raise BespokeError(
                    f"{where}.patches: a patch is a number or {{soundfont, bank, program}}, not"
                    f" {dict(item)}."
                )
            font = SoundFont.find(item["soundfont"]) if item.get("soundfont") else fonts[0]
            if not isinstance(item.get("bank", bank), int):
                raise BespokeError(
                    f"{where}.patches: bank {item['bank']!r} is not a number: give 0, or"
                    f" {DRUM_BANK} for drum kits."
                )
            patches.append(Patch(_program(item["program"], where), item.get("bank", bank), font))
        else:
            patches.extend(Patch(_program(item, where), bank, font) for font in fonts)
    return tuple(patch.check() for patch in patches)


def _program(item: Any, where: str) -> int:
    """A General MIDI program, from its number or its name."""
    if isinstance(item, str) and not item.isdecimal():
        try:
            return pretty_midi.instrument_name_to_program(item)
        except ValueError as error:
            raise BespokeError(
                f"{where}.patches: {item!r} is not a General MIDI instrument:"
                " give a program from 0 to 127, or a name such as 'Overdriven Guitar'."
            ) from error
    if isinstance(item, bool) or not isinstance(item, int | str) or not 0 <= int(item) <= 127:
        raise BespokeError(
            f"{where}.patches: {item!r} is not a General MIDI program: give a number from 0 to 127."
        )
    return int(item)


def _others(
    others: Any, rest: list[Part], target: Voice | None, soundfonts: Any, files: dict[str, Path]
) -> tuple[Voice, ...]:
    if others is None:
        return ()
    if others == "auto":
        return tuple(
            Voice(part, _patches(_pair(part), None, part, "song.others"))
            for part in map(_played, rest)
            if not part.is_drum
        )
    if others == "rest":
        if target is None:
            raise BespokeError(
                "song.others=rest means the other instruments of song.target.score: without a"
                " score, list each with its own."
            )
        if not rest:
            raise BespokeError(
                f"song.others=rest, but {files['score']} has only the target: list the other"
                " parts' scores."
            )
        return tuple(
            Voice(part, _patches(_pair(part), soundfonts, part, "song.others")) for part in rest
        )
    if not isinstance(others, Sequence) or isinstance(others, str):
        raise BespokeError(
            "song.others must be auto, rest, null or a list of {score, instrument, patches}."
        )
    voices = []
    for index, other in enumerate(others):
        where = f"song.others[{index}]"
        if (
            not isinstance(other, Mapping)
            or set(other) - OTHER_KEYS
            or not (other.get("score") or "score" in files)
        ):
            raise BespokeError(
                f"{where} must be of the form {{score, instrument, patches, soundfonts}}."
            )
        path = locate(other["score"]) if other.get("score") else files["score"]
        files[f"other {index}"] = path
        part = choose_part(read_score(path), other.get("instrument"), path, f"{where}.instrument")
        voices.append(
            Voice(
                part,
                _patches(other.get("patches"), other.get("soundfonts", soundfonts), part, where),
            )
        )
    return tuple(voices)


def _pair(part: Part) -> list[int]:
    """Two patches for a part that names only one.

    The second is the neighbour of its program in the same General MIDI family. For drums, the
    second is kit 16, or kit 0 if the part names kit 16.
    """
    if part.is_drum:
        return [part.program, 16 if part.program != 16 else 0]
    return [part.program, part.program ^ _NEIGHBOUR]


def _as_list(value: Any) -> list:
    if value is None:
        return []
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
