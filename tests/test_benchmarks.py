"""The harness of the thirteen networks, end to end on one that needs no library, at smoke scale."""

import gzip
import json
import struct
import sys

import pytest
import torch
from torch import nn

from test_house import ROOT


@pytest.fixture
def thirteen(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import thirteen

    return thirteen


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


def run(thirteen, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["thirteen.py", *map(str, arguments)])
    thirteen.main()


def test_every_step_of_one_network_and_going_on(thirteen, data, tmp_path, monkeypatch, capsys):
    target = tmp_path / "out" / "thirteen.json"
    common = ("--data", data, "--state", tmp_path / "state", "--target", target, "--part", 0.1, "--only", "LeNet-5")
    run(thirteen, monkeypatch, *common, "--epochs", 20)
    cells = json.loads(target.read_text())["cells"]
    row = "squares | LeNet-5"
    assert [name.removeprefix(row) for name in cells] == [
        " | baseline",
        " | params",
        " | macs",
        " | control, fine-tuned",
        " | params, fine-tuned",
        " | macs, fine-tuned",
    ]
    assert cells[f"{row} | baseline"]["params"] == 61_706  # LeNet-5 with one input channel
    for metric in ("params", "macs"):
        cell = cells[f"{row} | {metric}"]
        assert cell[f"{metric} kept"] < 1 and cell["held-out drop"] <= 1.5 and cell["test images"] == 30
        tuned = cells[f"{row} | {metric}, fine-tuned"]
        assert tuned.get("missed") or tuned[f"{metric} kept"] <= cell[f"{metric} kept"] + 1e-9
    assert "| LeNet-5 |" in target.with_suffix(".md").read_text() and target.with_suffix(".svg").exists()
    before = target.read_text()
    capsys.readouterr()
    run(thirteen, monkeypatch, *common, "--epochs", 20)
    assert capsys.readouterr().out == "" and target.read_text() == before  # nothing is done twice
    with pytest.raises(SystemExit, match="baseline"):
        run(thirteen, monkeypatch, *common, "--redo", "params", "--state", tmp_path / "elsewhere")


def test_weights_in_small_files(thirteen, tmp_path, monkeypatch):
    monkeypatch.setattr(thirteen, "SHARD", 1000)
    model = nn.Sequential(nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.Conv2d(40, 4, 1))
    thirteen.save_shards(model, tmp_path / "w")
    files = sorted(tmp_path.iterdir())
    assert len(files) > 3 and max(file.stat().st_size for file in files) < 2000  # 1,000 and the heads
    other = nn.Sequential(nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.Conv2d(40, 4, 1))
    thirteen.load_shards(other, tmp_path / "w")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value.half().float() if value.is_floating_point() else value)
    files[1].unlink()
    with pytest.raises(SystemExit, match="not whole"):
        thirteen.load_shards(other, tmp_path / "w")


@pytest.mark.parametrize(
    ("page", "data"),
    [("README.md", "cifar10-jpeg"), ("docs/thirteen.md", "cifar10-jpeg"), ("docs/thirteen.md", "fashion-mnist")],
)
def test_the_pages_tell_what_was_measured(thirteen, page, data):
    cells = json.loads((ROOT / "benchmarks" / "results" / "thirteen.json").read_text())["cells"]
    assert "\n".join(thirteen.summary(cells, data)) in (ROOT / page).read_text()
