"""Groups of runs: which runs belong together, their statistics, and when one is called the best."""

import json

import numpy as np
import pytest
import yaml

from bespoke.audio.io import write_wav
from bespoke.evaluation.report.groups import compare_groups, group_rows, group_table
from bespoke.evaluation.report.runs import find_runs, label, read_runs
from bespoke.evaluation.report.sweep import finish_sweep, read_results
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import read_csv, write_json


@pytest.fixture
def make_run(tmp_path):
    """Leave what a run leaves, without the run."""
    stem = tmp_path / "stem.wav"
    write_wav(stem, np.full((1, 800), 0.1, np.float32), 8000)
    sweep = tmp_path / "sweep"

    def make(number, gain, seed, aug="none", song="a", config=None, overrides=None, **metrics):
        folder = sweep / str(number)
        folder.mkdir(parents=True)
        (folder / "target.wav").write_bytes(stem.read_bytes())
        told = [f"song={song}", f"aug={aug}", f"seed={seed}"] if overrides is None else overrides
        effect = {"none": 0.0, "light": 0.5, "heavy": 1.0}[aug]
        whole = {
            "seed": seed,
            "song": {"name": song, "mixture": f"{song}.wav"},
            # A song's own background differs from the other's, and not by what was asked for.
            "background": {"kind": "synth" if song == "b" else "mixture"},
            "aug": {"p": effect},
            "logger": {"project": f"p{number}"},
            **(config or {}),
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(whole))
        figures = {"si_sdr": gain - 5, "si_sdr_mixture": -5.0, "si_sdr_improvement": gain}
        write_json(
            folder / "metrics.json",
            {
                "song": song,
                "seed": seed,
                "steps": 5,
                "song_seconds": 0.1,
                "seconds": {"total": 1.0},
                "hashes": {"mixture": song},
                "overrides": told,
                "choices": {"aug": aug, "recipe": "quick"},
                **figures,
                **metrics,
            },
        )
        return folder

    make.sweep = sweep
    return make


def compared(sweep, baseline=""):
    return compare_groups(read_runs(find_runs(sweep)), baseline)


def test_runs_that_differ_only_by_seed_are_a_group_with_mean_spread_and_paired_difference(make_run):
    for seed, (none, heavy) in enumerate([(1.0, 1.5), (2.0, 2.5), (6.0, 6.5)]):
        make_run(2 * seed, none, seed)
        make_run(2 * seed + 1, heavy, seed, aug="heavy")
    (block,) = compared(make_run.sweep)
    none, heavy = block.groups
    assert (none.label, heavy.label) == ("aug=none", "aug=heavy")
    figure = heavy.figures["si_sdr_improvement"]
    assert len(figure.values) == 3
    assert figure.mean == pytest.approx(3.5)
    assert figure.spread == pytest.approx(np.std([1.5, 2.5, 6.5], ddof=1))
    # The seeds differ by far more than the policies, which differ by the same for every seed.
    assert figure.difference["mean"] == pytest.approx(0.5)
    assert figure.difference["interval"] == pytest.approx((0.5, 0.5))
    assert none.is_baseline
    assert heavy.is_best
    assert not none.is_best
    assert "aug=heavy ★" in group_table([block])
    (row, other) = group_rows([block])
    assert (row["group"], row["n"], row["best"], row["verdict"]) == (
        "aug=none",
        3,
        False,
        "baseline",
    )
    assert (other["best"], other["verdict"]) == (True, "better")
    assert other["si_sdr_improvement_difference_low"] == pytest.approx(0.5)


def test_the_best_single_run_makes_no_best_group(make_run):
    gains = {"none": (3.9, 3.8, 5.8), "light": (4.2, 5.0, 4.9)}
    for number, (aug, seed) in enumerate((aug, seed) for aug in gains for seed in range(3)):
        make_run(number, gains[aug][seed], seed, aug=aug)
    (block,) = compared(make_run.sweep)
    assert block.best is None
    assert block.ranked()[0][0].label == "aug=light"
    assert "★" not in group_table([block])
    assert "Not decided" in block.answer()


def test_one_run_each_says_nothing_of_chance(make_run):
    make_run(0, 1.0, 0)
    make_run(1, 9.0, 0, aug="heavy")
    (block,) = compared(make_run.sweep)
    assert not block.is_repeated
    assert block.best is None
    assert "seed=0,1,2" in block.answer()


