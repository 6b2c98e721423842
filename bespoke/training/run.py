"""One run, from config to results, step by step."""

import contextlib
import gc
import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import bespoke
from bespoke.data.song import Song
from bespoke.evaluation.agreement import Agreement, judge
from bespoke.evaluation.metrics import evaluate
from bespoke.evaluation.report.summary import collect_warnings, summary, write_page
from bespoke.models.separator import Separator, load_separator
from bespoke.training import logs, preflight
from bespoke.training.alignment import Aligned, align_target, note_coverage
from bespoke.training.build import Parts, make, make_callbacks, make_data, make_parts, make_trainer
from bespoke.training.callbacks import peak_memory_mb
from bespoke.utils import processor, progress
from bespoke.utils.configs import as_dict
from bespoke.utils.errors import BespokeError, Interrupted
from bespoke.utils.files import read_json, write_json
from bespoke.utils.memory import give_back

log = logging.getLogger(__name__)


@dataclass
class Run:
    """What all steps of a run know.

    Attributes:
        cfg: the whole config.
        folder: of the results.
        is_resumed: it goes on from the checkpoint in the folder.
        warnings: that were given so far.
        seconds: that each stage took.
        facts: what else metrics.json is to say.
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
        """Show that the run is at this stage, and note how long it takes."""
        began = time.monotonic()
        with progress.stage(name):
            yield
        gc.collect()
        give_back()
        self.seconds[name] = time.monotonic() - began


def train(cfg: DictConfig) -> float | None:
    """Do one run: prepare, load, align, listen, build, fit, separate, evaluate, report.

    Returns:
        In dB the SI-SDR improvement where there is a reference, else the agreement where `curve_steps` asks for it, else None.

    Raises:
        BespokeError: something the user can put right.
    """
    if not gc.get_freeze_count():
        gc.freeze()  # all that was imported: else each stage's collection looks through it, for a quarter of a second
    with collect_warnings() as warnings:
        run = prepare(cfg, warnings)
        if (
            run.is_resumed and sweep_name() and (finished := run.folder / "metrics.json").is_file()
        ):  # written last
            log.info("%s is finished already.", run.folder)
            return objective(read_json(finished))
        parts = make_parts(cfg)
        song = load(run)
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
    """Check the settings and the run's folder, and take the cores that are free.

    Raises:
        BespokeError: a setting is not possible, or the folder has results of another run.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    preflight.check(cfg)
    if (
        "LOCAL_RANK" not in os.environ
    ):  # of several processes that train together Lightning gives each its share
        processor.use_free_cores(None if cfg.threads == "auto" else cfg.threads)
    return Run(
        cfg,
        folder,
        preflight.prepare_folder(cfg, folder, in_sweep=sweep_name() is not None),
        warnings,
    )


def load(run: Run) -> Song:
    """Read the song, and check all that its config may have got wrong.

    Raises:
        BespokeError: a file is missing, cannot be used, or is another than when the run began.
    """
    with run.stage("load"):
        song = Song.load(as_dict(run.cfg.song), max(22050, run.cfg.data.sample_rate))
        preflight.check_space(run.folder, song.source)
    if run.is_resumed:
        preflight.check_inputs(run.folder, song.hashes)
    if song.is_standin:
        log.warning(_standin_notice(run.cfg))
    return song


def align(run: Run, song: Song, parts: Parts) -> Aligned:
    """Put the target's notes in time with the recording, where the recipe wants it.

    Raises:
        BespokeError: there is no score.
    """
    if not run.cfg.align:
        return Aligned(song)
    with run.stage("align"):
        aligned = align_target(song, run.folder)
    if parts.system.model.uses_score:
        note_coverage(aligned)
        parts.system.hparams["separate"]["notes"] = [list(astuple(note)) for note in aligned.notes]
    run.facts["alignment"] = aligned.facts
    return aligned


def find_judge(run: Run, aligned: Aligned) -> Agreement | None:
    """What judges the separation without a reference, where the quality curve wants it."""
    if not run.cfg.curve_steps:
        return None
    with run.stage("agreement"):
        return judge(aligned.song, run.facts.get("alignment"), run.cfg.keep)


def listen(run: Run, aligned: Aligned, parts: Parts) -> Song:
    """What training hears of the song: an excerpt of a long one, with a first estimate of the target
    for a network that uses the score."""
    cfg, system, song = run.cfg, parts.system, aligned.song
    heard = song.to_train_on(cfg.data.listen_seconds, aligned.is_used)
    if system.model.uses_score:
        if parts.policy.moves_time:
            log.warning(
                "This augmentation moves the target in time, away from the notes that the network is told: leave it out."
            )
        settings = {
            **as_dict(cfg.separate),
            "notes": aligned.notes_of(heard),
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


@contextlib.contextmanager
def open_loggers(run: Run) -> Iterator[list]:
    """The loggers of this run, closed at its end; of several processes that train together one logs."""
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
    """Lightning's trainer, with what looks on."""
    separate = {**as_dict(run.cfg.separate), "notes": aligned.notes}
    callbacks = make_callbacks(run.cfg, run.folder, loggers, aligned.song, separate, agreement)
    return make_trainer(run.cfg, parts.system.model, run.folder, loggers, callbacks)


def fit(run: Run, trainer: pl.Trainer, heard: Song, parts: Parts, loggers: list) -> None:
    """Render what mixes are made of, and train to the last step.

    Raises:
        BespokeError: the mixes cannot be made, or a setting of the trainer, such as max_time, ended it before.
        Interrupted: by Ctrl-C.
    """
    cfg = run.cfg
    with run.stage("render"):
        data = make_data(cfg, heard, parts)
    if heard.others and not data.train.background.uses_others:
        log.warning("song.others is not used: background=synth would use it.")
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
        except (
            KeyboardInterrupt,
            SystemExit,
        ) as error:  # Lightning makes the one of the other; it ends a sweep too
            raise Interrupted(trainer.global_step, remedy) from error
        if trainer.global_step < trainer.max_steps:
            raise BespokeError(
                f"Training ended at step {trainer.global_step} of {trainer.max_steps}: {remedy}."
            )
        trainer.save_checkpoint(run.checkpoint)
    run.facts = {"resumed_from_step": first_step, **run.facts}


def separate(run: Run, trainer: pl.Trainer, song: Song) -> None:
    """Write the stems, by the checkpoint alone: the last one or, with `keep=best`, the one that agrees
    most with the score."""
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
    """Compare the target with the reference and with the score, as far as there are any, and write
    metrics.json."""
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
    """Write the report, hand the results to the loggers, and say what there is."""
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
    """What a search maximizes: the improvement in SI-SDR or, without a reference, the agreement. A
    silent target has neither, and is worse than any."""
    wanted = "si_sdr_improvement" if metrics.get("si_sdr_mixture") is not None else "agreement"
    return float("-inf") if wanted in metrics and metrics[wanted] is None else metrics.get(wanted)


def _facts(run: Run, song: Song, trainer: pl.Trainer) -> dict[str, Any]:
    """What metrics.json always holds."""
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
        f"THIS IS A STAND-IN, NOT THE REAL SONG {cfg.song.name}: an original piece of the same arrangement. For the real one put your own"
        f" recording at {folder}/mix.wav (or .flac, .mp3, ...) and its MIDI at {folder}/{score}."
    )


def sweep_name() -> str | None:
    """The name of the sweep that this run is a job of."""
    config = HydraConfig.get()
    return (
        Path(config.sweep.dir).name
        if config.mode is not None and config.mode.name == "MULTIRUN"
        else None
    )
