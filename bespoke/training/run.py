"""One run, from config to results, as a sequence of stages."""

import contextlib
import copy
import gc
import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import bespoke
from bespoke.data.background import check_background
from bespoke.data.song import Song
from bespoke.data.stream import MixDataModule
from bespoke.evaluation.agreement import Agreement, judge
from bespoke.evaluation.metrics import evaluate
from bespoke.evaluation.report.runs import is_setting, label
from bespoke.evaluation.report.summary import collect_warnings, summary, write_page
from bespoke.models.separator import Separator, load_separator, write_stems_together
from bespoke.score.midi import Note
from bespoke.training import logs, preflight
from bespoke.training.alignment import Aligned, align_song, locate, note_coverage
from bespoke.training.build import Parts, make, make_callbacks, make_data, make_parts, make_trainer
from bespoke.training.callbacks import EarlyStop, keep_network, peak_memory_mb
from bespoke.utils import processor, progress
from bespoke.utils.configs import as_dict, group_choices
from bespoke.utils.errors import BespokeError, Interrupted, one_sentence
from bespoke.utils.files import SWEEP_FILE, read_json, write_json
from bespoke.utils.memory import give_back

log = logging.getLogger(__name__)


@dataclass
class Run:
    """State that all stages of a run share.

    Attributes:
        cfg: the whole config.
        folder: folder of the results.
        overrides: of the config, as they were given.
        label: of the part, where several of one recording are separated at once.
        is_resumed: whether the run continues from the checkpoint in the folder.
        warnings: warnings given so far.
        seconds: duration of each stage. Of a stage that several parts share, each has its share.
        facts: further content of metrics.json.
        error: why the run came to no result, where others went on.
    """

    cfg: DictConfig
    folder: Path
    overrides: list[str] = field(default_factory=list)
    label: str | None = None
    is_resumed: bool = False
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @contextlib.contextmanager
    def stage(self, name: str, runs: Sequence["Run"] = ()) -> Iterator[None]:
        """Show the stage while the block runs, and record its duration.

        Args:
            name: of the stage.
            runs: all that the block works for, if it is not this one alone.
        """
        began = time.monotonic()
        with progress.stage(name, None if runs else self.label):
            yield
        gc.collect()
        give_back()
        runs = runs or [self]
        for run in runs:
            run.seconds[name] = (time.monotonic() - began) / len(runs)

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Log what the block says of this run: as its warnings and, of several, with its label.

        If a run of several fails, it is left out from then on, and the others go on.
        """
        with collect_warnings(self.warnings):
            if self.label is None:
                yield
                return
            with logs.of_part(self.label, self.folder):
                try:
                    yield
                except BespokeError as error:
                    self.error = error
                    log.error("error: %s", error)
                except Exception as error:
                    self.error = error
                    log.exception("error: %s", one_sentence(error))


@dataclass
class Work:
    """What the stages of a run hand on.

    Attributes:
        run: of one part.
        parts: objects of its config.
        song: as it was loaded.
        aligned: the song after the alignment.
        heard: the song as training uses it.
        trainer: Lightning's.
        agreement: the metric without a reference, if the run needs it.
        loggers: open until the run ends.
    """

    run: Run
    parts: Parts
    song: Song
    aligned: Aligned
    heard: Song | None = None
    trainer: pl.Trainer | None = None
    agreement: Agreement | None = None
    loggers: list = field(default_factory=list)


def train(cfg: DictConfig) -> float | None:
    """Carry out one run.

    Args:
        cfg: the whole config.

    Returns:
        The objective of a search, in dB: the SI-SDR improvement if there is a reference, else the
        agreement if `curve_steps` is set, else None.

    Raises:
        BespokeError: an error that the user can correct.
    """
    hydra = HydraConfig.get()
    run = Run(cfg, Path(hydra.runtime.output_dir), _overrides())
    metrics = train_parts([run])
    return objective(metrics[0]) if metrics else None


def train_parts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Carry out the runs for one part or for several parts of one recording.

    The stages are prepare, load, align, listen, fit, separate, measure and present. All parts are
    aligned at once, and separated at once with one factorization. Where a network is to be trained,
    it is trained for one part after the other.

    Args:
        runs: their configs differ in nothing but the song's name and target. Several have labels.

    Returns:
        The contents of metrics.json, of each run that came to a result: its `error` is None.

    Raises:
        BespokeError: an error that the user can correct. Of several runs, one that concerns all.
    """
    if not gc.get_freeze_count():
        # Exclude imported objects: they would add 0.25 s to the collection after each stage.
        gc.freeze()
    parts = prepare(runs)
    if parts is None:
        return [read_json(runs[0].folder / "metrics.json")]
    works: list[Work] = []
    with contextlib.ExitStack() as stack:
        with runs[0].stage("load", runs):
            for run in runs:
                with run.own():
                    own = parts if len(runs) == 1 else copy.deepcopy(parts)
                    song = load(run, own, works[0].song if works else None)
                    works.append(Work(run, own, song, Aligned(song)))
        align(works)
        for work in _going_on(works):
            with work.run.own():
                work.loggers = stack.enter_context(open_loggers(work.run))
                fit(work)
        works = _going_on(works)
        if any(work.trainer and not work.trainer.is_global_zero for work in works):
            return []
        separate(works)
        metrics = []
        for work in works:
            with work.run.own():
                metrics.append(measure(work))
                present(work, metrics[-1])
    return metrics


