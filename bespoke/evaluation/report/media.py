"""Sound and pictures for a page that stands alone: waveforms as Ogg Opus, outlines, spectrograms and masks as WebP."""

import base64
import io
from collections.abc import Sequence

import numpy as np
import soundfile
import torch

from bespoke.audio.dsp import resample_blocks

OPUS_RATE = 48000
BLOCK_SECONDS = 60  # that are encoded at once
# Of all the sound of a page, before base64 makes it a third larger: a 4-minute song stays under 25 MB with its pictures.
AUDIO_BYTES = 14e6
KBPS = (
    16.0,
    96.0,
)  # least and most for a channel: below, even a single instrument suffers; above, nobody hears a difference

LOWEST_HZ, HIGHEST_HZ = 55.0, 14000.0
ROWS = 192  # of a spectrogram's picture
MAX_COLUMNS = 3000
RANGE_DB = 75.0
WINDOW_SECONDS = 4096 / 44100


def bit_rate(channel_seconds: float) -> float:
    """The kbit/s for a channel with which so many seconds, of all channels of all tracks together, fit into a page.

    >>> bit_rate(8 * 20), round(bit_rate(6 * 2 * 240))
    (96.0, 39)
    """
    return float(np.clip(AUDIO_BYTES * 8 / 1000 / max(channel_seconds, 1e-9), *KBPS))


def opus(waveform: np.ndarray, sample_rate: int, kbps: float) -> bytes:
    """Encode as Ogg Opus, which Firefox, Chromium and Safari decode.

    Args:
        waveform: `[channel, time]`, one or two channels, full scale at 1; what is beyond is clipped.
        sample_rate: in Hz.
        kbps: for a channel, about.
    """
    file = io.BytesIO()
    # libsndfile goes from 256 kbit/s a channel at level 0 to 6 at 1.
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
    """The waveform's largest samples, with their signs, in so many pieces of equal length, to the power of 0.6: what is drawn of it.

    Args:
        waveform: `[channel, time]`.
        points: how many at most.
    """
    mono = waveform.mean(axis=0)
    pieces = np.array_split(mono, min(points, mono.size))
    largest = np.array([piece[np.abs(piece).argmax()] for piece in pieces], np.float64)
    return (np.sign(largest) * np.abs(largest) ** 0.6).round(3).tolist()


class Pictures:
    """Makes pictures of equal height and frequencies, so that they can be compared, of recordings of one rate.

    The frequency axis is logarithmic, so that an interval of the music is the same distance everywhere.

    Args:
        sample_rate: in Hz.
    """

    def __init__(self, sample_rate: int):
        self.sample_rate = sample_rate
        self.window = round(WINDOW_SECONDS * sample_rate)
        self.highest_hz = min(HIGHEST_HZ, sample_rate / 2)
        rows_hz = np.geomspace(LOWEST_HZ, self.highest_hz, ROWS)
        bins_hz = np.arange(self.window // 2 + 1) * sample_rate / self.window
        # A triangle for each row, as wide as its neighbours are far, and never narrower than the bins are apart.
        width_hz = np.maximum(np.gradient(rows_hz), sample_rate / self.window)[:, None]
        weights = np.maximum(0, 1 - np.abs(bins_hz[None] - rows_hz[:, None]) / width_hz)
        self.weights = torch.from_numpy(weights / weights.sum(axis=1, keepdims=True)).float()

    def height(self, hz: float) -> float:
        """Where a frequency is in the picture: 0 at the bottom, 1 at the top."""
        return float(np.log(hz / LOWEST_HZ) / np.log(self.highest_hz / LOWEST_HZ))

    def power(self, waveform: np.ndarray) -> np.ndarray:
        """The power of the channel mean, `[row, column]`, low frequencies first."""
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
        """Powers in dB below `top`, in colour, as a data URI."""
        level_db = 10 * np.log10(np.maximum(power / max(top, 1e-20), 10 ** (-RANGE_DB / 10)))
        return _webp(1 + level_db / RANGE_DB, "magma")

    def mask(self, target: np.ndarray, mixture: np.ndarray) -> str:
        """The share of the mixture's magnitude that is the target's, from 0 to 1, as a data URI; 0 where the mixture is silent."""
        silent = mixture <= mixture.max(initial=0) * 10 ** (-RANGE_DB / 10)
        share = np.sqrt(target / np.where(silent, 1, mixture)).clip(0, 1)
        return _webp(np.where(silent, 0, share), "viridis")


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def common_scale(waveforms: Sequence[np.ndarray]) -> float:
    """The factor that keeps all of them within full scale, and their levels in relation."""
    return 1 / max(1.0, *(float(np.abs(waveform).max(initial=0)) for waveform in waveforms))


def at_level(waveform: np.ndarray, other: np.ndarray, below_db: float = 3.0) -> np.ndarray:
    """Bring a waveform to so many dB below another's RMS, as far as it is not clipped."""
    rms, wanted = (
        float(np.sqrt(np.square(signal, dtype=np.float64).mean())) for signal in (waveform, other)
    )
    highest = float(np.abs(waveform).max(initial=0))
    return waveform * min(wanted * 10 ** (-below_db / 20) / max(rms, 1e-9), 1 / max(highest, 1e-9))


def _webp(values: np.ndarray, colours: str) -> str:
    from matplotlib import colormaps  # slow to import
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(colormaps[colours](values[::-1].clip(0, 1), bytes=True)[..., :3]).save(
        file, "WEBP", quality=80
    )
    return data_uri(file.getvalue(), "image/webp")
