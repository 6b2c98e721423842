"""Around Hydra: errors as one sentence with an exit code, and the table that ends a sweep."""

import contextlib
import errno
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from bespoke import report
from bespoke.audio import write_json
from bespoke.errors import BespokeError, one_sentence

# What Hydra's own mkdir of the run's folder can end with.
UNWRITABLE = {errno.EACCES, errno.EEXIST, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS}


def launch(main: Callable[[], None]) -> int:
    """Call a Hydra entry point; print errors that are for the user as one sentence. Returns the exit code: 2 for those.

    A multirun ends with its table, also when some of its jobs failed.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands exceptions on, instead of printing them and exiting with 1
    quieten()
    try:
        with contextlib.redirect_stderr(_WithoutHydrasPreface(sys.stderr)):
            main()
    except (BespokeError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {_explain(error)}", file=sys.stderr)
        return 2
    except ValueError as error:
        if "No trials are completed yet" not in str(error):  # Optuna's, at the end of its search
            raise
        print("error: No trial of the search gave a result: see the table for the reasons.", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.ENOSPC and (error.filename is None or error.errno not in UNWRITABLE):
            raise
        place = error.filename or "The run's folder"
        print(f"error: {place} cannot be written ({error.strerror}): free some space or choose another hydra.run.dir.", file=sys.stderr)
        return 2
    finally:
        if SweepTable.folder is not None:
            print(report.write_table(SweepTable.folder))
            if SweepTable.page:
                print(report.write_comparison(SweepTable.folder))
    return 0


def _explain(error: Exception) -> str:
    """One sentence for the user; Hydra's own speak of grammars and search paths, and advise to add what was misspelt."""
    if isinstance(error, OverrideParseException):
        name = error.override.partition("=")[0]
        return f"{error.override} cannot be read: put its value in quotes of its own, as in \"{name}='My Song (live).wav'\"."
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        return f"There is no {'='.join(error.missing_cfg_file.rsplit('/', 1))}: choose {', '.join(error.options)}."
    misspelt = re.match(r"Could not override '([^']+)'\.", str(error))
    if misspelt and "To append" in str(error):
        return f"There is no setting {misspelt[1]}: train.py --cfg job lists all that there are."
    return one_sentence(error)


class _WithoutHydrasPreface:
    """A stream without the line that Hydra writes before it hands on a job's exception: ours says all."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if text.startswith("Error executing job with overrides:") else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class SweepTable(Callback):
    """Hydra callback that notes where a multirun puts its jobs, and for the table what each was to do and why it failed.

    (Hydra calls no callback at the end of a sweep in which a job failed.)
    """

    folder: Path | None = None
    page = True  # whether a comparison is wanted too

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        SweepTable.folder, SweepTable.page = Path(config.hydra.sweep.dir), bool(config.get("report", True))

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """In a sweep, what even a job that is killed leaves."""
        if config.hydra.mode == RunMode.MULTIRUN:
            folder = Path(config.hydra.runtime.output_dir)
            (folder / "error.json").unlink(missing_ok=True)  # it is done again
            write_json(folder / "job.json", {"overrides": list(config.hydra.overrides.task)})

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        """Of a failed job keep the reason in a sweep, and no empty folder otherwise."""
        if not isinstance(job_return._return_value, Exception):
            return
        folder = Path(job_return.hydra_cfg.hydra.runtime.output_dir)
        if job_return.hydra_cfg.hydra.mode != RunMode.MULTIRUN:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()
        else:
            overrides = list(job_return.overrides or [])
            write_json(folder / "error.json", {"error": one_sentence(job_return._return_value), "overrides": overrides})


def quieten() -> None:
    """Keep Lightning's advice and the libraries' deprecations out of the user's sight."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"pytorch_lightning|lightning_fabric|torch|wandb")
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
