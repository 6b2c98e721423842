"""docs/RESULTS.md: tables from the committed rows, figures of measured data, all else unchanged."""

import runpy

import pytest

from bespoke.utils.files import write_csv
from conftest import ROOT

PAGE = """# Results
Words stay.
<!-- methods . -->
old
<!-- end -->
<!-- differences study paper -->
<!-- end -->
<!-- losses -->
<!-- end -->
<!-- alignment -->
<!-- end -->
<!-- methods nosuch -->
<!-- end -->
<!-- steps -->
<!-- end -->
<!-- differences study paper 2 -->
<!-- end -->
"""


def row(case, method, value, seed=0, **more):
    bounds = {"si_sdr_mixture": 0.0, "si_sdr_oracle": 10.0}
    return (
        {
            "case": case,
            "method": method,
            "seed": seed,
            "si_sdr": value,
            "si_sdr_improvement": value,
            "gap_closed": value / 10,
        }
        | bounds
        | more
    )


@pytest.fixture
def results(tmp_path):
    """The script's functions on a recipe with ceiling and curve in two files, and on a study."""
    trained = {"steps": 4}
    (tmp_path / "study").mkdir()
    study = [
        row(f"{source}_1", method, value, **trained)
        for source in "xyz"
        for method, value in (("paper", 1.0), ("heavy", 3.0))
    ]
    write_csv(tmp_path / "study" / "rows.csv", study)
    curve = [
        {
            "case": r["case"],
            "method": r["method"],
            "seed": 0,
            "step": 2,
            "seconds": 1.0,
            "si_sdr": 2 * r["si_sdr"],
        }
        for r in study
    ]
    write_csv(tmp_path / "study" / "curves.csv", curve)
    mixture = row("x_1", "mixture", 0.0, steps="")
    write_csv(tmp_path / "paper.csv", [row("x_1", "paper", 1.0, **trained), mixture])
    write_csv(tmp_path / "ceiling.csv", [row("x_1", "ceiling_paper", 4.0, **trained), mixture])
    points = [(0, 25, 1.0, 1.0), (0, 50, 2.0, 2.0), (1, 25, 3.0, 4.0)]
    curve = [
        {"case": "x_1", "method": "paper", "seed": seed, "step": step, "seconds": s, "si_sdr": v}
        for seed, step, s, v in points
    ]
    write_csv(tmp_path / "paper_curves.csv", curve)
    (tmp_path / "page.md").write_text(PAGE)
    return runpy.run_path(str(ROOT / "scripts" / "results.py"))


def test_means_are_of_methods_on_all_cases(results):
    rows = [row(case, method, 1.0) for case, method in (("x", "a"), ("y", "a"), ("x", "b"))]
    assert {found["method"] for found in results["_on_all_cases"](rows)} == {"a"}


