"""Cost of a training step of the paper's recipe, where it goes, and what would reduce it."""

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as functional
from hydra.utils import instantiate
from lightning_fabric.utilities import move_data_to_device
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader

from bespoke.audio.stft import STFT
from bespoke.training.build import precision
from bespoke.training.system import BespokeSystem
from measure.runs import ROOT
from measure.setup import config, stream
from measure.table import Figure, Options, Section

RECIPE = "recipe=paper"
SHAPES = (
    (32, 0.5),
    (16, 1.0),
    (4, 4.0),
    (2, 8.0),
)  # mixes and seconds, 16 s of audio a step as 8 of 2 s
FLAME_BYTES = 1_000_000


def measure(options: Options) -> Section:
    """Profile the step, compare it with the machine's matrix throughput, and try alternatives."""
    cfg = config(RECIPE, f"trainer={options.trainer}")
    source = stream(cfg)
    batches = [move_data_to_device(source.batch(index), options.device) for index in range(4)]
    step = Step(cfg, options.device, precision(options.trainer))
    minimum = 0.3 if options.is_quick else 1.5
    seconds = time_of(lambda: step(batches[0]), minimum)
    frames = 1 + source.samples // step.stft.hop_samples
    peak, peaks = matmul_peak(
        cfg.data.batch_size * frames, step.stft.bins, options.device, minimum / 3
    )
    layers = flops_of(step.model, cfg.data.batch_size, frames)
    magnitude = step.stft(batches[0]["mixture"])[:, 0].abs()
    network = time_of(lambda: step.model(magnitude).sum().backward(), minimum)
    turns, count = (1, 3) if options.is_quick else (5, 10)
    ratios = [
        lightning_seconds(cfg, batches, count, options) / bare_seconds(cfg, batches, count, options)
        for _ in range(turns)
    ]
    figures = [
        Figure("A step of recipe=paper (8 mixes of 2 s)", seconds, " s"),
        Figure(
            "Lightning's loop over the bare one",
            statistics.median(ratios),
            " ×",
            1.05,
            detail=_spread(ratios),
        ),
        Figure("float32 matrix throughput", peak / 1e9, " GFLOP/s"),
        Figure(
            "The network's share of it, forward and backward",
            layers / network / peak,
            "",
            0.25,
            at_least=True,
            detail=f"{layers / 1e9:.1f} GFLOP",
        ),
    ]
    text = "\n\n".join(
        [
            _markdown(
                ("float32 and bfloat16 products of matrices, in GFLOP/s", *peaks[0]), peaks[1:]
            ),
            "Alternatives, each timed in turns with the default step (median):",
            _markdown(("variant", "seconds", "of the step's"), variants(options, minimum)),
            "The step by operation (torch.profiler):",
            f"```\n{profile_table(step, batches)}\n```",
            flame(options) if not options.on_gpu else "",
        ]
    )
    return Section(figures, text.strip())


class Step:
    """Bare training step of a config: transform, network, loss, gradients, clipping, optimizer."""

    def __init__(
        self,
        cfg: DictConfig,
        device: str = "cpu",
        precision: str = "32-true",
        compiled: bool = False,
    ):
        torch.manual_seed(0)
        self.stft = STFT(cfg.data.sample_rate, **cfg.stft).to(device)
        self.model: nn.Module = instantiate(cfg.model, bins=self.stft.bins).to(device).train()
        self.loss = instantiate(cfg.loss)
        self.optimizer = instantiate(cfg.optimizer)(self.model.parameters())
        self.device, self.clip = device, cfg.trainer.gradient_clip_val
        self.dtype = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}[
            precision
        ]
        self.scaler = torch.amp.GradScaler(device, enabled=precision == "16-mixed")
        self.forward: Callable[[Tensor], Tensor] = (
            torch.compile(self.model) if compiled else self.model
        )

    def __call__(self, batch: dict[str, Any]) -> None:
        mixture, target = self.stft(batch["mixture"])[:, 0], self.stft(batch["target"])[:, 0]
        with torch.autocast(self.device, self.dtype, enabled=self.dtype is not None):
            mask = self.forward(mixture.abs())
        self.optimizer.zero_grad()
        self.scaler.scale(self.loss(mask, target, mixture)).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()


