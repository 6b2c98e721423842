"""Which songs settings are chosen on and which are kept for the test, and which cases are of one.

Cases of one song are not independent: they are in the same half, and count as one in intervals.
"""

import functools
from collections.abc import Mapping

import numpy as np
import yaml

from bespoke.data.song import ROOT

SPLIT = ROOT / "benchmark" / "split.yaml"
DEVELOPMENT, TEST = "development", "test"


def half_of(case: str) -> str | None:
    """The half of benchmark/split.yaml that a case is in, by its name.

    `development`, on which settings are chosen, `test`, or None for a song in neither.
    """
    return next((half for half, songs in _halves().items() if _found(case, songs)), None)


def song_of(case: str) -> str:
    """The song of a case: as the split names it, else the case's name without its last word.

    >>> song_of("fof_sectoid_feelings_guitar_stereo"), song_of("slakh_Track00001_S03")
    ('fof_sectoid_feelings', 'slakh_Track00001')
    """
    known = next((song for songs in _halves().values() if (song := _found(case, songs))), None)
    return known or case.removesuffix("_stereo").rpartition("_")[0] or case


def by_song(values: Mapping[str, float]) -> dict[str, float]:
    """The mean of a figure over the cases of each song.

    >>> by_song({"slakh_Track00001_S03": 1.0, "slakh_Track00001_S05": 3.0})
    {'slakh_Track00001': 2.0}
    """
    songs: dict[str, list[float]] = {}
    for case, value in values.items():
        songs.setdefault(song_of(case), []).append(value)
    return {song: float(np.mean(found)) for song, found in sorted(songs.items())}


@functools.cache
def _halves() -> Mapping[str, tuple[str, ...]]:
    halves = yaml.safe_load(SPLIT.read_text(encoding="utf-8"))
    return {half: tuple(songs) for half, songs in halves.items()}


def _found(case: str, songs: tuple[str, ...]) -> str | None:
    """The song that a case is an excerpt of, by their names."""
    return next((song for song in songs if case == song or case.startswith(f"{song}_")), None)