def _going_on(works: Iterable[Work]) -> list[Work]:
    """Those whose runs have not failed."""
    return [work for work in works if work.run.error is None]


def prepare(runs: Sequence[Run]) -> Parts | None:
    """Check the settings and the runs' folders, set the number of threads, and make the objects.

    Returns:
        The objects of the configs. None: the run is one of a sweep that is continued, and is
        finished.

    Raises:
        BespokeError: a setting is invalid, or a folder has results of another run.
    """
    cfg = runs[0].cfg
    with contextlib.nullcontext() if runs[0].label else runs[0].own():
        preflight.check(cfg)
        if idle := preflight.idle_settings(cfg, runs[0].overrides):
            log.warning(
                "recipe=%s does not train, so that %s changes nothing: choose recipe=bespoke, or"
                " set trainer.max_steps.",
                cfg.recipe,
                ", ".join(idle),
            )
        if len(runs) > 1:
            preflight.check_several(cfg)
        # Lightning gives each of several processes that train together its share of the cores.
        if "LOCAL_RANK" not in os.environ:
            processor.use_free_cores(None if cfg.threads == "auto" else cfg.threads)
        for run in runs:
            in_sweep = sweep_name() is not None
            run.is_resumed = preflight.prepare_folder(run.cfg, run.folder, in_sweep)
            # metrics.json is written last
            finished = read_json(run.folder / "metrics.json")
            if run.is_resumed and in_sweep and finished and not is_to_be_extended(run, finished):
                log.info("%s is finished already.", run.folder)
                return None
        return make_parts(cfg)


def is_to_be_extended(run: Run, finished: Mapping[str, Any]) -> bool:
    """Whether more steps are wanted now than when these results were made.

    Args:
        run: which goes on.
        finished: contents of its metrics.json.
    """
    before = finished.get("max_steps") or preflight.steps_of(run.folder)
    return before < run.cfg.trainer.max_steps


def load(run: Run, parts: Parts, like: Song | None = None) -> Song:
    """Read the song and check the files that its config names.

    Args:
        run: the part's run.
        parts: objects of the config.
        like: a song of the same recording, which is then not read again.

    Raises:
        BespokeError: a file is missing or unusable, or a resumed run's file has changed.
    """
    song = Song.load(as_dict(run.cfg.song), max(22050, run.cfg.data.sample_rate), like)
    preflight.check_space(run.folder, song.source)
    check_background(parts.make_background, bool(song.others), parts.system.model.uses_score)
    if run.is_resumed:
        preflight.check_inputs(run.folder, song.hashes)
    if song.is_standin:
        log.warning(_standin_notice(run.cfg))
    return song


