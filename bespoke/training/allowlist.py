"""What may be named in a config; looked at before Hydra, or a run, makes any of it."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, read_write

from bespoke.utils.errors import BespokeError
from bespoke.utils.moved import current_name

# A config names what it wants made; only these can be, so that a config from a stranger runs no code of its own.
ALLOWED_TARGETS = re.compile(
    r"audiomentations\.[A-Z]\w*|bespoke\.(data\.(background|augment)|models\.(networks|losses)|training\.logs)\.[A-Za-z]\w*"
    r"|bespoke\.training\.callbacks\.(StepLog|TrainingFigures|Listening|QualityCurve)"
    r"|torch\.optim\.(Adam|AdamW|NAdam|RAdam|SGD|RMSprop)|pytorch_lightning\.Trainer"
)
# What Hydra itself makes, from its own part of the config, before a run begins: no name of a module's imports.
ALLOWED_HYDRA_TARGETS = re.compile(
    r"bespoke\.(cli\.launch\.SweepTable|evaluation\.benchmark\.RowWriter)|hydra\._internal\.core_plugins\.\w+\.[A-Z]\w*|hydra_plugins\.\w+\.\w+\.[A-Z]\w*"
    r"|optuna\.(samplers|pruners)\.[A-Z]\w*"
)
# Interpolations that give text, whatever the config says: what is joined to more text is text, and the job's name is looked at.
PLAIN = re.compile(r"\$\{hydra\.(runtime\.output_dir|sweep\.dir)\}/|\$\{hydra\.job\.name\}")
# What a launcher may be told by a config file: numbers, and words on one line. The rest may be shell commands (setup), options that amount
# to them, expressions that are evaluated, or another machine's address: for the user's own command line.
ALLOWED_LAUNCHER = re.compile(
    r"_target_|submitit_folder|timeout_min|cpus_per_task|gpus_per_node|tasks_per_node|mem_gb|nodes|name|stderr_to_stdout|partition|qos|comment"
    r"|constraint|exclude|gres|cpus_per_gpu|gpus_per_task|mem_per_gpu|mem_per_cpu|account|signal_delay_s|max_num_timeout|array_parallelism"
    r"|n_jobs|backend|prefer|require|verbose|timeout|batch_size|max_nbytes|mmap_mode|ray\.remote\.num_[cg]pus"
)
ALLOWED_LAUNCHER_VALUES = {("pre_dispatch", "2*n_jobs"), ("ray.init.address", "auto")}
ALLOWED_LOGGING = re.compile(r"logging\.[A-Z]\w*|colorlog\.[A-Z]\w*")


def rename_targets(cfg: DictConfig | ListConfig) -> None:
    """Give every `_target_` that is called as it once was its present name, in place; what is yet to be resolved stays as it is."""
    for key in list(cfg) if isinstance(cfg, DictConfig) else range(len(cfg)):
        if OmegaConf.is_missing(cfg, key) or OmegaConf.is_interpolation(cfg, key):
            continue
        value = cfg[key]
        if OmegaConf.is_config(value):
            rename_targets(value)
        elif key == "_target_" and (now := current_name(value)) != value:
            with read_write(cfg):
                cfg[key] = now


def check_targets(cfg: DictConfig) -> None:
    """Find what a run should not be asked to make.

    Raises:
        BespokeError: a `_target_` is not on the list.
    """
    # Resolved too: an interpolation can make a dictionary with a _target_ (oc.create), or point to one.
    leaves = [
        leaf
        for resolve in (False, True)
        for leaf in _leaves(OmegaConf.to_container(cfg, resolve=resolve))
    ]
    for name, value in leaves:
        if name.endswith("_target_") and (
            name.startswith("song.") or not ALLOWED_TARGETS.fullmatch(str(value))
        ):
            if current_name(value) != value and not name.startswith("song."):
                raise BespokeError(
                    f"{name}={value} is a name of before: write {current_name(value)}."
                )
            raise BespokeError(
                f"{name}={value} is not allowed: configs may name audiomentations transforms, torch optimizers and Bespoke's own classes,"
                " and a song none."
            )


def check_hydra(hydra: DictConfig, given: Mapping[str, Any] | None = None) -> None:
    """Find what Hydra should not be asked to make or to set: a config file can speak to it too.

    Args:
        hydra: its part of the config.
        given: the settings of the command line, whose launcher may be told more than a file's.

    Raises:
        BespokeError: a `_target_` is not on the list, a value is fetched from elsewhere, the logging calls for code or for a file
            outside the run's folder, the job for other environment variables or a name with a path in it, or a file for what a
            launcher might run.
    """
    own = {leaf for key, setting in (given or {}).items() for leaf in _leaves(setting, key)}
    for name, value in _leaves(OmegaConf.to_container(hydra, resolve=False)):
        reason = _objection(name, value, is_own=(f"hydra.{name}", value) in own)
        if reason:
            raise BespokeError(f"hydra.{name}={value} is not allowed: {reason}.")


def _objection(name: str, value: Any, is_own: bool) -> str | None:
    section, key, text = name.split(".")[0], name.rsplit(".", 1)[-1], str(value)
    if section == "job":
        if name == "job" or name.startswith("job.env_"):
            return "set environment variables where you start the command, not in a config"
        if name == "job.name" and ("${" in text or ".." in text or "/" in text or "\\" in text):
            return "a job's name is one of a file, without a path or a reference"
    if section not in ("callbacks", "launcher", "sweeper", "job_logging", "hydra_logging"):
        return None  # words only, such as the command line
    if key == "_target_" and not ALLOWED_HYDRA_TARGETS.fullmatch(text):
        return "of Hydra's plugins only callbacks of Bespoke, launchers and sweepers are"
    if "${" in PLAIN.sub(
        "", text
    ):  # it could point to a dictionary with a _target_, anywhere in the config
        return "write the value itself here, not a reference to it"
    if section == "launcher" and value is not None and not is_own:
        setting = name.partition(".")[2]
        is_known = (
            ALLOWED_LAUNCHER.fullmatch(setting) or (setting, value) in ALLOWED_LAUNCHER_VALUES
        )
        if (
            not is_known
            or len(text.splitlines()) > 1
            or (setting == "submitit_folder" and not (PLAIN.match(text) and ".." not in text))
        ):
            return "a launcher may run it, so that it is for the command line, not for a config"
    if name.startswith("sweeper.custom_search_space") and value is not None:
        return "a search is described by hydra.sweeper.params alone"
    if section.endswith("_logging"):
        is_ours = text.startswith("${hydra.runtime.output_dir}/") and ".." not in text
        if (
            key == "()"
            or (key == "class" and not ALLOWED_LOGGING.fullmatch(text))
            or (key == "filename" and not is_ours)
        ):
            return "logs go to the terminal and to the run's folder, by Python's own classes"
    return None


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping | list):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
