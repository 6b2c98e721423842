"""One run, from config to results, as a sequence of stages."""

import contextlib
import gc
import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import bespoke
from bespoke.data.background import check_background
from bespoke.data.song import Song
from bespoke.evaluation.agreement import Agreement, judge
from bespoke.evaluation.metrics import evaluate
from bespoke.evaluation.report.summary import collect_warnings, summary, write_page
from bespoke.models.separator import Separator, load_separator
from bespoke.score.midi import Note
from bespoke.training import logs, preflight
from bespoke.training.alignment import Aligned, align_song, note_coverage
from bespoke.training.build import Parts, make, make_callbacks, make_data, make_parts, make_trainer
from bespoke.training.callbacks import EarlyStop, peak_memory_mb
from bespoke.utils import processor, progress
from bespoke.utils.configs import as_dict
from bespoke.utils.errors import BespokeError, Interrupted
from bespoke.utils.files import read_json, write_json
from bespoke.utils.memory import give_back

log = logging.getLogger(__name__)


@dataclass
class Run:
    """State that all stages of a run share.

    Attributes:
        cfg: the whole config.
        folder: folder of the results.
        is_resumed: whether the run continues from the checkpoint in the folder.
        warnings: warnings given so far.
        seconds: duration of each stage.
        facts: further content of metrics.json.
    """

    cfg: DictConfig
    folder: Path
    is_resumed: bool
    warnings: list[str]
    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show the stage while the block runs, and record its duration."""
        began = time.monotonic()
        with progress.stage(name):
            yield
        gc.collect()
        give_back()
        self.seconds[name] = time.monotonic() - began


def train(cfg: DictConfig) -> float | None:
    """Carry out one run.

    Its stages are prepare, load, align, listen, build, fit, separate, evaluate and report.

    Args:
        cfg: the whole config.

    Returns:
        The objective of a search, in dB: the SI-SDR improvement if there is a reference, else the
        agreement if `curve_steps` is set, else None.

    Raises:
        BespokeError: an error that the user can correct.
    """
    if not gc.get_freeze_count():
        # Exclude imported objects: they would add 0.25 s to the collection after each stage.
        gc.freeze()
    with collect_warnings() as warnings:
        run = prepare(cfg, warnings)
        # metrics.json is written last
        finished = read_json(run.folder / "metrics.json")
        if run.is_resumed and sweep_name() and finished and not is_to_be_extended(run, finished):
            log.info("%s is finished already.", run.folder)
            return objective(finished)
        parts = make_parts(cfg)
        song = load(run, parts)
        aligned = align(run, song, parts)
        agreement = find_judge(run, aligned)
        heard = listen(run, aligned, parts)
        with open_loggers(run) as loggers:
            trainer = build_trainer(run, aligned, parts, agreement, loggers)
            fit(run, trainer, heard, parts, loggers)
            if not trainer.is_global_zero:
                return None
            separate(run, trainer, aligned.song)
            metrics = measure(run, trainer, aligned.song, agreement)
            present(run, trainer, aligned.song, heard, metrics, loggers)
    return objective(metrics)


def prepare(cfg: DictConfig, warnings: list[str]) -> Run:
    """Check the settings and the run's folder, and set the number of threads.

    Raises:
        BespokeError: a setting is invalid, or the folder has results of another run.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    preflight.check(cfg)
    # Lightning gives each of several processes that train together its share of the cores.
    if "LOCAL_RANK" not in os.environ:
        processor.use_free_cores(None if cfg.threads == "auto" else cfg.threads)
    return Run(
        cfg,
        folder,
        preflight.prepare_folder(cfg, folder, in_sweep=sweep_name() is not None),
        warnings,
    )


def is_to_be_extended(run: Run, finished: Mapping[str, Any]) -> bool:
    """Whether more steps are wanted now than when these results were made.

    Args:
        run: which goes on.
        finished: contents of its metrics.json.
    """
    before = finished.get("max_steps") or preflight.steps_of(run.folder)
    return before < run.cfg.trainer.max_steps


