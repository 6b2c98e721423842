"""Choices that depend on the processor, with and without the feature in question."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import pytorch_lightning as pl
import torch
from threadpoolctl import threadpool_info

from bespoke.audio.stft import STFT
from bespoke.models.features import CHANNELS
from bespoke.models.losses import RelativeErrorLoss, TPSALoss
from bespoke.models.networks import MaskBLSTM, ScoreUNet, pretrained_score_unet
from bespoke.training import preflight
from bespoke.training.system import BespokeSystem
from bespoke.utils import processor
from bespoke.utils.errors import BespokeError
from conftest import ROOT


@pytest.fixture
def machine(monkeypatch):
    """Pretend that this machine has so many cores, of which other programs use so many."""

    def pretend(cores, others):
        clock = iter(range(0, 1000, 2))

        def times():
            seconds = next(clock)
            return (
                seconds,
                seconds * (others + 0.5),
                seconds * 0.5,
            )  # this process uses half a core itself

        monkeypatch.setattr(processor, "_times", times)
        monkeypatch.setattr(processor, "_before", times())
        monkeypatch.setattr(processor, "cores", lambda: cores)
        monkeypatch.setattr(processor.os, "cpu_count", lambda: cores)

    return pretend


@pytest.mark.parametrize(
    ("cores", "others", "free"),
    [(2, 0.1, 2), (2, 1.0, 1), (2, 4.0, 1), (8, 3.3, 5), (1, 0.0, 1), (64, 0.0, 64)],
)
def test_other_programs_cores_are_not_free(machine, cores, others, free):
    machine(cores, others)
    assert processor.free_cores() == free


def test_a_quota_is_the_most_that_is_free(machine, monkeypatch):
    machine(16, 3.0)
    monkeypatch.setattr(processor, "cores", lambda: 4)
    assert processor.free_cores() == 4


def test_a_busy_program_beside_this_one_is_noticed():
    others = processor._times()
    spin = "import time; end = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as busy:
        try:
            psutil.cpu_percent(0.5)
            elapsed, machine, own = (
                after - before for after, before in zip(processor._times(), others, strict=True)
            )
        finally:
            busy.kill()
    assert elapsed > 0.5
    assert machine - own > 0.3 * elapsed  # a whole core where it is alone


def test_threads_are_those_that_are_free_or_asked_for(machine, monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        machine(8, 6.0)
        assert processor.use_free_cores() == torch.get_num_threads() == 4  # OMP_NUM_THREADS is set
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert processor.use_free_cores() == torch.get_num_threads() == 2
        assert {
            library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
        } == {1}
        machine(8, 0.0)
        assert processor.use_free_cores() == 2  # no more than PyTorch has
        assert processor.use_free_cores(3) == torch.get_num_threads() == 3
    finally:
        processor.use_free_cores(before)


BFLOAT16 = {
    "AVX2": ("AVX2", {"avx2": True}, False),
    "AVX-512 without": ("AVX512", {"avx512_f": True, "avx512_bf16": False}, False),
    "AVX-512 with": ("AVX512", {"avx512_f": True, "avx512_bf16": True}, True),
    "AMX": ("AVX512", {"amx_bf16": True}, True),
    "limited to AVX2": ("AVX2", {"avx512_bf16": True, "amx_bf16": True}, False),
    "ARM": ("DEFAULT", {"bf16": True}, False),
}


@pytest.mark.parametrize("case", BFLOAT16)
def test_bfloat16_is_multiplied_where_there_are_instructions_for_it(case, monkeypatch):
    level, capabilities, expected = BFLOAT16[case]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert processor.multiplies_bfloat16() is expected


def system(network):
    stft = STFT(8000, 0.064, 0.016)
    model, loss = (
        (ScoreUNet(stft.bins), RelativeErrorLoss())
        if network == "score_unet"
        else (MaskBLSTM(stft.bins, 8, 1), TPSALoss())
    )
    return BespokeSystem(stft, model, loss, functools.partial(torch.optim.Adam, lr=1e-3))


def trainer(precision):
    return pl.Trainer(
        accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False
    )


@pytest.mark.parametrize("network", ["blstm", "score_unet"])
def test_a_precision_is_tried_on_a_copy(network):
    one = system(network)
    before = {name: value.clone() for name, value in one.state_dict().items()}
    seed = torch.get_rng_state()
    if network == "score_unet":
        preflight.check_precision(one, trainer("bf16-mixed"))  # every processor can, if slowly
    preflight.check_precision(one, trainer("32-true"))
    assert torch.equal(seed, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())
    assert all(parameter.grad is None for parameter in one.parameters())


def test_a_precision_that_the_processor_lacks_is_refused(monkeypatch):
    one = system("blstm")

    def forward(magnitude):
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(one.model, "forward", forward)
    with pytest.raises(
        BespokeError,
        match=r"trainer\.precision=bf16-mixed is not possible: MaskBLSTM.*could not "
        r"create.*32-true",
    ):
        preflight.check_precision(one, trainer("bf16-mixed"))
    preflight.check_precision(one, trainer("32-true"))  # is not tried


def passes_and_works():
    """Whether the paper's network passes the check for bfloat16, and whether it trains in it."""
    one = system("blstm")
    try:
        preflight.check_precision(one, trainer("bf16-mixed"))
        passes = True
    except BespokeError:
        passes = False
    try:
        with torch.autocast("cpu", torch.bfloat16):
            mask = one.model(torch.rand(1, one.stft.bins, 9))
        mask.float().mean().backward()
        works = True
    except RuntimeError:
        works = False
    return passes, works


def test_what_passes_works_on_this_processor_and_on_an_older_one():
    passes, works = passes_and_works()
    assert passes == works
    if torch.backends.cpu.get_cpu_capability() == "AVX2":  # this is the older one
        return
    older = {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}",
    }
    result = subprocess.run(
        [sys.executable, "-c", "import test_processor; print(*test_processor.passes_and_works())"],
        env={**os.environ, **older},
        capture_output=True,
        text=True,
    )
    assert result.stdout in ("True True\n", "False False\n"), result.stderr


def test_the_gradients_are_the_same_with_channels_first_and_last(monkeypatch):
    torch.manual_seed(0)
    network = pretrained_score_unet().train()
    magnitude, features = torch.rand(1, 65, 40), torch.rand(1, CHANNELS, 65, 40)
    gradients = []
    for level in ("AVX2", "AVX512", "DEFAULT"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda level=level: level)
        network.zero_grad()
        (network(magnitude, features) * magnitude).square().mean().backward()
        gradients.append(
            torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
        )
    assert torch.equal(gradients[1], gradients[2])  # channels last
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)
    assert gradients[0].abs().max() > 1e-4
