"""The benchmark: invalid cases are reported, finished runs are kept, statistics are correct."""

import contextlib
import importlib.util
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pretty_midi
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from bespoke.audio.io import read_audio, write_wav
from bespoke.data.background import SynthBackground
from bespoke.data.song import Song
from bespoke.evaluation import benchmark, split
from bespoke.score.midi import Note, Part, write_midi
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import read_csv
from conftest import ROOT, SMALL

pytestmark = pytest.mark.slow  # whole runs


@pytest.fixture(scope="module")
def cases(make_song, tmp_path_factory):
    """Two sound cases of one source, and one for each way in which a case can be broken."""
    folder = tmp_path_factory.mktemp("cases")
    for name in (
        "toy_one",
        "toy_two",
        "bad_stem",
        "bad_length",
        "bad_rate",
        "bad_score",
        "bad_meta",
    ):
        (folder / name).mkdir()
        song = make_song(folder / name)
        for file in (
            song.mixture,
            song.reference,
        ):  # the names of a case; what is inside decides how it is read
            file.rename(file.with_suffix(".flac"))
        shutil.copy(song.score, folder / name / "target_aligned.mid")
        (folder / name / "meta.json").write_text(json.dumps({"gm_program": 80}))
    (folder / "bad_stem" / "target.flac").unlink()
    (folder / "bad_meta" / "meta.json").unlink()
    pretty_midi.PrettyMIDI().write(str(folder / "bad_score" / "target.mid"))
    for name, samples, sample_rate in (("bad_length", 100, 22050), ("bad_rate", 3 * 22050, 16000)):
        write_wav(folder / name / "wrong.wav", np.ones((1, samples), np.float32), sample_rate)
        (folder / name / "wrong.wav").rename(folder / name / "target.flac")
    return folder


def test_broken_cases_are_told_apart_with_the_reason(cases):
    sound, broken = benchmark.read_cases(cases)
    assert [case.name for case in sound] == ["toy_one", "toy_two"]
    assert {case.source for case in sound} == {"toy"}
    reasons = {
        "bad_stem": "does not exist",
        "bad_length": "100 samples",
        "bad_rate": "at 16000 Hz",
        "bad_score": "no notes",
        "bad_meta": "no usable gm_program",
    }
    assert broken.keys() == reasons.keys()
    assert all(reason in broken[name] for name, reason in reasons.items())
    assert [case.name for case in benchmark.read_cases(cases, ["*_one", "bad_*"])[0]] == ["toy_one"]
    with pytest.raises(BespokeError, match="no case nosuch"):
        benchmark.read_cases(cases, ["nosuch"])


def test_the_other_parts_of_a_case_are_a_background(make_song, tmp_path):
    song = make_song(tmp_path)
    for file in (song.mixture, song.reference):
        file.rename(file.with_suffix(".flac"))
    (tmp_path / "meta.json").write_text('{"gm_program": 80}')
    for name, program, pitch in (("viola", 41, 48), ("bass", 32, 36)):
        write_midi(
            tmp_path / f"other_{name}.mid", [Part(name, program, False, (Note(0.0, 2.5, pitch),))]
        )
    (case,), _ = benchmark.read_cases(tmp_path.parent, [tmp_path.name])
    (config,) = composed(
        [benchmark.Cell(case, "synth", ("recipe=paper", "background=synth"), 0)], tmp_path / "out"
    )
    assert config["background"]["_target_"] == "bespoke.data.background.SynthBackground"
    loaded = Song.load(config["song"])
    assert [
        (voice.part.name, [patch.program for patch in voice.patches]) for voice in loaded.others
    ] == [("bass", [32]), ("viola", [41])]
    assert len(SynthBackground(loaded, 16000).voices) == 2
    (tmp_path / "other_bass.mid").write_bytes(b"")
    assert (
        "other_bass.mid cannot be read as MIDI"
        in benchmark.read_cases(tmp_path.parent, [tmp_path.name])[1][tmp_path.name]
    )


