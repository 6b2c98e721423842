"""Parts that pages share: the player with its audio and images, the charts, the templates."""

import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
import soundfile
from markupsafe import Markup

import bespoke
from bespoke.evaluation.report import media
from bespoke.evaluation.report.runs import rounded
from bespoke.score.midi import Note, pitch_hz
from bespoke.utils import processor
from bespoke.utils.files import atomic_path, read_csv

MAX_SECONDS = 600  # length of a recording that a page plays; the stems are complete
TICKS_HZ = {
    100: "100 Hz",
    250: "250",
    500: "500",
    1000: "1 kHz",
    2500: "2.5",
    5000: "5",
    10000: "10",
}
STEREO_KBPS = 32.0  # below this rate per channel, mono sounds better than stereo
DEFAULT_QUALITY = media.Quality()
SMOOTH_STEPS = 50  # over which the loss of a long training is averaged


@dataclass(frozen=True)
class Track:
    """A track of the player.

    Attributes:
        name, note: label, and a description in one phrase.
        file: file name for downloads, without extension.
        waveform: `[channel, time]`, at the recording's rate.
        run: the run that it belongs to.
        notes: notes drawn over its spectrogram. None: the player's.
        together: whether it plays from the start, together with all other such tracks.
        rest: whether it is what a run leaves over: it has no picture and no number key, is shown
            when asked for, and is decoded when it is heard.
    """

    name: str
    note: str
    file: str
    waveform: np.ndarray
    run: str | None = None
    notes: Sequence[Note] | None = None
    together: bool = False
    rest: bool = False


def read_stem(path: Path, max_seconds: float = MAX_SECONDS) -> tuple[np.ndarray, int]:
    """Beginning of a stem, float32 `[channel, time]`, and its sample rate in Hz."""
    with soundfile.SoundFile(path) as file:
        return file.read(
            round(max_seconds * file.samplerate), dtype="float32", always_2d=True
        ).T, file.samplerate


def player(
    tracks: Sequence[Track],
    sample_rate: int,
    notes: Sequence[Note] = (),
    mask: tuple[np.ndarray, np.ndarray] | None = None,
    seconds: float = 0.0,
    share: float = 1.0,
    wave_height: int = 56,
    picture_height: int = 112,
    quality: media.Quality = DEFAULT_QUALITY,
) -> dict[str, Any]:
    """Content of a player for the template.

    Args:
        tracks: of equal length; the keys 1 to 9 select them in this order.
        sample_rate: of all tracks, in Hz.
        notes: drawn over the spectrograms.
        mask: target and mixture, whose ratio is shown as mask.
        seconds: length of the tracks.
        share: the player's share of the audio that a page may contain.
        wave_height, picture_height: in pixels of the page.
        quality: of the whole page's sound, and of the pictures.
    """
    pictures = media.Pictures(sample_rate, quality.picture)
    waveforms = [_for_ears(track.waveform) for track in tracks]
    waveforms = [waveform * media.common_scale(waveforms) for waveform in waveforms]
    channels = sum(len(waveform) for waveform in waveforms)
    kbps = media.bit_rate(seconds * channels / share, quality.audio_bytes)
    if kbps < STEREO_KBPS:
        waveforms = [waveform.mean(axis=0, keepdims=True) for waveform in waveforms]
        kbps = media.bit_rate(seconds * len(waveforms) / share, quality.audio_bytes)
    with ThreadPoolExecutor(processor.cores()) as pool:  # the encoder releases the GIL
        encoding = pool.map(lambda waveform: media.opus(waveform, sample_rate, kbps), waveforms)
        powers = [
            None if track.rest else pictures.power(waveform)
            for track, waveform in zip(tracks, waveforms, strict=True)
        ]
        encoded = list(encoding)
    top = max(next(power.max() for power in powers if power is not None), 1e-12)
    made = zip(tracks, waveforms, encoded, powers, strict=True)
    numbers = itertools.count(1)
    lanes = [
        _lane(0 if track.rest else next(numbers), track, seconds, pictures)
        | {
            "audio": media.data_uri(sound, "audio/ogg"),
            "outline": media.outline(waveform, quality.outline_points),
            "picture": None if power is None else pictures.spectrogram(power, top),
        }
        for track, waveform, sound, power in made
    ]
    if mask is not None:
        part, whole = (pictures.power(_for_ears(signal)) for signal in mask)
        lanes.insert(3, _mask_lane(pictures.mask(part, whole)))
    score = score_path(notes, pictures, seconds)
    shown = ("name", "file", "audio", "outline", "run", "score", "together", "rest")
    heights = (abs(value) for lane in lanes for value in lane["outline"] or ())
    return {
        "duration": seconds,
        "score": score or any(lane.get("score") for lane in lanes),
        "lanes": lanes,
        "rests": any(lane.get("rest") for lane in lanes),
        "ticks": [
            (text, round(100 * pictures.height(hz), 1))
            for hz, text in TICKS_HZ.items()
            if hz < 0.9 * pictures.highest_hz
        ],
        "highest": f"{pictures.highest_hz / 1000:g}",
        "wave_height": wave_height,
        "picture_height": picture_height,
        "for_script": {
            "duration": seconds,
            "score": score,
            "wave_height": wave_height,
            "highest": max(heights, default=1) or 1,
            "lanes": [{name: lane.get(name) for name in shown} for lane in lanes],
        },
    }


