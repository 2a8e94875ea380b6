"""A report as text and as a page: they say what the records say and nothing else."""

import dataclasses
import re
import sys

import pytest
from rich.console import Console

import spectrim as st
from spectrim.core.bench import Verdict
from spectrim.core.figures import Curve, Try
from spectrim.core.records import Interactions, Latency, Report, Row, Score, Source, Training
from spectrim.report import lines, page, plot, table
from spectrim.report.text import short

BARE = Report(
    "Keep(0.5, 'macs')",
    st.Cost(1_000_000, 90_000_000),
    st.Cost(400_000, 30_000_000),
    (
        Row("conv1", "Conv2d", (8, 3, 3, 3), "Tucker2", (2, 4), 500_000, 100_000, 50_000_000, 9_000_000, 0.25, "refitted"),
        Row("conv2", "Conv2d", (8, 8, 3, 3), "-", 0, 300, 300, 30_000, 30_000, 0.0),
    ),
    {"head": "excluded by the configuration"},
    0.25,
    None,
    "nats",
    seconds={"statistics": 1.53, "refit": 2.0},
)
CURVE = Curve("before training", 0.2, (0.0, 1.0), (1.0, 2.0), (0.1, 0.2), (0.9, 0.5), 96)
PARTS = {  # what a report may have beside: how it changes the text and the number of plots
    "nothing": ({}, [], 0),
    "a measured harm": ({"measured_harm": 0.312}, ["measured after the refit 0.312"], 0),
    "scores": (
        {"selection": Score(0.9, 0.88, 0.42, 96), "test": Score(0.89, 0.86)},
        [
            "selection images  90.00 -> 88.00 (drop 2.00 +- 0.42 points, 96 images)",
            "test images       89.00 -> 86.00 (drop 3.00 points)",
        ],
        0,
    ),
    "latencies": (
        {"latency": (Latency(2.0, 1.9, 2.2, 200, 1), Latency(1.0, 0.9, 1.2, 200, 1))},
        ["latency, 1 thread         2.00 -> 1.00 ms (quartiles 1.90-2.20, 0.90-1.20; 200 runs each)"],
        0,
    ),
    "latencies alike": (
        {
            "latency": (Latency(2.0, 1.9, 2.2, 200, 1), Latency(1.95, 1.8, 2.1, 200, 1)),
            "verdict": Verdict(0.98, 0.97, 1.01, 200),
        },
        ["200 runs each); no difference found: 0.98 times the original's time, 95 % interval 0.97-1.01"],
        0,
    ),
    "a slower network": (
        {
            "latency": (Latency(2.0, 1.9, 2.2, 200, 2), Latency(3.0, 2.8, 3.1, 200, 2)),
            "verdict": Verdict(1.5, 1.45, 1.55, 200),
            "target": {"target": "ONNX Runtime", "version": "1.31.1"},
        },
        ["latency, 2 threads        2.00 -> 3.00 ms in ONNX Runtime 1.31.1 (", "slower: 1.50 times the original's time"],
        0,
    ),
    "one interaction": (
        {"interactions": Interactions(0.28, ("conv1",), (0.1,), ((0.5,),))},
        ["with interactions 0.28"],
        1,
    ),
    "interactions": (
        {"interactions": Interactions(0.28, ("conv1", "conv3"), (0.1, -0.2), ((0.5, -0.1), (-0.1, 0.4)))},
        ["with interactions 0.28", "interactions, strongest  conv3 and conv1 -0.1"],
        2,
    ),
    "tries": ({"tries": (Try(0.6, 0.5, 0.1), Try(0.4, 2.0, 0.25))}, [], 1),
    "training": (
        {
            "task": "trained for low rank",
            "training": Training({"epochs": 2}, 30, (1.5, 1.2), 10.0, 96, 3, 0.5, {"as trained": 0.9}, {"every": 2}),
            "flatness": (CURVE, dataclasses.replace(CURVE, label="after")),
        },
        [
            "trained  30 steps on 96 images, loss of an epoch 1.500 -> 1.200; 3 distortions, 5 % of the time",
            "accuracy as trained  90.00",
        ],
        1,
    ),
    "nothing predicted": ({"predicted_harm": None}, [], 0),
    "notes and a source": ({"notes": ("few images",), "source": Source("timm:resnet18", "npz:a.npz")}, ["note  few images"], 0),
}


