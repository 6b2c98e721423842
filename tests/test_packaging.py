"""What is installed: under which name, with which extras, by which commands."""

import re
from pathlib import Path

from conftest import ROOT

PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
NAME = re.search(r'^name = "(.+?)"', PROJECT, re.MULTILINE)[1]
EXTRAS = set(re.findall(r"^(\w+) = \[", PROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0], re.MULTILINE))
# On the index `bespoke` is another project, whose package and command would replace ours.
OTHER = re.compile(r"(?<!un)install [^\n`]*?\bbespoke(?![\w./-])|(?<![-\w])bespoke\\?\[[a-z]")
ENDINGS = {".cff", ".ipynb", ".j2", ".md", ".py", ".sh", ".toml", ".yaml"}


def texts():
    """The project's files of words, by their places in it."""
    places = [ROOT, *(ROOT / name for name in (".ci", "bespoke", "conf", "docs", "notebooks", "scripts", "tests"))]
    files = {file for place in places for file in (place.rglob("*") if place != ROOT else place.glob("*"))}
    words = [file for file in files if file.suffix in ENDINGS or file.name in ("Makefile", "run")]
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in words if file.is_file() and file != Path(__file__)}


def test_no_text_has_the_other_project_installed():
    wrong = ["pip install bespoke", "pip install 'bespoke[scores]'", 'uv pip install -U "bespoke"', r"'bespoke\[dev\]'"]
    right = [f"pip install '{NAME}[scores]'", "pip uninstall bespoke", "`pip install -e .`, then `bespoke separate`"]
    assert [bool(OTHER.search(text)) for text in (*wrong, *right)] == [True] * len(wrong) + [False] * len(right)
    found = texts()
    assert {"README.md", "Makefile", "bespoke/notation.py", "notebooks/tour.ipynb", "docs/TROUBLESHOOTING.md"} <= set(found)
    assert {name: match[0] for name, text in found.items() if (match := OTHER.search(text))} == {}


def test_every_extra_that_a_text_names_is_there():
    lists = [found for text in texts().values() for found in re.findall(rf"(?:{NAME}|\.)\[([a-z,]+)\]", text)]
    named = {extra for found in lists for extra in found.split(",")}
    assert {"scores", "dev", "tensorboard"} <= named <= EXTRAS
