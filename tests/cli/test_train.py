import json
import sys

import numpy as np
import pytest

import spectrim
from commands import compressing, training
from spectrim import cli


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
    assert "other arguments (--keep 0.4, now 0.3)" in capsys.readouterr().err
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
    assert cli.main(["evaluate", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["after"] == pytest.approx(report["test"]["after"])
    again = training(files, tmp_path / "again", "--plan", str(out / "plan.json"), "--json")
    assert cli.main(again) == 0
    assert json.loads(capsys.readouterr().out)["after"] == report["after"]
    cut = compressing(files, tmp_path / "cut", "--plan", str(out / "plan.json"), "--weights", str(out / "dense.safetensors"))
    del cut[2:4]
    assert cli.main([*cut, "--json"]) == 0  # the trained kernels have the plan's ranks: fitted to data they lose nothing
    assert json.loads(capsys.readouterr().out)["test"]["drop"] == pytest.approx(0, abs=2)


def test_ordinary_training_and_fine_tuning(files, tmp_path, capsys):
    assert cli.main(training(files, tmp_path / "plain", "--rate", "0.001")) == 0
    text = capsys.readouterr().out
    assert "ordinary training" in text and "trained  8 steps on 512 images" in text and "latency" not in text
    command = compressing(files, tmp_path / "small", "--keep", "0.3", "--methods", "ChannelSVD", "--finetune-epochs", "1")
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
