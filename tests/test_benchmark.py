"""The benchmark: broken cases are told apart, what is finished stays, and the statistics have known answers."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from bespoke import benchmark
from bespoke.audio import write_wav
from bespoke.errors import BespokeError
from conftest import ROOT, SMALL


@pytest.fixture(scope="module")
def cases(make_song, tmp_path_factory):
    """Two sound cases of one source, one without a stem, one whose stem is shorter."""
    folder = tmp_path_factory.mktemp("cases")
    for name in ("toy_one", "toy_two", "bad_stem", "bad_length"):
        (folder / name).mkdir()
        song = make_song(folder / name)
        for file in (song.mixture, song.reference):  # the names of a case; what is inside decides how it is read
            file.rename(file.with_suffix(".flac"))
        shutil.copy(song.score, folder / name / "target_aligned.mid")
        (folder / name / "meta.json").write_text(json.dumps({"gm_program": 80}))
    (folder / "bad_stem" / "target.flac").unlink()
    write_wav(folder / "bad_length" / "short.wav", np.ones((1, 100), np.float32), 22050)
    (folder / "bad_length" / "short.wav").rename(folder / "bad_length" / "target.flac")
    return folder


def test_broken_cases_are_told_apart_with_the_reason(cases):
    sound, broken = benchmark.read_cases(cases)
    assert [case.name for case in sound] == ["toy_one", "toy_two"]
    assert {case.source for case in sound} == {"toy"}
    assert set(broken) == {"bad_stem", "bad_length"}
    assert "does not exist" in broken["bad_stem"]
    assert "100 samples" in broken["bad_length"]
    with pytest.raises(BespokeError, match="no case nosuch"):
        benchmark.read_cases(cases, ["nosuch"])


def run(cases, out, *arguments):
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "--cases", str(cases), "--out", str(out), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=out.parent, env=environment, capture_output=True, text=True, timeout=300)


def test_the_benchmark_runs_what_is_missing_and_ends_with_a_table(cases, tmp_path):
    small = [override for override in SMALL if not override.startswith("logger")]
    arguments = [
        "--recipes",
        "quick",
        "--variant",
        "flat",
        "recipe=quick;aug=none;data.silent_share=0;curve_steps=1",
        "--rivals",
        "mixture,comb",
    ]
    first = run(cases, tmp_path / "out", *arguments, "--only", "toy_one,bad_stem", "--", *small)
    assert first.returncode == 2, first.stderr
    assert "skipped bad_stem" in first.stderr
    rows = benchmark.read_rows(tmp_path / "out" / "rows.csv")
    assert [row["method"] for row in rows] == ["comb_aligned", "comb_auto", "flat", "mixture", "oracle_ratio", "oracle_tpsa", "quick"]
    figures = {row["method"]: row for row in rows}
    assert figures["mixture"]["si_sdr_improvement"] == 0
    assert figures["oracle_tpsa"]["gap_closed"] == pytest.approx(1)
    assert figures["quick"]["config"] != figures["flat"]["config"]
    assert figures["quick"]["steps"] == 3
    assert "quick" in first.stdout

    curve = benchmark.read_rows(tmp_path / "out" / "curves.csv")
    assert [(point["method"], point["step"]) for point in curve] == [("flat", 1), ("flat", 2), ("flat", 3)]
    assert curve[-1]["si_sdr"] == pytest.approx(figures["flat"]["si_sdr"], abs=1e-6)

    # A second call with another case runs that one alone; the first's rows stay to the byte.
    finished = tmp_path / "out" / benchmark.FOLDER / "toy_one" / "quick" / "0"
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in finished.rglob("*") if file.is_file()}
    second = run(cases, tmp_path / "out", *arguments, "--only", "toy_one,toy_two", "--", *small)
    assert second.returncode == 0, second.stderr
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in finished.rglob("*") if file.is_file()} == before
    assert len(benchmark.read_rows(tmp_path / "out" / "rows.csv")) == 14


ROWS = [
    {"case": f"{source}_{index}", "method": method, "seed": seed, "si_sdr": value + seed}
    for method, offset in (("a", 1.0), ("b", 0.0))
    for source, values in (("x", (0.0, 2.0)), ("y", (4.0,)))
    for index, value in enumerate(np.array(values) + offset)
    for seed in (0, 1)
]


def test_seeds_are_averaged_before_cases():
    assert benchmark.by_case(ROWS, "b", "si_sdr") == {"x_0": 0.5, "x_1": 2.5, "y_0": 4.5}


def test_a_constant_difference_has_an_interval_of_no_width():
    result = benchmark.compare(ROWS, "a", "b")
    assert (result["mean"], result["cases"]) == (1.0, 3)
    assert result["interval"] == result["interval_by_source"] == (1.0, 1.0)
    assert result["p_wilcoxon"] == pytest.approx(0.25)  # the least that three pairs can give: 2 / 2**3


def test_the_bootstrap_covers_the_mean_and_sources_are_drawn_whole():
    rng = np.random.default_rng(0)
    values = {f"s{index}_case": value for index, value in enumerate(rng.normal(3.0, 1.0, 400))}
    low, high = benchmark.bootstrap(values)
    assert low < np.mean(list(values.values())) < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    # Two sources of equal values within: drawing whole sources leaves only three possible means.
    clustered = {f"{source}_{index}": float(source == "b") for source in "ab" for index in range(50)}
    assert benchmark.bootstrap(clustered, by_source=True) == (0.0, 1.0)
    assert benchmark.bootstrap(clustered)[1] < 0.7


def test_methods_without_a_common_case_cannot_be_compared():
    with pytest.raises(BespokeError, match="no case in common"):
        benchmark.compare(ROWS, "a", "nosuch")