def load(run: Run, parts: Parts) -> Song:
    """Read the song and check the files that its config names.

    Raises:
        BespokeError: a file is missing or unusable, or a resumed run's file has changed.
    """
    with run.stage("load"):
        song = Song.load(as_dict(run.cfg.song), max(22050, run.cfg.data.sample_rate))
        preflight.check_space(run.folder, song.source)
    check_background(parts.make_background, bool(song.others), parts.system.model.uses_score)
    if run.is_resumed:
        preflight.check_inputs(run.folder, song.hashes)
    if song.is_standin:
        log.warning(_standin_notice(run.cfg))
    return song


def align(run: Run, song: Song, parts: Parts) -> Aligned:
    """Align the target's notes with the recording, if the recipe asks for it.

    Raises:
        BespokeError: there is no score.
    """
    if not run.cfg.align:
        return Aligned(song)
    with run.stage("align"):
        aligned = align_song(song, run.folder, parts.system.model.uses_score)
    if parts.system.model.uses_score:
        note_coverage(aligned)
        settings = aligned.settings(aligned.song)
        parts.system.hparams["separate"] |= settings | {
            "notes": _plain(aligned.notes),
            "others": [_plain(part) for part in settings["others"]],
        }
    run.facts["alignment"] = aligned.facts
    return aligned


def find_judge(run: Run, aligned: Aligned) -> Agreement | None:
    """The metric without a reference, if the quality curve needs it."""
    if not run.cfg.curve_steps:
        return None
    if aligned.song.target is None and run.cfg.early_stopping.metric == "agreement":
        raise BespokeError(
            "early_stopping.metric=agreement needs a score: set song.target.score, or another"
            " metric."
        )
    with run.stage("agreement"):
        return judge(aligned.song, run.facts.get("alignment"), run.cfg.keep)


def listen(run: Run, aligned: Aligned, parts: Parts) -> Song:
    """The song as training uses it.

    Of a long song it is an excerpt. For a network that uses the score it includes a first estimate
    of the target.
    """
    cfg, system, song = run.cfg, parts.system, aligned.song
    heard = song.to_train_on(cfg.data.listen_seconds, aligned.is_used)
    if system.model.uses_score:
        if parts.policy.moving:
            log.warning(
                "%s moves the target in time, away from the notes that the network is told: leave"
                " it out, or use TimeStretch, which the notes follow.",
                " and ".join(parts.policy.moving),
            )
        settings = {
            **as_dict(cfg.separate),
            **aligned.settings(heard),
            "strength": 1.0,
        }
        with run.stage("estimate"):
            heard = replace(
                heard,
                estimate=Separator(system.stft, system.model, **settings).separate(
                    *heard.recording
                )[0],
            )
    log.info(
        "%s: %.1f s of audio, %d steps, into %s",
        song.name,
        song.seconds,
        cfg.trainer.max_steps,
        run.folder,
    )
    if heard.seconds < song.seconds:
        log.info("Training listens to %.1f s of it.", heard.seconds)
    return heard


def _plain(notes: Iterable[Note]) -> list[list]:
    """Notes as plain values, for the checkpoint."""
    return [list(astuple(note)) for note in notes]


@contextlib.contextmanager
def open_loggers(run: Run) -> Iterator[list]:
    """The run's loggers, closed at the end of the block.

    Of several processes that train together, only the first one logs.
    """
    loggers: list = []
    is_failed = True
    try:
        if processor.local_rank() == 0:
            loggers = make(run.cfg, "logger", folder=run.folder, group=sweep_name())
        yield loggers
        is_failed = False
    finally:
        logs.finish(loggers, is_failed)


def build_trainer(
    run: Run, aligned: Aligned, parts: Parts, agreement: Agreement | None, loggers: list
) -> pl.Trainer:
    """Lightning's trainer, with callbacks and loggers."""
    separate = {**as_dict(run.cfg.separate), **aligned.settings(aligned.song)}
    callbacks = make_callbacks(run.cfg, run.folder, loggers, aligned.song, separate, agreement)
    return make_trainer(run.cfg, parts.system.model, run.folder, loggers, callbacks)


