"""A run's page: one file that plays, shows and explains what the run made, and needs nothing else."""

import csv
import functools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import soundfile
import yaml

import bespoke
from bespoke import media
from bespoke.audio import atomic_path
from bespoke.evaluate import gap_closed
from bespoke.score import Note, program_name
from bespoke.song import Song
from bespoke.synth import DRUM_BANK, Patch, render

MAX_SECONDS = 600  # of a recording that a page plays; the stems hold all of it
MAX_PATCHES = 3  # synthesized targets that a page plays
TICKS_HZ = {100: "100 Hz", 250: "250", 500: "500", 1000: "1 kHz", 2500: "2.5", 5000: "5", 10000: "10"}
STEREO_KBPS = 32.0  # with less for a channel, one channel sounds better than two
SMOOTH_STEPS = 50  # of the loss, on longer trainings
FADED_DB = -30.0  # below this the target is as good as gone
STAGES = {
    "load": "read the song",
    "align": "align the score",
    "estimate": "first estimate",
    "render": "synthesize",
    "train": "train",
    "separate": "separate",
    "evaluate": "evaluate",
}
FILES = {
    "target.wav": "the target, as exact as it was made (32-bit float)",
    "residual.wav": "the recording without it; both add up to the recording",
    "aligned.mid": "the score, in time with the recording",
    "alignment.png": "the notes before and after alignment",
    "metrics.json": "all figures",
    "config.yaml": "all settings",
    "training.csv": "the loss of every step",
    "curve.csv": "how good the separation was during training",
    "mixes.json": "what was drawn for the first training mixes",
    "train.log": "what the run said",
    "checkpoints/last.ckpt": "the network; scripts/separate.py applies it again",
}
INSIDE = {"aligned.mid": "audio/midi", "metrics.json": "application/json", "config.yaml": "text/yaml", "training.csv": "text/csv"}


@dataclass(frozen=True)
class Track:
    """What a lane of the player plays: `waveform` `[channel, time]` at the recording's rate; `run` is the run that it belongs to."""

    name: str
    note: str
    file: str
    waveform: np.ndarray
    run: str | None = None


def write_report(folder: Path, song: Song, metrics: Mapping[str, Any]) -> Path:
    """Write `report.html` for a finished run.

    Args:
        folder: of the run, with its stems.
        song: its target is aligned, if the run aligned it.
        metrics: as in metrics.json.
    """
    target, residual = (read_stem(folder / f"{name}.wav")[0] for name in ("target", "residual"))
    tracks = [
        Track("Mixture", "the recording", "mixture", target + residual),
        Track("Target", "what the run separated", "target", target),
        Track("Residual", "the recording without the target", "residual", residual),
        *_known(song, target.shape[-1]),
        *_synthesized(song, metrics, target + residual),
    ]
    seconds = target.shape[-1] / song.sample_rate
    notes = song.target.part.notes if song.target and not song.target.part.is_drum else ()  # a drum's number is no pitch
    warnings = [*metrics.get("warnings", []), *doubts(metrics, target, target + residual)]
    if metrics["song_seconds"] > seconds + 0.1:
        warnings.append(f"This page plays the first {MAX_SECONDS // 60} minutes; the stems in the run's folder are whole.")
    return write(
        folder / "report.html",
        "report.html.j2",
        metrics=metrics,
        folder=folder.name,
        date=datetime.now().strftime("%Y-%m-%d %H:%M"),
        target_name=_target_name(song),
        lead=_lead(metrics),
        warnings=warnings,
        tiles=_tiles(metrics),
        player=player(tracks, song.sample_rate, notes, mask=(target, target + residual), seconds=seconds),
        charts=charts({"": folder}),
        rows=_rows(metrics),
        stages=_stages(metrics["seconds"]),
        cost=_cost(metrics),
        files=_files(folder),
        config=(folder / "config.yaml").read_text(encoding="utf-8"),
        facts=yaml.safe_dump({name: metrics.get(name) for name in ("versions", "hashes")}, sort_keys=False),
    )


