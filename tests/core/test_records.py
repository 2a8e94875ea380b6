"""Reports: as JSON and back, also those of version 0.1.0."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as drawn
from torch import nn

import spectrim as st
from mutations import examples, mutated, sentence
from spectrim import report as rendered
from spectrim.core.bench import Verdict
from spectrim.core.figures import Curve, Limit, Spectrum, Try
from spectrim.core.progress import Spent
from spectrim.core.records import SCHEMA, Interactions, Latency, Report, Row, Source, Training
from spectrim.core.score import Score

OLD = Path(__file__).parent / "report-0.1.0.json"  # written by 0.1.0, fewer rows and tries kept


def full_report():
    """A report in which nothing is left at its default."""
    return Report(
        "MaxDrop(1.5, 'params')",
        st.Cost(1000, 90000),
        st.Cost(400, 30000),
        (
            Row(
                "conv1",
                "Conv2d",
                (8, 3, 3, 3),
                "Tucker2",
                (2, 4),
                500,
                100,
                50000,
                9000,
                0.25,
                "refitted on 96 images",
                (1.0, 0.4),
            ),
            Row("conv2", "Conv2d", (8, 8, 3, 3), "-", 0, 300, 300, 30000, 30000, 0.0),
        ),
        {"head": "excluded by the configuration"},
        0.25,
        0.3,
        "nats",
        task="trained for low rank",
        interactions=Interactions(0.28, ("conv1", "conv3"), (0.1, -0.2), ((0.5, -0.1), (-0.1, 0.4))),
        selection=Score(
            30.5, 30.25, 0.1, 96, "PSNR", "dB", also=(Score(0.5, 0.75, None, None, "loss", "nats", False), Score(0.9, 0.88))
        ),
        test=Score(0.89, 0.86),
        latency=(Latency(2.0, 1.9, 2.2, 200, 1), Latency(1.0, 0.9, 1.2, 200, 1)),
        verdict=Verdict(0.5, 0.49, 0.52, 200),
        target={"target": "PyTorch", "threads": "1"},
        seconds={"statistics": 1.5, "refit": 2.5},
        passes={"forward": 3.0, "backward": 1.0},
        tries=(Try(0.6, 0.5, 0.1), Try(0.4, 2.0, 0.25, 0.5, 0.45, 0.4, 0.7)),
        training=Training({"epochs": 2}, 30, (1.5, 1.2), 9.0, 96, 3, 0.5, {"as trained": 0.9}, {"every": 2}),
        flatness=(Curve("before training", 0.2, (0.0, 1.0), (1.0, 2.0), (0.1, 0.2), (0.9, 0.5), 96),),
        images=96,
        notes=("few images",),
        config={"methods": ["Tucker2"], "seed": 0, "harm": None},
        versions={"spectrim": "0.2.0", "torch": "2.6"},
        source=Source(
            "timm:resnet18",
            "npz:test.npz",
            "w.safetensors",
            "1,3,8,8",
            "0.5",
            "0.25",
            "npz:train.npz",
            None,
            "/data",
            "digits",
            "spectrim demo",
        ),
        arguments={"keep": None, "max_drop": 1.5},
        network="ResNet",
        date="2026-11-27T19:29:32+00:00",
        machine="some CPU, 2 cores, Linux",
        limits=(Limit("MaxDrop", 1.5, "params"),),
        stored=(4000, 1600),
        row_times="measured in PyTorch, layer by layer",
        spectra=(
            Spectrum("conv1", "Tucker2", (3, 8), ((1, 2), (2, 4)), (4000, 9000), (0.5, 0.25)),
            Spectrum("conv1", "ChannelSVD", 8, (2, 4), (8000, 17000), (0.4, 0.1)),
        ),
    )


def bare_report():
    return Report("Keep(1, 'macs')", st.Cost(10, 20), st.Cost(10, 20), (), {}, None, None, "nats")


REPORTS = (full_report().to_json(), OLD.read_text(), full_report().to_json(), bare_report().to_json())


def test_the_full_report_is_full():
    """What follows would not notice a field that is lost if it were at its default."""
    for field in dataclasses.fields(Report):
        default = (
            field.default_factory()
            if field.default is dataclasses.MISSING and callable(field.default_factory)
            else field.default
        )
        assert getattr(full_report(), field.name) != default, field.name


@pytest.mark.parametrize("report", [full_report(), bare_report()], ids=["full", "bare"])
def test_a_report_comes_back_from_json(report):
    again = Report.from_json(report.to_json())
    assert again == report and again.to_json() == report.to_json()
    for name in ("rows", "tries", "flatness", "latency", "notes"):
        assert isinstance(getattr(again, name), tuple) or getattr(again, name) is None


def test_what_the_json_says_beside_the_fields():
    data = json.loads(full_report().to_json())
    assert data["schema"] == SCHEMA == 3
    assert data["kept"] == {"params": 0.4, "macs": pytest.approx(1 / 3)}
    selection, test = data["selection"], data["test"]
    assert selection["drop"] == pytest.approx(0.25) and test["drop"] == pytest.approx(3.0)
    assert [also["drop"] for also in selection["also"]] == pytest.approx([0.25, 2.0])
    assert (selection["name"], selection["unit"], selection["larger_is_better"]) == ("PSNR", "dB", True)


@pytest.mark.parametrize(("before", "unit", "drop"), [(0.9, "points", 2.0), (30.5, "", 0.02), (-1.0, "points", 2.0)])
def test_scores_of_schema_2_are_points_if_they_are_fractions(before, unit, drop):
    data = json.loads(bare_report().to_json())
    data |= {
        "schema": 2,
        "test": {"before": before, "after": before - 0.02, "standard_error": 0.4, "examples": 96, "drop": 2.0},
    }
    score = Report.from_json(json.dumps(data)).test
    assert score == Score(before, before - 0.02, 0.4, 96, "score", unit) and score.drop == pytest.approx(drop)


def test_a_score_in_points_is_a_fraction():
    with pytest.raises(ValueError, match="the PSNR before is 30.5; with the unit 'points' it must be a fraction"):
        Score(30.5, 30.25, name="PSNR")


def test_fields_that_are_not_known_are_left_out():
    data = json.loads(full_report().to_json())
    data["later"], data["rows"][0]["later"] = 1, 2
    assert Report.from_json(json.dumps(data)) == full_report()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda text: text.replace('"schema": 3', '"schema": 4'),
            "has schema 4, and this version reads up to 3; install a newer",
        ),
        (lambda text: text[:-30], "the report is no JSON"),
        (lambda text: "[1, 2]", "no report: it has no 'before'"),
        (lambda text: '{"schema": 2}', "no report: it has no 'before'"),
        (lambda text: text.replace('"schema": 3', '"schema": "three"'), "no report"),
        (lambda text: text.replace('"harm_unit"', '"unit"'), "incomplete or has a field of the wrong kind"),
        (lambda text: text.replace('"steps"', '"stairs"'), "incomplete or has a field of the wrong kind"),
        (
            lambda text: text.replace('"rows": [', '"rows": [5, '),
            r"field of the wrong kind: rows\[0\] is 5; it must be an object",
        ),
        (lambda text: text.replace('"harm": 0.25', '"harm": "0.25"'), r"rows\[0\].harm is '0.25'; it must be a number"),
        (lambda text: text.replace('"notes": [', '"notes": [null, '), r"notes\[0\] is None; it must be a string"),
        (lambda text: text.replace('"images": 96', f'"images": {10**30}'), "it must be a whole number below 2\\^63"),
        (lambda text: text.replace('"budget"', '"deep": ' + "[" * 60 + "]" * 60 + ', "budget"'), "nested more than 50 deep"),
        (lambda text: text.replace('"marginal": [', '"marginal": [0.5, '), "a list that does not go with its layers"),
        (lambda text: text.replace('"harms": [', '"harms": [0.7, '), "the spectrum of 'conv1' has lists of several lengths"),
        (lambda text: text.replace('"kind": "MaxDrop"', '"kind": "Least"'), r"limits\[0\].kind is 'Least'; it must be one of"),
    ],
)
def test_what_is_no_report_gets_a_sentence(change, words):
    with pytest.raises(ValueError, match=words) as caught:
        Report.from_json(change(full_report().to_json()))
    assert "\n" not in str(caught.value)


def test_a_report_of_version_0_1_0():
    report = Report.from_json(OLD.read_text())
    assert (report.budget, report.task, report.title) == (
        "MaxDrop(30, 'params')",
        "compressed",
        "Compressed to MaxDrop(30, 'params')",
    )
    assert report.before == st.Cost(6089, 232824) and report.kept[0] == pytest.approx(0.6413, abs=1e-4)
    assert report.rows[1] == Row(
        "conv3", "Conv2d", (24, 12, 3, 3), "Tucker2", (6, 4), 2592, 408, 41472, 9600, pytest.approx(0.00125912, rel=1e-4)
    )
    assert [found.drop for found in report.tries] == pytest.approx([32.29166, 32.29166, 21.875], rel=1e-5)
    assert report.interactions.layers == ("conv3",) and report.selection.examples == 96 and report.test.drop == pytest.approx(5)
    assert report.latency[1].runs == 200 and report.images == 96 and report.notes == ("little data",)
    assert report.config["methods"] == ["ChannelSVD", "Tucker2"] and report.versions["spectrim"] == "0.1.0"
    assert report.training == Training(
        {"epochs": 1, "batch": 32}, 3, (1.5,), 2.5, 96, accuracy={"on 96 images before fine-tuning": 0.9}
    )
    assert report.source == Source("examples/cifar_resnet.py:resnet20", "parquet:test.parquet", "w.safetensors", "3,32,32")
    assert Report.from_json(report.to_json()) == report  # now of the present schema


@pytest.mark.parametrize(
    ("budget", "flatness", "task", "title"),
    [
        ("Keep(0.5, 'macs')", [], "compressed", "Compressed to Keep(0.5, 'macs')"),
        ("Keep(0.5, 'macs')", ["a curve"], "trained for low rank", "Trained for Keep(0.5, 'macs')"),
        ("Ordinary training", [], "trained", "Ordinary training"),
    ],
)
def test_what_was_done_in_reports_of_version_0_1_0(budget, flatness, task, title):
    curve = dataclasses.asdict(full_report().flatness[0])
    data = json.loads(OLD.read_text()) | {"budget": budget, "flatness": [curve for _ in flatness]}
    report = Report.from_json(json.dumps(data))
    assert (report.task, report.title, len(report.flatness)) == (task, title, len(flatness))


@pytest.mark.parametrize("report", [full_report(), bare_report()], ids=["full", "bare"])
def test_a_notebook_gets_a_plain_table(report):
    html = report._repr_html_()
    assert html.startswith("<table>") and html.endswith("</table>") and "<svg" not in html
    assert html.count("<tr>") == 3 + 3 * (report.selection is not None) + (report.test is not None)


def test_the_strongest_interactions_come_first():
    partners = ((9.0, 0.1, -0.7), (0.1, 9.0, 0.3), (-0.7, 0.3, 9.0))
    found = Interactions(1.0, ("a", "b", "c"), (0.0, 0.0, 0.0), partners).strongest(2)
    assert found == [("c", "a", -0.7), ("c", "b", 0.3)]


def test_what_was_spent_adds_up():
    first, second = Spent({"menu": 1.0, "search": 2.0}, {"forward": 3.0}), Spent({"menu": 0.5}, {"backward": 1.0})
    assert first + second == Spent({"menu": 1.5, "search": 2.0}, {"forward": 3.0, "backward": 1.0})
    assert (first + second) - second == Spent({"menu": 1.0, "search": 2.0}, {"forward": 3.0, "backward": 0.0})


@pytest.mark.parametrize("name", ["probes", "settings", "lines", "table", "to_html"])
def test_names_of_version_0_1_0_still_work(name):
    with pytest.warns(DeprecationWarning, match=r"spectrim\.report\.|Report\.(tries|config)"):
        found = getattr(full_report(), name)
        found = found() if callable(found) else found
    if name == "probes":
        assert found == ((0.6, 0.5), (0.4, 2.0))
    elif name == "settings":
        assert (
            found["calibration images"] == 96 and found["source"]["model"] == "timm:resnet18" and found["note"] == "few images"
        )
    else:
        from spectrim import report as functions

        function = {"lines": functions.lines, "table": functions.table, "to_html": functions.page}[name]
        assert type(found) is type(function(full_report()))


@examples(150)
@given(seed=drawn.integers(0, 2**40))
def test_reports_of_any_json(seed):
    report = sentence(st.Report.from_json, mutated(REPORTS[seed % len(REPORTS)], seed))
    if report is not None:
        again = st.Report.from_json(report.to_json())
        assert again.to_json() == report.to_json() and len(report.kept) == 2
        assert rendered.lines(report) and report._repr_html_() and rendered.table(report).row_count == len(report.rows) + 1
        if not seed % 5:
            str(st.Result(nn.Identity(), st.Plan(), report))
