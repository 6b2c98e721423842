"""Which patches sound like the target, as far as an estimate of it tells; and the equalizer that brings each still nearer.

A few notes are compared one by one with the same notes played by every program: the levels of the partials, from the attack to the
sustained tone. All figures here were chosen on instruments of other soundfonts in synthesized bands (docs/LAB.md).
"""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bespoke.audio.dsp import OCTAVES_HZ, peak, resample
from bespoke.audio.stft import STFT
from bespoke.data.song import Song
from bespoke.evaluation.baselines import ScoreInformedNMF
from bespoke.models.nmf import harmonic_templates
from bespoke.score.align import NO_CONFIDENCE, align, within
from bespoke.score.midi import Note, pitch_hz, shift
from bespoke.score.synth import PITCHED, SYNTH_RATE, Patch, Player, SoundFont, is_silent

log = logging.getLogger(__name__)

NOTES = 8  # that are compared
_PARTIALS, _TOP_HZ, _WIDTH_CENTS, _FLOOR_HZ = 24, 9000.0, 50.0, 30.0
_STFT = STFT(SYNTH_RATE, 4096 / SYNTH_RATE, 1024 / SYNTH_RATE)
_HOP_SECONDS = _STFT.hop_samples / SYNTH_RATE
_EDGES = (0, 3, 6, 13, 26)  # of the spans of time after a note's start, in frames
_BEFORE_SECONDS, _SEARCH_SECONDS = (
    0.15,
    0.08,
)  # what is heard before the aligned start; how far from it the true one may be
_LONGEST_SECONDS, _SHORTEST_SECONDS = _EDGES[-1] * _HOP_SECONDS, 0.1
_DYNAMICS_DB = -35.0  # partials this far below a note's loudest count as absent
_LOUDNESS = 0.65  # weights are powers, raised to this
_CONTOUR_WEIGHT, _EQUALIZED_WEIGHT = (
    2.0,
    0.5,
)  # of differences in the course of loudness, and of those that the equalizer undoes
_STIFFNESS, _MOST_DB = 0.01, 12.0  # of the equalizer


@dataclass(frozen=True)
class Match:
    """A patch, its distance from the target in dB, and the gains in dB at `OCTAVES_HZ` that bring it nearest."""

    patch: Patch
    distance_db: float
    gains_db: tuple[float, ...]


def choose_patches(song: Song, notes: Sequence[Note] | None) -> tuple[Song, list[dict[str, Any]]]:
    """Choose the patches of a song's target by their likeness to the recording (`song.target.patches: auto`).

    Args:
        song: with its estimate of the target; where it has none, score-informed factorization makes one of the first minute with notes.
        notes: the target's, in seconds of the recording; none where the score does not fit it; None where they are not aligned, so that
            they are for this purpose only.

    Returns:
        The song, whose target now has patches, and equalizers if it wants them; and what there is to say of each patch. Where
        the target is not heard, it is the score's own patch as it is.
    """
    voice, rate = song.target, song.sample_rate
    if notes is None:
        alignment = align(voice.part.notes, song.mixture, rate)
        notes = (
            within(alignment.notes, song.mixture.shape[-1] / rate)
            if alignment.confidence >= NO_CONFIDENCE
            else ()
        )
    matches = []
    if notes:
        start = max(0.0, min(note.start_seconds for note in notes) - 1)
        minute, notes = slice(round(start * rate), round((start + 60) * rate)), shift(notes, -start)
        estimate = (
            ScoreInformedNMF().separate(song.mixture[:, minute], rate, notes)
            if song.estimate is None
            else song.estimate[:, minute]
        )
        matches = match(estimate, rate, notes, voice.soundfonts)
    if not matches:
        patch = Patch(voice.part.program, 0, voice.soundfonts[0]).check()
        log.warning(
            "song.target.patches=auto: the target is not heard well enough; patch %d, the score's own, is taken.",
            patch.program,
        )
        return replace(song, target=replace(voice, patches=(patch,))), [_describe(patch)]
    gains_db = tuple(found.gains_db for found in matches) if voice.equalized else ()
    facts = []
    for found in matches:
        facts.append(_describe(found.patch) | {"distance_db": round(found.distance_db, 2)})
        log.info(
            "Patch %(program)d of %(soundfont)s (%(name)s) is %(distance_db).1f dB from the target's timbre.",
            facts[-1],
        )
        if voice.equalized:
            facts[-1]["equalizer_db"] = [round(gain_db, 1) for gain_db in found.gains_db]
    return replace(
        song,
        target=replace(voice, patches=tuple(found.patch for found in matches), gains_db=gains_db),
    ), facts


def _describe(patch: Patch) -> dict[str, Any]:
    return {
        "program": patch.program,
        "name": patch.soundfont.preset_name(0, patch.program),
        "soundfont": patch.soundfont.path.name,
    }