def test_songs_are_compared_each_and_together_over_pairs_of_song_and_seed(make_run):
    number = 0
    for song, level in (("a", 0.0), ("b", 10.0)):
        for aug, gain in (("none", 0.0), ("heavy", 1.0 if song == "a" else 3.0)):
            for seed in (0, 1):
                make_run(number, level + gain + seed, seed, aug=aug, song=song)
                number += 1
    over, first, second = compared(make_run.sweep)
    assert [block.songs for block in (over, first, second)] == [2, 1, 1]
    assert [block.title for block in (first, second)] == ["a", "b"]
    assert [len(group.runs) for group in over.groups] == [4, 4]
    figure = over.groups[1].figures["si_sdr_improvement"]
    assert figure.mean == pytest.approx((1.5 + 13.5) / 2)
    assert figure.spread == pytest.approx(np.std([0, 1], ddof=1))  # not that between the songs
    assert figure.difference["cases"] == 4
    assert figure.difference["mean"] == pytest.approx(2.0)
    low, high = figure.difference["interval_by_source"]  # the songs' own differences are 1 and 3
    assert low < -5
    assert high > 9


def test_a_baseline_can_be_chosen_and_must_be_there(make_run):
    for seed in (0, 1):
        make_run(2 * seed, 1.0, seed)
        make_run(2 * seed + 1, 3.0, seed, aug="heavy")
    (block,) = compared(make_run.sweep, "aug=heavy")
    none, heavy = block.groups
    assert heavy.is_baseline
    assert none.figures["si_sdr_improvement"].difference["mean"] == pytest.approx(-2.0)
    with pytest.raises(BespokeError, match="aug=nine: choose none, heavy"):
        compared(make_run.sweep, "aug=nine")


def test_what_was_not_overridden_counts_with_its_value_in_force(make_run):
    make_run(0, 1.0, 0, aug="light", overrides=["seed=0"])
    make_run(1, 1.0, 0, aug="heavy", overrides=["seed=0", "aug=heavy"])
    make_run(2, 1.0, 1, aug="light", overrides=["seed=1", "aug=light"])
    runs = read_runs(find_runs(make_run.sweep))
    assert [run.settings["aug"] for run in runs] == ["light", "heavy", "light"]
    assert [run.label for run in runs] == [
        "seed=0 aug=light",
        "seed=0 aug=heavy",
        "seed=1 aug=light",
    ]
    assert [len(group.runs) for group in compare_groups(runs)[0].groups] == [2, 1]


def test_runs_of_former_versions_take_a_choice_from_those_with_the_same_section(make_run):
    for number, aug in enumerate(("light", "heavy", "light")):
        folder = make_run(number, 1.0, number, aug=aug)
        if number == 2:
            metrics = json.loads((folder / "metrics.json").read_text())
            write_json(folder / "metrics.json", {**metrics, "choices": {}, "overrides": []})
    assert read_runs(find_runs(make_run.sweep))[2].settings["aug"] == "light"


def test_a_setting_that_was_changed_in_its_file_makes_another_group(make_run):
    make_run(0, 1.0, 0, aug="heavy")
    make_run(1, 2.0, 1, aug="heavy", config={"aug": {"p": 0.25}})
    (block,) = compared(make_run.sweep)
    assert [group.label for group in block.groups] == ["aug.p=1", "aug.p=0.25"]


def test_a_failed_run_is_counted_with_its_group_and_its_sentence_is_in_the_table(make_run):
    make_run(0, 1.0, 0)
    make_run(1, 2.0, 0, aug="heavy")
    folder = make_run.sweep / "2"
    job = {
        "overrides": ["song=a", "aug=heavy", "seed=1"],
        "choices": {"aug": "heavy", "recipe": "quick"},
    }
    write_json(folder / "job.json", job)
    text, results = finish_sweep(make_run.sweep, page=False)
    assert results.runs[2].error == "not finished"
    assert [group.failed for group in results.blocks[0].groups] == [0, 1]
    assert "ckpt=last" in text
    write_json(folder / "error.json", {"error": "The disk is full.", "overrides": job["overrides"]})
    text, _ = finish_sweep(make_run.sweep, page=False)
    assert "The disk is full." in text
    assert read_csv(make_run.sweep / "sweep.csv")[2]["error"] == "The disk is full."
    assert [row["failed"] for row in read_csv(make_run.sweep / "groups.csv")] == [0, 1]


def test_the_folders_of_wandb_are_no_runs(make_run):
    make_run(0, 1.0, 0)
    for place in (make_run.sweep, make_run.sweep / "0"):
        files = place / "wandb" / "offline-run-1" / "files"
        files.mkdir(parents=True)
        (files / "config.yaml").touch()
    assert [run.name for run in find_runs(make_run.sweep)] == ["0"]
    assert [run.name for run in find_runs(make_run.sweep / "0")] == ["0"]


def test_no_runs_are_nothing_to_compare(tmp_path):
    with pytest.raises(BespokeError, match="no runs to compare"):
        read_results([])
    assert finish_sweep(tmp_path) == ("No run began.", None)


def test_labels_are_short_and_tell_settings_apart():
    settings = {"aug.target.eq.p": "0.71234567", "aug.target.pitch.p": "0.5", "song": "a"}
    assert label(settings, list(settings)) == "eq.p=0.7123 pitch.p=0.5 a"
