"""Which file a setting comes from: errors name the user's file, and files without use are told."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from bespoke.utils.errors import BespokeError, one_sentence

_WIDE = ("experiment", "recipe")  # groups whose configs set values of all groups


def naming_file(error: BespokeError, hydra: DictConfig, ours: Path) -> BespokeError:
    """The error with the name of the user's file that the setting in question is in.

    Args:
        error: of a run. It is returned as it is if it names no setting, if the setting was given on
            the command line, or if it is from one of Bespoke's own files.
        hydra: Hydra's part of the run's config.
        ours: folder of Bespoke's configs.
    """
    choices = {
        group: str(choice)
        for group, choice in hydra.runtime.choices.items()
        if choice is not None and "/" not in group
    }
    groups = "|".join(map(re.escape, choices))
    found = re.search(rf"(?<![\w./=])({groups})\.(\w+(?:\.\w+)*)", str(error)) or re.match(
        rf"({groups})()=", str(error)
    )
    if not found:
        return error
    group, key = found.groups()
    told = [line.lstrip("+~").partition("=")[0] for line in hydra.overrides.task]
    whole = f"{group}.{key}"
    if any(whole == name or whole.startswith(f"{name}.") for name in told if name != group):
        return error
    folders = [
        Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"
    ]
    files = [
        (file, prefix)
        for name, prefix in (*((wide, f"{group}.") for wide in _WIDE), (group, ""))
        if name in choices
        for file in _chain(folders, name, choices[name])
    ]
    users = [(file, prefix) for file, prefix in files if not file.is_relative_to(ours)]
    holders = [file for file, prefix in files if _has(file, f"{prefix}{key}")]
    # What is missing is nowhere: the file that was chosen lacks it.
    chosen = [file for file, prefix in users if not prefix]
    for file in (holders or chosen)[:1]:
        if not file.is_relative_to(ours):
            return BespokeError(f"{shown(file)}: {error}")
    return error


def explain_file(error: Exception, folders: Sequence[Path]) -> BespokeError | None:
    """One sentence for a config file that cannot be read or put together, if it is that.

    Args:
        error: of Hydra or of the YAML reader.
        folders: where configs are looked for.
    """
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark):
        reason = (error.problem or "it cannot be read").replace("\t", "\\t")
        return BespokeError(
            f"{shown(Path(mark.name))}: line {mark.line + 1} is not YAML ({reason}): write KEY:"
            " VALUE, indented by spaces, each key once."
        )
    if getattr(error, "options", None):  # a choice of the command line
        return None
    text = str(error)
    place = re.match(r"In '([^']+)': ", text)
    file = place and next((file for file in _files(folders, place[1])), None)
    if not place or not file:
        return None
    missing = re.search(r"Could not (?:load|find) '([^']+)'", text)
    if missing:
        group = missing[1].rpartition("/")[0]
        known = sorted(
            {each.stem for folder in folders for each in (folder / group).glob("*.yaml")}
        )
        return BespokeError(
            f"{shown(file)}: defaults: there is no {missing[1]}: choose {', '.join(known)}."
        )
    listed = [
        key
        for key, value in _read(file).items()
        if key != "defaults" and isinstance(value, list) and any(isinstance(e, dict) for e in value)
    ]
    if "ListConfig" in text:
        what = f"{', '.join(listed)}: " if listed else ""
        return BespokeError(
            f"{shown(file)}: {what}there is a list where settings by name belong: give each a name,"
            " as in eq: {_target_: audiomentations.LowPassFilter}."
        )
    return BespokeError(f"{shown(file)}: {one_sentence(error).partition(': ')[2]}")


def shadowed(own: Path, ours: Path) -> list[str]:
    """The user's configs that Hydra passes over, since Bespoke has some of these names.

    Returns:
        A sentence for each.
    """
    found = [
        file.relative_to(own)
        for file in sorted([*own.glob("*.yaml"), *own.glob("*/*.yaml")])
        if (ours / file.relative_to(own)).is_file()
    ]
    return [
        f"{shown(own / file)} is not used: Bespoke has a config"
        f" {'='.join([*file.parent.parts, file.stem])} of its own; give yours another name."
        for file in found
    ]


def shown(file: Path) -> str:
    """A path as the user would write it."""
    here = Path.cwd()
    return str(file.relative_to(here)) if file.is_relative_to(here) else str(file)


def _chain(folders: Sequence[Path], group: str, choice: str) -> Iterator[Path]:
    """The file of a choice, and those of its group on which it is based, the last one first."""
    for file in list(_files(folders, f"{group}/{choice}"))[:1]:
        yield file
        bases = _read(file).get("defaults") or []
        for base in reversed([base for base in bases if isinstance(base, str)]):
            if base not in ("_self_", choice):
                yield from _chain(folders, group, base)


def _files(folders: Sequence[Path], name: str) -> Iterator[Path]:
    return (file for folder in folders if (file := folder / f"{name}.yaml").is_file())


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _has(file: Path, key: str) -> bool:
    """Whether a file gives a value to this setting, or to one that it is in."""
    content = OmegaConf.create(_read(file))
    if not key:
        return False
    try:
        return OmegaConf.select(content, key, default=_read) is not _read
    except Exception:  # an interpolation to what is elsewhere
        return True
