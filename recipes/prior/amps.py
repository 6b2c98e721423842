"""Guitar amplifiers for random ensembles: neural captures of real ones, waveshapers, and cabinets.

A distorted chord is not a sum of distorted notes: a whole part goes through `Amps.amplify`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.signal import butter, freqz, oaconvolve, sosfilt, tf2sos
from torch import Tensor

from bespoke.audio.dsp import resample
from bespoke.audio.io import read_audio

RATE = 48_000  # of the captures, in Hz
CHUNK = 8192  # samples, so that the activations of a layer stay in the processor's cache


class Capture:
    """A neural capture of an amplifier or a pedal: a WaveNet of the Neural Amp Modeler (`.nam`).

    Args:
        path: of the file (JSON with the settings and a list of weights, format 0.5).

    Raises:
        ValueError: if it is another architecture than an ungated WaveNet with tanh.
    """

    def __init__(self, path: Path):
        described = json.loads(path.read_text())
        arrays = described["config"].get("layers", [])
        if described["architecture"] != "WaveNet" or any(
            array["gated"] or array["activation"] != "Tanh" for array in arrays
        ):
            raise ValueError(f"{path.name}: only ungated WaveNets with tanh can be played.")
        weights = torch.tensor(described["weights"], dtype=torch.float32)
        taken = 0

        def take(*shape: int) -> Tensor:
            nonlocal taken
            size = int(np.prod(shape))
            taken += size
            return weights[taken - size : taken].reshape(shape)

        self.arrays = []
        for array in arrays:
            channels, kernel = array["channels"], array["kernel_size"]
            first, layers = take(channels, array["input_size"]), []
            for dilation in array["dilations"]:
                taps = take(channels, channels, kernel)
                bias, of_input = take(channels), take(channels, array["condition_size"])
                # One product per layer: the taps, and beside them what the input adds.
                joined = torch.cat([taps.permute(0, 2, 1).reshape(channels, -1), of_input], 1)
                mix, mix_bias = take(channels, channels), take(channels)
                layers.append((dilation, kernel, joined, bias[:, None], mix, mix_bias[:, None]))
            head = take(array["head_size"], channels)
            head_bias = take(array["head_size"])[:, None] if array["head_bias"] else None
            self.arrays.append((first, layers, head, head_bias))
        self.scale = float(take(1))
        if taken != len(weights):
            raise ValueError(f"{path.name}: {len(weights)} weights where {taken} are expected.")

    @torch.inference_mode()
    def play(self, waveform: np.ndarray) -> np.ndarray:
        """What comes out for what goes in, float32 `[time]` at `RATE`; ±1 is its full scale."""
        signal = torch.from_numpy(np.ascontiguousarray(waveform, np.float32))[None]
        past = [
            [torch.zeros(len(first), (kernel - 1) * dilation) for dilation, kernel, *_ in layers]
            for first, layers, _, _ in self.arrays
        ]
        # Silence settles as it would have before the part began.
        settle = 1 + sum(kernel_past.shape[1] for array in past for kernel_past in array)
        signal = torch.nn.functional.pad(signal, (settle, 0))
        played = [self._play(chunk, past) for chunk in signal.split(CHUNK, dim=1)]
        return (self.scale * torch.cat(played, 1)[0, settle:]).numpy()

    def _play(self, chunk: Tensor, past: list[list[Tensor]]) -> Tensor:
        hidden, head, samples = chunk, None, chunk.shape[1]
        for (first, layers, out, out_bias), array_past in zip(self.arrays, past, strict=True):
            hidden = first @ hidden
            for index, (dilation, kernel, joined, bias, mix, mix_bias) in enumerate(layers):
                whole = torch.cat([array_past[index], hidden], 1)
                array_past[index] = whole[:, samples:].clone()
                taps = [
                    whole[:, tap * dilation : tap * dilation + samples] for tap in range(kernel)
                ]
                active = torch.addmm(bias, joined, torch.cat([*taps, chunk])).tanh_()
                head = active if head is None else head.add_(active)
                hidden = torch.addmm(mix_bias, mix, active).add_(hidden)
            head = out @ head if out_bias is None else torch.addmm(out_bias, out, head)
        return head


class Amps:
    """Random amplifiers: captures or waveshapers, and cabinets that are recorded or made up.

    Args:
        folder: with `captures/*.nam`, `captures.json` on what each is, and `cabinets/*.wav`
            (see `recipes.prior.sources`); None for waveshapers and made-up cabinets alone.
        captured: share of the draws that a capture plays.
    """

    def __init__(self, folder: Path | None = None, captured: float = 0.5):
        self.folder, self.captured = folder, captured
        self.index: dict[str, dict] = {}
        self.cabinets: list[Path] = []
        if folder is not None:
            self.index = json.loads((folder / "captures.json").read_text())
            self.cabinets = sorted((folder / "cabinets").glob("*.wav"))
        # An amplifier of which there are many captures comes no more often than others.
        self.makes: dict[str, list[str]] = {}
        for name, about in self.index.items():
            if about["kind"] != "boost":
                self.makes.setdefault(about["make"], []).append(name)
        self._captures: dict[str, Capture] = {}

    def draw(self, rng: np.random.Generator, drive_db: tuple[float, float] = (-20.0, 0.0)) -> "Rig":
        """Draw an amplifier, its settings and a cabinet.

        Args:
            rng: of the draw.
            drive_db: range of the peaks that go in, in dB of full scale; the less, the cleaner.
        """
        response = _cabinet(rng)
        if self.cabinets and rng.random() < 0.8:
            waveform, rate = read_audio(self.cabinets[rng.integers(len(self.cabinets))])
            response = resample(waveform[:1], rate, RATE)[0]
        capture = None
        if self.makes and rng.random() < self.captured:
            names = self.makes[str(rng.choice(sorted(self.makes)))]
            name = names[rng.integers(len(names))]
            if name not in self._captures:
                self._captures[name] = Capture(self.folder / "captures" / name)
            capture = self._captures[name]
            if self.index[name]["kind"] == "cabinet":
                response = None
        return Rig(capture, response, rng.uniform(*drive_db), int(rng.integers(2**32)))

    def amplify(self, waveform: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
        """Send a whole part, `[time]` at `rate` Hz, through a random amplifier: see `Rig.play`."""
        return self.draw(rng).play(waveform, rate)


class Rig:
    """An amplifier with its settings and a cabinet, which plays every waveform in the same way.

    Args:
        capture: of the amplifier; None for a waveshaper.
        response: of the cabinet at `RATE`; None if the capture has one.
        drive_db: peak of what goes in, in dB of full scale.
        seed: of the guitar's equalizer and of the waveshaper.
    """

    def __init__(
        self, capture: Capture | None, response: np.ndarray | None, drive_db: float, seed: int
    ):
        self.capture, self.response, self.drive_db, self.seed = capture, response, drive_db, seed

    def play(self, waveform: np.ndarray, rate: int) -> np.ndarray:
        """Play a part, `[time]` at `rate` Hz: float32, as long, with a peak of 1, or silence."""
        rng = np.random.default_rng(self.seed)
        loud = np.quantile(np.abs(waveform), 0.9995)
        if not loud:
            return np.zeros(len(waveform), np.float32)
        sound = resample(waveform[None].astype(np.float32) / np.float32(loud), rate, RATE)[0]
        sound = _pickup(sound, rng)
        sound *= 10 ** (self.drive_db / 20) / np.quantile(np.abs(sound), 0.9995)
        if rng.random() < 0.3:  # an overdrive in front, which cuts the lows
            sound = _screamer(sound, rng)
        sound = _shape(sound, rng) if self.capture is None else self.capture.play(sound)
        if self.response is not None:
            sound = oaconvolve(sound, self.response)[: len(sound)]
        sound = sosfilt(butter(1, 40, "high", fs=RATE, output="sos"), sound)
        sound = resample(sound[None].astype(np.float32), RATE, rate)[0]
        sound = np.pad(sound, (0, max(0, len(waveform) - len(sound))))[: len(waveform)]
        return (sound / np.abs(sound).max().clip(1e-9)).astype(np.float32)


def _peak(hz: float, gain_db: float, q: float) -> np.ndarray:
    """A second-order section that lifts or lowers what is around a frequency."""
    angle, amplitude = 2 * np.pi * hz / RATE, 10 ** (gain_db / 40)
    alpha, cosine = np.sin(angle) / (2 * q), np.cos(angle)
    upper = [1 + alpha * amplitude, -2 * cosine, 1 - alpha * amplitude]
    lower = [1 + alpha / amplitude, -2 * cosine, 1 - alpha / amplitude]
    return tf2sos(upper, lower)


def _filter(sound: np.ndarray, *sections: np.ndarray) -> np.ndarray:
    return sosfilt(np.concatenate(sections), sound)


def _low(hz: float, order: int = 1) -> np.ndarray:
    return butter(order, hz, fs=RATE, output="sos")


def _high(hz: float, order: int = 1) -> np.ndarray:
    return butter(order, hz, "high", fs=RATE, output="sos")


def _pickup(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another guitar: the resonance of its pickups, the tone knob, its body."""
    return _filter(
        sound,
        _high(rng.uniform(30, 90)),
        _peak(rng.uniform(1500, 4500), rng.uniform(-3, 8), rng.uniform(0.7, 2)),
        _peak(rng.uniform(150, 900), rng.normal(0, 3), 0.8),
        _low(np.exp(rng.uniform(np.log(2500), np.log(14000)))),
    )


