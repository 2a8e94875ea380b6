"""The harness of the thirteen networks, end to end on one that needs no library, at smoke scale; and what the pages tell."""

import gzip
import json
import struct
import sys

import pytest
import torch
from torch import nn

import spectrim as st


@pytest.fixture
def data(tmp_path):
    """Fashion-MNIST's four files, with squares of the label's brightness."""
    folder = tmp_path / "squares"
    folder.mkdir()
    random = torch.Generator().manual_seed(0)
    for prefix, count in (("train", 5600), ("t10k", 300)):
        labels = torch.randint(0, 10, (count,), generator=random)
        pictures = (25 * labels[:, None, None] + torch.randint(0, 12, (count, 28, 28), generator=random)).to(torch.uint8)
        for name, values in (
            (f"{prefix}-images-idx3-ubyte", pictures),
            (f"{prefix}-labels-idx1-ubyte", labels.to(torch.uint8)),
        ):
            head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            (folder / f"{name}.gz").write_bytes(gzip.compress(head + values.numpy().tobytes(), 1))
    return folder


@pytest.fixture
def run(protocol, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmarks/thirteen.py", *map(str, arguments)])
        protocol("thirteen").main()

    return run


@pytest.fixture
def trained(protocol, monkeypatch):
    """Seconds of every training so far; the third one, the first fine-tuning, is interrupted when it is done."""
    thirteen, seconds = protocol("thirteen"), []
    fit = thirteen.fit

    def stopping(*arguments, **options):
        training = fit(*arguments, **options)
        seconds.append(training.seconds)
        if len(seconds) == 3:
            raise KeyboardInterrupt
        return training

    monkeypatch.setattr(thirteen, "fit", stopping)
    return seconds


def test_every_step_of_one_network_interrupted_and_going_on(run, trained, data, tmp_path, capsys):
    target, state, row = tmp_path / "out" / "thirteen.json", tmp_path / "state", "squares | LeNet-5"
    common = ("--data", data, "--state", state, "--target", target, "--part", 0.1, "--only", "LeNet-5", "--epochs", 20)
    with pytest.raises(SystemExit) as stopped:
        run(*common)
    assert stopped.value.code == 130 and "goes on" in capsys.readouterr().out
    assert len(list(state.glob("*.partial.pt"))) == 1 and list(state.glob("searches*/*/*"))
    assert f"{row} | params, fine-tuned" not in json.loads(target.read_text())["cells"]
    run(*common, "--plot")
    assert trained[3] == trained[2]  # what was finished is read, with the seconds that it took
    assert not list(state.glob("*.partial.pt")) and not list(state.glob("searches*/*"))
    assert "| LeNet-5 |" in target.with_suffix(".md").read_text() and target.with_suffix(".svg").exists()

    cells = json.loads(target.read_text())["cells"]
    endings = (" | baseline", " | params", " | macs", " | control, fine-tuned", " | params, fine-tuned", " | macs, fine-tuned")
    assert [name.removeprefix(row) for name in cells] == list(endings)
    assert cells[f"{row} | baseline"]["params"] == 61_706  # LeNet-5 with one input channel
    for metric in ("params", "macs"):
        cell = cells[f"{row} | {metric}"]
        assert cell[f"{metric} kept"] < 1 and cell["held-out drop"] <= 1.5 and cell["test images"] == 30
        assert cell["drop"] == pytest.approx(cell["before"] - cell["after"])
        tuned = cells[f"{row} | {metric}, fine-tuned"]
        assert tuned.get("missed") or tuned[f"{metric} kept"] <= cell[f"{metric} kept"] + 1e-9
        assert tuned["held-out drop"] in tuned["budgets tried"].values()
        assert len(tuned["budgets tried"]) <= 4 and tuned["fine-tuning seconds"] > 0
    for cell in cells.values():
        assert cell["versions"]["spectrim"] == st.__version__ and cell["versions"]["torch"] == torch.__version__
        assert cell["commit"] and cell["machine"] and cell["command"].startswith("python benchmarks/thirteen.py --data ")

    before = target.read_text()
    capsys.readouterr()
    run(*common)
    assert capsys.readouterr().out == "" and target.read_text() == before  # nothing is done twice
    with pytest.raises(SystemExit, match="baseline"):
        run(*common, "--redo", "params", "--state", tmp_path / "elsewhere")


def test_weights_in_small_files(protocol, tmp_path, monkeypatch):
    weights = protocol("common.weights")
    monkeypatch.setattr(weights, "SHARD", 1000)
    model = nn.Sequential(nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.Conv2d(40, 4, 1))
    weights.save(model, tmp_path / "w")
    files = sorted(tmp_path.iterdir())
    assert len(files) > 3 and max(file.stat().st_size for file in files) < 2000  # 1,000 and the heads
    other = nn.Sequential(nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.Conv2d(40, 4, 1))
    weights.load(other, tmp_path / "w")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value.half().float() if value.is_floating_point() else value)
    files[1].unlink()
    with pytest.raises(SystemExit, match="not whole"):
        weights.load(other, tmp_path / "w")


@pytest.mark.parametrize(
    ("page", "data"),
    [("docs/thirteen.md", "cifar10-jpeg"), ("docs/thirteen.md", "fashion-mnist")],
)
def test_the_pages_tell_what_was_measured(protocol, root, page, data):
    cells = json.loads((root / "benchmarks" / "results" / "thirteen.json").read_text())["cells"]
    assert "\n".join(protocol("pages.thirteen").summary(cells, data)) in (root / page).read_text()
