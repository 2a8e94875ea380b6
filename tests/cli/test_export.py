"""`spectrim export` on saved runs: files of every format that is installed, and a sentence for every wrong line."""

import json

import numpy as np
import pytest
import torch

import lines
import spectrim as st
from spectrim import cli

FOUR = "cat\ndog\nbird\nfish\n"


@pytest.fixture
def home(world, monkeypatch, tmp_path):
    monkeypatch.chdir(world)
    (tmp_path / "names.txt").write_text(FOUR)
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    return tmp_path


def test_a_file_takes_images_and_gives_classes(home, world, capsys):
    out = home / "small.pt2"
    line = ["export", "run", "--out", str(out), "--preprocess", "--labels", str(home / "names.txt")]
    assert cli.main(line) == 0
    shown = capsys.readouterr().out
    assert str(out) in shown and "image uint8 (batch, 8, 8, 3)" in shown and max(map(len, shown.splitlines())) < 200
    extra = {"spectrim.json": ""}
    network = torch.export.load(out, extra_files=extra).module()
    found = json.loads(extra["spectrim.json"])
    assert json.loads(found["labels"]) == FOUR.split() and st.Plan.from_json(found["plan"]).cost.params
    assert json.loads(found["source"]) == {"model": "nets.py:build", "weights": "w.pth"}
    with np.load("test.npz") as archive:
        images, labels = torch.tensor(archive["images"]), torch.tensor(archive["labels"])
    with torch.no_grad():
        answers = network(images)
    assert torch.allclose(answers.sum(1), torch.ones(40)) and float((answers.argmax(1) == labels).float().mean()) > 0.5


def test_json_and_a_file_in_the_folder_of_the_run(home, world, capsys):
    assert cli.main(["export", "run", "--to", "pt2", "--input", "2,3,8,8", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["path"] == "run/model.pt2" and found["match"]["bytes"] == (world / "run" / "model.pt2").stat().st_size
    assert found["images"] == 2
    assert cli.main(["export", "run", "--to", "pt2", "--input", "2,3,8,8"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["export", "run", "--to", "pt2", "--overwrite", "--calibration", "npz:held.npz"]) == 0
    (world / "run" / "model.pt2").unlink()


def test_int8_on_images_of_the_run(home, capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert cli.main(["export", "run", "--to", "onnx", "--int8", "--out", str(home / "a.onnx")]) == 0
    shown = capsys.readouterr().out
    assert "ONNX, int8" in shown and "60 images" in shown and (home / "a.onnx").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "say what to write with --to: onnx, pt2, openvino, executorch, or with --out FILE"),
        (["--to", "tflite"], "--to: there is no format 'tflite'; allowed are onnx, pt2, openvino, executorch"),
        (["--to", "pt2", "--out", "{h}/a.onnx"], "and --to 'pt2' is another format; give one of the two"),
        (["--out", "{h}/a.tflite"], "the output 'a.tflite' has the suffix '.tflite'; allowed are .onnx (ONNX)"),
        (["--out", "nowhere/a.pt2"], "cannot be written: its folder is not there"),
        (["--to", "pt2", "--int8"], "int8 is for .onnx, .xml and .pte; a .pt2 file"),
        (["--out", "{h}/a.pt2", "--mean", "0.5"], "--mean and --std say what the file does to images: they need --preprocess"),
        (
            ["--out", "{h}/a.pt2", "--preprocess", "--mean", "0.5", "--std", "0.5"],
            "the run knows how its images were normalised",
        ),
        (
            ["--out", "{h}/a.pt2", "--preprocess", "--calibration", "nets.py:batches"],
            "--preprocess needs --mean and --std here",
        ),
        (["--out", "{h}/a.pt2", "--labels", "nowhere.txt"], "--labels: there is no file 'nowhere.txt'"),
        (["--out", "{h}/a.pt2", "--labels", "{h}/none.txt"], "none.txt' is empty; it must hold a name of a class on each line"),
        (["--out", "{h}/a.pt2", "--labels", "{h}/bytes.txt"], "cannot be read as text: UnicodeDecodeError"),
        (["--out", "{h}/a.pt2", "--labels", "folders"], "--labels folders is for images in a folder for each class"),
        (
            ["--out", "{h}/a.pt2", "--calibration", "imagefolder:five", "--labels", "folders"],
            "there are 5 labels; the network must",
        ),
        (["--out", "{h}/a.pt2", "--calibration", "npz:nowhere.npz"], "the data 'npz:nowhere.npz' is not there"),
        (["--out", "{h}/a.pt2", "--input", "1,3"], "cannot be exported"),
    ],
)
def test_wrong_lines_get_a_sentence(home, world, capsys, words, text):
    before = sorted(home.rglob("*")), sorted(world.rglob("*"))
    assert cli.main(["export", "run", *(word.replace("{h}", str(home)) for word in words)]) == 2
    said = capsys.readouterr().err
    assert text in " ".join(said.split()) and "Traceback" not in said
    assert (sorted(home.rglob("*")), sorted(world.rglob("*"))) == before


@pytest.mark.parametrize("run", ["nothing", "broken", "nobody", "cutrun", "foreign", "letters", "planless"])
def test_a_folder_that_is_no_run(home, capsys, run):
    assert cli.main(["export", run, "--out", str(home / "a.pt2")]) == 2
    assert "Traceback" not in capsys.readouterr().err and not (home / "a.pt2").exists()


WRONG = {
    "--to": [*lines.ODD, "pt2,", "pt2,abacus", "PT2"],
    "--out": ["", "run", "nowhere/a.pt2", "run/report.json/a.pt2", "a\0.pt2"],
    "--calibration": ["", "npz:", "abacus:x", "npz:cut.npz"],
    "--input": ["", "0,3,8,8", "x", "1,3,9999999,9999999"],
}


@pytest.mark.parametrize("option", WRONG)
def test_wrong_words_get_a_sentence(home, world, capsys, option):
    before = sorted(world.rglob("*"))
    for word in WRONG[option]:
        words = {"--out": str(home / "a.pt2")} | {option: word}
        if option == "--to":
            words.pop("--out")
        code = cli.main(["export", "run", *(f"{name}={value}" for name, value in words.items())])
        text = capsys.readouterr().err
        said = [line for line in text.splitlines() if line.startswith("spectrim: ")]
        assert code == 2 and len(said) == 1 and "Traceback" not in text and 20 < len(said[0]) < 1500, (word, text)
        assert sorted(world.rglob("*")) == before, word


def test_a_runtime_that_is_not_installed(home, monkeypatch, capsys):
    monkeypatch.setattr("spectrim.targets.base.find_spec", lambda name: None)
    assert cli.main(["export", "run", "--out", str(home / "a.xml")]) == 2
    assert 'pip install "spectrim[openvino]"' in " ".join(capsys.readouterr().err.split())
