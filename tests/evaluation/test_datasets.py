"""Cases made of small folders that are laid out as the field's data sets are."""

import json
import runpy
from dataclasses import replace

import numpy as np
import pretty_midi
import pytest
import soundfile
import yaml

from bespoke.audio.io import read_audio
from bespoke.evaluation import benchmark
from bespoke.evaluation.datasets import Sound
from bespoke.evaluation.unaligned import Distortion
from bespoke.score.midi import Note, Part, read_score, shift, stretch, write_midi
from conftest import ROOT

RATE = 8000
SECONDS = 6.0
HIGH = tuple(Note(0.5 * index, 0.5 * index + 0.4, 72 + index % 5) for index in range(11))
LOW = tuple(Note(0.5 * index + 0.25, 0.5 * index + 0.5, 48 + index % 3) for index in range(11))
WRITTEN = 1.25  # the own scores are so much slower


def tones(notes, seconds=SECONDS):
    """Sines, `[time]`."""
    time = np.arange(round(seconds * RATE)) / RATE
    signal = np.zeros_like(time)
    for note in notes:
        inside = (time >= note.start_seconds) & (time < note.end_seconds)
        signal += inside * np.sin(2 * np.pi * 440 * 2 ** ((note.pitch - 69) / 12) * time)
    return 0.2 * signal


def write(path, *signals):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.sum(signals, axis=0), RATE, subtype="PCM_24")


def slakh(folder):
    track = folder / "babyslakh_16k" / "Track00001"
    parts = {"S00": (HIGH, 73, False), "S01": (LOW, 32, False), "S02": (LOW, 128, True)}
    stems = {
        name: {"is_drum": is_drum, "program_num": program, "inst_class": "x"}
        for name, (_, program, is_drum) in parts.items()
    }
    stems["S03"] = {"is_drum": False, "program_num": 103}  # sound effects have neither file
    (track / "MIDI").mkdir(parents=True)
    (track / "metadata.yaml").write_text(yaml.safe_dump({"stems": stems}))
    for name, (notes, program, is_drum) in parts.items():
        write(track / "stems" / f"{name}.wav", tones(notes))
        write_midi(track / "MIDI" / f"{name}.mid", [Part(name, program % 128, is_drum, notes)])
    write_midi(track / "all_src.mid", [Part("all", 73, False, HIGH)])
    write(track / "mix.wav", *(tones(notes) for notes, _, _ in parts.values()))
    return []


def urmp(folder):
    piece = folder / "Dataset" / "01_Duo_fl_vc"
    for number, code, notes in ((1, "fl", HIGH), (2, "vc", LOW)):
        write(piece / f"AuSep_{number}_{code}_01_Duo.wav", tones(notes))
        (piece / f"Notes_{number}_{code}_01_Duo.txt").write_text(
            "".join(
                f"{note.start_seconds:.3f}\t{440 * 2 ** ((note.pitch - 69) / 12):.3f}\t"
                f"{note.end_seconds - note.start_seconds:.3f}\n"
                for note in notes
            )
        )
    parts = [Part("a", 73, False, HIGH), Part("b", 42, False, LOW)]
    written = [replace(part, notes=stretch(part.notes, WRITTEN)) for part in parts]
    write_midi(piece / "Sco_01_Duo_fl_vc.mid", written)
    write(piece / "AuMix_01_Duo_fl_vc.wav", tones(HIGH), tones(LOW))
    return []


def bach10(folder):
    piece = folder / "Bach10_v1.1" / "01-Duo"
    parts = {
        "violin": HIGH,
        "clarinet": LOW,
        "saxphone": shift(HIGH, 0.1),
        "bassoon": shift(LOW, 0.1),
    }
    rows = []
    for number, (name, notes) in enumerate(parts.items(), 1):
        write(piece / f"01-Duo-{name}.wav", tones(notes))
        starts = [1000 * note.start_seconds for note in notes]
        rows += [
            f"{start:.0f}\t{WRITTEN * start:.0f}\t{note.pitch}\t{number}"
            for start, note in zip(starts, notes, strict=True)
        ]
    (piece / "01-Duo.txt").write_text("\r\n".join(rows) + "\r\n")
    written = [Part(name, 0, False, stretch(notes, WRITTEN)) for name, notes in parts.items()]
    write_midi(piece / "01-Duo.mid", written)
    write(piece / "01-Duo.wav", *(tones(notes) for notes in parts.values()))
    return []


