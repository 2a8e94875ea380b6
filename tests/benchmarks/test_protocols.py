"""Every protocol: it can be started, its tables are those of its results, and the loop of cells keeps what is done."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(protocol, name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as done:
        protocol(name).main()
    assert done.value.code == 0
    assert f"python benchmarks/{name}.py " in capsys.readouterr().out  # a command that can be copied


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_tables_are_those_of_the_results(protocol, path):
    module = protocol(path.stem.partition("_")[0])
    assert path.with_suffix(".md").read_text() == module.PROTOCOL.markdown(module.PROTOCOL.read(path))


def test_files_are_short():
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


@pytest.fixture
def small(protocol, tmp_path, monkeypatch):
    """Run a protocol of two cells; returns the names of those that were measured."""
    runner = protocol("common.runner")

    def run(*arguments, fail=""):
        measured = []

        def jobs(_):
            def job(name):
                if name == fail:
                    raise KeyboardInterrupt
                measured.append(name)
                return {"number": len(name)}

            return {name: lambda name=name: job(name) for name in ("one", "one more")}

        own = runner.Protocol("small", "python small.py", lambda results: " ".join(results["cells"]))
        monkeypatch.setattr(sys, "argv", ["small.py", "--target", str(tmp_path / "small.json"), *arguments])
        own.main("About.", jobs)
        return measured

    return run


def test_cells_are_kept_and_say_where_they_come_from(small, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        small("--data", ".", fail="one more")
    assert stopped.value.code == 130
    assert small("--data", ".") == ["one more"]  # what was done is kept
    assert small("--data", ".") == []
    assert small("--data", ".", "--redo", "one") == ["one"]  # a whole name means that cell alone
    assert small("--data", ".", "--redo", "on") == ["one", "one more"]
    results = json.loads((tmp_path / "small.json").read_text())
    assert results["command"] == "python small.py"
    for cell in results["cells"].values():
        assert set(cell) == {"number", "commit", "machine", "versions", "command"}
        assert set(cell["versions"]) == {"python", "torch", "spectrim"}
        assert cell["command"] == f"python benchmarks/small.py --target {tmp_path / 'small.json'} --data . --redo on"
    assert (tmp_path / "small.md").read_text() == "one one more"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "--data is needed"),
        (("--tables",), "there are no results"),
        (("--data", ".", "--part", "0.1", "--target", str(RESULTS[0])), "give another --target"),
    ],
)
def test_what_cannot_be_run_says_why(small, arguments, reason, capsys):
    with pytest.raises(SystemExit) as stopped:
        small(*arguments)
    assert stopped.value.code == 2 and reason in capsys.readouterr().err


def test_old_cells_are_read(protocol):
    tables = protocol("common.tables")
    old, new = {"drop": 1.0, "code": "abc", "machine": "m"}, {"drop": 1.0, "commit": "abc", "machine": "n", "versions": {}}
    assert tables.measured(old) == tables.measured(new) == {"drop": 1.0}
    results = {"command": "c", "machine": "first", "cells": {"a": {}, "b": old, "c": new}}
    assert tables.head("T", results)[2] == "`c` on first; m; n"  # the oldest cells have the machine of the file


def test_scores_against_counting(protocol):
    scores = protocol("common.scores")
    x, y = torch.randn(50, 4), torch.randint(0, 3, (50,))
    before, after = nn.Linear(4, 3), nn.Linear(4, 3)
    found = scores.Judge(before, [(x[:30], y[:30]), (x[30:], y[30:])]).compare(after)
    first, second = (model(x).argmax(1) == y for model in (before, after))
    lost = 100 * (first.double() - second.double())
    p, q = (model(x).detach().softmax(1) for model in (before, after))
    assert found["before"] == pytest.approx(first.double().mean()) and found["after"] == pytest.approx(second.double().mean())
    assert found["drop"] == pytest.approx(lost.mean()) and found["standard error"] == pytest.approx(lost.std() / 50**0.5)
    assert found["KL"] == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-4)
    assert found["test images"] == 50


def test_growing_images(protocol):
    training = protocol("common.training")
    batches = training.Growing((torch.randn(256, 3, 32, 32), torch.arange(256) % 10), [16, 24, 32])
    for epoch, side in enumerate((16, 24, 32)):
        batches.set_epoch(epoch)
        assert [images.shape for images, _ in batches] == [(128, 3, side, side)] * 2
