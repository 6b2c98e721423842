"""The song config: excerpt, patches, other parts, paths and reference, and its errors."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bespoke.audio.io import read_audio, write_wav
from bespoke.data import song as song_module
from bespoke.data.song import Song
from bespoke.score.midi import Note, Part, read_score, write_midi
from bespoke.score.synth import DRUM_BANK, SoundFont, render
from bespoke.utils.errors import BespokeError
from bespoke.utils.files import file_hash

RATE = 22050  # of the tiny song
BAND = [
    Part("Lead", 81, False, (Note(0.2, 0.9, 72), Note(1.0, 1.8, 76))),
    Part("Bass", 33, False, (Note(0.0, 2.0, 40),)),
    Part("Kit", 0, True, (Note(0.0, 0.1, 36), Note(1.0, 1.1, 38))),
]


@pytest.fixture
def config(tiny_song):
    """The tiny song's config, to be changed."""
    return {"mixture": str(tiny_song.mixture), "target": {"score": str(tiny_song.score)}}


@pytest.fixture
def band(config, tmp_path):
    """The same recording with a score of three parts."""
    write_midi(tmp_path / "band.mid", BAND)
    return {**config, "target": {"score": str(tmp_path / "band.mid"), "instrument": "lead"}}


def programs(voice):
    return [(patch.bank, patch.program) for patch in voice.patches]


def test_song_holds_what_its_files_hold(config, tiny_song):
    song = Song.load({**config, "name": "tiny", "reference": str(tiny_song.reference)})
    assert np.array_equal(song.mixture, read_audio(tiny_song.mixture)[0])
    assert np.array_equal(song.reference, read_audio(tiny_song.reference)[0])
    assert song.target.part == read_score(tiny_song.score)[0]
    assert (song.name, song.sample_rate, song.others, song.is_standin) == ("tiny", RATE, (), False)
    files = {
        "mixture": tiny_song.mixture,
        "reference": tiny_song.reference,
        "score": tiny_song.score,
    }
    assert song.hashes == {role: file_hash(path) for role, path in files.items()}


