import json
import sys

import numpy as np
import pytest
import torch

from commands import compressing
from spectrim import cli
from spectrim.cli.splits import Specs, split_data


def test_images_for_a_rank_selection_that_measures(files, tmp_path, capsys):
    def count(wanted, validation=0.0):
        spec = f"npz:{files}/calibration.npz"
        sources = split_data(Specs(data=f"npz:{files}/test.npz", calibration=spec), images=wanted, validation=validation)
        return [sum(len(x) for x, _ in part) for part in (sources.calibration, sources.selection)]

    assert count((100, 0)) == [100, 600] and count((100, 200)) == [300, 400]
    assert count((100, 5000)) == [350, 350] and count((700, 5000)) == [700, 700]
    assert (
        count((700, 0), validation=1.0) == count((700, 5000), validation=1.0) == [350, 350]
    )  # decisions need others than the fit
    assert cli.main(compressing(files, tmp_path / "run", "--keep", "0.7", "--search", "Interaction")) == 0
    assert "had too little to measure on" not in " ".join(capsys.readouterr().out.split())  # unseen images serve


@pytest.mark.parametrize("size", [300, 1000, 1100, 1300])
def test_images_for_decisions_are_kept_away_from_training(tmp_path, size):
    """Whatever the size of the source: a fifth for decisions, of which none is trained on, and everything else is, once."""
    numbers = np.arange(size)
    images = np.stack([numbers // 256, numbers % 256, numbers * 0], -1).astype(np.uint8)[:, None, None]
    np.savez(tmp_path / "source.npz", images=np.tile(images, (1, 4, 4, 1)), labels=numbers % 10)
    spec = f"npz:{tmp_path}/source.npz"
    sources = split_data(Specs(data=spec, calibration=spec, mean="0", std="1"), images=(1024, 0), validation=0.2)

    def seen(batches):
        pixels = torch.cat([x[:, :2, 0, 0] for x, _ in batches]).mul(255).round().int()
        return (256 * pixels[:, 0] + pixels[:, 1]).tolist()

    held, trained, calibrated = map(seen, (sources.selection, sources.training, sources.calibration))
    assert len(held) == size // 5 and sorted(held + trained) == list(range(size))
    assert set(calibrated) <= set(trained) and len(calibrated) == min(1024, len(trained))


def test_images_for_decisions_of_their_own(files, tmp_path, capsys):
    with np.load(files / "test.npz") as held:
        np.savez(tmp_path / "held.npz", images=held["images"][:200], labels=held["labels"][:200])
    more = ["--max-drop", "20", "--methods", "ChannelSVD", "--selection", f"npz:{tmp_path}/held.npz"]
    assert cli.main(compressing(files, tmp_path / "run", *more)) == 0
    captured = capsys.readouterr()
    assert "inputs  1 x 28 x 28, as they are" in captured.err and "top-1 of the network as given" in captured.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["selection"]["examples"] == 200 and report["test"]["examples"] == 500
    assert report["images"] == 96  # and 16 more that nothing was fitted on
    assert cli.main(compressing(files, tmp_path / "b", "--max-drop", "20", "--selection", f"npz:{files}/test.npz")) == 2
    assert "it must be others" in capsys.readouterr().err


def test_data_of_a_callable_and_of_one_source(tmp_path, capsys, files, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from spectrim.demo import demo_images\n"
        "def batches():\n    x, y = demo_images('test')\n    return list(zip(x[:300].split(100), y[:300].split(100)))\n"
    )
    with np.load(files / "test.npz") as source:
        np.savez(tmp_path / "few.npz", images=source["images"][:200], labels=source["labels"][:200])
    common = [
        "compress",
        "spectrim.demo:FashionNet",
        "--weights",
        str(files / "w.safetensors"),
        "--images",
        "64",
        "--methods",
        "ChannelSVD",
        "--keep",
        "0.5",
    ]
    assert cli.main([*common, "--data", f"{tmp_path}/mine.py:batches", "--out", str(tmp_path / "a"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test"]["examples"] == 220  # 64 calibrate, 16 judge, the others test
    assert cli.main([*common, "--data", f"npz:{tmp_path}/few.npz", "--out", str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test"]["examples"] == 120  # 64 calibrate, 16 judge, the others test
    assert cli.main(["evaluate", str(tmp_path / "b")]) == 0
    assert "some of these images were calibrated or decided on" in capsys.readouterr().out
    noted = "; ".join(json.loads((tmp_path / "b" / "report.json").read_text())["notes"])
    assert "images of --data were calibrated on" in noted and "--weights" not in noted
    common = [*common[:-2], "--max-drop", "5"]
    assert cli.main([*common, "--data", f"npz:{tmp_path}/few.npz", "--out", str(tmp_path / "c"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["test"] is None and report["selection"]["examples"] == 120  # decided on: no test


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"labels": np.arange(40) / 7}, "one whole class number per image"),
        ({"labels": np.array(["dog"] * 40)}, "'dog'; they must be one whole class number"),
        ({"labels": np.eye(10)[np.arange(40) % 10]}, "one whole class number"),
        ({"labels": np.arange(40)}, "the network has 10 outputs"),
        ({"images": np.zeros((40, 1, 28, 28), np.uint8)}, "allowed are uint8, N x H x W"),
        ({"images": np.zeros((40, 28, 28), np.int64)}, "are int64, 40 x 28 x 28"),
        ({"images": np.zeros((40, 28, 28), np.float32)}, "floats, N x C x H x W"),
    ],
)
def test_test_images_that_do_not_fit_are_found_before_anything_else(files, tmp_path, capsys, monkeypatch, arrays, match):
    monkeypatch.delattr(sys.modules["spectrim.pipeline.prepare"], "Sweep")
    usual = {"images": np.zeros((40, 28, 28), np.uint8), "labels": np.arange(40) % 10}
    np.savez(tmp_path / "odd.npz", **(usual | arrays))
    command = compressing(files, tmp_path / "run", "--keep", "0.5")
    command[command.index("--data") + 1] = f"npz:{tmp_path}/odd.npz"
    assert cli.main(command) == 2
    assert match in " ".join(capsys.readouterr().err.split()) and [path.name for path in tmp_path.iterdir()] == ["odd.npz"]
