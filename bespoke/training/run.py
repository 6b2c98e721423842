"""One run, from config to results; the only room that instantiates configs."""

import contextlib
import gc
import importlib.metadata
import json
import logging
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import nn

import bespoke
from bespoke.audio.stft import STFT
from bespoke.data.augment import Policy
from bespoke.data.background import Background, check_background
from bespoke.data.song import Song
from bespoke.data.stream import VALIDATION, MixDataModule, MixStream
from bespoke.evaluation.agreement import Agreement
from bespoke.evaluation.metrics import evaluate
from bespoke.evaluation.report.summary import collect_warnings, plot_alignment, summary, write_page
from bespoke.evaluation.timbre import choose_patches
from bespoke.models.features import ScoreFeatures
from bespoke.models.separator import Separator, load_separator, silent_elsewhere, uses_bfloat16
from bespoke.score.align import LOW_CONFIDENCE, NO_CONFIDENCE, align, anywhere, within
from bespoke.score.midi import Note, write_midi
from bespoke.training import logs, preflight
from bespoke.training.callbacks import AtomicCheckpointIO, Listening, LossCurve, QualityCurve, StepLog, TrainingFigures, peak_memory_mb
from bespoke.training.system import BespokeSystem
from bespoke.utils import processor, progress
from bespoke.utils.errors import BespokeError, Interrupted, one_sentence
from bespoke.utils.files import write_json
from bespoke.utils.memory import give_back

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> float | None:
    """Do one run: load, render, train, separate, evaluate, write.

    Returns:
        In dB the SI-SDR improvement where there is a reference, else the agreement where `curve_steps` asks for it, else None.

    Raises:
        BespokeError: something the user can put right.
    """
    if not gc.get_freeze_count():
        gc.freeze()  # all that was imported: else each stage's collection looks through it, for a quarter of a second
    with collect_warnings() as warnings:
        return _train(cfg, Path(HydraConfig.get().runtime.output_dir), warnings)


