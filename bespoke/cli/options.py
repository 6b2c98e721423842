"""Rewording of messages for the `bespoke` command: options in place of settings' names."""

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence

QUALITIES = {"standard": "auto", "best": "bespoke", "quick": "auto"}
"""Recipe of each value of --quality. `quick` trained less than `standard`, which now does not."""

OPTIONS = {
    "hydra.run.dir": "--out",
    "recipe": "--quality",
    "seed": "--seed",
    "separate.strength": "--strength",
    "song.excerpt": "--start and --end",
    "song.mixture": "the recording",
    "song.reference": "--reference",
    "song.target.instrument": "--instrument",
    "song.target.patches": "--patch",
    "song.target.score": "the MIDI",
    "song.target.soundfonts": "--soundfont",
    "trainer": "--device",
}
"""What users of the command give in place of a setting."""

SETTINGS = (
    *("align", "aug", "background", "callbacks", "checkpoint_steps", "ckpt", "curve_steps", "keep"),
    *("log_audio_steps", "logger", "loss", "model", "optimizer", "report", "threads"),
    *("aug.background", "aug.background_gain_db", "aug.compressor", "aug.compressor.ratios"),
    *("aug.mix", "aug.target", "aug.target_gain_db"),
    *("background.paths", "background.weights", "background.weights.synth"),
    *("data.batch_size", "data.label", "data.listen_seconds", "data.sample_rate"),
    *("data.segment_seconds", "data.self_training", "data.silent_share"),
    *("data.validation_batches", "data.workers"),
    *("hydra.sweep.dir",),
    *("logger.project", "logger.timeout_seconds"),
    *("early_stopping.metric", "early_stopping.patience"),
    *("optimizer.lr", "scheduler.warmup_steps"),
    *("separate.block_seconds", "separate.panning", "separate.resolutions"),
    *("song.background", "song.others", "song.standin", "song.target", "song.target.audio"),
    *("stft.window_seconds",),
    *("trainer.accelerator", "trainer.accumulate_grad_batches"),
    *("trainer.check_val_every_n_epoch", "trainer.devices", "trainer.gradient_clip_val"),
    *("trainer.log_every_n_steps", "trainer.max_steps", "trainer.num_sanity_val_steps"),
    *("trainer.precision", "trainer.val_check_interval"),
)
"""Other settings that messages name. Users of the command set them with --set KEY=VALUE."""

# Phrases to replace as a whole, where replacing the setting's name does not suffice.
_PHRASES = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (
            r"repeat the command with hydra\.run\.dir=.* ckpt=last to go on",
            "give the same command again to go on from the last checkpoint",
        ),
        (r"or continue with ckpt=last", "or start over with --force"),
        (
            r"has another config \((.*)\): repeat its overrides, or start a new run",
            r"has other settings (\1): start over with --force",
        ),
        (r"; or give a rendered target as song\.target\.audio", ""),
        (r"silent in song\.excerpt", "silent between --start and --end"),
        (r"leave song\.reference out", "leave --reference out"),
        (r"another of song's patches", "another --patch"),
        (r"train\.py --cfg job lists", "bespoke train --cfg job lists"),
    )
)
_names = [re.escape(name) for name in sorted((*OPTIONS, *SETTINGS), key=len, reverse=True)]
_ANY, _DOTTED = "|".join(_names), "|".join(name for name in _names if "." in name)
# Matches a setting's name unless it is part of a path or a file name (song.reference.wav). A name
# that is also an English word counts only with a value or a change.
_SETTING = re.compile(
    rf"(?<![\w./-])(?<!--set )(?:({_ANY})(?==[^\s=])|({_ANY})(?=: .* there, .* now)"
    rf"|({_DOTTED})(?![\w/-]|\.\w))"
)


def in_options(message: str) -> str:
    """Reword a run's message for the `bespoke` command.

    >>> in_options(
    ...     "Interrupted at step 3: repeat the command with hydra.run.dir=OUT ckpt=last to go on."
    ... )
    'Interrupted at step 3: give the same command again to go on from the last checkpoint.'
    >>> in_options("trainer.max_steps=0 is not possible; list another in song.target.soundfonts.")
    '--set trainer.max_steps=0 is not possible; list another in --soundfont.'
    >>> in_options("song.reference.wav is already there")
    'song.reference.wav is already there'
    """
    for pattern, words in _PHRASES:
        message = pattern.sub(words, message)
    return _SETTING.sub(_in_option, message)


def _in_option(match: re.Match) -> str:
    with_value, changed, alone = match.groups()
    if with_value:  # the option may not accept the setting's value
        return f"--set {with_value}"
    name = changed or alone
    return OPTIONS.get(name, f"--set {name}")


def changes_in_options(changes: Sequence[str]) -> list[str]:
    """Reword differences of two configs, as `bespoke.training.preflight.changes` gives them.

    >>> changes = ["recipe: auto there, bespoke now", "trainer.max_steps: 0 there, 60 now"]
    >>> changes_in_options([*changes, "song.excerpt: None there, [1, 2] now"])
    ['--quality: standard there, best now', '--start and --end: None there, [1, 2] now']
    """
    recipe = next((change for change in changes if change.startswith("recipe: ")), None)
    if recipe is not None:  # its other changes follow from the recipe
        for quality, name in QUALITIES.items():
            recipe = re.sub(rf"\b{name} (there|now)\b", rf"{quality} \1", recipe)
        changes = [recipe, *(change for change in changes if change.startswith("song."))]
    return [in_options(change) for change in changes]


@contextlib.contextmanager
def logged_in_options() -> Iterator[None]:
    """Reword all that Bespoke logs inside the block, to the terminal, files and reports."""
    make = logging.getLogRecordFactory()

    def make_in_options(*arguments, **settings) -> logging.LogRecord:
        record = make(*arguments, **settings)
        if record.name.split(".")[0] == "bespoke":
            record.msg, record.args = in_options(record.getMessage()), ()
        return record

    logging.setLogRecordFactory(make_in_options)
    try:
        yield
    finally:
        logging.setLogRecordFactory(make)
