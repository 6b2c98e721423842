"""A policy's mixes to hear and to see, as a run would train on them, without training."""

import tempfile
from pathlib import Path

from omegaconf import DictConfig

from bespoke.evaluation.report import preview_page
from bespoke.training import preflight
from bespoke.training.alignment import Aligned
from bespoke.training.build import make_data, make_parts
from bespoke.training.run import Run, Work, align, listen, load
from bespoke.utils import processor, progress
from bespoke.utils.configs import as_dict


def write_preview(cfg: DictConfig, path: Path, mixes: int, policy: str) -> Path:
    """Write the page of the first mixes of a run.

    Args:
        cfg: the run's whole config.
        path: file to write.
        mixes: how many.
        policy: the policy's name.

    Raises:
        BespokeError: something that the user can correct, as of a run.
    """
    cfg = cfg.copy()
    preflight.check(cfg)
    cfg.data.validation_batches, cfg.data.workers = 0, 0
    cfg.trainer.max_steps = max(1, cfg.trainer.max_steps)  # as if it trained, if it does not
    processor.use_free_cores(None if cfg.threads == "auto" else cfg.threads)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(cfg, Path(folder))
        parts = make_parts(cfg)
        with run.own():
            with run.stage("load"):
                song = load(run, parts)
            work = Work(run, parts, song, Aligned(song))
            align([work])
            heard = listen(run, work.aligned, parts)
        with run.stage("render"):
            stream = make_data(cfg, heard, parts).train
        with progress.stage("report"):
            return preview_page.write_preview(
                path,
                stream,
                mixes,
                f"{song.name} with aug={policy}",
                f"The first {mixes} mixes of the training with recipe={cfg.recipe}, seed"
                f" {cfg.seed}.",
                as_dict(cfg.aug),
                run.warnings,
            )
