"""Sound and pictures of a page, with known answers."""

import base64
import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from bespoke.audio.dsp import resample
from bespoke.evaluation.report import media

RATE = 44100


def decoded(encoded):
    samples, rate = soundfile.read(io.BytesIO(encoded), always_2d=True)
    assert rate == media.OPUS_RATE
    return samples.T


def picture(uri):
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("L"), float
    )[::-1]  # low frequencies first


@pytest.mark.parametrize("channels", [1, 2])
def test_opus_keeps_length_time_and_channels(channels):
    signal = np.zeros((channels, 2 * RATE), np.float32)
    for second in (0.5, 1.25):
        signal[:, round(second * RATE) + np.arange(400)] = (
            0.5 * np.sin(np.arange(400) * 0.3) * np.hanning(400)
        )
    sound = decoded(media.opus(signal, RATE, 96))
    assert sound.shape == (channels, 2 * media.OPUS_RATE)
    expected = resample(signal, RATE, media.OPUS_RATE)[0]
    lags = np.correlate(sound[0], expected[100:-100], "valid")
    assert lags.argmax() == 100  # not a sample early or late


def test_tracks_of_a_four_minute_song_fit_into_25_megabytes():
    tracks, channels, seconds = 7, 2, 240
    noise = (
        np.random.default_rng(0).normal(0, 0.2, (channels, 4 * RATE)).astype(np.float32)
    )  # nothing is harder to compress
    size = (
        len(media.opus(noise, RATE, media.bit_rate(tracks * channels * seconds)))
        / 4
        * seconds
        * tracks
    )
    assert size * 4 / 3 < 20e6  # in base64; the pictures of 3,000 columns are the rest
    assert len(media.opus(noise, RATE, 16)) < len(media.opus(noise, RATE, 96)) / 4


@pytest.mark.parametrize("hz", [110.0, 440.0, 3520.0])
def test_a_tone_is_where_its_frequency_is_in_the_picture(hz):
    pictures = media.Pictures(RATE)
    power = pictures.power(np.sin(2 * np.pi * hz * np.arange(RATE) / RATE, dtype=np.float64)[None])
    row = power[:, power.shape[1] // 2].argmax()
    assert row / (media.ROWS - 1) == pytest.approx(pictures.height(hz), abs=1.5 / media.ROWS)
    image = picture(pictures.spectrogram(power, power.max()))
    assert image[row].mean() > image[np.r_[: row - 20, row + 20 : media.ROWS]].mean() + 100


def test_the_mask_is_the_share_of_the_magnitude_and_none_in_silence():
    pictures, noise = media.Pictures(RATE), np.random.default_rng(0).normal(0, 0.1, (1, RATE))
    power = pictures.power(np.concatenate([noise, 0 * noise], axis=1))
    shades = {}
    for gain in (0.0, 0.5, 1.0):
        image = picture(pictures.mask(gain**2 * power, power))
        shades[gain] = image[:, 5:20].mean()
        assert image[:, -20:].mean() == pytest.approx(
            picture(pictures.mask(0 * power, power)).mean(), abs=3
        )
    assert shades[0.0] + 20 < shades[0.5] < shades[1.0] - 20


def test_the_outline_is_the_largest_samples():
    waveform = np.zeros((1, 1000), np.float32)
    waveform[0, [5, 995]] = 1, -1
    assert media.outline(waveform, 10) == [1, *[0] * 8, -1]


def test_levels_stay_in_relation_and_below_full_scale():
    loud, quiet = np.full((1, 100), 2.0), np.full((1, 100), 0.5)
    assert media.common_scale([loud, quiet]) == 0.5
    assert media.common_scale([quiet]) == 1
    assert np.sqrt(np.square(media.at_level(loud, quiet, 6.0206)).mean()) == pytest.approx(
        0.25, rel=1e-4
    )
