"""What compress() returns can be saved and loaded, whole or not at all."""

import dataclasses
import json
import os
from pathlib import Path

import matplotlib
import pytest
import torch
from torch import nn

import spectrim as st
from nets import Residual
from spectrim.core.records import Report

FILES = {"model.safetensors", "plan.json", "report.html", "report.json"}


@pytest.fixture(scope="module")
def result(case):
    model, x, labels = case
    config = st.Config(methods=(st.ChannelSVD(), st.SpatialSVD()))
    return st.compress(model, x[:1], budget=st.Keep(0.5), calibration=[x], evaluate=st.Accuracy([(x, labels)]), config=config)


def test_save_and_load(case, result, tmp_path, monkeypatch):
    _, x, _ = case
    monkeypatch.setattr(matplotlib, "use", None)  # the backend is the user's
    folder = result.save(tmp_path / "out")
    assert {file.name for file in folder.iterdir()} == FILES and [path.name for path in tmp_path.iterdir()] == ["out"]
    again = st.load(folder, Residual(width=12))
    assert not again.training and torch.equal(again(x), result.model(x))
    assert Report.from_json((folder / "report.json").read_text()) == result.report
    assert st.Plan.from_json((folder / "plan.json").read_text()) == result.plan
    assert json.loads((folder / "report.json").read_text())["after"]["macs"] == st.cost(again, x).macs


def test_a_result_is_frozen_and_prints_its_report(result):
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.model = None
    text = str(result)
    assert "conv2" in text and "top-1 on the selection images" in text and "Keep(0.5, 'macs')" in text


def test_notebooks_get_plain_tables_of_result_and_plan(result):
    html, plan = result._repr_html_(), result.plan._repr_html_()
    assert html == result.report._repr_html_() + plan and html.count("<table>") == html.count("</table>") == 2
    assert plan.count("<tr>") == 1 + len(result.plan) and all(f"<td>{name}</td>" in plan for name in result.plan)
    named = {"<script>alert(1)</script>": dataclasses.replace(next(iter(result.plan.values())))}
    assert "<script" not in st.Plan(named)._repr_html_() and "&lt;script&gt;" in st.Plan(named)._repr_html_()


def test_a_folder_that_is_not_empty_is_refused(result, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(ValueError, match="exists already; choose another name"):
        result.save(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("damage", "model", "words"),
    [
        (lambda folder: None, lambda: Residual(width=16), "the plan does not fit the model: layer"),
        (lambda folder: None, lambda: nn.Sequential(nn.Linear(2, 2)), "the plan does not fit the model: it has no layer"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04garbage"),
            Residual,
            "does not fit|damaged or no safetensors",
        ),
        (lambda folder: (folder / "plan.json").write_text("{}"), Residual, "the text is no plan"),
        (lambda folder: (folder / "plan.json").unlink(), Residual, "no saved result: it has no plan.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), Residual, "no saved result: it has no model.safetensors"),
    ],
)
def test_what_cannot_be_loaded_gets_a_sentence(result, tmp_path, damage, model, words):
    folder = result.save(tmp_path / "out")
    damage(folder)
    with pytest.raises(ValueError, match=words):
        st.load(folder, model() if model is not Residual else Residual(width=12))


def test_weights_of_another_plan_are_refused(result, tmp_path):
    folder = result.save(tmp_path / "out")
    name, option = next((name, option) for name, option in result.plan.items() if option.rank > 1)
    data = json.loads((folder / "plan.json").read_text())
    data["layers"][name]["rank"] = option.rank - 1
    (folder / "plan.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="the weights in .* do not fit the model and plan"):
        st.load(folder, Residual(width=12))


def test_saving_into_folders_that_exist(case, result, tmp_path, monkeypatch):
    model, x, _ = case
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    for folder in (there, elsewhere, tmp_path / "here"):
        folder.mkdir()
    (tmp_path / "link").symlink_to(elsewhere)
    monkeypatch.chdir(tmp_path / "here")
    replaced = []
    move = Path.replace
    monkeypatch.setattr(Path, "replace", lambda file, target: replaced.append(target.name) or move(file, target))
    for folder in (there, tmp_path / "link", "."):
        written = result.save(folder)
        assert written == Path(folder).resolve() and replaced[-1] == "report.json"
        assert {file.name for file in written.iterdir()} == FILES
        assert torch.equal(st.load(folder, model)(x), result.model.eval()(x))
    assert (tmp_path / "link").is_symlink()


def test_places_that_cannot_be_written(result, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="since '.*file' is no folder; choose another place"):
        result.save(tmp_path / "file" / "out")
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    with pytest.raises(ValueError, match="is not writable; choose another place"):
        result.save(tmp_path / "out")


@pytest.mark.parametrize("there", [False, True])
def test_an_interrupted_save_leaves_nothing(result, tmp_path, monkeypatch, there):
    folder = tmp_path / "out"
    if there:
        folder.mkdir()

    def interrupted(model, path):
        raise KeyboardInterrupt

    monkeypatch.setattr("spectrim.pipeline.result.save_weights", interrupted)
    with pytest.raises(KeyboardInterrupt):
        result.save(folder)
    assert list(tmp_path.rglob("*")) == ([folder] if there else [])


def test_without_the_report_extra_the_page_is_left_out_and_said_so(result, tmp_path, monkeypatch):
    def missing(report):
        raise ImportError("the HTML report needs Jinja2")

    monkeypatch.setattr("spectrim.pipeline.result.page", missing)
    folder = result.save(tmp_path / "out")
    assert {file.name for file in folder.iterdir()} == FILES - {"report.html"} | {"report.html.txt"}
    assert "needs Jinja2" in (folder / "report.html.txt").read_text()
