"""Speed on GPUs: each precision, the stream of mixes, and several GPUs together."""

import torch
from lightning_fabric.utilities import move_data_to_device

from bespoke.training.build import precision
from measure.quality import step_seconds
from measure.runs import train
from measure.setup import config, stream
from measure.step import RECIPE, Step, time_of
from measure.table import Figure, Options, Section


def measure(options: Options) -> Section:
    """Measure on a GPU. Without one, return an empty section."""
    if not options.on_gpu:
        return Section([], "Not measured: no GPU.")
    cfg = config(RECIPE, "trainer=gpu")
    source = stream(cfg)
    batch = move_data_to_device(source.batch(0), "cuda")
    minimum = 0.3 if options.is_quick else 2.0
    figures = []
    for name in ("32-true", "16-mixed", "bf16-mixed"):
        step = Step(cfg, "cuda", name)
        seconds = time_of(step, minimum, batch)
        chosen = ", what trainer=gpu chooses here" * (name == precision("gpu"))
        figures.append(Figure(f"A step of recipe=paper in {name}{chosen}", seconds, " s"))
    steps = 20 if options.is_quick else 100
    settings = ["recipe=paper", f"trainer.max_steps={2 * steps}", f"curve_steps={steps}"]
    alone = next(figure.value for figure in figures if "chooses" in figure.what)
    for policy in ("paper", "heavy"):
        fed = step_seconds(
            train(options.work / policy, *settings, f"aug={policy}", "trainer=gpu").curve
        )
        what = (
            f"A step of train.py with aug={policy} over the step alone: "
            "what data and Lightning cost"
        )
        figures.append(Figure(what, fed / alone, " ×", 1.2, detail=f"{fed:.4f} s"))
    count = torch.cuda.device_count()
    if count > 1:
        each = step_seconds(train(options.work / "several", *settings, "trainer=ddp").curve)
        figures.append(
            Figure(
                f"trainer=ddp on {count} GPUs: mixes a second over one GPU's",
                count * fed / each,
                " ×",
            )
        )
    return Section(figures)