def fit(run: Run, trainer: pl.Trainer, heard: Song, parts: Parts, loggers: list) -> None:
    """Render the sources of the mixes, and train to the last step.

    Raises:
        BespokeError: the mixes cannot be made, or a trainer setting such as max_time ended training
            early.
        Interrupted: training was interrupted by Ctrl-C.
    """
    cfg = run.cfg
    with run.stage("render"):
        data = make_data(cfg, heard, parts)
    is_asked_for = run.cfg.song.get("others") not in (None, "auto")
    uses_others = data.train.background.uses_others or parts.system.model.uses_score
    if is_asked_for and heard.others and not uses_others:
        log.warning("song.others is not used: background=synth or recipe=auto would use it.")
    if run.is_resumed and (before := preflight.steps_of(run.folder)) < cfg.trainer.max_steps:
        log.info("The run is extended from %d to %d steps.", before, cfg.trainer.max_steps)
        if make(cfg, "scheduler").factor(before, before) != 1:
            log.warning(
                "The learning rate's schedule has now %d steps: the run is not the same as one that"
                " had so many from the start.",
                cfg.trainer.max_steps,
            )
    preflight.write_config(cfg, run.folder, heard.hashes)
    write_json(run.folder / "mixes.json", data.train.describe(0))
    logs.log_config(loggers, as_dict(cfg), HydraConfig.get().runtime.choices)
    checkpoint = run.checkpoint if run.is_resumed else None
    first_step = (
        torch.load(checkpoint, weights_only=True, map_location="cpu")["global_step"]
        if checkpoint
        else 0
    )
    place = (
        f"hydra.sweep.dir={HydraConfig.get().sweep.dir}"
        if sweep_name()
        else f"hydra.run.dir={trainer.default_root_dir}"
    )
    remedy = f"repeat the command with {place} ckpt=last to go on"
    with run.stage("train"):
        try:
            trainer.fit(parts.system, data, ckpt_path=checkpoint, weights_only=True)
        # Lightning turns a KeyboardInterrupt into a SystemExit. It ends a sweep too.
        except (KeyboardInterrupt, SystemExit) as error:
            raise Interrupted(trainer.global_step, remedy) from error
        if trainer.global_step < trainer.max_steps:
            _explain_early_end(run, trainer, remedy)
        trainer.save_checkpoint(run.checkpoint)
    run.facts = {
        "resumed_from_step": first_step,
        "max_steps": trainer.max_steps,
        **run.facts,
    }


def _explain_early_end(run: Run, trainer: pl.Trainer, remedy: str) -> None:
    """Say why there are fewer steps than were wanted, where the stems are to be made of these.

    Raises:
        BespokeError: they are not.
    """
    step, steps, limit = trainer.global_step, trainer.max_steps, run.cfg.trainer.get("max_time")
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # a connector sets them
    stops = [callback for callback in callbacks if isinstance(callback, EarlyStop)]
    if stops and stops[0].stopped_step is not None:
        stop = stops[0]
        log.info(
            "Training stopped at step %d of %d: %s was best at step %d (%.4g).",
            *(step, steps, stop.metric, stop.best_step, stop.best or 0.0),
        )
        run.facts["stopped_early"] = {
            "metric": stop.metric,
            "best": stop.best,
            "best_step": stop.best_step,
        }
        return
    if limit is None:
        raise BespokeError(f"Training ended at step {step} of {steps}: {remedy}.")
    if not step:
        raise BespokeError(
            f"trainer.max_time={limit} is over before the first step: set it higher."
        )
    log.warning("Training ended at step %d of %d, as trainer.max_time is over.", step, steps)


def separate(run: Run, trainer: pl.Trainer, song: Song) -> None:
    """Write the stems, using only a checkpoint.

    It is the last one or, with `keep=best`, the one of highest agreement with the score.
    """
    checkpoint = run.checkpoint
    if run.cfg.keep == "best" and (best := checkpoint.with_name("best.ckpt")).is_file():
        checkpoint, run.facts["kept_step"] = (
            best,
            torch.load(best, weights_only=True, map_location="cpu")["global_step"],
        )
    with run.stage("separate"):
        separator = load_separator(checkpoint, str(trainer.strategy.root_device))
        separator.write_stems(song.source, run.folder / "target.wav", run.folder / "residual.wav")


