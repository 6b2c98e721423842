"""Figures with their goals, and the page that shows them."""

import json
import os
import platform
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from bespoke.utils.files import write_json


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        out: folder of the page and its plots.
        work: folder for runs.
        is_quick: whether to measure less and shorter.
        on_gpu: whether to measure on a GPU.
        cases: folder of cases.
        names: names or patterns of the cases to take.
        seeds: seeds of the runs on cases.
    """

    out: Path
    work: Path
    is_quick: bool = False
    on_gpu: bool = False
    cases: Path | None = None
    names: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)

    @property
    def trainer(self) -> str:
        return "gpu" if self.on_gpu else "cpu"

    @property
    def device(self) -> str:
        return "cuda" if self.on_gpu else "cpu"


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    `detail` says what the value consists of. Without a goal there is no verdict.
    """

    what: str
    value: float
    unit: str = ""
    goal: float | None = None
    at_least: bool = False
    detail: str = ""

    @property
    def is_met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    @property
    def ratio(self) -> float | None:
        """Factor by which the value is better than the goal; below 1 the goal is missed."""
        if self.goal is None or self.goal <= 0 or self.value <= 0:
            return None
        return self.value / self.goal if self.at_least else self.goal / self.value


@dataclass(frozen=True)
class Section:
    """Results of one topic: rows of the table, and Markdown to print below it."""

    figures: Sequence[Figure]
    text: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def machine() -> dict[str, Any]:
    """Machine, software and date, as the page states them."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        name = re.search(
            r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text() + "\nmodel name: unknown"
        )[1].strip()
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "date": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def save(
    section: Section,
    name: str,
    options: Options,
    place: Mapping[str, Any],
    seconds: float,
    command: str,
) -> None:
    """Store a section next to the plots, replacing the previous measurement."""
    file = options.out / "speed" / f"{name}{'_gpu' if options.on_gpu else ''}.json"
    label = {
        "quick": options.is_quick,
        "command": command,
        "seconds": round(seconds, 1),
        "machine": dict(place),
    }
    write_json(
        file,
        {
            **label,
            "figures": [asdict(figure) for figure in section.figures],
            "text": section.text,
            "facts": section.facts,
        },
    )


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """All sections stored in a folder, by name. Names of GPU sections end in `_gpu`."""
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(folder.glob("*.json"))
    }


def table(figures: Sequence[Figure], on_gpu: Sequence[Figure] = ()) -> str:
    """Markdown table: figure, goal, measured, ratio to the goal, verdict, and figure on a GPU."""
    other = {figure.what: figure for figure in on_gpu}
    lines = [
        "| | goal | measured | × better than the goal | | on a GPU |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for what in dict.fromkeys([figure.what for figure in (*figures, *on_gpu)]):
        figure = next((figure for figure in figures if figure.what == what), None)
        shown = figure or other[what]
        goal = (
            ""
            if shown.goal is None
            else f"{'≥' if shown.at_least else '≤'} {_number(shown.goal)}{shown.unit}"
        )
        cells = [
            what,
            goal,
            *(_cells(figure) if figure else ("not measured", "", "")),
            _gpu_cell(other.get(what)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(figure: Figure) -> tuple[str, str, str]:
    measured = f"{_number(figure.value)}{figure.unit}" + (
        f" ({figure.detail})" if figure.detail else ""
    )
    verdict = {None: "", True: "met", False: "**missed**"}[figure.is_met]
    return measured, "" if figure.ratio is None else f"{figure.ratio:.2f}", verdict


def _gpu_cell(figure: Figure | None) -> str:
    return (
        "not measured" if figure is None else " ".join(cell for cell in _cells(figure)[::2] if cell)
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write_page(
    page: Path, template: Path, found: Mapping[str, Mapping[str, Any]], order: Sequence[str]
) -> None:
    """Fill the page between `<!-- NAME -->` and `<!-- end -->`.

    NAME is a section, or `table` for all figures. Text outside is written by hand.
    """
    rows, gpu_rows = (
        [
            Figure(**row)
            for name in order
            for row in found.get(f"{name}{suffix}", {}).get("figures", ())
        ]
        for suffix in ("", "_gpu")
    )
    texts = {"table": table(rows, gpu_rows)}
    for name in order:
        parts = [
            _headed(found[key], " on a GPU" * key.endswith("_gpu"))
            for key in (name, f"{name}_gpu")
            if key in found
        ]
        texts[name] = "\n\n".join(parts) or "Not measured yet."
    text = (page if page.is_file() else template).read_text(encoding="utf-8")
    pattern = rf"(<!-- ({'|'.join(texts)}) -->\n).*?(<!-- end -->)"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(
        re.sub(pattern, lambda at: f"{at[1]}{texts[at[2]]}\n{at[3]}", text, flags=re.S),
        encoding="utf-8",
    )


def _headed(section: Mapping[str, Any], where: str) -> str:
    place = section["machine"]
    device = (
        place["gpu"]
        if where
        else f"{place['cpu']}, {place['cores']} cores, {place['threads']} threads"
    )
    quick = (
        " **In quick mode: to see that it works, not to be quoted.**" if section["quick"] else ""
    )
    head = (
        f"`{section['command']}`{where}: {device}, torch {place['torch']}, {place['date']}, "
        f"load {place['load']} before; took {section['seconds']:.0f} s.{quick}"
    )
    head = textwrap.fill(head, 100, break_long_words=False, break_on_hyphens=False)
    return f"{head}\n\n{section['text']}".strip()
