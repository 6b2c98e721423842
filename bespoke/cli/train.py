"""Entry point of train.py and `bespoke train`.

It runs Hydra with the package's configs and those in `conf` of the current folder. Slow imports are
left to the job, so that --help and misspelt settings are answered at once.
"""

import contextlib
import copy
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import hydra
from omegaconf import DictConfig, OmegaConf

from bespoke.cli.launch import (
    SweepTable,
    as_folder,
    execute,
    explained,
    guard,
    launch,
    literal,
    quieten,
    setting,
)
from bespoke.cli.origins import naming_file, shadowed
from bespoke.utils import processor
from bespoke.utils.configs import as_dict
from bespoke.utils.errors import BespokeError

_PACKAGE = Path(__file__).resolve().parents[1]
# In the wheel conf is inside the package, in a checkout next to it.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
_HYDRA_OPTIONS = ("cfg", "config-dir", "config-name", "config-path", "info", "package")
OWN_CONF = "conf"
"""Folder of the user's own configs in the current folder, unless --config-dir names another."""


processor.wait_without_spinning()
# At import time, because a launcher's workers import this module to find `run_job`, and load the
# configs of their jobs themselves.
guard()


def run_job(cfg: DictConfig) -> float | None:
    """Carry out one run in a folder that no other process writes to."""
    from bespoke.training import run

    with _held() as folder:
        if SweepTable.is_again(folder):
            cfg.ckpt = "last"
        return run.train(cfg)


@contextlib.contextmanager
def _held() -> Iterator[Path]:
    """Prepare the process for a run, and keep other processes from the run's folder."""
    # Here too, because a launcher may run this in another process.
    quieten()
    from hydra.core.hydra_config import HydraConfig

    from bespoke.training.preflight import hold
    from bespoke.utils.memory import keep_freed_memory

    quieten()  # again, because Lightning sets its log level when it is imported
    keep_freed_memory()
    hydra_config = HydraConfig.get()
    folder = as_dict(cast(DictConfig, hydra_config.runtime), resolve=False)["output_dir"]
    if "${" in folder:  # Hydra would take another
        raise BespokeError(
            f"The folder {folder} has ${{ in its name, which stands for a setting:"
            " set hydra.run.dir to another."
        )
    if hydra_config.job.chdir:  # a relative path is one from where the command was started
        os.chdir(hydra_config.runtime.cwd)
    with hold(Path(hydra_config.runtime.output_dir)):
        try:
            yield Path(hydra_config.runtime.output_dir)
        except BespokeError as error:
            raise naming_file(error, cast(DictConfig, hydra_config), CONF) from error


# Not used as a decorator, because workers find `run_job` by its name.
_main = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
job = _main(run_job)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run train.py's command line. Returns the exit code."""
    program, *given = sys.argv if arguments is None else [__file__, *arguments]
    return launch(job, _command_line(program, given))


def train(arguments: Sequence[str]) -> None:
    """Run train.py's command line from a program, and raise errors instead of printing them.

    Raises:
        BespokeError: an error that the user can correct.
        Interrupted: the run was interrupted by Ctrl-C, and can be resumed.
    """
    execute(job, _command_line(__file__, arguments))


