"""docs/POLICIES.md is what scripts/policies.py makes of the code, and what it says works."""

import importlib.metadata
import re

import numpy as np
import policies
import pytest
from hydra import compose, initialize_config_dir

from bespoke.data import augment
from bespoke.data.augment import Effect
from bespoke.training import build, preflight
from conftest import ROOT

PAGE = policies.PAGE.read_text(encoding="utf-8")
EXAMPLES = [
    re.sub(r"^  ", "", block, flags=re.MULTILINE) if block.startswith("  ") else block
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
]


def test_the_page_is_what_the_code_makes():
    version = importlib.metadata.version("audiomentations")
    if f"audiomentations {version}" not in PAGE:
        pytest.skip(f"the page is of another audiomentations than {version}")
    assert policies.page(policies.read_costs()) == PAGE


def test_every_effect_has_its_section_picture_and_cost():
    costs = policies.read_costs()
    known = policies.effects()
    assert {"LowPassFilter", "Mp3Compression", "DecayingNoiseReverb"} <= set(known)
    assert set(known) >= augment.LINEAR | augment.NOISE | augment.MOVES_TIME
    for name in known:
        assert f"### {name}\n" in PAGE
        assert (policies.FOLDER / f"{name}.webp").is_file()
        assert costs[name] > 0
    shipped = {file.stem for file in (ROOT / "conf" / "aug").glob("*.yaml")}
    assert shipped == set(policies.POLICIES)
    assert all(costs[f"aug={name}"] > 0 for name in shipped)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_examples_of_the_page_are_policies(example, tmp_path):
    (tmp_path / "aug").mkdir()
    (tmp_path / "aug" / "mine.yaml").write_text(example)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", [f"hydra.searchpath=[file://{tmp_path}]", "aug=mine"])
    preflight.check(cfg)
    policy = build.make(cfg, "aug")
    policy.check(cfg.data.sample_rate)
    drawn = [policy.sample(np.random.default_rng(seed)) for seed in range(40)]
    assert any(params.target_effects for params in drawn)


def test_a_range_is_what_the_effect_says(capsys):
    kind = policies.effects()["TimeStretch"]
    assert policies._limits(kind, ["min_rate", "max_rate"]) == (
        "min_rate must be >= 0.1; max_rate must be <= 10"
    )
    assert "`min_cutoff_freq`, `max_cutoff_freq` | `150`; `7500`" in PAGE


def test_effects_of_levels_alone_change_nothing_on_the_target():
    from bespoke.data.augment import EffectParams
    from bespoke.data.mixer import chain

    noise = np.random.default_rng(0).normal(0, 0.1, (1, 16000)).astype(np.float32)
    kinds = policies.effects()
    for name in policies.LEVELS - set(policies.EXTRAS):
        drawn = EffectParams(Effect(name, kinds[name](p=1.0)), 3)
        np.testing.assert_allclose(chain(noise, (drawn,), 16000), noise, atol=1e-4)