def _lane(number: int, track: Track, seconds: float, pictures: media.Pictures) -> dict[str, Any]:
    """What the template wants of a track, but for its sound and pictures."""
    notes = track.notes
    return {
        "name": track.name,
        "note": track.note,
        "file": track.file,
        "run": track.run,
        "number": number if 1 <= number <= 9 else None,
        "rest": track.rest,
        "alt": f"Spectrogram of {track.name}",
        "score": None if notes is None else score_path(notes, pictures, seconds),
        "together": track.together,
    }


def _mask_lane(picture: str) -> dict[str, Any]:
    """A lane that only shows: the mask."""
    return {
        "name": "Mask",
        "note": "the share of the recording that went into the target: none is dark, all is yellow",
        "picture": picture,
        "alt": "The mask over time and frequency",
    } | dict.fromkeys(("audio", "outline", "run", "number", "rest"))


def address(path: Path, place: Path) -> str:
    """Link to a file from a page in the folder `place`."""
    try:
        return quote(Path(os.path.relpath(path, place)).as_posix())
    except ValueError:  # on another drive, under Windows
        return path.resolve().as_uri()


def size(file: Path) -> str:
    """Size of a file as text, in MB or kB."""
    bytes_ = file.stat().st_size
    return f"{bytes_ / 1e6:.1f} MB" if bytes_ >= 1e5 else f"{bytes_ / 1e3:.1f} kB"


def score_path(notes: Sequence[Note], pictures: media.Pictures, seconds: float) -> str:
    """The notes' fundamentals as an SVG path of boxes one semitone high.

    Coordinates are seconds, and the distance from the top as a share of the picture's height.
    """
    semitone = pictures.height(media.LOWEST_HZ * 2 ** (1 / 12))
    boxes = []
    for note in notes:
        top = 1 - pictures.height(pitch_hz(note.pitch)) - semitone / 2
        if note.start_seconds < seconds and 0 < top < 1:
            length = min(note.end_seconds, seconds) - note.start_seconds
            boxes.append(
                f"M{note.start_seconds:.3f} {top:.4f}h{length:.3f}v{semitone:.4f}h{-length:.3f}z"
            )
    return "".join(boxes)


