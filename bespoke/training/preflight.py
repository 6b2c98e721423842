"""What is checked of a config and a run's folder before anything expensive."""

import contextlib
import copy
import hashlib
import inspect
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import move_data_to_device

from bespoke.audio.io import Recording
from bespoke.audio.stft import STFT
from bespoke.models.features import ScoreFeatures
from bespoke.models.networks import MaskNetwork
from bespoke.models.separator import LONGEST_WINDOW_SECONDS, Separator
from bespoke.score.midi import Note
from bespoke.score.synth import cache_folder
from bespoke.training import schema
from bespoke.training.allowlist import check_targets
from bespoke.training.signatures import check_section, check_signatures, shown
from bespoke.training.system import BespokeSystem
from bespoke.utils import processor
from bespoke.utils.configs import as_dict
from bespoke.utils.errors import BespokeError, one_sentence
from bespoke.utils.files import atomic_path, write_json
from bespoke.utils.moved import as_now

_INPUTS = "hashes.json"
_ROLES = {"mixture": "recording", "audio": "rendered target"}
_SECTIONS = {
    "stft": "bespoke.audio.stft.STFT",
    "separate": "bespoke.models.separator.Separator",
}  # of the config, and what is made of each
_GROUPS = {  # and what each may name
    "aug": r"bespoke\.data\.augment\.Policy",
    "background": r"bespoke\.data\.background\.(\w+Background|song_background)",
    "model": r"bespoke\.models\.networks\.(MaskBLSTM|ScoreUNet|pretrained_score_unet)",
    "loss": r"bespoke\.models\.losses\.\w+Loss",
    "optimizer": r"torch\.optim\.\w+",
    "scheduler": r"bespoke\.training\.schedules\.\w+",
    "trainer": r"pytorch_lightning\.Trainer",
    "logger": r"bespoke\.training\.logs\.(auto|csv|none|tensorboard|wandb)",
}
_BASES = {"aug": "paper"}  # what a user's config of a group may begin with
# What a trainer takes and a run has no use for, and what to do instead.
_UNUSED = {
    "limit_train_batches": "set trainer.max_steps",
    "overfit_batches": "every batch is made afresh; set trainer.max_steps",
    "fast_dev_run": "set trainer.max_steps=1",
    "num_nodes": "a run is of one machine; set trainer.devices",
    "max_epochs": "a run is one epoch; set trainer.max_steps",
    "min_epochs": "a run is one epoch; set trainer.max_steps",
    "reload_dataloaders_every_n_epochs": "a run is one epoch; leave it out",
    "limit_test_batches": "a run has no test batches; leave it out",
    "limit_predict_batches": "a run has no such batches; leave it out",
    "use_distributed_sampler": "every device makes batches of its own; leave it out",
    "default_root_dir": "set hydra.run.dir",
    "logger": "choose one, as in logger=csv",
    "callbacks": "choose them with the group callbacks, curve_steps and log_audio_steps",
    "plugins": "leave it out",
    "enable_checkpointing": "checkpoints are what a run goes on from; set checkpoint_steps",
    "enable_progress_bar": "leave it out",
    "barebones": "leave it out",
    "model_registry": "leave it out",
}
_TRAINED = r"\.pretrained_\w+$"  # a network that can be used as it is
_CALLBACK = r"bespoke\.training\.callbacks\.\w+"
_CONSTANT = {"_target_": "bespoke.training.schedules.Constant", "warmup_steps": 0}
_MOST_HOURS = 6
RESULTS = ("config.yaml", "checkpoints", "target.wav", "residual.wav", "metrics.json")