def read_stem(path: Path, max_seconds: float = MAX_SECONDS) -> tuple[np.ndarray, int]:
    """The beginning of a stem, float32 `[channel, time]`, and its rate in Hz."""
    with soundfile.SoundFile(path) as file:
        return file.read(round(max_seconds * file.samplerate), dtype="float32", always_2d=True).T, file.samplerate


def player(
    tracks: Sequence[Track],
    sample_rate: int,
    notes: Sequence[Note] = (),
    mask: tuple[np.ndarray, np.ndarray] | None = None,
    seconds: float = 0.0,
    share: float = 1.0,
    wave_height: int = 56,
    picture_height: int = 112,
) -> dict[str, Any]:
    """What the template's player shows and plays.

    Args:
        tracks: of one length; in that order they have the numbers 1 to 9 of the keyboard.
        sample_rate: of all, in Hz.
        notes: drawn over the spectrograms.
        mask: target and mixture, whose ratio is shown.
        seconds: the tracks' length.
        share: of the sound that a page may hold.
        wave_height, picture_height: in pixels of the page.
    """
    pictures = media.Pictures(sample_rate)
    waveforms = [_for_ears(track.waveform) for track in tracks]
    waveforms = [waveform * media.common_scale(waveforms) for waveform in waveforms]
    kbps = media.bit_rate(seconds * sum(len(waveform) for waveform in waveforms) / share)
    if kbps < STEREO_KBPS:
        waveforms = [waveform.mean(axis=0, keepdims=True) for waveform in waveforms]
        kbps = media.bit_rate(seconds * len(waveforms) / share)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the encoder leaves Python alone
        encoded = list(pool.map(lambda waveform: media.opus(waveform, sample_rate, kbps), waveforms))
    powers = [pictures.power(waveform) for waveform in waveforms]
    top = max(powers[0].max(), 1e-12)
    lanes = []
    for number, (track, waveform, sound, power) in enumerate(zip(tracks, waveforms, encoded, powers, strict=True), 1):
        lanes.append(
            {
                "name": track.name,
                "note": track.note,
                "file": track.file,
                "run": track.run,
                "number": number if number <= 9 else None,
                "audio": media.data_uri(sound, "audio/ogg"),
                "outline": media.outline(waveform),
                "picture": pictures.spectrogram(power, top),
                "alt": f"Spectrogram of {track.name}",
            }
        )
    if mask is not None:
        picture = pictures.mask(*(pictures.power(_for_ears(signal)) for signal in mask))
        lanes.insert(
            3,
            {
                "name": "Mask",
                "note": "the share of the recording that went into the target: none is dark, all is yellow",
                "picture": picture,
                "alt": "The mask over time and frequency",
            }
            | dict.fromkeys(("audio", "outline", "run", "number")),
        )
    score = score_path(notes, pictures, seconds)
    ticks = [(text, round(100 * pictures.height(hz), 1)) for hz, text in TICKS_HZ.items() if hz < 0.9 * pictures.highest_hz]
    for_script = {
        "duration": seconds,
        "score": score,
        "wave_height": wave_height,
        "highest": max((abs(value) for lane in lanes for value in lane["outline"] or ()), default=1) or 1,
        "lanes": [{name: lane.get(name) for name in ("name", "file", "audio", "outline", "run")} for lane in lanes],
    }
    return {
        "duration": seconds,
        "score": score,
        "lanes": lanes,
        "ticks": ticks,
        "highest": f"{pictures.highest_hz / 1000:g}",
        "wave_height": wave_height,
        "picture_height": picture_height,
        "for_script": for_script,
    }


