"""The `bespoke` command rewords messages: they name options, not settings."""

import ast
import logging
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import bespoke
from bespoke.cli.options import OPTIONS, SETTINGS, changes_in_options, in_options, logged_in_options
from conftest import ROOT

# What a command of a musician's does not come to.
ELSEWHERE = {
    *("app", "baselines", "benchmark", "options", "request", "train"),
    *("comparison", "groups", "runs", "sweep"),
}


def settings_of(config, name=""):
    """The names of all settings of a config."""
    for key, value in config.items():
        yield (inner := f"{name}.{key}" if name else str(key))
        if isinstance(value, dict):
            yield from settings_of(value, inner)


@pytest.fixture(scope="module")
def pattern(compose_config):
    """What finds a setting by name: a dotted one anywhere, any other with its value."""
    names = {"hydra.run.dir", "hydra.sweep.dir"}
    for group in (
        "song=custom",
        *(f"background={path.stem}" for path in (ROOT / "conf" / "background").glob("*.yaml")),
    ):
        names |= set(settings_of(OmegaConf.to_container(compose_config(group), resolve=False)))
    names = sorted(map(re.escape, names), key=len, reverse=True)
    dotted = [name for name in names if "." in name]
    return re.compile(
        rf"(?<![\w./-])(?:({'|'.join(dotted)})(?![\w/-]|\.\w)|({'|'.join(names)})(?==))"
    )


def texts():
    """All strings in the modules except docstrings; an f-string is one, with {} for its values."""
    for file in sorted(Path(bespoke.__file__).parent.rglob("*.py")):
        if file.stem in ELSEWHERE:
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        passed_over = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                passed_over.add(node.value)
            if isinstance(node, ast.JoinedStr):
                passed_over |= set(node.values)
                pieces = [
                    part.value if isinstance(part, ast.Constant) else "{}" for part in node.values
                ]
                yield file.name, node.lineno, "".join(pieces)
            elif (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and node not in passed_over
            ):
                yield file.name, node.lineno, node.value


def test_every_setting_that_a_message_names_has_an_option_or_is_one_of_set(pattern):
    known, found = {*OPTIONS, *SETTINGS}, set()
    missing = {}
    for file, line, text in texts():
        names = {match[1] or match[2] for match in pattern.finditer(text)}
        found |= names
        missing |= dict.fromkeys(names - known, f"{file}:{line}")
    assert not missing, f"put these in bespoke/cli/options.py, into OPTIONS or SETTINGS: {missing}"
    assert len(found) > 40  # it looks where there is something to see


def test_no_message_keeps_the_name_of_a_setting(pattern):
    kept = []
    for file, line, text in texts():
        said = in_options(text)
        kept += [
            f"{file}:{line}: {said}"
            for match in pattern.finditer(said)
            if not said[: match.start()].endswith("--set ")
        ]
    assert kept == []


def test_settings_that_have_an_option_are_never_named_otherwise():
    for name, option in OPTIONS.items():
        if "." in name:
            assert (
                in_options(f"choose another {name}, or {name}: it is wrong.")
                == f"choose another {option}, or {option}: it is wrong."
            )


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            "The recording is silent in song.excerpt: choose another.",
            "The recording is silent between --start and --end: choose another.",
        ),
        ("seed=-1 is not possible", "--set seed=-1 is not possible"),
        ("--set seed=-1 is not possible", "--set seed=-1 is not possible"),
        ("the seed of the recipe, a model", "the seed of the recipe, a model"),
        (
            "/home/me/song.reference/song.excerpt.wav, song.target.wav",
            "/home/me/song.reference/song.excerpt.wav, song.target.wav",
        ),
        ("data.workers.wav cannot be read", "data.workers.wav cannot be read"),
        (
            "is not installed: apt install it; or give a rendered target as song.target.audio.",
            "is not installed: apt install it.",
        ),
        (
            "The run in OUT has another config (seed: 0 there, 1 now): repeat its overrides, or "
            "start a new run.",
            None,
        ),
    ],
)
def test_messages_in_options(message, said):
    if said is None:
        assert "--seed: 0 there, 1 now" in in_options(message)
        assert not [word for word in ("config", "overrides") if word in in_options(message)]
    else:
        assert in_options(message) == said


def test_a_change_of_quality_is_one_change():
    changes = [
        "recipe: bespoke there, auto now",
        "separate.resolutions: [1, 2] there, [1] now",
        "trainer.max_steps: 60 there, 10 now",
    ]
    assert changes_in_options(changes) == ["--quality: best there, standard now"]
    assert changes_in_options(["seed: 0 there, 1 now", "data.batch_size: 8 there, 4 now"]) == [
        "--seed: 0 there, 1 now",
        "--set data.batch_size: 8 there, 4 now",
    ]


def test_what_is_logged_is_in_options_for_all_who_listen(caplog):
    log = logging.getLogger("bespoke.test")
    with logged_in_options():
        log.warning("%s is %d", "song.reference", 3)
        logging.getLogger("another").warning("song.reference")
    log.warning("song.reference")
    assert [record.getMessage() for record in caplog.records] == [
        "--reference is 3",
        "song.reference",
        "song.reference",
    ]