LOADED = re.compile(
    r'(src|href)=(?!"#|"data:)|http-equiv|<script|<link|@import|url\((?!#)'
)  # what a browser would fetch or run


def report_of(name):
    return dataclasses.replace(BARE, **PARTS[name][0])


@pytest.mark.parametrize("name", PARTS)
def test_the_lines_say_what_there_is(name):
    text = "\n".join(lines(report_of(name)))
    assert "params 1,000,000 -> 400,000 (40.0 % kept), MACs 90,000,000 -> 30,000,000 (33.3 % kept)" in text
    assert "seconds  statistics 1.5, refit 2.0" in text and "left alone  head: excluded by the configuration" in text
    assert all(words in text for words in PARTS[name][1])
    others = [
        words for other, (_, found, _) in PARTS.items() if other != name for words in found if words not in PARTS[name][1]
    ]
    assert not any(words in text for words in others)
    assert ("harm, predicted layer by layer 0.25 nats" in text) == (name != "nothing predicted")


@pytest.mark.parametrize("name", PARTS)
def test_the_page_stands_alone_and_has_its_plots(name):
    html = page(report_of(name))
    assert html.count("<svg") == 2 + PARTS[name][2]
    assert "conv1" in html and "Tucker2" in html and not LOADED.search(html)


def test_names_of_layers_are_no_html():
    row = dataclasses.replace(BARE.rows[0], layer="<script>alert(1)</script>")
    assert "<script>alert" not in page(dataclasses.replace(BARE, rows=(row,), budget="<b>", notes=("<i>",)))


def test_the_table_fits_a_terminal():
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table(BARE))
    text = capture.get()
    assert max(map(len, text.splitlines())) <= 80
    for word in ("conv1", "Tucker2", "(2, 4)", "500.0k", "left alone", "whole network", "1.00M", "90.0M"):
        assert word in text, word


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00k"),
        (9999, "10.00k"),
        (147_456, "147.5k"),
        (1_000_000, "1.00M"),
        (4_089_184_256, "4.09G"),
    ],
)
def test_counts_are_short(number, text):
    assert short(number) == text and len(text) <= 6


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib.figure"])
def test_without_the_extra_the_page_says_what_to_install(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match="the HTML report needs Jinja2 and matplotlib: pip install jinja2 matplotlib"):
        page(BARE)


@pytest.mark.parametrize("name", PARTS)
def test_a_slower_network_is_told_at_first_sight(name):
    sentence, html = "SLOWER: takes 1.50 times as long as the original in ONNX Runtime 1.31.1", page(report_of(name))
    there = name == "a slower network"
    assert (sentence in str(table(report_of(name)).title)) == there
    assert (sentence in html[: html.index("of the parameters kept")]) == there


def test_the_plot_of_a_bench_has_a_bar_a_network(tmp_path):
    target = {"target": "ONNX Runtime", "version": "1.31.1", "device": "some CPU", "threads": "1", "precision": "f32"}
    times = [Latency(milliseconds, 0.9 * milliseconds, 1.2 * milliseconds, 200, 1, "process") for milliseconds in (2, 1)]
    first = st.BenchRow("original", target, 1, "process", times[0], times[0], 10)
    second = st.BenchRow("com<pressed", target, 1, "process", times[1], times[1], 5, None, Verdict(0.5, 0.49, 0.52, 200))
    plot(st.Bench((first, second)), tmp_path / "bench.svg")
    text = (tmp_path / "bench.svg").read_text()
    for words in ("original", "com&lt;pressed", "ONNX Runtime 1.31.1, f32, 1 thread, batch 1", "0.50 times: faster"):
        assert f"<!-- {words} -->" in text, words  # matplotlib notes texts beside their outlines