def charts(folders: Mapping[str, Sequence[Path]]) -> list[dict[str, Any]]:
    """Training curves of runs, by name; of several runs with one name, their mean and range.

    One chart shows the loss. The other shows what was measured during training: SI-SDR on
    validation mixes and on the recording or, without a reference, the agreement.
    """
    losses: list[dict[str, Any]] = []
    qualities: list[dict[str, Any]] = []
    for index, (name, runs) in enumerate(folders.items()):
        series = functools.partial(_series, colour=index if name else None)
        measured = [_points(folder) for folder in runs]
        points = {column: [found[column] for found in measured] for column in measured[0]}
        if name:
            losses += series(name, *map(_smooth, points["loss"]))
        else:
            loss = points["loss"][0]
            smooth = _smooth(loss)
            losses += series("each step", loss, faint=smooth != loss)
            losses += series("smoothed", smooth) if smooth != loss else []
            losses += series("on validation mixes", *points["val_loss"])
            qualities += series("on validation mixes", *points["val_si_sdr"])
        on_recording = series(name or "on the recording", *points["si_sdr"])
        qualities += on_recording
        if not (name and on_recording):
            qualities += series(f"{name} agreement with the score".strip(), *points["agreement"])
    charts: list[dict[str, Any]] = []
    if losses:
        charts.append(
            {"title": "Loss", "note": "lower is better", "x": "step", "y": "loss", "series": losses}
        )
    if qualities:
        charts.append(
            {
                "title": "SI-SDR during training",
                "note": "higher is better",
                "x": "step",
                "y": "dB",
                "series": qualities,
            }
        )
    for chart in charts:
        ends = "; ".join(
            f"{line['name']}: from {line['y'][0]:.3g} to {line['y'][-1]:.3g}"
            for line in chart["series"]
        )
        chart["description"] = f"{chart['title']} over {chart['x']}s. {ends}"
    return charts


def write(path: Path, template: str, **content: Any) -> Path:
    """Render a template of the assets into a file."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "assets"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["rounded"] = rounded
    environment.globals |= {"asset": _asset, "version": bespoke.__version__}
    with atomic_path(path) as temporary:
        temporary.write_text(environment.get_template(template).render(**content), encoding="utf-8")
    return path


def _losses(folder: Path) -> list[dict[str, float | None]]:
    """Loss of every step, or of the steps that a CSV logger wrote."""
    rows = read_csv(folder / "training.csv")
    if rows:
        return rows
    names = {
        "step": "step",
        "train/loss": "loss",
        "val/loss": "val_loss",
        "val/si_sdr": "val_si_sdr",
    }
    files = sorted(folder.glob("csv/version_*/metrics.csv"))
    return [
        {names[name]: value for name, value in row.items() if name in names}
        for file in files
        for row in read_csv(file)
    ]


def _points(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """What was measured while a run trained: value by step, for each column."""
    training, curve = _losses(folder), read_csv(folder / "curve.csv")
    found = {
        "loss": training,
        "val_loss": training,
        "val_si_sdr": training,
        "si_sdr": curve,
        "agreement": curve,
    }
    return {
        column: [(row["step"], row[column]) for row in rows if row.get(column) is not None]
        for column, rows in found.items()
    }


def _series(
    name: str,
    *curves: Sequence[tuple[float, float]],
    faint: bool = False,
    colour: int | None = None,
) -> list[dict[str, Any]]:
    """One line: of several curves the mean and the range, at the steps that all of them have."""
    found = [dict(curve) for curve in curves if curve]
    if not found:
        return []
    steps = [step for step in found[0] if all(step in curve for curve in found)]
    values = [[curve[step] for curve in found] for step in steps]
    if not steps:
        return []
    line = {"name": name, "x": steps, "faint": faint, "colour": colour}
    line["y"] = [float(np.mean(each)) for each in values]
    if len(found) > 1:
        line |= {"low": list(map(min, values)), "high": list(map(max, values))}
    return [line]


def _smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Moving average over the last steps, of the first ones over those that there are.

    It is over a tenth of the steps, at most `SMOOTH_STEPS`, and has no more points than are
    visible. Fewer than 20 steps are left as they are.
    """
    width = min(SMOOTH_STEPS, len(points) // 10)
    if width < 2:
        return points
    total = np.cumsum([0.0, *(value for _, value in points)])
    every = max(1, len(points) // 500)
    smooth = []
    for end in sorted({*range(1, len(points), every), len(points)}):
        start = max(0, end - width)
        smooth.append((points[end - 1][0], float(total[end] - total[start]) / (end - start)))
    return smooth


def _asset(name: str) -> str:
    return Markup((Path(__file__).parent / "assets" / name).read_text(encoding="utf-8"))


def _for_ears(waveform: np.ndarray) -> np.ndarray:
    """Reduce to one channel if all channels are equal or there are more than two."""
    alike = len(waveform) == 1 or (len(waveform) == 2 and np.array_equal(waveform[0], waveform[1]))
    return (
        waveform[:1]
        if alike
        else waveform
        if len(waveform) == 2
        else waveform.mean(axis=0, keepdims=True)
    )
