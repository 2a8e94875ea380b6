"""What commands print: readable at 80 columns and in a pipe, one JSON document if asked, nothing more if quiet."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import spectrim as st
from spectrim import cli
from world import at_home, run

LONG_NAME = """
from torch import nn

def build():
    name = "a_stage_of_the_network[0]_" + "with_a_long_name_" * 3
    block = nn.Sequential(nn.Conv2d(3, 128, 3), nn.Conv2d(128, 256, 3), nn.Conv2d(256, 4, 1))
    return nn.Sequential(nn.ModuleDict({name: block})[name]) if False else Net(name, block)

class Net(nn.Module):
    def __init__(self, name, block):
        super().__init__()
        self.blocks, self.name = nn.ModuleDict({name: block}), name

    def forward(self, x):
        return self.blocks[self.name](x)
"""
COMPRESS = ["compress", "nets.py:prints", "--data", "npz:test.npz", "--calibration", "npz:train.npz", "--methods", "ChannelSVD"]
COMMANDS = {  # of each the arguments, and what is in its JSON document
    "demo": (["demo", "--out", "out"], "kept"),
    "inspect": (["inspect", "nets.py:prints", "--input", "1,3,8,8"], "layers"),
    "compress": ([*COMPRESS, "--keep", "0.6", "--out", "out"], "kept"),
    "train": (["train", *COMPRESS[1:6], "--epochs", "1", "--batch", "16", "--out", "out"], "kept"),
    "evaluate": (["evaluate", "{w}/run"], "after"),
    "bench": (
        ["bench", "nets.py:prints", "nets.py:build", "--input", "1,3,8,8", "--seconds", "0.01", "--target", "torch"],
        "rows",
    ),
    "report": (["report", "{w}/run", "--out", "page.html"], "page"),
    "export": (["export", "{w}/run", "--to", "pt2", "--out", "model.pt2", "--input", "2,3,8,8"], 0),
}


def called(world, command, *more):
    """Run a command in a folder of its own beside the world's files."""
    with at_home(world) as home:
        for file in ("nets.py", "test.npz", "train.npz"):
            (home / file).symlink_to(world / file)
        return run([word.replace("{w}", str(world)) for word in (*COMMANDS[command][0], *more)])


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_one_document_whatever_the_network_prints(world, command):
    code, out, err = called(world, command, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found[COMMANDS[command][1]] is not None
    assert command in ("demo", "inspect") or re.search(r"\d\d:\d\d:\d\d .* done", err)  # the demo is cut short here
    assert command not in ("inspect", "compress", "train") or "building" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_quiet_prints_the_result_and_no_progress(world, command):
    code, out, err = called(world, command, "--quiet")
    lines = [line for line in out.splitlines() if line != "building"]
    assert code == 0 and not err.replace("building", "").strip(), err
    if command in ("demo", "compress", "train"):
        assert [Path(line).name for line in lines] == ["out"]
    elif command in ("report", "export"):
        assert lines == [COMMANDS[command][0][COMMANDS[command][0].index("--out") + 1]]
    else:
        assert lines


@pytest.mark.parametrize("command", ["compress", "inspect"])
def test_verbose_prints_what_is_logged(world, command):
    code, _, err = called(world, command, "--verbose")
    assert code == 0 and " done" not in err
    assert command == "inspect" or re.search(r"\d\d:\d\d:\d\d refit: \d+\.\d s", err), err
    assert not [each for each in logging.getLogger("spectrim").handlers if not isinstance(each, logging.NullHandler)]


def test_the_library_is_silent_unless_asked():
    assert any(isinstance(each, logging.NullHandler) for each in logging.getLogger("spectrim").handlers)


@pytest.mark.parametrize(("command", "more"), [("demo", ()), ("inspect", ("--target", "torch")), ("bench", ())])
def test_tables_fit_80_columns(world, command, more, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = called(world, command, *more)
    tables = out[: re.search(r"^params|\Z", out, re.M).start()]  # findings are a line each in a pipe
    assert len(tables.splitlines()) > 3 and max(len(line.rstrip()) for line in tables.splitlines()) <= 80
    assert "\x1b" not in out and "…" not in out


@pytest.mark.parametrize("columns", ["80", None])
def test_long_names_of_layers_are_never_cut(world, columns, monkeypatch):
    """On 80 columns they go on below; in a pipe without COLUMNS a layer is one line."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    with at_home(world):
        Path("long.py").write_text(LONG_NAME)
        code, out, err = run(["inspect", "long.py:build", "--input", "1,3,9,9"])
    name = "blocks.a_stage_of_the_network[0]_with_a_long_name_with_a_long_name_with_a_long_name_.1"
    assert code == 0, err
    assert (max(len(line.rstrip()) for line in out.splitlines()) <= 80) == (name not in out) == bool(columns)
    folded = "".join(re.findall(r"^ ([a-z_\[\]0-9.]+)", out, re.M))
    assert folded.count(name) == 2  # of both tables


def test_no_color():
    """On a terminal help is in bold letters, and with NO_COLOR in one colour."""
    terminal = {"TERM": "xterm-256color", "FORCE_COLOR": "1", "NO_COLOR": "1"}
    line = [sys.executable, "-m", "spectrim", "inspect", "--help"]
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=os.environ | terminal)
    assert "\x1b[1m" in done.stdout and not re.search(r"\x1b\[[0-9;]*3[0-9]", done.stdout)


def test_a_pipe_that_nobody_reads_is_no_error():
    line = [sys.executable, "-m", "spectrim", "inspect", "--help"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert process.returncode == 141 and "spectrim: " not in error and "Traceback" not in error, error


def test_version_and_completion(tmp_path, monkeypatch, capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == st.__version__
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(["--install-completion", "--shell", "bash"]) == 0
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any("spectrim" in file.read_text() and "--max-drop" in file.read_text() for file in files), files


def test_a_tracker_is_checked_before_the_work_and_gets_the_run(world):
    code, _, err = called(world, "compress", "--track", "wandb:x")
    assert code == 2 and "there is no tracker 'wandb:x'; allowed are tensorboard:DIR and mlflow:URI" in " ".join(err.split())
    pytest.importorskip("tensorboard")
    with at_home(world) as home:
        for file in ("nets.py", "test.npz", "train.npz"):
            (home / file).symlink_to(world / file)
        code, _, err = run([*COMMANDS["compress"][0], "--track", "tensorboard:tb"])
        assert code == 0 and list((home / "tb" / "out").glob("events.out.*")), err