def match(
    estimate: np.ndarray,
    sample_rate: int,
    notes: Sequence[Note],
    soundfonts: Sequence[SoundFont],
    count: int = 3,
) -> list[Match]:
    """Find the patches, of all pitched General MIDI programs in bank 0 of the soundfonts, whose timbre is nearest to the target's.

    Args:
        estimate: of the target, `[channel, time]`, of any level.
        sample_rate: in Hz.
        notes: the target's, in seconds of the estimate, in time with it to `_SEARCH_SECONDS`.
        soundfonts: to choose from.
        count: how many patches are wanted.

    Returns:
        The nearest, in order of their distances; none where no note of a tenth of a second is heard in the estimate, or none of the
        soundfonts can play those that are.
    """
    mono = estimate.mean(axis=0, keepdims=True)
    top_hz = min(_TOP_HZ, 0.45 * sample_rate)
    chosen = representative(
        [note for note in notes if pitch_hz(note.pitch) <= top_hz], mono.shape[-1] / sample_rate
    )
    heard = [
        (note, segment)
        for note in chosen
        if not is_silent(segment := _segment(mono, sample_rate, note) / (peak(mono) or 1.0))
    ]
    if not heard:
        return []
    bands = [_bands(note.pitch, top_hz) for note, _ in heard]
    target = np.stack(
        [
            _levels(segment, band, note)[0]
            for (note, segment), band in zip(heard, bands, strict=True)
        ]
    )
    patches, levels = [], []
    for soundfont in soundfonts:
        played, renders = _play_all(soundfont, [note for note, _ in heard])
        if played:
            patches += played
            pairs = zip(renders, bands, heard, strict=True)
            levels.append(
                np.stack([_levels(render, band, note) for render, band, (note, _) in pairs], axis=1)
            )
    if not patches:
        return []
    distances_db, gains_db = _compare(target, np.concatenate(levels), [note for note, _ in heard])
    nearest = np.argsort(distances_db, kind="stable")[:count]
    return [
        Match(patches[index], float(distances_db[index]), tuple(map(float, gains_db[index])))
        for index in nearest
    ]


def representative(notes: Sequence[Note], seconds: float) -> list[Note]:
    """A few notes that lie within a recording of `seconds`: the longest of each group of like pitch."""
    usable = [
        note
        for note in notes
        if note.start_seconds >= 0
        and min(note.end_seconds, seconds) - note.start_seconds >= _SHORTEST_SECONDS
    ]
    usable.sort(key=lambda note: (note.pitch, note.start_seconds))
    groups = np.array_split(np.arange(len(usable)), NOTES)
    return [max((usable[index] for index in group), key=_length) for group in groups if len(group)]


def _seconds(note: Note) -> float:
    return note.end_seconds - note.start_seconds


def _length(note: Note) -> float:
    """How many seconds of a note are compared."""
    return min(_seconds(note), _LONGEST_SECONDS)


def _samples(note: Note, sample_rate: int) -> int:
    return round((_BEFORE_SECONDS + _length(note) + _SEARCH_SECONDS) * sample_rate)


def _segment(mono: np.ndarray, sample_rate: int, note: Note) -> np.ndarray:
    """What is heard of a note, at `SYNTH_RATE`, `[1, time]`, with zeros where the recording has ended."""
    start, samples = (
        round((note.start_seconds - _BEFORE_SECONDS) * sample_rate),
        _samples(note, sample_rate),
    )
    part = mono[:, max(start, 0) : start + samples]
    part = np.pad(part, ((0, 0), (max(-start, 0), 0)))
    return resample(np.pad(part, ((0, 0), (0, samples - part.shape[-1]))), sample_rate, SYNTH_RATE)


def _play_all(soundfont: SoundFont, notes: Sequence[Note]) -> tuple[list[Patch], list[np.ndarray]]:
    """Every note by itself with every program that is heard: the patches, and for each note `[patch, time]`."""
    alone = [
        Note(_BEFORE_SECONDS, _BEFORE_SECONDS + min(_seconds(note), 1.0), note.pitch, note.velocity)
        for note in notes
    ]
    lengths = [_samples(note, SYNTH_RATE) / SYNTH_RATE for note in notes]
    patches, renders = [], []
    with contextlib.closing(Player(soundfont)) as player:
        for program in PITCHED:
            sounds = [
                player.play([note], program, False, seconds)
                for note, seconds in zip(alone, lengths, strict=True)
            ]
            if sounds[0] is not None and not any(is_silent(sound) for sound in sounds):
                patches.append(Patch(program, 0, soundfont))
                renders.append(sounds)
    return patches, [np.concatenate(sounds) for sounds in zip(*renders, strict=True)]


