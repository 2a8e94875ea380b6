"""The scripts in examples/ run: each one's `main`, with settings so small that all together take seconds."""

import functools
import importlib.util
from pathlib import Path

import pytest
import torch

import spectrim as st
from spectrim.demo import test_batches as labelled
from spectrim.pipeline import account
from spectrim.targets.timing import interleaved

FOLDER = Path(__file__).parents[1] / "examples"
QUICK = st.Config(methods=(st.ChannelSVD(),), search=st.Knapsack())


@pytest.fixture
def script(request, monkeypatch):
    """Return the module of an example, with few images to score on, and no time for timing."""
    monkeypatch.setattr(account, "interleaved", functools.partial(interleaved, seconds=0.0))
    spec = importlib.util.spec_from_file_location(f"example_{request.param}", FOLDER / f"{request.param}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    few = [tuple(tensor[:100] for tensor in labelled()[0])]
    for name in {"test_batches", "selection_batches"} & set(vars(module)):
        monkeypatch.setattr(module, name, lambda: few)
    return module


def of(name):
    return pytest.mark.parametrize("script", [name], indirect=True)


@of("compress")
def test_compress(script):
    report = script.main(64, QUICK).report
    assert report.kept[1] <= 0.5 and [score.name for score in report.selection.every] == ["top-1", "loss"]
    assert report.selection.also[0].unit == "nats" and report.selection.also[0].standard_error > 0


@of("edit_plan")
def test_edit_plan(script):
    chosen, edited = script.main(64, QUICK)
    changed = [name for name in edited.plan if edited.plan[name].rank != chosen.plan[name].rank]
    assert len(changed) == 1 and edited.plan[changed[0]].rank == 2 * chosen.plan[changed[0]].rank
    assert edited.report.kept[1] > chosen.report.kept[1]


@of("budgets")
def test_budgets(script):
    first, second, both = script.main(64, (0.8, 0.6), QUICK)
    assert first.kept[1] <= 0.8 and second.kept[1] <= 0.6 and both.kept[1] <= 0.6
    assert both.budget == "Keep(0.6, 'macs') and AtMost(400000, 'bytes')" and both.after.params <= 100_000


@of("distortion")
def test_distortion(script):
    before, trained, cut = script.main(1, 1, 128)
    assert before > 0.8 and cut == pytest.approx(trained, abs=0.02)  # the last step was a distortion


@of("own_search")
def test_own_search(script):
    harms = script.main(64, (st.ChannelSVD(),))
    assert list(harms) == ["LargestFirst", "Portfolio"] and harms["Portfolio"] < harms["LargestFirst"]


@of("export_onnx")
def test_export_onnx(script, tmp_path):
    pytest.importorskip("onnxruntime")
    assert script.main(str(tmp_path / "small.onnx"), 64, None) > 0.7
    assert (tmp_path / "small.onnx").stat().st_size > 100_000


@of("bench_targets")
def test_bench_targets(script):
    found = script.main(64, 1, 0.01, (st.Torch(),))
    assert [row.model for row in found.rows] == ["original", "compressed"] and len(found.verdicts) == 1


def test_every_example_is_short_and_tested():
    scripts = {path.stem: path.read_text() for path in FOLDER.glob("*.py") if "def main" in path.read_text()}
    assert len(scripts) == 7 and all(text.count("\n") <= 45 for text in scripts.values())
    assert all(f'@of("{name}")' in Path(__file__).read_text() for name in scripts) and torch.get_num_threads() == 1
