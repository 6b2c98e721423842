"""Page of one run: its stems to listen to and to see, its metrics, warnings, settings and files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bespoke.data.song import Song
from bespoke.evaluation.metrics import gap_closed
from bespoke.evaluation.report import media
from bespoke.evaluation.report.page import MAX_SECONDS, Track, charts, player, size, write
from bespoke.evaluation.report.summary import clock
from bespoke.score.align import LOW_CONFIDENCE
from bespoke.score.crop import take_notes
from bespoke.score.midi import Note, program_name
from bespoke.score.synth import DRUM_BANK, Patch, render

MAX_PATCHES = 3  # most synthesized targets that a page plays
FADED_DB = -30.0  # below this level, next to nothing was separated
SILENT_DB = -100.0
STAGES = {
    "load": "read the song",
    "align": "align the score",
    "estimate": "first estimate",
    "patches": "choose patches",  # of runs of before
    "render": "synthesize",
    "train": "train",
    "separate": "separate",
    "evaluate": "evaluate",
}
FILES = {
    "target.wav": "the target, at full precision (32-bit float)",
    "residual.wav": "the recording without it; both add up to the recording",
    "aligned.mid": "the score, in time with the recording",
    "alignment.png": "the notes before and after alignment",
    "metrics.json": "all figures",
    "config.yaml": "all settings",
    "training.csv": "the loss of every step",
    "curve.csv": "the quality of the separation during training",
    "mixes.json": "the augmentation parameters of the first training mixes",
    "train.log": "the messages of the run",
    "checkpoints/last.ckpt": "the network; bespoke apply uses it again",
    "checkpoints/best.ckpt": "the network that made the stems: "
    "of the step that agrees most with the score",
}
INSIDE = {
    "aligned.mid": "audio/midi",
    "metrics.json": "application/json",
    "config.yaml": "text/yaml",
    "training.csv": "text/csv",
}


def write_report(folder: Path, song: Song, metrics: Mapping[str, Any]) -> Path:
    """Write `report.html` for a finished run.

    Args:
        folder: the run's folder, with its stems.
        song: its target is aligned if the run aligned it.
        metrics: contents of metrics.json.
    """
    target, residual = (
        song.read_stem(folder / f"{name}.wav", MAX_SECONDS) for name in ("target", "residual")
    )
    tracks = [
        Track("Mixture", "the recording", "mixture", target + residual),
        Track("Target", "what the run separated", "target", target),
        Track("Residual", "the recording without the target", "residual", residual),
        *_known(song, target.shape[-1]),
        *_synthesized(song, metrics, target + residual),
    ]
    seconds = target.shape[-1] / song.sample_rate
    # A drum note's number is not a pitch.
    notes = song.target.part.notes if song.target and not song.target.part.is_drum else ()
    level = level_db(target, target + residual)
    warnings = [*metrics.get("warnings", []), *doubts(metrics, level)]
    if metrics["song_seconds"] > seconds + 0.1:
        warnings.append(
            f"This page plays the first {MAX_SECONDS // 60} minutes; "
            "the stems in the run's folder are complete."
        )
    return write(
        folder / "report.html",
        "report.html.j2",
        metrics=metrics,
        folder=folder.name,
        date=datetime.now().strftime("%Y-%m-%d %H:%M"),
        target_name=_target_name(song),
        lead=_lead(metrics),
        warnings=warnings,
        tiles=tiles(metrics, song.target.part.notes if song.target else (), level),
        player=player(
            tracks, song.sample_rate, notes, mask=(target, target + residual), seconds=seconds
        ),
        charts=charts({"": [folder]}),
        rows=_rows(metrics),
        stages=_stages(metrics["seconds"]),
        cost=_cost(metrics),
        files=_files(folder),
        config=(folder / "config.yaml").read_text(encoding="utf-8"),
        facts=yaml.safe_dump(
            {name: metrics.get(name) for name in ("versions", "hashes")}, sort_keys=False
        ),
    )


def level_db(target: np.ndarray, mixture: np.ndarray) -> float:
    """Level of the target relative to the recording in dB, usually negative."""
    energies = [float(np.square(signal, dtype=np.float64).mean()) for signal in (target, mixture)]
    return float(10 * np.log10(max(energies[0], 1e-20) / max(energies[1], 1e-20)))


def doubts(metrics: Mapping[str, Any], level: float) -> list[str]:
    """Warnings that follow from the figures of a result.

    Args:
        metrics: contents of metrics.json.
        level: level of the target, from `level_db`.
    """
    found = []
    if (metrics.get("si_sdr_improvement") or 0) < 0:
        found.append(
            "The target is further from the true stem than the recording itself is "
            f"({metrics['si_sdr_improvement']:.1f} dB): this separation is worse than doing "
            "nothing. As a rule recipe=auto, or background=synth with the other parts' scores, "
            "does better."
        )
    if level < FADED_DB:
        found.append(
            f"The target is {-level:.0f} dB below the recording: next to nothing was separated."
        )
    return found


def _known(song: Song, samples: int) -> list[Track]:
    found = []
    if song.reference is not None:
        found.append(
            Track(
                "Reference",
                "the true stem, for comparison only",
                "reference",
                song.reference[:, :samples],
            )
        )
    if song.estimate is not None:
        found.append(
            Track(
                "First estimate",
                "what the network made before it was trained on this song",
                "first_estimate",
                song.estimate[:, :samples],
            )
        )
    return found


def _synthesized(song: Song, metrics: Mapping[str, Any], mixture: np.ndarray) -> list[Track]:
    """The training targets, and the score played by a piano, a little softer than the recording."""
    rate = song.sample_rate
    if song.target and song.seconds > MAX_SECONDS:  # render only the notes that the page plays
        played = take_notes(song.target.part.notes, [(0.0, MAX_SECONDS)])
        if not played:
            return []
        song = replace(
            song, target=replace(song.target, part=replace(song.target.part, notes=played))
        )
    renders = song.render_target(rate)
    patches = song.target.patches if song.target else (None,)
    more = f"; one of {len(renders)}" if len(renders) > 1 else ""
    tracks = []
    for index, (waveform, patch) in enumerate(zip(renders[:MAX_PATCHES], patches, strict=False), 1):
        sound = (
            f"program {patch.program}, {patch.soundfont.path.stem}" if patch else "your own render"
        )
        name = f"Synthesized {index}" if len(renders) > 1 else "Synthesized"
        tracks.append(
            (
                name,
                f"trained on, before augmentation: {sound}{more}",
                f"synthesized_{index}",
                waveform,
            )
        )
    if song.target:
        aligned = metrics.get("alignment", {}).get("used")
        piano = Patch(0, DRUM_BANK if song.target.part.is_drum else 0)
        name = "Aligned score" if aligned else "Score"
        note = "as a piano plays it" if aligned else "as given, not aligned, as a piano plays it"
        tracks.append((name, note, "score", render(song.target.part.notes, piano, rate)))
    return [
        Track(name, note, file, beside(mixture, waveform)) for name, note, file, waveform in tracks
    ]


def beside(mixture: np.ndarray, waveform: np.ndarray) -> np.ndarray:
    """Pad or cut a render to the mixture's length, and set its level 3 dB below the mixture's."""
    samples = mixture.shape[-1]
    waveform = waveform[:, :samples]
    return media.at_level(np.pad(waveform, ((0, 0), (0, samples - waveform.shape[-1]))), mixture)


def _target_name(song: Song) -> str:
    if song.target is None:
        return "the target"
    return song.target.part.name or program_name(song.target.part)


def _lead(metrics: Mapping[str, Any]) -> str:
    trained = f"{metrics['steps']} steps" if metrics["steps"] else "not trained on the song"
    return (
        f"{metrics['song_seconds']:.1f} seconds of audio; recipe {metrics['recipe']}, "
        f"{trained}, {metrics['device']}, seed {metrics['seed']}."
    )


def tiles(metrics: Mapping[str, Any], notes: Sequence[Note], level: float) -> list[dict[str, Any]]:
    """Cards at the top of a page: metrics of a target, as far as they are known.

    Args:
        metrics: of the run.
        notes: the target's, in seconds of the recording if the run aligned them.
        level: level of the target, from `level_db`.
    """
    found = []

    def tile(
        name: str, value: str, unit: str, says: str, tone: str = "", share: float | None = None
    ) -> None:
        found.append(
            {"name": name, "value": value, "unit": unit, "says": says, "tone": tone, "share": share}
        )

    if metrics.get("si_sdr") is not None:
        gain, closed = (
            metrics["si_sdr_improvement"],
            gap_closed(*(metrics[name] for name in ("si_sdr", "si_sdr_mixture", "si_sdr_oracle"))),
        )
        tile(
            "Improvement",
            f"{gain:+.2f}",
            "dB",
            "in SI-SDR: how much closer to the true stem than the recording",
            "good" if gain > 0 else "bad",
        )
        if closed is not None:
            tile(
                "Gap closed",
                f"{100 * closed:.0f}",
                "%",
                "from the recording (0) to the oracle mask (100)",
                share=min(max(closed, 0), 1),
            )
        tile("Target", f"{metrics['si_sdr']:.2f}", "dB", "SI-SDR of the result")
        tile("Recording", f"{metrics['si_sdr_mixture']:.2f}", "dB", "SI-SDR before")
        tile(
            "Oracle mask", f"{metrics['si_sdr_oracle']:.2f}", "dB", "the most that masking can give"
        )
    elif "si_sdr" in metrics:
        tile("Target", "silent", "", "there is nothing to measure", "bad")
    if where := place(metrics, notes):
        tile("Plays", where, "", f"where the {len(notes)} notes of the score are in the recording")
    if "alignment" in metrics:
        confidence = metrics["alignment"]["confidence"]
        tile("Alignment", f"{confidence:.2f}", "of 1", *trust(metrics["alignment"]))
    if level < FADED_DB:
        tile(
            "Level",
            "silent" if level < SILENT_DB else f"{level:.0f} dB",
            "",
            "next to nothing was found",
            "bad",
        )
    else:
        tile("Level", f"{level:+.1f}", "dB", "of the target, relative to the whole recording")
    total = clock(metrics["seconds"]["total"])
    if metrics["steps"]:
        tile(
            "Training",
            f"{metrics['steps']}",
            "steps",
            f"of training for this song, in {total} in all",
        )
    else:
        tile("Time", total, "", "in all, with the network as it ships")
    return found


def place(metrics: Mapping[str, Any], notes: Sequence[Note]) -> str:
    """Time span in which the target plays. Empty if its notes are not aligned."""
    if not notes or not metrics.get("alignment", {}).get("used"):
        return ""
    start = min(note.start_seconds for note in notes)
    end = max(note.end_seconds for note in notes)
    return f"{clock(start)} to {clock(end)}"


def trust(alignment: Mapping[str, Any]) -> tuple[str, str]:
    """What an alignment's confidence means: a phrase, and `good`, `bad` or neither (empty)."""
    if not alignment["used"]:
        return "the score does not fit: only its pitches were used", "bad"
    if alignment["confidence"] < LOW_CONFIDENCE:
        return "it is uncertain whether the notes are in time: listen before you trust it", ""
    if alignment.get("part_confidence", 1.0) < LOW_CONFIDENCE:
        return "this part was hardly found where the score puts it: listen before you trust it", ""
    if (alignment.get("along") or {}).get("apart"):
        return "the notes are in time with the recording, but for some passages", ""
    return "the notes are in time with the recording", "good"


