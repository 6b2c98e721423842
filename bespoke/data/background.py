"""Backgrounds that the target is mixed with.

A background draws the position of a segment (`sample`, random) and returns the segment (`segment`,
deterministic). All backgrounds are mono `[1, time]` at the model's rate. They are normalized to the
target's level, so that gains mean the same for every song.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bespoke.audio.dsp import active_rms
from bespoke.audio.io import open_audio
from bespoke.data.song import Song, locate
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import existing

LEVEL = 0.1  # RMS of every track while it plays, before the drawn gains (-20 dBFS)
NO_ESTIMATE = (
    "background=residual needs a first estimate of the target: set model=score_unet and align=true."
)
NO_OTHERS = (
    "background=synth needs the other parts: set song.others to 'rest' or to a list of scores, "
    "or take background=mixture, or background.weights.synth=0 with background=mixed."
)
AUDIO_ENDINGS = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".m4a", ".aac"}


@dataclass(frozen=True)
class BackgroundDraw:
    """Origin of a background segment: the background, its tracks, and the first sample."""

    source: str
    tracks: tuple[int, ...]
    start: int


class Background(Protocol):
    """Interface of a background.

    Attributes:
        uses_others: whether it plays the song's other parts.
    """

    uses_others: bool

    def sample(self, rng: np.random.Generator, target_start: int, samples: int) -> BackgroundDraw:
        """Draw the position of a segment of `samples`, for a target that starts at `target_start`.

        `target_start` is in samples.
        """

    def segment(self, draw: BackgroundDraw, samples: int) -> np.ndarray:
        """The drawn segment, float32 `[1, samples]`."""


def level(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Scale a whole track so that its RMS while it plays is `LEVEL`."""
    rms = active_rms(waveform, sample_rate)
    return waveform * np.float32(LEVEL / rms) if rms > 0 else waveform


def cut(waveform: np.ndarray, start: int, samples: int) -> np.ndarray:
    """`waveform[:, start : start + samples]`, with zeros beyond both ends of the waveform."""
    first, last = max(start, 0), min(start + samples, waveform.shape[-1])
    if last - first == samples:
        return waveform[:, first:last]
    segment = np.zeros((len(waveform), samples), waveform.dtype)
    if last > first:
        segment[:, first - start : last - start] = waveform[:, first:last]
    return segment


def draw_start(rng: np.random.Generator, length: int, samples: int) -> int:
    """Draw the first sample of a segment, uniformly.

    The segment lies inside the track or, if it is longer, contains the whole track.
    """
    slack = length - samples
    return int(rng.integers(min(slack, 0), max(slack, 0) + 1))


class MixtureBackground:
    """The recording itself (PAPER section 3.1)."""

    source = "mixture"
    uses_others = False

    def __init__(self, song: Song, sample_rate: int):
        self.track = level(song.render_mixture(sample_rate), sample_rate)

    def sample(self, rng: np.random.Generator, target_start: int, samples: int) -> BackgroundDraw:
        return BackgroundDraw(self.source, (), draw_start(rng, self.track.shape[-1], samples))

    def segment(self, draw: BackgroundDraw, samples: int) -> np.ndarray:
        return cut(self.track, draw.start, samples)


class ResidualBackground(MixtureBackground):
    """The recording minus an estimate of the target.

    Its level relative to the target is that of the residual relative to the estimate.

    Raises:
        BespokeError: there is no estimate, because the network does not use the score.
    """

    source = "residual"

    def __init__(self, song: Song, sample_rate: int):
        if song.estimate is None:
            raise BespokeError(NO_ESTIMATE)
        estimate = song.render_estimate(sample_rate)
        residual = song.render_mixture(sample_rate) - estimate
        relative = active_rms(residual, sample_rate) / max(active_rms(estimate, sample_rate), 1e-6)
        self.track = level(residual, sample_rate) * np.float32(np.clip(relative, 0.25, 10.0))


class SynthBackground:
    """The other parts, synthesized (PAPER section 3.2). A patch is drawn for each part and mix.

    Args:
        song: with its `others`.
        sample_rate: of the mixes, in Hz.
        in_time: whether the other parts play at the target's position in the score (the mixes are
            then passages of the piece) or at any position.

    Raises:
        BespokeError: the song has no other parts.
    """

    uses_others = True

    def __init__(self, song: Song, sample_rate: int, in_time: bool = True):
        if not song.others:
            raise BespokeError(NO_OTHERS)
        voices = [voice.render(sample_rate) for voice in song.others]
        self.length = max(renders[0].shape[-1] for renders in voices)
        # All patches of a part are equally loud; the parts are balanced as their first patches are.
        loudness = [active_rms(renders[0], sample_rate) for renders in voices]
        voices = [
            [level(render, sample_rate) * np.float32(loud) for render in renders]
            for renders, loud in zip(voices, loudness, strict=True)
        ]
        together = np.asarray(sum(cut(renders[0], 0, self.length) for renders in voices))
        scale = np.float32(LEVEL / active_rms(together, sample_rate))
        self.voices = [[render * scale for render in renders] for renders in voices]
        self.in_time = in_time

    def sample(self, rng: np.random.Generator, target_start: int, samples: int) -> BackgroundDraw:
        patches = tuple(int(rng.integers(len(renders))) for renders in self.voices)
        return BackgroundDraw(
            "synth",
            patches,
            target_start if self.in_time else draw_start(rng, self.length, samples),
        )

    def segment(self, draw: BackgroundDraw, samples: int) -> np.ndarray:
        segment = np.zeros((1, samples), np.float32)
        for renders, patch in zip(self.voices, draw.tracks, strict=True):
            segment += cut(renders[patch], draw.start, samples)
        return segment


