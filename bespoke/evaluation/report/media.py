"""Audio and images embedded in pages: Ogg Opus, waveform outlines, spectrograms, masks as WebP."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soundfile
import torch

from bespoke.audio.dsp import resample_blocks

OPUS_RATE = 48000
BLOCK_SECONDS = 60  # length of audio that is encoded at once
# Audio of a page, to which base64 adds a third. A page of a 4-minute song stays under 25 MB.
AUDIO_BYTES = 14e6
# Least and most kbit/s per channel. Below, even a single instrument suffers; above, no difference
# is audible.
KBPS = (16.0, 96.0)

LOWEST_HZ, HIGHEST_HZ = 55.0, 14000.0
ROWS = 192  # height of a spectrogram's image
MAX_COLUMNS = 3000
RANGE_DB = 75.0
WINDOW_SECONDS = 4096 / 44100


@dataclass(frozen=True)
class Quality:
    """How much of a page its sound and its pictures may take.

    Attributes:
        audio_bytes: of the page's sound, before base64 adds a third.
        picture: WebP's quality of spectrograms, 0 to 100.
        outline_points: of each waveform's outline.
    """

    audio_bytes: float = AUDIO_BYTES
    picture: int = 80
    outline_points: int = 1200


def bit_rate(channel_seconds: float, audio_bytes: float = AUDIO_BYTES) -> float:
    """Bit rate in kbit/s per channel that fits so much audio into a page.

    Args:
        channel_seconds: total duration of all channels of all tracks.
        audio_bytes: what all of them may take.

    >>> bit_rate(8 * 20), round(bit_rate(6 * 2 * 240))
    (96.0, 39)
    """
    return float(np.clip(audio_bytes * 8 / 1000 / max(channel_seconds, 1e-9), *KBPS))


def opus(waveform: np.ndarray, sample_rate: int, kbps: float) -> bytes:
    """Encode as Ogg Opus, which Firefox, Chromium and Safari can decode.

    Args:
        waveform: `[channel, time]`, one or two channels; clipped to full scale at 1.
        sample_rate: in Hz.
        kbps: approximate bit rate per channel.
    """
    file = io.BytesIO()
    # libsndfile's compression levels: 0 is 256 kbit/s per channel, 1 is 6.
    quality = {
        "format": "OGG",
        "subtype": "OPUS",
        "compression_level": float(np.clip((256 - kbps) / 250, 0, 1)),
    }
    size = BLOCK_SECONDS * sample_rate
    blocks = (waveform[:, start : start + size] for start in range(0, waveform.shape[-1], size))
    with soundfile.SoundFile(file, "w", OPUS_RATE, len(waveform), **quality) as sound:
        for block in resample_blocks(blocks, sample_rate, OPUS_RATE):
            sound.write(np.clip(block, -1, 1).T)
    return file.getvalue()


def outline(waveform: np.ndarray, points: int = 1200) -> list[float]:
    """Outline of a waveform for drawing.

    Args:
        waveform: `[channel, time]`.
        points: most points of the outline.

    Returns:
        The sample of largest magnitude, with its sign, in each of `points` equal sections of the
        channel mean, to the power of 0.6.
    """
    mono = waveform.mean(axis=0)
    pieces = np.array_split(mono, min(points, mono.size))
    largest = np.array([piece[np.abs(piece).argmax()] for piece in pieces], np.float64)
    return (np.sign(largest) * np.abs(largest) ** 0.6).round(3).tolist()


class Pictures:
    """Draws spectrograms and masks with a common height and frequency axis, for comparison.

    The frequency axis is logarithmic, so a musical interval has the same height everywhere.

    Args:
        sample_rate: sample rate of the recordings, in Hz.
        quality: of the images, 0 to 100.
    """

    def __init__(self, sample_rate: int, quality: int = Quality.picture):
        self.sample_rate = sample_rate
        self.quality = quality
        self.window = round(WINDOW_SECONDS * sample_rate)
        self.highest_hz = min(HIGHEST_HZ, sample_rate / 2)
        rows_hz = np.geomspace(LOWEST_HZ, self.highest_hz, ROWS)
        bins_hz = np.arange(self.window // 2 + 1) * sample_rate / self.window
        # One triangular filter per row, as wide as the distance between rows, at least one bin.
        width_hz = np.maximum(np.gradient(rows_hz), sample_rate / self.window)[:, None]
        weights = np.maximum(0, 1 - np.abs(bins_hz[None] - rows_hz[:, None]) / width_hz)
        self.weights = torch.from_numpy(weights / weights.sum(axis=1, keepdims=True)).float()

    def height(self, hz: float) -> float:
        """Vertical position of a frequency: 0 at the bottom, 1 at the top."""
        return float(np.log(hz / LOWEST_HZ) / np.log(self.highest_hz / LOWEST_HZ))

    def power(self, waveform: np.ndarray) -> np.ndarray:
        """Power of the channel mean, `[row, column]`, low frequencies first."""
        mono = torch.from_numpy(np.ascontiguousarray(waveform.mean(axis=0), dtype=np.float32))
        hop = max(self.window // 4, -(-mono.numel() // MAX_COLUMNS))
        spectrogram = torch.stft(
            mono,
            self.window,
            hop,
            window=torch.hann_window(self.window),
            pad_mode="constant",
            return_complex=True,
        )
        return (self.weights @ spectrogram.abs().square()).numpy()

    def spectrogram(self, power: np.ndarray, top: float) -> str:
        """Spectrogram as a coloured image in a data URI: dB relative to `top`."""
        level_db = 10 * np.log10(np.maximum(power / max(top, 1e-20), 10 ** (-RANGE_DB / 10)))
        return _webp(1 + level_db / RANGE_DB, "magma", self.quality)

    def mask(self, target: np.ndarray, mixture: np.ndarray) -> str:
        """Target's share of the mixture's magnitude, from 0 to 1, as an image in a data URI.

        It is 0 where the mixture is silent.
        """
        silent = mixture <= mixture.max(initial=0) * 10 ** (-RANGE_DB / 10)
        share = np.sqrt(target / np.where(silent, 1, mixture)).clip(0, 1)
        return _webp(np.where(silent, 0, share), "viridis", self.quality)


def data_uri(content: bytes, kind: str) -> str:
    """Data URI that contains the bytes."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def common_scale(waveforms: Sequence[np.ndarray]) -> float:
    """One gain for all waveforms that keeps them within full scale."""
    return 1 / max(1.0, *(float(np.abs(waveform).max(initial=0)) for waveform in waveforms))


def at_level(waveform: np.ndarray, other: np.ndarray, below_db: float = 3.0) -> np.ndarray:
    """Set the RMS of a waveform to `below_db` under another's, or lower where it would clip."""
    rms, wanted = (
        float(np.sqrt(np.square(signal, dtype=np.float64).mean())) for signal in (waveform, other)
    )
    highest = float(np.abs(waveform).max(initial=0))
    return waveform * min(wanted * 10 ** (-below_db / 20) / max(rms, 1e-9), 1 / max(highest, 1e-9))


def _webp(values: np.ndarray, colours: str, quality: int) -> str:
    from matplotlib import colormaps  # slow to import
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(colormaps[colours](values[::-1].clip(0, 1), bytes=True)[..., :3]).save(
        file, "WEBP", quality=quality
    )
    return data_uri(file.getvalue(), "image/webp")