def _rows(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    says = {
        "si_sdr": ("SI-SDR", "dB", "of the target against the true stem, at any level"),
        "si_sdr_mixture": ("SI-SDR of the recording", "dB", "what it was before"),
        "si_sdr_improvement": ("improvement", "dB", "the difference"),
        "si_sdr_oracle": ("oracle mask", "dB", "the mask made from the true stem"),
        "steps": ("steps", "", "of training"),
        "resumed_from_step": ("resumed from step", "", "more than 0 if a run was continued"),
        "peak_memory_mb": ("memory", "MB", "peak use"),
        "threads": ("threads", "", "of the CPU"),
    }
    values = {
        name: value
        for name, value in metrics.items()
        if name in says and value is not None and (name, value) != ("resumed_from_step", 0)
    }
    rows = [
        {"name": says[name][0], "value": _number(value, says[name][1]), "says": says[name][2]}
        for name, value in values.items()
    ]
    alignment = metrics.get("alignment", {})
    if alignment:
        rows += [
            {
                "name": "alignment",
                "value": f"{alignment['confidence']:.2f}",
                "says": "confidence, from 0 to 1",
            },
            *(
                {
                    "name": part["name"],
                    "value": f"{part['confidence']:.2f}",
                    "says": "confidence that this part is in the recording"
                    + ("" if part["used"] else "; it was not used"),
                }
                for part in _parts(alignment)
            ),
            {
                "name": "tempo factor",
                "value": f"{alignment['tempo_factor']:.3f}",
                "says": "the score's times were multiplied by this factor",
            },
            {
                "name": "offset",
                "value": f"{alignment['offset_seconds']:.2f} s",
                "says": "the score's times were then shifted by this",
            },
        ]
    return rows


def _parts(alignment: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The target and the other parts, as far as their confidence is known."""
    own = {"name": "target", "confidence": alignment.get("part_confidence"), "used": True}
    parts = [own, *alignment.get("others", ())]
    return [part for part in parts if part.get("confidence") is not None]


def _number(value: float, unit: str) -> str:
    text = f"{value:,.2f}" if isinstance(value, float) and unit == "dB" else f"{value:,.0f}"
    return f"{text} {unit}".strip()


def _stages(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    longest = max(seconds.get(stage, 0) for stage in STAGES) or 1
    return [
        {
            "name": text,
            "percent": round(100 * seconds[stage] / longest, 1),
            "seconds": f"{seconds[stage]:.1f}",
        }
        for stage, text in STAGES.items()
        if stage in seconds
    ]


def _cost(metrics: Mapping[str, Any]) -> str:
    where = f"{metrics['device']} ({metrics['precision']}, {metrics['threads']} threads)."
    if "train" not in metrics["seconds"]:
        return f"On {where}"
    rate = (metrics["steps"] - metrics.get("resumed_from_step", 0)) / max(
        metrics["seconds"]["train"], 1e-9
    )
    return f"{rate:.1f} steps a second on {where}"


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
                "size": size(path),
            }
        )
    return files
