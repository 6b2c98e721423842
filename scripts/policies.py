"""Write docs/POLICIES.md, the reference of augmentation policies, from the code.

python scripts/policies.py              # the page, from the code and the costs in docs/policies
python scripts/policies.py --measure    # pictures and costs too, of the effects that run here
"""

import argparse
import base64
import contextlib
import csv
import importlib.metadata
import inspect
import io
import re
import string
import tempfile
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import audiomentations
import numpy as np
from PIL import Image

from bespoke.audio.io import open_audio, write_wav
from bespoke.cli.train import compose
from bespoke.data import augment
from bespoke.data.augment import CompressorParams, DecayingNoiseReverb, Effect, Policy
from bespoke.data.mixer import mix
from bespoke.evaluation.report import media
from bespoke.training.build import make
from bespoke.utils.errors import BespokeError

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "POLICIES.md"
FOLDER = ROOT / "docs" / "policies"
COSTS = FOLDER / "costs.csv"
POLICIES = ("none", "universal", "gains", "paper", "matched", "light", "heavy")
RATE = 22050
SECONDS = 10.0
LEFT_OUT = {"Lambda", "Compose"}  # a function is no value of a config; a policy is a Compose
CHOOSERS = {"OneOf", "SomeOf"}
LEVELS = {"Gain", "Normalize", "LoudnessNormalization"}
EXTRAS = {  # the packages of audiomentations[extras]
    "Limiter": "numpy-audio-limiter",
    "LoudnessNormalization": "loudness",
    "Mp3Compression": "fast-mp3-augment",
    "RoomSimulator": "pyroomacoustics",
}
FILES = {"AddBackgroundNoise": "sounds_path", "AddShortNoises": "sounds_path"}
FILES |= {"ApplyImpulseResponse": "ir_path"}
# What audiomentations itself says nothing about, or less than is needed here.
SAYS = {
    "AddBackgroundNoise": "Adds a piece of a file of yours.",
    "AddColorNoise": "Adds noise that falls or rises towards high frequencies.",
    "AddGaussianNoise": "Adds white noise of a level of its own.",
    "AddGaussianSNR": "Adds white noise at a level below the sound's.",
    "AddShortNoises": "Adds files of yours at several places, with pauses between.",
    "AirAbsorption": "Takes away high frequencies as air does over a distance.",
    "ApplyImpulseResponse": "The reverberation of a recorded impulse response.",
    "ClippingDistortion": "Cuts off the peaks of a share of the samples.",
    "HighShelfFilter": "Raises or lowers what is above a frequency.",
    "LowShelfFilter": "Raises or lowers what is below a frequency.",
    "Mp3Compression": "Encodes as MP3 at a low bit rate, and decodes.",
    "Padding": "Replaces the start or the end by silence.",
    "PeakingFilter": "Raises or lowers a band.",
    "Shift": "Moves the sound in time.",
    "AdjustDuration": "Cuts the sound, or pads it; what is shorter than the mix is filled up.",
    "Aliasing": "Resamples to a lower rate without a filter: high sounds come back as low ones.",
    "BitCrush": "Fewer bits a sample.",
    "Clip": "Cuts off what is beyond two fixed values.",
    "Gain": "Louder or softer.",
    "GainTransition": "Louder or softer, gradually.",
    "Limiter": "Holds the peaks below a threshold.",
    "LoudnessNormalization": "Sets the loudness.",
    "LowPassFilter": "Takes away what is above a cutoff frequency.",
    "HighPassFilter": "Takes away what is below a cutoff frequency.",
    "BandPassFilter": "Takes away what is outside of a band.",
    "BandStopFilter": "Takes away what is inside of a band.",
    "Normalize": "Sets the peak to 1.",
    "PitchShift": "Higher or lower, with the same timing.",
    "PolarityInversion": "Turns the waveform upside down.",
    "RepeatPart": "Repeats a part of the sound several times.",
    "Resample": "Resamples: the sound becomes higher or lower, and shorter or longer.",
    "Reverse": "Plays it backwards.",
    "RoomSimulator": "The reverberation of a box-shaped room that is drawn.",
    "SevenBandParametricEQ": "An equalizer with seven bands, each with a gain of its own.",
    "TanhDistortion": "Distorts with a hyperbolic tangent, as an overdriven amplifier does.",
    "TimeMask": "Silences a part.",
    "TimeStretch": "Faster or slower, at the same pitch.",
    "Trim": "Takes away silence at both ends.",
}


