"""A report as text and as a page: they say what the records say and nothing else."""

import dataclasses
import re
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

import spectrim as st
from spectrim.core.bench import Verdict
from spectrim.core.figures import Curve, Limit, Spectrum, Try
from spectrim.core.records import Interactions, Latency, Report, Row, Source, Training
from spectrim.core.score import Score
from spectrim.report import as_text, compare, findings, lines, page, plot, table, words
from spectrim.report.figures import compared, figures
from spectrim.report.spectra import spectra
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
SPECTRA = (
    Spectrum("conv1", "Tucker2", (3, 8), ((1, 2), (2, 4)), (4_000_000, 9_000_000), (0.5, 0.25)),
    Spectrum("conv1", "ChannelSVD", 8, (2, 4, 6), (8_000_000, 17_000_000, 25_000_000), (0.4, 0.1, 0.0)),
)
PARTS = {  # what a report may have beside: how it changes the text, and which figures
    "nothing": ({}, [], ()),
    "a measured harm": ({"measured_harm": 0.312}, ["measured after the refit 0.312"], ()),
    "scores": (
        {"selection": Score(0.9, 0.88, 0.42, 96), "test": Score(0.89, 0.86)},
        [
            "selection images  90.00 -> 88.00 (drop 2.00 +- 0.42 points, 96 images)",
            "test images       89.00 -> 86.00 (drop 3.00 points)",
        ],
        (),
    ),
    "scores in units": (
        {
            "selection": Score(30.5, 30.25, 0.12, 96, "PSNR", "dB", also=(Score(0.9, 0.92, name="SSIM"),)),
            "test": Score(0.4512, 0.4633, None, None, "loss", "nats", larger_is_better=False),
        },
        [
            "PSNR on the selection images  30.50 -> 30.25 dB (drop 0.25 +- 0.12 dB, 96 images)",
            "SSIM on the selection images  90.00 -> 92.00 (drop -2.00 points)",
            "loss on the test images       0.4512 -> 0.4633 nats (rise 0.0121 nats)",
        ],
        (),
    ),
    "latencies": (
        {"latency": (Latency(2.0, 1.9, 2.2, 200, 1), Latency(1.0, 0.9, 1.2, 200, 1))},
        ["latency, 1 thread         2.00 -> 1.00 ms (quartiles 1.90-2.20, 0.90-1.20; 200 runs each)"],
        (),
    ),
    "latencies alike": (
        {
            "latency": (Latency(2.0, 1.9, 2.2, 200, 1), Latency(1.95, 1.8, 2.1, 200, 1)),
            "verdict": Verdict(0.98, 0.97, 1.01, 200),
        },
        ["200 runs each); no difference found: 0.98 times the original's time, 95 % interval 0.97-1.01"],
        (),
    ),
    "a slower network": (
        {
            "latency": (Latency(2.0, 1.9, 2.2, 200, 2), Latency(3.0, 2.8, 3.1, 200, 2)),
            "verdict": Verdict(1.5, 1.45, 1.55, 200),
            "target": {"target": "ONNX Runtime", "version": "1.31.1"},
        },
        ["latency, 2 threads        2.00 -> 3.00 ms in ONNX Runtime 1.31.1 (", "slower: 1.50 times the original's time"],
        (),
    ),
    "one interaction": (
        {"interactions": Interactions(0.28, ("conv1",), (0.1,), ((0.5,),))},
        ["with interactions 0.28"],
        ("marginal",),
    ),
    "interactions": (
        {"interactions": Interactions(0.28, ("conv1", "conv3"), (0.1, -0.2), ((0.5, -0.1), (-0.1, 0.4)))},
        ["with interactions 0.28", "interactions, strongest  conv3 and conv1 -0.1"],
        ("marginal", "partners"),
    ),
    "tries": (
        {
            "selection": Score(0.92, 0.91, 0.5, 96),
            "limits": (Limit("MaxDrop", 1.5, "params"),),
            "tries": (
                Try(0.6, 0.5, 0.1, 0.4, 0.6, 0.5),
                Try(0.4, 1.0, 0.25, 0.5, 0.4, 1 / 3),
                Try(0.3, 2.0, 0.4, 0.6, 0.3, 0.2),
            ),
        },
        ["selection images  92.00 -> 91.00 (drop 1.00 +- 0.50 points, 96 images)"],
        ("trade_off_params", "trade_off_macs"),
    ),
    "tries of version 0.1.0": (
        {"budget": "MaxDrop(1.5, 'params')", "selection": Score(0.93, 0.91), "tries": (Try(0.6, 0.5, 0.0), Try(0.4, 2.0, 0.0))},
        ["selection images  93.00 -> 91.00 (drop 2.00 points)"],
        ("trade_off_params",),
    ),
    "spectra": ({"spectra": SPECTRA}, [], ("cut", "options")),
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
        ("flatness",),
    ),
    "nothing predicted": ({"predicted_harm": None}, [], ()),
    "notes and a source": (
        {"notes": ("few images",), "source": Source("timm:resnet18", "npz:a.npz")},
        ["note  few images"],
        (),
    ),
}