def measure(
    run: Run, trainer: pl.Trainer, song: Song, agreement: Agreement | None
) -> dict[str, Any]:
    """Evaluate the target against the reference and the score, where available.

    The results are written to metrics.json and returned.
    """
    metrics: dict[str, Any] = {}
    if song.reference is not None or agreement is not None:
        with run.stage("evaluate"):
            estimate = song.read_stem(run.folder / "target.wav")
            if song.reference is not None:
                metrics = evaluate(estimate, song.mixture, song.reference, song.sample_rate)
            if agreement is not None:
                metrics["agreement"] = agreement(estimate)
    metrics |= _facts(run, song, trainer) | run.facts | {"warnings": run.warnings}
    write_json(run.folder / "metrics.json", metrics)
    return metrics


def present(
    run: Run, trainer: pl.Trainer, song: Song, heard: Song, metrics: dict[str, Any], loggers: list
) -> None:
    """Write the report, pass the results to the loggers, and print a summary."""
    if run.cfg.report:
        shown = replace(song, estimate=heard.estimate) if heard.seconds == song.seconds else song
        with run.stage("report"):
            write_page(run.folder, shown, metrics)
        write_json(run.folder / "metrics.json", metrics | _facts(run, song, trainer))
    if logs.can_play(loggers):
        target = song.read_stem(run.folder / "target.wav", logs.MAX_SECONDS)
        logs.log_separation(
            loggers,
            song.mixture,
            target,
            song.sample_rate,
            trainer.global_step,
            song.reference,
            again=True,
        )
    logs.log_results(loggers, run.folder, metrics, trainer.global_step)
    log.info(summary(run.folder, metrics))


def objective(metrics: Mapping[str, Any]) -> float | None:
    """Objective of a search, in dB.

    It is the SI-SDR improvement or, without a reference, the agreement. For a silent target, which
    has neither, it is -inf. It is None if neither was measured.
    """
    wanted = "si_sdr_improvement" if metrics.get("si_sdr_mixture") is not None else "agreement"
    return float("-inf") if wanted in metrics and metrics[wanted] is None else metrics.get(wanted)


def _facts(run: Run, song: Song, trainer: pl.Trainer) -> dict[str, Any]:
    """Content of metrics.json that every run has."""
    packages = (
        "torch",
        "torchaudio",
        "pytorch-lightning",
        "hydra-core",
        "numpy",
        "audiomentations",
        "pyfluidsynth",
        "pretty_midi",
    )
    versions = {"bespoke": bespoke.__version__, "python": platform.python_version()}
    soundfonts = {
        patch.soundfont for voice in (song.target, *song.others) if voice for patch in voice.patches
    }
    return {
        "song": song.name,
        "is_standin": song.is_standin,
        "recipe": run.cfg.recipe,
        "seed": run.cfg.seed,
        "steps": trainer.global_step,
        "seconds": {
            **{stage: round(value, 3) for stage, value in run.seconds.items()},
            "total": round(sum(run.seconds.values()), 3),
        },
        "song_seconds": song.seconds,
        "overrides": list(HydraConfig.get().overrides.task),
        "device": str(trainer.strategy.root_device),
        "precision": str(trainer.precision),
        "threads": torch.get_num_threads(),
        "peak_memory_mb": peak_memory_mb(),
        "versions": versions
        | {package: importlib.metadata.version(package) for package in packages},
        "hashes": {
            **song.hashes,
            **{f"soundfont {soundfont.path.name}": soundfont.hash for soundfont in soundfonts},
        },
    }


def _standin_notice(cfg: DictConfig) -> str:
    score = "score.mid" if str(cfg.song.target.score).endswith("score.mid") else "target.mid"
    folder = Path(cfg.song.mixture).parent
    return (
        f"THIS IS A STAND-IN, NOT THE REAL SONG {cfg.song.name}: an original piece of the same "
        "arrangement. For the real one put your own recording at "
        f"{folder}/mix.wav (or .flac, .mp3, ...) and its MIDI at {folder}/{score}."
    )


def sweep_name() -> str | None:
    """Name of the sweep that this run belongs to, or None."""
    config = HydraConfig.get()
    return (
        Path(config.sweep.dir).name
        if config.mode is not None and config.mode.name == "MULTIRUN"
        else None
    )