def effects() -> dict[str, type]:
    """All effects that a policy can name, by class name."""
    found = {
        name: kind
        for name, kind in vars(audiomentations).items()
        if inspect.isclass(kind) and name not in LEFT_OUT | CHOOSERS and "p" in _settings(kind)
    }
    return dict(sorted({**found, "DecayingNoiseReverb": DecayingNoiseReverb}.items()))


def page(costs: Mapping[str, float]) -> str:
    """The text of docs/POLICIES.md.

    Args:
        costs: milliseconds a second of a mix, of effects and, as `aug=NAME`, of policies.
    """
    kinds = effects()
    sections = "\n\n".join(_section(name, kind, costs) for name, kind in kinds.items())
    table = "\n".join(_line(name, kind, costs) for name, kind in kinds.items())
    template = string.Template((FOLDER / "template.md").read_text(encoding="utf-8"))
    text = template.substitute(
        keys=_keys(),
        policies="\n".join(_policy_line(name, costs) for name in POLICIES),
        count=len(kinds),
        effects=table,
        sections=sections,
        linear=_names(augment.LINEAR),
        noise=_names(augment.NOISE),
        moving=_names(augment.MOVES_TIME - augment.STRETCHES),
        levels=_names(LEVELS),
        version=importlib.metadata.version("audiomentations"),
    )
    return _wrapped(text)


