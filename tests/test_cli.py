import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import spectrim
from spectrim import cli
from spectrim._inputs import Specs, split_data
from spectrim.cli._shared import begin
from spectrim.demo import demo_images, demo_model
from spectrim.zoo import make_model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The embedded network and some of its images as the files that a user has."""
    folder = tmp_path_factory.mktemp("files")
    save_file(demo_model().state_dict(), folder / "w.safetensors")
    for part in ("calibration", "test"):
        images, labels = demo_images(part)
        count = 500 if part == "test" else 700
        np.savez(folder / f"{part}.npz", images=images[:count].numpy(), labels=labels[:count].numpy())
    return folder


def arguments(files, out, *more):
    common = ["compress", "spectrim.demo:FashionNet", "--weights", str(files / "w.safetensors")]
    data = ["--data", f"npz:{files}/test.npz", "--calibration", f"npz:{files}/calibration.npz", "--images", "256"]
    return [*common, *data, "--out", str(out), *more]


def test_compress_and_evaluate(files, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(arguments(files, out, "--keep", "0.5", "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["kept"]["macs"] <= 0.5 and report["test"]["examples"] == 500 and report["selection"] is None
    assert sorted(path.name for path in out.iterdir()) == ["model.safetensors", "plan.json", "report.html", "report.json"]
    assert not (tmp_path / "run.partial").exists()
    assert cli.main(["evaluate", str(out), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["after"] == pytest.approx(report["test"]["after"]) and again["drop"] == pytest.approx(report["test"]["drop"])
    assert cli.main(["evaluate", str(out), "--images", "100"]) == 0
    assert "100 images" in capsys.readouterr().out
    assert cli.main(arguments(files, out, "--keep", "0.5")) == 2
    assert "exists already" in capsys.readouterr().err
    (files / "w.safetensors").rename(files / "moved")
    assert cli.main(["evaluate", str(out)]) == 0
    (files / "moved").rename(files / "w.safetensors")
    assert "top-1" in capsys.readouterr().out


def test_images_for_a_rank_selection_that_measures(files, tmp_path, capsys):
    def count(wanted, held=0.0):
        spec = f"npz:{files}/calibration.npz"
        sources = split_data(Specs(data=f"npz:{files}/test.npz", calibration=spec), images=wanted, held=held)
        return [sum(len(x) for x, _ in part) for part in (sources.calibration, sources.selection)]

    assert count((100, 0)) == [100, 600] and count((100, 200)) == [300, 400]
    assert count((100, 5000)) == [350, 350] and count((700, 5000)) == [700, 700]
    assert count((700, 0), held=1.0) == count((700, 5000), held=1.0) == [350, 350]  # decisions need others than the fit
    assert cli.main(arguments(files, tmp_path / "run", "--keep", "0.7", "--search", "Interaction")) == 0
    assert "it wants 4,608 images beyond the calibration's 256, and found 0" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("size", [300, 1000, 1100, 1300])
def test_images_for_decisions_are_kept_away_from_training(tmp_path, size):
    """Whatever the size of the source: a fifth for decisions, of which none is trained on, and everything else is, once."""
    numbers = np.arange(size)
    images = np.stack([numbers // 256, numbers % 256, numbers * 0], -1).astype(np.uint8)[:, None, None]
    np.savez(tmp_path / "source.npz", images=np.tile(images, (1, 4, 4, 1)), labels=numbers % 10)
    spec = f"npz:{tmp_path}/source.npz"
    sources = split_data(Specs(data=spec, calibration=spec, mean="0", std="1"), images=(1024, 0), held=0.2)

    def seen(batches):
        pixels = torch.cat([x[:, :2, 0, 0] for x, _ in batches]).mul(255).round().int()
        return (256 * pixels[:, 0] + pixels[:, 1]).tolist()

    held, trained, calibrated = map(seen, (sources.selection, sources.training, sources.calibration))
    assert len(held) == size // 5 and sorted(held + trained) == list(range(size))
    assert set(calibrated) <= set(trained) and len(calibrated) == min(1024, len(trained))


def test_a_model_file_that_imports_its_neighbour(tmp_path, monkeypatch):
    (tmp_path / "neighbour_of_net.py").write_text("from torch import nn\n\ndef layer():\n    return nn.Conv2d(1, 2, 3)\n")
    (tmp_path / "some_net.py").write_text("from neighbour_of_net import layer\n\ndef build():\n    return layer()\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert make_model(f"{tmp_path}/some_net.py:build").out_channels == 2


def test_interrupted_run_is_resumed(files, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    command = arguments(files, out, "--max-drop", "3", "--metric", "params", "--methods", "ChannelSVD,SpatialSVD")
    per_example, calls = spectrim.Accuracy.per_example, []

    def interrupting(self, model):
        calls.append(model)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return per_example(self, model)

    monkeypatch.setattr(spectrim.Accuracy, "per_example", interrupting)
    assert cli.main(command) == 130
    assert "--resume" in capsys.readouterr().err and not out.exists()
    kept = sorted((tmp_path / "run.partial").iterdir())
    assert kept
    assert cli.main(command) == 2
    assert "add --resume" in capsys.readouterr().err and sorted((tmp_path / "run.partial").iterdir()) == kept
    monkeypatch.delattr(sys.modules["spectrim.compress"], "statistics")  # they are read, not computed again
    assert cli.main([*command, "--resume"]) == 0
    text = capsys.readouterr().out
    assert "score on the selection images" in text and "whole network" in text
    assert json.loads((out / "report.json").read_text())["seconds"]["statistics"] > 0  # and counted
    assert not (tmp_path / "run.partial").exists()


def test_interrupted_before_anything_is_done(files, tmp_path, capsys, monkeypatch):
    def interrupting(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["spectrim.compress"], "statistics", interrupting)
    assert cli.main(arguments(files, tmp_path / "run", "--keep", "0.5")) == 130
    error = capsys.readouterr().err
    assert "nothing is kept" in error and "--resume" not in error and not (tmp_path / "run.partial").exists()


def test_demo(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spectrim.demo.BUDGET", None)
    from spectrim.demo import run_demo

    monkeypatch.setattr(cli.demo, "run_demo", lambda tell: run_demo(tell, spectrim.Keep(0.5, "macs")))
    assert cli.main(["demo"]) == 0
    text = capsys.readouterr().out
    assert "score on the test images" in text and "latency, 1 thread" in text and "2,500 images" in text
    assert (tmp_path / "spectrim-demo" / "report.html").exists()
    assert cli.main(["demo", "--out", "spectrim-demo"]) == 2


def test_inspect(capsys, tmp_path):
    assert cli.main(["inspect", "spectrim.demo:FashionNet", "--input", "1,1,28,28", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"]["params"] == sum(p.numel() for p in demo_model().parameters())
    assert cli.main(["inspect", "spectrim.demo:FashionNet", "--input", "1,1,28,28"]) == 0
    assert "layer3.conv2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "code", "match"),
    [
        (["--keep", "0.5", "--max-drop", "1"], 2, "exactly one budget"),
        ([], 2, "exactly one budget"),
        (["--keep", "1.5"], 2, "allowed is a fraction"),
        (["--keep", "half"], 2, "half"),
        (["--keep", "0.001"], 1, "cannot be met"),
        (["--keep", "0.5", "--metric", "flops"], 2, "'params' and 'macs'"),
        (["--keep", "0.5", "--methods", "Magic"], 2, "no decomposition 'Magic'"),
        (["--keep", "0.5", "--search", "Magic"], 2, "no rank selection 'Magic'"),
        (["--keep", "0.5", "--exclude", "fc*"], 2, "matches no layer"),
        (["--keep", "0.5", "--device", "warp"], 2, "device 'warp'"),
        (["--keep", "0.5", "--input", "1,x"], 2, "whole numbers"),
        (["--keep", "0.5", "--input", "1,0,2"], 2, "positive"),
        (["--keep", "0.5", "--mean", "a"], 2, "no list of numbers"),
        (["--keep", "0.5", "--weights", "gone.pth"], 2, "no weight file"),
        (["--keep", "0.5", "--colour"], 2, "--colour"),
    ],
)
def test_bad_input_is_one_sentence(files, tmp_path, capsys, more, code, match):
    command = arguments(files, tmp_path / "run", *more)
    if "--weights" in more:
        del command[2:4]
    assert cli.main(command) == code
    captured = capsys.readouterr()
    *stages, sentence = captured.err.splitlines()
    assert match in sentence and sentence.startswith("spectrim: ")
    assert all(stage.endswith((" done", " %")) or stage.startswith(("inputs ", "top-1 ")) for stage in stages)
    assert list(tmp_path.iterdir()) == []


def test_other_bad_commands(tmp_path, capsys):
    assert cli.main(["evaluate", str(tmp_path)]) == 2
    assert "no saved result" in capsys.readouterr().err
    assert cli.main(["inspect", "torchvision:resnet18000"]) == 2
    assert "torchvision" in capsys.readouterr().err
    assert cli.main(["fly"]) == 2
    assert "fly" in capsys.readouterr().err
    (tmp_path / "broken.py").write_text("def build():\n    return 1 / 0\n")
    assert cli.main(["inspect", f"{tmp_path}/broken.py:build"]) == 2
    assert "ZeroDivisionError: division by zero" in capsys.readouterr().err


def test_data_of_a_callable_and_of_one_source(tmp_path, capsys, files, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from spectrim.demo import demo_images\n"
        "def batches():\n    x, y = demo_images('test')\n    return list(zip(x[:300].split(100), y[:300].split(100)))\n"
    )
    common = [
        "compress",
        "spectrim.demo:FashionNet",
        "--weights",
        str(files / "w.safetensors"),
        "--images",
        "150",
        "--methods",
        "ChannelSVD,SpatialSVD",
        "--keep",
        "0.5",
    ]
    assert cli.main([*common, "--data", f"{tmp_path}/mine.py:batches", "--out", str(tmp_path / "a"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test"]["examples"] == 150  # 150 calibrate, the others test
    assert cli.main([*common, "--data", f"npz:{files}/test.npz", "--out", str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test"]["examples"] == 350  # 150 calibrate, the others test
    assert cli.main(["evaluate", str(tmp_path / "b")]) == 0
    assert "some of these images were calibrated or decided on" in capsys.readouterr().out
    noted = json.loads((tmp_path / "b" / "report.json").read_text())["settings"]["note"]
    assert "images of --data were calibrated on" in noted and "--weights" not in noted
    common = [*common[:-2], "--max-drop", "5"]
    assert cli.main([*common, "--data", f"npz:{files}/test.npz", "--out", str(tmp_path / "c"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["test"] is None and report["selection"]["examples"] == 350  # decided on: no test


def test_the_installed_command():
    for start in ([sys.executable, "-m", "spectrim"], ["spectrim"]):
        command = start if start[0] != "spectrim" else [sys.executable.replace("python", "spectrim")]
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout.strip() == spectrim.__version__
    assert torch.get_num_threads() >= 1


def training(files, out, *more):
    data = ["--data", f"npz:{files}/test.npz", "--calibration", f"npz:{files}/calibration.npz", "--images", "64"]
    common = ["train", "spectrim.demo:FashionNet", "--weights", str(files / "w.safetensors"), *data]
    every = ["--every", "3"] if {"--keep", "--plan"} & set(more) and "--every" not in more else []
    return [*common, "--methods", "ChannelSVD,SpatialSVD", "--epochs", "2", *every, "--out", str(out), *more]


def test_a_folder_of_the_user_is_not_taken_for_unfinished_work(files, tmp_path, capsys):
    (tmp_path / "run.partial").mkdir()
    note = tmp_path / "run.partial" / "notes.txt"
    note.write_text("mine")
    for command in (arguments(files, tmp_path / "run", "--keep", "0.5"), training(files, tmp_path / "run")):
        for more in ([], ["--resume"]):
            assert cli.main([*command, *more]) == 2
            assert "holds something else" in capsys.readouterr().err and note.read_text() == "mine"


def test_the_folder_where_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert begin(".", resume=False) == (tmp_path, tmp_path.with_name(tmp_path.name + ".partial"))


def test_words_that_would_be_ignored_are_refused(files, tmp_path, capsys):
    assert cli.main(arguments(files, tmp_path / "run", "--keep", "0.5", "--distill", "0.7")) == 2
    assert "need --finetune-epochs" in capsys.readouterr().err
    mixed = training(files, tmp_path / "run")
    mixed[mixed.index("--calibration") + 1] = "spectrim.demo:demo_images"
    assert cli.main(mixed) == 2
    assert "give all of the same kind" in capsys.readouterr().err
    empty = tmp_path / "plan.json"
    empty.write_text(spectrim.Plan({}, spectrim.Cost(1, 1)).to_json())
    assert cli.main(training(files, tmp_path / "run", "--plan", str(empty))) == 2
    assert "replaces no layer" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_images_for_decisions_of_their_own(files, tmp_path, capsys):
    with np.load(files / "test.npz") as held:
        np.savez(tmp_path / "held.npz", images=held["images"][:200], labels=held["labels"][:200])
    more = ["--max-drop", "20", "--methods", "ChannelSVD", "--selection", f"npz:{tmp_path}/held.npz"]
    assert cli.main(arguments(files, tmp_path / "run", *more)) == 0
    captured = capsys.readouterr()
    assert "inputs  1 x 28 x 28, mean 0.5, std 0.5" in captured.err and "top-1 of the network as given" in captured.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["selection"]["examples"] == 200 and report["test"]["examples"] == 500
    assert report["settings"]["calibration images"] == 256
    assert cli.main(arguments(files, tmp_path / "b", "--max-drop", "20", "--selection", f"npz:{files}/test.npz")) == 2
    assert "it must be others" in capsys.readouterr().err


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
    monkeypatch.delattr(sys.modules["spectrim.compress"], "statistics")
    usual = {"images": np.zeros((40, 28, 28), np.uint8), "labels": np.arange(40) % 10}
    np.savez(tmp_path / "odd.npz", **(usual | arrays))
    command = arguments(files, tmp_path / "run", "--keep", "0.5")
    command[command.index("--data") + 1] = f"npz:{tmp_path}/odd.npz"
    assert cli.main(command) == 2
    assert match in " ".join(capsys.readouterr().err.split()) and [path.name for path in tmp_path.iterdir()] == ["odd.npz"]


def test_what_fails_by_itself_keeps_what_was_done(files, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["spectrim.compress"], "refit", full)
        assert cli.main(arguments(files, tmp_path / "run", "--keep", "0.5")) == 2
    assert "no space left on device; what was done is kept" in capsys.readouterr().err
    monkeypatch.delattr(sys.modules["spectrim.compress"], "statistics")
    assert cli.main(arguments(files, tmp_path / "run", "--keep", "0.5", "--resume")) == 0


def test_a_network_that_is_no_classifier(files, tmp_path, capsys):
    lines = ["from torch import nn", "def build():", "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 1))", ""]
    (tmp_path / "one.py").write_text("\n".join(lines))
    command = ["compress", f"{tmp_path}/one.py:build", "--data", f"npz:{files}/test.npz", "--keep", "0.5"]
    assert cli.main([*command, "--out", str(tmp_path / "run")]) == 2
    assert "top-1 needs logits of two classes or more" in capsys.readouterr().err


def test_a_result_of_a_trusted_pickle_is_evaluated(files, tmp_path, capsys):
    torch.save(demo_model(), tmp_path / "whole.pt")
    command = arguments(files, tmp_path / "run", "--keep", "0.5", "--methods", "ChannelSVD", "--trust-pickle")
    command[command.index("--weights") + 1] = str(tmp_path / "whole.pt")
    assert cli.main(command) == 0
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 2
    assert "--trust-pickle" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path / "run"), "--trust-pickle", "--images", "50"]) == 0
    assert "->" in capsys.readouterr().out


def test_labels_that_the_network_does_not_know_are_refused(files, tmp_path, capsys):
    held = np.load(files / "test.npz")
    np.savez(tmp_path / "wrong.npz", images=held["images"], labels=held["labels"] + 5)
    command = training(files, tmp_path / "run")
    command[command.index("--calibration") + 1] = f"npz:{tmp_path}/wrong.npz"
    assert cli.main(command) == 2
    assert "but the network has 10 outputs; it must be 0 to 9" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_train_is_resumed_and_evaluated(files, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(sys.modules["spectrim.train.fit"], "SAVE_SECONDS", 0.0)
    step, calls = spectrim.Distortion.step, []

    def interrupting(self):
        calls.append(step(self))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr(spectrim.Distortion, "step", interrupting)
    command = training(files, out, "--keep", "0.4", "--json")
    assert cli.main(command) == 130
    assert "--resume" in capsys.readouterr().err and not out.exists()
    assert {path.name for path in (tmp_path / "run.partial").iterdir()} >= {"plan.json", "training.pt"}
    assert cli.main(command) == 2
    assert "add --resume" in capsys.readouterr().err
    assert cli.main(training(files, out, "--keep", "0.3", "--json", "--resume")) == 2
    assert "other arguments (keep)" in capsys.readouterr().err
    assert cli.main([*command, "--resume"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["kept"]["macs"] <= 0.4 and report["training"]["steps"] == 8 and len(calls) == 9  # the fifth was done again
    assert [curve["label"] for curve in report["flatness"]] == ["before training", "after training"]
    assert report["flatness"][1]["distance"] < report["flatness"][0]["distance"]
    assert report["test"]["examples"] == 500 and not (tmp_path / "run.partial").exists()
    assert report["predicted_harm"] is None
    assert report["training"]["distortions"] == 2 and 0 < report["training"]["accuracy"].popitem()[1] <= 1
    names = ["dense.safetensors", "model.safetensors", "plan.json", "report.html", "report.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert "low-rank reconstructions" in (out / "report.html").read_text()
    assert cli.main(["evaluate", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["after"] == pytest.approx(report["test"]["after"])
    again = training(files, tmp_path / "again", "--plan", str(out / "plan.json"), "--json")
    assert cli.main(again) == 0
    assert json.loads(capsys.readouterr().out)["after"] == report["after"]
    cut = arguments(files, tmp_path / "cut", "--plan", str(out / "plan.json"), "--weights", str(out / "dense.safetensors"))
    del cut[2:4]
    assert cli.main(cut) == 2  # compress chooses its own plan
    assert "--plan" in capsys.readouterr().err


def test_ordinary_training_and_fine_tuning(files, tmp_path, capsys):
    assert cli.main(training(files, tmp_path / "plain", "--rate", "0.001")) == 0
    text = capsys.readouterr().out
    assert "Ordinary training" in text and "trained  8 steps on 512 images" in text and "latency" not in text
    command = arguments(files, tmp_path / "small", "--keep", "0.3", "--methods", "ChannelSVD", "--finetune-epochs", "1")
    assert cli.main([*command, "--distill", "0.5", "--replan", "2"]) == 2
    assert "--replan" in capsys.readouterr().err
    assert cli.main([*command, "--distill", "0.5", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    accuracy = report["training"]["accuracy"]
    assert accuracy["on the selection images after fine-tuning"] > accuracy["on the selection images before fine-tuning"] - 0.1
    assert report["training"]["steps"] == 4 and report["seconds"]["fine-tuning"] > 0 and report["kept"]["macs"] <= 0.3
    assert cli.main(training(files, tmp_path / "again", "--keep", "0.4", "--replan", "1", "--tighten", "2")) == 0
    text = capsys.readouterr().out
    assert (
        "loss on the way to low rank" in text
        and "2 distortions" in text
        and "selection images as trained" in text
        and "images decomposed" in text
    )


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--keep", "0.4", "--plan", "p.json"], "at most one"),
        (["--plan", "gone.json"], "the plan 'gone.json' cannot be read: No such file"),
        (["--plan", __file__], "cannot be used: the plan is no JSON"),
        (["--every", "0", "--keep", "0.4"], "every"),
        (["--every", "1.5", "--keep", "0.4"], "'1.5' is no whole number"),
        (["--epochs", "0"], "epochs"),
        (["--replan", "2"], "--keep FRACTION"),
        (["--every", "20"], "--keep FRACTION"),
        (["--keep", "0.4", "--every", "20"], "due after 20 steps"),
        (["--optimizer", "magic"], "magic"),
        (["--rate", "-1"], "rate"),
        (["--keep", "0.4", "--rate", "1e30"], "rate"),
    ],
)
def test_bad_training_is_one_sentence(files, tmp_path, capsys, more, match):
    assert cli.main(training(files, tmp_path / "run", *more)) == 2
    *_, sentence = capsys.readouterr().err.splitlines()
    assert match in sentence and sentence.startswith("spectrim: ")
    assert list(tmp_path.iterdir()) == []