def check(cfg: DictConfig) -> None:
    """Find what no run can use, or should not be asked to make.

    Raises:
        BespokeError: a setting is unknown, of the wrong kind or out of range, or a `_target_` is
            not on the list.
    """
    check_targets(cfg)
    plain = as_dict(cfg)
    if not plain.get("logger"):  # as ~logger leaves it
        raise BespokeError("There is no logger: choose one, or logger=none.")
    for name in (*_GROUPS, *_SECTIONS, "data", "early_stopping", "song"):
        if not isinstance(plain.get(name), Mapping):
            raise BespokeError(
                f"{name}={shown(plain.get(name))} is not possible: it has settings, see train.py"
                " --cfg job."
            )
    for group, possible in _GROUPS.items():
        target = str(plain[group].get("_target_"))
        if target == "None":
            raise BespokeError(
                f"There is no {group}._target_: choose one with {group}=NAME, see train.py --help;"
                " a file of your own begins with the one it changes, as in"
                f" defaults: [{_BASES.get(group, 'NAME')}, _self_]."
            )
        if not re.fullmatch(possible, target):
            raise BespokeError(
                f"{group}._target_={target} is no {group}: choose one with {group}=NAME, see"
                " train.py --help."
            )
    _check_callbacks(plain.get("callbacks"))
    _check_numbers(plain)
    _check_shares(plain["aug"])
    check_section(plain, schema.Run, "", is_whole=False)
    check_section(plain["data"], schema.Data, "data", is_whole=True)
    check_section(plain["early_stopping"], schema.EarlyStopping, "early_stopping", is_whole=True)
    check_section(plain["optimizer"], schema.Optimizer, "optimizer", is_whole=False)
    check_section(plain["trainer"], schema.Trainer, "trainer", is_whole=False)
    sections = {name: {"_target_": target, **plain[name]} for name, target in _SECTIONS.items()}
    check_signatures(plain | sections)
    _check_settings(cfg)


def check_several(cfg: DictConfig) -> None:
    """Find what is not possible for several parts at once.

    Raises:
        BespokeError: something is not.
    """
    devices = as_dict(cfg.trainer).get("devices", 1)
    if devices not in (1, "1") and not (isinstance(devices, list) and len(devices) == 1):
        raise BespokeError(
            f"trainer.devices={shown(devices)} is not possible for several"
            " parts at once: leave it out, or separate one part after the other."
        )
    if str(cfg.logger.get("_target_")).rpartition(".")[2] in ("auto", "wandb"):
        raise BespokeError(
            "Weights & Biases takes one part at a time: set logger=none, or separate one part"
            " after the other."
        )


def check_device(trainer: DictConfig) -> None:
    """Find that the trainer's devices do not exist here.

    All other faults of the devices are reported by the trainer when it is made.

    Args:
        trainer: its part of the config.

    Raises:
        BespokeError: they are not.
    """
    accelerator, devices = trainer.get("accelerator", "auto"), trainer.get("devices", "auto")
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    is_there = {"gpu": has_cuda or has_mps, "cuda": has_cuda, "mps": has_mps}
    if not is_there.get(accelerator, True):
        raise BespokeError(
            f"trainer.accelerator={accelerator} is not possible: PyTorch finds no such device"
            " here: set trainer=auto, or trainer=cpu."
        )
    if accelerator == "cpu" or (accelerator == "auto" and not (has_cuda or has_mps)):
        cores = processor.cores()
        if isinstance(devices, int) and not isinstance(devices, bool) and devices > cores:
            raise BespokeError(
                f"trainer.devices={devices} is not possible: give at most {cores}, as many as this"
                " machine has cores."
            )


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other processes from a run's folder until the block, or this process, has ended.

    The lock is in the cache, not in the folder.

    Raises:
        BespokeError: another process has it.
    """
    if (
        processor.local_rank() > 0
    ):  # the first of several processes that train together holds it for all
        yield
        return
    cache = cache_folder()
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()
    lock = FileLock(cache / "locks" / f"{name}.lock", timeout=0)
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise BespokeError(
            f"Another process is at work in {folder}: wait until it has ended, or stop it."
        ) from error
    except (OSError, NotImplementedError) as error:  # the latter where a file system has no locks
        raise BespokeError(
            f"The cache {cache} cannot be written ({getattr(error, 'strerror', '') or error}): set"
            " BESPOKE_CACHE to a folder that can."
        ) from error
    try:
        yield
    finally:
        lock.release()


def check_precision(system: BespokeSystem, trainer: pl.Trainer) -> None:
    """Try one training step on noise.

    Not every processor can compute every network in less than 32 bits.

    Args:
        system: what is to be trained; it is not changed.
        trainer: whose precision and device are tried.

    Raises:
        BespokeError: the step is not possible.
    """
    if trainer.precision == "32-true":
        return
    plugin, device = trainer.precision_plugin, trainer.strategy.root_device
    with torch.random.fork_rng(devices=[]):  # the run draws what it would have drawn without
        noise = torch.rand(1, 1, 2 * system.stft.window_samples)
        batch = {"mixture": noise, "target": noise, "index": 0}
        if system.model.uses_score:
            batch["features"] = ScoreFeatures(system.stft)(noise[0].numpy(), [Note(0.0, 1.0, 69)])[
                None
            ]
        try:
            trial = cast(BespokeSystem, plugin.convert_module(copy.deepcopy(system)))
            trial.to(device).train()
            batch = plugin.convert_input(move_data_to_device(batch, device))
            with plugin.train_step_context():
                loss = trial.loss_of(batch)
            loss.backward()
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise BespokeError(
                f"trainer.precision={trainer.precision} is not possible:"
                f" {type(system.model).__name__} cannot be trained in it on this"
                f" {device.type.upper()} ({one_sentence(error)}). Leave trainer.precision out, or"
                " set it to 32-true."
            ) from error


def prepare_folder(cfg: DictConfig, folder: Path, in_sweep: bool = False) -> bool:
    """Refuse to overwrite results, or to continue a run that does not exist.

    A sweep that is continued may have jobs that never began.

    Returns:
        Whether to continue from a checkpoint.
    """
    if processor.local_rank() > 0:
        return (folder / "checkpoints" / "last.ckpt").exists() and cfg.ckpt == "last"
    written = folder / "config.yaml"
    if cfg.ckpt not in (None, "last"):
        raise BespokeError(
            f"ckpt={cfg.ckpt} is not known: ckpt=last continues the run in hydra.run.dir; bespoke"
            " apply uses a checkpoint."
        )
    if cfg.ckpt == "last":
        if not written.is_file():
            if in_sweep:
                return False
            raise BespokeError(
                f"There is no run to continue in {folder}: set hydra.run.dir to the folder of one,"
                " or leave ckpt=last out."
            )
        changed = changes(cfg, folder, may_extend=True)
        if changed:
            raise BespokeError(_another(folder, changed))
        return (folder / "checkpoints" / "last.ckpt").is_file()
    # A config alone is of a run that failed before it had trained.
    present = [name for name in RESULTS if _is_there(folder / name)]
    if set(present) - {"config.yaml"}:
        raise BespokeError(
            f"{folder} already has results ({', '.join(present)}): choose another hydra.run.dir,"
            " or continue with ckpt=last."
        )
    return False


def _is_there(path: Path) -> bool:
    """Whether there is a file, or a folder with something in it."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


