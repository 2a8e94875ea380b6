"""Runs that version 0.1.0 saved: their plan, weights and report are read as they were written."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import spectrim as st
from nets import Residual
from spectrim import cli

SAVED = Path(__file__).parents[1] / "saved" / "run-0.1.0"


def test_a_run_of_0_1_0_loads():
    small = st.load(SAVED, Residual())
    assert st.cost(small, torch.zeros(1, 3, 8, 8)).macs == json.loads((SAVED / "report.json").read_text())["after"]["macs"]
    plan = st.Plan.from_json((SAVED / "plan.json").read_text())
    assert len(plan) > 2 and plan.cost.macs <= 0.6 * plan.original.macs
    report = st.Report.from_json((SAVED / "report.json").read_text())
    assert report.after == plan.cost and report.source.model == "nets.py:Residual" and report.source.calibration is None
    assert report.test is not None and report.images == 32 and report.title == "Compressed to Keep(0.6, 'macs')"


def test_a_run_of_0_1_0_is_evaluated(tmp_path, monkeypatch, capsys):
    """Its score is the one that was written down; on its images, and without the original's weights beside it."""
    for name in ("plan.json", "model.safetensors", "report.json"):
        (tmp_path / "run").mkdir(exist_ok=True)
        shutil.copy(SAVED / name, tmp_path / "run" / name)
    shutil.copy(SAVED / "images.npz", tmp_path)
    shutil.copy(Path(__file__).parents[1] / "nets.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == 80 and found["after"] == pytest.approx(67 / 80)  # what 0.1.0 itself said of these images
    assert found["note"] == "some of these images were calibrated or decided on"
