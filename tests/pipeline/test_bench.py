"""`bench`: rows of every network, target and batch size; verdicts of pairs; as text, page and JSON."""

import pytest
import torch
from torch import nn

import spectrim as st
from nets import Residual
from spectrim.targets import memory


@pytest.fixture(scope="module")
def found():
    models = {"original": nn.Linear(256, 8192), "a network of a long name": nn.Linear(256, 16)}
    told = []
    bench = st.bench(
        models,
        torch.randn(3, 256),
        targets=[st.Torch(), st.Torch(threads=2)],
        batches=(1, 8),
        seconds=0.05,
        progress=lambda stage, share: told.append((stage, share)),
    )
    assert told == [("bench", share) for share in (0, 0.25, 0.5, 0.75, 1.0)]
    return bench


def test_there_is_a_row_of_every_network_target_and_batch_size(found):
    cells = [(row.model[:8], row.target["threads"], row.batch, row.clock) for row in found.rows]
    assert cells == [
        (name, threads, batch, clock)
        for threads, clock in (("1", "process"), ("2", "wall"))
        for batch in (1, 8)
        for name in ("original", "a networ")
    ]
    for row in found.rows:
        assert row.file_bytes == 4 * 257 * (8192 if row.model == "original" else 16)
        assert (row.process.clock, row.wall.clock) == ("process", "wall") and row.process.runs == row.wall.runs >= 8
        assert 0 < row.wall.low_ms <= row.wall.median_ms <= row.wall.high_ms


def test_each_is_compared_with_the_first_in_its_setting(found):
    assert [row.verdict is None for row in found.rows] == [True, False] * 4
    assert len(found.verdicts) == 4 and {name for _, name in found.verdicts} == {"a network of a long name"}
    assert [row.verdict.pairs for row in found.rows[1::2]] == [row.wall.runs for row in found.rows[::2]]


def test_text_page_and_json_hold_the_same(found):
    text, page = str(found), found._repr_html_()
    assert max(map(len, text.splitlines())) <= 80 and "a network o…" in text and "2 threads, batch 8" in text
    assert page.count("<tr>") == 1 + len(found.rows) and "a network of a long name" in page
    assert st.Bench.from_json(found.to_json()) == found and '"word": ' in found.to_json()


def test_large_numbers_still_fit_80_columns():
    times = st.Latency(12345.678, 12345.6, 12345.7, 8, 1, "process")
    target = {"target": "ONNX Runtime", "version": "1.32.0", "device": "x" * 30, "threads": "1", "precision": "f32"}
    verdict = st.Verdict(1.0, 1.0, 1.0, 8)
    row = st.BenchRow("n" * 40, target, 1, "process", times, times, 550_000_000, 1_200_000_000, verdict)
    assert max(map(len, str(st.Bench((row,))).splitlines())) <= 80


def test_peak_memory_is_that_of_weights_and_activations():
    session = st.Torch().load(nn.Linear(1024, 16384, bias=False), torch.zeros(256, 1024))
    found = memory.peak(session)
    if found is None:
        pytest.skip("this system does not tell a process's peak memory")
    weights, outputs = 4 * 1024 * 16384, 4 * 256 * 16384
    assert 0.9 * (weights + outputs) < found < 1.5 * (weights + outputs)


def test_where_the_system_does_not_tell_it_memory_is_not_known(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "nothing")
    assert memory.peak(st.Torch().load(nn.Linear(2, 2), torch.zeros(1, 2))) is None


def test_the_usual_targets_are_those_that_are_installed(monkeypatch):
    monkeypatch.setattr("spectrim.targets.base.find_spec", lambda name: None)
    (row,) = st.bench([nn.Linear(2, 2)], torch.zeros(1, 2), seconds=0.01).rows
    assert row.target["target"] == "PyTorch" and row.model == "network 1"


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"models": nn.Linear(2, 2)}, TypeError, "models is Linear of .*; it must be a dict or tuple of networks"),
        ({"models": {}}, TypeError, "it must be a dict or tuple of networks"),
        ({"models": [1]}, TypeError, r"list of \['int'\]"),
        ({"targets": st.Torch()}, TypeError, r"targets is Torch.*; it must hold runtimes, such as \(OnnxRuntime"),
        ({"targets": ["torch"]}, TypeError, "it must hold runtimes"),
        ({"batches": (0,)}, ValueError, "must hold whole numbers of at least 1"),
        ({"seconds": 0}, ValueError, "seconds is 0; it must be above 0"),
    ],
)
def test_wrong_input(given, error, text):
    with pytest.raises(error, match=text):
        st.bench(**{"models": [nn.Linear(2, 2)], "example": torch.zeros(1, 2)} | given)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "it has no 'rows'"), ('{"schema": 99, "rows": []}', "has schema 99"), ("[", "no JSON")],
)
def test_wrong_json(text, message):
    with pytest.raises(ValueError, match=message):
        st.Bench.from_json(text)


def test_a_network_of_ours_on_onnx_runtime():
    pytest.importorskip("onnxruntime")
    model, x = Residual(width=48), torch.randn(1, 3, 8, 8)
    small = st.compress(model, x, budget=st.Keep(0.6)).model
    first, second = st.bench((model, small), x, targets=[st.OnnxRuntime()], seconds=0.01).rows
    assert (first.model, second.model) == ("original", "compressed") and second.file_bytes < first.file_bytes