def charts(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The training curves of runs, by name: the loss, and where they were measured the losses and SI-SDR on the way."""
    losses, qualities = [], []
    for index, (name, folder) in enumerate(folders.items()):
        training, curve = _losses(folder), read_csv(folder / "curve.csv")
        series = functools.partial(_series, colour=index if name else None)
        found = {"loss": training, "val_loss": training, "val_si_sdr": training, "si_sdr": curve}
        points = {column: [(row["step"], row[column]) for row in rows if row.get(column) is not None] for column, rows in found.items()}
        if name:
            losses += series(name, _smooth(points["loss"]))
        else:
            smooth = _smooth(points["loss"])
            losses += series("each step", points["loss"], faint=smooth != points["loss"])
            losses += series("smoothed", smooth) if smooth != points["loss"] else []
            losses += series("on mixes held back", points["val_loss"])
            qualities += series("on mixes held back", points["val_si_sdr"])
        qualities += series(name or "on the recording", points["si_sdr"])
    found = []
    if losses:
        found.append({"title": "Loss", "note": "lower is better", "x": "step", "y": "loss", "series": losses})
    if qualities:
        found.append({"title": "SI-SDR on the way", "note": "higher is better", "x": "step", "y": "dB", "series": qualities})
    for chart in found:
        ends = "; ".join(f"{series['name']}: from {series['y'][0]:.3g} to {series['y'][-1]:.3g}" for series in chart["series"])
        chart["description"] = f"{chart['title']} over {chart['x']}s. {ends}"
    return found


def doubts(metrics: Mapping[str, Any], target: np.ndarray, mixture: np.ndarray) -> list[str]:
    """What the figures themselves say against a result, in plain words."""
    found = []
    if (metrics.get("si_sdr_improvement") or 0) < 0:
        found.append(
            f"The target is further from the true stem than the recording itself is ({metrics['si_sdr_improvement']:.1f} dB): this"
            " separation is worse than doing nothing. As a rule recipe=auto, or background=synth with the other parts' scores, does better."
        )
    energies = [float(np.square(signal, dtype=np.float64).mean()) for signal in (target, mixture)]
    level_db = 10 * np.log10(max(energies[0], 1e-20) / max(energies[1], 1e-20))
    if level_db < FADED_DB:
        found.append(f"The target is {-level_db:.0f} dB below the recording: next to nothing was separated.")
    return found


def read_csv(path: Path) -> list[dict[str, float | None]]:
    """A table of numbers; no rows where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(text) if text else None for name, text in row.items()} for row in csv.DictReader(file)]


def write(path: Path, template: str, **content: Any) -> Path:
    """Fill a template of the assets."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bespoke", "assets"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals |= {"asset": _asset, "version": bespoke.__version__}
    with atomic_path(path) as temporary:
        temporary.write_text(environment.get_template(template).render(**content), encoding="utf-8")
    return path


def _asset(name: str) -> str:
    from markupsafe import Markup

    return Markup((Path(__file__).parent / "assets" / name).read_text(encoding="utf-8"))


def _for_ears(waveform: np.ndarray) -> np.ndarray:
    """One channel where all are the same, or where there are more than two."""
    alike = len(waveform) == 1 or (len(waveform) == 2 and np.array_equal(waveform[0], waveform[1]))
    return waveform[:1] if alike else waveform if len(waveform) == 2 else waveform.mean(axis=0, keepdims=True)


def _fit(waveform: np.ndarray, samples: int) -> np.ndarray:
    waveform = waveform[:, :samples]
    return np.pad(waveform, ((0, 0), (0, samples - waveform.shape[-1])))


def _known(song: Song, samples: int) -> list[Track]:
    found = []
    if song.reference is not None:
        found.append(Track("Reference", "the true stem, for comparison only", "reference", song.reference[:, :samples]))
    if song.estimate is not None:
        found.append(
            Track(
                "First estimate", "what the network made before it was trained on this song", "first_estimate", song.estimate[:, :samples]
            )
        )
    return found


def _synthesized(song: Song, metrics: Mapping[str, Any], mixture: np.ndarray) -> list[Track]:
    """What was trained on, and the score as a piano plays it, a little below the recording's level."""
    rate = song.sample_rate
    renders = song.render_target(rate)
    patches = song.target.patches if song.target else (None,)
    more = f"; one of {len(renders)}" if len(renders) > 1 else ""
    tracks = []
    for index, (waveform, patch) in enumerate(zip(renders[:MAX_PATCHES], patches, strict=False), 1):
        sound = f"program {patch.program}, {patch.soundfont.path.stem}" if patch else "your own render"
        name = f"Synthesized {index}" if len(renders) > 1 else "Synthesized"
        tracks.append((name, f"trained on, before augmentation: {sound}{more}", f"synthesized_{index}", waveform))
    if song.target:
        aligned = metrics.get("alignment", {}).get("used")
        piano = Patch(0, DRUM_BANK if song.target.part.is_drum else 0)
        name = "Aligned score" if aligned else "Score"
        note = "as a piano plays it" if aligned else "as given, not aligned, as a piano plays it"
        tracks.append((name, note, "score", render(song.target.part.notes, piano, rate)))
    return [Track(name, note, file, media.at_level(_fit(waveform, mixture.shape[-1]), mixture)) for name, note, file, waveform in tracks]


