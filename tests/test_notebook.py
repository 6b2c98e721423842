"""The notebook runs from top to bottom, and is stored without outputs."""

import os
import re

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import ROOT

pytestmark = pytest.mark.slow  # whole runs


def test_the_tour_runs_and_ends_better_than_it_began(cache, monkeypatch):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    notebook = nbformat.read(ROOT / "notebooks" / "tour.ipynb", as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(
        output.text
        for output in outputs
        if output.output_type == "stream" and output.name == "stdout"
    )
    scores = {
        name.strip(): float(score)
        for name, score in re.findall(r"^(.{15}) +(-?\d+\.\d\d) dB$", text, re.MULTILINE)
    }
    assert list(scores) == [
        "the recording",
        "factorization",
        "first estimate",
        "after training",
        "oracle mask",
    ]
    assert scores["the recording"] + 2 < scores["after training"] < scores["oracle mask"]
    kinds = [
        kind for output in outputs if output.output_type == "display_data" for kind in output.data
    ]
    assert kinds.count("image/png") == 2
    assert (
        sum(
            "<audio" in output.data["text/html"]
            for output in outputs
            if "text/html" in output.get("data", {})
        )
        == 13
    )