def train_parts(
    overrides: Sequence[str], folder: Path, parts: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Carry out the runs of several parts of one recording at once.

    Args:
        overrides: that the runs have in common.
        folder: gets a folder for each part, by its label.
        parts: settings of each run, by its label.

    Returns:
        The labels of those that failed, and have said why.

    Raises:
        BespokeError: an error that the user can correct, and that concerns all.
        Interrupted: training was interrupted by Ctrl-C, and can be resumed.
    """
    failed: list[str] = []

    def run_parts(cfg: DictConfig) -> None:
        from bespoke.training import run
        from bespoke.training.preflight import hold

        with _held(), contextlib.ExitStack() as stack:
            runs = []
            for label, settings in parts.items():
                stack.enter_context(hold(folder / label))
                (folder / label).mkdir(parents=True, exist_ok=True)
                given = [*overrides, *(setting(*item) for item in settings.items())]
                runs.append(run.Run(with_settings(cfg, settings), folder / label, given, label))
            run.train_parts(runs)
            failed.extend(run.label for run in runs if run.error is not None and run.label)

    common = [
        setting("hydra.run.dir", folder),
        "hydra.job_logging.root.handlers=[console]",  # each run has its own train.log
    ]
    execute(_main(run_parts), _command_line(__file__, [*overrides, *common]))
    return failed


def with_settings(cfg: DictConfig, settings: Mapping[str, Any]) -> DictConfig:
    """A copy of a composed config with other values of some settings."""
    cfg = copy.deepcopy(cfg)
    for name, value in settings.items():
        OmegaConf.update(cfg, name, literal(value) if isinstance(value, str) else value)
    return cfg


def compose(overrides: Sequence[str], with_hydra: bool = False) -> DictConfig:
    """Compose the config of a command line without running it.

    Args:
        overrides: of the command line.
        with_hydra: whether Hydra's part of the config is wanted, too.

    Raises:
        BespokeError: a setting or choice does not exist.
    """
    own = (
        [setting("hydra.searchpath", [f"file://{Path(OWN_CONF).resolve()}"])]
        if _has_own_conf()
        else []
    )
    with explained(), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        given = [*own, *map(_as_now, overrides)]
        return hydra.compose("config", given, return_hydra_config=with_hydra)


def preview(overrides: Sequence[str], path: Path | None, mixes: int, force: bool) -> Path:
    """Write the page of the first mixes of the run with this command line.

    Args:
        overrides: of the command line.
        path: file to write. None: a name of song and policy, in the current folder.
        mixes: how many.
        force: whether a file may be replaced that is no such page.

    Raises:
        BespokeError: an error that the user can correct.
    """
    _warn_of_shadowed([])
    whole = compose(overrides, with_hydra=True)
    cfg = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
    hydra_config = cast(DictConfig, whole.hydra)
    policy = str(hydra_config.runtime.choices["aug"])
    try:
        from bespoke.evaluation.report.preview_page import TITLE
        from bespoke.training.preview import write_preview

        quieten()
        path = path or Path(f"{as_folder(cfg.song.name)}.{policy}.preview.html")
        if path.exists() and not force and TITLE not in _head(path):
            raise BespokeError(f"{path} is already there: choose another --out, or --force.")
        return write_preview(cfg, path, mixes, policy)
    except BespokeError as error:
        raise naming_file(error, hydra_config, CONF) from error


def _head(path: Path) -> str:
    """How a file begins; empty if it is no text."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(2000)
    except (OSError, UnicodeDecodeError):
        return ""


def _warn_of_shadowed(arguments: Sequence[str]) -> None:
    for folder in _own_folders(arguments):
        for sentence in shadowed(folder, CONF):
            print(f"warning: {sentence}", file=sys.stderr)


def _command_line(program: str, arguments: Sequence[str]) -> list[str]:
    """`sys.argv` for Hydra, with the user's configs on its search path.

    Of configs with the same name, the package's take precedence, which is said.
    """
    named = any(argument.startswith(("--config-dir", "-cd")) for argument in arguments)
    _warn_of_shadowed(arguments)
    return [
        program,
        *(["--config-dir", OWN_CONF] if _has_own_conf() and not named else []),
        *map(_as_now, _from_agent(arguments)),
    ]


def _from_agent(arguments: Sequence[str]) -> list[str]:
    """What W&B's agent adds to a command, as Hydra reads it.

    Its sweeps give a setting as `--aug=heavy` unless told otherwise, and null as None.
    """
    if "WANDB_SWEEP_ID" not in os.environ:
        return list(arguments)
    settings = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        is_setting = equals and name.lstrip("-").split(".")[0] not in _HYDRA_OPTIONS
        name = name.removeprefix("--") if is_setting else name
        settings.append(f"{name}={'null' if value == 'None' else value}" if equals else argument)
    return settings


def _own_folders(arguments: Sequence[str]) -> list[Path]:
    """Folders of the user's own configs, as far as they are there."""
    found = [Path(OWN_CONF)] if _has_own_conf() else []
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        name, equals, value = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            found = [Path(value if equals else following)]
    return [folder for folder in found if folder.is_dir() and folder.resolve() != CONF]


def _as_now(argument: str) -> str:
    """An experiment was added with a plus, when it was no choice of the defaults."""
    return argument.removeprefix("+") if argument.startswith("+experiment=") else argument


def _has_own_conf() -> bool:
    return Path(OWN_CONF).is_dir() and Path(OWN_CONF).resolve() != CONF


if __name__ == "__main__":
    from bespoke.cli import train as importable  # workers cannot import from __main__

    sys.exit(importable.main())