def test_excerpt_cuts_recording_and_reference_alike(config, tiny_song):
    whole = Song.load({**config, "reference": str(tiny_song.reference)})
    part = Song.load({**config, "reference": str(tiny_song.reference), "excerpt": [0.5, 1.5]})
    middle = slice(RATE // 2, RATE // 2 + RATE)
    assert np.array_equal(part.mixture, whole.mixture[:, middle])
    assert np.array_equal(part.reference, whole.reference[:, middle])
    assert (
        part.target == whole.target
    )  # the score is unaligned: an excerpt of the recording doesn't shorten it
    assert Song.load({**config, "excerpt": [2.5, 99]}).mixture.shape == (
        1,
        whole.mixture.shape[-1] - round(2.5 * RATE),
    )


@pytest.mark.parametrize(
    "excerpt",
    [
        5,
        "1-2",
        [1],
        [1, 2, 3],
        ["a", "b"],
        [2, 1],
        [-1, 2],
        [3.5, 4],
        [0, float("nan")],
        [0, float("inf")],
    ],
)
def test_excerpt_that_is_none_is_refused(config, excerpt):
    with pytest.raises(BespokeError, match=r"song\.excerpt .*give \[start, end\]"):
        Song.load({**config, "excerpt": excerpt})


def test_silent_excerpt_is_refused(config, tmp_path):
    waveform = np.zeros((1, 2 * RATE), np.float32)
    waveform[:, RATE:] = 0.1
    write_wav(tmp_path / "late.wav", waveform, RATE)
    write_wav(tmp_path / "early.wav", waveform[:, ::-1], RATE)
    late, early = str(tmp_path / "late.wav"), str(tmp_path / "early.wav")
    with pytest.raises(BespokeError, match=r"recording is silent in song\.excerpt"):
        Song.load({**config, "mixture": late, "excerpt": [0, 1]})
    with pytest.raises(BespokeError, match=r"reference is silent in song\.excerpt"):
        Song.load({**config, "mixture": late, "reference": early, "excerpt": [1, 2]})


@pytest.mark.parametrize(
    ("patches", "expected"),
    [
        (None, [(0, 80)]),  # the score's own
        (56, [(0, 56)]),
        ([29, "30"], [(0, 29), (0, 30)]),
        (["Violin", "overdriven guitar"], [(0, 40), (0, 29)]),
        ({"program": 40}, [(0, 40)]),
        ([{"program": "Trumpet", "bank": 0}, 3], [(0, 56), (0, 3)]),
        ([{"program": 16, "bank": DRUM_BANK}], [(DRUM_BANK, 16)]),
    ],
)
def test_patches_by_number_name_and_bank(config, patches, expected):
    config["target"]["patches"] = patches
    assert programs(Song.load(config).target) == expected


def test_every_patch_comes_from_every_soundfont(config, tmp_path):
    default, other = SoundFont.find().path, tmp_path / "other.sf2"
    shutil.copy(default, other)
    config["target"] |= {
        "patches": [80, {"program": 81}, {"program": 82, "soundfont": str(other)}],
        "soundfonts": [str(default), str(other)],
    }
    patches = Song.load(config).target.patches
    assert [(patch.program, patch.soundfont.path) for patch in patches] == [
        (80, default),
        (80, other),
        (81, default),
        (82, other),
    ]


@pytest.mark.parametrize(
    ("patches", "complaint"),
    [
        ([128], "128 is not a General MIDI program: give a number from 0 to 127"),
        ([-1], "-1 is not a General MIDI program"),
        ([1.5], r"1\.5 is not a General MIDI program"),
        ([True], "True is not a General MIDI program"),
        (["Kazoo"], "'Kazoo' is not a General MIDI instrument: give a program"),
        ([{"bank": 0}], "a patch is a number or {soundfont, bank, program}"),
        ([{"program": 0, "pan": 1}], "a patch is a number or {soundfont, bank, program}"),
        ([{"program": 0, "bank": "x"}], "bank 'x' is not a number"),
    ],
)
def test_patch_that_is_none_is_refused(config, patches, complaint):
    config["target"]["patches"] = patches
    with pytest.raises(BespokeError, match=rf"song\.target\.patches: {complaint}"):
        Song.load(config)


@pytest.mark.parametrize("instrument", ["lead", "kit"])
def test_auto_of_before_is_the_scores_own_patch_and_says_so(band, caplog, instrument):
    band["target"] |= {"patches": "auto", "equalize": False, "instrument": instrument}
    song = Song.load(band)
    assert programs(song.target) == [(0, 81) if instrument == "lead" else (DRUM_BANK, 0)]
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("song.target.patches=auto is no longer a choice: program")


def test_patch_missing_in_the_soundfont_is_refused(config):
    config["target"]["patches"] = [{"program": 5, "bank": 3}]
    with pytest.raises(BespokeError, match=r"TimGM6mb\.sf2 has no patch 5 in bank 3: choose"):
        Song.load(config)


def test_drums_are_played_by_their_kit(band):
    band["target"]["instrument"] = "drums"
    assert programs(Song.load(band).target) == [(DRUM_BANK, 0)]


def test_rest_is_all_other_parts_with_two_patches_each(band):
    song = Song.load({**band, "others": "rest"})
    assert [voice.part.name for voice in song.others] == ["Bass", "Kit"]
    assert [programs(voice) for voice in song.others] == [
        [(0, 33), (0, 32)],
        [(DRUM_BANK, 0), (DRUM_BANK, 16)],
    ]


def test_auto_is_all_other_pitched_parts_or_none(band, config, tiny_song):
    song = Song.load({**band, "others": "auto"})
    assert [voice.part.name for voice in song.others] == ["Bass"]
    assert Song.load({**config, "others": "auto"}).others == ()
    audio = {**config, "target": {"audio": str(tiny_song.reference)}, "others": "auto"}
    assert Song.load(audio).others == ()


def test_opposite_channels_are_heard_in_their_difference(config, tmp_path):
    waveform, rate = read_audio(config["mixture"])
    write_wav(tmp_path / "opposite.wav", np.concatenate([waveform, -waveform]), rate)
    song = Song.load({**config, "mixture": str(tmp_path / "opposite.wav"), "reference": None})
    assert song.view == (0.5, -0.5)
    assert song.render_mixture(rate) == pytest.approx(waveform, abs=1e-6)
    assert Song.load(config).view is None


def test_others_as_a_list(band, tiny_song):
    others = [{"instrument": "bass", "patches": [38, 39]}, {"score": str(tiny_song.score)}]
    song = Song.load({**band, "others": others})
    assert [(voice.part.name, programs(voice)) for voice in song.others] == [
        ("Bass", [(0, 38), (0, 39)]),
        ("Part 0", [(0, 80)]),
    ]
    assert song.hashes["other 1"] == file_hash(tiny_song.score)


@pytest.mark.parametrize(
    ("others", "complaint"),
    [
        ("all", "must be auto, rest, null or a list"),
        ([3], r"song\.others\[0\] must be of the form"),
        ([{"instrument": "bass", "pan": 1}], r"song\.others\[0\] must be of the form"),
        (
            [{"instrument": "bass"}, {"instrument": "horn"}],
            r"no instrument 'horn'; set song\.others\[1\]\.instrument .*1: Bass \(",
        ),
        ([{"score": "nosuch.mid"}], r"nosuch\.mid does not exist"),
        ([{"instrument": "bass", "patches": [200]}], r"song\.others\[0\]\.patches: 200"),
    ],
)
def test_others_that_are_none_are_refused(band, others, complaint):
    with pytest.raises(BespokeError, match=complaint):
        Song.load({**band, "others": others})


def test_rest_of_nothing_is_refused(config, tiny_song):
    with pytest.raises(BespokeError, match="has only the target"):
        Song.load({**config, "others": "rest"})
    with pytest.raises(BespokeError, match="without a score, list each"):
        Song.load({**config, "target": {"audio": str(tiny_song.reference)}, "others": "rest"})


def test_renders_of_all_patches_have_one_length(config):
    config["target"]["patches"] = [0, 81, 14]
    song = Song.load(config)
    renders = song.render_target(16000)
    assert len({waveform.shape for waveform in renders}) == 1
    for waveform, patch in zip(renders, song.target.patches, strict=True):
        alone = render(song.target.part.notes, patch, 16000)
        assert np.array_equal(waveform[:, : alone.shape[-1]], alone)
        assert not waveform[:, alone.shape[-1] :].any()


def test_patch_that_cannot_play_the_notes_is_refused(config, tmp_path):
    write_midi(
        tmp_path / "high.mid", [Part("Kit", 0, True, (Note(0, 0.5, 1),))]
    )  # no drum is there
    song = Song.load({**config, "target": {"score": str(tmp_path / "high.mid")}})
    with pytest.raises(
        BespokeError,
        match=r"Patch 0 of TimGM6mb\.sf2 is silent for the notes of Kit: choose another",
    ):
        song.render_target(16000)


def test_rendered_target_needs_no_score_and_no_fluidsynth(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fluidsynth", None)
    left = np.linspace(-0.5, 0.5, 4000, dtype=np.float32)
    write_wav(tmp_path / "daw.wav", np.stack([left, 3 * left]), 16000)
    song = Song.load({**config, "target": {"audio": str(tmp_path / "daw.wav")}})
    assert (song.target, "score" in song.hashes) == (None, False)
    [waveform] = song.render_target(16000)
    assert waveform == pytest.approx(2 * left[None], abs=1e-6)  # the channel mean
    assert song.render_target(8000)[0].shape == (1, 2000)


def test_exactly_one_of_score_and_audio(config, tiny_song):
    both = {"score": str(tiny_song.score), "audio": str(tiny_song.reference)}
    for target in (both, {}, {"score": None, "audio": None}):
        with pytest.raises(
            BespokeError, match=r"exactly one of song\.target\.score .* and song\.target\.audio"
        ):
            Song.load({**config, "target": target})


def test_mono_reference_of_a_stereo_recording_stands_for_both_channels(make_song, tmp_path):
    stereo = make_song(tmp_path, channels=2)
    mono = read_audio(stereo.reference)[0][:1]
    write_wav(tmp_path / "mono.wav", mono, RATE)
    config = {"mixture": stereo.mixture, "target": {"score": stereo.score}}
    song = Song.load({**config, "reference": tmp_path / "mono.wav"})
    assert song.mixture.shape == song.reference.shape == (2, 3 * RATE)
    assert np.array_equal(song.reference, np.concatenate([mono, mono]))
    assert np.array_equal(song.render_mixture(RATE), song.mixture.mean(axis=0, keepdims=True))


def test_mono_reference_is_held_as_its_long_stereo_recording(make_song, tmp_path, monkeypatch):
    stereo = make_song(tmp_path, channels=2)
    write_wav(tmp_path / "mono.wav", read_audio(stereo.reference)[0][:1], RATE)
    monkeypatch.setattr("bespoke.data.song.MAX_HELD_VALUES", 4 * RATE)  # between the two
    config = {
        "mixture": stereo.mixture,
        "target": {"score": stereo.score},
        "reference": tmp_path / "mono.wav",
    }
    song = Song.load(config, working_rate=16000)
    assert song.sample_rate == 16000
    assert song.mixture.shape == song.reference.shape == (1, 3 * 16000)


def test_reference_that_does_not_fit_is_refused(config, tiny_song, tmp_path):
    waveform, _ = read_audio(tiny_song.reference)
    for name, samples, rate in (
        ("short.wav", waveform[:, 1:], RATE),
        ("rate.wav", waveform, 2 * RATE),
        ("stereo.wav", waveform.repeat(2, 0), RATE),
    ):
        write_wav(tmp_path / name, samples, rate)
        with pytest.raises(BespokeError, match=rf"The reference .*{name} .*export both"):
            Song.load({**config, "reference": str(tmp_path / name)})


def test_paths_start_where_the_command_started(tiny_song, monkeypatch):
    monkeypatch.chdir(tiny_song.folder)
    song = Song.load({"mixture": "mix.wav", "target": {"score": "target.mid"}})
    assert song.hashes == {
        "mixture": file_hash(tiny_song.mixture),
        "score": file_hash(tiny_song.score),
    }


def test_paths_fall_back_to_the_project(tmp_path, monkeypatch):
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (project, elsewhere):
        (folder / "data").mkdir(parents=True)
    monkeypatch.setattr(song_module, "ROOT", project)
    monkeypatch.chdir(elsewhere)
    (project / "data" / "song.wav").write_text("shipped")
    assert song_module.locate("data/song.wav") == project / "data" / "song.wav"
    assert song_module.locate("data/nosuch.wav") == Path(
        "data/nosuch.wav"
    )  # as it was written, for the message
    (elsewhere / "data" / "song.wav").write_text("own")
    assert song_module.locate("data/song.wav").read_text() == "own"


def test_name_that_looks_like_a_number_is_a_path(tiny_song, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_song.mixture, tmp_path / "1999")
    assert (
        Song.load({"mixture": 1999, "target": {"score": str(tiny_song.score)}}).sample_rate == RATE
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"mixture": None}, r"needs a recording: set song\.mixture"),
        ({"mixture": "???"}, r"needs a recording: set song\.mixture"),
        ({"target": None}, r"needs a target: set song\.target\.score"),
        ({"tempo": 120}, "song has no key 'tempo': it knows .*excerpt.*reference"),
        (
            {"target": {"score": "a.mid", "patch": 3}},
            r"song\.target has no key 'patch': it knows .*patches",
        ),
    ],
)
def test_keys_are_checked(config, change, complaint):
    with pytest.raises(BespokeError, match=complaint):
        Song.load({**config, **change})


