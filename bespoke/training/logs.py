"""Loggers: which logger a run gets, what it is sent besides the training's figures, how it ends."""

import configparser
import contextlib
import importlib.util
import logging
import math
import netrc
import os
import shlex
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from bespoke.evaluation.report import media
from bespoke.evaluation.report.groups import Block, group_rows
from bespoke.evaluation.report.page import read_stem
from bespoke.evaluation.report.sweep import GROUPS_CSV, PAGE, RUNS_CSV, Results
from bespoke.models.separator import write_network
from bespoke.utils.errors import BespokeError, one_sentence

log = logging.getLogger(__name__)

MAX_COLUMNS = 2000  # of a spectrogram's picture
MAX_SECONDS = 120  # of audio sent to a logger; the stems are in the run's folder
NO_TENSORBOARD = (
    "logger=tensorboard needs TensorBoard: pip install 'bespoke-separation[tensorboard]'."
)
STEMS = ("target.wav", "residual.wav", "aligned.mid")
CHECKPOINT = ("config.yaml", "metrics.json")
PROJECT = "bespoke"
_WANDB_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # where no server is named
SETTINGS = "settings"  # the column of the config by which runs that differ by seed are a group
MAX_GROUPS_HEARD = 20  # of a recording, in the table that a sweep sends
KBPS = 96.0  # for a channel of the audio sent to a logger: nobody hears a difference


@contextlib.contextmanager
def of_part(label: str, folder: Path) -> Iterator[None]:
    """Log what the block says as of one part of several.

    On the terminal its lines begin with the part's label. They also go to the run's train.log.
    """
    root = logging.getLogger()
    before = [(handler, handler.formatter) for handler in root.handlers]
    file = logging.FileHandler(folder / "train.log", encoding="utf-8", delay=True)
    file.setFormatter(logging.Formatter("[%(asctime)s][%(levelname)s] %(message)s"))
    for handler, _ in before:
        handler.setFormatter(logging.Formatter(f"[{label.replace('%', '%%')}] %(message)s"))
    root.addHandler(file)
    try:
        yield
    finally:
        root.removeHandler(file)
        file.close()
        for handler, formatter in before:
            handler.setFormatter(formatter)


def auto(
    folder: Path,
    group: str | None,
    project: str | None = None,
    entity: str | None = None,
    timeout_seconds: float = 60,
    artifacts: bool = True,
) -> list[Logger]:
    """W&B where a key is set up and W&B is not disabled, with its settings as of `wandb`, else CSV;
    one line says which."""
    if _wandb_setting("mode") == "disabled":
        log.info("Logging to CSV files: Weights & Biases is disabled here (wandb enabled).")
        return csv(folder, group)
    if _has_wandb_key():
        log.info("Logging to Weights & Biases (logger=csv or logger=none for less).")
        return wandb(folder, group, project, entity, timeout_seconds, artifacts)
    log.info(
        "Logging to CSV files: no Weights & Biases key is set up (wandb login, or WANDB_API_KEY)."
    )
    return csv(folder, group)


def csv(folder: Path, group: str | None) -> list[Logger]:
    """`csv/version_N/metrics.csv` in the run's folder; a resumed run adds the next N."""
    return [CSVLogger(folder, name="csv", flush_logs_every_n_steps=50)]


def tensorboard(folder: Path, group: str | None) -> list[Logger]:
    """Event files in `tensorboard/` of the run's folder."""
    try:
        return [TensorBoardLogger(folder, name="tensorboard", default_hp_metric=False)]
    except ModuleNotFoundError as error:
        raise BespokeError(NO_TENSORBOARD) from error


def check(_target_: str, project: str | None = None, timeout_seconds: float = 60, **_: Any) -> None:
    """Find what a logger lacks, or W&B would refuse, before a run begins.

    Args:
        _target_: the logger's full name; with its settings, as in a config.

    Raises:
        BespokeError: its library is missing, or a setting is not possible.
    """
    if (
        _target_ == "bespoke.training.logs.tensorboard"
        and importlib.util.find_spec("tensorboard") is None
    ):
        raise BespokeError(NO_TENSORBOARD)
    uses_wandb = _target_ in ("bespoke.training.logs.auto", "bespoke.training.logs.wandb")
    own = _wandb_setting("project") if uses_wandb and project is None else None
    for name, value in (("logger.project", project), ("WANDB_PROJECT", own)):
        if value is not None and (not value or any(letter in "/\\#?%:" for letter in value)):
            raise BespokeError(
                f"{name}={value} is not possible: give a name without / \\ # ? % and :."
            )
    if timeout_seconds <= 0:
        raise BespokeError(
            f"logger.timeout_seconds={timeout_seconds} is not possible: give a number of seconds"
            " above 0."
        )