def score_path(notes: Sequence[Note], pictures: media.Pictures, seconds: float) -> str:
    """The notes' fundamentals as an SVG path, in seconds and in the picture's height from the top; a note is a semitone high."""
    semitone = pictures.height(media.LOWEST_HZ * 2 ** (1 / 12))
    boxes = []
    for note in notes:
        top = 1 - pictures.height(440 * 2 ** ((note.pitch - 69) / 12)) - semitone / 2
        if note.start_seconds < seconds and 0 < top < 1:
            length = min(note.end_seconds, seconds) - note.start_seconds
            boxes.append(f"M{note.start_seconds:.3f} {top:.4f}h{length:.3f}v{semitone:.4f}h{-length:.3f}z")
    return "".join(boxes)


def _losses(folder: Path) -> list[dict[str, float | None]]:
    """The loss of every step, or of those that a CSV logger noted."""
    rows = read_csv(folder / "training.csv")
    if rows:
        return rows
    names = {"step": "step", "train/loss": "loss", "val/loss": "val_loss", "val/si_sdr": "val_si_sdr"}
    files = sorted(folder.glob("csv/version_*/metrics.csv"))
    return [{names[name]: value for name, value in row.items() if name in names} for file in files for row in read_csv(file)]


def _series(name: str, points: Sequence[tuple[float, float]], faint: bool = False, colour: int | None = None) -> list[dict[str, Any]]:
    if not points:
        return []
    x, y = zip(*points, strict=True)
    return [{"name": name, "x": x, "y": y, "faint": faint, "colour": colour}]


