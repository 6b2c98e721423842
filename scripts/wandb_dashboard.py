"""Create a W&B workspace that compares runs with different augmentations or other settings.

    python scripts/wandb_dashboard.py --entity NAME                  # by aug
    python scripts/wandb_dashboard.py --entity NAME --by aug/target/eq/p

It needs `pip install -e '.[dashboard]'` and `wandb login`. Tests check that runs log what the
panels show. Saving is untested, since it needs a server.
"""

import argparse
import sys

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

STEP = "trainer/global_step"


def build(entity: str, project: str, by: str) -> ws.Workspace:
    """Workspace with runs grouped by a config key: final metrics, curves, audio and images."""
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
                f"config:{by}",
                "config:seed",
                "config:song",
                "summary:final/si_sdr_improvement",
                "summary:final/seconds",
            ],
        ),
    )


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and save the workspace.

    Returns:
        The exit code: 2 if the server did not accept the workspace.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entity", required=True, help="your user's or team's name on the server")
    parser.add_argument("--project", default="bespoke")
    parser.add_argument("--by", default="aug", help="a key of the config, as W&B shows it")
    options = parser.parse_args(arguments)
    workspace = build(options.entity, options.project, options.by)
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