def test_baselines_are_told_what_is_known_of_a_case(make_song, tmp_path):
    song = make_song(tmp_path)
    for file in (song.mixture, song.reference):
        file.rename(file.with_suffix(".flac"))
    (tmp_path / "meta.json").write_text('{"gm_program": 80}')

    def rows():
        (case,), _ = benchmark.read_cases(tmp_path.parent, [tmp_path.name])
        return {row["method"]: row for row in benchmark.other_rows(case, ["nmf", "comb"])}

    found = rows()  # without parts and without the true alignment
    assert sorted(found) == ["comb_auto", "nmf_auto", "oracle_ratio", "oracle_tpsa"]
    assert (found["nmf_auto"]["parts"], found["nmf_auto"]["channels"]) == (0, 1)
    assert found["nmf_auto"]["seconds_total"] > found["oracle_tpsa"]["seconds_total"] > 0
    shutil.copy(song.score, tmp_path / "target_aligned.mid")
    write_midi(tmp_path / "other_bass.mid", [Part("bass", 32, False, (Note(0.0, 2.5, 36),))])
    found = rows()
    assert {"nmf_aligned", "nmf_auto", "nmf_parts_auto", "comb_aligned"} <= set(found)
    assert "comb_parts_auto" not in found  # a comb has no use for them
    assert found["nmf_parts_auto"]["parts"] == 1
    assert found["nmf_auto"]["onset_median_seconds"] < 0.1


def test_a_silent_target_of_a_long_recording_has_a_row(tiny_song, tmp_path, monkeypatch):
    for name in ("mixture", "reference"):
        write_wav(tmp_path / f"{name}.wav", read_audio(getattr(tiny_song, name))[0], 16000)
    write_wav(tmp_path / "target.wav", np.zeros_like(read_audio(tiny_song.mixture)[0]), 16000)
    song = {name: str(tmp_path / f"{name}.wav") for name in ("mixture", "reference")} | {
        "target": {"score": str(tiny_song.score)}
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"song": song}))
    metrics = {
        "seconds": {"total": 1},
        "versions": {"bespoke": "1", "torch": "2"},
        "steps": 3,
        "device": "cpu",
        "seed": 0,
    }
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    monkeypatch.setattr("bespoke.data.song.MAX_HELD_VALUES", 1000)
    row = benchmark.cell_row(tmp_path, {"case": "toy_one"})
    assert (row["case"], row["steps"], row["bss_missed"]) == ("toy_one", 3, 1)
    assert json.loads(json.dumps(row, allow_nan=False)) == row


SETTINGS = [
    *(override for override in SMALL if not override.startswith(("logger", "trainer.max_steps"))),
    "trainer.max_steps=20",
    "checkpoint_steps=2",
]
ARGUMENTS = [
    "--recipes",
    "quick",
    "--variant",
    "flat",
    "recipe=quick;aug=none;data.silent_share=0;curve_steps=10",
    "--baselines",
    "mixture,comb",
]


