"""What ends a sweep: tables as text and as CSV, and the comparison page."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bespoke.evaluation.report.groups import (
    Block,
    aligned,
    compare_groups,
    group_rows,
    group_table,
)
from bespoke.evaluation.report.runs import (
    COLUMNS,
    Run,
    constant,
    find_runs,
    read_runs,
    rounded,
    short_names,
    varying,
)
from bespoke.utils.errors import BespokeError, one_sentence
from bespoke.utils.files import write_csv

log = logging.getLogger(__name__)

RUNS_CSV, GROUPS_CSV, PAGE = "sweep.csv", "groups.csv", "comparison.html"


@dataclass
class Results:
    """Runs and their groups."""

    runs: list[Run]
    blocks: list[Block]


def read_results(folders: Sequence[Path], baseline: str = "") -> Results:
    """Read and group runs.

    Args:
        folders: of runs, finished or not.
        baseline: see `compare_groups`.

    Raises:
        BespokeError: there are no runs, or none has the baseline's settings.
    """
    if not folders:
        raise BespokeError(
            "There are no runs to compare: "
            "name folders that hold runs, such as outputs/sweeps/TIME."
        )
    runs = read_runs(folders)
    return Results(runs, compare_groups(runs, baseline))


def finish_sweep(sweep: Path, baseline: str = "", page: bool = True) -> tuple[str, Results | None]:
    """Write what ends a sweep, which nothing that is wrong with it may keep from its end.

    Args:
        sweep: folder of the runs.
        baseline: see `compare_groups`.
        page: whether to write the comparison page too.

    Returns:
        The tables and where they are, as text, and what they show, if there is anything.
    """
    folders = find_runs(sweep)
    if not folders:
        return "No run began.", None
    lines = []
    try:
        results = read_results(folders, baseline)
    except BespokeError as error:
        lines.append(f"{error} Here the others are compared with the first.")
        results = read_results(folders)
    lines = [write_tables(results, sweep), *lines]
    if page:
        lines.append(_write_page(results, sweep))
    return "\n".join(lines), results


def write_tables(results: Results, folder: Path) -> str:
    """Write sweep.csv, one row a run, and groups.csv, one row a group; return both as text."""
    runs, blocks = results.runs, results.blocks
    rows = [
        {
            "run": run.name,
            **run.settings,
            **{column.key: run.figures[column.key] for column in COLUMNS},
            "error": run.error,
        }
        for run in runs
    ]
    write_csv(folder / RUNS_CSV, rows)
    lines = ["", *_run_table(runs)]
    if blocks:
        write_csv(folder / GROUPS_CSV, group_rows(blocks))
        lines += [group_table(blocks)]
    lines += ["", f"{len(runs)} runs; this table is in {folder / RUNS_CSV}"]
    if blocks:
        lines += [f"Their groups, which differ by more than the seed: {folder / GROUPS_CSV}"]
    if any(run.error for run in runs):
        lines.append(
            "To run only what failed or did not finish, repeat the command with "
            f"hydra.sweep.dir={folder} ckpt=last"
        )
    return "\n".join(lines)


def _run_table(runs: Sequence[Run]) -> list[str]:
    """One line a run, and one for what all have in common."""
    keys = varying(runs)
    columns = [
        column
        for column in COLUMNS
        if len({run.figures[column.key] for run in runs if not run.error}) > 1
        or column is COLUMNS[0]
    ]
    headings = short_names(keys).values()
    cells = [["run", *headings, *(column.heading for column in columns), ""]]
    for run in runs:
        values = (column.text(run.figures[column.key]) for column in columns)
        cells.append([run.name, *(rounded(run.settings[key]) for key in keys), *values, run.error])
    common = " ".join(f"{key}={value}" for key, value in constant(runs).items())
    return [*aligned(cells), *([f"All: {common}"] if common and len(runs) > 1 else [])]


def _write_page(results: Results, sweep: Path) -> str:
    """Write the page, and say where it is or why it could not be made."""
    try:
        from bespoke.evaluation.report import comparison  # imports a template engine

        page = comparison.write_comparison(results, sweep / PAGE, sweep.name)
        return f"Listen to them side by side: {page}"
    except Exception as error:
        log.debug("", exc_info=True)
        return f"{PAGE} could not be made ({type(error).__name__}: {one_sentence(error)})."
