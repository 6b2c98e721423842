"""The short-time Fourier transform shared by training and separation."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class STFT(nn.Module):
    """STFT with a square-root Hann window.

    Window and hop are stored in seconds, so that the transform can be moved to any sample rate.

    Args:
        sample_rate: in Hz.
        window_seconds: length of window and transform (PAPER: 32 ms, 512 samples at 16 kHz).
        hop_seconds: hop (PAPER: a quarter of the window).

    Raises:
        ValueError: the hop is shorter than a sample or longer than half the window.

    Shape:
        - forward: `[batch, channel, time]` to complex `[batch, channel, freq, frames]`, with
          `frames = 1 + time // hop`
        - inverse: the reverse, to `length` samples

    >>> stft = STFT(16000)
    >>> waveform = torch.randn(2, 1, 16000)
    >>> spectrogram = stft(waveform)
    >>> spectrogram.shape
    torch.Size([2, 1, 257, 126])
    >>> torch.allclose(stft.inverse(spectrogram, 16000), waveform, atol=1e-5)
    True
    """

    window: Tensor

    def __init__(self, sample_rate: int, window_seconds: float = 0.032, hop_seconds: float = 0.008):
        super().__init__()
        self.sample_rate, self.window_seconds, self.hop_seconds = (
            int(sample_rate),
            float(window_seconds),
            float(hop_seconds),
        )
        self.window_samples = round(self.window_seconds * self.sample_rate)
        self.hop_samples = round(self.hop_seconds * self.sample_rate)
        if not 1 <= self.hop_samples <= self.window_samples // 2:
            raise ValueError(
                f"the hop ({hop_seconds} s) must be at least a sample and at most half the window "
                f"({window_seconds} s)"
            )
        self.register_buffer(
            "window", torch.hann_window(self.window_samples).sqrt(), persistent=False
        )

    @property
    def hyperparameters(self) -> dict[str, float]:
        """Constructor arguments that reproduce this module."""
        return {
            "sample_rate": self.sample_rate,
            "window_seconds": self.window_seconds,
            "hop_seconds": self.hop_seconds,
        }

    @property
    def bins(self) -> int:
        """Number of frequencies, from 0 to the Nyquist frequency."""
        return self.window_samples // 2 + 1

    @property
    def frequencies_hz(self) -> Tensor:
        """Centre frequency of each bin, in Hz: `[freq]`."""
        return torch.arange(self.bins) * (self.sample_rate / self.window_samples)

    def times_seconds(self, frames: int) -> Tensor:
        """Centre of each frame, in seconds: `[frames]`."""
        return torch.arange(frames) * (self.hop_samples / self.sample_rate)

    def at_rate(self, sample_rate: int) -> "STFT":
        """The same window and hop in seconds at another sample rate."""
        return STFT(sample_rate, self.window_seconds, self.hop_seconds).to(self.window.device)

    def blocks(self, samples: int, block_samples: int) -> Iterator[tuple[slice, slice]]:
        """Cut a long signal into blocks, so that a mask that is applied to each block gives the
        same result as a mask that is applied to the whole signal.

        Blocks begin on a frame, and have surroundings that are wider than a window.

        Args:
            samples: length of the signal.
            block_samples: how much is to be kept of each block; it is rounded up to frames.

        Yields:
            Of the signal, the block with its surroundings; of these, what is to be kept.

        >>> list(STFT(16000).blocks(9000, 5000))
        [(slice(0, 6144, None), slice(0, 5120, None)),
         (slice(4096, 9000, None), slice(1024, 6144, None))]
        """
        block, margin = (
            self.hop_samples * -(-length // self.hop_samples)
            for length in (block_samples, 2 * self.window_samples)
        )
        for start in range(0, samples, block):
            first = max(0, start - margin)
            kept = slice(start - first, start - first + block)
            yield slice(first, min(start + block + margin, samples)), kept

    def forward(self, waveform: Tensor) -> Tensor:
        batch, channels, time = waveform.shape
        # Reflecting needs more samples than half a window; zeros work for any length.
        spectrogram = torch.stft(
            waveform.reshape(batch * channels, time).float(),
            self.window_samples,
            self.hop_samples,
            window=self.window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        return spectrogram.reshape(batch, channels, *spectrogram.shape[-2:])

    def inverse(self, spectrogram: Tensor, length: int) -> Tensor:
        """Invert by overlap-add with the same window.

        `inverse(forward(waveform), length)` returns the waveform.

        Args:
            spectrogram: complex `[batch, channel, freq, frames]`.
            length: number of samples.

        Returns:
            `[batch, channel, length]`.
        """
        batch, channels, bins, frames = spectrogram.shape
        waveform = torch.istft(
            spectrogram.reshape(batch * channels, bins, frames),
            self.window_samples,
            self.hop_samples,
            window=self.window,
            center=True,
            length=length,
        )
        return waveform.reshape(batch, channels, length)