def align(works: Sequence[Work]) -> None:
    """Align the targets' notes with the recording, if the recipe asks for it.

    Raises:
        BespokeError: there is no score, or none that can be aligned.
    """
    works = _going_on(works)
    if not works or not works[0].run.cfg.align:
        return
    uses_score = works[0].parts.system.model.uses_score
    runs = [work.run for work in works]
    with runs[0].stage("align", runs):
        with contextlib.nullcontext() if runs[0].label else runs[0].own():
            is_given = runs[0].cfg.align == "given"
            found = locate([work.song for work in works], uses_score, is_given)
        for work, alignment in zip(works, found, strict=True):
            with work.run.own():
                work.aligned = align_song(work.song, alignment, work.run.folder, uses_score)
    for work in _going_on(works):
        with work.run.own():
            aligned = work.aligned
            if uses_score:
                note_coverage(aligned)
                settings = aligned.settings(aligned.song)
                work.parts.system.hparams["separate"] |= settings | {
                    "notes": _plain(aligned.notes),
                    "others": [_plain(part) for part in settings["others"]],
                }
            work.run.facts["alignment"] = aligned.facts


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
    if system.model.uses_score and cfg.trainer.max_steps:
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
    if cfg.trainer.max_steps or run.label is None:
        steps = f", {cfg.trainer.max_steps} steps" if cfg.trainer.max_steps else ""
        log.info("%s: %.1f s of audio%s, into %s", song.name, song.seconds, steps, run.folder)
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
        logs.finish(loggers, is_failed or run.error is not None)


def build_trainer(
    run: Run, aligned: Aligned, parts: Parts, agreement: Agreement | None, loggers: list
) -> pl.Trainer:
    """Lightning's trainer, with callbacks and loggers."""
    separate = {**as_dict(run.cfg.separate), **aligned.settings(aligned.song)}
    callbacks = make_callbacks(run.cfg, run.folder, loggers, aligned.song, separate, agreement)
    return make_trainer(run.cfg, parts.system.model, run.folder, loggers, callbacks)


def fit(work: Work) -> None:
    """Train the network for the part, if there are steps to train, and write its checkpoint.

    Raises:
        BespokeError: the mixes cannot be made, or a trainer setting such as max_time ended training
            early.
        Interrupted: training was interrupted by Ctrl-C.
    """
    run, aligned, parts = work.run, work.aligned, work.parts
    work.agreement = find_judge(run, aligned)
    work.heard = listen(run, aligned, parts)
    work.trainer = build_trainer(run, aligned, parts, work.agreement, work.loggers)
    steps = run.cfg.trainer.max_steps
    data = render(run, work.heard, parts) if steps else None
    before = preflight.steps_of(run.folder) if run.is_resumed else steps
    if before < steps:
        _say_extended(run.cfg, before)
    preflight.write_config(run.cfg, run.folder, work.heard.hashes)
    choices = HydraConfig.get().runtime.choices
    logs.log_config(work.loggers, as_dict(run.cfg), choices, group_label())
    run.facts = {"resumed_from_step": 0, "max_steps": steps, **run.facts}
    if data is None:
        keep_network(parts.system, 0, run.checkpoint)
        return
    write_json(run.folder / "mixes.json", data.train.describe(0))
    _train(run, work.trainer, parts, data)
    if run.label is not None:
        work.heard = None  # it is large, and no page shows it


def _say_extended(cfg: DictConfig, before: int) -> None:
    """Say that a run gets more steps than it had, and what is not as if it had had them."""
    log.info("The run is extended from %d to %d steps.", before, cfg.trainer.max_steps)
    if make(cfg, "scheduler").factor(before, before) != 1:
        log.warning(
            "The learning rate's schedule has now %d steps: the run is not the same as one that"
            " had so many from the start.",
            cfg.trainer.max_steps,
        )


def render(run: Run, heard: Song, parts: Parts) -> MixDataModule:
    """Render the sources of the mixes.

    Raises:
        BespokeError: the mixes cannot be made.
    """
    with run.stage("render"):
        data = make_data(run.cfg, heard, parts)
    is_asked_for = run.cfg.song.get("others") not in (None, "auto")
    uses_others = data.train.background.uses_others or parts.system.model.uses_score
    if is_asked_for and heard.others and not uses_others:
        log.warning("song.others is not used: background=synth or recipe=auto would use it.")
    return data


