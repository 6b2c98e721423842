"""Loggers: which one a run gets, what goes there beside the training curves, and how each is closed."""

import logging
import math
import netrc
import os
import shlex
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from bespoke.errors import BespokeError

log = logging.getLogger(__name__)

MAX_COLUMNS = 2000  # of a spectrogram's picture
MAX_SECONDS = 120  # of audio sent to a logger; the stems are in the run's folder


def auto(folder: Path, group: str | None, **wandb_settings: Any) -> list[Logger]:
    """W&B where a key is set up, else CSV; one line says which."""
    if _has_wandb_key():
        log.info("Logging to Weights & Biases (logger=csv or logger=none for less).")
        return wandb(folder, group, **wandb_settings)
    log.info("Logging to CSV files: no Weights & Biases key is set up (wandb login, or WANDB_API_KEY).")
    return csv(folder, group)


def csv(folder: Path, group: str | None) -> list[Logger]:
    """`csv/version_N/metrics.csv` in the run's folder; a resumed run adds the next N."""
    return [CSVLogger(folder, name="csv", flush_logs_every_n_steps=50)]


def tensorboard(folder: Path, group: str | None) -> list[Logger]:
    """Event files in `tensorboard/` of the run's folder."""
    try:
        return [TensorBoardLogger(folder, name="tensorboard")]
    except ModuleNotFoundError as error:
        raise BespokeError("logger=tensorboard needs TensorBoard: pip install 'bespoke[tensorboard]'.") from error


def none(folder: Path, group: str | None) -> list[Logger]:
    """No logger."""
    return []


def wandb(
    folder: Path, group: str | None, project: str = "bespoke", entity: str | None = None, timeout_seconds: float = 60
) -> list[Logger]:
    """A W&B run of its own, in the sweep's group; offline without a key, or when the server does not answer in time.

    The run's id is kept in the folder, so that a resumed run continues it. W&B cannot continue an offline run by itself: for that the
    line to synchronize it with is logged.
    """
    import wandb as client  # half a second, and only here

    id_file = folder / "wandb_id"
    resumed = id_file.is_file()
    run_id = id_file.read_text().strip() if resumed else uuid.uuid4().hex[:8]
    settings = {
        "project": project,
        "entity": entity,
        "group": group,
        "name": f"{folder.parent.name}/{folder.name}",
        "id": run_id,
        "dir": str(folder),
        "resume": "allow",
        "reinit": "finish_previous",
    }
    mode = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
    timeout = client.Settings(init_timeout=timeout_seconds, silent=True)  # what matters is said below
    try:
        run = client.init(mode=mode, settings=timeout, **settings)
    except (client.Error, TimeoutError) as error:
        log.warning("Weights & Biases did not answer (%s): this run is logged offline.", str(error).splitlines()[0])
        client.teardown()  # it still holds the id of the run that it could not start
        run_id, resumed = uuid.uuid4().hex[:8], False
        run = client.init(mode="offline", settings=timeout, **{**settings, "id": run_id, "resume": None})
    id_file.write_text(run_id)
    if run.settings.mode != "online" and not run.disabled:
        log.info("To upload this run: wandb sync %s%s", "--append " if resumed else "", shlex.quote(str(Path(run.dir).parent)))
    else:
        log.info("Weights & Biases: %s", run.url)
    return [WandbLogger(experiment=run, project=project, save_dir=folder)]


def log_results(
    loggers: Sequence[Logger], signals: Mapping[str, np.ndarray], sample_rate: int, metrics: Mapping[str, Any], step: int
) -> None:
    """Send the final figures, and the first two minutes of each signal as audio and as a spectrogram, to the loggers that can show them.

    Args:
        loggers: of this run.
        signals: `[channel, time]` by name.
        sample_rate: in Hz.
        metrics: of which the figures of the separation are sent.
        step: of the training.
    """
    signals = {name: signal[:, : MAX_SECONDS * sample_rate] for name, signal in signals.items()}
    figures = {f"final/{name}": float(value) for name, value in metrics.items() if name.startswith("si_sdr") and value is not None}
    for logger in loggers:
        logger.log_metrics(figures, step)
        if isinstance(logger, WandbLogger):
            import wandb as client

            media = {f"audio/{name}": client.Audio(signal.T, sample_rate) for name, signal in signals.items()}
            media |= {f"spectrogram/{name}": client.Image(spectrogram_image(signal, sample_rate)) for name, signal in signals.items()}
            logger.experiment.log({**media, "trainer/global_step": step})
        elif isinstance(logger, TensorBoardLogger):
            for name, signal in signals.items():
                logger.experiment.add_audio(f"audio/{name}", signal.mean(axis=0)[None], step, sample_rate)
                logger.experiment.add_image(f"spectrogram/{name}", spectrogram_image(signal, sample_rate), step, dataformats="HWC")


def spectrogram_image(waveform: np.ndarray, sample_rate: int, range_db: float = 80.0) -> np.ndarray:
    """The channel mean's magnitude in dB below its peak, in colour, low frequencies at the bottom.

    Args:
        waveform: `[channel, time]`.
        sample_rate: in Hz.
        range_db: what lies further below the peak is black.

    Returns:
        uint8 `[freq, columns, 3]`, at most `MAX_COLUMNS` of them.
    """
    from matplotlib import colormaps  # slow to import

    window = np.hanning(round(0.046 * sample_rate)).astype(np.float32)
    mono = np.pad(waveform.mean(axis=0), (0, window.size))
    # Long recordings get a longer hop: a picture is seen, not inverted.
    hop = max(window.size // 4, math.ceil(mono.size / MAX_COLUMNS))
    frames = np.lib.stride_tricks.sliding_window_view(mono, window.size)[::hop]
    magnitude = np.abs(np.fft.rfft(frames * window)).T
    level_db = 20 * np.log10(np.maximum(magnitude / max(magnitude.max(), 1e-12), 10 ** (-range_db / 20)))
    return (colormaps["magma"](1 + level_db[::-1] / range_db)[..., :3] * 255).astype(np.uint8)


def finish(loggers: Sequence[Logger], failed: bool) -> None:
    """Close every logger; W&B's run ends here, so that the next job of a sweep gets its own."""
    for logger in loggers:
        logger.finalize("failed" if failed else "success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=int(failed))


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
