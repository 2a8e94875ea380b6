"""The benchmark of files for devices, end to end on a network that needs no library, and what its page tells."""

import json
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

import spectrim as st


def tiny():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(512, 5)
    )


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
@pytest.mark.filterwarnings("ignore")  # of the quantizer
def test_files_of_one_network(protocol, monkeypatch, tmp_path):
    exports, target = protocol("exports"), tmp_path / "exports.json"
    inputs = torch.randn(2, 24, 3, 8, 8).unbind()
    network = exports.Network(lambda _: (tiny().eval(), True), lambda _: inputs, methods=(st.ChannelSVD(),))
    monkeypatch.setattr(exports, "NETWORKS", {"tiny": network})
    monkeypatch.setattr(exports, "FORMATS", {suffix: exports.FORMATS[suffix] for suffix in (".onnx", ".pt2")})
    monkeypatch.setattr(exports, "SECONDS", 0.0)
    given = ("--models", ".", "--data", ".", "--samples", ".", "--mobilenet", ".", "--target", target)
    monkeypatch.setattr(sys, "argv", ["benchmarks/exports.py", *map(str, given)])
    exports.main()
    cells, text = json.loads(target.read_text())["cells"], target.with_suffix(".md").read_text()
    for cell in cells.values():
        assert cell["float"]["difference"] < 1e-5 and cell["float"]["agreement"] == 1
        assert 0 < cell["macs kept"] <= 0.5 and cell["inputs"] == 24
        assert 0 < cell["float"]["low"] <= cell["float"]["ratio"] <= cell["float"]["high"]
    cell, other = cells["tiny | onnx"], cells["tiny | pt2"]
    assert cell["int8"]["bytes"] < cell["float"]["bytes"] < cell["original"]["bytes"]
    assert 1e-4 < cell["int8"]["difference"] < 1
    for found in (cell["float"], cell["int8"], other["float"]):
        assert f" | {found['bytes'] / cell['original']['bytes']:.2f} | " in text  # beside the float original in ONNX
    assert other["runtime"] == st.Torch().describe() and "int8 is for .onnx" in other["int8"]["refused"]
    assert "written in float only (tiny, pt2, int8)" in text


def test_differences_are_the_largest_relative_to_the_largest_output(protocol):
    exports = protocol("exports")
    other = torch.tensor([[1.0, -4.0], [2.0, 1.0]])
    pair = exports.Pair(None, None, other, other, [[row] for row in other.split(1)], True)
    found = exports.answers(lambda x: [x + torch.tensor([[0.5, 2.0]])], pair)
    assert found == {"difference": 0.5, "agreement": 0.5}


def test_the_page_tells_what_was_measured(protocol, root):
    cells = json.loads((root / "benchmarks" / "results" / "exports.json").read_text())["cells"]
    assert "\n".join(protocol("pages.exports").summary(cells)) in (root / "docs" / "device.md").read_text()


def test_random_networks_keep_the_size_of_signals(protocol):
    torch.manual_seed(0)
    networks, x = protocol("common.networks"), torch.randn(8, 3, 32, 32)
    model = protocol("exports").settled(networks.Unet(8), x)
    assert model(x).shape == (8, 4, 32, 32) and 0.3 < float(model(x).detach().std()) < 3
    assert networks.audio(16)(torch.randn(2, 1, 8000)).shape == (2, 35)