def changes(cfg: DictConfig, folder: Path, may_extend: bool = False) -> list[str]:
    """In what a config differs from that of the run in a folder, setting by setting.

    Args:
        cfg: the whole config.
        folder: of the run.
        may_extend: whether more steps are no difference.
    """
    written = folder / "config.yaml"
    then = OmegaConf.load(written) if written.is_file() else OmegaConf.create()
    before = as_now(as_dict(then, resolve=False))  # what it refers to is filled in already
    now = _plain(cfg)
    if may_extend and steps_of(folder) < cfg.trainer.max_steps:
        before.setdefault("trainer", {})["max_steps"] = cfg.trainer.max_steps
    for plain in (before, now):
        plain.get("trainer", {}).pop("max_time", None)  # more time, as more is wanted
        plain.get("logger", {}).pop("project", None)  # the results are the same
    return _differences(before, now)


def steps_of(folder: Path) -> int:
    """How many steps the run in a folder was to have when it last began; 0 if none ever did."""
    written = folder / "config.yaml"
    then = OmegaConf.load(written) if written.is_file() else None
    return int(OmegaConf.select(then, "trainer.max_steps") or 0) if then is not None else 0


def check_inputs(folder: Path, hashes: Mapping[str, str]) -> None:
    """Find that a run would continue with other input files than it began with.

    Files that only measure the result may change.

    Args:
        folder: of a run that goes on.
        hashes: of the files, by role, as `Song.hashes`.

    Raises:
        BespokeError: one was changed since.
    """
    written = folder / _INPUTS
    known = json.loads(written.read_text(encoding="utf-8")) if written.is_file() else hashes
    changed = [
        f"the {_ROLES.get(role, role)} is another"
        for role in hashes
        if role != "reference" and hashes[role] != known.get(role)
    ]
    if changed:
        raise BespokeError(_another(folder, changed))


def check_space(folder: Path, recording: Recording) -> None:
    """Find that there is no room for the stems, before they are made.

    Raises:
        BespokeError: there is not.
    """
    needed, free = 2 * 4 * recording.channels * recording.samples, shutil.disk_usage(folder).free
    if needed > free:
        raise BespokeError(
            f"The stems need {needed / 1e6:.1f} MB, and {folder} has room for {free / 1e6:.1f} MB:"
            " free some space or choose another folder."
        )