def phenicx(folder):
    audio, notes = (folder / "PHENICX-Anechoic" / name / "duo" for name in ("audio", "annotations"))
    notes.mkdir(parents=True)
    write(audio / "flute1.wav", tones(HIGH[::2]))  # two players of a section
    write(audio / "flute2.wav", tones(HIGH[1::2]))
    write(audio / "cello.wav", tones(LOW))
    for name, part in (("flute", HIGH), ("cello", LOW)):
        for ending, played in (("", part), ("_o", stretch(part, WRITTEN))):
            (notes / f"{name}{ending}.txt").write_text(
                "".join(
                    f"{note.start_seconds:.6f},{note.end_seconds:.6f},"
                    f"{pretty_midi.note_number_to_name(note.pitch)}\n"
                    for note in played
                )
            )
    return []


def musdb18(folder):
    song = folder / "musdb18hq" / "test" / "A Duo - Of Mine"
    for name in ("bass", "vocals", "drums", "other"):
        write(song / f"{name}.wav", tones({"vocals": HIGH, "bass": LOW}.get(name, ())))
    write(song / "mixture.wav", tones(HIGH), tones(LOW))
    scores = folder / "scores" / "A Duo - Of Mine"
    scores.mkdir(parents=True)
    write_midi(scores / "vocals.mid", [Part("v", 53, False, stretch(HIGH, WRITTEN))])
    return ["--scores", str(folder / "scores")]


@pytest.fixture
def make(capsys):
    """Run scripts/make_cases.py; returns the exit code, and what it printed as errors."""
    main = runpy.run_path(str(ROOT / "scripts" / "make_cases.py"))["main"]

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, capsys.readouterr().err

    return run


def notes_of(file):
    (part,) = read_score(file)
    return part.notes


def times(notes):
    return [(note.start_seconds, note.end_seconds, note.pitch) for note in notes]


@pytest.mark.parametrize(
    ("layout", "target", "program", "others"),
    [
        (urmp, "urmp_01_Duo_fl_vc_1-fl", 73, ["2-vc"]),
        (bach10, "bach10_01-Duo_violin", 40, ["bassoon", "clarinet", "saxphone"]),
        (phenicx, "phenicx_duo_flute", 73, ["cello"]),
        (musdb18, "musdb18_A-Duo---Of-Mine_vocals", 53, []),
    ],
)
def test_a_whole_recording_has_the_data_sets_own_score(
    layout, target, program, others, make, tmp_path
):
    more = layout(tmp_path)
    code, errors = make(
        layout.__name__, tmp_path, "--out", tmp_path / "cases", "--per-song", 9, *more
    )
    assert code == 0, errors
    cases, broken = benchmark.read_cases(tmp_path / "cases")
    assert broken == {}
    assert len(cases) == 1 + len(others)  # each part is a target once
    case = next(case for case in cases if case.name == target)
    assert (case.program, case.song["name"]) == (program, target)
    assert [file.stem.removeprefix("other_") for file in case.parts] == others
    stem, rate = read_audio(case.folder / "target.flac")
    assert (rate, stem.shape) == (RATE, (1, round(SECONDS * RATE)))
    assert stem[0] == pytest.approx(tones(HIGH), abs=1e-6)
    own = stretch(notes_of(case.folder / "target.mid"), 1 / WRITTEN)
    assert times(own) == [pytest.approx(note, abs=2e-3) for note in times(HIGH)]
    if layout is musdb18:
        assert case.true_score is None
    else:
        assert times(notes_of(case.true_score)) == [
            pytest.approx(note, abs=2e-3) for note in times(HIGH)
        ]


