"""Create a W&B workspace that compares runs with different augmentations or other settings.

    python scripts/wandb_dashboard.py --entity NAME                  # by aug
    python scripts/wandb_dashboard.py --entity NAME --by settings    # by all that a sweep varies
    python scripts/wandb_dashboard.py --entity NAME --by aug/target/eq/p
    python scripts/wandb_dashboard.py --json FILE                # its definition, without a server

Bars and curves are means over the runs of a group, with their range: over seeds, and over songs
unless the runs are filtered. The policies' parameters are columns. It needs `pip install -e
'.[dashboard]'` and `wandb login`. Tests check that runs log what the definition asks for. Saving is
untested, since it needs a server.
"""

import argparse
import json
import sys
from pathlib import Path

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from bespoke.cli.train import CONF, compose
from bespoke.training.logs import SETTINGS, flat
from bespoke.utils.configs import as_dict
from bespoke.utils.errors import BespokeError

STEP = "trainer/global_step"


# Of a policy's many parameters, those that say what it does, and how often.
TELLING = ("/p", "_gain_db", "/ratios")


def parameters(policies: list[str]) -> list[str]:
    """Keys of the config in which augmentation policies differ most, such as `aug/target/eq/p`.

    Raises:
        BespokeError: there is no such policy.
    """
    found = [dict(flat(as_dict(compose([f"aug={policy}"]).aug), "aug/")) for policy in policies]
    keys = dict.fromkeys(key for values in found for key in values)
    return [
        key
        for key in keys
        if key.endswith(TELLING) and len({str(values.get(key)) for values in found}) > 1
    ]


def build(entity: str, project: str, by: str, policies: list[str]) -> ws.Workspace:
    """Workspace with runs grouped by a config key: final metrics, curves, audio and images.

    Args:
        entity, project: where on the server.
        by: key of the config, as W&B shows it.
        policies: whose parameters are columns, where they differ.
    """
    group = wr.Config(by)

    def bars(metric: str, title: str) -> wr.BarPlot:
        name = wr.SummaryMetric(metric)
        return wr.BarPlot(
            title=title,
            metrics=[name],
            groupby=group,
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )

    def curve(metric: str, **settings: object) -> wr.LinePlot:
        return wr.LinePlot(
            title=metric,
            x=STEP,
            y=[metric],
            groupby=group,
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            **settings,
        )

    def media(kind: str, *names: str) -> wr.MediaBrowser:
        keys = [f"{kind}/{name}" for name in names]
        return wr.MediaBrowser(
            title=kind, media_keys=keys, mode="grid", grid_x_axis="step", grid_y_axis="run"
        )

    sections = {
        "Which is better": [
            # Of the run that ends a sweep: see bespoke.training.logs.log_comparison.
            wr.WeavePanelSummaryTable(table_name="groups"),
        ],
        "How good": [
            bars("final/si_sdr_improvement", "Improvement in SI-SDR (dB), mean and range"),
            bars("final/seconds", "Seconds"),
            wr.ScatterPlot(
                title="Improvement by cost",
                x=wr.SummaryMetric("final/seconds"),
                y=wr.SummaryMetric("final/si_sdr_improvement"),
            ),
            wr.RunComparer(diff_only="split"),
        ],
        "Listen by group": [wr.WeavePanelSummaryTable(table_name="listen")],
        "Listen": [media("audio", "estimate", "residual", "mixture", "reference")],
        "Look": [
            media("spectrogram", "estimate", "residual", "mixture", "reference"),
            media("mask", "estimate"),
        ],
        "Training": [
            *(curve(metric) for metric in ("val/si_sdr", "val/loss")),
            *(
                curve(metric, smoothing_type="exponential", smoothing_factor=0.6)
                for metric in ("train/loss", "train/gradient_norm")
            ),
            *(curve(metric) for metric in ("train/learning_rate", "train/steps_per_second")),
        ],
        "Machine": [curve(metric) for metric in ("system/cpu_cores", "system/peak_memory_mb")],
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"Compare by {by}",
        sections=[
            ws.Section(name=name, panels=panels, is_open=name != "Machine")
            for name, panels in sections.items()
        ],
        runset_settings=ws.RunsetSettings(
            groupby=[expr.Config(by)],
            order=[expr.Ordering(expr.Summary("final/si_sdr_improvement"), ascending=False)],
            pinned_columns=[
                *dict.fromkeys(f"config:{key}" for key in (by, SETTINGS, "song", "seed")),
                "summary:final/si_sdr_improvement",
                "summary:final/seconds",
                *(f"config:{key}" for key in parameters(policies) if key != by),
            ],
        ),
    )


def definition(workspace: ws.Workspace) -> str:
    """What the server is sent, as JSON."""
    return json.dumps(json.loads(workspace._to_model().model_dump_json(by_alias=True)), indent=2)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and save the workspace, or its definition.

    Returns:
        The exit code: 2 if the server did not accept the workspace.
    """
    known = sorted(file.stem for file in (CONF / "aug").glob("*.yaml"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--entity", default="", help="your user's or team's name on the server")
    place.add_argument("--json", type=Path, help="file for the definition, instead of saving it")
    parser.add_argument("--project", default="bespoke")
    parser.add_argument("--by", default="aug", help="a key of the config, as W&B shows it")
    parser.add_argument(
        "--policies",
        default=",".join(known),
        help="whose parameters are columns where they differ (default: all of conf/aug)",
    )
    options = parser.parse_args(arguments)
    try:
        workspace = build(options.entity, options.project, options.by, options.policies.split(","))
    except BespokeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(definition(workspace), encoding="utf-8")
        print(options.json)
        return 0
    try:
        workspace.save()
    except (wandb.Error, ValueError) as error:
        print(
            f"error: the workspace was not saved ({error}): "
            "check --entity and --project, and wandb login.",
            file=sys.stderr,
        )
        return 2
    print(workspace.url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
