"""What a musician asks for: a recording, a score, and the parts to separate.

A request is carried out by runs like those of train.py. The runs keep their folders beside the
stems (`SONG.bespoke`, or `SONG.bespoke-parts/PART`), so that the same request continues after an
interruption. Stems appear under their final names only when all is done. A request recognizes the
files that it has written: it does nothing twice, and replaces nothing that somebody else wrote or
changed.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import bespoke
from bespoke.cli import train
from bespoke.cli.launch import setting
from bespoke.cli.options import changes_in_options, in_options
from bespoke.cli.stems import Published, check_free, publish, write_shared
from bespoke.training import preflight
from bespoke.utils import progress
from bespoke.utils.configs import as_dict
from bespoke.utils.errors import BespokeError, one_sentence
from bespoke.utils.files import file_hash, read_json, write_json

_INPUTS = "inputs.json"
_STEMS = "stems.json"  # the hashes of a run's stems, as it made them
_PUBLISHED = "published.json"


@dataclass(frozen=True)
class Job:
    """One part of a request, which is one run.

    Attributes:
        label: what the stem's file name ends with.
        folder: of the run.
        own: settings of this part's run, by name.
        overrides: of the config that the runs of all parts have in common.
    """

    label: str
    folder: Path
    own: Mapping[str, Any]
    overrides: tuple[str, ...]

    @functools.cached_property
    def config(self) -> DictConfig:
        """The run's config.

        Raises:
            BespokeError: there is no such setting or choice.
        """
        return train.with_settings(_composed(self.overrides), self.own)

    def to_do(self, inputs: Mapping[str, str], force: bool) -> tuple[dict[str, Any] | None, bool]:
        """What is still to be done.

        Returns:
            The run's own settings, None where it is finished; and whether the folder's run is
            another, which is to be deleted first.

        Raises:
            BespokeError: another run has the folder, and may not be replaced.
        """
        fresh = dict(self.own)
        if not any((self.folder / name).exists() for name in preflight.RESULTS):
            return fresh, False
        known = read_json(self.folder / _INPUTS)
        if not known:
            raise BespokeError(
                f"{self.folder} has results that `bespoke separate` did not make, and will not"
                " replace: choose another --out."
            )
        changed = [f"the {role} is another" for role in inputs if inputs[role] != known.get(role)]
        changed += changes_in_options(preflight.changes(self.config, self.folder))
        if changed and not force:
            raise BespokeError(
                f"{self.folder} has results of other settings ({'; '.join(changed[:5])}): repeat"
                " those, choose another --out, or start over with --force."
            )
        if changed:
            return fresh, True
        finished = (self.folder / "metrics.json").is_file() and (
            self.checkpoint.is_file() or _are_whole(self.folder)
        )
        return None if finished else fresh | {"ckpt": "last"}, False

    @property
    def checkpoint(self) -> Path:
        """Of the network that made the stems."""
        name = (
            "best.ckpt" if "kept_step" in read_json(self.folder / "metrics.json") else "last.ckpt"
        )
        return self.folder / "checkpoints" / name

    def stems(self) -> dict[str, Path]:
        """The finished run's stems, as the run made them.

        Stems that were changed since, or are gone, are made again from the run's checkpoint. (A
        stem that is edited under its final name may be the same file as the run's own.)

        Raises:
            BespokeError: they cannot be.
        """
        stems = _stem_files(self.folder)
        if not _are_whole(self.folder):
            from bespoke.data.song import Song
            from bespoke.models.separator import load_separator

            _say(
                f"The stems in {self.folder} were changed since they were made: they are made"
                " anew, without training."
            )
            song = Song.load(
                as_dict(self.config.song),
                max(22050, self.config.data.sample_rate),
            )
            load_separator(self.checkpoint, _device(self.folder)).write_stems(
                song.source, *stems.values()
            )
            _note_stems(self.folder)
        return stems


def separate(
    jobs: Sequence[Job],
    out: Path,
    stem: str,
    inputs: Mapping[str, Path],
    *,
    suffix: str,
    exact: bool,
    force: bool,
) -> dict[str, Any]:
    """Carry out a request, as far as it is not done.

    Args:
        jobs: one for each part.
        out: folder of the stems.
        stem: what their names begin with.
        inputs: the `recording` and the `score`.
        suffix: of the stems' files.
        exact: whether they are to be float WAV, see `stems.publish`.
        force: whether stems, and runs with other settings, may be replaced.

    Returns:
        What there is now: `stems` by label, `residual`, the `report` or None, `runs` by label,
        `metrics` by label, and the `gain` of the stems.

    Raises:
        BespokeError: something the user can put right.
        KeyboardInterrupt: Ctrl-C; the same request goes on.
    """
    finals = {
        label: out / f"{stem}.{label}{suffix}"
        for label in [*(job.label for job in jobs), "residual"]
    }
    page = out / f"{stem}.report.html" if all(job.config.report for job in jobs) else None
    hashes = {
        "version of Bespoke": bespoke.__version__,
        **{role: file_hash(path) for role, path in inputs.items()},
    }
    plans = [(job, *job.to_do(hashes, force)) for job in jobs]
    outdated = [job for job, _, is_another in plans if is_another]
    todo = [(job, settings) for job, settings, _ in plans if settings is not None]
    published = Published(jobs[0].folder / _PUBLISHED)
    of = None if outdated else _identity(jobs)
    if of and len(jobs) == 1:
        _adopt(jobs[0].folder, finals if exact else {}, page, published, of)
    wanted = force or not all(published.is_current(final, of) for final in finals.values())
    page_wanted = page is not None and (force or not _is_up_to_date(page, published, of))
    taken = [final for final in finals.values() if wanted and not published.is_current(final, of)]
    if page is not None and page_wanted and not published.is_unchanged(page):
        taken.append(page)
    check_free(taken, force, [file for file in taken if file.name in published.files])
    if not wanted and not page_wanted:
        _say("This is done already: nothing was changed. --force replaces the stems.")
        return _result(jobs, finals, page, published)

    for job in outdated:
        shutil.rmtree(job.folder)
    for job, _ in todo:
        (job.folder / _STEMS).unlink(missing_ok=True)
        write_json(job.folder / _INPUTS, hashes)
    try:
        if todo:
            _run(todo, len(jobs) > 1)
    finally:
        for job, _ in todo:
            _tidy(job.folder)
    with _sources(jobs, jobs[0].folder.parent / "stems") as sources:
        of = _identity(jobs)
        assert of is not None  # they are all made now
        if wanted:
            note = functools.partial(published.note, of=of)
            with progress.stage("publish"):
                publish([*sources.values()], [*finals.values()], inputs["recording"], exact, note)
        if page is not None and page_wanted:
            with progress.stage("report"):
                _write_page(page, stem, sources, finals, jobs, published, of)
    return _result(jobs, finals, page, published)


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    """The config that the runs of all parts have in common."""
    return train.compose(overrides)


def _run(todo: Sequence[tuple[Job, Mapping[str, Any]]], is_of_several: bool) -> None:
    """Carry out what is to be done, of several parts all at once.

    Raises:
        BespokeError: some failed, and said why.
    """
    first, settings = todo[0]
    if not is_of_several:
        own = [setting(*item) for item in settings.items()]
        train.train([*own, *first.overrides, setting("hydra.run.dir", first.folder)])
        return
    parts = {job.label: settings for job, settings in todo}
    failed = train.train_parts(first.overrides, first.folder.parent, parts)
    if failed:
        raise BespokeError(
            f"No stems were written, as {' and '.join(failed)} failed, see above: the same command"
            " does what is left."
        )


def _identity(jobs: Sequence[Job]) -> str | None:
    """What tells these runs' stems from any others; None where they are not all made."""
    known = {}
    for job in jobs:
        if not (job.folder / _STEMS).is_file():
            if not _are_whole(job.folder):
                return None
            _note_stems(job.folder)
        known[job.label] = read_json(job.folder / _STEMS)
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _stem_files(folder: Path) -> dict[str, Path]:
    return {name: folder / f"{name}.wav" for name in ("target", "residual")}


