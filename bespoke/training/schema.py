"""What the settings of a run may be that no class of their own describes: names, kinds, ranges.

`bespoke.training.signatures` checks a config against these classes, as it checks each group against
the class that the group names. (OmegaConf's structured configs know no ranges and no choices, and
take 3 for true and "2" for 2.) The values are in conf/config.yaml, with what each is for.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from bespoke.training.signatures import Range

FromOne = Annotated[int, Range(1)]
FromZero = Annotated[int, Range(0)]


@dataclass(frozen=True)
class Run:
    """The settings that are in no section."""

    seed: Annotated[int, Range(0, 2**31 - 1)]
    threads: Literal["auto"] | FromOne
    ckpt: str | None
    recipe: str
    keep: Literal["last", "best"]
    align: bool
    report: bool
    checkpoint_steps: FromOne
    curve_steps: FromZero
    log_audio_steps: FromZero


@dataclass(frozen=True)
class Data:
    """The section `data`: lengths in seconds, rates in Hz."""

    sample_rate: Annotated[int, Range(4000, 768_000)]
    segment_seconds: Annotated[float, Range(0.05, 600)]
    listen_seconds: Annotated[float, Range(20, 3600)]
    batch_size: FromOne
    validation_batches: FromZero
    workers: Literal["auto"] | Annotated[int, Range(0, 256)]
    silent_share: Annotated[float, Range(0, 1)]
    label: Literal["wet", "dry"]
    self_training: bool


@dataclass(frozen=True)
class Trainer:
    """What Lightning's trainer says too late, or not at all, of its own settings."""

    max_steps: FromZero
    accumulate_grad_batches: FromOne = 1
    check_val_every_n_epoch: FromOne | None = None
    gradient_clip_val: Annotated[float, Range(0)] | None = None
    log_every_n_steps: FromZero | None = None
    num_sanity_val_steps: Annotated[int, Range(-1)] | None = None
