"""A run in TensorBoard and in MLflow, read back by their own readers."""

import json

import pytest

import spectrim as st
from spectrim.core.figures import Try
from spectrim.core.records import Latency, Report, Source, Training
from spectrim.core.score import Score
from spectrim.integrations import tracking

REPORT = Report(
    "MaxDrop(0.3, 'macs')",
    st.Cost(1000, 90000),
    st.Cost(400, 30000),
    (),
    {},
    0.25,
    None,
    "nats",
    selection=Score(30.5, 30.25, 0.1, 96, "PSNR", "dB", also=(Score(0.5, 0.75, None, None, "mAP@50|a", "nats", False),)),
    latency=(Latency(2.0, 1.9, 2.2, 200, 1), Latency(1.0, 0.9, 1.2, 200, 1)),
    seconds={"unseen images": 1.5},
    tries=(Try(0.6, 0.5, 0.1), Try(0.4, 2.0, 0.25)),
    training=Training({"epochs": 2}, 30, (1.5, 1.2), 9.0),
    config={"methods": ["Tucker2"], "seed": 0},
    source=Source("timm:a|b", "npz:test.npz"),
)
ENDED = {
    "kept/params": 0.4,
    "kept/macs": 1 / 3,
    "selection/PSNR/before": 30.5,
    "selection/PSNR/after": 30.25,
    "selection/PSNR/drop": 0.25,
    "selection/mAP@50|a/rise": 0.25,
    "harm/predicted": 0.25,
    "latency/after": 1.0,
    "seconds/unseen images": 1.5,
}
STEPS = {
    "budgets tried/kept": [0.6, 0.4],
    "budgets tried/drop": [0.5, 2.0],
    "budgets tried/harm": [0.1, 0.25],
    "training/loss": [1.5, 1.2],
}


def test_what_a_run_has_for_a_tracker():
    found = tracking.numbers(REPORT)
    assert all(found[name] == pytest.approx(value) for name, value in ENDED.items()) and "harm/measured" not in found
    assert {name: list(values) for name, values in tracking.steps(REPORT).items()} == STEPS
    told = tracking.settings(REPORT)
    assert told["budget"] == "MaxDrop(0.3, 'macs')" and told["methods"] == '["Tucker2"]' and told["epochs"] == "2"


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "run a"
    folder.mkdir()
    (folder / "plan.json").write_text("{}")
    return folder


@pytest.mark.filterwarnings("ignore")  # what these libraries deprecate is not ours
def test_tensorboard(tmp_path, saved):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracking.track(REPORT, f"tensorboard:{tmp_path}/tb", saved)
    found = accumulator.EventAccumulator(str(tmp_path / "tb" / "run a")).Reload()
    for name, value in ENDED.items():
        assert [event.value for event in found.Scalars(name)] == pytest.approx([value]), name
    for name, values in STEPS.items():
        assert [event.value for event in found.Scalars(name)] == pytest.approx(values)
        assert [event.step for event in found.Scalars(name)] == [0, 1]
    text = [found.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode() for name in ("settings", "report")]
    assert "| model | timm:a/b |" in text[0] and "PSNR on the selection images" in text[1]


@pytest.mark.filterwarnings("ignore")
def test_mlflow(tmp_path, saved, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for _ in range(2):  # the second run finds the experiment
        tracking.track(REPORT, f"mlflow:{tmp_path.as_uri()}/ml", saved)
    client = MlflowClient(f"{tmp_path.as_uri()}/ml")
    runs = client.search_runs([client.get_experiment_by_name("spectrim").experiment_id])
    assert len(runs) == 2 and {run.info.run_name for run in runs} == {"run a"} and runs[0].info.status == "FINISHED"
    values, name = runs[0].data.metrics, runs[0].info.run_id
    assert values["selection/mAP_50_a/rise"] == pytest.approx(0.25) and values["kept/params"] == pytest.approx(0.4)
    history = client.get_metric_history(name, "budgets tried/drop")
    assert [(each.step, each.value) for each in history] == [(0, 0.5), (1, 2.0)]
    assert runs[0].data.params["budget"] == "MaxDrop(0.3, 'macs')"
    assert {file.path for file in client.list_artifacts(name)} == {"report.json", "plan.json"}
    assert json.loads((tmp_path / "ml" / runs[0].info.experiment_id / name / "artifacts" / "report.json").read_text())["tries"]


@pytest.mark.filterwarnings("ignore")
def test_a_tracker_that_does_not_answer_is_told_before_the_run(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "file").write_text("")
    sink = f"mlflow:{tmp_path.as_uri()}/file"
    for refused in (lambda: tracking.check(sink), lambda: tracking.track(REPORT, sink)):
        with pytest.raises(ValueError, match="the tracker 'mlflow:file:.*' cannot be used: "):
            refused()
    tracking.check(f"tensorboard:{tmp_path}/tb")


@pytest.mark.parametrize("sink", ["wandb:x", "tensorboard", "mlflow:", ""])
def test_trackers_that_are_none(sink):
    with pytest.raises(ValueError, match=r"there is no tracker .*; allowed are tensorboard:DIR and mlflow:URI"):
        tracking.track(REPORT, sink)


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_without_the_extra_it_says_what_to_install(kind, monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"the tracker needs {kind}: pip install \"spectrim\[track\]\""):
        tracking.track(REPORT, f"{kind}:x")
