"""One run, from config to results; the only room that instantiates configs."""

import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.experimental.callback import Callback as HydraCallback
from hydra.utils import instantiate
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException

import bespoke
from bespoke import logs, report
from bespoke.audio import atomic_path, write_wav
from bespoke.data import VALIDATION, MixDataModule, MixStream
from bespoke.errors import BespokeError
from bespoke.evaluate import evaluate
from bespoke.separate import load_separator
from bespoke.song import Song
from bespoke.stft import STFT
from bespoke.system import BespokeSystem

log = logging.getLogger(__name__)

RESULTS = ("config.yaml", "checkpoints", "target.wav", "residual.wav", "metrics.json")
# A config names what it wants made; only these can be, so that a config from a stranger runs no code of its own.
ALLOWED_TARGETS = re.compile(
    r"audiomentations\.[A-Z]\w*|bespoke\.(background|augment|model|loss|logs)\.[A-Za-z]\w*"
    r"|torch\.optim\.(Adam|AdamW|NAdam|RAdam|SGD|RMSprop)|pytorch_lightning\.Trainer"
)


def train(cfg: DictConfig) -> float | None:
    """Do one run: load, render, train, separate, evaluate, write. Returns the SI-SDR improvement in dB where there is a reference.

    Raises:
        BespokeError: something the user can put right.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    seconds: dict[str, float] = {}
    _check_targets(cfg)
    resume = _prepare_folder(cfg, folder)
    with _timed(seconds, "load"):
        song = Song.load(OmegaConf.to_container(cfg.song, resolve=True, throw_on_missing=True))
        if song.is_standin:
            log.warning(_standin_notice(cfg))
    with _timed(seconds, "render"):
        data = _data(cfg, song)
    stft = STFT(cfg.data.sample_rate, **cfg.stft)
    torch.manual_seed(cfg.seed)
    model = _instantiate(cfg.model, bins=stft.bins)
    system = BespokeSystem(stft, model, _instantiate(cfg.loss), _instantiate(cfg.optimizer), cfg.seed)

    loggers, failed = [], True
    try:
        loggers = _instantiate(cfg.logger, folder=folder, group=_sweep_name())
        for logger in loggers:
            logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
        trainer = _trainer(cfg, folder, loggers)
        checkpoint = folder / "checkpoints" / "last.ckpt"
        with _timed(seconds, "train"):
            trainer.fit(system, data, ckpt_path=checkpoint if resume else None, weights_only=True)
            trainer.save_checkpoint(checkpoint)
        if not trainer.is_global_zero:
            failed = False
            return None
        if trainer.global_step < cfg.trainer.max_steps:
            raise BespokeError(f"Training was interrupted at step {trainer.global_step}: go on with ckpt=last hydra.run.dir={folder}.")
        with _timed(seconds, "separate"):
            separator = load_separator(checkpoint, str(trainer.strategy.root_device))
            separator = type(separator)(separator.stft, separator.model, **cfg.separate)
            target, residual = separator.separate(song.mixture, song.sample_rate)
            write_wav(folder / "target.wav", target, song.sample_rate)
            write_wav(folder / "residual.wav", residual, song.sample_rate)
        metrics: dict[str, Any] = {}
        if song.reference is not None:
            with _timed(seconds, "evaluate"):
                metrics = evaluate(target, song.mixture, song.reference, song.sample_rate)
        metrics |= _facts(cfg, song, trainer, seconds)
        _write_json(folder / "metrics.json", metrics)
        signals = {"mixture": song.mixture, "target": target, "residual": residual}
        logs.log_results(loggers, signals, song.sample_rate, metrics, trainer.global_step)
        log.info(report.summary(folder, metrics))
        failed = False
        return metrics.get("si_sdr_improvement")
    finally:
        logs.finish(loggers, failed)


def launch(main: Callable[[], None]) -> int:
    """Call a Hydra entry point; print errors that are for the user as one sentence. Returns the exit code: 2 for those.

    A multirun ends with its table, also when some of its jobs failed.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands exceptions on, instead of printing them and exiting with 1
    _quieten()
    try:
        with contextlib.redirect_stderr(_WithoutHydrasPreface(sys.stderr)):
            main()
    except (BespokeError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {_one_sentence(error)}", file=sys.stderr)
        return 2
    finally:
        if SweepTable.folder is not None:
            print(report.write_table(SweepTable.folder))
    return 0


class _WithoutHydrasPreface:
    """A stream without the line that Hydra writes before it hands on a job's exception: ours says all."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if text.startswith("Error executing job with overrides:") else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class SweepTable(HydraCallback):
    """Hydra callback that notes where a multirun puts its jobs. (Hydra calls no callback at the end of a sweep in which a job failed.)"""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        SweepTable.folder = Path(config.hydra.sweep.dir)

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        """Keep the reason of a failed job beside its other files."""
        if SweepTable.folder is not None and isinstance(job_return._return_value, Exception):
            folder = Path(job_return.hydra_cfg.hydra.runtime.output_dir)
            overrides = list(job_return.overrides or [])
            _write_json(folder / "error.json", {"error": _one_sentence(job_return._return_value), "overrides": overrides})


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final name and moves it there: a killed run leaves the one before, whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)


class StepLog(Callback):
    """Where there is no terminal for a progress bar: a line now and then."""

    def __init__(self, every_seconds: float = 20.0):
        self.every_seconds = every_seconds

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.first_step, self.began = trainer.global_step, time.monotonic()
        self.last = self.began

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        now, step = time.monotonic(), trainer.global_step
        if now - self.last < self.every_seconds and step < trainer.max_steps:
            return
        self.last = now
        rate = (step - self.first_step) / max(now - self.began, 1e-9)
        left = (trainer.max_steps - step) / max(rate, 1e-9)
        log.info("step %d of %d, loss %.5f, %.1f steps/s, %.0f s left", step, trainer.max_steps, outputs["loss"].item(), rate, left)


def _prepare_folder(cfg: DictConfig, folder: Path) -> bool:
    """Refuse to overwrite results, or to continue what is not there; write config.yaml. Returns whether to go on from a checkpoint."""
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        return (folder / "checkpoints" / "last.ckpt").exists() and cfg.ckpt == "last"
    written = folder / "config.yaml"
    if cfg.ckpt not in (None, "last"):
        raise BespokeError(
            f"ckpt={cfg.ckpt} is not known: ckpt=last continues the run in hydra.run.dir; scripts/separate.py applies a checkpoint."
        )
    if cfg.ckpt == "last":
        if not written.is_file():
            raise BespokeError(f"There is no run to continue in {folder}: set hydra.run.dir to the folder of one, or leave ckpt=last out.")
        changed = _differences(OmegaConf.to_container(OmegaConf.load(written)), _plain(cfg))
        if changed:
            raise BespokeError(
                f"The run in {folder} has another config ({', '.join(changed[:5])}): repeat its overrides, or start a new run."
            )
        return (folder / "checkpoints" / "last.ckpt").is_file()
    present = [name for name in RESULTS if (folder / name).exists()]
    if present:
        raise BespokeError(
            f"{folder} already has results ({', '.join(present)}): choose another hydra.run.dir, or continue with ckpt=last."
        )
    with atomic_path(written) as temporary:
        temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(_plain(cfg))))
    return False


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config without what may differ when a run is continued."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    plain.pop("ckpt")
    return plain


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted(set(old) | set(new), key=str)
        return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))]
    return [] if old == new else [f"{name}: {old} there, {new} now"]


def _data(cfg: DictConfig, song: Song) -> MixDataModule:
    """Render and load all that mixes are made of."""
    sample_rate = int(cfg.data.sample_rate)
    targets = song.render_target(sample_rate)
    background = _instantiate(cfg.background)(song, sample_rate)
    settings = {key: cfg.data[key] for key in ("segment_seconds", "batch_size", "silent_share", "label")}
    policy = _instantiate(cfg.aug)
    streams = (MixStream(targets, background, policy, sample_rate, seed=cfg.seed, **settings, stream=stream) for stream in (0, VALIDATION))
    workers = cfg.data.workers
    if workers == "auto":  # on a CPU the mixes compete with the training for the cores
        workers = min(4, (os.cpu_count() or 1) - 1) if torch.cuda.is_available() else 0
    return MixDataModule(*streams, cfg.data.validation_batches, int(workers), {"seed": cfg.seed, "sample_rate": sample_rate, **settings})


def _trainer(cfg: DictConfig, folder: Path, loggers: list) -> pl.Trainer:
    settings = dict(cfg.trainer)
    if settings.get("precision") == "auto":
        settings["precision"] = precision(settings.get("accelerator", "auto"))
    if settings["max_steps"] < 1:
        raise BespokeError(f"trainer.max_steps={settings['max_steps']}: training needs at least one step.")
    bar = sys.stderr.isatty()
    callbacks: list[Callback] = [
        ModelCheckpoint(folder / "checkpoints", "last", every_n_train_steps=cfg.checkpoint_steps, enable_version_counter=False)
    ]
    try:
        return _instantiate(
            OmegaConf.create(settings),
            default_root_dir=str(folder),
            logger=loggers or False,
            callbacks=callbacks if bar else [*callbacks, StepLog()],
            plugins=[AtomicCheckpointIO()],
            enable_progress_bar=bar,
            # One epoch of all steps, so that the bar knows how many are left.
            limit_train_batches=settings["max_steps"] * settings.get("accumulate_grad_batches", 1),
        )
    except MisconfigurationException as error:
        raise BespokeError(f"trainer: {_one_sentence(error)}") from error


def precision(accelerator: str) -> str:
    """Mixed precision where there is an NVIDIA GPU: bf16 where the card has it (Ampere on), fp16 before (V100); 32 bits elsewhere."""
    if accelerator in ("cpu", "mps") or not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "16-mixed"


def _instantiate(cfg: DictConfig, **arguments: Any) -> Any:
    """Hydra's instantiate, with lists and dictionaries as plain ones and the user's errors as themselves."""
    try:
        return instantiate(cfg, _convert_="all", **arguments)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, BespokeError | MisconfigurationException):
            raise cause from None
        raise BespokeError(f"{cfg.get('_target_')} cannot be made from its settings: {_one_sentence(cause)}") from error


def _check_targets(cfg: DictConfig) -> None:
    for name, value in _leaves(OmegaConf.to_container(cfg, resolve=False)):
        if name.endswith("_target_") and (name.startswith("song.") or not ALLOWED_TARGETS.fullmatch(str(value))):
            raise BespokeError(
                f"{name}={value} is not allowed: configs may name audiomentations transforms, torch optimizers and Bespoke's own classes,"
                " and a song none."
            )


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping | list):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _facts(cfg: DictConfig, song: Song, trainer: pl.Trainer, seconds: dict[str, float]) -> dict[str, Any]:
    """What metrics.json always holds."""
    packages = ("torch", "torchaudio", "pytorch-lightning", "hydra-core", "numpy", "audiomentations", "pyfluidsynth", "pretty_midi")
    versions = {"bespoke": bespoke.__version__, "python": platform.python_version()}
    soundfonts = {patch.soundfont for voice in (song.target, *song.others) if voice for patch in voice.patches}
    return {
        "song": song.name,
        "is_standin": song.is_standin,
        "recipe": cfg.recipe,
        "seed": cfg.seed,
        "steps": trainer.global_step,
        "seconds": {**{stage: round(value, 3) for stage, value in seconds.items()}, "total": round(sum(seconds.values()), 3)},
        "song_seconds": song.mixture.shape[-1] / song.sample_rate,
        "overrides": list(HydraConfig.get().overrides.task),
        "device": str(trainer.strategy.root_device),
        "precision": str(trainer.precision),
        "threads": torch.get_num_threads(),
        "versions": versions | {package: importlib.metadata.version(package) for package in packages},
        "hashes": {**song.hashes, **{f"soundfont {soundfont.path.name}": soundfont.hash for soundfont in soundfonts}},
    }


def _standin_notice(cfg: DictConfig) -> str:
    score = "score.mid" if str(cfg.song.target.score).endswith("score.mid") else "target.mid"
    folder = Path(cfg.song.mixture).parent
    return (
        f"THIS IS A STAND-IN, NOT THE REAL SONG {cfg.song.name}: an original piece of the same arrangement. For the real one put your own"
        f" recording at {folder}/mix.wav (or .flac, .mp3, ...) and its MIDI at {folder}/{score}."
    )


def _sweep_name() -> str | None:
    config = HydraConfig.get()
    return Path(config.sweep.dir).name if config.mode is not None and config.mode.name == "MULTIRUN" else None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - began


def _one_sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.strip().startswith(("full_key", "object_type"))]
    return " ".join(lines) or type(error).__name__


def _quieten() -> None:
    """Keep Lightning's advice and the libraries' deprecations out of the user's sight."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"pytorch_lightning|lightning_fabric|torch|wandb")
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
