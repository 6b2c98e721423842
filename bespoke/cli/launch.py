"""Around Hydra: errors as one sentence with an exit code, and the table that ends a sweep."""

import contextlib
import errno
import functools
import logging
import os
import re
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import yaml
from hydra._internal.config_loader_impl import (
    ConfigLoaderImpl,
)  # there is no public place to stand in
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from bespoke.cli.origins import explain_file
from bespoke.training.allowlist import check_hydra, rename_targets
from bespoke.utils.configs import group_choices
from bespoke.utils.errors import INTERRUPTED, BespokeError, one_sentence
from bespoke.utils.files import SWEEP_FILE, read_json, write_json

# Hydra's and its plugins' own ValueErrors, and what they mean.
_OF_VALUES = {
    "Only one of --run, --multirun, --cfg": (
        "--cfg and --info show one run's config, without running it: leave -m out, or leave them"
        " out."
    ),
    "Config group override must be": (
        "A group is chosen by name, as in aug=none, not by a number or null: see train.py --help."
    ),
    # Optuna's, at its end.
    "No trials are completed yet": (
        "No trial of the search gave a result: see the table for the reasons."
    ),
}
# What Hydra's own mkdir of the run's folder can end with.
TOO_LONG = (
    "a name may have 255 bytes: set hydra.run.dir, or in a sweep hydra.sweep.subdir, to a shorter"
    " one, such as ${hydra.job.num}"
)
UNWRITABLE = {errno.EACCES, errno.EEXIST, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS}
_GUARDED = "is_guarded"
_LAUNCHERS = ("joblib", "ray", "submitit")  # whose errors say that a job did not come back


def as_folder(name: Any) -> str:
    """Make a song's name the name of a folder.

    Whatever a config from elsewhere calls a song, its folder stays below that of all results.

    >>> as_folder("../../home"), as_folder("Für Elise 🎹"), as_folder("..")
    ('.._.._home', 'Für Elise 🎹', '_')
    """
    name = "".join(
        letter if letter.isprintable() and letter not in '/\\:*?"<>|' else "_"
        for letter in str(name)
    ).strip()
    return "_" if name in ("", ".", "..") else name[:80]


OmegaConf.register_new_resolver("as_folder", as_folder, replace=True)


def guard() -> None:
    """Let `check_hydra` check every config from now on before Hydra uses it.

    Former names in `_target_` settings are replaced before this check.
    """
    load = ConfigLoaderImpl.load_configuration
    if hasattr(load, _GUARDED):
        return

    @functools.wraps(load)
    def load_and_check(
        self: ConfigLoaderImpl,
        config_name: str | None,
        overrides: list[str],
        *arguments: Any,
        **settings: Any,
    ) -> DictConfig:
        try:
            cfg = load(self, config_name, overrides, *arguments, **settings)
        except (HydraException, yaml.YAMLError) as error:
            paths = [item.path or "" for item in self.get_search_path().get_path()]
            folders = [Path(path.removeprefix("file://")) for path in paths if path]
            # What is searched by a setting of the command line, as `compose` does.
            folders += [Path(path) for path in re.findall(r"file://([^'\",\]]+)", str(overrides))]
            if explained := explain_file(error, folders):
                raise explained from error
            raise
        rename_targets(cfg)
        if "hydra" in cfg:
            parsed = OverridesParser.create(config_loader=self).parse_overrides(overrides)
            check_hydra(cfg.hydra, {override.key_or_group: _plain(override) for override in parsed})
        return cfg

    setattr(load_and_check, _GUARDED, True)
    setattr(ConfigLoaderImpl, load.__name__, load_and_check)


def _plain(override: Override) -> Any:
    """What an override sets; nothing where it sweeps."""
    value = override.value()
    return (
        None
        if override.is_sweep_override()
        else OmegaConf.to_container(value)
        if OmegaConf.is_config(value)
        else value
    )


def launch(main: Callable[[], Any], argv: Sequence[str]) -> int:
    """Call a Hydra entry point, and print errors that are for the user as one sentence.

    A multirun ends with its table, also when some of its jobs failed.

    Args:
        main: the entry point.
        argv: its command line, the program's name first.

    Returns:
        The exit code: 2 for errors that are for the user, 130 after Ctrl-C.
    """
    try:
        execute(main, argv)
    except BespokeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"{interrupt or 'Interrupted.'}", file=sys.stderr)
        return INTERRUPTED
    finally:
        if SweepTable.folder is not None:
            from bespoke.evaluation.report.sweep import finish_sweep  # slow to import

            text, results = finish_sweep(SweepTable.folder, page=SweepTable.page)
            print(text)
            if results is not None and any(SweepTable.folder.glob("*/wandb_id")):
                from bespoke.training.logs import log_comparison  # imports Lightning

                print(log_comparison(SweepTable.folder, results))
    return 0