def none(folder: Path, group: str | None) -> list[Logger]:
    """No logger."""
    return []


def wandb(
    folder: Path,
    group: str | None,
    project: str | None = None,
    entity: str | None = None,
    timeout_seconds: float = 60,
    artifacts: bool = True,
) -> list[Logger]:
    """A W&B run of its own, in the sweep's group.

    It is offline without a key, or when the server does not answer in time.

    The id of the W&B run is kept in the folder, so that a resumed run continues it, online or
    offline. W&B's own variables and settings files (WANDB_PROJECT, WANDB_NAME, `wandb offline`, …)
    take precedence over what is chosen here. An id that W&B's sweep agent gives is used.

    Args:
        folder: of the run.
        group: the sweep's name.
        project, entity: where on the server; None: W&B's own settings, or "bespoke".
        timeout_seconds: how long to wait for the server.
        artifacts: whether the network and the stems are uploaded too.
    """
    run = _start_wandb(folder, group, project, entity, timeout_seconds)
    return [_WandbLogger(experiment=run, project=run.project, save_dir=folder, log_model=artifacts)]


def _start_wandb(
    folder: Path,
    group: str | None,
    project: str | None,
    entity: str | None,
    timeout_seconds: float,
    job_type: str | None = None,
) -> Any:
    """The W&B run of a folder, begun or gone on with. `job_type` tells other kinds from runs."""
    import wandb as client  # half a second, and only here

    id_file = folder / "wandb_id"
    run_id = id_file.read_text().strip() if id_file.is_file() else uuid.uuid4().hex[:8]
    given = None if group and not os.environ.get("WANDB_SWEEP_ID") else _wandb_setting("run_id")
    ours = {
        "project": PROJECT,
        "run_group": group,
        "name": f"{folder.parent.name}/{folder.name}",
        "dir": str(folder),
        "resume": "allow",
    }
    # Given again, as W&B itself looks at them once in a process.
    settings: dict[str, Any] = {
        name.removeprefix("run_"): _wandb_setting(name) or value for name, value in ours.items()
    }
    settings |= {
        "id": given or run_id,
        "reinit": "finish_previous",
        **({"project": project} if project else {}),
        "entity": entity or _wandb_setting("entity"),
        "job_type": job_type,
    }
    settings["mode"] = _wandb_setting("mode") or ("online" if _has_wandb_key() else "offline")
    timeout = client.Settings(
        init_timeout=timeout_seconds, silent=True
    )  # what matters is said below
    try:
        run = client.init(settings=timeout, **settings)
    except (client.Error, TimeoutError) as error:
        log.warning(
            "Weights & Biases did not answer (%s): this run is logged offline.",
            str(error).splitlines()[0],
        )
        client.teardown()  # it still holds the id of the run that it could not start
        run_id = uuid.uuid4().hex[:8]
        settings |= {"mode": "offline", "id": run_id, "resume": None}
        run = client.init(settings=timeout, **settings)
    id_file.write_text(run.id or settings["id"])
    if run.settings.mode == "online":
        log.info("Weights & Biases: %s", run.url)
    run.define_metric("trainer/global_step")
    run.define_metric(
        "*", step_metric="trainer/global_step", step_sync=True
    )  # the x axis of every chart
    return run