def blstm_flops(batch: int, frames: int, inputs: int, hidden: int, layers: int) -> int:
    """Number of multiplications and additions in a forward pass of a bidirectional LSTM.

    Each of the four gates is a product with the layer's input and one with its previous state.

    >>> blstm_flops(batch=1, frames=1, inputs=2, hidden=3, layers=1)
    240
    """
    sizes = [inputs, *[2 * hidden] * (layers - 1)]
    return sum(2 * 2 * batch * frames * 4 * hidden * (size + hidden) for size in sizes)


def flops_of(model: nn.Module, batch: int, frames: int) -> int:
    """Number of multiplications and additions of `MaskBLSTM` in a forward and backward pass.

    The backward pass takes twice the forward pass: gradients of the inputs and of the weights.
    """
    shape = model.hyperparameters
    blstm = blstm_flops(batch, frames, shape["bins"], shape["hidden_size"], shape["layers"])
    return 3 * (blstm + 2 * batch * frames * 2 * shape["hidden_size"] * shape["bins"])


def matmul_peak(
    rows: int, bins: int, device: str, minimum: float
) -> tuple[float, list[tuple[str, ...]]]:
    """Best float32 throughput of any library on this machine.

    Returns:
        The throughput in FLOP/s, and all figures as a table with a header row.
    """
    shapes = {
        "2048³": (2048, 2048, 2048),
        "layer 1's gates": (rows, bins, 1200),
        "layer 2's gates": (rows, 600, 1200),
        "8 states": (8, 300, 1200),
    }
    lines, best = [], 0.0
    for name, (m, k, n) in shapes.items():
        one, other = torch.randn(m, k, device=device), torch.randn(k, n, device=device)
        products = {"float32": lambda one=one, other=other: one @ other}
        if device == "cpu":
            packed = one.to_mkldnn(), other.T.contiguous().to_mkldnn()
            plain = one.numpy(), other.numpy()
            products["float32, oneDNN"] = lambda packed=packed: functional.linear(*packed)
            products["float32, NumPy"] = lambda plain=plain: plain[0] @ plain[1]
        half = one.bfloat16(), other.bfloat16()
        products["bfloat16"] = lambda half=half: half[0] @ half[1]
        with torch.inference_mode():
            rates = {
                kind: 2 * m * k * n / time_of(product, minimum / 4)
                for kind, product in products.items()
            }
        best = max(best, *(value for kind, value in rates.items() if kind != "bfloat16"))
        lines.append((name, *(f"{value / 1e9:.0f}" for value in rates.values())))
    return best, [tuple(products), *lines]


def variants(options: Options, minimum: float) -> list[tuple[str, str, str]]:
    """Time per step in other precisions, compiled, and in other shapes, relative to the default."""
    base = config(RECIPE)
    shapes = {
        f"{size} mixes of {length:g} s": [
            f"data.batch_size={size}",
            f"data.segment_seconds={length}",
        ]
        for size, length in SHAPES
    }
    tried = {
        "bf16-mixed": lambda: Step(base, options.device, "bf16-mixed"),
        "16-mixed": lambda: Step(base, options.device, "16-mixed") if options.on_gpu else None,
        "torch.compile": lambda: Step(base, options.device, compiled=True),
        **{
            name: lambda extra=extra: Step(config(RECIPE, *extra), options.device)
            for name, extra in shapes.items()
        },
    }
    found = []
    for name, make in tried.items():
        if options.is_quick and name == "torch.compile":
            continue
        batch = move_data_to_device(
            stream(config(RECIPE, *shapes.get(name, []))).batch(0), options.device
        )
        usual = move_data_to_device(stream(base).batch(0), options.device)
        step, reference = make(), Step(base, options.device)
        if step is None:
            continue
        try:
            step(batch)  # compiles
        except Exception as error:  # a compiler that is missing or fails: any
            found.append((name, f"fails here: {type(error).__name__}", ""))
            continue
        pairs = [
            (time_of(step, minimum / 3, batch), time_of(reference, minimum / 3, usual))
            for _ in range(3)
        ]
        ratio = statistics.median(one / other for one, other in pairs)
        found.append((name, f"{statistics.median(one for one, _ in pairs):.3f}", f"{ratio:.2f}"))
    return found


def bare_seconds(
    cfg: DictConfig, batches: Sequence[dict[str, Any]], steps: int, options: Options
) -> float:
    """Seconds per step of a plain loop over the batches."""
    step = Step(cfg, options.device, precision(options.trainer))
    step(batches[0])
    timer = Timer(
        "for batch in batches: step(batch)",
        globals={"step": step, "batches": _repeat(batches, steps)},
        num_threads=torch.get_num_threads(),
    )
    return timer.timeit(1).mean / steps


