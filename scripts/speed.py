"""How fast mixes are made, and what Lightning costs over a bare training loop.

    python scripts/speed.py              both, on the shipped song
    python scripts/speed.py --aug heavy  the mixing path of another policy

Mixes a second are of one process with one thread. The two loops take turns on the same batches, so that a slow moment of the machine
meets both; the ratio is the median over the turns.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from bespoke.data import MixStream
from bespoke.launch import quieten
from bespoke.loss import TPSALoss
from bespoke.model import MaskBLSTM
from bespoke.song import Song
from bespoke.stft import STFT
from bespoke.system import BespokeSystem


def mixes_per_second(aug: str, overrides: list[str], seconds: float) -> float:
    """Fresh mixes a second of one process, at the config's rate and length."""
    cfg = _compose([f"aug={aug}", *overrides])
    stream = _stream(cfg)
    stream.batch(0)  # compiles the compressor
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    began, index = time.perf_counter(), 1
    while time.perf_counter() - began < seconds:
        stream.batch(index)
        index += 1
    elapsed = time.perf_counter() - began
    torch.set_num_threads(threads)
    return (index - 1) * cfg.data.batch_size / elapsed


def step_times(overrides: list[str], steps: int, turns: int) -> list[tuple[float, float]]:
    """Seconds a step of Lightning's loop, as train.py sets it up, and of a bare PyTorch loop, turn by turn."""
    cfg = _compose(overrides)
    stream = _stream(cfg)
    batches = [stream.batch(index) for index in range(4)]
    return [(_lightning(cfg, batches, steps), _bare(cfg, batches, steps)) for _ in range(turns + 1)][1:]


def _lightning(cfg, batches, steps: int) -> float:
    system = BespokeSystem(STFT(cfg.data.sample_rate, **cfg.stft), _model(cfg), TPSALoss(), _optimizer(cfg))

    class Clock(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 1:  # the first step warms up
                self.began = time.perf_counter()

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.ended = time.perf_counter()

    clock = Clock()
    settings = OmegaConf.to_container(cfg.trainer) | {"max_steps": steps + 1, "accelerator": "cpu", "precision": "32-true"}
    trainer = instantiate(
        settings, logger=False, callbacks=[clock], enable_checkpointing=False, enable_progress_bar=False, limit_train_batches=steps + 1
    )
    trainer.fit(system, DataLoader(_repeat(batches, steps + 1), batch_size=None))
    return (clock.ended - clock.began) / steps


def _bare(cfg, batches, steps: int) -> float:
    stft, model, loss = STFT(cfg.data.sample_rate, **cfg.stft), _model(cfg), TPSALoss()
    optimizer = _optimizer(cfg)(model.parameters())
    began = 0.0
    for index, batch in enumerate(_repeat(batches, steps + 1)):
        if index == 1:
            began = time.perf_counter()
        mixture, target = stft(batch["mixture"])[:, 0], stft(batch["target"])[:, 0]
        value = loss(model(mixture.abs()), target, mixture)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.trainer.gradient_clip_val)
        optimizer.step()
    return (time.perf_counter() - began) / steps


def _repeat(batches: list, count: int) -> list:
    return [batches[index % len(batches)] for index in range(count)]


def _model(cfg) -> MaskBLSTM:
    torch.manual_seed(0)
    return instantiate(cfg.model, bins=STFT(cfg.data.sample_rate, **cfg.stft).bins)


def _optimizer(cfg):
    return instantiate(cfg.optimizer)


def _compose(overrides: list[str]):
    with initialize_config_dir(str(Path(__file__).resolve().parent.parent / "conf"), version_base="1.3"):
        return compose("config", overrides)


def _stream(cfg) -> MixStream:
    song = Song.load(OmegaConf.to_container(cfg.song, resolve=True))
    background = instantiate(cfg.background)(song, cfg.data.sample_rate)
    policy = instantiate(cfg.aug, _convert_="all")
    targets = song.render_target(cfg.data.sample_rate)
    return MixStream(targets, background, policy, cfg.data.sample_rate, cfg.data.segment_seconds, cfg.data.batch_size)


if __name__ == "__main__":
    quieten()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aug", nargs="+", default=["none", "paper", "light", "heavy"], help="policies to time")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to make mixes with each policy")
    parser.add_argument("--steps", type=int, default=20, help="training steps a turn; 0: none")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="as for train.py")
    options = parser.parse_args()
    for name in options.aug:
        print(f"aug={name}: {mixes_per_second(name, options.overrides, options.seconds):.0f} mixes a second per core")
    if options.steps:
        times = step_times(options.overrides, options.steps, options.turns)
        ratios = [lightning / bare for lightning, bare in times]
        print(f"a step: Lightning {statistics.median(t[0] for t in times):.4f} s, bare loop {statistics.median(t[1] for t in times):.4f} s")
        print(f"Lightning / bare: median {np.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f} in {len(ratios)} turns)")