@pytest.fixture
def unshipped(tiny_song, tmp_path, monkeypatch):
    """The config of a song that may not be shipped, with a stand-in."""
    monkeypatch.chdir(tmp_path)
    folder = "data/songs/theirs"
    (tmp_path / folder).mkdir(parents=True)
    files = {"mixture": str(tiny_song.mixture), "score": str(tiny_song.score)}
    return {
        "name": "theirs",
        "mixture": f"{folder}/mix.wav",
        "target": {"score": f"{folder}/target.mid", "patches": [80]},
        "reference": f"{folder}/target.wav",
        "standin": {"replaces": folder, **files, "reference": str(tiny_song.reference)},
    }


def test_stand_in_is_used_where_there_is_neither_recording_nor_score(unshipped, tiny_song):
    song = Song.load(unshipped)
    assert song.is_standin
    assert song.hashes["mixture"] == file_hash(tiny_song.mixture)
    assert np.array_equal(song.reference, read_audio(tiny_song.reference)[0])


@pytest.mark.parametrize("names", [("mix.flac", "score.mid"), ("mix.wav", "target.mid")])
def test_own_recording_is_used_in_place_of_the_stand_in(unshipped, tmp_path, names):
    folder = tmp_path / "data" / "songs" / "theirs"
    noise = np.random.default_rng(1).normal(0, 0.1, (2, RATE)).astype(np.float32)
    soundfile.write(folder / names[0], noise.T, RATE)
    write_midi(folder / names[1], BAND[:1])
    song = Song.load(unshipped)
    assert not song.is_standin
    assert (song.mixture.shape, song.reference) == ((2, RATE), None)
    assert song.target.part == read_score(folder / names[1])[0]
    assert song.hashes["mixture"] == file_hash(folder / names[0])


@pytest.mark.parametrize(
    ("name", "missing"), [("target.mid", "theirs/mix.wav"), ("mix.wav", "theirs/target.mid")]
)
def test_half_of_an_own_song_is_an_error_that_names_the_other_half(
    unshipped, tiny_song, tmp_path, name, missing
):
    source = tiny_song.score if name.endswith("mid") else tiny_song.mixture
    shutil.copy(source, tmp_path / "data" / "songs" / "theirs" / name)
    with pytest.raises(BespokeError, match=f"{missing} does not exist"):
        Song.load(unshipped)


@pytest.mark.parametrize("standin", ["take_on_me", {"mixture": "a.wav", "score": "a.mid"}])
def test_stand_in_that_lacks_something_is_an_error_that_says_what_is_wanted(unshipped, standin):
    with pytest.raises(BespokeError, match=r"song\.standin.*replaces, mixture, score"):
        Song.load({**unshipped, "standin": standin})
