"""The STFT on tones with known bins, round trips, and its sizes at other rates."""

import pytest
import torch

from bespoke.audio.stft import STFT


def test_sizes_at_the_papers_rate_and_at_the_recordings():
    stft = STFT(16000)
    assert (stft.window_samples, stft.hop_samples, stft.bins) == (512, 128, 257)
    assert (stft.at_rate(44100).window_samples, stft.at_rate(44100).hop_samples) == (1411, 353)
    assert stft.frequencies_hz[1] == 31.25
    assert stft.times_seconds(3).tolist() == pytest.approx([0, 0.008, 0.016])


def test_a_tone_lies_in_its_bin_with_the_magnitude_of_half_the_windows_sum():
    stft = STFT(16000)
    time = torch.arange(16000) / 16000
    tone = torch.cos(2 * torch.pi * 1000 * time)[None, None]
    frame = stft(tone)[0, 0, :, 60].abs()
    assert frame.argmax() == 32  # 1000 / 31.25
    assert frame[32] == pytest.approx(stft.window.sum().item() / 2, rel=1e-4)


@pytest.mark.parametrize("sample_rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("length", [1, 300, 10007])
def test_inverse_gives_the_waveform_back(sample_rate, length):
    waveform = torch.randn(2, 3, length, generator=torch.Generator().manual_seed(0))
    stft = STFT(sample_rate)
    assert torch.allclose(stft.inverse(stft(waveform), length), waveform, atol=1e-5)


def test_it_is_linear_and_has_no_weights():
    stft = STFT(16000)
    first, second = torch.randn(1, 1, 4000), torch.randn(1, 1, 4000)
    assert torch.allclose(stft(first) + 2 * stft(second), stft(first + 2 * second), atol=1e-4)
    assert not stft.state_dict()
    assert stft.hyperparameters == STFT(**stft.hyperparameters).hyperparameters


def test_a_hop_without_overlap_is_refused():
    with pytest.raises(ValueError, match="hop"):
        STFT(16000, 0.032, 0.03)


def test_a_mask_applied_in_blocks_gives_what_it_gives_to_the_whole():
    stft, signal = STFT(16000), torch.randn(1, 2, 20_000, generator=torch.manual_seed(0))

    def masked(waveform):
        spectrogram = stft(waveform)
        return stft.inverse(spectrogram * (spectrogram.abs() > 2), waveform.shape[-1])

    parts = [masked(signal[..., block])[..., kept] for block, kept in stft.blocks(20_000, 3000)]
    assert len(parts) == 7
    assert torch.allclose(torch.cat(parts, dim=-1), masked(signal), atol=1e-6)
