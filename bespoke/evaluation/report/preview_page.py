"""Page of an augmentation policy: mixes that training would have, to hear and to see."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bespoke.data.augment import EffectParams
from bespoke.data.background import cut
from bespoke.data.mixer import Mix, chain
from bespoke.data.stream import ExampleDraw, MixStream
from bespoke.evaluation.report import media
from bespoke.evaluation.report.page import Track, player, write
from bespoke.score.midi import Note

ROLES = ("target", "background", "mix")
TITLE = "Bespoke preview"  # by which a page of ours is known
_CHAIN_SEED = 0


def write_preview(
    path: Path,
    stream: MixStream,
    mixes: int,
    title: str,
    lead: str,
    policy: Mapping[str, Any],
    warnings: Sequence[str] = (),
) -> Path:
    """Write the page of the first mixes of a stream.

    Args:
        path: file to write.
        stream: of training.
        mixes: how many of its mixes.
        title, lead: the page's heading and what follows it.
        policy: the policy's settings, as a config has them.
        warnings: what to know before training.
    """
    batches = -(-mixes // stream.batch_size)
    draws = [draw for index in range(batches) for draw in stream.draws(index)][:mixes]
    described = [facts for index in range(batches) for facts in stream.describe(index)][:mixes]
    stream.example(draws[0])  # the first one loads what is compiled
    began = time.process_time()
    made = [stream.example(draw) for draw in draws]
    cost_seconds = (time.process_time() - began) / mixes
    roles = [role for role in ROLES if policy.get(role)]
    share = 1 / (len(made) + len(roles))
    return write(
        path,
        "preview.html.j2",
        title=title,
        lead=lead,
        date=datetime.now().strftime("%Y-%m-%d %H:%M"),
        warnings=warnings,
        tiles=_tiles(stream, cost_seconds),
        drawn=[_row(facts) for facts in described],
        mixes=[
            _player(_tracks(stream, draw, mix, number), stream, draw.notes, share)
            for number, (draw, mix) in enumerate(zip(draws, made, strict=True), 1)
        ],
        effects={
            role: _player(_alone(stream, draws, made, role), stream, (), share) for role in roles
        },
        policy=yaml.safe_dump(dict(policy), sort_keys=False),
    )


def _tiles(stream: MixStream, cost_seconds: float) -> list[dict[str, Any]]:
    seconds = stream.samples / stream.sample_rate
    found = [
        ("Mixes", f"{seconds:g}", "s", f"long, mono, at {stream.sample_rate} Hz"),
        ("Cost", f"{1000 * cost_seconds:.1f}", "ms", "a mix, on one core of this machine"),
        ("Cost", f"{1000 * cost_seconds / seconds:.2f}", "ms", "for each second of a mix"),
        ("Patches", f"{len(stream.targets)}", "", "sounds of the target, of which one is drawn"),
    ]
    keys = ("name", "value", "unit", "says")
    return [{**dict(zip(keys, tile, strict=True)), "tone": "", "share": None} for tile in found]


def _plain(stream: MixStream, draw: ExampleDraw) -> dict[str, np.ndarray]:
    """The signals that are mixed, before the policy."""
    target = cut(stream.targets[draw.patch], draw.start, stream.samples)
    background = stream.background.segment(draw.background, stream.samples)
    return {"target": target, "background": background, "mix": target + background}


def _tracks(stream: MixStream, draw: ExampleDraw, mix: Mix, number: int) -> list[Track]:
    plain = _plain(stream, draw)
    tracks = [
        ("Mixture", "what the network hears", mix.mixture),
        ("Target", "the label: what it is to find", mix.target),
        ("Background", "the rest: target and background add up to the mixture", mix.background),
        ("Plain target", "before the policy, as loud as after it", plain["target"]),
        ("Plain background", "before the policy, as loud as after it", plain["background"]),
    ]
    loud = {"Plain target": mix.target, "Plain background": mix.background}
    return [
        Track(
            name,
            note,
            f"mix_{number}_{name.lower().replace(' ', '_')}",
            media.at_level(waveform, loud[name], 0.0) if name in loud else waveform,
        )
        for name, note, waveform in tracks
    ]


def _alone(
    stream: MixStream, draws: Sequence[ExampleDraw], made: Sequence[Mix], role: str
) -> list[Track]:
    """Each effect by itself, on the mix in which the target is loudest."""
    loudest = int(np.argmax([np.square(mix.target).mean() for mix in made]))
    plain = _plain(stream, draws[loudest])[role]
    tracks = [Track("Plain", "without any effect", f"{role}_plain", plain)]
    for effect in getattr(stream.policy, role):
        drawn = EffectParams(effect, _CHAIN_SEED)
        parameters = effect.parameters(plain, _CHAIN_SEED, stream.sample_rate)
        note = f"{effect.kind}, in {100 * effect.probability:.0f} % of mixes"
        said = _says(parameters)
        tracks.append(
            Track(
                effect.name,
                f"{note}; here {said}" if said else note,
                f"{role}_{effect.name}",
                chain(plain, (drawn,), stream.sample_rate),
            )
        )
    return tracks


def _player(
    tracks: Sequence[Track], stream: MixStream, notes: Sequence[Note], share: float
) -> dict[str, Any]:
    seconds = stream.samples / stream.sample_rate
    shown = [
        replace(note, start_seconds=max(0.0, note.start_seconds))
        for note in notes
        if note.end_seconds > 0 and note.start_seconds < seconds
    ]
    return player(tracks, stream.sample_rate, shown, seconds=seconds, share=share)


def _row(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "target_gain": f"{facts['target_gain_db']:+.1f} dB",
        "background_gain": f"{facts['background_gain_db']:+.1f} dB",
        "compressor": f"{facts['ratio']:g} : 1" if facts["ratio"] else "–",
        "effects": [
            {
                "place": f"{role}.{name}",
                "says": _says({key: parameters[key] for key in parameters if key != "seed"}),
            }
            for role in ROLES
            for name, parameters in facts[f"{role}_effects"].items()
        ],
    }


def _says(parameters: Mapping[str, Any]) -> str:
    """Drawn parameters as text.

    >>> _says({"cutoff_freq": 1234.567, "zero_phase": False, "seed": 3})
    'cutoff_freq 1235, zero_phase false'
    """
    return ", ".join(
        f"{name} {str(value).lower() if isinstance(value, bool | str) else f'{value:.4g}'}"
        for name, value in parameters.items()
        if name != "seed"
    )
