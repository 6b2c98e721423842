"""The entry point behind train.py and `bespoke train`: Hydra's, with this package's configs and those of `conf` where it is started.

Nothing heavy is imported before a job begins, so that --help and a misspelt setting are answered at once.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

from bespoke.cli.launch import execute, explained, guard, launch, quieten, setting
from bespoke.utils import processor

_PACKAGE = Path(__file__).resolve().parents[1]
CONF = (
    _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
)  # in the wheel, in a checkout
OWN_CONF = "conf"
"""The user's own configs: this folder where the command is started, unless --config-dir names another."""


processor.wait_without_spinning()
guard()  # here: a launcher's workers import this module to find `run_job`, and load their jobs' configs themselves


def run_job(cfg: DictConfig) -> float | None:
    """One run, in a folder that no other process is writing to."""
    quieten()  # here too: a launcher may run this in a process of its own
    from hydra.core.hydra_config import HydraConfig

    from bespoke.training import run
    from bespoke.training.preflight import hold
    from bespoke.utils.memory import keep_freed_memory

    quieten()  # again: Lightning sets its level when it is imported
    keep_freed_memory()
    with hold(Path(HydraConfig.get().runtime.output_dir)):
        return run.train(cfg)


# Not as a decorator: that would take the name by which workers find the function.
job = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(run_job)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run train.py's command line. Returns the exit code."""
    program, *given = sys.argv if arguments is None else [__file__, *arguments]
    return launch(job, _command_line(program, given))


def train(arguments: Sequence[str]) -> None:
    """The same, for a program: what is for the user is raised.

    Raises:
        BespokeError: something the user can put right.
        Interrupted: by Ctrl-C; the run can go on.
    """
    execute(job, _command_line(__file__, arguments))


def compose(overrides: Sequence[str]) -> DictConfig:
    """The config of a command line, without running it.

    Raises:
        BespokeError: there is no such setting or choice.
    """
    own = (
        [setting("hydra.searchpath", [f"file://{Path(OWN_CONF).resolve()}"])]
        if _has_own_conf()
        else []
    )
    with explained(), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", [*own, *map(_as_now, overrides)])


def _command_line(program: str, arguments: Sequence[str]) -> list[str]:
    """`sys.argv` for Hydra, with the user's own configs on its search path; those of the same name in the package come first."""
    named = any(argument.startswith(("--config-dir", "-cd")) for argument in arguments)
    return [
        program,
        *(["--config-dir", OWN_CONF] if _has_own_conf() and not named else []),
        *map(_as_now, arguments),
    ]


def _as_now(argument: str) -> str:
    """An experiment was added with a plus, when it was no choice of the defaults."""
    return argument.removeprefix("+") if argument.startswith("+experiment=") else argument


def _has_own_conf() -> bool:
    return Path(OWN_CONF).is_dir() and Path(OWN_CONF).resolve() != CONF


if __name__ == "__main__":
    from bespoke.cli import train as importable  # workers cannot find what belongs to __main__

    sys.exit(importable.main())