SCRIPTS = re.compile("<script.*?</script>", re.S)
LOADED = re.compile(r"(src|href)=(?!\"#|\"data:)|<script|<link|@import|url\((?!#)")  # what a browser would fetch or run


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
def test_the_page_stands_alone_and_has_its_figures(name):
    report = report_of(name)
    assert set(figures(report)) == {"saved", *PARTS[name][2]}
    html = page(report)
    text = SCRIPTS.sub("", html)
    assert text.count("data-root-id") == text.count("<figcaption>") == 1 + len(PARTS[name][2])
    assert "conv1" in text and "Tucker2" in text and not LOADED.search(text) and len(html) < 3_000_000
    assert not re.search(r"<script[^>]* src", html)


def test_the_page_says_scores_in_their_units():
    report = report_of("scores in units")
    html = page(dataclasses.replace(report, test=dataclasses.replace(report.test, also=report.selection.also)))
    for told in (
        "<h2>loss on the test images, read once for this</h2>",
        '<p class="big">0.4512 → 0.4633 nats</p>\n<span class="mark bad">✗ loss risen 0.0121 nats</span>',
        "by which was decided: 30.50 → 30.25 dB, PSNR lost 0.25 ± 0.12 dB; 90.00 → 92.00 %, SSIM gained 2.00 points</p>",
        'SSIM 90.00 → 92.00 % <span class="mark good">✓ SSIM gained 2.00 points</span>',
    ):
        assert told in html, told


def test_names_of_layers_are_no_html():
    row = dataclasses.replace(BARE.rows[0], layer="</script><script>alert(1)</script>")
    spectra = [dataclasses.replace(spectrum, layer=row.layer) for spectrum in SPECTRA]
    odd = dataclasses.replace(BARE, rows=(row,), budget="<b>", notes=("<i>",), spectra=tuple(spectra))
    for html in (page(odd), compare({"<b>": odd, "b": odd})):
        assert "<script>alert" not in html and html.count("<script") == html.count("</script>")
        text = SCRIPTS.sub("", html).replace("<b>Harm</b>", "")
        assert "<i>" not in text and "<b>" not in text


def test_paths_that_are_no_utf_8_are_shown():
    source = Source("nets.py:build", "npz:/data/a\udcff.npz")
    assert "a\\udcff.npz" in page(dataclasses.replace(BARE, source=source, network="Net"))


def test_a_page_of_an_edited_report_has_what_is_there():
    rows = tuple(dataclasses.replace(row, time=(2.0, 1.0)) for row in BARE.rows)
    odd = dataclasses.replace(BARE, rows=rows, row_times="measured", date="yesterday", target={"target": "PyTorch"})
    assert "2.000 → 1.000" in page(odd) and "<h1>a network, compressed</h1>" in page(odd)


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