class _WandbLogger(WandbLogger):
    """A W&B logger that uploads files when the run is over.

    Lightning's own would upload every checkpoint during training, and none at all offline.
    """

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        pass

    def upload(self, folder: Path) -> None:
        """The network that made the stems, and the stems, as two artifacts of the run."""
        import wandb as client

        if not self._log_model or self.experiment.disabled:
            return
        for kind, names in (("checkpoint", CHECKPOINT), ("stems", STEMS)):
            artifact = client.Artifact(f"{kind}-{self.experiment.id}", type=kind)
            files = {name: folder / name for name in names if (folder / name).is_file()}
            if kind == "checkpoint":
                files |= self._network(folder)
            for name, file in files.items():
                # no copy of it
                artifact.add_file(str(file), Path(name).name, policy="immutable", skip_cache=True)
            if files:
                self.experiment.log_artifact(artifact)

    def _network(self, folder: Path) -> dict[str, Path]:
        """The checkpoint that made the stems, without what only going on with the training needs,
        which is two thirds of it: beside W&B's files of this leg, until it is uploaded."""
        best, last = (folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
        if best.is_file():
            return {best.name: best}
        if not last.is_file():
            return {}
        network = Path(self.experiment.dir).parent / last.name
        write_network(last, network)
        return {last.name: network}


def can_play(loggers: Sequence[Logger]) -> bool:
    """Whether any of the loggers takes audio and pictures."""
    return any(isinstance(logger, WandbLogger | TensorBoardLogger) for logger in loggers)


def log_config(
    loggers: Sequence[Logger],
    config: Mapping[str, Any],
    choices: Mapping[str, Any],
    settings: str = "default",
) -> None:
    """Send the config, flat, so that each value is a column to search, sort and group by.

    Args:
        loggers: of this run.
        config: nested, of plain values; `{"aug": {"compressor": {"knee_db": 9}}}` is sent as
            `aug/compressor/knee_db`.
        choices: what was chosen of each group, such as `{"aug": "heavy"}`, sent under the group's
            name.
        settings: what tells the run from others of its sweep, but for seed and song, such as
            `aug=heavy`. Runs with the same can be grouped by it.
    """
    chosen = {name: choice for name, choice in choices.items() if not name.startswith("hydra/")}
    values = {**chosen, **dict(flat(config)), SETTINGS: settings}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.hparams.update(
                values
            )  # shown in its table once there are figures to show beside them
            logger.experiment.add_text(
                "config", "\n".join(f"    {name}: {value}" for name, value in values.items())
            )
        else:
            logger.log_hyperparams(values)


def flat(config: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a nested config under the names that loggers know them by."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{name}{key}/")
        else:
            yield (
                f"{name}{key}",
                value if isinstance(value, int | float | str | None) else str(value),
            )


def log_separation(
    loggers: Sequence[Logger],
    mixture: np.ndarray,
    estimate: np.ndarray,
    sample_rate: int,
    step: int,
    reference: np.ndarray | None = None,
    again: bool = False,
) -> None:
    """Send the first two minutes of a separation to the loggers that can play and show them.

    Args:
        loggers: of this run.
        mixture, estimate, reference: `[channel, time]`; the residual is the rest of the mixture.
        sample_rate: in Hz.
        step: of the training.
        again: mixture and reference, which stay the same, were sent before, and are left out.
    """
    if not can_play(loggers):
        return
    mixture, estimate = (signal[:, : MAX_SECONDS * sample_rate] for signal in (mixture, estimate))
    signals = {"mixture": mixture, "estimate": estimate, "residual": mixture - estimate}
    if reference is not None:
        signals["reference"] = reference[:, : mixture.shape[-1]]
    if again:
        signals = {name: signals[name] for name in ("estimate", "residual")}
    images = {
        f"spectrogram/{name}": spectrogram_image(signal, sample_rate)
        for name, signal in signals.items()
    }
    images["mask/estimate"] = mask_image(estimate, mixture, sample_rate)
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb as client

            sent: dict[str, Any] = {
                name: client.Image(image, file_type="jpg") for name, image in images.items()
            }
            with tempfile.TemporaryDirectory() as folder:
                for name, signal in signals.items():
                    file = Path(folder, f"{name}.ogg")
                    heard = signal if len(signal) <= 2 else signal.mean(axis=0, keepdims=True)
                    file.write_bytes(media.opus(heard, sample_rate, KBPS))
                    sent[f"audio/{name}"] = client.Audio(str(file))
                logger.experiment.log(
                    {**sent, "trainer/global_step": step}
                )  # which copies the files
        elif isinstance(logger, TensorBoardLogger):
            for name, signal in signals.items():
                logger.experiment.add_audio(
                    f"audio/{name}", signal.mean(axis=0)[None], step, sample_rate
                )
            for name, image in images.items():
                logger.experiment.add_image(name, image, step, dataformats="HWC")


def log_results(
    loggers: Sequence[Logger], folder: Path, metrics: Mapping[str, Any], step: int
) -> None:
    """Send what a run has come to: its figures, and to W&B its files.

    Args:
        loggers: of this run.
        folder: of the run.
        metrics: of metrics.json. Those of the separation, the time that it took, and the
            alignment's confidence are sent.
        step: of the training.
    """
    known = {
        name: value
        for name, value in metrics.items()
        if name.startswith("si_sdr") or name in ("agreement", "kept_step")
    }
    known["seconds"] = metrics.get("seconds", {}).get("total")
    known["alignment_confidence"] = metrics.get("alignment", {}).get("confidence")
    figures = {f"final/{name}": float(value) for name, value in known.items() if value is not None}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(dict(logger.hparams), figures)
        else:
            logger.log_metrics(figures, step)
        if isinstance(logger, _WandbLogger):
            logger.upload(folder)


def log_comparison(sweep: Path, results: Results) -> str:
    """Send what a sweep has come to to W&B, if its runs are there, as a run of its own.

    The run is of the sweep's group and of the type "comparison". It has tables of the runs, of
    their groups with the statistics, and of what each group sounds like; the answer as its summary;
    and the sweep's CSV files and page as an artifact.

    Args:
        sweep: the sweep's folder.
        results: of all its runs.

    Returns:
        A line that says where it is, or why not; empty if there was nothing to send.
    """
    logged = [run for run in results.runs if (run.folder / "wandb_id").is_file()]
    if not logged or not results.blocks or _wandb_setting("mode") == "disabled":
        return ""
    import wandb as client

    project, entity = (_of_logger(logged[0].config, name) for name in ("project", "entity"))
    try:
        run = _start_wandb(sweep, sweep.name, project, entity, 60, job_type="comparison")
        rows = [
            {"run": each.name, **each.settings, **each.figures, "error": each.error}
            for each in results.runs
        ]
        tables = {"runs": rows, "groups": group_rows(results.blocks)}
        with tempfile.TemporaryDirectory() as folder:
            tables["listen"] = _heard(results.blocks, Path(folder))
            run.log({name: _table(found) for name, found in tables.items()})  # it copies the sound
        main = results.blocks[0]  # over all songs, or of the only one
        best = main.best
        run.summary.update({"answer": main.answer(), "best": best.label if best else ""})
        for group, figure in main.ranked():
            run.summary.update({f"{main.column.key}/{group.label}": figure.mean})
        artifact = client.Artifact(f"comparison-{run.id}", type="comparison")
        for name in (RUNS_CSV, GROUPS_CSV, PAGE):
            if (sweep / name).is_file():
                artifact.add_file(str(sweep / name), name)
        run.log_artifact(artifact)
        address = run.url if run.settings.mode == "online" else None
        run.finish()
    except Exception as error:  # of the network, most likely, and all there is is in the folder
        log.debug("", exc_info=True)
        return f"The comparison was not sent to Weights & Biases ({one_sentence(error)})."
    if address:
        return f"The comparison on Weights & Biases: {address}"
    return f"To upload the comparison: wandb sync {shlex.quote(str(sweep / 'wandb'))}"


def _heard(blocks: Sequence[Block], folder: Path) -> list[dict[str, Any]]:
    """For each group of a recording, target and residual of its run next to the mean, as sound."""
    import wandb as client

    rows: list[dict[str, Any]] = []
    for block in blocks:
        for group, figure in block.ranked()[:MAX_GROUPS_HEARD] if block.songs == 1 else ():
            chosen = min(
                (run for run in group.runs if run.figures[block.column.key] is not None),
                key=lambda run: abs((run.figures[block.column.key] or 0.0) - figure.mean),
            )
            row = {
                "song": block.title,
                "group": group.label,
                block.column.key: figure.mean,
                "run": chosen.name,
            }
            for stem in ("target", "residual"):
                file = folder / f"{len(rows)}_{stem}.ogg"
                waveform, sample_rate = read_stem(chosen.folder / f"{stem}.wav", MAX_SECONDS)
                heard = waveform if len(waveform) <= 2 else waveform.mean(axis=0, keepdims=True)
                file.write_bytes(media.opus(heard, sample_rate, KBPS))
                row[stem] = client.Audio(str(file))
            rows.append(row)
    return rows


def _of_logger(config: Mapping[str, str], name: str) -> str | None:
    value = config.get(f"logger.{name}")
    return None if value in (None, "None") else value


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A W&B table. Its columns have one type each: numbers, with None for what is missing."""
    import wandb as client

    columns: list[str | int] = list(dict.fromkeys(column for row in rows for column in row))
    return client.Table(
        columns=columns, data=[[row.get(str(column)) for column in columns] for row in rows]
    )


def spectrogram_image(waveform: np.ndarray, sample_rate: int, range_db: float = 80.0) -> np.ndarray:
    """The channel mean's magnitude in dB below its peak, in colour, low frequencies at the bottom.

    Args:
        waveform: `[channel, time]`.
        sample_rate: in Hz.
        range_db: what lies further below the peak is black.

    Returns:
        uint8 `[freq, columns, 3]`, at most `MAX_COLUMNS` of them.
    """
    magnitude = _magnitude(waveform, sample_rate)
    level_db = 20 * np.log10(
        np.maximum(magnitude / max(magnitude.max(), 1e-12), 10 ** (-range_db / 20))
    )
    return _coloured(1 + level_db / range_db)


def mask_image(estimate: np.ndarray, mixture: np.ndarray, sample_rate: int) -> np.ndarray:
    """How much of the mixture's magnitude the estimate keeps, from 0 (black) to 1.

    This is the mask as it was applied.

    Args:
        estimate, mixture: `[channel, time]`.
        sample_rate: in Hz.

    Returns:
        uint8 `[freq, columns, 3]`, like the spectrograms.
    """
    part, whole = _magnitude(estimate, sample_rate), _magnitude(mixture, sample_rate)
    return _coloured(np.minimum(part / np.maximum(whole, 1e-9), 1))


def _magnitude(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    window = np.hanning(round(0.046 * sample_rate)).astype(np.float32)
    mono = np.pad(waveform.mean(axis=0), (0, window.size))
    # Long recordings get a longer hop: a picture is seen, not inverted.
    hop = max(window.size // 4, math.ceil(mono.size / MAX_COLUMNS))
    frames = np.lib.stride_tricks.sliding_window_view(mono, window.size)[::hop]
    return np.abs(np.fft.rfft(frames * window)).T


def _coloured(values: np.ndarray) -> np.ndarray:
    from matplotlib import colormaps  # slow to import

    return (colormaps["magma"](values[::-1])[..., :3] * 255).astype(np.uint8)


def finish(loggers: Sequence[Logger], failed: bool) -> None:
    """Close every logger.

    W&B's run ends here, so that the next job of a sweep gets a run of its own. The log says where
    the run is.
    """
    for logger in loggers:
        logger.finalize("failed" if failed else "success")
        if isinstance(logger, WandbLogger):
            run = logger.experiment
            run.finish(exit_code=int(failed))
            if run.settings.mode == "online":
                Path(run.dir).with_name("last.ckpt").unlink(missing_ok=True)  # it is uploaded
                log.info("Weights & Biases: %s", run.url)
            elif not run.disabled:
                leg = Path(run.dir).parent
                is_shared = bool(_wandb_setting("dir"))  # by runs of other folders
                log.info(
                    "To upload this run: wandb sync %s",
                    shlex.quote(str(leg if is_shared else leg.parent)),
                )  # all legs of it
        elif isinstance(logger, TensorBoardLogger):
            log.info(
                "To look at this run: tensorboard --logdir %s", shlex.quote(str(logger.save_dir))
            )


def _has_wandb_key() -> bool:
    """Whether there is a key for W&B's server, or for the one of one's own that is named."""
    if _wandb_setting("api_key"):
        return True
    server = _wandb_setting("base_url")
    hosts = {urlsplit(server).netloc, urlsplit(server).hostname} if server else {*_WANDB_HOSTS}
    named = os.environ.get("NETRC")
    files = [named] if named else [str(Path.home() / name) for name in (".netrc", "_netrc")]
    for file in files:
        try:
            known = netrc.netrc(os.path.expanduser(file))
        except (OSError, netrc.NetrcParseError):
            continue
        if any(host and known.authenticators(host) for host in hosts):
            return True
    return False


def _wandb_setting(name: str) -> str | None:
    """What W&B's own variables, or the settings files that its commands write, say: WANDB_NAME, the
    file of this folder, the user's."""
    if value := os.environ.get(f"WANDB_{name.upper()}"):
        return value
    here = Path(os.environ.get("WANDB_DIR") or ".")
    try:
        home = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    except RuntimeError:  # there is no home
        home = here
    for folder in (here / ".wandb", here / "wandb", home):
        settings = configparser.ConfigParser(interpolation=None)
        try:
            settings.read(folder / "settings", encoding="utf-8")
        except (OSError, UnicodeDecodeError, configparser.Error):
            continue
        if value := settings.get("default", name, fallback=None):
            return value
    return None