def _train(run: Run, trainer: pl.Trainer, parts: Parts, data: MixDataModule) -> None:
    """Train to the last step."""
    checkpoint, first_step = None, 0
    if run.is_resumed:
        first_step = torch.load(run.checkpoint, weights_only=True, map_location="cpu")[
            "global_step"
        ]
        # One of no step has the network alone, which is as it is at the start.
        checkpoint = run.checkpoint if first_step else None
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
    run.facts["resumed_from_step"] = first_step


def _explain_early_end(run: Run, trainer: pl.Trainer, remedy: str) -> None:
    """Say why there are fewer steps than were wanted, where the stems are to be made of these.

    Raises:
        BespokeError: they are not.
    """
    step, steps, limit = trainer.global_step, trainer.max_steps, run.cfg.trainer.get("max_time")
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # a connector sets it
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


def separate(works: Sequence[Work]) -> None:
    """Write the stems of all parts, using only checkpoints.

    A run's is the last one or, with `keep=best`, the one of highest agreement with the score.
    """
    if not works:
        return
    runs = [work.run for work in works]
    files = [(run.folder / "target.wav", run.folder / "residual.wav") for run in runs]
    with runs[0].stage("separate", runs):
        separators = [
            load_separator(_kept(work.run), str(_trainer(work).strategy.root_device))
            for work in works
        ]
        write_stems_together(separators, works[0].song.source, files)


def _kept(run: Run) -> Path:
    """The checkpoint that makes the stems."""
    best = run.checkpoint.with_name("best.ckpt")
    if run.cfg.keep != "best" or not best.is_file():
        return run.checkpoint
    step = torch.load(best, weights_only=True, map_location="cpu")["global_step"]
    run.facts["kept_step"] = step
    return best


def _trainer(work: Work) -> pl.Trainer:
    assert work.trainer is not None  # `fit` made it
    return work.trainer


def measure(work: Work) -> dict[str, Any]:
    """Evaluate the target against the reference and the score, where available.

    The results are written to metrics.json and returned.
    """
    run, song, agreement = work.run, work.aligned.song, work.agreement
    metrics: dict[str, Any] = {}
    if song.reference is not None or agreement is not None:
        with run.stage("evaluate"):
            estimate = song.read_stem(run.folder / "target.wav")
            if song.reference is not None:
                metrics = evaluate(estimate, song.mixture, song.reference, song.sample_rate)
            if agreement is not None:
                metrics["agreement"] = agreement(estimate)
    metrics |= _facts(run, song, _trainer(work)) | run.facts | {"warnings": run.warnings}
    write_json(run.folder / "metrics.json", metrics)
    return metrics


def present(work: Work, metrics: dict[str, Any]) -> None:
    """Write the report, pass the results to the loggers, and print a summary.

    One of several parts gets no page of its own: that of the song has them all.
    """
    run, song, heard, loggers = work.run, work.aligned.song, work.heard, work.loggers
    if run.cfg.report and run.label is None:
        shown = song
        if heard is not None and heard.seconds == song.seconds:
            shown = replace(song, estimate=heard.estimate)
        with run.stage("report"):
            write_page(run.folder, shown, metrics)
        write_json(run.folder / "metrics.json", metrics | _facts(run, song, _trainer(work)))
    step = _trainer(work).global_step
    if logs.can_play(loggers):
        target = song.read_stem(run.folder / "target.wav", logs.MAX_SECONDS)
        logs.log_separation(
            loggers,
            song.mixture,
            target,
            song.sample_rate,
            step,
            song.reference,
            again=True,
        )
    logs.log_results(loggers, run.folder, metrics, step)
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
        "overrides": run.overrides,
        "choices": group_choices(HydraConfig.get().runtime.choices),
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


def _overrides() -> list[str]:
    """The command line's settings, as they were given."""
    return cast(list[str], OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))


def group_label() -> str:
    """What this run was told, but for seed and song: by this its group is known in a logger.

    In a sweep it is only what the sweep varies.
    """
    hydra = HydraConfig.get()
    told = dict(override.lstrip("+~").partition("=")[::2] for override in _overrides())
    varies = read_json(Path(hydra.sweep.dir) / SWEEP_FILE).get("varies") if sweep_name() else None
    keys = [
        key
        for key in told
        if is_setting(key)
        and key.split(".")[0] not in ("seed", "song")
        and (varies is None or key in varies)
    ]
    return label(told, keys) or "default"
