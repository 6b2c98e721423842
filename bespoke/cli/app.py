"""The `bespoke` command: for musicians, without configs.

Modules that are slow to import are imported where they are used, so that --help is quick.

It makes the same runs as train.py, whose settings it writes out of its options (`request.py`).
"""

import contextlib
import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bespoke import __version__
from bespoke.utils import processor
from bespoke.utils.errors import INTERRUPTED, BespokeError, Interrupted

if TYPE_CHECKING:
    from bespoke.audio.io import Recording
    from bespoke.cli.request import Job
    from bespoke.models.separator import Separator
    from bespoke.score.midi import Part
    from bespoke.score.synth import Patch, SoundFont

SCORE_SUFFIXES = {".mid", ".midi", ".kar", ".rmi", ".smf"}
FORMAT_HELP = (
    "Of the stems. wav: float, which adds up exactly. The others: of the song's bit depth, with its"
    " tags; same: in its format."
)
RESERVED = ("residual", "report", "stems", "target")  # what no part's stem may be called
MOST_RENDERS = 16
ALIGNMENT_RATE = 22050
_existing = click.Path(exists=True, dir_okay=False, path_type=Path)
_folder = click.Path(file_okay=False, path_type=Path)


class Seconds(click.ParamType):
    """A place in a song: 62, 62.5, 1:02 or 1:02:03.5."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?)", value.strip())
        if not match:
            self.fail(
                f"{value!r} is not a time: write seconds, as in 62.5, or minutes and seconds, as"
                " in 1:02.5.",
                param,
                ctx,
            )
        hours, minutes, seconds = (float(part or 0) for part in match.groups())
        return 3600 * hours + 60 * minutes + seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 2 for errors that the user can correct, 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):  # a name may have letters that the terminal lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    processor.wait_without_spinning()
    try:
        return bespoke.main(arguments, "bespoke", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 0
    except click.ClickException as error:
        print(f"error: {error.format_message()}", file=sys.stderr)
    except BespokeError as error:
        from bespoke.cli.options import in_options

        print(f"error: {in_options(str(error))}", file=sys.stderr)
    except (click.Abort, KeyboardInterrupt) as error:  # click makes the one of the other
        step = (
            f" at step {error.__cause__.step}" if isinstance(error.__cause__, Interrupted) else ""
        )
        print(
            f"Interrupted{step}: give the same command again to go on from the last checkpoint.",
            file=sys.stderr,
        )
        return INTERRUPTED
    return 2


class _Command(click.Command):
    """A command whose output is its results alone.

    Where the variable CI is set, FluidSynth's binding prints where it found its library. This is
    kept out of the output.
    """

    def invoke(self, ctx: click.Context) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            import pretty_midi  # noqa: F401
        return super().invoke(ctx)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def bespoke() -> None:
    """Take one instrument out of one recording by its MIDI, with a small network that is trained
    further for this recording."""


bespoke.command_class = _Command


_instrument = click.option(
    "--instrument",
    "instruments",
    multiple=True,
    metavar="NAME",
    help="Which part of the MIDI: its name, number or sound, see inspect. With commas: several as"
    " one stem."
    " Several times, or `all`: a stem for each.",
)
_patch = click.option(
    "--patch",
    "patches",
    multiple=True,
    metavar="NAME",
    help="General MIDI sound like the instrument's, by name or number, see patches. Several make"
    " it more robust. Default: the MIDI's.",
)
_soundfont = click.option(
    "--soundfont", metavar="NAME", help="SF2 or SF3 file. Default: one that comes with it."
)
_start = click.option(
    "--start", type=Seconds(), metavar="TIME", help="Take the song from here on, as in 1:02."
)
_end = click.option("--end", type=Seconds(), metavar="TIME", help="Take the song up to here.")
_out = click.option(
    "--out",
    type=_folder,
    default=Path(),
    metavar="FOLDER",
    help="Where to put the results. Default: this folder.",
)
_device = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True
)
_format = click.option(
    "--format",
    "kind",
    type=click.Choice(["wav", "flac", "mp3", "same"]),
    default="wav",
    show_default=True,
    help=FORMAT_HELP,
)
_strength = click.option(
    "--strength",
    type=float,
    metavar="NUMBER",
    help="More than 1: less of the others in the target, more artefacts; below 1: the reverse.",
)
_reference = click.option(
    "--reference",
    type=_existing,
    metavar="FILE",
    help="The true stem, if you have it, to measure with.",
)
_force = click.option("--force", is_flag=True, help="Replace what is there.")
_start_over = click.option(
    "--force",
    is_flag=True,
    help="Replace stems that are there; where SONG, MIDI or a setting is another, start over.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")


@bespoke.command()
@click.argument("song", type=_existing)
@click.argument("score", type=_existing, metavar="MELODY.mid")
@_instrument
@_patch
@_soundfont
@_start
@_end
@click.option(
    "--quality",
    type=click.Choice(["standard", "best", "quick"]),
    metavar="[standard|best]",
    default="standard",
    show_default=True,
    help="best: trains the network on the song first, which helps some songs and not others.",
)
@_strength
@_out
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    show_default=True,
    help="The same seed gives the same stems.",
)
@_device
@_format
@_reference
@click.option("--jobs", type=click.IntRange(1), hidden=True)  # of before: all parts are one run
@_start_over
@_json
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any setting of train.py, as in trainer.max_steps=100.",
)
def separate(
    song: Path,
    score: Path,
    instruments: tuple[str, ...],
    patches: tuple[str, ...],
    soundfont: str | None,
    start: float | None,
    end: float | None,
    quality: str,
    strength: float | None,
    out: Path,
    seed: int,
    device: str,
    kind: str,
    reference: Path | None,
    jobs: int | None,
    force: bool,
    as_json: bool,
    settings: tuple[str, ...],
) -> None:
    """Take the part in MELODY.mid out of SONG.

    Writes SONG.target.wav, SONG.residual.wav, which is the rest, and SONG.report.html, where you
    hear them; with several parts a SONG.PART.wav for each. The MIDI need not be in time with the
    recording. Whatever else a run makes is in SONG.bespoke. The same command goes on where it was
    interrupted, and does nothing twice: with another --format it only writes the stems anew.
    """
    from bespoke.audio.io import open_audio
    from bespoke.cli import request
    from bespoke.cli.options import QUALITIES, logged_in_options
    from bespoke.cli.stems import suffix_for
    from bespoke.utils import progress

    parts = _choose(score, instruments)
    if len(parts) > 1 and (patches or reference):
        raise click.UsageError(
            "--patch and --reference are for one part: with several, each is played with the sound"
            " that the MIDI names."
        )
    _check_device(device)
    recording = open_audio(song)
    suffix = suffix_for(kind, recording)
    given = {word.lstrip("+").partition("=")[0] for word in settings}
    common = [
        "song=custom",
        request.setting("song.mixture", song.resolve()),
        request.setting("song.target.score", score.resolve()),
        request.setting("song.target.soundfonts", soundfont),
        request.setting("song.excerpt", _excerpt(recording, start, end)),
        request.setting("song.reference", reference and reference.resolve()),
        f"recipe={QUALITIES[quality]}",
        f"seed={seed}",
        f"trainer={'gpu' if device == 'cuda' else device}",
        *([f"separate.strength={strength}"] if strength is not None else []),
        "checkpoint_steps=10",
        "logger=none",
        "hydra.job_logging.handlers.console.stream='ext://sys.stderr'",
        *settings,
    ]
    work: list[Job] = []
    runs = f"{song.stem}.bespoke".replace(
        "${", "$("
    )  # Hydra takes a folder of the other for a setting
    for label, (choice, part) in parts.items():
        programs = _programs(patches, soundfont, part) if patches else None
        own = {
            "song.name": song.stem if len(parts) == 1 else f"{song.stem}, {label}",
            "song.target.instrument": choice,
            "song.target.patches": programs,
        }
        own = {name: value for name, value in own.items() if name not in given}
        folder = out / (runs if len(parts) == 1 else f"{runs}-parts/{label}")
        work.append(request.Job(label, folder, own, tuple(common)))
        _say(f"{label}: {_sound(part, programs)}")
    with progress.on_stderr(), logged_in_options():
        result = request.separate(
            work,
            out,
            song.stem,
            {"recording": song, "score": score},
            suffix=suffix,
            exact=kind == "wav",
            force=force,
        )
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    for file in (*result["stems"].values(), result["residual"], *filter(None, [result["report"]])):
        click.echo(file)
    _say_softer(result["gain"], suffix)


@bespoke.command()
@click.argument("checkpoint", type=_existing)
@click.argument("song", type=_existing)
@click.argument("score", type=_existing, required=False, metavar="[MELODY.mid]")
@_instrument
@click.option(
    "--trust-notes",
    is_flag=True,
    help="Take the checkpoint's notes as they are: do not look whether they fit SONG.",
)
@_strength
@_out
@_device
@_format
@_force
@_json
def apply(
    checkpoint: Path,
    song: Path,
    score: Path | None,
    instruments: tuple[str, ...],
    trust_notes: bool,
    strength: float | None,
    out: Path,
    device: str,
    kind: str,
    force: bool,
    as_json: bool,
) -> None:
    """Separate SONG with the CHECKPOINT of another run, without training.

    The checkpoint is SONG.bespoke/checkpoints/last.ckpt. It knows where the notes are in the
    recording that it was trained on. They are looked for in SONG, which may be another mastering of
    it, begin later, or be longer; for another recording give its MIDI too.
    """
    import tempfile

    from bespoke.audio.io import open_audio
    from bespoke.cli.stems import check_free, publish, suffix_for
    from bespoke.models.separator import load_separator, silent_elsewhere
    from bespoke.utils import progress
    from bespoke.utils.memory import keep_freed_memory

    keep_freed_memory()
    processor.use_free_cores()
    _check_device(device)
    recording = open_audio(song)
    suffix = suffix_for(kind, recording)
    finals = [out / f"{song.stem}.{label}{suffix}" for label in ("target", "residual")]
    check_free(finals, force)
    part = None
    if score is not None:
        parts = _choose(score, instruments)
        if len(parts) > 1:
            raise click.UsageError("A checkpoint is for one part: choose one --instrument.")
        ((_, part),) = parts.values()
    separator = load_separator(
        checkpoint, _torch_device(device), **({} if strength is None else {"strength": strength})
    )
    with progress.on_stderr():
        if part is not None and score is not None:
            separator.place(*_aligned(part, score, recording))
        elif separator.notes and not trust_notes:
            separator.place(*_found(separator, checkpoint, recording))
        if separator.notes and (notice := silent_elsewhere(separator.notes, recording.seconds)):
            _say(notice)
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out) as folder:
            sources = [Path(folder, f"{label}.wav") for label in ("target", "residual")]
            with progress.stage("separate"):
                separator.write_stems(recording, *sources)
            with progress.stage("publish"):
                gain = publish(sources, finals, song, kind == "wav")
    if as_json:
        click.echo(
            json.dumps(
                {"stems": {"target": str(finals[0])}, "residual": str(finals[1]), "gain": gain},
                indent=2,
            )
        )
    else:
        click.echo("\n".join(map(str, finals)))
        _say_softer(gain, suffix)


@bespoke.command()
@click.argument("file", type=_existing)
@_json
def inspect(file: Path, as_json: bool) -> None:
    """Say what is in a MIDI file or a recording."""
    facts = _score_facts(file) if _is_score(file) else _audio_facts(file)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    if "parts" not in facts:
        channels = (
            f"{facts['channels']} channel{'s' if facts['channels'] > 1 else ''} at"
            f" {facts['sample_rate']} Hz"
        )
        click.echo(
            f"{file}: {facts['format']}, {_clock(facts['seconds'])}, {channels}, peak"
            f" {facts['peak_db']:.1f} dBFS"
        )
        return
    click.echo(
        f"{file}: {len(facts['parts'])} part{'s' if len(facts['parts']) > 1 else ''},"
        f" {_clock(facts['seconds'])}"
    )
    lines = [
        (
            str(index),
            part["name"] or "unnamed",
            f"{part['sound']} ({part['program']})",
            f"{part['notes']} notes",
            f"{part['lowest']} to {part['highest']}",
            f"{_clock(part['start_seconds'])} to {_clock(part['end_seconds'])}",
        )
        for index, part in enumerate(facts["parts"])
    ]
    _table(lines)
    if sum(not part["is_drum"] for part in facts["parts"]) > 1:
        click.echo("For one of them the other pitched ones are used too, where they fit.")


@bespoke.command()
@click.argument("word", required=False)
@click.option(
    "--render",
    "score",
    type=_existing,
    metavar="MELODY.mid",
    help="Play this with each of the patches listed, to files.",
)
@_instrument
@_soundfont
@_out
@_force
@_json
def patches(
    word: str | None,
    score: Path | None,
    instruments: tuple[str, ...],
    soundfont: str | None,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    """List patches, all or those with WORD in their name or that number; with --render, hear them
    before training."""
    found = _find_patches(word, _font(soundfont))
    if not found:
        raise BespokeError(f"No patch has {word!r} in its name: `bespoke patches` lists all.")
    files: list[Path] = []
    if score is not None:
        from bespoke.audio.dsp import peak
        from bespoke.audio.io import write_wav
        from bespoke.cli.stems import check_free
        from bespoke.score.synth import SYNTH_RATE, render

        chosen = _choose(score, instruments)
        if len(chosen) > 1:
            raise click.UsageError("Choose one --instrument to hear.")
        ((_, part),) = chosen.values()
        playable = [(patch, name) for patch, name in found if (patch.bank != 0) == part.is_drum]
        if not 1 <= len(playable) <= MOST_RENDERS:
            raise BespokeError(
                f"{len(playable)} patches fit to render: give a word or number that chooses 1 to"
                f" {MOST_RENDERS}."
            )
        found = playable
        files = [
            out / f"{score.stem}.{patch.program:03d}-{_slug(name)}.wav" for patch, name in found
        ]
        check_free(files, force)
        for (patch, _), file in zip(found, files, strict=True):
            waveform = render(part.notes, patch)
            write_wav(file, 0.7 * waveform / max(peak(waveform), 1e-9), SYNTH_RATE)
    if as_json:
        rows = [
            {"program": patch.program, "bank": patch.bank, "name": name} for patch, name in found
        ]
        click.echo(
            json.dumps(
                [{**row, "file": str(file)} for row, file in zip(rows, files, strict=True)]
                if files
                else rows,
                indent=2,
            )
        )
        return
    _table(
        [
            (str(patch.program), name, "drums" if patch.bank else "", *map(str, files[i : i + 1]))
            for i, (patch, name) in enumerate(found)
        ]
    )


@bespoke.command()
@click.argument("name")
@click.argument("song", type=_existing)
@click.argument("score", type=_existing, metavar="MELODY.mid")
@_instrument
@_patch
@_soundfont
@_start
@_end
@_reference
@_force
def new(
    name: str,
    song: Path,
    score: Path,
    instruments: tuple[str, ...],
    patches: tuple[str, ...],
    soundfont: str | None,
    start: float | None,
    end: float | None,
    reference: Path | None,
    force: bool,
) -> None:
    """Write conf/song/NAME.yaml, so that experiments with SONG begin with `bespoke train song=NAME`
    (or train.py) in this folder."""
    import yaml

    from bespoke.audio.io import open_audio
    from bespoke.cli.launch import literal
    from bespoke.cli.train import CONF, OWN_CONF, compose
    from bespoke.utils.files import atomic_path

    if not re.fullmatch(r"[A-Za-z_][\w-]*", name, re.ASCII):
        raise BespokeError(
            f"{name!r} cannot be the name of a config: use letters, digits, - and _, a letter"
            " first."
        )
    if (CONF / "song" / f"{name}.yaml").exists():
        raise BespokeError(f"Bespoke has a song {name} of its own: choose another name.")
    file = Path(OWN_CONF, "song", f"{name}.yaml")
    if file.exists() and not force:
        raise BespokeError(
            f"{file} is already there: choose another name, or replace it with --force."
        )
    chosen = _choose(score, instruments)
    if len(chosen) > 1:
        raise click.UsageError("A song has one target: choose one --instrument.")
    ((choice, part),) = chosen.values()
    programs = _programs(patches, soundfont, part) or [part.program]
    target: dict[str, Any] = {
        "score": _portable(score),
        "instrument": choice,
        "patches": programs,
    }
    content: dict[str, Any] = {
        "defaults": ["custom", "_self_"],
        "name": name,
        "mixture": _portable(song),
        "target": {**target, **({"soundfonts": [literal(soundfont)]} if soundfont else {})},
        **({"reference": _portable(reference)} if reference else {}),
        **({"excerpt": excerpt} if (excerpt := _excerpt(open_audio(song), start, end)) else {}),
    }
    with atomic_path(file) as temporary:
        header = (
            f"# {part.name or 'The part'}, played by {_sound(part, programs)}."
            " All keys: song/custom.yaml of Bespoke.\n"
        )
        temporary.write_text(
            header + yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
    compose([f"song={name}"])
    click.echo(f"{file}\nbespoke train song={name}")


@bespoke.command()
@click.argument("song")
@click.argument("more", nargs=-1, metavar="[MELODY.mid] [KEY=VALUE]...")
@_instrument
@_patch
@click.option(
    "--mixes", type=click.IntRange(1, 20), default=4, show_default=True, help="How many mixes."
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The page. Default: SONG.POLICY.preview.html, in this folder.",
)
@_force
def preview(
    song: str,
    more: tuple[str, ...],
    instruments: tuple[str, ...],
    patches: tuple[str, ...],
    mixes: int,
    out: Path | None,
    force: bool,
) -> None:
    """Hear and see what training with an augmentation policy would be like, without training.

    SONG is a song that train.py knows, as in `bespoke preview take_on_me aug=heavy`; or a
    recording, then with its MIDI: `bespoke preview song.mp3 melody.mid aug=mine`. KEY=VALUE are any
    settings of train.py. Writes a page with the first mixes of the training, and each effect alone.
    """
    from bespoke.cli import train
    from bespoke.cli.launch import setting
    from bespoke.utils import progress

    files = [word for word in more if not re.match(r"[+~]?[\w./@]+=|~", word)]
    settings = [word for word in more if word not in files]
    if files:
        recording, score = Path(song), Path(files[0])
        for file in (recording, score):
            if len(files) > 1 or not file.is_file():
                raise BespokeError(
                    f"{files[-1] if len(files) > 1 else file} is no file: give a recording and its"
                    " MIDI, or the name of a song, and then settings as KEY=VALUE."
                )
        chosen = _choose(score, instruments)
        if len(chosen) > 1:
            raise click.UsageError("Training has one target: choose one --instrument.")
        ((choice, part),) = chosen.values()
        programs = _programs(patches, None, part) if patches else None
        settings = [
            "song=custom",
            setting("song.name", recording.stem),
            setting("song.mixture", recording.resolve()),
            setting("song.target.score", score.resolve()),
            setting("song.target.instrument", choice),
            setting("song.target.patches", programs),
            *settings,
        ]
    elif Path(song).is_file():
        raise BespokeError(f"{song} needs its MIDI: bespoke preview {song} MELODY.mid.")
    elif instruments or patches:
        raise click.UsageError("--instrument and --patch are for a recording with its MIDI.")
    else:
        settings = [f"song={song}", *settings]
    with progress.on_stderr():
        click.echo(train.preview(settings, out, mixes, force))


@bespoke.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def train(overrides: tuple[str, ...]) -> int:
    """What train.py does, for experiments: OVERRIDES are those of Hydra, see `bespoke train
    --help`."""
    from bespoke.cli.train import main

    return main(overrides)


def _choose(score: Path, instruments: Sequence[str]) -> dict[str, tuple[str, "Part"]]:
    """The parts to separate, by the label of their stem.

    Returns:
        For each label, the setting that chooses the part in the score, and the part. The label of a
        single part is `target`.
    """
    from bespoke.score.midi import choose_parts, merged, program_name, read_score

    parts = read_score(score)
    if "all" in instruments:
        chosen = [[part] for part in parts if not part.is_drum] or [[part] for part in parts]
        if len(chosen) < len(parts):
            _say(
                "The drums stay in the residual: name them with --instrument to separate them too."
            )
    else:
        names: list[str | None] = [*instruments] or [None]
        chosen = [choose_parts(parts, name, score, "--instrument") for name in names]
    labels: dict[str, tuple[str, Part]] = {}
    for several in chosen:
        indices = [index for index, part in enumerate(parts) if any(part is one for one in several)]
        choice, part = ",".join(f"index:{index}" for index in indices), merged(several)
        if any(choice == known for known, _ in labels.values()):
            continue
        label = _slug(part.name) or _slug(program_name(part))
        is_taken = label in (*labels, *RESERVED)
        labels["-".join([label, *map(str, indices)]) if is_taken else label] = (choice, part)
    return labels if len(labels) > 1 else dict(zip(["target"], labels.values(), strict=True))


def _aligned(part: "Part", score: Path, recording: "Recording") -> tuple:
    """Where a part is in a recording, as arguments of `Separator.place`.

    Raises:
        BespokeError: its notes do not fit it.
    """
    from bespoke.data.song import hold
    from bespoke.score.align import (
        LOW_CONFIDENCE,
        NO_CONFIDENCE,
        NO_FIT,
        align,
        doubles,
        within,
    )
    from bespoke.score.midi import read_score, without_key_switches
    from bespoke.utils import progress

    others = [
        other.notes
        for other in read_score(score)
        if not other.is_drum and not doubles(other.notes, part.notes)
    ]
    with progress.stage("align"):
        notes = part.notes if part.is_drum else without_key_switches(part.notes)
        alignment = align(notes, *hold(recording, ALIGNMENT_RATE), others=others)
    notes = within(alignment.notes, recording.seconds)
    if alignment.confidence < NO_CONFIDENCE or not notes:
        raise BespokeError(
            f"{score} does not fit {recording.path} (confidence {alignment.confidence:.2f}):"
            " is it of this song, in its key?"
        )
    if alignment.confidence < LOW_CONFIDENCE:
        _say(
            f"The score fits the recording badly (confidence {alignment.confidence:.2f}):"
            " listen before you trust it."
        )
    else:
        _say(f"The score is aligned (confidence {alignment.confidence:.2f}).")
    fitting = [
        other for other, fit in zip(alignment.others, alignment.fits, strict=True) if fit >= NO_FIT
    ]
    return notes, fitting, alignment.tuning_cents, alignment.view


def _found(separator: "Separator", checkpoint: Path, recording: "Recording") -> tuple:
    """Where a checkpoint's parts are in this recording, which may be another one of the same
    performance, as arguments of `Separator.place`.

    Raises:
        BespokeError: they do not fit it, or have no place at all.
    """
    from bespoke.audio.dsp import opposed, seen
    from bespoke.data.song import hold
    from bespoke.score.align import find_offset, is_anywhere, within
    from bespoke.score.midi import shift
    from bespoke.utils import progress

    remedy = (
        "give the MIDI of this song too (bespoke apply CHECKPOINT SONG MELODY.mid),"
        " or --trust-notes to use them as they are"
    )
    notes = separator.notes
    if is_anywhere(notes):
        raise BespokeError(
            f"Where the notes of {checkpoint} lie was not known when it was trained, so that they"
            f" cannot be looked for in {recording.path}: {remedy}."
        )
    with progress.stage("place"):
        mixture, sample_rate = hold(recording, ALIGNMENT_RATE)
        view = opposed(mixture) or separator.view
        offset_seconds = find_offset(notes, seen(mixture, view), sample_rate)
    if offset_seconds is not None:
        if offset_seconds:
            notes = within(shift(notes, offset_seconds), recording.seconds)
        others = [shift(part, offset_seconds) for part in separator.others]
    if offset_seconds is None or not notes:
        raise BespokeError(
            f"{recording.path} is not the recording that {checkpoint} was trained on, its notes do"
            f" not fit it: {remedy}."
        )
    if offset_seconds:
        direction = "later" if offset_seconds > 0 else "earlier"
        _say(f"The notes are {abs(offset_seconds):.2f} s {direction} here, and are moved there.")
    return notes, others, separator.tuning_cents, view


def _font(name: str | None) -> "SoundFont":
    from bespoke.score.synth import SoundFont

    return SoundFont.find(name)


def _find_patches(word: str | None, font: "SoundFont") -> list[tuple["Patch", str]]:
    """The patches with `word` in their name or as their program number; all without `word`.

    Returns:
        The patches, each with its General MIDI name, and in brackets the soundfont's own name where
        it is another. Kits have the soundfont's name alone.
    """
    import pretty_midi

    from bespoke.score.synth import DRUM_BANK, Patch

    found = []
    for bank, program in ((bank, program) for bank in (0, DRUM_BANK) for program in range(128)):
        own = font.preset_name(bank, program)
        if own is None:
            continue
        general = own if bank else pretty_midi.program_to_instrument_name(program)
        name = general if _plain(own) == _plain(general) else f"{general} [{own.strip()}]"
        if (
            word is None
            or word.strip() == str(program)
            or (not word.strip().isdecimal() and _plain(word) in _plain(name))
        ):
            found.append((Patch(program, bank, font), name))
    return found


def _programs(words: Sequence[str], soundfont: str | None, part: "Part") -> list[int]:
    """The program of each --patch."""
    programs = []
    for word in words:
        found = [
            (patch, name)
            for patch, name in _find_patches(word, _font(soundfont))
            if (patch.bank != 0) == part.is_drum
        ]
        exact = [
            (patch, name)
            for patch, name in found
            if _plain(word) == _plain(name.partition(" [")[0])
        ]
        found = exact or found
        if len(found) != 1:
            listing = "; ".join(f"{patch.program}: {name}" for patch, name in found)
            several = (
                f"several patches have it in their name: {listing}"
                if found
                else "no patch has that number or name, see `bespoke patches`"
            )
            raise BespokeError(f"--patch {word!r} chooses none: {several}.")
        programs.append(found[0][0].program)
    return programs


def _sound(part: "Part", programs: Sequence[int] | None) -> str:
    """What plays a part, in words."""
    import pretty_midi

    from bespoke.score.midi import describe

    if part.is_drum or not programs:
        return f"{describe(part)}, synthesized with that sound; --patch chooses another"
    return (
        f"{describe(part)}, synthesized as"
        f" {' and '.join(map(pretty_midi.program_to_instrument_name, programs))}"
    )


def _score_facts(file: Path) -> dict[str, Any]:
    import pretty_midi

    from bespoke.score.midi import program_name, read_score

    parts = [
        {
            "name": part.name,
            "sound": program_name(part),
            "program": part.program,
            "is_drum": part.is_drum,
            "notes": len(part.notes),
            "lowest": pretty_midi.note_number_to_name(min(note.pitch for note in part.notes)),
            "highest": pretty_midi.note_number_to_name(max(note.pitch for note in part.notes)),
            "start_seconds": round(part.notes[0].start_seconds, 3),
            "end_seconds": round(max(note.end_seconds for note in part.notes), 3),
        }
        for part in read_score(file)
    ]
    return {
        "file": str(file),
        "seconds": max(part["end_seconds"] for part in parts),
        "parts": parts,
    }


def _audio_facts(file: Path) -> dict[str, Any]:
    import soundfile

    from bespoke.audio.io import open_audio
    from bespoke.audio.pieces import pieces_of

    recording = open_audio(file)
    try:
        with contextlib.closing(pieces_of(file).each()) as pieces:
            info = soundfile.info(next(pieces))
        kind = f"{info.format} {info.subtype.replace('_', ' ')}"
    except soundfile.LibsndfileError:  # it was read by something else
        kind = file.suffix.lstrip(".").upper()
    return {
        "file": str(file),
        "format": kind,
        "seconds": round(recording.seconds, 3),
        "channels": recording.channels,
        "sample_rate": recording.sample_rate,
        "peak_db": round(20 * _log10(recording.levels()[0]), 2),
    }


def _is_score(file: Path) -> bool:
    from bespoke.score import notation

    with open(file, "rb") as content:
        head = content.read(12)
        return (
            head.startswith(b"MThd")
            or (head.startswith(b"RIFF") and head.endswith(b"RMID"))
            or file.suffix.lower() in SCORE_SUFFIXES | notation.SUFFIXES
        )


def _check_device(device: str) -> None:
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device, True):
        raise BespokeError(
            f"There is no device {device} here, or this PyTorch was built without it: use --device"
            " auto or cpu."
        )


def _torch_device(device: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _excerpt(recording: "Recording", start: float | None, end: float | None) -> list[float] | None:
    if start is None and end is None:
        return None
    start, end = start or 0.0, recording.seconds if end is None else min(end, recording.seconds)
    if not start < end:
        raise BespokeError(
            f"Nothing of {recording.path} is between --start and --end: it ends at"
            f" {_clock(recording.seconds)}, --start must be before it"
            " and --end."
        )
    return [start, end]


def _portable(file: Path) -> str:
    """A path for a config: relative to this folder if the file is in it, else absolute.

    A folder whose configs have relative paths can be moved.
    """
    from bespoke.cli.launch import literal

    file, here = file.resolve(), Path.cwd()
    return literal(file.relative_to(here).as_posix() if file.is_relative_to(here) else str(file))


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name.casefold()).strip("-_")[:40]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{int(minutes)}:{rest:04.1f}"


def _log10(value: float) -> float:
    import math

    return math.log10(max(value, 1e-12))


def _table(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo(
            (
                "  "
                + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            ).rstrip()
        )


def _say(text: str) -> None:
    click.echo(text, err=True)


def _say_softer(gain: float, suffix: str) -> None:
    if gain < 1:
        _say(
            f"The stems are softer by {-20 * _log10(gain):.1f} dB, as {suffix[1:].upper()} holds"
            " nothing above full scale."
        )