@pytest.fixture
def run(cases, capfd):
    """Run scripts/benchmark.py in this process; its cells run in another.

    Returns the exit code and what was printed.
    """
    main = runpy.run_path(str(ROOT / "scripts" / "benchmark.py"))["main"]

    def execute(out, *arguments):
        code = main(["--cases", str(cases), "--out", str(out), *arguments])
        return code, *capfd.readouterr()

    return execute


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder of a benchmark, which the first test runs."""
    return tmp_path_factory.mktemp("benchmark") / "out"


def test_the_benchmark_runs_what_is_missing_and_ends_with_tables(run, out):
    code, stdout, stderr = run(out, *ARGUMENTS, "--only", "toy_one,bad_stem", "--", *SETTINGS)
    assert code == 2, stderr
    assert "skipped bad_stem" in stderr
    assert "cells 2 of 2, 00:00 left: toy_one/flat/0, SI-SDR improved by" in stderr
    assert "| flat | quick | 1 |" in stdout
    assert "GPU available" not in (out / "benchmark.log").read_text()
    rows = read_csv(out / "rows.csv")
    assert [row["method"] for row in rows] == [
        "comb_aligned",
        "comb_auto",
        "flat",
        "mixture",
        "oracle_ratio",
        "oracle_tpsa",
        "quick",
    ]
    figures = {row["method"]: row for row in rows}
    assert figures["mixture"]["si_sdr_improvement"] == 0
    assert figures["oracle_tpsa"]["gap_closed"] == pytest.approx(1)
    assert figures["quick"]["config"] != figures["flat"]["config"]
    assert figures["quick"]["steps"] == 20

    curve = read_csv(out / "curves.csv")
    assert [(point["method"], point["step"]) for point in curve] == [("flat", 10), ("flat", 20)]
    assert 0 < curve[0]["seconds"] < curve[1]["seconds"]
    assert curve[-1]["si_sdr"] == pytest.approx(figures["flat"]["si_sdr"], abs=1e-6)

    # A second call with another case runs that one alone; the first's rows stay to the byte.
    finished = out / benchmark.FOLDER / "toy_one" / "quick" / "0"
    before = {
        file: (file.read_bytes(), file.stat().st_mtime_ns)
        for file in finished.rglob("*")
        if file.is_file()
    }
    code, _, stderr = run(out, *ARGUMENTS, "--only", "toy_one,toy_two", "--", *SETTINGS)
    assert code == 0, stderr
    assert {
        file: (file.read_bytes(), file.stat().st_mtime_ns)
        for file in finished.rglob("*")
        if file.is_file()
    } == before
    assert len(read_csv(out / "rows.csv")) == 14


def test_a_benchmark_that_was_killed_goes_on_to_the_same_rows(run, out, cases, tmp_path):
    arguments = ["--recipes", "quick", "--baselines", "mixture", "--only", "toy_*", "--", *SETTINGS]
    command = [
        sys.executable,
        str(ROOT / "scripts" / "benchmark.py"),
        "--cases",
        str(cases),
        "--out",
        str(tmp_path),
        *arguments,
    ]
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True
    )
    finished, begun = (tmp_path / "cells" / name / "quick" / "0" for name in ("toy_one", "toy_two"))
    deadline = time.monotonic() + 120
    while (
        not (begun / "checkpoints" / "last.ckpt").exists()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.kill()  # that is the one with the progress, which leaves its cells running ...
    process.wait()
    with pytest.raises(BespokeError, match="A benchmark is running in"):
        benchmark.lock_folder(tmp_path / "cells")
    os.killpg(process.pid, signal.SIGKILL)  # ... and these are the cells
    while time.monotonic() < deadline:
        with contextlib.suppress(BespokeError):  # until the system has cleared them away
            benchmark.lock_folder(tmp_path / "cells").release()
            break
        time.sleep(0.01)
    assert (finished / "row.json").exists()
    assert not (begun / "row.json").exists()
    before = (finished / "row.json").stat().st_mtime_ns

    code, _, stderr = run(tmp_path, *arguments)
    assert code == 0, stderr
    assert (finished / "row.json").stat().st_mtime_ns == before
    assert json.loads((begun / "metrics.json").read_text())["resumed_from_step"] > 0
    whole, killed = (read_csv(folder / "rows.csv") for folder in (out, tmp_path))
    assert len(killed) == 8

    def lasting(row):
        cost = ("seconds", "peak_memory")
        # A ratio of 168 dB is rounding error, which depends on the number of threads. Other figures
        # depend on it from the tenth digit on.
        kept = {
            column: value
            for column, value in row.items()
            if value is not None and not column.startswith((*cost, "bss_sar"))
        }
        return {
            column: pytest.approx(value, rel=1e-6, abs=1e-9) if isinstance(value, float) else value
            for column, value in kept.items()
        }

    methods = {row["method"] for row in killed}
    again = [
        {column: value for column, value in row.items() if column in lasting(row)} for row in killed
    ]
    assert again == [lasting(row) for row in whole if row["method"] in methods]


def test_a_folder_is_held_until_its_process_ends(run, tmp_path):
    holder = (
        "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); "
        "lock.acquire(); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holder, str(tmp_path / ".lock")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    code, _, stderr = run(tmp_path, "--recipes", "quick")
    process.kill()
    process.wait()
    assert (code, stderr) == (
        2,
        f"error: A benchmark is running in {tmp_path}: wait until it has ended, or choose another "
        "--out.\n",
    )
    assert not (tmp_path / "cells").exists()
    benchmark.lock_folder(tmp_path).release()


def test_a_setting_that_does_not_exist_is_one_sentence(run, tmp_path):
    code, _, stderr = run(
        tmp_path,
        "--only",
        "toy_one",
        "--recipes",
        "quick",
        "--baselines",
        "mixture",
        "--",
        "trainer.max_step=3",
    )
    assert code == 2
    assert (
        stderr.splitlines()[-1]
        == "error: There is no setting trainer.max_step: train.py --cfg job lists all that there "
        "are."
    )


def test_what_is_not_installed_is_said_before_anything_runs(run, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == "torch_log_wmse" else find(name, *rest),
    )
    code, _, stderr = run(tmp_path / "out", "--recipes", "quick")
    assert (code, "torch-log-wmse: pip install" in stderr) == (2, True)
    assert not (tmp_path / "out").exists()


def test_quick_takes_four_cases_and_tables_are_written(run, tmp_path):
    nothing = ["--recipes", "", "--baselines", "mixture", "--only", "toy_*"]
    code, stdout, stderr = run(tmp_path, "--quick", *nothing)
    assert code == 0, stderr
    assert {row["method"] for row in read_csv(tmp_path / "rows.csv")} == {
        "mixture",
        "oracle_ratio",
        "oracle_tpsa",
    }
    assert (tmp_path / "tables.md").read_text().strip() == stdout.strip()
    assert "| target's MIDI alone | mixture | 2 |" in stdout


def composed(cells, out):
    """The configs of cells, as a job of the benchmark gets them."""
    assert benchmark.write_cells(cells, out) == cells
    with initialize_config_dir(str(benchmark.CONF), version_base="1.3"):
        overrides = [f"hydra.searchpath=[file://{out / 'conf'}]", "song=custom"]
        return [
            OmegaConf.to_container(
                compose("config", [*overrides, f"+cell={number:05d}"]), resolve=True
            )
            for number in range(len(cells))
        ]


def test_an_experiment_is_a_method_for_each_choice_of_its_sweep(cases, tmp_path):
    methods, names = benchmark.read_experiment("aug_screen")
    assert len(methods) == 5
    assert methods["aug_screen_none"] == ("experiment=aug_screen", "aug=none")
    factors, _ = benchmark.read_experiment("aug_factors")
    assert factors["aug_factors_eq"] == ("experiment=aug_factors", "factor=eq")
    assert len(names) == len({name.partition("_")[0] for name in names}) == 6
    case = benchmark.read_cases(cases, ["toy_one"])[0][0]
    one, other = composed(
        [
            benchmark.Cell(case, name, (methods | factors)[name], 3)
            for name in ("aug_screen_none", "aug_factors_eq")
        ],
        tmp_path,
    )
    assert (one["trainer"]["max_steps"], one["seed"], one["song"]["name"]) == (100, 3, "toy_one")
    assert one["background"]["_target_"] == "bespoke.data.background.MixtureBackground"
    assert one["aug"]["target"] == {}
    assert list(other["aug"]["target"]) == ["eq"]
    assert list(benchmark.read_experiment("segment")[0]) == [
        "segment_2.0_8",
        "segment_1.0_16",
        "segment_4.0_4",
    ]
    with pytest.raises(
        BespokeError,
        match=r"There is no experiment nosuch: choose aug_factors, aug_optuna, aug_screen",
    ):
        benchmark.read_experiment("nosuch")
    with pytest.raises(
        BespokeError, match=r"searches aug.target_gain_db.0|searches aug.target.eq.p in a range"
    ):
        benchmark.read_experiment("aug_optuna")


def test_a_variant_reads_overrides_as_hydra_does_and_patches_as_the_case_has_them(cases, tmp_path):
    case = benchmark.read_cases(cases, ["toy_one"])[0][0]
    texts = {
        "family": ("song.target.patches=family", "recipe=paper"),
        "wide": ("song.target.patches=wide", "recipe=quick", "stft={window_seconds:0.064}"),
    }
    cells = [benchmark.Cell(case, name, overrides, 0) for name, overrides in texts.items()]
    family, wide = composed(cells, tmp_path)
    assert family["song"]["target"]["patches"] == [80, 81, 82, 83, 84, 85, 86, 87]
    assert family["trainer"]["max_steps"] == 2000
    assert wide["song"]["target"]["patches"] == [
        80,
        0,
        8,
        16,
        24,
        32,
        40,
        48,
        56,
        64,
        72,
        88,
        96,
        104,
    ]
    assert wide["song"]["target"]["score"] == str(case.folder / "target.mid")
    assert wide["stft"] == {"window_seconds": 0.064, "hop_seconds": 0.008}
    with pytest.raises(BespokeError, match="aug=none,paper of both: give one value"):
        benchmark.write_cells([benchmark.Cell(case, "both", ("aug=none,paper",), 0)], tmp_path)
    with pytest.raises(BespokeError, match="cannot be read as overrides"):
        benchmark.write_cells([benchmark.Cell(case, "odd", ("aug",), 0)], tmp_path)


def test_a_ceiling_trains_on_the_true_stems(cases, tmp_path):
    case = benchmark.read_cases(cases, ["toy_one"])[0][0]
    cell = benchmark.ceiling(case, "quick", ("recipe=quick", "background=mixture"), 0, tmp_path)
    assert cell.place == "toy_one/ceiling_quick/0"
    (config,) = composed([cell], tmp_path)
    song = Song.load(config["song"])
    assert song.target is None
    assert np.array_equal(song.target_audio[0], song.reference)
    assert config["background"]["_target_"] == "bespoke.data.background.AudioBackground"
    (path,) = config["background"]["paths"]
    rest, sample_rate = read_audio(path)
    assert sample_rate == song.sample_rate
    assert rest + song.reference == pytest.approx(song.mixture, abs=1e-7)


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
    assert result["p_wilcoxon"] == pytest.approx(
        0.25
    )  # the least that three pairs can give: 2 / 2**3


def test_methods_without_a_common_case_cannot_be_compared():
    with pytest.raises(BespokeError, match="no case in common"):
        benchmark.compare(ROWS, "a", "nosuch")


def trained_rows(method, values, figure="si_sdr"):
    return [
        {"case": case, "method": method, "seed": seed, "steps": 5, figure: value}
        for (case, seed), value in values.items()
    ]


def test_trained_methods_are_compared_over_the_seeds_that_both_have():
    rows = trained_rows("a", {("x_0", 0): 1.0, ("x_0", 1): 9.0, ("x_1", 1): 9.0}) + trained_rows(
        "b", {("x_0", 0): 0.0, ("x_1", 0): 0.0}
    )
    rows += [{"case": case, "method": "fixed", "seed": 0, "si_sdr": 1.0} for case in ("x_0", "x_1")]
    assert (
        benchmark.compare(rows, "a", "b")["mean"],
        benchmark.compare(rows, "a", "b")["cases"],
    ) == (1.0, 1)
    result = benchmark.compare(rows, "a", "fixed")  # which is the same for every seed
    assert (result["mean"], result["median"], result["better"], result["cases"]) == (6.0, 6.0, 2, 2)
    assert benchmark.trained(rows) == ["a", "b"]
    assert [
        result["first"] for result in benchmark.comparisons(rows, ["a", "b", "nosuch"], "b")
    ] == ["a"]
    assert "| a | b | 1 | +1.00 | +1.00 |  |  | 1 of 1 |  |" in benchmark.difference_table(
        benchmark.comparisons(rows, ["a"], "b")
    )


def test_where_the_loss_is():
    rows = [
        row
        for case in ("x", "y")
        for row in trained_rows("a", {(case, 0): 1.0}) + trained_rows("ceiling_a", {(case, 0): 4.0})
    ]
    rows += [
        {"case": case, "method": "oracle_tpsa", "seed": 0, "si_sdr": 10.0} for case in ("x", "y")
    ]
    assert [
        (result["first"], result["second"], result["mean"]) for result in benchmark.losses(rows)
    ] == [
        ("oracle_tpsa", "ceiling_a", 6.0),
        ("ceiling_a", "a", 3.0),
    ]
    assert benchmark.trained(rows) == ["a"]
    assert benchmark.losses(rows[:1]) == []


def test_a_method_without_figures_is_left_out_of_the_tables():
    rows = [{**row, "si_sdr_improvement": row["si_sdr"], "gap_closed": None} for row in ROWS]
    rows.append(
        {
            "case": "x_0",
            "method": "silent",
            "seed": 0,
            "si_sdr": None,
            "si_sdr_improvement": None,
            "gap_closed": None,
        }
    )
    assert [line.split(" | ")[0] for line in benchmark.table(rows).splitlines()[2:]] == [
        "| b",
        "| a",
    ]
    assert benchmark.case_table(rows).splitlines()[0] == "| case | b | a |"
    assert len(benchmark.table([]).splitlines()) == 2


@pytest.mark.parametrize(
    ("case", "half"),
    [
        ("fof_muldjord_armygeddon_guitar_stereo", "development"),
        ("feelings_stereo", "development"),
        ("trk_pk2-song01_saw-lead", "test"),
        ("trk_pk2-song10_synth-strings", "development"),  # not song1
        ("toy_one", None),
    ],
)
def test_all_cases_of_a_song_are_in_one_half(case, half, tmp_path):
    assert benchmark.Case(tmp_path / case, 0).half == half


def test_no_song_is_in_both_halves():
    halves = yaml.safe_load(split.SPLIT.read_text())
    songs = [song for half in ("development", "test") for song in halves[half]]
    assert halves.keys() == {"development", "test"}
    for one in songs:
        assert [other for other in songs if other == one or other.startswith(f"{one}_")] == [one]