def _train(cfg: DictConfig, folder: Path, warnings: list[str]) -> float | None:
    seconds: dict[str, float] = {}
    preflight.check(cfg)
    if "LOCAL_RANK" not in os.environ:  # of several processes that train together Lightning gives each its share
        processor.use_free_cores(None if cfg.threads == "auto" else cfg.threads)
    resume = preflight.prepare_folder(cfg, folder, in_sweep=_sweep_name() is not None)
    if resume and _sweep_name() and (folder / "metrics.json").is_file():  # written last
        log.info("%s is finished already.", folder)
        return _objective(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
    policy, system, make_background = make_parts(cfg)
    with _timed(seconds, "load"):
        song = Song.load(OmegaConf.to_container(cfg.song, resolve=True), max(22050, cfg.data.sample_rate))
        preflight.check_space(folder, song.source)
    if resume:
        preflight.check_inputs(folder, song.hashes)
    if song.is_standin:
        log.warning(_standin_notice(cfg))
    notes: tuple[Note, ...] = ()
    facts: dict[str, Any] = {}
    if cfg.align:
        with _timed(seconds, "align"):
            song, notes, facts["alignment"] = _align(song, folder)
    if system.model.uses_score:
        system.hparams.separate["notes"] = [list(astuple(note)) for note in notes]
    separate = {**OmegaConf.to_container(cfg.separate), "notes": notes}
    is_aligned = facts.get("alignment", {}).get("used", False)
    if is_aligned and system.model.uses_score and (notice := silent_elsewhere(notes, song.seconds)):
        facts["alignment"]["notice"] = notice
        covered_seconds = max(note.end_seconds for note in notes) - min(note.start_seconds for note in notes)
        log.log(logging.WARNING if covered_seconds < song.seconds / 2 else logging.INFO, notice)
    heard = song.to_train_on(cfg.data.listen_seconds, is_aligned)
    heard_notes: Sequence[Note] = ()
    if system.model.uses_score:
        heard_notes = heard.target.part.notes if is_aligned else anywhere(heard.target.part.notes, heard.seconds)
    first = Separator(system.stft, system.model, **{**separate, "notes": heard_notes, "strength": 1.0})
    if system.model.uses_score:
        if "TimeStretch" in OmegaConf.to_yaml(cfg.aug):
            log.warning(
                "This augmentation moves the target in time (TimeStretch), away from the notes that the network is told: leave it out."
            )
        with _timed(seconds, "estimate"):
            heard = replace(heard, estimate=first.separate(*heard.recording)[0])
    agreement = None
    if cfg.curve_steps:
        with _timed(seconds, "agreement"):
            agreement = _agreement(song, facts.get("alignment"), cfg.keep)
    system.train()  # a separator leaves it in evaluation, and Lightning as it finds it
    if song.target is not None and not song.target.patches:
        with _timed(seconds, "patches"):
            heard, facts["patches"] = choose_patches(heard, None if not cfg.align else heard.target.part.notes if is_aligned else ())
            song = replace(song, target=replace(heard.target, part=song.target.part))
    log.info("%s: %.1f s of audio, %d steps, into %s", song.name, song.seconds, cfg.trainer.max_steps, folder)
    if heard.seconds < song.seconds:
        log.info("Training listens to %.1f s of it.", heard.seconds)
    if song.others and "SynthBackground" not in OmegaConf.to_yaml(cfg.background):
        log.warning("song.others is not used: background=synth would use it.")
    loggers, failed = [], True
    try:
        # Of several processes that train together, one logs.
        loggers = [] if int(os.environ.get("LOCAL_RANK", 0)) else _instantiate(cfg, "logger", folder=folder, group=_sweep_name())
        trainer = _trainer(cfg, system.model, folder, loggers, _callbacks(cfg, folder, loggers, song, separate, agreement))
        with _timed(seconds, "render"):
            data = _data(cfg, heard, policy, make_background, system)
        preflight.write_config(cfg, folder, song.hashes)
        write_json(folder / "mixes.json", data.train.describe(0))
        logs.log_config(loggers, OmegaConf.to_container(cfg, resolve=True), HydraConfig.get().runtime.choices)
        checkpoint = folder / "checkpoints" / "last.ckpt"
        with _timed(seconds, "train"):
            first_step = _fit(trainer, system, data, checkpoint if resume else None)
            trainer.save_checkpoint(checkpoint)
        if not trainer.is_global_zero:
            failed = False
            return None
        if agreement is not None and cfg.keep == "best" and (best := checkpoint.with_name("best.ckpt")).is_file():
            checkpoint, facts["kept_step"] = best, torch.load(best, weights_only=True, map_location="cpu")["global_step"]
        with _timed(seconds, "separate"):
            separator = load_separator(checkpoint, str(trainer.strategy.root_device))
            separator.write_stems(song.source, folder / "target.wav", folder / "residual.wav")
        metrics: dict[str, Any] = {}
        if song.reference is not None or agreement is not None:
            with _timed(seconds, "evaluate"):
                estimate = song.read_stem(folder / "target.wav")
                if song.reference is not None:
                    metrics = evaluate(estimate, song.mixture, song.reference, song.sample_rate)
                if agreement is not None:
                    metrics["agreement"] = agreement(estimate)
                del estimate  # of a long song the report needs the room
        metrics |= _facts(cfg, song, trainer, seconds) | {"resumed_from_step": first_step} | facts | {"warnings": warnings}
        write_json(folder / "metrics.json", metrics)
        if cfg.report:
            with _timed(seconds, "report"):
                heard_whole = heard.seconds == song.seconds
                write_page(folder, replace(song, estimate=heard.estimate) if heard_whole else song, metrics)
            write_json(folder / "metrics.json", metrics | _facts(cfg, song, trainer, seconds))
        if logs.can_play(loggers):
            target = song.read_stem(folder / "target.wav", logs.MAX_SECONDS)
            logs.log_separation(loggers, song.mixture, target, song.sample_rate, trainer.global_step, song.reference, again=True)
        logs.log_results(loggers, folder, metrics, trainer.global_step)
        log.info(summary(folder, metrics))
        failed = False
        return _objective(metrics)
    finally:
        logs.finish(loggers, failed)


def make_parts(cfg: DictConfig) -> tuple[Policy, BespokeSystem, Callable[[Song, int], Background]]:
    """Make, or where it wants a song try, all that a config names: what cannot be made is found before anything is read or computed.

    Returns:
        The augmentation, the network with what trains it, and what makes the background.

    Raises:
        BespokeError: something cannot be made.
    """
    policy = _instantiate(cfg, "aug")
    policy.check(cfg.data.sample_rate)
    system = _system(cfg)
    make_background = _instantiate(cfg, "background", _partial_=True)
    check_background(make_background, bool(cfg.song.get("others")), system.model.uses_score)
    logs.check(**cfg.logger)
    preflight.check_device(cfg.trainer)
    preflight.check_precision(system, _trainer(cfg, system.model, callbacks=[ModelCheckpoint()]))
    return policy, system, make_background


def _objective(metrics: Mapping[str, Any]) -> float | None:
    """What a search wants much of: the improvement in SI-SDR, or without a reference the agreement; a silent target has none, and is worse
    than any."""
    wanted = "si_sdr_improvement" if metrics.get("si_sdr_mixture") is not None else "agreement"
    return float("-inf") if wanted in metrics and metrics[wanted] is None else metrics.get(wanted)


def _fit(trainer: pl.Trainer, system: BespokeSystem, data: MixDataModule, checkpoint: Path | None) -> int:
    """Train to the last step; gives the step that training began with, which is not 0 where it goes on from a checkpoint.

    Raises:
        BespokeError: a setting of the trainer, such as max_time, ended it before.
        Interrupted: by Ctrl-C.
    """
    first_step = torch.load(checkpoint, weights_only=True, map_location="cpu")["global_step"] if checkpoint else 0
    place = f"hydra.sweep.dir={HydraConfig.get().sweep.dir}" if _sweep_name() else f"hydra.run.dir={trainer.default_root_dir}"
    remedy = f"repeat the command with {place} ckpt=last to go on"
    try:
        trainer.fit(system, data, ckpt_path=checkpoint, weights_only=True)
    except (KeyboardInterrupt, SystemExit) as error:  # Lightning makes the one of the other; it ends a sweep too
        raise Interrupted(trainer.global_step, remedy) from error
    if trainer.global_step < trainer.max_steps:
        raise BespokeError(f"Training ended at step {trainer.global_step} of {trainer.max_steps}: {remedy}.")
    return first_step


def _align(song: Song, folder: Path) -> tuple[Song, tuple[Note, ...], dict[str, Any]]:
    """Put the target's notes in time with the recording, and write them.

    Returns:
        The song, whose target now plays in time; the notes for a network that uses the score; and what metrics.json says of it.

    Raises:
        BespokeError: there is no score.
    """
    if song.target is None:
        raise BespokeError("align=true needs a score: set song.target.score, or choose a recipe that needs none, such as recipe=paper.")
    part, seconds = song.target.part, song.seconds
    alignment = align(part.notes, song.mixture, song.sample_rate)
    facts = {
        "confidence": round(alignment.confidence, 4),
        "tempo_factor": round(alignment.tempo_factor, 4),
        "offset_seconds": round(alignment.offset_seconds, 3),
    }
    notes = within(alignment.notes, seconds)
    if not notes or alignment.confidence < NO_CONFIDENCE:
        log.warning(
            "THE SCORE DOES NOT FIT THE RECORDING (confidence %.2f): is it of this song, in its key? Only its pitches are used, not its"
            " times, and the result is not to be trusted.",
            alignment.confidence,
        )
        return song, anywhere(part.notes, seconds), {**facts, "used": False}
    if alignment.confidence < LOW_CONFIDENCE:
        log.warning(
            "The score fits the recording badly (confidence %.2f): look at alignment.png, and listen before you trust it.",
            alignment.confidence,
        )
    part = replace(part, notes=notes)
    write_midi(folder / "aligned.mid", [part])
    plot_alignment(folder / "alignment.png", song.target.part.notes, notes, song.mixture, song.sample_rate)
    log.info("The score is aligned (confidence %.2f).", alignment.confidence)
    return replace(song, target=replace(song.target, part=part)), notes, {**facts, "used": True}


def _agreement(song: Song, alignment: Mapping[str, Any] | None, keep: str) -> Agreement | None:
    """What judges the separation without a reference, from the notes as they are aligned or, if they are not, from an alignment for this.

    Args:
        song: with its target's notes.
        alignment: what `_align` found, where it was asked for.
        keep: `best`: it is to choose what is kept.

    Raises:
        BespokeError: it is to choose, and there is no score.
    """
    if song.target is None:
        if keep == "best":
            raise BespokeError("keep=best goes by the score: set song.target.score, or keep=last.")
        return None
    notes, confidence = song.target.part.notes, 0.0
    if alignment is not None:
        notes, confidence = notes if alignment["used"] else (), alignment["confidence"]
    else:
        with contextlib.suppress(BespokeError):  # no note to align, or silence
            found = align(notes, song.mixture, song.sample_rate)
            notes, confidence = within(found.notes, song.seconds), found.confidence
    is_used = bool(notes) and confidence >= NO_CONFIDENCE
    if confidence < LOW_CONFIDENCE:
        remedy = (
            "do not trust what it says of a step"
            if is_used
            else "no step can be judged by it" + ", and the last is kept" * (keep == "best")
        )
        log.warning("The score fits the recording badly (confidence %.2f): %s.", confidence, remedy)
    return Agreement(song.mixture, song.sample_rate, notes) if is_used else None


def _system(cfg: DictConfig) -> BespokeSystem:
    """Make the network, with the seed's initial weights, and what trains it.

    Raises:
        BespokeError: a setting is not possible.
    """
    stft = STFT(cfg.data.sample_rate, **cfg.stft)
    torch.manual_seed(cfg.seed)
    model = _instantiate(cfg, "model", bins=stft.bins)
    if model.uses_score and not cfg.align:
        raise BespokeError("This network uses the score, which must be in time with the recording: set align=true.")
    separate = OmegaConf.to_container(cfg.separate)
    Separator(stft, model, **separate)  # which checks what this network can take
    system = BespokeSystem(stft, model, _instantiate(cfg, "loss"), _instantiate(cfg, "optimizer", _partial_=True), cfg.seed, separate)
    try:
        system.configure_optimizers()  # its settings are checked when it is made
    except (TypeError, ValueError, RuntimeError) as error:
        raise BespokeError(_not_possible("optimizer", error)) from error
    return system


def _data(
    cfg: DictConfig, song: Song, policy: Policy, make_background: Callable[[Song, int], Background], system: BespokeSystem
) -> MixDataModule:
    """Render and load all that mixes are made of."""
    sample_rate = int(cfg.data.sample_rate)
    background = make_background(song, sample_rate)  # first: it may be impossible for this song
    targets = song.render_target(sample_rate)
    if song.estimate is not None and cfg.data.self_training:
        targets.append(song.render_estimate(sample_rate))
    settings = {key: cfg.data[key] for key in ("segment_seconds", "batch_size", "silent_share", "label")}
    scored = {"notes": song.target.part.notes, "features": ScoreFeatures(system.stft)} if system.model.uses_score else {}
    streams = (
        MixStream(targets, background, policy, sample_rate, seed=cfg.seed, **settings, stream=stream, **scored)
        for stream in (0, VALIDATION)
    )
    workers = cfg.data.workers
    if workers == "auto":  # on a CPU the mixes compete with the training for the cores
        workers = min(4, processor.cores() - 1) if torch.cuda.is_available() and cfg.trainer.accelerator != "cpu" else 0
    return MixDataModule(*streams, cfg.data.validation_batches, int(workers), {"seed": cfg.seed, "sample_rate": sample_rate, **settings})


def _callbacks(
    cfg: DictConfig, folder: Path, loggers: list, song: Song, separate: dict[str, Any], agreement: Agreement | None
) -> list[Callback]:
    callbacks: list[Callback] = [
        LossCurve(folder / "training.csv"),
        ModelCheckpoint(folder / "checkpoints", "last", every_n_train_steps=cfg.checkpoint_steps, enable_version_counter=False),
    ]
    callbacks.append(StepLog())
    if loggers:
        callbacks.append(TrainingFigures())
    if logs.can_play(loggers):
        callbacks.append(Listening(song, cfg.log_audio_steps, separate))
    if cfg.curve_steps and (song.reference is not None or agreement is not None):
        best = folder / "checkpoints" / "best.ckpt" if cfg.keep == "best" else None
        callbacks.append(QualityCurve(folder / "curve.csv", song, cfg.curve_steps, separate, agreement, best))
    return callbacks


def _trainer(
    cfg: DictConfig, model: nn.Module, folder: Path | None = None, loggers: Sequence = (), callbacks: Sequence[Callback] = ()
) -> pl.Trainer:
    """Lightning's trainer; with nothing but config and network, to see whether it can be made.

    Raises:
        BespokeError: it cannot.
    """
    settings = dict(cfg.trainer)
    if settings.get("precision") == "auto":
        settings["precision"] = precision(settings.get("accelerator", "auto"), model)
    return _instantiate(
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


def precision(accelerator: str, model: nn.Module | None = None) -> str:
    """Mixed precision where there is an NVIDIA GPU: bf16 where the card has it (Ampere on), fp16 before (V100); bf16 on a CPU that
    multiplies such numbers, for a network that was trained in them; 32 bits elsewhere."""
    if accelerator in ("cpu", "mps") or not torch.cuda.is_available():
        return "bf16-mixed" if accelerator != "mps" and uses_bfloat16(model) else "32-true"
    return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "16-mixed"


def _instantiate(cfg: DictConfig, group: str, /, **arguments: Any) -> Any:
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
        "song_seconds": song.seconds,
        "overrides": list(HydraConfig.get().overrides.task),
        "device": str(trainer.strategy.root_device),
        "precision": str(trainer.precision),
        "threads": torch.get_num_threads(),
        "peak_memory_mb": peak_memory_mb(),
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


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.monotonic()
    with progress.stage(stage):
        yield
    gc.collect()
    give_back()
    seconds[stage] = time.monotonic() - began