def write_config(cfg: DictConfig, folder: Path, hashes: Mapping[str, str]) -> None:
    """Write config.yaml, and the hashes of the files that it names.

    This comes after all checks of what the user may have got wrong, so that a command that is
    corrected works in the same folder.
    """
    if processor.local_rank() == 0:
        write_json(folder / _INPUTS, hashes)
        with atomic_path(folder / "config.yaml") as temporary:
            temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(_plain(cfg))), encoding="utf-8")


def _check_callbacks(callbacks: Any) -> None:
    """Find what is no callback. (What they may be made of is checked with everything else.)"""
    if callbacks is not None and not isinstance(callbacks, Mapping):
        raise BespokeError(
            f"callbacks={shown(callbacks)} is not possible: choose callbacks=default or"
            " callbacks=none."
        )
    for name, callback in (callbacks or {}).items():
        target = callback.get("_target_") if isinstance(callback, Mapping) else None
        if callback is not None and not re.fullmatch(_CALLBACK, str(target)):
            raise BespokeError(
                f"callbacks.{name} is no callback: give null, or a _target_ of"
                " bespoke.training.callbacks."
            )


def idle_settings(cfg: DictConfig, overrides: Sequence[str]) -> list[str]:
    """The overrides that change nothing, because the run does not train."""
    if cfg.trainer.max_steps:
        return []
    return [
        line
        for line in overrides
        if re.match(r"\+*(aug|background|loss|optimizer|scheduler)[.=]", line)
    ]


def _check_shares(value: Any, place: str = "aug") -> None:
    """Find an effect's `p` that is no share of the mixes: audiomentations does not say so."""
    for key, item in (
        (value.items() if isinstance(value, Mapping) else enumerate(value or ()))
        if isinstance(value, Mapping | list)
        else ()
    ):
        if key == "p" and "_target_" in value:
            is_number = isinstance(item, int | float) and not isinstance(item, bool)
            if not (is_number and 0 <= item <= 1):
                raise BespokeError(
                    f"{place}.p={shown(item)} is not possible: give the share of the mixes, from 0"
                    " to 1."
                )
        _check_shares(item, f"{place}.{key}")


def _check_numbers(value: Any, name: str = "") -> None:
    """Find what no setting can be; only blocks may be as long as they like."""
    if isinstance(value, Mapping | list):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            _check_numbers(item, f"{name}.{key}" if name else str(key))
    elif (
        isinstance(value, float)
        and not math.isfinite(value)
        and (name, value) != ("separate.block_seconds", math.inf)
    ):
        raise BespokeError(f"{name}={value} is not possible: give a number.")


def _check_settings(cfg: DictConfig) -> None:
    """Find what no run can use before anything is rendered."""
    defaults = inspect.signature(pl.Trainer).parameters
    for name, remedy in _UNUSED.items():
        value = cfg.trainer.get(name)
        if value is not None and value != defaults[name].default:
            raise BespokeError(f"trainer.{name}={shown(value)} is of no use here: {remedy}.")
    if cfg.trainer.max_steps == 0 and not re.search(_TRAINED, cfg.model._target_):
        raise BespokeError(
            "trainer.max_steps=0 leaves this network untrained: give a whole number from 1, or"
            " choose a recipe that starts from a trained network, such as recipe=auto."
        )
    hours = (
        cfg.data.batch_size * cfg.data.segment_seconds * max(1, cfg.data.validation_batches) / 3600
    )
    if hours > _MOST_HOURS:
        raise BespokeError(
            f"data.batch_size={cfg.data.batch_size} mixes of"
            f" data.segment_seconds={cfg.data.segment_seconds} in"
            f" data.validation_batches={cfg.data.validation_batches} are {hours:.0f} hours, which"
            f" are held at once: set them lower, to {_MOST_HOURS} hours at most."
        )
    interval, batches = (
        cfg.trainer.get("val_check_interval"),
        cfg.trainer.max_steps * cfg.trainer.get("accumulate_grad_batches", 1),
    )
    if isinstance(interval, int) and not 1 <= interval <= (
        batches if cfg.trainer.get("check_val_every_n_epoch") else math.inf
    ):
        raise BespokeError(
            f"trainer.val_check_interval={interval} is not possible: give a whole number from 1,"
            f" and with trainer.check_val_every_n_epoch to the {batches} batches of the run."
        )
    if cfg.keep == "best" and not 1 <= cfg.curve_steps <= cfg.trainer.max_steps:
        raise BespokeError(
            "keep=best chooses among the steps of the quality curve: set curve_steps, to at most"
            " trainer.max_steps."
        )
    if cfg.keep == "best" and not (cfg.get("callbacks") or {}).get("quality_curve"):
        raise BespokeError("keep=best needs the quality curve: set callbacks=default.")
    warmup_steps = cfg.scheduler.get("warmup_steps", 0)
    if 0 < cfg.trainer.max_steps <= warmup_steps:
        raise BespokeError(
            f"scheduler.warmup_steps={warmup_steps} is not possible: give less than"
            f" trainer.max_steps={cfg.trainer.max_steps}."
        )
    _check_early_stopping(cfg)
    if cfg.stft.window_seconds > LONGEST_WINDOW_SECONDS:
        raise BespokeError(
            f"stft.window_seconds={cfg.stft.window_seconds} is not possible: give at most"
            f" {LONGEST_WINDOW_SECONDS}."
        )
    try:
        Separator(
            STFT(cfg.data.sample_rate, **cfg.stft),
            _AnyNetwork(),
            **as_dict(cfg.separate),
        )
    except (TypeError, ValueError) as error:
        raise BespokeError(f"stft or separate: {one_sentence(error)}.") from error
    except BespokeError as error:  # which `bespoke apply` says too
        raise BespokeError(
            str(error) if "separate." in str(error) else f"separate: {error}"
        ) from error


