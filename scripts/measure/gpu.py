"""What a GPU makes of it: each precision, whether the stream keeps up, and several GPUs together."""

import torch

from bespoke.run import precision
from measure.runs import train
from measure.setup import config, stream
from measure.step import RECIPE, Step, _time, _to
from measure.table import Figure, Options, Section


def measure(options: Options) -> Section:
    """Nothing without a GPU."""
    if not options.on_gpu:
        return Section([], "Not measured: no GPU.")
    cfg = config(RECIPE, "trainer=gpu")
    source = stream(cfg)
    batches = [_to(source.batch(index), "cuda") for index in range(4)]
    minimum = 0.3 if options.is_quick else 2.0
    figures = []
    for name in ("32-true", "16-mixed", "bf16-mixed"):
        step = Step(cfg, "cuda", name)
        seconds = _time(lambda step=step: (step(batches[0]), torch.cuda.synchronize()), minimum)
        chosen = ", what trainer=gpu chooses here" * (name == precision("gpu"))
        figures.append(Figure(f"A step of recipe=paper in {name}{chosen}", seconds, " s"))
    steps = 20 if options.is_quick else 300
    run = train(options.work / "gpu_paper", "recipe=paper", "trainer=gpu", f"trainer.max_steps={2 * steps}", f"curve_steps={steps}")
    rows = run.curve
    fed = (rows[-1]["seconds"] - rows[0]["seconds"]) / (rows[-1]["step"] - rows[0]["step"])
    alone = next(figure.value for figure in figures if "chooses" in figure.what)
    figures.append(
        Figure("A step of train.py over the step alone: what data and Lightning cost", fed / alone, " ×", 1.2, detail=f"{fed:.4f} s")
    )
    if torch.cuda.device_count() > 1:
        several = train(options.work / "gpu_ddp", "recipe=paper", "trainer=ddp", f"trainer.max_steps={2 * steps}", f"curve_steps={steps}")
        rows = several.curve
        each = (rows[-1]["seconds"] - rows[0]["seconds"]) / (rows[-1]["step"] - rows[0]["step"])
        figures.append(
            Figure(
                f"trainer=ddp on {torch.cuda.device_count()} GPUs: mixes a second over one GPU's",
                torch.cuda.device_count() * fed / each,
                " ×",
            )
        )
    return Section(figures, "")
