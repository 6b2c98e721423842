"""The shipped cases: sound, licensed, small."""

import json
import re
import runpy

import pytest

from bespoke.evaluation import benchmark
from bespoke.evaluation.split import half_of
from conftest import ROOT

CASES = ROOT / "benchmark" / "cases"
TABLE = re.findall(
    r"^\| `(\S+)` \| (\w+) \|.*\| ([^|]+) \| ([^|]+) \|$",
    (CASES / "README.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


def test_every_case_is_in_the_table_of_licences():
    assert sorted(name for name, *_ in TABLE) == sorted(
        folder.name for folder in CASES.iterdir() if (folder / "mix.flac").is_file()
    )


@pytest.mark.parametrize(("name", "half", "licence", "texts"), TABLE, ids=[row[0] for row in TABLE])
def test_a_case_has_the_text_of_its_licence(name, half, licence, texts):
    assert half == half_of(name)
    meta = json.loads((CASES / name / "meta.json").read_text(encoding="utf-8"))
    places = re.findall(r"\((licences/\S+?)\)", texts)
    assert meta["name"] == name
    assert meta["licence_file"] in places
    short = licence.split()[0].removesuffix("-style")
    assert meta["licence"].startswith(short), (meta["licence"], licence)
    text = "".join((CASES / place).read_text(encoding="utf-8") for place in places)
    assert {
        "CC0": "CC0 1.0 Universal",
        "CC": "ShareAlike 3.0",
        "MIT": "Permission is hereby granted, free of charge",
        "BSD": "Redistribution and use in source and binary forms",
        "Artistic": "Artistic License",
        "GPL": "GNU GENERAL PUBLIC LICENSE",
    }[short] in text
    # The source that the GPL asks for is beside what was rendered from it.
    assert bool(list((CASES / name).glob("*.mod"))) == (short == "GPL")


def test_the_cases_are_small_and_of_both_halves():
    files = [file for file in CASES.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 25e6
    cases, broken = benchmark.read_cases(CASES)
    assert broken == {}
    halves = [case.half for case in cases]
    assert (halves.count("development"), halves.count("test")) == (6, 6)
    names = {case.name for case in cases}
    assert not {f"{name}_stereo" for name in names} & names


def test_the_listening_page_is_of_these_cases_and_small():
    page = ROOT / "docs" / "listen.html"
    assert page.stat().st_size <= 5e6
    text = page.read_text(encoding="utf-8")
    assert [name for name, *_ in TABLE if f"Listen: {name}" not in text] == []
    assert "benchmark/cases/README.md" in text  # where authors and licences are
    assert not re.search(r"(?:/home|/work|/tmp|/root|/Users|file:/)/\w", text)


def test_the_quick_benchmark_is_on_four_of_them():
    quick = runpy.run_path(str(ROOT / "scripts" / "benchmark.py"))["QUICK"]
    cases, _ = benchmark.read_cases(CASES, quick)
    assert sorted(case.half for case in cases) == ["development"] * 2 + ["test"] * 2
    assert sorted((case.channels, len(case.parts) > 0) for case in cases) == [
        (1, False),
        (1, True),
        (1, True),
        (2, False),
    ]


def test_no_case_is_of_a_collection_that_may_not_be_shipped():
    assert [name for name, *_ in TABLE if name.startswith(("bach10", "medleydb"))] == []
