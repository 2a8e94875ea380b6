"""The pages as a browser shows them: nothing is wrong, nothing is fetched, nothing is wider than the screen."""

import dataclasses
import io
import shutil

import numpy as np
import pytest
from PIL import Image

import spectrim as st
from spectrim.core.bench import Latency, Verdict
from spectrim.core.figures import Curve, Limit, Spectrum, Try
from spectrim.core.records import Interactions, Report, Row, Training
from spectrim.core.score import Score
from spectrim.report import compare, page

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: .ci/run installs it where apt-get is")
WIDTHS = (1280, 768, 390)
LAYERS = [f"features.denseblock{number}.denselayer16.conv2" for number in range(1, 13)]  # as long as names are
PAPER, INK = (
    {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 30)"},
    {"light": "rgb(27, 36, 48)", "dark": "rgb(230, 234, 240)"},
)


def whole_report():
    """A report with every part of the page, of a network that is slower and over its bound."""
    rows = [
        Row(
            name,
            "Conv2d",
            (512, 512, 3, 3),
            "CP(depthwise='kernel')",
            128,
            2359296,
            135296,
            115605504,
            6629504,
            0.01,
            "refitted",
            (1.0, 2.0),
        )
        for name in LAYERS
    ]
    spectra = [
        Spectrum(name, method, 4608, (64, 128, 256), (3_000_000, 6_629_504, 12_000_000), (0.1 / place, 0.01, 0.001))
        for place, name in enumerate(LAYERS, 1)
        for method in ("CP(depthwise='kernel')", "ChannelSVD", "SpatialSVD(axis=1)")
    ]
    count = len(LAYERS)
    partners = [[0.001 * (i - j) * (j - i) if i != j else 0.01 for j in range(count)] for i in range(count)]
    curve = Curve("before training", 0.2, (0.0, 1.0), (1.0, 2.0), (0.1, 0.2), (0.9, 0.5), 96)
    return Report(
        "MaxDrop(1.5, 'macs')",
        st.Cost(30_000_000, 1_400_000_000),
        st.Cost(2_000_000, 90_000_000),
        tuple(rows),
        {"classifier": "excluded by the configuration"},
        0.12,
        0.08,
        "nats",
        interactions=Interactions(0.2, tuple(LAYERS), (0.01, -0.02) * (count // 2), tuple(map(tuple, partners))),
        selection=Score(0.93, 0.92, 0.3, 2500),
        test=Score(0.92, 0.88, 0.3, 2500),
        latency=(Latency(20.0, 19.0, 22.0, 200, 1), Latency(30.0, 28.0, 31.0, 200, 1)),
        verdict=Verdict(1.5, 1.45, 1.55, 200),
        target={"target": "ONNX Runtime", "version": "1.31.1", "device": "some CPU", "threads": "1", "precision": "f32"},
        tries=(Try(0.2, 1.7, 0.1, 0.3, 0.1, 0.2, 1.4), Try(0.25, 1.0, 0.12, 0.3, 1 / 15, 9 / 140, 1.5)),
        training=Training({"epochs": 2}, 30, (1.5, 1.2), 10.0, 96),
        flatness=(curve, dataclasses.replace(curve, label="after training")),
        notes=("a note",),
        network="DenseNet",
        date="2026-11-27T09:00:00+00:00",
        machine="some CPU, 2 cores, Linux",
        versions={"spectrim": "0.2.0"},
        limits=(Limit("MaxDrop", 1.5, "macs"),),
        stored=(120_000_000, 8_000_000),
        row_times="measured in PyTorch, layer by layer",
        spectra=tuple(spectra),
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder, report = tmp_path_factory.mktemp("pages"), whole_report()
    (folder / "report.html").write_text(page(report))
    (folder / "comparison.html").write_text(compare({"a-run-of-one-kind": report, "another": report, "third": report}))
    return folder


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def shown(browser, pages):
    """Open a page; what goes wrong in it, and what it fetches, is held against it when the test is over."""
    wrong, opened = [], []

    def show(name, width):
        tab = browser.new_page(viewport={"width": width, "height": 900})
        opened.append(tab)
        tab.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        file = (pages / name).as_uri()
        tab.on("request", lambda asked: wrong.append(asked.url) if asked.url != file else None)
        tab.goto(file)
        tab.wait_for_function("Bokeh.documents.length && Bokeh.documents.every(each => each.is_idle)")
        return tab

    yield show
    for tab in opened:
        tab.close()
    assert not wrong


def widths(tab):
    """How wide the page is, how wide what can be seen of it, and the widest figure."""
    places = "[...document.querySelectorAll('figure')].map(each => each.getBoundingClientRect())"
    return tab.evaluate(
        f"[document.documentElement.scrollWidth, innerWidth, Math.max(...{places}.map(each => each.right)), "
        f"Math.min(...{places}.map(each => each.height))]"
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen_and_failures_are_seen_first(shown, width):
    tab = shown("report.html", width)
    whole, seen, right, height = widths(tab)
    assert whole <= seen == width and right <= width and height > 200
    for words in ("SLOWER: takes 1.50 times", "OVER THE BOUND: lost 4.00 ± 0.30 points"):
        box = tab.locator(".banner.bad", has_text=words).bounding_box()
        assert box["y"] + box["height"] < 900


@pytest.mark.parametrize("width", WIDTHS)
def test_a_comparison_is_no_wider_than_the_screen(shown, width):
    whole, seen, right, height = widths(shown("comparison.html", width))
    assert whole <= seen == width and right <= width and height > 200


def test_the_page_has_the_readers_colours_and_paper_is_white(shown):
    tab = shown("report.html", 718)
    look = "(({backgroundColor, color}) => [backgroundColor, color])(getComputedStyle(document.body))"
    figure = tab.locator("figure").first
    pictures = []
    for scheme, media in (("light", "screen"), ("dark", "screen"), ("dark", "print")):
        tab.emulate_media(color_scheme=scheme, media=media)
        tab.wait_for_timeout(100)  # for the figures to be painted anew
        paper = "light" if media == "print" else scheme
        assert tab.evaluate(look) == [PAPER[paper], INK[paper]]
        assert widths(tab)[0] <= 718
        pictures.append(figure.screenshot())
    light, dark, printed = (np.asarray(Image.open(io.BytesIO(each)).convert("L")) for each in pictures)
    assert np.median(light) == np.median(printed) == 255 and np.median(dark) < 30
    assert light.min() < 120 and printed.min() < 120 and dark.max() > 140  # axes and their words are there to be read


def test_a_reader_can_look_closer(shown):
    tab = shown("report.html", 1280)
    harms = "Bokeh.documents.flatMap(each => [...each._all_models.values()]).find(each => each.name == 'ranks').data.harm"
    before = tab.evaluate(harms)
    tab.select_option("#layer", LAYERS[4])
    assert before == [0.1, 0.01, 0.001] and tab.evaluate(harms) == [0.02, 0.01, 0.001]
    bars = tab.locator("figure", has_text="What each replaced layer saves")
    bars.scroll_into_view_if_needed()
    box = bars.bounding_box()
    told = tab.locator(".bk-Tooltip", has_text=LAYERS[0])
    for down in range(0, 120, 4):  # over the bars of the first layer
        tab.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + down)
        if told.count():
            break
    assert told.count() == 1
