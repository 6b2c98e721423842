"""The main table: methods by what they are told, over songs, by half of the split."""

import pytest

from bespoke.evaluation import regimes, split
from bespoke.evaluation.benchmark import Case

DEVELOPMENT = ("trk_pk2-map_flute", "trk_pk2-map_bass", "eif_lithium_melody-pad")  # two songs
TEST = ("trk_pk2-song01_saw-lead", "trk_titlesong_smp3")


def row(case, method, gain, **more):
    return {
        "case": case,
        "method": method,
        "seed": 0,
        "si_sdr": gain - 5.0,
        "si_sdr_improvement": gain,
        "gap_closed": gain / 10,
        "bss_sdr": gain,
        "bss_sir": gain,
        "bss_sar": gain,
        "seconds_total": 200.0,
        "parts": 0,
        "channels": 1,
        **more,
    }


def cells(table):
    """The cells of a table's rows, without its heading."""
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


def test_a_song_counts_once_however_many_cases_it_has():
    rows = [
        row(case, "nmf_auto", gain) for case, gain in zip(DEVELOPMENT, (0.0, 2.0, 4.0), strict=True)
    ]
    (line,) = cells(regimes.regime_table(rows))
    assert line[:6] == ["target's MIDI alone", "nmf_auto", "3", "2", "-2.50", "+2.50"]
    assert line[6:] == ["+1.00 to +4.00", "25%", "2.50", "2.50", "2.50", "200.0"]


def test_a_method_is_compared_on_the_cases_of_its_regime():
    one, other = DEVELOPMENT[0], TEST[1]
    rows = [
        row(one, "auto", 5.0, parts=3),
        row(one, "auto_alone", 3.0, parts=3),
        row(other, "auto", 9.0, channels=2),  # without parts, so this is also told the target alone
        row(other, "auto_one_mask", 8.0, channels=2),
        row(other, "nmf_auto", 6.0, channels=2),
    ]
    found = {(told, method): line for told, method, *line in cells(regimes.regime_table(rows))}
    assert found["target's MIDI alone", "auto_alone"][3] == "+6.00"
    assert found["MIDI of all parts", "auto"][3] == "+5.00"
    assert found["MIDI of all parts", "auto_alone"][3] == "+3.00"
    assert found["stereo", "auto"][3] == "+9.00"
    pairs = {tuple(line[:3]): line[3:5] for line in cells(regimes.pair_table(rows))}
    assert pairs == {
        ("target's MIDI alone", "auto_alone", "nmf_auto"): ["1", "+3.00"],
        ("MIDI of all parts", "auto", "auto_alone"): ["1", "+2.00"],
        ("stereo", "auto", "auto_one_mask"): ["1", "+1.00"],
        ("stereo", "auto", "nmf_auto"): ["1", "+3.00"],
    }


def test_a_method_that_was_not_run_is_not_there():
    rows = [row(DEVELOPMENT[0], "auto", 5.0, parts=3), row(TEST[0], "auto", 3.0)]
    assert [line[:2] for line in cells(regimes.regime_table(rows))] == [
        ["MIDI of all parts", "auto"]
    ]
    assert [line[0] for line in cells(regimes.half_table(rows))] == ["auto"]
    without_parts = cells(regimes.regime_table(rows[1:]))  # all that it can be told
    assert [line[:2] for line in without_parts] == [["target's MIDI alone", "auto_alone"]]


def test_both_halves_and_their_difference_are_shown():
    rows = [row(case, "nmf_auto", 6.0) for case in DEVELOPMENT]
    rows += [row(case, "nmf_auto", 4.0) for case in TEST]
    rows.append(row("toy_song_lead", "nmf_auto", 99.0))  # in neither half
    rows.append(row(TEST[0], "hpss", 1.0))  # of one half only
    assert cells(regimes.half_table(rows)) == [
        ["nmf_auto", "2", "2", "+6.00", "+4.00", "60%", "40%", "-20%", "-20% to -20%"]
    ]


def test_the_interval_of_the_halves_difference_covers_it():
    low, high = regimes._unpaired({"a": 0.0, "b": 2.0}, {"c": 5.0, "d": 7.0})
    assert low < 5.0 < high
    assert (low, high) == pytest.approx((3.0, 7.0))  # the least and the most that draws can give


def test_each_case_has_the_runs_that_suit_it(tmp_path):
    plain, full = (Case(tmp_path / name, 0) for name in ("toy_plain", "toy_full"))
    for case in (plain, full):
        case.folder.mkdir()
    (full.folder / "target_aligned.mid").touch()
    (full.folder / "other_bass.mid").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Case, "channels", property(lambda case: 2 if case == full else 1))
        found = regimes.cells([plain, full], [0, 1], without=["paper"])
    names = {
        case.name: [cell.method for cell in found if cell.case == case and cell.seed == 1]
        for case in (plain, full)
    }
    assert names == {
        "toy_plain": ["auto"],
        "toy_full": ["auto", "auto_alone", "auto_given", "auto_one_mask", "paper_synth"],
    }
    given = next(cell for cell in found if cell.method == "auto_given")
    assert given.values["song"]["target"]["score"] == str(full.folder / "target_aligned.mid")


def test_songs_are_known_by_the_split_and_else_by_their_names():
    assert {split.song_of(case) for case in DEVELOPMENT} == {"trk_pk2-map", "eif_lithium"}
    assert split.song_of("urmp_01_Jupiter_vn_vc_1-vn") == "urmp_01_Jupiter_vn_vc"
    assert (split.half_of("feelings_stereo"), split.half_of("toy_one")) == ("development", None)