def _wrapped(text: str) -> str:
    """Markdown with its prose wrapped at 100 characters."""
    lines: list[str] = []
    prose: list[str] = []
    is_code = False

    def flush() -> None:
        if prose:
            indent = "  " if prose[0].startswith("- ") else ""
            words = " ".join(line.strip() for line in prose)
            lines.extend(
                textwrap.wrap(
                    words,
                    100,
                    subsequent_indent=indent,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )
            prose.clear()

    for line in text.splitlines():
        is_fence = line.strip().startswith("```")
        if is_code or is_fence or not line or re.match(r"\||#|!\[|    ", line):
            flush()
            lines.append(line)
        else:
            if line.startswith("- "):
                flush()
            prose.append(line)
        is_code ^= is_fence
    flush()
    return "\n".join(lines) + "\n"


def _names(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _keys() -> str:
    """A row for each key of a policy: default, range, and what it does to the label."""
    defaults = inspect.signature(Policy).parameters
    gain = f"two numbers from {-augment.MAX_GAIN_DB} to {augment.MAX_GAIN_DB}, the lower first"
    rows = [
        ("target_gain_db", list(defaults["target_gain_db"].default), gain, "as loud as drawn"),
        ("background_gain_db", list(defaults["background_gain_db"].default), gain, "unchanged"),
        ("compressor", "null", "null, or the keys below", "with its gain, if `data.label=wet`"),
        (
            "compressor.ratios",
            "needed",
            f"a list of numbers from {augment.RATIOS[0]:g}, of which one is drawn",
            "",
        ),
    ]
    for name, (lowest, highest) in augment.COMPRESSOR_RANGES.items():
        default = getattr(CompressorParams(1.0), name)
        rows.append((f"compressor.{name}", default, f"from {lowest} to {highest}", ""))
    rows += [
        ("target", "{}", "effects by name", "changed by them all"),
        ("background", "{}", "effects by name", "unchanged"),
        ("mix", "{}", "effects by name: linear ones and noise", "linear: changed; noise: not"),
    ]
    return "\n".join(
        f"| `{key}` | `{default}` | {allowed} | {label or '–'} |"
        for key, default, allowed, label in rows
    )


def _policy_line(name: str, costs: Mapping[str, float]) -> str:
    cfg = compose([f"aug={name}"]).aug
    parts = [
        f"{role}: {', '.join(cfg[role])}" for role in ("target", "background", "mix") if cfg[role]
    ]
    gains = f"{list(cfg.target_gain_db)}, {list(cfg.background_gain_db)}"
    compressor = list(cfg.compressor.ratios) if cfg.compressor else "–"
    cost = _ms(costs.get(f"aug={name}"))
    return f"| `{name}` | {gains} | {compressor} | {'; '.join(parts) or '–'} | {cost} |"


def _ms(cost: float | None) -> str:
    return "–" if cost is None else f"{cost:.1f}" if cost >= 0.95 else f"{cost:.2f}"


def _line(name: str, kind: type, costs: Mapping[str, float]) -> str:
    label = _on_mix(name)
    return (
        f"| [{name}](#{name.lower()}) | {_summary(name, kind)} | {label} | {_ms(costs.get(name))} |"
    )


def _on_mix(name: str) -> str:
    if name in augment.LINEAR:
        return "linear"
    return "noise" if name in augment.NOISE else "–"


def _section(name: str, kind: type, costs: Mapping[str, float]) -> str:
    module = "bespoke.data.augment" if kind is DecayingNoiseReverb else "audiomentations"
    lines = [f"### {name}", "", _summary(name, kind)]
    picture = FOLDER / f"{name}.webp"
    if picture.is_file():
        lines += ["", f"![A melody without and with {name}](policies/{picture.name})"]
    lines += ["", f"`_target_: {module}.{name}`. {_label(name)}"]
    if name in EXTRAS:
        lines += ["", f"It needs a package of its own: `pip install {EXTRAS[name]}`."]
    if costs.get(name) is not None:
        lines += [
            "",
            f"It takes {_ms(costs[name])} ms for a second of a mix to which it is applied.",
        ]
    lines += ["", "| setting | default | range | |", "| --- | --- | --- | --- |", *_rows(kind)]
    return "\n".join(lines)


def _label(name: str) -> str:
    """What an effect does to the label, in words."""
    if name in augment.NOISE:
        return (
            "On the mix it joins the background, and the label stays; on the target the noise is"
            " part of the label."
        )
    said = "On the target it changes the label too."
    if name in augment.LINEAR:
        said += " On the mix it changes target, and so the label, and background alike."
    else:
        said += " It cannot be on the mix."
    if name in augment.STRETCHES:
        said += " The notes that `recipe=auto` tells the network follow it."
    elif name in augment.MOVES_TIME:
        said += (
            " It moves the target away from the notes that `recipe=auto` tells the network: only on"
            " the background there."
        )
    if name in LEVELS:
        said += " Levels are restored after it, so that alone it changes nothing."
    return said


def _summary(name: str, kind: type) -> str:
    if name in SAYS:
        return SAYS[name]
    text = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
    sentence = re.split(r"(?<=[.!?])\s|\n\n", text)[0].replace("\n", " ").strip()
    return sentence if sentence.endswith(".") else f"{sentence}."


def _settings(kind: type) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }


def _rows(kind: type) -> list[str]:
    """A row for each setting, and one for a lower and an upper end together."""
    settings, says = _settings(kind), _described(kind)
    rows = []
    for name, parameter in settings.items():
        if name in ("p", "lru_cache_size") or "Callable" in str(parameter.annotation):
            continue
        names = [name]
        if name.startswith("min_") and f"max_{name[4:]}" in settings:
            names.append(f"max_{name[4:]}")
        elif name.startswith("max_") and f"min_{name[4:]}" in settings:
            continue
        text = says.get(name) or says.get(names[-1], "")
        if text.startswith("Deprecated"):
            continue
        defaults = [_value(settings[each].default) for each in names]
        keys = ", ".join(f"`{each}`" for each in names)
        rows.append(f"| {keys} | {'; '.join(defaults)} | {_limits(kind, names)} | {text} |")
    share = _value(settings["p"].default)
    return [*rows, f"| `p` | {share} | from 0 to 1 | share of the mixes that have it |"]


def _limits(kind: type, names: list[str]) -> str:
    """What the class says when a number is far too low or too high."""
    settings, said = _settings(kind), []
    needed = {
        name: "."
        for name, parameter in settings.items()
        if parameter.default is parameter.empty and name not in names
    }
    for name, extreme in ((names[0], -(10**9)), (names[-1], 10**9)):
        default = settings[name].default
        if isinstance(default, bool) or not isinstance(default, int | float):
            continue
        try:
            kind(**needed, **{name: type(default)(extreme)})
        except (AssertionError, ValueError) as error:
            words = " ".join(str(error).split())
            if words and "greater than max" not in words and "less than min" not in words:
                said.append(words.rstrip(".").replace("|", "\\|"))
        except Exception:
            continue
    return "; ".join(dict.fromkeys(said))


def _value(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "needed"
    if value is None or isinstance(value, bool):
        return f"`{str(value).lower() if isinstance(value, bool) else 'null'}`"
    return f"`{value:.5g}`" if isinstance(value, float) else f"`{value}`"


def _described(kind: type) -> dict[str, str]:
    """What audiomentations says of each setting, on one line."""
    text = inspect.cleandoc(kind.__init__.__doc__ or "")
    if kind is DecayingNoiseReverb:
        return {
            "min_decay_seconds": "time in which the reverberation decays by 60 dB, 0.001 to 60 s",
            "min_wet_db": "energy relative to that of the direct sound, -120 to 120 dB",
        }
    if kind is audiomentations.AddColorNoise:
        text = text.replace(
            "Minimum frequency decay in dB per octave.",
            "what the noise gains each octave up, in dB: -6 is brown, -3 pink, 0 white, 3 blue",
        )
    found = re.findall(r":param (\w+):(.*?)(?=\n\s*:param|\n\s*\n|\Z)", text, re.DOTALL)
    return {
        name: " ".join(words.split())
        .replace("|", "\\|")
        .replace("Minimum ", "")
        .replace("The minimum ", "")
        for name, words in found
    }


# Costs and pictures.


def measure() -> dict[str, float]:
    """Draw all pictures, and measure all costs that can be measured here, in ms a second."""
    melody = open_audio(ROOT / "data" / "standins" / "take_on_me" / "target.flac").read_mono(RATE)
    first = int(np.argmax(np.abs(melody[0]) > 0.01))
    melody = melody[:, first : first + round(SECONDS * RATE)] * np.float32(
        0.5 / np.abs(melody).max()
    )
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in effects().items():
            effect = _effect(name, kind, Path(folder))
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    effect.apply(melody, 0, RATE)
            except ImportError as error:
                print(f"{name} is not measured: {error}")
                continue
            found[name] = _cost(lambda seed, effect=effect: effect.apply(melody, seed, RATE))
            _draw(melody[:, : 4 * RATE], effect).save(FOLDER / f"{name}.webp", "WEBP", quality=60)
            print(f"{name}: {found[name]:.3f} ms")
    noise = np.random.default_rng(0).normal(0, 0.1, melody.shape).astype(np.float32)
    for name in POLICIES:
        policy: Policy = make(compose([f"aug={name}"]), "aug")
        found[f"aug={name}"] = _cost(
            lambda seed, policy=policy: mix(
                melody, noise, policy.sample(np.random.default_rng(seed)), RATE
            ),
            least=40,
        )
        print(f"aug={name}: {found[f'aug={name}']:.3f} ms")
    return found


def _effect(name: str, kind: type, folder: Path) -> Effect:
    """The effect as it comes, on every mix, with files where it needs some."""
    settings: dict[str, Any] = {"p": 1.0}
    if name in FILES:
        rng = np.random.default_rng(0)
        decay = np.exp(-np.arange(RATE) / (0.15 * RATE)) if name == "ApplyImpulseResponse" else 1
        write_wav(folder / f"{name}.wav", 0.1 * rng.normal(size=(1, RATE)) * decay, RATE)
        settings[FILES[name]] = str(folder / f"{name}.wav")
    if name == "AdjustDuration":
        settings["duration_seconds"] = 2.5
    return Effect(name, kind(**settings))


def _cost(apply: Callable[[int], Any], least: int = 8) -> float:
    """CPU milliseconds for a second of sound, the mean over draws, after a first one."""
    apply(0)
    count, began = 0, time.process_time()
    while count < least or (time.process_time() - began < 0.3 and count < 200):
        count += 1
        apply(count)
    return 1000 * (time.process_time() - began) / count / SECONDS


def _draw(melody: np.ndarray, effect: Effect) -> Image.Image:
    """The spectrogram of a melody, and beside it that with the effect."""
    pictures = media.Pictures(RATE)
    powers = [pictures.power(signal) for signal in (melody, effect.apply(melody, 1, RATE))]
    images = []
    for power in powers:
        address = pictures.spectrogram(power, powers[0].max())
        content = base64.b64decode(address.partition(",")[2])
        images.append(Image.open(io.BytesIO(content)).resize((320, 128)))
    both = Image.new("RGB", (644, 128), "white")
    both.paste(images[0], (0, 0))
    both.paste(images[1], (324, 0))
    return both


def read_costs() -> dict[str, float]:
    """The costs that were measured, in ms a second."""
    with open(COSTS, encoding="utf-8") as file:
        return {row["name"]: float(row["ms"]) for row in csv.DictReader(file)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="pictures and costs too")
    if parser.parse_args().measure:
        FOLDER.mkdir(exist_ok=True)
        known = read_costs() if COSTS.is_file() else {}
        costs = {**known, **measure()}
        with open(COSTS, "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("name", "ms"))
            rows.writerows((name, f"{ms:.4g}") for name, ms in sorted(costs.items()))
    PAGE.write_text(page(read_costs()), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    try:
        main()
    except BespokeError as error:
        raise SystemExit(f"error: {error}") from error