def test_an_excerpt_is_where_the_target_plays_and_has_an_unaligned_score(make, tmp_path):
    slakh(tmp_path)
    out = tmp_path / "cases"
    command = ["slakh", tmp_path, "--out", out, "--seconds", 5, "--per-song", 9]
    assert make(*command)[0] == 0
    cases, broken = benchmark.read_cases(out)
    assert (broken, [case.name for case in cases]) == (
        {},
        ["slakh_Track00001_S00", "slakh_Track00001_S01"],
    )
    case = cases[0]
    assert [file.name for file in case.parts] == ["other_S01.mid"]  # drums have no pitches
    mix, target = (read_audio(case.folder / name)[0][0] for name in ("mix.flac", "target.flac"))
    low, high = tones(LOW)[: 5 * RATE], tones(HIGH)[: 5 * RATE]
    assert target == pytest.approx(high, abs=1e-6)
    assert mix == pytest.approx(high + 2 * low, abs=1e-6)
    meta = json.loads((case.folder / "meta.json").read_text())
    assert (meta["mix"], meta["licence"]) == ("the data set's", "CC BY 4.0")
    assert 0.75 <= meta["score"]["tempo_factor"] <= 1.35
    true, given = (notes_of(case.folder / name) for name in ("target_aligned.mid", "target.mid"))
    assert times(true) == [pytest.approx(note, abs=2e-3) for note in times(HIGH[:10])]
    assert times(given) != times(true)
    # The same command makes nothing anew, and elsewhere the same.
    before = (case.folder / "target.mid").stat().st_mtime_ns
    assert make(*command)[0] == 0
    assert (case.folder / "target.mid").stat().st_mtime_ns == before
    assert make("slakh", tmp_path, "--out", tmp_path / "again", "--seconds", 5)[0] == 0
    (again,), _ = benchmark.read_cases(tmp_path / "again")
    assert times(notes_of(again.folder / "target.mid")) == times(
        notes_of(out / again.name / "target.mid")
    )


def test_a_mix_that_its_stems_do_not_make_is_replaced_by_their_sum(make, tmp_path):
    urmp(tmp_path)
    (mix,) = tmp_path.rglob("AuMix_*.wav")
    write(mix, 0.5 * tones(HIGH))
    assert make("urmp", tmp_path, "--out", tmp_path / "cases")[0] == 0
    (case,), _ = benchmark.read_cases(tmp_path / "cases")
    assert json.loads((case.folder / "meta.json").read_text())["mix"] == "sum of the stems"
    assert read_audio(case.folder / "mix.flac")[0][0] == pytest.approx(
        tones(HIGH) + tones(LOW), abs=1e-6
    )


def test_scores_that_are_in_time_may_be_cut(make, tmp_path):
    more = musdb18(tmp_path)
    command = ["musdb18", tmp_path, "--out", tmp_path / "cases", *more, "--seconds", 4]
    code, errors = make(*command)
    assert (code, "are not in time" in errors) == (2, True)
    (score,) = (tmp_path / "scores").rglob("*.mid")
    write_midi(score, [Part("v", 53, False, HIGH)])
    assert make(*command, "--in-time")[0] == 0
    (case,), _ = benchmark.read_cases(tmp_path / "cases")
    assert read_audio(case.folder / "mix.flac")[0].shape == (1, 4 * RATE)
    assert case.true_score is not None


def test_what_cannot_be_read_is_named_and_passed_over(make, tmp_path):
    urmp(tmp_path)
    other = tmp_path / "Dataset" / "02_Solo_fl"
    write(other / "AuMix_02_Solo_fl.wav", tones(HIGH))
    write(other / "AuSep_1_fl_02_Solo.wav", tones(HIGH))
    code, errors = make("urmp", tmp_path, "--out", tmp_path / "cases")
    assert (code, "Notes_1_fl_02_Solo.txt" in errors) == (2, True)
    assert "1 cases of 2 recordings" in errors
    code, errors = make("slakh", tmp_path / "Dataset", "--out", tmp_path / "cases")
    assert (code, "no recording of slakh" in errors) == (2, True)
    code, errors = make("musdb18", tmp_path, "--out", tmp_path / "cases")
    assert (code, "--scores" in errors) == (2, True)


