"""From a config to objects; with `run` and the entry points all that knows Hydra."""

import inspect
import re
from collections.abc import Callable, Sequence
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
from bespoke.training.callbacks import AtomicCheckpointIO, LossCurve
from bespoke.training.system import BespokeSystem
from bespoke.utils import processor
from bespoke.utils.configs import as_dict
from bespoke.utils.errors import BespokeError, one_sentence


@dataclass(frozen=True)
class Parts:
    """What a config names, made before there is a song.

    Attributes:
        policy: the augmentation.
        system: the network with what trains it.
        make_background: of a song and a sample rate.
    """

    policy: Policy
    system: BespokeSystem
    make_background: Callable[[Song, int], Background]


def make_parts(cfg: DictConfig) -> Parts:
    """Make, or where it wants a song try, all that a config names: what cannot be made is found before
    anything is read or computed.

    Raises:
        BespokeError: something cannot be made.
    """
    policy = make(cfg, "aug")
    policy.check(cfg.data.sample_rate)
    system = _system(cfg)
    make_background = make(cfg, "background", _partial_=True)
    check_background(make_background, bool(cfg.song.get("others")), system.model.uses_score)
    logs.check(**cfg.logger)
    _callbacks(cfg)
    preflight.check_device(cfg.trainer)
    preflight.check_precision(
        system, make_trainer(cfg, system.model, callbacks=[ModelCheckpoint()])
    )
    return Parts(policy, system, make_background)


def _system(cfg: DictConfig) -> BespokeSystem:
    """Make the network, with the seed's initial weights, and what trains it.

    Raises:
        BespokeError: a setting is not possible.
    """
    stft = STFT(cfg.data.sample_rate, **cfg.stft)
    torch.manual_seed(cfg.seed)
    model = make(cfg, "model", bins=stft.bins)
    if model.uses_score and not cfg.align:
        raise BespokeError(
            "This network uses the score, which must be in time with the recording: set align=true."
        )
    separate = as_dict(cfg.separate)
    Separator(stft, model, **separate)  # which checks what this network can take
    system = BespokeSystem(
        stft, model, make(cfg, "loss"), make(cfg, "optimizer", _partial_=True), cfg.seed, separate
    )
    try:
        system.configure_optimizers()  # its settings are checked when it is made
    except (TypeError, ValueError, RuntimeError) as error:
        raise BespokeError(_not_possible("optimizer", error)) from error
    return system


def make_data(cfg: DictConfig, song: Song, parts: Parts) -> MixDataModule:
    """Render and load all that mixes are made of.

    Args:
        song: what training listens to, with the estimate where there is one.

    Raises:
        BespokeError: the background lacks something, or a sound cannot be rendered.
    """
    sample_rate = int(cfg.data.sample_rate)
    background = parts.make_background(
        song, sample_rate
    )  # first: it may be impossible for this song
    targets = song.render_target(sample_rate)
    if song.estimate is not None and cfg.data.self_training:
        targets.append(song.render_estimate(sample_rate))
    settings = {
        key: cfg.data[key] for key in ("segment_seconds", "batch_size", "silent_share", "label")
    }
    scored: dict[str, Any] = {}
    if parts.system.model.uses_score and song.target is not None:
        scored = {"notes": song.target.part.notes, "features": ScoreFeatures(parts.system.stft)}

    def stream(number: int) -> MixStream:
        given = settings | scored | {"seed": cfg.seed, "stream": number}
        return MixStream(targets, background, parts.policy, sample_rate, **given)

    workers = cfg.data.workers
    if workers == "auto":  # on a CPU the mixes compete with the training for the cores
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
    """What looks on while the network trains.

    Args:
        separate: the `Separator`'s settings, notes included.
        agreement: judges the separation where there is no reference.
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
    return callbacks


def _callbacks(cfg: DictConfig) -> dict[str, Callback | partial]:
    """What the config names, but for what is null; of what wants something of the run, how to make it."""
    made = make(cfg, "callbacks") if cfg.get("callbacks") else {}
    return {name: callback for name, callback in made.items() if callback is not None}


def make_trainer(
    cfg: DictConfig,
    model: MaskNetwork,
    folder: Path | None = None,
    loggers: Sequence = (),
    callbacks: Sequence[Callback] = (),
) -> pl.Trainer:
    """Lightning's trainer; with nothing but config and network, to see whether it can be made.

    Raises:
        BespokeError: it cannot.
    """
    settings = dict(cfg.trainer)
    if settings.get("precision") == "auto":
        settings["precision"] = precision(settings.get("accelerator", "auto"), model)
    return make(
        OmegaConf.create({"trainer": settings}),
        "trainer",
        default_root_dir=folder and str(folder),
        logger=list(loggers) or False,
        callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        # One epoch of all steps.
        limit_train_batches=settings["max_steps"] * settings.get("accumulate_grad_batches", 1),
    )


def precision(accelerator: str, model: MaskNetwork | None = None) -> str:
    """Mixed precision where there is an NVIDIA GPU: bf16 where the card has it (Ampere on), fp16 before (V100); bf16 on a CPU that
    multiplies such numbers, for a network that was trained in them; 32 bits elsewhere."""
    if accelerator in ("cpu", "mps") or not torch.cuda.is_available():
        return (
            "bf16-mixed"
            if accelerator != "mps" and model is not None and uses_bfloat16(model)
            else "32-true"
        )
    return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "16-mixed"


def make(cfg: DictConfig, group: str, /, **arguments: Any) -> Any:
    """Hydra's instantiate, with lists and dictionaries as plain ones.

    Raises:
        BespokeError: what the group names cannot be made of its settings.
    """
    try:
        return instantiate(cfg[group], _convert_="all", **arguments)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, BespokeError):
            raise cause from None
        place = re.search(r"full_key: (\S+)", str(error))
        raise BespokeError(_not_possible(place[1] if place else group, cause)) from error


def _not_possible(place: str, error: BaseException) -> str:
    """A library's objection, with the settings of the command line that it may be about."""
    group = place.partition(".")[0]
    lines = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    given = [line for line in lines if re.match(rf"[+~]*{group}[.=]", line)]
    reason = one_sentence(error).rstrip(".!") if str(error) else "a value is out of range"
    if given:
        return f"{place} cannot be made with {', '.join(given)} ({reason}): change that, or leave it out."
    return f"{place} cannot be made of its settings in the config ({reason}): change them there."