def _note_stems(folder: Path) -> None:
    write_json(
        folder / _STEMS, {name: file_hash(file) for name, file in _stem_files(folder).items()}
    )


def _are_whole(folder: Path) -> bool:
    """Whether a run's stems are there, and as they were made where that is known."""
    known = read_json(folder / _STEMS)
    return all(
        file.is_file() and known.get(name) in (None, file_hash(file))
        for name, file in _stem_files(folder).items()
    )


def _adopt(
    folder: Path, finals: Mapping[str, Path], page: Path | None, published: Published, of: str
) -> None:
    """Recognize files that are the same as in the run's folder as our own.

    Such a file was put there by a request that was killed before it could note this, or by a
    version that noted nothing.
    """
    made = read_json(folder / _STEMS)
    for final, made_hash in zip(finals.values(), (made["target"], made["residual"]), strict=False):
        if final.name not in published.files and final.is_file() and file_hash(final) == made_hash:
            published.note(final, 1.0, of=of)
    report = folder / "report.html"
    if (
        page
        and page.name not in published.files
        and page.is_file()
        and report.is_file()
        and file_hash(page) == file_hash(report)
    ):
        published.note(page, of="")


def _is_up_to_date(page: Path, published: Published, of: str | None) -> bool:
    """Whether the page is there, of these stems, and what it links to is there."""
    known = published.files.get(page.name, {})
    return (
        page.is_file()
        and "of" in known
        and known["of"] == of
        and all((page.parent / link).exists() for link in known["links"])
    )