def _check_early_stopping(cfg: DictConfig) -> None:
    """Find a metric that is measured too rarely to stop training early."""
    metric, patience = cfg.early_stopping.metric, cfg.early_stopping.patience
    if metric is None:
        return
    batches = cfg.trainer.get("accumulate_grad_batches", 1)
    if metric == "agreement":
        interval, setting = cfg.curve_steps, "curve_steps"
        if not (cfg.get("callbacks") or {}).get("quality_curve"):
            raise BespokeError(
                "early_stopping.metric=agreement needs the quality curve: set callbacks=default."
            )
    else:
        interval, setting = cfg.trainer.get("val_check_interval"), "trainer.val_check_interval"
        if not cfg.data.validation_batches:
            raise BespokeError(
                f"early_stopping.metric={metric} needs validation mixes: set"
                " data.validation_batches to at least 1."
            )
        if not isinstance(interval, int):  # a share of the epoch, or a time
            return
        interval = math.ceil(interval / batches)
    if not interval:
        raise BespokeError(f"early_stopping.metric={metric} is never measured: set {setting}.")
    if cfg.trainer.max_steps // interval <= patience:
        raise BespokeError(
            f"early_stopping.metric={metric} is measured every {interval} steps ({setting}), which"
            f" is not more than early_stopping.patience={patience} times in"
            f" trainer.max_steps={cfg.trainer.max_steps}: set {setting} or the patience lower."
        )


class _AnyNetwork(MaskNetwork):
    """In place of the network, which is made later and checks for itself what it can take."""

    takes_any_bins = True


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config without what may differ when a run is continued."""
    plain = as_dict(cfg)
    for name in ("callbacks", "ckpt", "log_audio_steps", "report", "threads"):
        plain.pop(name, None)
    chosen = plain["song"].pop("background", None) or "mixture"
    if plain["background"]["_target_"] == "bespoke.data.background.song_background":
        # Written as what it stands for, as if it had been named.
        if chosen == "mixture":
            plain["background"].pop("in_time", None)
        plain["background"]["_target_"] = f"bespoke.data.background.{chosen.capitalize()}Background"
    # As runs did before there was a choice.
    if plain["keep"] == "last":
        plain.pop("keep")
    if plain["early_stopping"]["metric"] is None:
        plain.pop("early_stopping")
    if plain["scheduler"] == _CONSTANT:
        plain.pop("scheduler")
    return plain


def _another(folder: Path, changed: Sequence[str]) -> str:
    return (
        f"The run in {folder} has another config ({', '.join(changed[:5])}): repeat its overrides,"
        " or start a new run."
    )


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted(set(old) | set(new), key=str)
        return [
            line
            for key in keys
            for line in _differences(
                old.get(key), new.get(key), f"{name}.{key}" if name else str(key)
            )
        ]
    return [] if old == new else [f"{name}: {old} there, {new} now"]