def _screamer(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An overdrive pedal: mids and highs are clipped softly beside the clean signal."""
    level = np.quantile(np.abs(sound), 0.9995)
    driven = _filter(sound / level, _high(720)) * 10 ** (rng.uniform(0, 30) / 20)
    mixed = _filter(np.tanh(driven) + 0.5 * sound / level, _low(rng.uniform(1500, 5000)))
    return mixed * level * 10 ** (rng.uniform(-3, 9) / 20)


def _shape(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One to four stages that clip, a tone stack, a power amplifier that gives way to loudness."""
    total_db = rng.uniform(0, 66)
    stages = int(rng.integers(1, 5))
    sound = _filter(sound, _high(rng.uniform(40, 500)))
    for share in rng.dirichlet(np.full(stages, 4.0)):
        bias = rng.uniform(0, 0.5) * (rng.random() < 0.7)
        sound = 10 ** (share * total_db / 20) * sound + bias
        sound = np.clip(sound, -1, 1) if rng.random() < 0.2 else np.tanh(sound)
        sound = _filter(sound, _high(rng.uniform(20, 180)), _low(rng.uniform(4000, 14000)))
    sound = _filter(
        sound,
        _peak(rng.uniform(80, 200), rng.uniform(-6, 6), 0.7),
        _peak(rng.uniform(400, 1000), rng.uniform(-14, 6), 0.6),
        _peak(rng.uniform(2000, 5000), rng.uniform(-4, 8), 0.7),
    )
    sound /= np.quantile(np.abs(sound), 0.9995) + 1e-9
    loudness = np.sqrt(np.maximum(_filter(sound**2, _low(1 / rng.uniform(0.3, 2))), 0))
    return np.tanh(rng.uniform(0.3, 2) * sound / (1 + rng.uniform(0, 2) * loudness))


def _cabinet(rng: np.random.Generator) -> np.ndarray:
    """A made-up response of minimum phase: some 80 Hz to 5 kHz, with ripples of cone and room."""
    frequencies_hz = np.fft.rfftfreq(4096, 1 / RATE)
    sections = [
        _high(rng.uniform(60, 120), 2),
        _low(rng.uniform(3500, 6500), int(rng.integers(3, 7))),
        _peak(rng.uniform(90, 140), rng.uniform(0, 6), 1.5),
        _peak(rng.uniform(2000, 4000), rng.uniform(0, 9), 1.0),
        _peak(rng.uniform(300, 700), rng.uniform(-8, 2), 0.8),
    ]
    for _ in range(8):
        hz = np.exp(rng.uniform(np.log(400), np.log(6000)))
        sections.append(_peak(hz, rng.normal(0, 4), rng.uniform(2, 8)))
    logarithm = np.log(
        np.maximum(np.abs(_response(np.concatenate(sections), frequencies_hz)), 1e-4)
    )
    cepstrum = np.fft.irfft(logarithm)
    cepstrum[1:2048] *= 2
    cepstrum[2049:] = 0
    return np.fft.irfft(np.exp(np.fft.rfft(cepstrum)))[:2048].astype(np.float32)


def _response(sections: Sequence[np.ndarray], frequencies_hz: np.ndarray) -> np.ndarray:
    total = np.ones(len(frequencies_hz), complex)
    for section in sections:
        total *= freqz(section[:3], section[3:], frequencies_hz, fs=RATE)[1]
    return total
