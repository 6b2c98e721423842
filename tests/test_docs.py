"""The docs: line lengths, links, and the commands and settings that they name."""

import re

import pytest

from bespoke.__main__ import main
from conftest import ROOT

# In these pages tables may have long lines.
LONG = {"POLICIES.md", "RESULTS.md", "SPEED.md", "LAB.md"}
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def anchors(text):
    """GitHub's names for the headings of a page."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_anchors_are_named_as_on_github():
    assert anchors(
        "# Weights & Biases\n\n```\n# no\n```\n## It is slow, or too big\n## `auto`?"
    ) == {
        "weights--biases",
        "it-is-slow-or-too-big",
        "auto",
    }


def test_pages_are_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
    lines = {
        page.name: [
            line
            for line in page.read_text(encoding="utf-8").splitlines()
            if page.name not in LONG or not line.startswith("|")
        ]
        for page in PAGES
    }
    assert {"README.md", "MUSICIANS.md", "CONTRIBUTING.md"} <= set(lines)
    assert [(name, line) for name, text in lines.items() for line in text if len(line) > 100] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?://", target):
            continue
        place, _, heading = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.exists(), target
        assert not heading or heading in anchors(file.read_text(encoding="utf-8")), target


def test_every_choice_of_every_group_is_explained():
    text = (ROOT / "docs" / "CONFIG.md").read_text(encoding="utf-8")
    groups = [
        folder for folder in (ROOT / "conf").iterdir() if folder.is_dir() and folder.name != "hydra"
    ]
    choices = [file.stem for folder in groups for file in folder.glob("*.yaml")]
    assert {"auto", "heavy", "score_unet"} <= set(choices)
    assert [name for name in choices if f"`{name}`" not in text] == []


def test_pages_give_the_command_only_options_that_it_has(capsys):
    found = []
    for page in PAGES:
        # A command in a block of code or between backquotes, up to its comment.
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        found += re.findall(r"(?:^ +|`)bespoke (\w+)([^`\n#]*)", text, re.MULTILINE)
    commands = {"separate", "inspect", "patches", "preview", "apply", "new"}
    assert {command for command, _ in found} == {*commands, "train"}  # train takes Hydra's
    known = {}
    for command in commands:
        assert main([command, "--help"]) == 0
        known[command] = set(re.findall(r"(?<!\S)--[a-z-]+", capsys.readouterr().out))
    assert "--instrument" in known["separate"]
    for command, rest in found:
        assert command == "train" or set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= known[command], (
            command,
            rest,
        )
