"""scripts/speed.py: counts, times read from given curves, and the page, whose text is kept."""

import json
import os

import numpy as np
import pytest
import torch
from measure import quality, scale, step, table
from measure.runs import Finished, TrainingRun, long_song
from speed import main
from torch.utils.flop_counter import FlopCounterMode

from bespoke.audio.io import open_audio
from bespoke.models.networks import MaskBLSTM
from bespoke.score.midi import read_score
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import write_csv


def test_flops_of_the_papers_layers():
    rows = 8 * 251
    one = 2 * 2 * rows * (4 * 300) * (257 + 300)
    other = 2 * 2 * rows * (4 * 300) * (600 + 300)
    assert step.blstm_flops(8, 251, 257, 300, 1) == one == 5_368_588_800
    assert step.blstm_flops(8, 251, 257, 300, 2) == one + other


def test_flops_of_the_last_layer_are_what_torch_counts():
    model = MaskBLSTM(bins=9, hidden_size=4)
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model.linear(hidden).sum().backward()
    assert (
        step.flops_of(model, 2, 5) - 3 * step.blstm_flops(2, 5, 9, 4, 2)
        == counter.get_total_flops()
    )


def test_bare_step_trains_on_a_batch(compose_config):
    cfg = compose_config("recipe=paper", "model.hidden_size=4", "model.layers=1")
    batch = {name: 0.1 * torch.randn(1, 1, 4000) for name in ("mixture", "target")}
    bare = step.Step(cfg)
    before = bare.model.linear.weight.clone()
    bare(batch)
    assert not torch.equal(bare.model.linear.weight, before)
    assert "aten::" in step.profile_table(bare, [batch])


def test_table_of_made_up_rows():
    figures = [
        table.Figure("share", 0.04, "", 0.05, detail="1/25"),
        table.Figure("rate", 8.0, " ×", 20, at_least=True),
        table.Figure("alone", 1234.5, "/s"),
        table.Figure("difference", -0.1, " dB", -0.3, at_least=True),
    ]
    lines = table.table(
        figures,
        [table.Figure("rate", 60.0, " ×", 20, at_least=True), table.Figure("only there", 2.0)],
    ).splitlines()
    assert lines[2:] == [
        "| share | ≤ 0.05 | 0.04 (1/25) | 1.25 | met | not measured |",
        "| rate | ≥ 20 × | 8 × | 0.40 | **missed** | 60 × met |",
        "| alone |  | 1,234/s |  |  | not measured |",
        "| difference | ≥ -0.3 dB | -0.1 dB |  | met | not measured |",
        "| only there |  | not measured |  |  | 2 |",
    ]


@pytest.fixture
def run(tmp_path):
    """Run that began at 1000, trained for 30 s including 10 s of evaluation, and ended at 1050."""
    write_csv(
        tmp_path / "curve.csv",
        [
            {"step": n, "seconds": 2.0 * n, "si_sdr": score}
            for n, score in ((2, 1.0), (6, 5.0), (10, 4.0))
        ],
    )
    (tmp_path / "metrics.json").write_text(
        json.dumps({"seconds": {"train": 30.0, "separate": 5.0}})
    )
    (tmp_path / "target.wav").touch()
    os.utime(tmp_path / "target.wav", (1050.0, 1050.0))
    return TrainingRun(tmp_path, Finished(1000.0, 60.0, 1.0))


def test_time_to_quality_of_a_made_up_run(run):
    assert quality.scoring_seconds(run) == 10
    # 50 s to the stems, minus 30 s of training, plus training up to the first point that reaches
    # the level
    assert [quality.seconds_to(run, level) for level in (0.5, 1.0, 4.5, 5.1)] == [
        24.0,
        24.0,
        32.0,
        quality.NEVER,
    ]
    assert quality.paper_seconds(run) == 20 + 2000 * 2.0


def test_time_to_quality_of_a_run_that_does_not_train(run, tmp_path):
    (tmp_path / "curve.csv").unlink()
    (tmp_path / "metrics.json").write_text(
        json.dumps({"seconds": {"separate": 5.0}, "si_sdr": 4.0})
    )
    assert quality.scoring_seconds(run) == 0
    assert [quality.seconds_to(run, level) for level in (4.0, 4.1)] == [50.0, quality.NEVER]


def test_best_of_the_paper_counts_quick_too_and_nothing_else(tmp_path):
    rows = [
        ("a", "paper", 25, -3.0),
        ("a", "quick", 300, -2.0),
        ("a", "auto", 10, 9.0),
        ("b", "paper", 2000, 1.5),
        ("b", "paper", 50, 1.0),
    ]
    write_csv(
        tmp_path / "all_curves.csv",
        [dict(zip(("case", "method", "step", "si_sdr"), row, strict=True)) for row in rows],
    )
    assert quality.paper_best(tmp_path) == {"a": (-2.0, 300), "b": (1.5, 2000)}


def test_exponent_leaves_out_no_work_at_all():
    assert scale.exponent([0, 1, 2, 4], [9, 3, 12, 48]) == pytest.approx(2)


def test_long_song_repeats_recording_and_score(tmp_path):
    mixture, score = long_song(tmp_path, 2, sample_rate=8000)
    recording = open_audio(mixture)
    assert (recording.channels, recording.seconds) == (2, 40)
    starts = np.array([note.start_seconds for note in read_score(score)[0].notes])
    first, second = starts[starts < 20], starts[starts >= 20]
    np.testing.assert_allclose(second - 20, first, atol=0.005)


def test_page_keeps_its_words_and_says_what_is_not_measured(tmp_path):
    page = tmp_path / "SPEED.md"
    page.write_text(
        "Words.\n<!-- table -->\n<!-- end -->\nMore.\n<!-- step -->\nold\n<!-- end -->\n<!-- mixer "
        "-->\n<!-- end -->\n"
    )
    options = table.Options(tmp_path, tmp_path, is_quick=True)
    place = {**table.machine(), "cpu": "A CPU", "cores": 2}
    table.save(
        table.Section([table.Figure("a", 1.0, " s", 2)], "| found |"),
        "step",
        options,
        place,
        3.2,
        "python scripts/speed.py",
    )
    for _ in range(2):
        table.write_page(page, page, table.read(tmp_path / "speed"), ("step", "mixer"))
    text = page.read_text()
    assert "| a | ≤ 2 s | 1 s | 2.00 | met | not measured |" in text
    assert "| found |" in text
    assert "A CPU, 2 cores" in text
    assert "quick mode" in text
    assert "old" not in text
    assert text.startswith("Words.\n")
    assert text.count("More.") == 1
    assert "<!-- mixer -->\nNot measured yet.\n<!-- end -->" in text


def test_section_without_gpu_says_so(tmp_path, capsys):
    assert main(["--only", "gpu", "--out", str(tmp_path)]) == 0
    assert "Not measured: no GPU." in (tmp_path / "SPEED.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--only", "speed"], "choose from quality, step"), (["--gpu"], "no NVIDIA GPU")],
)
def test_what_cannot_be_measured(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_command_that_fails_is_an_error(tmp_path):
    from measure.runs import run

    with pytest.raises(BespokeError, match="ended with 3: bye"):
        run(["-c", "import sys; print('bye'); sys.exit(3)"], tmp_path)
