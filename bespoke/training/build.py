"""Construction of objects from a config."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

from bespoke.audio.stft import STFT
from bespoke.data.augment import Policy
from bespoke.data.background import Background, check_background
from bespoke.data.song import Song
from bespoke.data.stream import TRAIN, VALIDATION, MixDataModule, MixStream
from bespoke.evaluation.agreement import Agreement
from bespoke.models.features import ScoreFeatures
from bespoke.models.networks import MaskNetwork
from bespoke.models.separator import Separator, uses_bfloat16
from bespoke.training import logs, preflight
from bespoke.training.callbacks import AtomicCheckpointIO, EarlyStop, LossCurve, QualityCurve
from bespoke.training.schedules import Constant
from bespoke.training.system import BespokeSystem
from bespoke.utils import processor
from bespoke.utils.configs import as_dict
from bespoke.utils.errors import BespokeError, one_sentence

# Lightning's own names; into a file, as what it would log is not shown.
_PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


@dataclass(frozen=True)
class Parts:
    """Objects of a config that are made before the song is loaded.

    Attributes:
        policy: the augmentation.
        system: the network, with loss and optimizer.
        make_background: takes a song and a sample rate, returns the background.
    """

    policy: Policy
    system: BespokeSystem
    make_background: partial[Background]


def make_parts(cfg: DictConfig) -> Parts:
    """Construct the objects of a config, and check those that need a song.

    Errors in the config are thus found before anything is loaded or computed.

    Raises:
        BespokeError: an object cannot be constructed.
    """
    policy = make(cfg, "aug")
    policy.check(cfg.data.sample_rate)
    system = _system(cfg)
    make_background = make(cfg, "background", _partial_=True)
    check_background(make_background, bool(cfg.song.get("others")), system.model.uses_score)
    logs.check(**cfg.logger)
    _callbacks(cfg)
    preflight.check_device(cfg.trainer)
    trainer = make_trainer(cfg, system.model, callbacks=[ModelCheckpoint()])
    if cfg.trainer.max_steps:
        preflight.check_precision(system, trainer)
    return Parts(policy, system, make_background)


def _system(cfg: DictConfig) -> BespokeSystem:
    """Construct the network, with initial weights from the seed, and its loss and optimizer.

    Raises:
        BespokeError: a setting is invalid.
    """
    stft = STFT(cfg.data.sample_rate, **cfg.stft)
    torch.manual_seed(cfg.seed)
    model = make(cfg, "model", bins=stft.bins)
    if model.uses_score and not cfg.align:
        raise BespokeError(
            "This network uses the score, which must be in time with the recording: set align=true."
        )
    separate = as_dict(cfg.separate)
    Separator(stft, model, **separate)  # checks the settings for this network
    schedule = make(cfg, "scheduler")
    system = BespokeSystem(
        stft,
        model,
        make(cfg, "loss"),
        make(cfg, "optimizer", _partial_=True),
        cfg.seed,
        separate,
        None if schedule == Constant() else partial(schedule.factor, steps=cfg.trainer.max_steps),
    )
    try:
        system.configure_optimizers()  # the optimizer checks its settings when it is constructed
    except (TypeError, ValueError, RuntimeError) as error:
        raise BespokeError(_not_possible("optimizer", error)) from error
    return system


def make_data(cfg: DictConfig, song: Song, parts: Parts) -> MixDataModule:
    """Render and load everything that mixes are made of.

    Args:
        cfg: the whole config.
        song: the song that training uses, with the first estimate if there is one.
        parts: objects of the config.

    Raises:
        BespokeError: the background lacks something, or a sound cannot be rendered.
    """
    sample_rate = int(cfg.data.sample_rate)
    # First, because the song may lack what the background needs.
    background = parts.make_background(song, sample_rate)
    targets = song.render_target(sample_rate)
    if song.estimate is not None and cfg.data.self_training:
        targets.append(song.render_estimate(sample_rate))
    settings = {
        key: cfg.data[key] for key in ("segment_seconds", "batch_size", "silent_share", "label")
    }
    scored: dict[str, Any] = {}
    if parts.system.model.uses_score and song.target is not None:
        scored = {
            "notes": song.target.part.notes,
            "features": ScoreFeatures(parts.system.stft, song.target.tuning_cents),
        }

    def stream(number: int) -> MixStream:
        given = settings | scored | {"seed": cfg.seed, "stream": number}
        return MixStream(targets, background, parts.policy, sample_rate, **given)

    workers = cfg.data.workers
    if workers == "auto":  # on a CPU, workers would compete with the training for cores
        workers = (
            min(4, processor.cores() - 1)
            if torch.cuda.is_available() and cfg.trainer.accelerator != "cpu"
            else 0
        )
    return MixDataModule(
        stream(TRAIN),
        stream(VALIDATION),
        cfg.data.validation_batches,
        int(workers),
        {"seed": cfg.seed, "sample_rate": sample_rate, **settings},
    )


def make_callbacks(
    cfg: DictConfig,
    folder: Path,
    loggers: list,
    song: Song,
    separate: dict[str, Any],
    agreement: Agreement | None,
) -> list[Callback]:
    """Callbacks of the trainer.

    Args:
        cfg: the whole config.
        folder: the run's folder.
        loggers: the run's loggers.
        song: the song that is separated.
        separate: settings of `Separator`, notes included.
        agreement: the metric without a reference, if it is wanted.
    """
    callbacks: list[Callback] = [
        LossCurve(folder / "training.csv"),
        ModelCheckpoint(
            folder / "checkpoints",
            "last",
            every_n_train_steps=cfg.checkpoint_steps,
            enable_version_counter=False,
        ),
    ]
    best = folder / "checkpoints" / "best.ckpt" if cfg.keep == "best" else None
    of_run = {
        "song": song,
        "settings": separate,
        "agreement": agreement,
        "path": folder / "curve.csv",
        "best": best,
    }
    for callback in _callbacks(cfg).values():
        if isinstance(callback, partial):  # it wants something of the run, by the argument's name
            wanted = inspect.signature(callback.func).parameters.keys() & of_run.keys()
            callback = callback(**{name: of_run[name] for name in wanted})
        callbacks.append(callback)
    if cfg.early_stopping.metric is not None:
        curves = [callback for callback in callbacks if isinstance(callback, QualityCurve)]
        callbacks.append(EarlyStop(**cfg.early_stopping, curve=curves[0] if curves else None))
    return callbacks


def _callbacks(cfg: DictConfig) -> dict[str, Callback | partial]:
    """The callbacks that the config names, without those that are null.

    A callback that needs something of the run is given as a partial, which still has to be called.
    """
    made = make(cfg, "callbacks") if cfg.get("callbacks") else {}
    return {name: callback for name, callback in made.items() if callback is not None}


def make_trainer(
    cfg: DictConfig,
    model: MaskNetwork,
    folder: Path | None = None,
    loggers: Sequence = (),
    callbacks: Sequence[Callback] = (),
) -> pl.Trainer:
    """Construct Lightning's trainer. With only config and network, check that it can be made.

    Raises:
        BespokeError: a setting is invalid.
    """
    settings = dict(cfg.trainer)
    if settings.get("precision") == "auto":
        settings["precision"] = precision(settings.get("accelerator", "auto"), model)
    profiler = _PROFILERS.get(settings.get("profiler", ""))
    own = {"profiler": profiler(folder, "profile")} if profiler and folder else {}
    return make(
        OmegaConf.create({"trainer": settings}),
        "trainer",
        **own,
        default_root_dir=folder and str(folder),
        logger=list(loggers) or False,
        callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        # A single epoch contains all steps.
        limit_train_batches=settings["max_steps"] * settings.get("accumulate_grad_batches", 1),
    )


def precision(accelerator: str, model: MaskNetwork | None = None) -> str:
    """The precision that `trainer.precision=auto` stands for.

    On an NVIDIA GPU it is mixed precision: bfloat16 from Ampere on, float16 on older cards (V100).
    On a CPU it is bfloat16 mixed precision if the CPU has instructions for it and the network was
    trained with it. Otherwise it is float32.
    """
    if accelerator in ("cpu", "mps") or not torch.cuda.is_available():
        return (
            "bf16-mixed"
            if accelerator != "mps" and model is not None and uses_bfloat16(model)
            else "32-true"
        )
    return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "16-mixed"


def make(cfg: DictConfig, group: str, /, **arguments: Any) -> Any:
    """Instantiate a config group with Hydra, with plain lists and dictionaries as arguments.

    Raises:
        BespokeError: the object cannot be constructed from its settings.
    """
    try:
        return instantiate(cfg[group], _convert_="all", **arguments)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, BespokeError):
            raise cause from None
        found = re.search(r"full_key: (\S+)", str(error))
        place = found[1] if found else group
        _check_paths(place, OmegaConf.select(cfg, place))
        raise BespokeError(_not_possible(place, cause)) from error


def _check_paths(place: str, settings: Any) -> None:
    """Find a path that leads nowhere, of which libraries say all sorts of things.

    Raises:
        BespokeError: there is one, or one of a folder without sounds.
    """
    if not isinstance(settings, DictConfig):
        return
    for key, value in as_dict(settings).items():
        if not re.search(r"(^|_)(path|paths)$", key):
            continue
        paths = value if isinstance(value, list) else [value]
        for path in map(str, paths):
            if not Path(path).exists():
                raise BespokeError(
                    f"{place}.{key}={path} does not exist: check the path, which is taken from"
                    " where the command started."
                )
        listed = ", ".join(map(str, paths))
        raise BespokeError(
            f"{place}.{key}={listed} has no sounds that can be used: give the path of audio files."
        )


def _not_possible(place: str, error: BaseException) -> str:
    """Error message for a library's exception, with the command line's settings of that group."""
    group = place.partition(".")[0]
    lines = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    given = [line for line in lines if re.match(rf"[+~]*{group}[.=]", line)]
    reason = one_sentence(error).rstrip(".!") if str(error) else "a value is out of range"
    if given:
        return (
            f"{place} cannot be made with {', '.join(given)} ({reason}): "
            "change that, or leave it out."
        )
    return f"{place} cannot be made of its settings in the config ({reason}): change them there."