def execute(main: Callable[[], Any], argv: Sequence[str]) -> None:
    """Call a Hydra entry point with this command line.

    Raises:
        BespokeError: whatever the user can put right.
    """
    os.environ.setdefault(
        "HYDRA_FULL_ERROR", "1"
    )  # Hydra hands exceptions on, instead of printing them and exiting with 1
    quieten()
    guard()
    before, sys.argv = sys.argv, list(argv)
    try:
        with explained(), contextlib.redirect_stderr(_WithoutHydrasPreface(sys.stderr)):
            main()
    finally:
        sys.argv = before


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """What Hydra, OmegaConf and the run's folder raise, as a BespokeError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise BespokeError(_explain(error)) from error
    except ValueError as error:
        for words, sentence in _OF_VALUES.items():
            if words in str(error):
                raise BespokeError(sentence) from error
        raise
    except Exception as error:
        if type(error).__module__.partition(".")[0] in _LAUNCHERS:
            reason = one_sentence(error).partition(". ")[0].rstrip(".")[:300]
            raise BespokeError(
                f"A job ended without a result ({reason}): it was killed, or ran out of memory or"
                " time. Others may still be at work."
            ) from error
        if not isinstance(error, OSError):
            raise
        if error.errno == errno.ENAMETOOLONG:
            place = Path(error.filename or "The run's folder").name
            raise BespokeError(f"The name {place[:60]}… is too long ({TOO_LONG}).") from error
        if error.errno != errno.ENOSPC and (
            error.filename is None or error.errno not in UNWRITABLE
        ):
            raise
        place = error.filename or "The run's folder"
        raise BespokeError(
            f"{place} cannot be written ({error.strerror}): free some space or choose another"
            " hydra.run.dir."
        ) from error


def setting(name: str, value: Any) -> str:
    """An override for Hydra that gives this setting this value, whatever characters are in it.

    >>> setting("song.mixture", "It's = {me}.wav")
    "song.mixture='It\\\\'s = {me}.wav'"
    >>> setting("song.target.patches", [29])
    'song.target.patches=[29]'
    """
    return f"{name}={_quoted(value)}"


def _quoted(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_quoted, value))}]"
    return (
        str(value)
        if isinstance(value, int | float)
        else QuotedString(literal(str(value)), Quote.single).with_quotes()
    )


def literal(text: str) -> str:
    """The text as OmegaConf has to read it to give it back: `${` would be an interpolation."""
    return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + r"\${", text)


def _explain(error: Exception) -> str:
    """One sentence for the user.

    Hydra's own messages speak of grammars and search paths, and advise to add what was misspelt.
    """
    if isinstance(error, OverrideParseException):
        name = error.override.partition("=")[0]
        return (
            f"{error.override} cannot be read: put its value in quotes of its own, as in"
            f" \"{name}='My Song (live).wav'\"."
        )
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        return (
            f"There is no {'='.join(error.missing_cfg_file.rsplit('/', 1))}: choose"
            f" {', '.join(error.options)}."
        )
    misspelt = re.match(r"Could not override '([^']+)'\.", str(error))
    if misspelt and "To append" in str(error):
        return f"There is no setting {misspelt[1]}: train.py --cfg job lists all that there are."
    key = getattr(error, "full_key", None)
    reason = one_sentence(error)
    if isinstance(error, InterpolationResolutionError | GrammarParseError) or "${" in str(error):
        return (
            f"{f'{key}: ' if key else ''}a ${{...}} in a setting stands for another setting"
            f" ({reason}): for these characters themselves, as in the name of a file,"
            " write \\${...}, in single quotes."
        )
    return f"{key}: {reason}" if key and key not in str(error) else reason


class _WithoutHydrasPreface:
    """A stream without the line that Hydra writes before it passes on a job's exception.

    Our own message says everything.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        return (
            len(text)
            if text.startswith("Error executing job with overrides:")
            else self._stream.write(text)
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class SweepTable(Callback):
    """Hydra callback that notes where a multirun puts its jobs.

    For the table it also notes what each job was to do, and why it failed.

    (Hydra calls no callback at the end of a sweep in which a job failed.)
    """

    folder: Path | None = None
    page = True  # whether a comparison is wanted too

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        SweepTable.folder, SweepTable.page = (
            Path(config.hydra.sweep.dir),
            bool(config.get("report", True)),
        )
        searched = OmegaConf.select(config, "hydra.sweeper.params") or {}
        given = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        swept = [override.key_or_group for override in given if override.is_sweep_override()]
        sweep = {"id": uuid.uuid4().hex, "varies": list(dict.fromkeys([*swept, *searched]))}
        write_json(SweepTable.folder / SWEEP_FILE, sweep)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """In a sweep, what even a job that is killed leaves."""
        if config.hydra.mode == RunMode.MULTIRUN:
            folder = Path(config.hydra.runtime.output_dir)
            sweep = read_json(Path(config.hydra.sweep.dir) / SWEEP_FILE).get("id")
            before = read_json(folder / "job.json").get("sweep")
            (folder / "error.json").unlink(missing_ok=True)  # it is done again
            job = {
                "overrides": list(config.hydra.overrides.task),
                "choices": group_choices(config.hydra.runtime.choices),
                "sweep": sweep,
                "again": sweep is not None and sweep == before,
            }
            write_json(folder / "job.json", job)

    @staticmethod
    def is_again(folder: Path) -> bool:
        """Whether the launcher does this job once more, as after the loss of a machine.

        Slurm does so by itself with what it has to stop, and Ray with what was killed.
        """
        return bool(read_json(folder / "job.json").get("again"))

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
            write_json(
                folder / "error.json",
                {"error": one_sentence(job_return._return_value), "overrides": overrides},
            )


def quieten() -> None:
    """Keep Lightning's advice and the libraries' deprecations out of the user's sight."""
    warnings.filterwarnings(
        "ignore", category=UserWarning, module=r"pytorch_lightning|lightning_fabric|torch|wandb"
    )
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
