"""The benchmark of times, end to end on a network that needs no library: through the same cells as the large ones."""

import json
import sys

import pytest

import spectrim as st

NET = '''
from torch import nn


def build():
    """Wide enough that a low rank is faster anywhere."""
    layers = [nn.Conv2d(3, 128, 3, 2, 1), nn.ReLU(), nn.Conv2d(128, 128, 3, 1, 1), nn.ReLU(), nn.Conv2d(128, 128, 3, 1, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
'''


@pytest.fixture
def run(protocol, monkeypatch, tmp_path):
    latency, stopwatch = protocol("latency"), protocol("spectrim.pipeline.stopwatch")
    (tmp_path / "wide.py").write_text(NET)
    monkeypatch.setattr(latency, "NETWORKS", {"wide": f"{tmp_path / 'wide.py'}:build"})
    monkeypatch.setattr(latency, "SHAPE", (1, 3, 56, 56))
    monkeypatch.setattr(latency, "SECONDS", 0.1)
    monkeypatch.setattr(stopwatch, "LEAST", 4)
    target = tmp_path / "latency.json"

    def run(name):
        given = ("--models", ".", "--data", ".", "--target", target, "--only", name)
        monkeypatch.setattr(sys, "argv", ["benchmarks/latency.py", *map(str, given)])
        latency.main()
        return json.loads(target.read_text())["cells"], target.with_suffix(".md").read_text()

    return run


def test_a_cell_tells_time_shares_predictions_and_prices(run):
    cells, text = run("wide | torch | 0.7")
    (cell,) = cells.values()
    assert cell["runtime"] == st.Torch().describe() and 0 < cell["MACs"] < 1 and cell["networks timed"] >= 3
    for way in ("by latency", "by MACs, aligned", "by MACs, any ranks"):
        ratio, low, high = cell[way]
        assert 0 < low <= ratio <= high and cell[f"MACs of {way}"] <= cell["MACs"] + 1e-9
    assert all(0 < cell[key] < 1 for key in ("formula", "column", "loop", "least")) and cell["loop"] <= 0.7
    assert 0 < cell["timing"] < cell["everything"]
    share = cell["MACs"] / cell["by latency"][0]
    assert f"| wide, torch, 0.7 | {cell['original ms']:.1f} |" in text and f"| {share:.2f} |" in text


def test_a_budget_below_what_can_be_reached_is_told(protocol, run, monkeypatch):
    monkeypatch.setattr(protocol("latency"), "BUDGETS", (0.01,))
    monkeypatch.setattr(protocol("latency"), "HALVES", ("wide",))
    cells, text = run("wide | torch")
    (cell,) = cells.values()
    assert set(cell) >= {"missed", "timing", "networks timed"} and cell["missed"] in text


def test_the_front_is_sorted_by_time(protocol):
    pages = protocol("pages.latency")
    given = {"budget": 0.5, "macs kept": 0.5, "KL": 0.01, "drop": 0.4, "standard error": 0.2, "original ms": 3.0}
    runtime = {"target": "R", "version": "1"}
    cells = {
        f"front | N | {way} | 0.5": {**given, "time": [time, time, time], "runtime": runtime}
        for way, time in zip(pages.WAYS, (0.6, 0.5, 1.4), strict=True)
    }
    lines = [line for line in pages.markdown({"command": "c", "cells": cells}).splitlines() if line.startswith("| by")]
    assert [line.split(", 50 %")[0] for line in lines] == ["| by MACs, aligned", "| by latency", "| by MACs, any ranks"]