def song_background(song: Song, sample_rate: int, in_time: bool = True) -> Background:
    """The background that the song names; the other parts at the target's place if `in_time`.

    Raises:
        BespokeError: it is to be of the other parts, and the song names none.
    """
    if song.background == "synth":
        return SynthBackground(song, sample_rate, in_time)
    return MixtureBackground(song, sample_rate)


class AudioBackground:
    """Other audio files, or all audio in folders, kept in memory at the model's rate.

    Raises:
        BespokeError: there is no audio, or a file cannot be read.
    """

    uses_others = False

    def __init__(self, song: Song, sample_rate: int, paths: str | Path | Sequence[str | Path] = ()):
        files = find_audio(paths)
        self.tracks = []
        for file in files:
            self.tracks.append(
                level(open_audio(file, "background").read_mono(sample_rate), sample_rate)
            )
        self.share = np.array([track.shape[-1] for track in self.tracks]) / sum(
            track.shape[-1] for track in self.tracks
        )

    def sample(self, rng: np.random.Generator, target_start: int, samples: int) -> BackgroundDraw:
        track = int(rng.choice(len(self.tracks), p=self.share))
        return BackgroundDraw(
            "audio", (track,), draw_start(rng, self.tracks[track].shape[-1], samples)
        )

    def segment(self, draw: BackgroundDraw, samples: int) -> np.ndarray:
        return cut(self.tracks[draw.tracks[0]], draw.start, samples)


class MixedBackground:
    """Several backgrounds, of which one is drawn for each mix.

    Args:
        song, sample_rate: passed to each background.
        weights: relative probability of each background. One with weight 0 is not constructed.
        **backgrounds: constructors of the backgrounds, by name.

    Raises:
        BespokeError: the weights do not match the backgrounds.
    """

    def __init__(
        self,
        song: Song,
        sample_rate: int,
        weights: Mapping[str, float],
        **backgrounds: Callable[[Song, int], Background],
    ):
        _check_weights(weights, backgrounds)
        self.backgrounds = {
            name: backgrounds[name](song, sample_rate) for name, weight in weights.items() if weight
        }
        total = sum(weights.values())
        self.share = [weights[name] / total for name in self.backgrounds]
        self.uses_others = any(background.uses_others for background in self.backgrounds.values())

    def sample(self, rng: np.random.Generator, target_start: int, samples: int) -> BackgroundDraw:
        name = list(self.backgrounds)[int(rng.choice(len(self.share), p=self.share))]
        return self.backgrounds[name].sample(rng, target_start, samples)

    def segment(self, draw: BackgroundDraw, samples: int) -> np.ndarray:
        return self.backgrounds[draw.source].segment(draw, samples)


def check_background(make: partial, has_others: bool, has_estimate: bool) -> None:
    """Check before a song is loaded that a background has what it needs.

    Args:
        make: constructor of the background, which takes a song and a sample rate.
        has_others: whether the song will have other parts.
        has_estimate: whether it will have an estimate of the target.

    Raises:
        BespokeError: something is missing.
    """
    kind, settings = make.func, make.keywords
    if kind is MixedBackground:
        weights = settings["weights"]
        _check_weights(weights, [name for name in settings if name != "weights"])
        for name, weight in weights.items():
            if weight:
                check_background(settings[name], has_others, has_estimate)
    elif kind is AudioBackground:
        find_audio(settings.get("paths", ()))
    elif kind is SynthBackground and not has_others:
        raise BespokeError(NO_OTHERS)
    elif kind is ResidualBackground and not has_estimate:
        raise BespokeError(NO_ESTIMATE)


def find_audio(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """Audio files of `background.paths`: the files themselves, and all in the folders.

    Raises:
        BespokeError: there are none, or a path does not exist.
    """
    listed: Sequence[Any] = paths if isinstance(paths, list | tuple) else [paths]
    files: list[Path] = []
    for found in map(locate, listed):
        if found.is_dir():
            files += sorted(
                file for file in found.rglob("*") if file.suffix.lower() in AUDIO_ENDINGS
            )
        else:
            files.append(existing(found, "background"))
    if not files:
        where = f" in {', '.join(map(str, listed))}" if listed else ""
        raise BespokeError(
            f"background=audio found no audio{where}: "
            "set background.paths to files or folders with audio."
        )
    return files


def _check_weights(weights: Mapping[str, float], names: Collection[str]) -> None:
    numbers = all(
        isinstance(weight, int | float) and 0 <= weight < math.inf for weight in weights.values()
    )
    if not numbers or set(weights) - set(names) or not sum(weights.values()):
        raise BespokeError(
            f"background.weights must be numbers from 0 for some of {', '.join(sorted(names))}, "
            f"not {dict(weights)}."
        )
