"""Check settings against the signatures of the classes that they configure."""

import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
            raise BespokeError(
                f"{place}._target_={target} is not known: there is no {name} in {module}."
            )
        parameters = inspect.signature(made).parameters
        takes_any = any(
            parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
        )
        hints = _hints(made)
        for key, value in node.items():
            setting = f"{place}.{key}"
            if key in ("_target_", "_partial_") or (setting, value) in _OWN_VALUES:
                continue
            if key not in parameters:
                if takes_any:
                    continue
                near = difflib.get_close_matches(key, parameters, 1)
                known = near or [
                    one
                    for one, parameter in parameters.items()
                    if parameter.default is not parameter.empty
                ]
                more = ", …" * (len(known) > _MOST_NAMES)
                raise BespokeError(
                    f"There is no setting {setting}: "
                    f"{name} takes {', '.join(known[:_MOST_NAMES]) or 'none'}{more}."
                )
            hint = hints.get(key, Any)
            default = parameters[key].default  # valid even if its type is not the annotated one
            if not (value == default and type(value) is type(default)) and not _fits(value, hint):
                raise BespokeError(
                    f"{setting}={shown(value)} is not possible: give {' or '.join(_wanted(hint))}."
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
        return typing.get_type_hints(made.__init__ if inspect.isclass(made) else made)
    except (NameError, TypeError):  # some libraries' annotations are for type checkers only
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a config's value matches a type hint. Without a usable hint everything matches."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
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