@pytest.mark.parametrize("missing", ["jinja2", "bokeh.plotting"])
def test_without_the_extra_the_page_says_what_to_install(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    for make in (lambda: page(report_of("tries")), lambda: compare({"a": report_of("tries"), "b": report_of("tries")})):
        with pytest.raises(ImportError, match=r'the HTML report needs Jinja2 and Bokeh: pip install "spectrim\[report\]"'):
            make()


@pytest.mark.parametrize("name", PARTS)
def test_a_slower_network_is_told_at_first_sight(name):
    sentence, html = "SLOWER: takes 1.50 times as long as the original in ONNX Runtime 1.31.1", page(report_of(name))
    there = name == "a slower network"
    assert (sentence in str(table(report_of(name)).title)) == there
    assert (f"✗ {sentence}" in html[: html.index('<div class="cards">')]) == there


POINTS = (Limit("MaxDrop", 1.5, "macs"),)
SCORES = {  # score, bounds: good or bad, and the words
    "gained": (Score(0.9, 0.91, 0.3, 96), (), "good", "gained 1.00 ± 0.30 points"),
    "within its error": (Score(0.9, 0.895, 0.3, 96), (), "open", "lost 0.50 ± 0.30 points: less than 2 standard errors"),
    "lost": (Score(0.9, 0.89, 0.3, 96), (), "bad", "lost 1.00 ± 0.30 points"),
    "no error known": (Score(0.9, 0.899), (), "bad", "lost 0.10 points"),
    "within the bound": (Score(0.9, 0.89, 0.3, 96), POINTS, "good", "lost 1.00 ± 0.30 points, 1.5 allowed"),
    "at the bound": (Score(0.9, 0.885), POINTS, "good", "lost 1.50 points, 1.5 allowed"),
    "a little over": (Score(0.9, 0.88, 0.3, 96), POINTS, "open", "over the bound by less than 2 standard errors: lost 2.00"),
    "over": (Score(0.9, 0.88, 0.2, 96), POINTS, "bad", "OVER THE BOUND: lost 2.00 ± 0.20 points, and 1.5 was allowed"),
    "decibels": (Score(31.0, 30.5, name="PSNR", unit="dB"), (), "bad", "PSNR lost 0.50 dB"),
    "a lower loss": (Score(0.45, 0.44, None, None, "loss", "nats", False), (), "good", "loss fallen 0.0100 nats"),
    "a higher loss": (Score(0.45, 0.46, 0.004, 96, "loss", "nats", False), (), "bad", "loss risen 0.0100 ± 0.0040 nats"),
    "a loss over its bound": (
        Score(1.0, 2.8, None, None, "loss", "nats", False),
        POINTS,
        "bad",
        "OVER THE BOUND: loss risen 1.800",
    ),
    "a perplexity within": (
        Score(9.0, 10.0, 0.2, 96, "perplexity", "", False),
        POINTS,
        "good",
        "perplexity risen 1.00 ± 0.20, 1.5 al",
    ),
}


@pytest.mark.parametrize("name", SCORES)
def test_what_is_said_of_the_score(name):
    score, limits, kind, words = SCORES[name]
    report = dataclasses.replace(BARE, test=score, limits=limits)
    found = findings.deciding(report)
    assert found.kind == kind and found.text.startswith(words)
    assert (found in findings.failures(report)) == (bool(limits) and kind != "good")
    if limits and kind != "good":
        assert found.text in page(report).partition('<div class="cards">')[0] and found.text in str(table(report).title)


def test_the_test_images_count_and_not_those_that_decided():
    report = dataclasses.replace(BARE, selection=Score(0.9, 0.9, 0.1, 96), test=Score(0.9, 0.8, 0.1, 96), limits=POINTS)
    assert findings.deciding(report).kind == "bad" and findings.deciding(BARE) is None


TIMES = {"latency": (Latency(2.0, 1.9, 2.2, 200, 1), Latency(1.2, 1.1, 1.3, 200, 1)), "verdict": Verdict(0.6, 0.58, 0.62, 200)}
BOUNDS = {  # of one that keeps 40 % of the parameters, a third of the MACs, half of the bytes and 0.6 of the time
    "params hold": (Limit("Keep", 0.4, "params"), None),
    "params": (Limit("Keep", 0.3, "params"), ("bad", "OVER THE BOUND: 40 % of parameters, and 30 % was allowed")),
    "macs": (Limit("AtMost", 2e7, "macs"), ("bad", "OVER THE BOUND: 30,000,000 of MACs, and 20,000,000 was allowed")),
    "bytes hold": (Limit("AtMost", 2e6, "bytes"), None),
    "bytes": (Limit("Keep", 0.4, "bytes"), ("bad", "OVER THE BOUND: 50 % of bytes, and 40 % was allowed")),
    "time holds": (Limit("Keep", 0.6, "latency"), None),
    "time, in its error": (
        Limit("Keep", 0.59, "latency"),
        ("open", "over the bound by less than the measurement's error: 60 %"),
    ),
    "time": (Limit("Keep", 0.5, "latency"), ("bad", "OVER THE BOUND: 60 % of time, and 50 % was allowed")),
    "milliseconds": (Limit("AtMost", 1.0, "latency"), ("bad", "OVER THE BOUND: 1.2 ms of time, and 1 ms was allowed")),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_that_do_not_hold_are_told(name):
    limit, wanted = BOUNDS[name]
    found = findings.failures(dataclasses.replace(BARE, limits=(limit,), stored=(4_000_000, 2_000_000), **TIMES))
    assert [each.kind for each in found] == ([wanted[0]] if wanted else [])
    assert not wanted or found[0].text.startswith(wanted[1])
    assert not findings.failures(dataclasses.replace(BARE, limits=(limit,))) or limit.metric in ("params", "macs")


def test_what_was_asked_is_in_the_unit_of_the_score():
    report = dataclasses.replace(BARE, limits=(Limit("MaxDrop", 0.02, "macs"),))
    assert words.asked(report) == "as few MACs as possible at a drop of at most 0.02"
    for score, asked in (
        (Score(0.9, 0.9), "at a drop of at most 0.02 points in score"),
        (Score(0.4, 0.4, None, None, "loss", "nats", False), "at a rise of at most 0.02 nats in loss"),
        (Score(9.0, 9.0, None, None, "perplexity", "", False), "at a rise of at most 0.02 in perplexity"),
    ):
        assert words.asked(dataclasses.replace(report, selection=score)) == f"as few MACs as possible {asked}"


def test_a_layer_that_stays_dense_and_was_refitted_is_not_left_alone():
    row = dataclasses.replace(BARE.rows[1], fitted="dense, refitted on 96 images")
    only = dataclasses.replace(BARE, rows=(BARE.rows[0], dataclasses.replace(row, fitted="dense; answers scaled by 1.18")))
    assert "dense, scaled" in as_text(table(only)) and "dense; answers scaled by 1.18" in page(only)
    report = dataclasses.replace(BARE, rows=(BARE.rows[0], row))
    assert 'class="alone"' in page(BARE) and "left alone" in page(BARE)
    for html in (page(report), compare({"a": report, "b": report})):
        assert 'class="alone"' not in html and "left alone" not in html and "dense, refitted" in html
    assert '<td data-name="fitted">dense, refitted on 96 images</td>' in page(report)
    assert "dense, refitted" in as_text(table(report)) and "left alone" not in as_text(table(report))


def test_the_budgets_of_a_loss_are_drawn_upwards():
    loss = Score(0.4, 0.41, 0.002, 96, "loss", "nats", False)
    tries = (
        Try(0.6, 0.005, 0.1, 0.001, 0.6, 0.5),
        Try(0.4, 0.01, 0.2, 0.002, 0.4, 1 / 3),
        Try(0.3, 0.05, 0.4, 0.005, 0.3, 0.2),
    )
    report = dataclasses.replace(BARE, selection=loss, tries=tries, limits=(Limit("MaxDrop", 0.02, "macs"),))
    plot = figures(report)["trade_off_macs"]
    points = {}
    for each in plot.renderers:
        if "what" in (data := each.data_source.data):
            points |= dict(zip(data["what"], zip(data["y"], data["score"], data["drop"], strict=True), strict=True))
    assert points["original"][0] == 0.4 and points["returned"] == (pytest.approx(0.41), "0.4100", "0.0100 ± 0.0020 nats")
    assert points["over the bound"][0] == pytest.approx(0.45) and points["tried"][0] == pytest.approx(0.405)
    assert plot.yaxis[0].axis_label == "loss, nats (less is better)"


def test_the_title_has_network_images_and_day():
    made = dataclasses.replace(BARE, network="ResNet", date="2026-11-27T09:00:00+01:00")
    assert words.title(BARE) == "a network, compressed"
    assert words.title(made) == "ResNet, compressed on 27 November 2026"
    for spec, data, title in (
        ("my_nets.py:build", "parquet:/a/test.parquet", "ResNet on test.parquet, compressed on 27 November 2026"),
        ("torchvision:resnet18", "imagefolder:val/", "resnet18 on val, compressed on 27 November 2026"),
    ):
        report = dataclasses.replace(made, source=Source(spec, data))
        assert words.title(report) == title and f"<h1>{title}</h1>" in page(report)


def test_what_makes_it_again():
    source = Source("torchvision:resnet18", "npz:a.npz", folder="/work", command="spectrim compress torchvision:resnet18")
    assert words.again(dataclasses.replace(BARE, source=source)) == ("spectrim compress torchvision:resnet18", "in /work")
    limits = (Limit("Keep", 0.5, "macs"), Limit("AtMost", 4e6, "bytes"))
    command, _ = words.again(dataclasses.replace(BARE, limits=limits))
    recorded = {}
    fake = SimpleNamespace(compress=lambda *_, **given: recorded.update(given), Keep=st.Keep, AtMost=st.AtMost)
    exec(command, {"st": fake} | dict.fromkeys(("model", "example", "calibration", "config")))
    assert recorded["budget"] == [st.Keep(0.5, "macs"), st.AtMost(4e6, "bytes")]


def test_a_spectrum_is_cut_at_the_rank_that_was_chosen():
    row = dataclasses.replace(BARE.rows[0], method="ChannelSVD", rank=4, macs_after=17_000_000, harm=0.1)
    columns = spectra(dataclasses.replace(BARE, rows=(row,), spectra=SPECTRA))["conv1"]
    assert columns["ranks"]["rank"] == [2, 4] and columns["cut"] == {"rank": [4]}  # a harm of 0 has no logarithm
    assert columns["options"]["share"] == [8.0, 18.0, 16.0, 34.0] and columns["chosen"]["share"] == [34.0]
    tucker = spectra(dataclasses.replace(BARE, spectra=SPECTRA))["conv1"]
    assert tucker["cut"] == {"rank": []} and tucker["chosen"]["rank"] == ["(2, 4)"]  # several ranks are no axis


def test_runs_beside_each_other():
    first = dataclasses.replace(BARE, test=Score(0.9, 0.89, 0.3, 96), target={"target": "ONNX Runtime"}, **TIMES)
    other = dataclasses.replace(first, test=Score(0.9, 0.87, 0.4, 96), verdict=Verdict(0.9, 0.88, 0.93, 200))
    html = compare({"small": first, "smaller": other})
    assert "score -2.00 ± 0.50 points; time 1.50 times that of the first (1.42-1.60)" in html
    assert html.count("Tucker2, rank (2, 4), 18 % of the MACs") == 2
    for told in ("90.00 → 87.00", "40.0 %", "2 → 1.2", "✗ lost 3.00 ± 0.40 points", "✓ faster: 0.60 times"):
        assert told in html, told
    elsewhere = dataclasses.replace(other, target={"target": "OpenVINO"})
    assert "; time 1.50" not in compare({"small": first, "smaller": elsewhere})
    for strange in (
        dataclasses.replace(other, test=Score(0.9, 0.87, 0.4, 97)),
        dataclasses.replace(other, before=st.Cost(2_000_000, 90_000_000)),
    ):
        assert "differences between them are not shown" in compare({"a": first, "b": strange})


def test_runs_with_a_loss_and_a_score_beside_it():
    first = dataclasses.replace(
        BARE, test=Score(0.4, 0.41, 0.003, 96, "loss", "nats", False, (Score(0.9, 0.89, name="top-1"),))
    )
    other = dataclasses.replace(first, test=dataclasses.replace(first.test, after=0.44, standard_error=0.004))
    html = compare({"small": first, "smaller": other})
    for told in (
        "loss +0.0300 ± 0.0050 nats",
        "0.4000 → 0.4400 nats",
        "✗ loss risen 0.0400",
        "90.00 → 89.00 %",
        "✗ top-1 lost 1.00 p",
    ):
        assert told in html, told
    named = dataclasses.replace(other, test=dataclasses.replace(other.test, name="error"))
    assert "differences between them are not shown" in compare({"a": first, "b": named})


def test_runs_that_tried_budgets_share_their_figures():
    tried = report_of("tries")
    assert set(compared({"a": tried, "b": tried})) == {"trade_off_params", "trade_off_macs"}
    assert compared({"a": BARE, "b": BARE}) == {}
    timed = dataclasses.replace(tried, tries=tuple(dataclasses.replace(each, time=0.5) for each in tried.tries), machine="one")
    assert "trade_off_time" in compared({"a": timed, "b": timed})
    assert "trade_off_time" not in compared({"a": timed, "b": dataclasses.replace(timed, machine="another")})


def test_the_plot_of_a_bench_has_a_bar_a_network(tmp_path):
    target = {"target": "ONNX Runtime", "version": "1.31.1", "device": "some CPU", "threads": "1", "precision": "f32"}
    times = [Latency(milliseconds, 0.9 * milliseconds, 1.2 * milliseconds, 200, 1, "process") for milliseconds in (2, 1)]
    first = st.BenchRow("original", target, 1, "process", times[0], times[0], 10)
    second = st.BenchRow("com<pressed", target, 1, "process", times[1], times[1], 5, None, Verdict(0.5, 0.49, 0.52, 200))
    plot(st.Bench((first, second)), tmp_path / "bench.svg")
    text = (tmp_path / "bench.svg").read_text()
    for told in ("original", "com&lt;pressed", "ONNX Runtime 1.31.1, f32, 1 thread, batch 1", "0.50 times: faster"):
        assert f"<!-- {told} -->" in text, told  # matplotlib notes texts beside their outlines