def _smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A running mean over the last steps, at no more points than can be seen."""
    if len(points) < 2 * SMOOTH_STEPS:
        return points
    total = np.cumsum([0.0, *(value for _, value in points)])
    every = max(1, len(points) // 500)
    chosen = range(SMOOTH_STEPS, len(points) + 1, every)
    return [(points[index - 1][0], float(total[index] - total[index - SMOOTH_STEPS]) / SMOOTH_STEPS) for index in chosen]


def _target_name(song: Song) -> str:
    if song.target is None:
        return "the target"
    return song.target.part.name or program_name(song.target.part)


def _lead(metrics: Mapping[str, Any]) -> str:
    how = f"recipe {metrics['recipe']}, {metrics['steps']} steps, {metrics['device']}, seed {metrics['seed']}"
    return f"{metrics['song_seconds']:.1f} seconds of audio; {how}."


def _tiles(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    tiles = []

    def tile(name: str, value: str, unit: str, says: str, tone: str = "", share: float | None = None) -> None:
        tiles.append({"name": name, "value": value, "unit": unit, "says": says, "tone": tone, "share": share})

    if metrics.get("si_sdr") is not None:
        gain, closed = metrics["si_sdr_improvement"], gap_closed(*(metrics[name] for name in ("si_sdr", "si_sdr_mixture", "si_sdr_oracle")))
        tile(
            "Improvement",
            f"{gain:+.2f}",
            "dB",
            "in SI-SDR: how much nearer to the true stem than the recording",
            "good" if gain > 0 else "bad",
        )
        if closed is not None:
            tile(
                "Of what is possible",
                f"{100 * closed:.0f}",
                "%",
                "from the recording (0) to the oracle mask (100)",
                share=min(max(closed, 0), 1),
            )
        tile("Target", f"{metrics['si_sdr']:.2f}", "dB", "SI-SDR of the result")
        tile("Recording", f"{metrics['si_sdr_mixture']:.2f}", "dB", "SI-SDR before")
        tile("Oracle mask", f"{metrics['si_sdr_oracle']:.2f}", "dB", "the most that masking can give")
    else:
        tile("Metrics", "none", "", "they need the true stem (song.reference): listen instead")
    if "alignment" in metrics:
        tile("Alignment", f"{metrics['alignment']['confidence']:.2f}", "of 1", "how sure the score's place in the recording is")
    tile("Time", f"{metrics['seconds']['total']:.0f}", "s", f"{metrics['steps']} training steps")
    return tiles


def _rows(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    says = {
        "si_sdr": ("SI-SDR", "dB", "of the target against the true stem, level ignored"),
        "si_sdr_mixture": ("SI-SDR of the recording", "dB", "what it was before"),
        "si_sdr_improvement": ("improvement", "dB", "the difference"),
        "si_sdr_oracle": ("oracle mask", "dB", "the mask made from the true stem"),
        "steps": ("steps", "", "of training"),
        "resumed_from_step": ("begun at step", "", "more than 0 where a run was continued"),
        "peak_memory_mb": ("memory", "MB", "the most that was held"),
        "threads": ("threads", "", "of the CPU"),
    }
    values = {
        name: value for name, value in metrics.items() if name in says and value is not None and (name, value) != ("resumed_from_step", 0)
    }
    rows = [{"name": says[name][0], "value": _number(value, says[name][1]), "says": says[name][2]} for name, value in values.items()]
    alignment = metrics.get("alignment", {})
    if alignment:
        rows += [
            {"name": "alignment", "value": f"{alignment['confidence']:.2f}", "says": "confidence, from 0 to 1"},
            {"name": "tempo factor", "value": f"{alignment['tempo_factor']:.3f}", "says": "the score's times were multiplied by it"},
            {"name": "offset", "value": f"{alignment['offset_seconds']:.2f} s", "says": "and moved by it"},
        ]
    return rows


def _number(value: float, unit: str) -> str:
    text = f"{value:,.2f}" if isinstance(value, float) and unit == "dB" else f"{value:,.0f}"
    return f"{text} {unit}".strip()


def _stages(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    longest = max(seconds.get(stage, 0) for stage in STAGES) or 1
    return [
        {"name": text, "percent": round(100 * seconds[stage] / longest, 1), "seconds": f"{seconds[stage]:.1f}"}
        for stage, text in STAGES.items()
        if stage in seconds
    ]


def _cost(metrics: Mapping[str, Any]) -> str:
    rate = metrics["steps"] / seconds if (seconds := metrics["seconds"].get("train")) else 0
    return f"{rate:.1f} steps a second on {metrics['device']} ({metrics['precision']}, {metrics['threads']} threads)."


def _files(folder: Path) -> list[dict[str, Any]]:
    files = []
    for name, what in FILES.items():
        path = folder / name
        if not path.is_file():
            continue
        address = media.data_uri(path.read_bytes(), INSIDE[name]) if name in INSIDE else name
        files.append(
            {
                "name": name,
                "short": path.name,
                "what": what,
                "address": address,
                "inside": name in INSIDE,
                "size": _size(path.stat().st_size),
            }
        )
    return files


def _size(bytes_: int) -> str:
    return f"{bytes_ / 1e6:.1f} MB" if bytes_ >= 1e5 else f"{bytes_ / 1e3:.1f} kB"
