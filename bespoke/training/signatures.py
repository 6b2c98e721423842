"""Check settings against the signatures of the classes that they configure."""

import difflib
import importlib
import inspect
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from bespoke.utils.errors import BespokeError

_OWN_VALUES = [("trainer.precision", "auto")]  # a run replaces these before the class gets them
_MOST_NAMES = 16  # most settings that a message lists
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    type(None): "null",
}


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may be, the ends among them: `Annotated[int, Range(1)]`."""

    lowest: float
    highest: float = math.inf

    def __str__(self) -> str:
        return f"from {self.lowest}" + f" to {self.highest}" * (self.highest < math.inf)


def check_section(section: Mapping[str, Any], schema: type, place: str, is_whole: bool) -> None:
    """Find settings that a section of the config, or the config itself, cannot have.

    Args:
        section: plain and resolved.
        schema: a dataclass with a field for each setting.
        place: of the section in the config; "" is the config itself.
        is_whole: whether the section has no settings but these.

    Raises:
        BespokeError: one is unknown, missing, of another kind or out of range.

    >>> @dataclass
    ... class Data:
    ...     workers: typing.Literal["auto"] | Annotated[int, Range(0, 256)]
    >>> check_section({"workers": 300}, Data, "data", is_whole=True)
    Traceback (most recent call last):
    bespoke.utils.errors.BespokeError: data.workers=300 is not possible: give auto or a whole number
        from 0 to 256.
    """
    parameters = inspect.signature(schema).parameters
    required = {
        name: None
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in section
    }
    known = {key: section[key] for key in section if is_whole or key in parameters}
    _check(place, place, known | required, parameters, _hints(schema), takes_any=False)


def check_signatures(config: Mapping[str, Any]) -> None:
    """Check names and types of all settings against the signatures of their classes.

    Args:
        config: plain and resolved. Every dictionary in it with a `_target_` is checked. The targets
            must have passed the allowlist, since they are imported.

    Raises:
        BespokeError: a setting does not exist, or its value has the wrong type.

    >>> config = {"_target_": "bespoke.models.networks.MaskBLSTM", "layers": "two"}
    >>> check_signatures({"model": config})
    Traceback (most recent call last):
    bespoke.utils.errors.BespokeError: model.layers=two is not possible: give a whole number.
    """
    for place, node in _nodes(config):
        target = str(node["_target_"])
        module, _, name = target.rpartition(".")
        made = getattr(importlib.import_module(module), name, None)
        if not callable(made):
            near = difflib.get_close_matches(name, dir(importlib.import_module(module)), 1)
            meant = f", but {near[0]}" if near else ""
            raise BespokeError(
                f"{place}._target_={target} is not known: there is no {name} in {module}{meant}."
            )
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(made).parameters
        takes_any = any(
            parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
        )
        # What a run gives itself has no default.
        parameters = {
            key: parameter
            for key, parameter in parameters.items()
            if key in node or parameter.default is not parameter.empty
        }
        values = {key: node[key] for key in node if key not in ("_target_", "_partial_")}
        _check(place, name, values, parameters, _hints(made), takes_any)


def _check(
    place: str,
    name: str,
    values: Mapping[str, Any],
    parameters: Mapping[str, inspect.Parameter],
    hints: Mapping[str, Any],
    takes_any: bool,
) -> None:
    """Find a setting that is not among the parameters of what is called `name`, or does not fit its
    parameter's type."""
    for key, value in values.items():
        setting = f"{place}.{key}" if place else key
        if (setting, value) in _OWN_VALUES or (key not in parameters and takes_any):
            continue
        if key not in parameters:
            known = difflib.get_close_matches(key, parameters, 1) or list(parameters)
            more = ", …" * (len(known) > _MOST_NAMES)
            raise BespokeError(
                f"There is no setting {setting}:"
                f" {name} takes {', '.join(known[:_MOST_NAMES]) or 'none'}{more}."
            )
        hint = hints.get(key, Any)
        default = parameters[key].default  # valid even if its type is not the annotated one
        if not (value == default and type(value) is type(default)) and not _fits(value, hint):
            wanted = " or ".join(_wanted(hint))
            raise BespokeError(
                f"{setting}={shown(value)} is not possible: "
                + (f"give {wanted}." if wanted else "it takes nothing that a config can give.")
            )


def shown(value: Any) -> str:
    """Format a value as it is written on the command line.

    >>> shown([None, True, "a", 1.5])
    '[null,true,a,1.5]'
    """
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _nodes(value: Any, place: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, Mapping | list):
        if isinstance(value, Mapping) and "_target_" in value:
            yield place, value
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _nodes(item, f"{place}.{key}" if place else str(key))


def _hints(made: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(
            made.__init__ if inspect.isclass(made) else made, include_extras=True
        )
    except (NameError, TypeError):  # some libraries' annotations are for type checkers only
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a config's value matches a type hint. Without a usable hint everything matches."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if kind is Annotated:
        ranges = [extra for extra in arguments[1:] if isinstance(extra, Range)]
        return _fits(value, arguments[0]) and all(
            one.lowest <= value <= one.highest for one in ranges
        )
    if kind is typing.Literal:
        return any(value == argument and type(value) is type(argument) for argument in arguments)
    if isinstance(value, Mapping) and "_target_" in value:
        return True  # not constructed yet
    plain = kind or hint
    if not inspect.isclass(plain):
        return True
    if plain in (bool, int, float):
        return isinstance(value, int | float if plain is float else plain) and (
            plain is bool or not isinstance(value, bool)
        )
    if plain is Path:  # YAML reads a name such as 1999 as a number
        return isinstance(value, str | int | float) and not isinstance(value, bool)
    if isinstance(value, list) and issubclass(plain, Sequence) and plain is not str:
        if plain is tuple and Ellipsis not in arguments:
            return len(value) == len(arguments) and all(map(_fits, value, arguments))
        return all(_fits(item, argument) for argument in arguments[:1] for item in value)
    if isinstance(value, str):
        return plain is str
    return issubclass(plain, Mapping) if isinstance(value, Mapping) else isinstance(value, plain)


def _wanted(hint: Any) -> list[str]:
    """Descriptions of the values that match a type hint, one per alternative."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return list(dict.fromkeys(words for argument in arguments for words in _wanted(argument)))
    if kind is Annotated:
        ranges = [f" {extra}" for extra in arguments[1:] if isinstance(extra, Range)]
        return [f"{words}{''.join(ranges)}" for words in _wanted(arguments[0])]
    if kind is typing.Literal:
        return [str(argument) for argument in arguments]
    plain = kind or hint
    if plain in _WORDS:
        return [_WORDS[plain]]
    if inspect.isclass(plain) and issubclass(plain, Sequence):
        count = f" of {len(arguments)}" if plain is tuple and Ellipsis not in arguments else ""
        each = " or ".join(_wanted(arguments[0])) if arguments else ""
        return [f"a list{count}" + f", each {each}" * bool(each)]
    # Other types cannot be given in a config.
    return ["settings by name"] if inspect.isclass(plain) and issubclass(plain, Mapping) else []