def lightning_seconds(
    cfg: DictConfig, batches: Sequence[dict[str, Any]], steps: int, options: Options
) -> float:
    """Seconds per step of Lightning's loop as train.py sets it up, without the first step."""
    stft = STFT(cfg.data.sample_rate, **cfg.stft)
    torch.manual_seed(0)
    system = BespokeSystem(
        stft,
        instantiate(cfg.model, bins=stft.bins),
        instantiate(cfg.loss),
        instantiate(cfg.optimizer),
    )
    clock = _Clock()
    settings = OmegaConf.to_container(cfg.trainer) | {"max_steps": steps + 1}
    settings["precision"] = precision(options.trainer)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = instantiate(settings, callbacks=[clock], limit_train_batches=steps + 1, **quiet)
    trainer.fit(system, DataLoader(_repeat(batches, steps + 1), batch_size=None))
    return clock.seconds / steps


class _Clock(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 1:
            self.began = _now(module.device)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == trainer.limit_train_batches - 1:
            self.seconds = _now(module.device) - self.began


def profile_table(step: Step, batches: Sequence[dict[str, Any]], rows: int = 14) -> str:
    """Table of the operations that take most of a step's time."""
    is_gpu = step.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    with profile(activities=activities) as found:
        for batch in batches:
            step(batch)
    events = found.key_averages()
    if is_gpu:  # a kernel's time is also counted for the operation that launched it
        events = [
            event
            for event in events
            if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
        ]
    events = sorted(
        events,
        key=lambda event: event.self_device_time_total if is_gpu else event.self_cpu_time_total,
        reverse=True,
    )
    times = [
        (
            event.key,
            event.count,
            (event.self_device_time_total if is_gpu else event.self_cpu_time_total) / 1000,
        )
        for event in events
    ]
    whole = sum(milliseconds for _, _, milliseconds in times)
    lines = [f"{'operation':42}{'calls a step':>14}{'ms a step':>12}{'share':>8}"]
    for name, calls, milliseconds in times[:rows]:
        lines.append(
            f"{name[:41]:42}{calls / len(batches):14.1f}"
            f"{milliseconds / len(batches):12.1f}{milliseconds / whole:8.1%}"
        )
    return "\n".join(lines)


def flame(options: Options) -> str:
    """Flame graph of a short run by py-spy, if it is installed and may read its own processes."""
    steps, file = (3 if options.is_quick else 30), options.out / "speed" / "flame.svg"
    file.parent.mkdir(parents=True, exist_ok=True)
    program = Path(sys.executable).with_name("py-spy")
    if not program.exists():
        return "No flame graph: `pip install py-spy` first."
    run = f"train.py recipe=paper trainer.max_steps={steps} logger=none report=false"
    for rate in (20, 5):  # samples per second: the slower the machine, the larger the file
        command = [
            program,
            "record",
            "--rate",
            rate,
            "-o",
            file,
            "--",
            sys.executable,
            *run.split(),
        ]
        command.append(f"hydra.run.dir={options.work / f'flame_{rate}'}")
        result = subprocess.run(
            [str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if not file.is_file() or result.returncode:
            last = (result.stderr.strip().splitlines() or ["nothing"])[-1]
            return f"No flame graph: py-spy ended with {last}"
        if file.stat().st_size <= FLAME_BYTES:
            # py-spy's own title contains absolute paths
            title = re.sub(
                r'(id="title"[^>]*>)[^<]*', rf"\g<1>{run}", file.read_text(encoding="utf-8")
            )
            file.write_text(title, encoding="utf-8")
            return (
                f"The flame graph of `{run}`,\n"
                f"sampled {rate} times a second by py-spy: [flame.svg](speed/flame.svg)."
            )
    file.unlink()
    return "No flame graph: it came out larger than a megabyte."


def time_of(function: Callable[..., object], minimum: float, *arguments: object) -> float:
    """Median duration of many calls in seconds, after one warm-up call."""
    function(*arguments)
    timer = Timer(
        "function(*arguments)",
        globals={"function": function, "arguments": arguments},
        num_threads=torch.get_num_threads(),
    )
    return timer.blocked_autorange(min_run_time=minimum).median


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _repeat(batches: Sequence, count: int) -> list:
    return [batches[index % len(batches)] for index in range(count)]


def _spread(values: Sequence[float]) -> str:
    return f"median of {len(values)} turns, {min(values):.3f} to {max(values):.3f}"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))
