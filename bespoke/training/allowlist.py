"""Allowlist of what configs may name, checked before Hydra or a run instantiates anything."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, read_write

from bespoke.utils.errors import BespokeError
from bespoke.utils.moved import current_name

# Only these classes can be instantiated, so that a config from a stranger cannot run code.
ALLOWED_TARGETS = re.compile(
    r"audiomentations\.[A-Z]\w*"
    r"|bespoke\.(data\.(background|augment)|models\.(networks|losses)|training\.logs)\.[A-Za-z]\w*"
    r"|bespoke\.training\.callbacks\.(StepLog|TrainingFigures|Listening|QualityCurve)"
    r"|bespoke\.training\.schedules\.(Constant|Linear|Cosine|Exponential)"
    r"|torch\.optim\.(Adagrad|Adam|AdamW|NAdam|RAdam|RMSprop|SGD)|pytorch_lightning\.Trainer"
)
# Classes that Hydra instantiates from its own part of the config before a run starts. The patterns
# match classes only, not names that a module imports.
ALLOWED_HYDRA_TARGETS = re.compile(
    r"bespoke\.(cli\.launch\.SweepTable|evaluation\.benchmark\.RowWriter)"
    r"|hydra\._internal\.core_plugins\.\w+\.[A-Z]\w*|hydra_plugins\.\w+\.\w+\.[A-Z]\w*"
    r"|optuna\.(samplers|pruners)\.[A-Z]\w*"
)
# Interpolations that always give text. Followed by more text they remain text, and the job's name
# is checked itself.
PLAIN = re.compile(r"\$\{hydra\.(runtime\.output_dir|sweep\.dir)\}/|\$\{hydra\.job\.name\}")
# Launcher settings that a config file may set: numbers and words on one line. Other settings can
# contain shell commands (setup), options equivalent to them, expressions that are evaluated, or the
# address of another machine. Those are allowed on the user's own command line only.
ALLOWED_LAUNCHER = re.compile(
    r"_target_|submitit_folder|timeout_min|cpus_per_task|gpus_per_node|tasks_per_node|mem_gb|nodes"
    r"|name|stderr_to_stdout|partition|qos|comment|constraint|exclude|gres|cpus_per_gpu"
    r"|gpus_per_task|mem_per_gpu|mem_per_cpu|account|signal_delay_s|max_num_timeout"
    r"|array_parallelism|n_jobs|backend|prefer|require|verbose|timeout|batch_size|max_nbytes"
    r"|mmap_mode|ray\.remote\.num_[cg]pus"
)
ALLOWED_LAUNCHER_VALUES = {("pre_dispatch", "2*n_jobs"), ("ray.init.address", "auto")}
ALLOWED_LOGGING = re.compile(r"logging\.[A-Z]\w*|colorlog\.[A-Z]\w*")


def rename_targets(cfg: DictConfig | ListConfig) -> None:
    """Replace former names by current ones in every `_target_`, in place.

    Missing values and interpolations are left as they are.
    """
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
    """Check the `_target_`s of a run's config.

    Raises:
        BespokeError: a `_target_` is not on the allowlist.
    """
    # Resolved too: an interpolation can refer to a dictionary with a _target_, or make one
    # (oc.create).
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
                raise BespokeError(f"{name}={value} is a former name: write {current_name(value)}.")
            if name.startswith("aug.") and (known := _effect(str(value))):
                raise BespokeError(f"{name}={value} is not known: write {known}.")
            raise BespokeError(
                f"{name}={value} is not allowed: configs may name audiomentations transforms, "
                "torch optimizers and Bespoke's own classes, and a song none."
            )


def _effect(name: str) -> str | None:
    """The whole name of an effect that was named without its module."""
    import audiomentations  # slow

    if name == "DecayingNoiseReverb":
        return f"bespoke.data.augment.{name}"
    return f"audiomentations.{name}" if hasattr(audiomentations, name) else None


def check_hydra(hydra: DictConfig, given: Mapping[str, Any] | None = None) -> None:
    """Check Hydra's part of the config, which a config file can change too.

    Args:
        hydra: Hydra's part of the config.
        given: settings of the command line. It may set more of a launcher than a file may.

    Raises:
        BespokeError: a `_target_` is not on the allowlist; a value is an interpolation; the logging
            config runs code or writes a file outside the run's folder; the job sets environment
            variables or has a name with a path in it; or a file has a launcher setting that might
            run a command.
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
            return "a job's name is a plain file name, without a path or a reference"
    if section not in ("callbacks", "launcher", "sweeper", "job_logging", "hydra_logging"):
        return None  # plain text, such as the command line
    if key == "_target_" and not ALLOWED_HYDRA_TARGETS.fullmatch(text):
        return "of Hydra's plugins only Bespoke's callbacks, launchers and sweepers are"
    # An interpolation could refer to a dictionary with a _target_ anywhere in the config.
    if "${" in PLAIN.sub("", text):
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
            return "a launcher might run it; give it on the command line, not in a config"
    if name.startswith("sweeper.custom_search_space") and value is not None:
        return "describe a search by hydra.sweeper.params alone"
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