def test_a_stream_of_a_file_of_stems_is_read(tmp_path):
    import av

    path = tmp_path / "song.stem.mp4"
    with av.open(str(path), "w", format="mp4") as container:
        streams = [container.add_stream("aac", rate=44100, layout="mono") for _ in range(2)]
        for stream, hz in zip(streams, (440, 1320), strict=True):
            tone = np.sin(2 * np.pi * hz * np.arange(44100) / 44100).astype(np.float32)[None]
            for start in range(0, 43008, 1024):
                block = np.ascontiguousarray(tone[:, start : start + 1024])
                frame = av.AudioFrame.from_ndarray(block, "fltp", "mono")
                frame.sample_rate, frame.pts = 44100, start
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    for stream, hz in enumerate((440, 1320)):
        sound = Sound((path,), stream)
        waveform = sound.read(0.25, 0.5)
        assert (sound.sample_rate, waveform.shape) == (44100, (1, 22050))
        assert np.argmax(abs(np.fft.rfft(waveform[0]))) / 0.5 == pytest.approx(hz, abs=2)


BEATS = (0.0, 0.5)
PLAIN = Distortion(1.0, ((0.0, 8.0, 0.0),), None, False, 0)


def test_a_score_on_the_grid_is_written_as_it_is():
    part = tuple(replace(note, end_seconds=note.start_seconds + 0.5) for note in HIGH)
    (target, other), facts = PLAIN.apply([shift(part, 2.0), shift(LOW, 2.0)], BEATS)
    assert times(target) == [pytest.approx(note) for note in times(part)]  # the lead-in is dropped
    assert times(other)[0] == pytest.approx((0.25, 0.5, 48))
    assert (facts["written_bpm"], facts["wrong_missing_extra"]) == (120.0, [0, 0, 0])
    # Late by a tenth of a second is on the next sixteenth but one; no note is shorter than one.
    (late,), _ = PLAIN.apply([(part[0], Note(0.6, 0.61, 60))], BEATS)
    assert times(late)[1] == pytest.approx((0.625, 0.75, 60))


def test_the_tempo_is_changed_and_drifts_smoothly():
    notes = tuple(Note(0.5 * index, 0.5 * index + 0.5, 60) for index in range(200))
    (fast,), _ = replace(PLAIN, tempo_factor=1.25).apply([notes], BEATS)
    assert fast[100].start_seconds == pytest.approx(50 / 1.25)
    (later,), _ = replace(PLAIN, start_seconds=3.0).apply([shift(notes, 1.0)], BEATS)
    assert later[0].start_seconds == pytest.approx(4.0)
    drifting = replace(PLAIN, drift=((1.0, 40.0, 0.0),))
    (found,), _ = drifting.apply([notes], BEATS)
    steps = np.diff([note.start_seconds for note in found])
    assert (steps.min(), steps.max()) == (
        pytest.approx(0.5 / 1.04, rel=1e-3),
        pytest.approx(0.5 / 0.96, rel=1e-3),
    )
    assert abs(np.diff(steps)).max() < 0.005


def test_a_score_has_as_many_errors_as_it_says():
    notes = tuple(Note(0.5 * index, 0.5 * index + 0.25, 20 + index) for index in range(100))
    (found, other), facts = replace(PLAIN, has_errors=True).apply([notes, notes], BEATS)
    assert facts["wrong_missing_extra"] == [3, 3, 3]
    assert len(found) == 100
    places = {(note.pitch, round(note.start_seconds, 3)) for note in notes}
    right = places & {(note.pitch, round(note.start_seconds, 3)) for note in found}
    assert len(right) == 94  # but those that are wrong and those that are missing
    assert times(other) == [pytest.approx(note) for note in times(notes)]  # the others have none


def test_what_is_drawn_is_as_that_of_the_cases_that_ship():
    drawn = [Distortion.sample(seed) for seed in range(300)]
    factors = [one.tempo_factor for one in drawn]
    assert 0.75 <= min(factors) < 0.78 < 1.3 < max(factors) <= 1.35
    assert np.mean([one.has_errors for one in drawn]) == pytest.approx(1 / 3, abs=0.1)
    assert np.mean([one.start_seconds is None for one in drawn]) == pytest.approx(0.5, abs=0.1)
    assert drawn[7] == Distortion.sample(7) != drawn[8]