@pytest.mark.slow
def test_tables_and_pictures_of_what_was_measured(results, tmp_path):
    assert results["main"](tmp_path, tmp_path / "page.md") == 0
    text = (tmp_path / "page.md").read_text()
    assert text.startswith("# Results\nWords stay.\n<!-- methods . -->\n\n| method | cases |")
    assert "old" not in text
    assert (
        "| heavy | paper | 3 | +2.00 | +2.00 | +2.00 to +2.00 | +2.00 to +2.00 | 3 of 3 |" in text
    )
    assert "| ceiling_paper | paper | 1 | +3.00 |" in text
    assert text.count("Not measured yet.") == 2  # no alignment, no such study
    assert text.count("| mixture | 1 | 1 |") == 1
    assert (
        "| paper | 1 | 25% | 25% | 25 |" in text
    )  # the mean of two seeds, up to the last step of both
    assert "| heavy | paper | 3 | +4.00 |" in text  # the curve at step 2
    assert {file.name for file in tmp_path.glob("*.png")} == {
        "cases.png",
        "curves.png",
        "steps.png",
        "seconds.png",
        "losses.png",
    }
    assert {file.name for file in tmp_path.glob("study/*.png")} == {
        "steps.png",
        "seconds.png",
        "differences.png",
        "differences_2.png",
    }
    results["main"](tmp_path, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == text


def test_a_run_that_stands_in_two_files_is_refused(results, tmp_path, capsys):
    write_csv(tmp_path / "again.csv", [row("x_1", "paper", 1.5, steps=4)])
    assert results["main"](tmp_path, tmp_path / "page.md") == 2
    assert "paper on x_1 is in both" in capsys.readouterr().err
    assert (tmp_path / "page.md").read_text() == PAGE


def test_rows_of_other_methods_alone_give_no_pictures_of_training(results, tmp_path):
    for file in tmp_path.rglob("*.csv"):
        file.unlink()
    write_csv(tmp_path / "rows.csv", [row("x_1", "mixture", 0.0)])
    assert results["main"](tmp_path, tmp_path / "page.md") == 0
    assert {file.name for file in tmp_path.rglob("*.png")} == {"cases.png"}
    (tmp_path / "rows.csv").unlink()
    assert results["main"](tmp_path, tmp_path / "page.md") == 0
    assert (tmp_path / "page.md").read_text().count("Not measured yet.") == 7


def test_curves_are_means_over_seeds_up_to_the_last_step_of_all(results):
    rows = [row("x_1", "mixture", 0.0)]
    points = [
        {"case": "x_1", "method": "a", "seed": seed, "step": 2, "seconds": s, "si_sdr": v}
        for seed, s, v in ((0, 1.0, 2.0), (1, 3.0, 4.0))
    ]
    points.append({**points[0], "step": 4, "seconds": 9.0, "si_sdr": 9.0})
    seconds, gaps = results["_gap_curves"](rows, points, "seconds")["a"]["x_1"]
    assert (seconds.tolist(), gaps.tolist()) == ([2.0], [pytest.approx(0.3)])


def test_agreement_is_ranked_against_the_truth_within_songs_runs_and_methods(results):
    judged = [(1.0, 2.0), (2.0, 4.0), (3.0, 6.0), (4.0, 5.0)]  # a rank correlation of 0.8
    rows = [
        row("x_1", method, truth, agreement=said)
        for method, (said, truth) in zip("abcd", judged, strict=True)
    ]
    rows.append(row("x_1", "oracle_tpsa", 9.0, agreement=-9.0))  # which nobody has to choose from
    trained = [
        row(f"{case}_1", "run", truth, agreement=-said, steps=4)
        for case, (said, truth) in zip("vwyz", judged, strict=True)
    ]
    points = [
        {"case": "x_1", "method": "run", "seed": 0, "step": n, "agreement": v, "si_sdr": v}
        for n, v in enumerate((1.0, 3.0, 2.0, 0.0))
    ]
    assert results["_agreement"](rows + trained, points).splitlines()[2:] == [
        "| methods on one song | 1 | 4 | 0.80 | 0.80 |",
        "| steps of one run | 1 | 4 | 1.00 | 1.00 |",
        "| songs, by run | 1 | 4 | -0.80 | -0.80 |",
    ]
    policies = [
        row("x_1", method, truth, agreement=said, steps=4)
        for method, (said, truth) in zip("abcd", judged, strict=True)
    ]
    assert results["_agreement"](policies, []).splitlines()[2:] == [
        "| runs on one song | 1 | 4 | 0.80 | 0.80 |"
    ]


def test_what_keeping_the_step_that_agrees_most_is_worth(results):
    curves = {
        "x_1": ((1, 0.0, 1.0), (2, 9.0, 4.0), (3, 1.0, 5.0), (4, 1.0, 2.0)),
        "y_1": ((1, 0.0, 3.0), (2, 1.0, 0.0)),
    }
    points = [
        {"case": case, "method": "run", "seed": 0, "step": step, "agreement": said, "si_sdr": truth}
        for case, found in curves.items()
        for step, said, truth in found
    ]
    (line,) = results["_kept"]([], points).splitlines()[2:]
    assert line.startswith("| run | 2 | 1 | 1 to 4 | 1.00 | 2.00 | 4.00 | +1.00 | ")
    assert line.endswith("| 1 of 2 |")


def test_a_method_chosen_for_each_song_against_the_best_for_all(results):
    table = {
        "a": ((1.0, 5.0), (9.0, 3.0)),
        "b": ((2.0, 1.0), (4.0, 6.0)),
    }  # SI-SDR and agreement on two songs
    rows = [
        row(case, method, truth, agreement=said, steps=4)
        for method, found in table.items()
        for case, (truth, said) in zip(("x_1", "y_1"), found, strict=True)
    ]
    lines = results["_chosen"]([*rows, row("x_1", "mixture", 0.0, agreement=9.0)], []).splitlines()[
        2:
    ]
    assert [line.split(" | ")[:3] for line in lines] == [
        ["| a for all", "2", "5.00"],
        ["| by agreement, for each", "2", "2.50"],
        ["| by the reference, for each", "2", "5.50"],
    ]
    assert lines[2].endswith("| 1 of 2 |")
