"""What the target is mixed with.

A background draws where a segment comes from (`sample`, random) and cuts it out (`segment`, deterministic). All are mono `[1, time]` at the
model's rate and are brought to the same level as the target, so that the drawn gains mean the same for every song.
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

LEVEL = 0.1  # -20 dBFS: the RMS of every track, while it plays, before the drawn gains
NO_ESTIMATE = (
    "background=residual needs a first estimate of the target: set model=score_unet and align=true."
)
NO_OTHERS = (
    "background=synth needs the other parts: set song.others to 'rest' or to a list of scores, or take background=mixture,"
    " or background.weights.synth=0 with background=mixed."
)
AUDIO_ENDINGS = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".m4a", ".aac"}


@dataclass(frozen=True)
class BackgroundDraw:
    """Where a background segment comes from: which background, which tracks of it, and the first sample."""

    source: str
    tracks: tuple[int, ...]
    start: int


class Background(Protocol):
    """What every background can do.

    Attributes:
        uses_others: whether it plays the song's other parts.
    """

    uses_others: bool

    def sample(self, rng: np.random.Generator, target_start: int, samples: int) -> BackgroundDraw:
        """Draw a segment of `samples` to go with the target's segment at `target_start`."""

    def segment(self, draw: BackgroundDraw, samples: int) -> np.ndarray:
        """Cut the drawn segment, float32 `[1, samples]`."""


def level(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Scale a whole track so that its RMS while it plays is `LEVEL`."""
    rms = active_rms(waveform, sample_rate)
    return waveform * np.float32(LEVEL / rms) if rms > 0 else waveform


def cut(waveform: np.ndarray, start: int, samples: int) -> np.ndarray:
    """`waveform[:, start : start + samples]` with zeros where that reaches beyond either end."""
    first, last = max(start, 0), min(start + samples, waveform.shape[-1])
    if last - first == samples:
        return waveform[:, first:last]
    segment = np.zeros((len(waveform), samples), waveform.dtype)
    if last > first:
        segment[:, first - start : last - start] = waveform[:, first:last]
    return segment


def draw_start(rng: np.random.Generator, length: int, samples: int) -> int:
    """Draw the first sample of a segment anywhere in a track, or, if that is shorter, so that the segment holds all of it."""
    slack = length - samples
    return int(rng.integers(min(slack, 0), max(slack, 0) + 1))


class MixtureBackground:
    """The recording itself (section 3.1)."""

    source = "mixture"
    uses_others = False

    def __init__(self, song: Song, sample_rate: int):
        self.track = level(song.render_mixture(sample_rate), sample_rate)

    def sample(self, rng: np.random.Generator, target_start: int, samples: int) -> BackgroundDraw:
        return BackgroundDraw(self.source, (), draw_start(rng, self.track.shape[-1], samples))

    def segment(self, draw: BackgroundDraw, samples: int) -> np.ndarray:
        return cut(self.track, draw.start, samples)


class ResidualBackground(MixtureBackground):
    """The recording without the target, as far as an estimate of it goes, at the level that it has beside that estimate.

    Raises:
        BespokeError: there is no estimate, because the run's network does not use the score.
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
    """The other parts, synthesized; one of its patches is drawn for each part and mix (section 3.2).

    Args:
        song: with its `others`.
        sample_rate: of the mixes, in Hz.
        in_time: whether the other parts play at the target's place in the score (as in "created mixes" of the score), or anywhere.

    Raises:
        BespokeError: the song names no other parts.
    """

    uses_others = True

    def __init__(self, song: Song, sample_rate: int, in_time: bool = True):
        if not song.others:
            raise BespokeError(NO_OTHERS)
        voices = [voice.render(sample_rate) for voice in song.others]
        self.length = max(renders[0].shape[-1] for renders in voices)
        # The patches of one part sound equally loud; the balance between the parts is that of their first patches.
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
    """Other audio: files, or folders that are searched for them. All of it is held in memory at the model's rate.

    Raises:
        BespokeError: there is no audio there, or a file cannot be read.
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
    """Several backgrounds, one of which is drawn for each mix.

    Args:
        song, sample_rate: handed on to each.
        weights: how often each is drawn, in proportion; one with weight 0 is not made.
        **backgrounds: what makes each, by name.

    Raises:
        BespokeError: the weights don't fit the backgrounds.
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
    """Find what a background cannot be made of, before there is a song.

    Args:
        make: what is to make it, of a song and a sample rate.
        has_others: whether the song is to have other parts.
        has_estimate: whether it is to have an estimate of the target.

    Raises:
        BespokeError: it lacks something.
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
    """The files, and all audio in the folders, of `background.paths`.

    Raises:
        BespokeError: there is none, or a path leads nowhere.
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
            f"background=audio found no audio{where}: set background.paths to files or folders with audio."
        )
    return files


def _check_weights(weights: Mapping[str, float], names: Collection[str]) -> None:
    numbers = all(
        isinstance(weight, int | float) and 0 <= weight < math.inf for weight in weights.values()
    )
    if not numbers or set(weights) - set(names) or not sum(weights.values()):
        raise BespokeError(
            f"background.weights must be numbers from 0 for some of {', '.join(sorted(names))}, not {dict(weights)}."
        )