@contextlib.contextmanager
def _sources(jobs: Sequence[Job], shared: Path) -> Iterator[dict[str, Path]]:
    """The stems as float WAV, by label.

    The stems of a single part are the run's own. Those of several parts are made from the stems of
    their runs, in a folder that is removed at the end.
    """
    if len(jobs) == 1:
        stems = jobs[0].stems()
        yield {jobs[0].label: stems["target"], "residual": stems["residual"]}
        return
    for job in jobs:
        job.stems()
    shutil.rmtree(shared, ignore_errors=True)  # of a request that was killed
    try:
        with progress.stage("share"):
            stems = write_shared({job.label: job.folder for job in jobs}, shared)
        yield stems
    finally:
        shutil.rmtree(shared, ignore_errors=True)


def _write_page(
    page: Path,
    song: str,
    sources: Mapping[str, Path],
    finals: Mapping[str, Path],
    jobs: Sequence[Job],
    published: Published,
    of: str,
) -> None:
    """Write the song's page. One that cannot be made is a warning, and never costs the stems."""
    gain = published.files[next(iter(finals.values())).name].get("gain", 1.0)
    try:
        from bespoke.evaluation.report.song_page import (
            write_song_page,
        )  # with a template engine, which only this needs

        links = write_song_page(
            page, song, sources, finals, {job.label: job.folder for job in jobs}, gain, in_options
        )
    except Exception as error:
        _say(
            f"{page} could not be made ({type(error).__name__}: {one_sentence(error)}); the stems"
            " are whole."
        )
    else:
        published.note(
            page,
            of=of,
            links=[Path(os.path.relpath(link, page.parent)).as_posix() for link in links],
        )


def _result(
    jobs: Sequence[Job], finals: Mapping[str, Path], page: Path | None, published: Published
) -> dict[str, Any]:
    return {
        "stems": {job.label: str(finals[job.label]) for job in jobs},
        "residual": str(finals["residual"]),
        "report": str(page) if page and page.is_file() else None,
        "runs": {job.label: str(job.folder) for job in jobs},
        "metrics": {job.label: read_json(job.folder / "metrics.json") for job in jobs},
        "gain": published.files[finals["residual"].name].get("gain", 1.0),
    }


def _device(folder: Path) -> str:
    """Where a run's network was trained, if that is here."""
    import torch

    kind = str(read_json(folder / "metrics.json").get("device")).partition(":")[0]
    return kind if kind == "cuda" and torch.cuda.is_available() else "cpu"


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _tidy(folder: Path) -> None:
    """Leave nothing of a run that did not come to its first result."""
    if not any((folder / name).exists() for name in preflight.RESULTS):
        (folder / _INPUTS).unlink(missing_ok=True)
        for empty in (folder, folder.parent):
            try:
                empty.rmdir()
            except OSError:  # there is something else in it
                break
