"""What the tests of the command line share, and leave out since it takes most of their time and others look at it."""

import functools
import sys
from pathlib import Path

import pytest

import spectrim as st
from spectrim import cli
from spectrim.factorize import cp
from spectrim.pipeline import account, calibration
from spectrim.report import figures
from spectrim.targets.timing import interleaved
from world import edit_world, make_world, run


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """No figures, short timings, few sweeps of CP's fits, few judges; `tests/report`, `targets`, `factorize`, `pipeline` have all."""
    monkeypatch.setattr(figures, "figures", lambda report: {})
    monkeypatch.setattr(calibration, "JUDGED", (16, 64))
    monkeypatch.setitem(interleaved.__kwdefaults__, "seconds", 0.1)
    monkeypatch.setattr(cp, "SWEEPS", 3)
    monkeypatch.setattr(cp, "SWEEPS_NEAR", 2)


@pytest.fixture(scope="session")
def saved_world(tmp_path_factory):
    """A folder of networks, images and runs, right and wrong, and the result that one of the runs saved."""
    folder = tmp_path_factory.mktemp("world")
    network = make_world(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # other places than where it is evaluated
        line = ["compress", "nets.py:build", "--data", "npz:test.npz", "--calibration", "npz:train.npz", "--weights", "w.pth"]
        assert run([*line, "--methods", "ChannelSVD", "--keep", "0.6", "--out", "run"])[0] == 0
        model, report = st.load("run", network), st.Report.from_json(Path("run/report.json").read_text())
        edit_world(folder)
        return folder, st.Result(model, st.Plan.from_json(Path("run/plan.json").read_text()), report)


@pytest.fixture
def world(saved_world, monkeypatch):
    """The folder, with the demo, the page and the timing cut short."""
    folder, result = saved_world
    monkeypatch.setattr(account, "interleaved", functools.partial(interleaved, seconds=0.0))
    monkeypatch.setattr(sys.modules["spectrim.pipeline.result"], "page", lambda report: "a page")
    monkeypatch.setattr(cli.demo, "run_demo", lambda progress, **where: result)
    return folder
