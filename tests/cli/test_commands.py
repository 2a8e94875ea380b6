import functools
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import spectrim
from commands import compressing, interrupted_block, training
from spectrim import cli
from spectrim.cli.models import make_model
from spectrim.demo import demo_images, demo_model


def test_compress_and_evaluate(files, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(compressing(files, out, "--keep", "0.5", "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["kept"]["macs"] <= 0.5 and report["test"]["examples"] == 500 and report["selection"] is None
    assert sorted(path.name for path in out.iterdir()) == ["model.safetensors", "plan.json", "report.html", "report.json"]
    assert not (tmp_path / "run.partial").exists()
    assert cli.main(["evaluate", str(out), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["after"] == pytest.approx(report["test"]["after"]) and again["drop"] == pytest.approx(report["test"]["drop"])
    assert cli.main(["evaluate", str(out), "--images", "100"]) == 0
    assert "100 images" in capsys.readouterr().out
    assert cli.main(compressing(files, out, "--keep", "0.5")) == 2
    assert "exists already" in capsys.readouterr().err
    (files / "w.safetensors").rename(files / "moved")
    assert cli.main(["evaluate", str(out)]) == 0
    (files / "moved").rename(files / "w.safetensors")
    assert "top-1" in capsys.readouterr().out


def test_a_model_file_that_imports_its_neighbour(tmp_path, monkeypatch):
    (tmp_path / "neighbour_of_net.py").write_text("from torch import nn\n\ndef layer():\n    return nn.Conv2d(1, 2, 3)\n")
    (tmp_path / "some_net.py").write_text("from neighbour_of_net import layer\n\ndef build():\n    return layer()\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert make_model(f"{tmp_path}/some_net.py:build").out_channels == 2


def test_demo(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spectrim.demo.BUDGET", None)
    from spectrim.demo import run_demo

    monkeypatch.setattr(cli.demo, "run_demo", lambda progress, **where: run_demo(progress, spectrim.Keep(0.5, "macs"), **where))
    monkeypatch.setattr("spectrim.demo.demo_images", lambda part: tuple(tensor[:150] for tensor in demo_images(part)))
    assert cli.main(["demo"]) == 0
    text = capsys.readouterr().out
    assert "top-1 on the test images" in text and "latency, 1 thread" in text and "150 images" in text
    assert (tmp_path / "spectrim-demo" / "report.html").exists()
    assert cli.main(["demo", "--out", "spectrim-demo"]) == 2
    assert cli.main(["demo", "--device", "abacus"]) == 2
    assert "the device 'abacus' cannot be used" in " ".join(capsys.readouterr().err.split())


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
        (["--keep", "0.5", "--metric", "flops"], 2, "allowed are 'params', 'macs', 'bytes' and 'latency'"),
        (["--at-most", "4e6:bytes", "--max-drop", "1"], 2, "exactly one budget"),
        (["--at-most", "10:bytes"], 1, "AtMost(10, 'bytes') cannot be met"),
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
    command = compressing(files, tmp_path / "run", *more)
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


def test_the_installed_command():
    for start in ([sys.executable, "-m", "spectrim"], ["spectrim"]):
        command = start if start[0] != "spectrim" else [sys.executable.replace("python", "spectrim")]
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout.strip() == spectrim.__version__
    assert torch.get_num_threads() >= 1


def test_words_that_would_be_ignored_are_refused(files, tmp_path, capsys):
    assert cli.main(compressing(files, tmp_path / "run", "--keep", "0.5", "--distill", "0.7")) == 2
    assert "need --finetune-epochs" in capsys.readouterr().err
    assert cli.main(compressing(files, tmp_path / "run", "--keep", "0.5", "--mirror")) == 2
    assert "needs --reconstruct" in capsys.readouterr().err
    mixed = training(files, tmp_path / "run")
    mixed[mixed.index("--calibration") + 1] = "spectrim.demo:demo_images"
    assert cli.main(mixed) == 2
    assert "give all of the same kind" in capsys.readouterr().err
    empty = tmp_path / "plan.json"
    empty.write_text(spectrim.Plan({}, spectrim.Cost(1, 1)).to_json())
    assert cli.main(training(files, tmp_path / "run", "--plan", str(empty))) == 2
    assert "replaces no layer" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_network_that_is_no_classifier(files, tmp_path, capsys):
    lines = ["from torch import nn", "def build():", "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 1))", ""]
    (tmp_path / "one.py").write_text("\n".join(lines))
    command = ["compress", f"{tmp_path}/one.py:build", "--data", f"npz:{files}/test.npz", "--keep", "0.5"]
    assert cli.main([*command, "--out", str(tmp_path / "run")]) == 2
    assert "top-1 needs logits of two classes or more" in capsys.readouterr().err


def test_a_result_of_a_trusted_pickle_is_evaluated(files, tmp_path, capsys):
    torch.save(demo_model(), tmp_path / "whole.pt")
    command = compressing(files, tmp_path / "run", "--keep", "0.5", "--methods", "ChannelSVD", "--trust-pickle")
    command[command.index("--weights") + 1] = str(tmp_path / "whole.pt")
    assert cli.main(command) == 0
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 2
    assert "--trust-pickle" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path / "run"), "--trust-pickle", "--images", "50"]) == 0
    assert "->" in capsys.readouterr().out


def test_a_plan_of_ones_own(files, tmp_path, capsys):
    """An unedited plan gives the network that the search gave; an edited one another, fitted in the same way."""
    assert cli.main(compressing(files, tmp_path / "chosen", "--keep", "0.5", "--json")) == 0
    chosen = json.loads(capsys.readouterr().out)
    plan = tmp_path / "chosen" / "plan.json"
    assert cli.main(compressing(files, tmp_path / "again", "--plan", str(plan), "--json")) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["budget"] == "the given plan" and again["after"] == chosen["after"]
    what = ("layer", "method", "rank", "fitted")
    assert [[row[key] for key in what] for row in again["rows"]] == [[row[key] for key in what] for row in chosen["rows"]]
    assert again["predicted_harm"] == pytest.approx(chosen["predicted_harm"], rel=0.2)  # drawn to fewer options' factors
    assert again["test"] == chosen["test"] and again["measured_harm"] == chosen["measured_harm"]
    text = json.loads(plan.read_text())
    name, row = max(text["layers"].items(), key=lambda item: item[1]["rank"])
    row["rank"] //= 2
    (tmp_path / "edited.json").write_text(json.dumps(text))
    edited = compressing(files, tmp_path / "edited", "--plan", str(tmp_path / "edited.json"), "--json")
    assert cli.main(edited) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["after"]["macs"] < chosen["after"]["macs"]
    assert next(r["rank"] for r in report["rows"] if r["layer"] == name) == row["rank"]
    assert report["predicted_harm"] > chosen["predicted_harm"]
    edited[edited.index("--out") + 1] = str(tmp_path / "other")
    assert cli.main([*edited, "--keep", "0.1"]) == 1
    assert "the given plan keeps" in capsys.readouterr().err
    assert cli.main([*edited, "--max-drop", "0"]) == 1
    assert "the given plan loses" in capsys.readouterr().err
    assert cli.main([*edited, "--methods", "CP"]) == 2
    assert "--plan says what is done to each layer" in capsys.readouterr().err
    text["layers"]["stem.9"] = text["layers"].pop(name)
    (tmp_path / "edited.json").write_text(json.dumps(text))
    assert cli.main(edited) == 2
    assert "layer 'stem.9' cannot be planned: there is no such layer" in capsys.readouterr().err


THIRD_PARTY = """
from dataclasses import dataclass
import spectrim as st

@dataclass(frozen=True)
class Halved(st.ChannelSVD):
    title = "Halved"
    def candidates(self, layer):
        return [max(1, self.full_rank(layer) // 2)] if self.fits(layer) else []

@dataclass(frozen=True)
class Cheapest(st.Search):
    title = "Cheapest"
    reference = "none"
    def select(self, menu, budget, probe=None):
        menu.allowed(budget)
        return [int(row.costs[budget.metric].argmin()) for row in menu.layers]

@dataclass(frozen=True)
class Greedy(st.Search):
    title = "Greedy"
    reference = "none"
    def select(self, menu, budget, probe=None):
        return [0 for _ in menu.layers]
"""


def test_methods_and_rank_selections_of_third_parties(files, tmp_path, capsys):
    (tmp_path / "outside.py").write_text(THIRD_PARTY)
    more = ["--methods", f"{tmp_path}/outside.py:Halved", "--search", f"{tmp_path}/outside.py:Cheapest"]
    assert cli.main(compressing(files, tmp_path / "run", "--keep", "0.9", *more, "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    methods = {row["method"] for row in report["rows"]}
    assert "Halved" in methods and methods <= {"Halved", "-"}
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert {row["module"] for row in plan["layers"].values()} == {"outside"}
    again = f"import spectrim as st\nfrom spectrim.demo import FashionNet\nst.load({str(tmp_path / 'run')!r}, FashionNet())"
    done = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, check=False)
    assert "there is no decomposition 'Halved'; it was defined in the module 'outside'; import that first" in done.stderr
    breaking = ["--methods", "ChannelSVD", "--search", f"{tmp_path}/outside.py:Greedy"]
    assert cli.main(compressing(files, tmp_path / "broken", "--keep", "0.5", *breaking)) == 2
    assert "the rank selection Greedy broke Keep(0.5, 'macs')" in " ".join(capsys.readouterr().err.split())
    wrong = ["--methods", f"{tmp_path}/outside.py:Cheapest"]
    assert cli.main(compressing(files, tmp_path / "wrong", "--keep", "0.5", *wrong)) == 2
    assert "it must make a spectrim.Factorization" in " ".join(capsys.readouterr().err.split())
    assert cli.main(compressing(files, tmp_path / "wrong", "--keep", "0.5", "--methods", "channelsvd")) == 2
    assert "did you mean ChannelSVD?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "code", "match"),
    [
        ({"--input": "32,32"}, 2, "stored images need batch, channels, height and width, such as 1,3,224,224"),
        ({"MODEL": "{here}/broken.py:build"}, 2, "broken.py, line 2)"),
        ({"MODEL": "{here}/typo.py:build"}, 2, "typo.py, line 1)"),
        ({"MODEL": "a:b:c"}, 2, "'a:b:c' cannot be imported"),
        ({"MODEL": "{here}/nothing.py:build", "--weights": None}, 2, "the model has no parameters"),
        (
            {"--weights": "{here}/other.safetensors"},
            2,
            "it lacks stem.0.weight, stem.1.weight, stem.1.bias and 53 more; it has",
        ),
        (
            {"--weights": "{here}/rolled.safetensors", "--keep": None, "--max-drop": "5"},
            2,
            "where guessing among 10 classes scores 10.00",
        ),
        ({"--weights": "{here}/rolled.safetensors"}, 0, "warning the network as given scores"),
    ],
)
def test_faults_before_the_work_begins(files, tmp_path, capsys, change, code, match):
    here = tmp_path / "here"
    here.mkdir()
    (here / "broken.py").write_text("def build():\n    return 1 / 0\n")
    (here / "typo.py").write_text("def build(:\n    pass\n")
    (here / "nothing.py").write_text("from torch import nn\n\n\ndef build():\n    return nn.Identity()\n")
    save_file({"conv.weight": torch.zeros(2)}, here / "other.safetensors")
    state = demo_model().state_dict()
    last = [name for name, value in state.items() if value.shape[:1] == (10,)]  # the classifier's: labels of another order
    save_file(state | {name: state[name].roll(1, 0) for name in last}, here / "rolled.safetensors")
    command = compressing(files, tmp_path / "run", "--methods", "ChannelSVD", "--keep", "0.9")
    for name, value in change.items():
        place = 1 if name == "MODEL" else command.index(name) + 1 if name in command else None
        if value is None:
            del command[place - 1 : place + 1]
        elif place is None:
            command += [name, value]
        else:
            command[place] = value.format(here=here)
    assert cli.main(command) == code
    error = " ".join(capsys.readouterr().err.split())
    assert match in error and "Traceback" not in error
    assert (tmp_path / "run").exists() == (code == 0) and not (tmp_path / "run.partial").exists()


def test_gradient_steps_after_the_fits(files, tmp_path, capsys, monkeypatch):
    """Interrupted in the second block, gone on with, and told."""
    monkeypatch.setattr("spectrim.cli.options.Reconstruct", functools.partial(spectrim.Reconstruct, steps=3))
    blocks = interrupted_block(monkeypatch, 2)
    command = compressing(files, tmp_path / "run", "--keep", "0.4", "--reconstruct", "--mirror", "--json")
    assert cli.main(command) == 130
    assert cli.main([*command, "--resume"]) == 0
    assert blocks[1] == blocks[2] and len(set(blocks)) == len(blocks) - 1
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["config"]["reconstruct"] == {"rate": 1e-3, "steps": 3, "batch": 64, "mirror": True}
    assert any(note.startswith("gradient steps were taken, without labels: 3 of Adam") for note in report["notes"])


def test_time_is_a_budget_and_inspect_shows_it(files, tmp_path, capsys):
    """On eager PyTorch, which is always there; what a clock says is not asserted but that it was asked."""
    more = [
        "--keep",
        "0.9",
        "--metric",
        "latency",
        "--at-most",
        "40000:params",
        "--methods",
        "ChannelSVD",
        "--search",
        "Knapsack",
    ]
    assert cli.main(compressing(files, tmp_path / "run", *more, "--target", "torch", "--json")) in (0, 1)
    out, err = capsys.readouterr()
    if out:
        report = json.loads(out)
        assert report["budget"] == "Keep(0.9, 'latency') and AtMost(40000, 'params')" and report["seconds"]["timing"] > 0
        assert report["after"]["params"] <= 40000 and report["target"]["target"] == "PyTorch"
    else:
        assert "cannot be met" in err
    line = ["inspect", "spectrim.demo:FashionNet", "--input", "1,1,28,28", "--target", "torch"]
    assert cli.main(line) == 0
    assert "of no layer" in capsys.readouterr().out
    assert cli.main([*line[:-1], "gpu"]) == 2
    assert "there is no runtime 'gpu'" in " ".join(capsys.readouterr().err.split())
