"""What a musician asks for: a recording, a score and the parts wanted, carried out by runs like train.py's.

The runs keep their folders beside the stems (`SONG.bespoke`, or `SONG.bespoke-parts/PART`), so that the same request goes on where it was
interrupted, and stems appear under their final names only when all is done.
"""

import concurrent.futures
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bespoke
from bespoke import preflight, progress, train
from bespoke.audio import file_hash, write_json
from bespoke.errors import BespokeError
from bespoke.launch import setting
from bespoke.options import changes_in_options
from bespoke.stems import check_free, publish, write_shared

_MEMORY_BYTES = 2_500_000_000  # that a run may need; several at once must fit
_INPUTS = "inputs.json"


@dataclass(frozen=True)
class Job:
    """One part of a request, which is one run.

    Attributes:
        label: what the stem's file name ends with.
        folder: of the run.
        overrides: of the run's config.
    """

    label: str
    folder: Path
    overrides: tuple[str, ...]

    def arguments(self, inputs: Mapping[str, str], force: bool) -> list[str] | None:
        """The command line of train.py for what is still to be done; None where nothing is.

        Raises:
            BespokeError: another run has the folder, and may not be replaced.
        """
        fresh = [*self.overrides, setting("hydra.run.dir", self.folder)]
        present = [name for name in preflight.RESULTS if (self.folder / name).exists()]
        if not present:
            return fresh
        known = _read(self.folder / _INPUTS)
        changed = [f"the {role} is another" for role in inputs if inputs[role] != known.get(role)]
        changed += changes_in_options(preflight.changes(train.compose(self.overrides), self.folder))
        if changed:
            if not force or not known:  # what has no inputs.json was not made by a request
                raise BespokeError(
                    f"{self.folder} has results of other settings ({'; '.join(changed[:5])}): repeat those, choose another --out, or start"
                    " over with --force."
                )
            shutil.rmtree(self.folder)
            return fresh
        return None if (self.folder / "metrics.json").exists() and "residual.wav" in present else [*fresh, "ckpt=last"]


def separate(
    jobs: Sequence[Job], out: Path, stem: str, inputs: Mapping[str, Path], *, suffix: str, exact: bool, force: bool, processes: int
) -> dict[str, Any]:
    """Carry out a request.

    Args:
        jobs: one for each part.
        out: folder of the stems.
        stem: what their names begin with.
        inputs: the `recording` and the `score`.
        suffix: of the stems' files.
        exact: whether they are to be float WAV, see `stems.publish`.
        force: whether stems, and runs with other settings, may be replaced.
        processes: how many runs at once, where there are several.

    Returns:
        What was made: `stems` by label, `residual`, `reports` and `runs` by label, `metrics` by label, and the `gain` of the stems.

    Raises:
        BespokeError: something the user can put right.
        KeyboardInterrupt: Ctrl-C; the same request goes on.
    """
    labels = [*(job.label for job in jobs), "residual"]
    finals = {label: out / f"{stem}.{label}{suffix}" for label in labels}
    pages = {job.label: out / (f"{stem}.report.html" if len(jobs) == 1 else f"{stem}.{job.label}.report.html") for job in jobs}
    check_free([*finals.values(), *pages.values()], force)
    hashes = {"version of Bespoke": bespoke.__version__, **{role: file_hash(path) for role, path in inputs.items()}}
    todo = {job: arguments for job in jobs if (arguments := job.arguments(hashes, force)) is not None}
    for job in todo:
        write_json(job.folder / _INPUTS, hashes)
    try:
        if len(jobs) > 1:
            _run_side_by_side(todo, processes)
        elif todo:
            train.train(todo[jobs[0]])
    finally:
        for job in todo:
            _tidy(job.folder)
    reports = {job.label: job.folder / "report.html" for job in jobs if (job.folder / "report.html").is_file()}
    copies = {report: pages[label] for label, report in reports.items()}
    if len(jobs) == 1:
        sources = [jobs[0].folder / "target.wav", jobs[0].folder / "residual.wav"]
        with progress.stage("publish"):
            gain = publish(sources, [*finals.values()], inputs["recording"], exact, copies)
    else:
        shared = out / f"{stem}.bespoke-parts" / "stems"
        shutil.rmtree(shared, ignore_errors=True)  # of a request that was killed
        try:
            with progress.stage("share"):
                sources = [*write_shared({job.label: job.folder for job in jobs}, shared).values()]
            with progress.stage("publish"):
                gain = publish(sources, [*finals.values()], inputs["recording"], exact, copies)
        finally:
            shutil.rmtree(shared, ignore_errors=True)
    return {
        "stems": {job.label: str(finals[job.label]) for job in jobs},
        "residual": str(finals["residual"]),
        "reports": {label: str(pages[label]) for label in reports},
        "runs": {job.label: str(job.folder) for job in jobs},
        "metrics": {job.label: _read(job.folder / "metrics.json") for job in jobs},
        "gain": gain,
    }


def processes_at_once(parts: int) -> int:
    """How many runs this machine has cores and memory for; one where there is a GPU, which one run fills."""
    import torch

    if torch.cuda.is_available():
        return 1
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        memory = 8_000_000_000
    return max(1, min(parts, os.cpu_count() or 1, memory // _MEMORY_BYTES))


def _run_side_by_side(todo: Mapping[Job, Sequence[str]], processes: int) -> None:
    """A process for each run, so many at once; their output line by line, with the part's name before it.

    Raises:
        BespokeError: some failed, and said why.
    """
    threads = max(1, (os.cpu_count() or 1) // processes)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    running: dict[str, subprocess.Popen] = {}
    stopped = threading.Event()

    def run(job: Job) -> int:
        if stopped.is_set():
            return 1
        # Ctrl-C comes to this process alone, which hands it on once.
        apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
        process = subprocess.Popen(
            [sys.executable, "-m", "bespoke", "part", *todo[job]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
            encoding="utf-8",
            errors="replace",
            **apart,
        )
        running[job.label] = process
        for line in process.stdout:
            print(f"[{job.label}] {line}", end="", file=sys.stderr, flush=True)
        return process.wait()

    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        futures = {job.label: pool.submit(run, job) for job in todo}
        try:
            failed = [label for label, future in futures.items() if future.result() != 0]
        except KeyboardInterrupt:
            stopped.set()
            for process in running.values():
                if process.poll() is None:
                    process.send_signal(signal.CTRL_BREAK_EVENT if os.name == "nt" else signal.SIGINT)
            raise
    if failed:
        raise BespokeError(f"No stems were written, as {' and '.join(failed)} failed, see above: the same command does what is left.")


def _tidy(folder: Path) -> None:
    """Leave nothing of a run that did not come to its first result."""
    if not any((folder / name).exists() for name in preflight.RESULTS):
        (folder / _INPUTS).unlink(missing_ok=True)
        for empty in (folder, folder.parent):
            try:
                empty.rmdir()
            except OSError:  # there is something else in it
                break


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