def _bands(pitch: int, top_hz: float) -> torch.Tensor:
    """The bins of each partial up to `top_hz`, `[partial, freq]`."""
    frequencies_hz = _STFT.frequencies_hz.numpy()
    frequencies_hz = frequencies_hz[frequencies_hz <= _TOP_HZ]
    comb = harmonic_templates([pitch], frequencies_hz, _WIDTH_CENTS, _FLOOR_HZ, decay=0.0)[:, 0]
    number = np.round(frequencies_hz / pitch_hz(pitch))
    partials = np.arange(1, _PARTIALS + 1)[:, None]
    return torch.from_numpy(
        np.where((number == partials) & (partials * pitch_hz(pitch) <= top_hz), comb, 0).astype(
            np.float32
        )
    )


def _levels(waveforms: np.ndarray, bands: torch.Tensor, note: Note) -> np.ndarray:
    """The levels of a note's partials in dB re the loudest, `[waveform, partial, span]`; NaN beyond the note's end and above the band.

    Each waveform's own start, the steepest rise near the written one, is taken as the start.
    """
    powers = []
    for few in torch.from_numpy(np.ascontiguousarray(waveforms, dtype=np.float32)).split(
        16
    ):  # a spectrogram of all would be large
        power = _STFT(few[:, None])[:, 0, : bands.shape[1]].abs().square()
        powers.append(torch.einsum("kf,nft->nkt", bands, power).numpy())
    power = np.concatenate(powers)
    since_seconds = np.arange(power.shape[-1]) * _HOP_SECONDS - _BEFORE_SECONDS
    rise = np.full((len(power), power.shape[-1]), -np.inf)
    rise[:, 2:-2] = power[..., 4:].sum(axis=1) - power[..., :-4].sum(axis=1)
    rise[:, np.abs(since_seconds) > _SEARCH_SECONDS] = -np.inf
    last = max(_EDGES[1], round(_length(note) / _HOP_SECONDS))
    frames = np.minimum(rise.argmax(axis=1)[:, None] + np.arange(last), power.shape[-1] - 1)
    power = np.take_along_axis(power, frames[:, None], axis=2)
    levels = np.full((*power.shape[:2], len(_EDGES) - 1), np.nan)
    for span, edge in enumerate(_EDGES[:-1]):
        if edge < last:
            levels[..., span] = power[..., edge : _EDGES[span + 1]].mean(axis=-1)
    levels[:, ~bands.any(dim=1).numpy()] = np.nan
    loudest = np.nanmax(levels, axis=(1, 2), keepdims=True)
    return 10 * np.log10(levels / (loudest + 1e-20) + 10 ** (_DYNAMICS_DB / 10))


def _compare(
    target_db: np.ndarray, patches_db: np.ndarray, notes: Sequence[Note]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances in dB `[patch]` and equalizers in dB `[patch, octave]`.

    Levels are those of `_levels`: of the target `[note, partial, span]`, of the patches `[patch, note, partial, span]`.
    Notes may differ in loudness: each one's mean difference is left out, of the levels and of the equalizer's part in them alike.
    """
    known = ~np.isnan(target_db)
    difference = np.where(known, target_db - patches_db, 0)
    weight = np.where(known, 10 ** (_LOUDNESS / 10 * np.maximum(target_db, patches_db)), 0)
    weight /= weight.sum(axis=(2, 3), keepdims=True) * len(notes)

    def centred(values: np.ndarray) -> np.ndarray:
        return values - len(notes) * (weight * values).sum(axis=(2, 3), keepdims=True)

    difference = centred(difference)
    partials_hz = np.array([pitch_hz(note.pitch) for note in notes])[:, None] * np.arange(
        1, target_db.shape[1] + 1
    )
    # The curve is straight between octaves: each has a share in each partial.
    curves = np.eye(len(OCTAVES_HZ))
    shares = np.stack(
        [np.interp(np.log2(partials_hz), np.log2(OCTAVES_HZ), curve) for curve in curves]
    )
    shares = np.stack(
        [centred(np.broadcast_to(share[None, :, :, None], weight.shape)) for share in shares]
    )
    stiff = np.diff(curves, axis=0)
    normal = (
        np.einsum("inkts,jnkts,nkts->nij", shares, shares, weight, optimize=True)
        + _STIFFNESS * stiff.T @ stiff
        + 1e-6 * curves
    )
    gains_db = np.linalg.solve(
        normal, np.einsum("inkts,nkts->ni", shares, weight * difference, optimize=True)[..., None]
    )[..., 0]
    gains_db = np.clip(gains_db - gains_db.mean(axis=1, keepdims=True), -_MOST_DB, _MOST_DB)
    left = difference - np.einsum("ni,inkts->nkts", gains_db, shares, optimize=True)
    contour = (weight * left).sum(axis=2, keepdims=True) / np.maximum(
        weight.sum(axis=2, keepdims=True), 1e-12
    )
    timbre = weight * (np.square(left - contour) + _CONTOUR_WEIGHT * np.square(contour))
    equalized = weight * (np.square(difference) - np.square(left))
    distances = timbre.sum(axis=(1, 2, 3)) + _EQUALIZED_WEIGHT * np.maximum(
        equalized.sum(axis=(1, 2, 3)), 0
    )
    return np.sqrt(distances), gains_db
