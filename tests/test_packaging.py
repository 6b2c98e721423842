"""The installed package: its name, extras and commands."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from conftest import ROOT

PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
NAME = re.search(r'^name = "(.+?)"', PROJECT, re.MULTILINE)[1]
EXTRAS = set(
    re.findall(
        r"^(\w+) = \[",
        PROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0],
        re.MULTILINE,
    )
)
# On the index `bespoke` is another project, whose package and command would replace ours.
OTHER = re.compile(r"(?<!un)install [^\n`]*?\bbespoke(?![\w./-])|(?<![-\w])bespoke\\?\[[a-z]")
ENDINGS = {".cff", ".ipynb", ".j2", ".md", ".py", ".sh", ".toml", ".yaml"}


def texts():
    """The project's files of words, by their places in it."""
    places = [
        ROOT,
        *(
            ROOT / name
            for name in (
                ".ci",
                "bespoke",
                "conf",
                "docs",
                "notebooks",
                "recipes",
                "scripts",
                "tests",
            )
        ),
    ]
    files = {
        file
        for place in places
        for file in (place.rglob("*") if place != ROOT else place.glob("*"))
    }
    words = [file for file in files if file.suffix in ENDINGS or file.name in ("Makefile", "run")]
    return {
        str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
        for file in words
        if file.is_file() and file != Path(__file__)
    }


def test_no_text_has_the_other_project_installed():
    wrong = [
        "pip install bespoke",
        "pip install 'bespoke[scores]'",
        'uv pip install -U "bespoke"',
        r"'bespoke\[dev\]'",
    ]
    right = [
        f"pip install '{NAME}[scores]'",
        "pip uninstall bespoke",
        "`pip install -e .`, then `bespoke separate`",
    ]
    assert [bool(OTHER.search(text)) for text in (*wrong, *right)] == [True] * len(wrong) + [
        False
    ] * len(right)
    found = texts()
    assert {
        "README.md",
        "Makefile",
        "bespoke/score/notation.py",
        "notebooks/tour.ipynb",
        "docs/TROUBLESHOOTING.md",
    } <= set(found)
    assert {name: match[0] for name, text in found.items() if (match := OTHER.search(text))} == {}


def test_every_extra_that_a_text_names_is_there():
    lists = [
        found
        for text in texts().values()
        for found in re.findall(rf"(?:{NAME}|\.)\[([a-z,]+)\]", text)
    ]
    named = {extra for found in lists for extra in found.split(",")}
    assert {"scores", "dev", "tensorboard"} <= named <= EXTRAS


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
@pytest.mark.parametrize(("target", "installs"), [("demo", 1), ("test", 2)])
def test_make_hands_its_options_to_every_pip_install(target, installs, tmp_path):
    options = "--extra-index-url https://download.pytorch.org/whl/cpu"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MAKE")
    }  # `make test` runs this
    command = [
        "make",
        "--dry-run",
        target,
        f"VENV={tmp_path / 'venv'}",
        f"PIP_INSTALL_OPTIONS={options}",
    ]
    plan = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    pip = [line for line in plan.splitlines() if "-m pip" in line]
    assert [line.count(f"pip install {options} ") for line in pip] == [0] + [
        1
    ] * installs  # first the name before goes
    assert not (tmp_path / "venv").exists()


def test_recordings_stay_out_of_wheel_and_sdist():
    for builder, needed in ((WheelBuilder, "bespoke/models/prior.pt"), (SdistBuilder, "train.py")):
        found = builder(str(ROOT)).recurse_included_files()
        files = [file.distribution_path.removeprefix("/") for file in found]
        assert needed in files
        assert [file for file in files if file.endswith((".flac", ".mod"))] == []
        assert [file for file in files if file.startswith("benchmark/cases")] == []
        assert [file for file in files if file.endswith("listen.html")] == []
