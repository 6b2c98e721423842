"""From a checkpoint and a recording to the target and the residual."""

import contextlib
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bespoke.audio.dsp import peak, resample, seen
from bespoke.audio.io import HIGHEST_RATE, Recording, wav_writer
from bespoke.audio.stft import STFT
from bespoke.models.features import Factorizations, ScoreFeatures
from bespoke.models.networks import MODELS, MaskNetwork
from bespoke.models.wiener import multichannel_wiener, project
from bespoke.score.midi import Note, shift
from bespoke.utils import processor, progress
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import atomic_path, existing
from bespoke.utils.memory import give_back

_EARLY, _LATE, _FADE = (
    0.5,
    2.0,
    0.5,
)  # seconds that a note may be heard before and after it is written, and of the fade to silence
LONGEST_WINDOW_SECONDS = 2.0
_WORTH_A_WORD = 10.0  # seconds without a target
_FAR = 4.0  # seconds from which on a note does not matter
_MOST_PLACED = (
    8  # channels; of more, whose spectrograms would not be held together, each is masked by itself
)


class Separator:
    """Applies a trained network to recordings of any rate, length and number of channels.

    The mask is estimated from the channel mean at the model's rate and applied to every channel at
    the recording's rate, to which linear interpolation in Hz and seconds carries it. Above the
    model's band it is the mean mask of the band's top octave, weighted by magnitude. With `panning`
    a mask is made for each place between the channels, see `bespoke.models.wiener`.

    Args:
        stft: the transform of the training.
        model: the network.
        block_seconds: recordings longer than this are separated in blocks of this length,
        overlap_seconds: which overlap by this much and are cross-faded.
        notes: the target's, in seconds of the recording, for a network that uses the score. The
            estimate fades to silence half a second before the first and two seconds after the last
            of notes that follow each other closely.
        others: the notes of each other part, likewise, where they are known.
        tuning_cents: how much sharper than A4 = 440 Hz the recording is.
        view: a weight for each channel: the mask is estimated from their weighted sum, instead of
            the channel mean, in which a target with opposite channels is silent.
        strength: the mask is raised to this power. More than 1 leaves less of the other
            instruments in the target and makes more artefacts, less than 1 the reverse.
        resolutions: the mask is made with windows of so many times the training's, and the
            estimates are averaged. A long window tells close partials apart, a short one shows
            when a note is struck. Other than 1 only for a network that takes any number of bins.
        panning: use where the target is between the channels, of which there are 2 to 8 that
            differ.

    Raises:
        BespokeError: a setting is not possible.
    """

    def __init__(
        self,
        stft: STFT,
        model: MaskNetwork,
        block_seconds: float = 60.0,
        overlap_seconds: float = 4.0,
        notes: Sequence[Note] = (),
        resolutions: Sequence[float] = (1.0,),
        strength: float = 1.0,
        panning: bool = False,
        others: Sequence[Sequence[Note]] = (),
        tuning_cents: float = 0.0,
        view: Sequence[float] | None = None,
    ):
        if not isinstance(model, MaskNetwork):
            raise TypeError(
                f"{type(model).__name__} is no MaskNetwork: derive it from bespoke.MaskNetwork."
            )
        if not (isinstance(strength, int | float) and 0 < strength <= 10):
            raise BespokeError(f"The strength ({strength}) must be more than 0 and at most 10.")
        if not 0 < overlap_seconds <= block_seconds / 2:
            raise BespokeError(
                f"The overlap ({overlap_seconds} s) must be more than 0 and at most half a block"
                f" ({block_seconds} s)."
            )
        if not resolutions or not all(
            isinstance(factor, int | float) and 0.1 <= factor <= 10 for factor in resolutions
        ):
            raise BespokeError(
                f"separate.resolutions={resolutions} is not possible:"
                " give a list of numbers from 0.1 to 10."
            )
        if any(factor != 1 for factor in resolutions) and not model.takes_any_bins:
            raise BespokeError(
                "separate.resolutions: this network knows the window that it was trained with"
                " alone: set it to [1.0]."
            )
        if not isinstance(panning, bool):
            raise BespokeError(
                f"separate.panning={panning} is not possible: set it to true or false."
            )
        self.stft, self.model = stft, model
        self.block_seconds, self.overlap_seconds = block_seconds, overlap_seconds
        self.strength, self.panning = strength, panning
        lengths = (stft.window_seconds, stft.hop_seconds)
        self._stfts = [
            STFT(stft.sample_rate, *(factor * seconds for seconds in lengths))
            for factor in resolutions
        ]
        self._bfloat16 = uses_bfloat16(model)
        self.place(notes, others, tuning_cents, view)

    def place(
        self,
        notes: Sequence[Note],
        others: Sequence[Sequence[Note]] = (),
        tuning_cents: float = 0.0,
        view: Sequence[float] | None = None,
    ) -> None:
        """Say where the target is in the recordings from now on.

        Args:
            notes, others, tuning_cents, view: as of the constructor.
        """
        self.notes, self.others = tuple(notes), tuple(tuple(part) for part in others)
        self.tuning_cents, self.view = tuning_cents, view
        self._features = (
            [ScoreFeatures(scaled, tuning_cents) for scaled in self._stfts]
            if self.model.uses_score
            else []
        )

    def separate(self, recording: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
        """Separate a recording.

        Args:
            recording: `[channel, time]`, of any level.
            sample_rate: in Hz.

        Returns:
            Target and residual, float32 of the recording's shape, which add up to the recording.
        """
        recording = recording.astype(np.float32, copy=False)
        level = peak(seen(recording, self.view))
        target = np.concatenate(
            [
                target
                for target, _ in self.stream([recording], recording.shape[-1], sample_rate, level)
            ],
            axis=1,
        )
        return target, recording - target

    def stream(
        self, recording: Iterable[np.ndarray], samples: int, sample_rate: int, level: float
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Separate a recording of any length with the memory of one block.

        Args:
            recording: its consecutive parts, each float32 `[channel, time]`, of any length.
            samples: length of the whole.
            sample_rate: in Hz.
            level: the largest absolute sample of what the mask is estimated from. (The network was
                trained on peak-normalized mixes.)

        Yields:
            Consecutive parts of target and residual, as of `separate`.

        Raises:
            BespokeError: the recording ends before.
        """
        for ((target, residual),) in stream_together(
            [self], recording, samples, sample_rate, [level]
        ):
            yield target, residual

    def write_stems(self, recording: Recording, target: Path, residual: Path) -> None:
        """Separate an audio file into two float32 WAVs of its rate, length and channels.

        Args:
            recording: the file.
            target, residual: where the stems are written; both appear when they are complete.

        Raises:
            BespokeError: they cannot be written.
        """
        write_stems_together([self], recording, [(target, residual)])

    @torch.inference_mode()
    def _separate_block(
        self,
        recording: np.ndarray,
        mono: np.ndarray,
        sample_rate: int,
        start_seconds: float,
        made: dict[tuple, Factorizations],
    ) -> np.ndarray:
        notes: Sequence[Note] = ()
        others: Sequence[Sequence[Note]] = ()
        if self._features:
            end_seconds = start_seconds + recording.shape[-1] / sample_rate
            notes = _near(self.notes, start_seconds, end_seconds)
            if not notes:
                return np.zeros_like(recording)
            others = [_near(part, start_seconds, end_seconds) for part in self.others]
        mono = resample(mono, sample_rate, self.stft.sample_rate)
        estimates = []
        for number, source in enumerate(self._stfts):
            features = []
            if self._features:
                of = made.setdefault((self.view, self.tuning_cents, number), {})
                features = [self._features[number](mono, notes, others, of)]
            estimates.append(self._estimate(recording, mono, sample_rate, source, features, notes))
        return np.mean(estimates, axis=0) if len(estimates) > 1 else estimates[0]

    def _estimate(
        self,
        recording: np.ndarray,
        mono: np.ndarray,
        sample_rate: int,
        source: STFT,
        features: Sequence[Tensor],
        notes: Sequence[Note],
    ) -> np.ndarray:
        """The target by one transform's mask."""
        device = self.stft.window.device
        source = source.to(device)
        magnitude = source(torch.from_numpy(mono).to(device)[None])[:, 0].abs()
        with (
            torch.autocast(
                device.type, torch.bfloat16, enabled=self._bfloat16 and device.type == "cpu"
            ),
            _evaluation(self.model),
        ):
            mask = self.model(
                magnitude, *(channels[None].to(device) for channels in features)
            ).float()[0]
        if self.strength != 1:
            mask = mask.clamp(min=0) ** self.strength
        if notes:
            mask = mask * _sounding(notes, source.times_seconds(mask.shape[-1])).to(device)
        stft = source.at_rate(sample_rate)
        mask = carry(mask, magnitude[0], source, stft, 1 + recording.shape[-1] // stft.hop_samples)
        is_viewed = self.view is not None and len(self.view) == len(recording)
        is_placed = (
            self.panning
            and 1 < len(recording) <= _MOST_PLACED
            and (recording != recording[:1]).any()
        )
        if is_viewed or is_placed:
            channels = stft(torch.from_numpy(np.ascontiguousarray(recording)).to(device)[None])[0]
            if is_viewed:
                weights = torch.tensor(self.view, dtype=channels.dtype, device=device)
                placed = project(mask * torch.einsum("c,cft->ft", weights, channels), channels)
            else:
                placed = multichannel_wiener(mask, channels)
            return stft.inverse(placed[None], recording.shape[-1])[0].cpu().numpy()
        target = np.empty_like(recording)
        for channel, estimate in zip(
            recording, target, strict=True
        ):  # one after the other: there may be many
            spectrogram = stft(
                torch.from_numpy(np.ascontiguousarray(channel)).to(device)[None, None]
            )
            estimate[:] = stft.inverse(mask * spectrogram, len(channel))[0, 0].cpu().numpy()
        return target


def stream_together(
    separators: Sequence[Separator],
    recording: Iterable[np.ndarray],
    samples: int,
    sample_rate: int,
    levels: Sequence[float],
) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Separate several parts of a recording of any length with the memory of one block.

    Separators whose notes and others are the same parts share their factorizations.

    Args:
        separators: one for each part, alike in their transforms, blocks and overlaps.
        recording, samples, sample_rate: as of `Separator.stream`.
        levels: of each separator, as of `Separator.stream`.

    Yields:
        For each separator, consecutive parts of target and residual.

    Raises:
        BespokeError: the recording ends before.
    """
    first = separators[0]
    overlap = round(first.overlap_seconds * sample_rate)
    block = (
        samples
        if samples <= first.block_seconds * sample_rate
        else round(first.block_seconds * sample_rate)
    )
    ramp = (np.arange(overlap, dtype=np.float32) + 0.5) / max(overlap, 1)
    parts, held = iter(recording), None
    faded: list[np.ndarray] = []
    # One block after the other, each fading in where the one before fades out.
    for start in range(0, max(samples - overlap, 1), max(block - overlap, 1)):
        end = min(start + block, samples)
        while held is None or held.shape[-1] < end - start:
            part = next(parts, None)
            if part is None:
                raise BespokeError(
                    "The recording is shorter than when it was opened: was it changed meanwhile?"
                )
            held = part if held is None else np.concatenate([held, part], axis=1)
        current = held[:, : end - start]
        made: dict[tuple, Factorizations] = {}
        targets: list[np.ndarray] = []
        for separator, level in zip(separators, levels, strict=True):
            mono = seen(current, separator.view) / np.float32(level or 1.0)
            target = separator._separate_block(
                current, mono, sample_rate, start / sample_rate, made
            )
            if faded:
                target[:, :overlap] = target[:, :overlap] * ramp + faded[len(targets)]
            targets.append(target)
        if end == samples:
            yield [(target, current - target) for target in targets]
            return
        faded = [target[:, -overlap:] * ramp[::-1] for target in targets]
        current = current[:, :-overlap]
        yield [(target[:, :-overlap], current - target[:, :-overlap]) for target in targets]
        held = held[:, end - start - overlap :]


def write_stems_together(
    separators: Sequence[Separator], recording: Recording, files: Sequence[tuple[Path, Path]]
) -> None:
    """Separate several parts of an audio file into float32 WAVs of its rate, length and channels.

    Args:
        separators: one for each part, as of `stream_together`.
        recording: the file.
        files: for each part, where target and residual are written; all appear when they are
            complete.

    Raises:
        BespokeError: they cannot be written.
    """
    shape = (recording.sample_rate, recording.channels, recording.samples)
    is_long = recording.seconds > separators[0].block_seconds
    with contextlib.ExitStack() as stack:
        writers = [
            [stack.enter_context(wav_writer(file, *shape)) for file in pair] for pair in files
        ]
        done = 0
        if is_long:
            progress.advance(done, recording.samples)
        levels = recording.levels()
        for stems in stream_together(
            separators,
            recording.blocks(),
            recording.samples,
            recording.sample_rate,
            [levels[1 if separator.view is None else 0] for separator in separators],
        ):
            for pair, parts in zip(writers, stems, strict=True):
                for write, part in zip(pair, parts, strict=True):
                    write(part)
            done += stems[0][0].shape[1]
            if is_long:
                progress.advance(done, recording.samples)
            give_back()


def _near(notes: Sequence[Note], start_seconds: float, end_seconds: float) -> tuple[Note, ...]:
    """The notes that matter to a block of a recording, in seconds of the block."""
    near = [
        note
        for note in notes
        if start_seconds - _FAR < note.end_seconds and note.start_seconds < end_seconds + _FAR
    ]
    return shift(near, -start_seconds)


def silent_elsewhere(notes: Sequence[Note], seconds: float) -> str | None:
    """A sentence that says where a score lies in a recording, if more than ten seconds before and
    after it have no target.

    >>> silent_elsewhere([Note(152.0, 153.0, 60), Note(170.0, 172.4, 62)], 175.0)
    'The score covers 2:32 to 2:52 of 2:55; the target is silent elsewhere.'
    >>> silent_elsewhere([Note(4.0, 172.4, 60)], 175.0)
    """
    first, last = (
        max(0.0, min(note.start_seconds for note in notes)),
        min(seconds, max(note.end_seconds for note in notes)),
    )
    if seconds - (last - first) <= _WORTH_A_WORD:
        return None
    begin, end, whole = (
        f"{round(place) // 60}:{round(place) % 60:02d}" for place in (first, last, seconds)
    )
    return f"The score covers {begin} to {end} of {whole}; the target is silent elsewhere."


@contextlib.contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """The network in evaluation; afterwards it is as it was."""
    is_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(is_training)


def uses_bfloat16(model: MaskNetwork) -> bool:
    """Whether to compute a network in bfloat16 on this CPU: it was trained in bfloat16, and the
    processor multiplies such numbers."""
    return model.trained_in_bfloat16 and processor.multiplies_bfloat16()


def _sounding(notes: Sequence[Note], times_seconds: Tensor) -> Tensor:
    """1 where a note may still be heard, 0 where the score rests, fading between: `[frames]`."""
    times = times_seconds.numpy()
    sounding = np.zeros(len(times), np.float32)
    for note in notes:
        before, after = times - (note.start_seconds - _EARLY), note.end_seconds + _LATE - times
        sounding = np.maximum(sounding, np.clip(1 + np.minimum(before, after) / _FADE, 0, 1))
    return torch.from_numpy(sounding)


def _check_size(path: Path) -> None:
    """Refuse a ZIP archive with compression, which a checkpoint never is: it may unpack to
    anything."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("it is compressed")


def carry(mask: Tensor, magnitude: Tensor, source: STFT, destination: STFT, frames: int) -> Tensor:
    """Carry a mask from one sample rate to another, by interpolation in Hz and seconds.

    Args:
        mask, magnitude: `[freq, frames]` at the rate of `source`. The magnitude weights the mean of
            the top octave.
        source, destination: the transforms of both rates.
        frames: number of frames wanted.

    Returns:
        `[freq, frames]` at the rate of `destination`. Above the source's band every bin holds the
        mean mask of its top octave.
    """
    nyquist_hz = source.sample_rate / 2
    frequencies_hz = source.frequencies_hz.to(mask.device)
    octave = frequencies_hz >= nyquist_hz / 2
    weight = magnitude[octave] + 1e-9
    above = (mask[octave] * weight).sum(0) / weight.sum(0)
    times = destination.times_seconds(frames).to(mask.device) / (
        source.hop_samples / source.sample_rate
    )
    wanted_hz = destination.frequencies_hz.to(mask.device)
    in_band = _interpolate(
        mask, wanted_hz.clamp(max=nyquist_hz) * (source.window_samples / source.sample_rate), dim=0
    )
    carried = torch.where((wanted_hz > nyquist_hz)[:, None], above[None], in_band)
    return _interpolate(carried, times, dim=1)


def _interpolate(values: Tensor, positions: Tensor, dim: int) -> Tensor:
    """Linear interpolation at fractional indices along one dimension, constant beyond the ends."""
    positions = positions.clamp(0, values.shape[dim] - 1)
    low = positions.floor().long()
    high = (low + 1).clamp(max=values.shape[dim] - 1)
    shape = [1] * values.dim()
    shape[dim] = -1
    return torch.lerp(
        values.index_select(dim, low),
        values.index_select(dim, high),
        (positions - low).to(values.dtype).reshape(shape),
    )


def load_separator(path: str | Path, device: str = "cpu", **settings: Any) -> Separator:
    """Load a separator from a checkpoint; nothing else is needed, and no code in the file is run.

    Args:
        path: the checkpoint.
        device: to separate on.
        **settings: `Separator`'s `block_seconds`, `overlap_seconds`, `notes` and `others`, where
            those of the run are not wanted.

    Raises:
        BespokeError: the file is missing, or is no checkpoint of this program.
    """
    try:
        path = existing(path, "checkpoint")
    except BespokeError as error:
        raise BespokeError(
            f"The checkpoint {path} does not exist: it is checkpoints/last.ckpt in a run's folder."
        ) from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch has no exception of its own for this
        raise BespokeError(f"There is no device {device} here: use cpu.") from error
    try:
        _check_size(path)
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        hyperparameters = dict(checkpoint["hyper_parameters"])
        kept = dict(hyperparameters["separate"])
        kept["notes"] = [Note(*values) for values in kept.get("notes", ())]
        kept["others"] = [[Note(*values) for values in part] for part in kept.get("others", ())]
        settings = {**kept, **settings}
        transform = hyperparameters["stft"]
        if not (
            transform["sample_rate"] <= HIGHEST_RATE
            and transform.get("window_seconds", 0) <= LONGEST_WINDOW_SECONDS
        ):
            raise ValueError("its transform is too large")
        stft = STFT(**transform)
        arguments = dict(hyperparameters["model"])
        name = arguments.pop("name")
        weights = {
            name.removeprefix("model."): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith("model.")
        }
        if sum(value.numel() for value in weights.values()) > path.stat().st_size:
            raise ValueError("its weights are larger than the file")
        with torch.device("meta"):  # without memory: do the weights fit?
            MODELS[name](**arguments).load_state_dict(weights, assign=True)
        model = MODELS[name](**arguments)
        model.load_state_dict(weights)
    except Exception as error:  # anything can be wrong in a file from elsewhere
        raise BespokeError(
            f"{path} is not a checkpoint of Bespoke, or is damaged ({type(error).__name__})."
        ) from error
    return Separator(stft.to(device), model.to(device), **settings)


def write_network(checkpoint: Path, path: Path) -> None:
    """Write what `load_separator` needs of a run's checkpoint: the network, without the optimizer's
    state, which is twice as large and only there to go on with the training.

    Raises:
        BespokeError: it cannot be written.
    """
    whole = torch.load(checkpoint, map_location="cpu", weights_only=True)
    with atomic_path(path) as temporary:
        torch.save(
            {name: whole[name] for name in ("state_dict", "hyper_parameters", "global_step")},
            temporary,
        )
