"""Command lines that once ended in a traceback, in the words of another library or in a wrong result: each has its sentence."""

import json
import os
from pathlib import Path

import pytest

import lines
from spectrim.cli.datasets import open_images
from world import at_home, run

BUDGET = {"--keep": "0.6"}


def called(world, home, command, change):
    """Call a command with other words than a right line has; None takes one away."""
    argument = {"": next(word for word, right in lines.ARGUMENT[command] if right)} if command in lines.ARGUMENT else {}
    words = argument | lines.BASE[command] | change
    line = [command]
    for name, word in words.items():
        if word is not None:
            line += [word] if not name else [name, word] if word is not True else [name]
    return run([str(word).replace("{w}", str(world)).replace("{h}", str(home)) for word in line])


@pytest.mark.parametrize(
    ("command", "change", "match"),
    [
        # files that are no data of their kind
        ("compress", {"--data": "npz:{w}/cut.npz"}, "cut.npz' is no readable npz file without pickles: BadZipFile"),
        ("compress", {"--data": "npz:{w}/damaged.npz"}, "is no readable npz file without pickles: BadZipFile: Bad CRC-32"),
        ("compress", {"--data": "npz:{w}/nothing.npz"}, "is no readable npz file without pickles: EOFError"),
        ("compress", {"--data": "npz:{w}/array.npz"}, "is no readable npz file without pickles"),
        ("compress", {"--data": "npz:{w}/zip.npz"}, "must hold 'images' and as many 'labels'"),
        ("compress", {"--data": "npz:{w}/scalar.npz"}, "must hold 'images' and as many 'labels'"),
        ("compress", {"--data": "npz:{w}"}, "without pickles: IsADirectoryError: Is a directory"),
        ("compress", {"--data": "npz:{w}/nan.npz"}, "nan.npz' holds NaN or infinite values"),
        ("compress", {"--data": "npz:{w}/pixels.npz"}, "pixels.npz' holds images without a pixel"),
        ("compress", {"--data": "npz:{w}/infinite.npz"}, "are such as inf; they must be one whole class number"),
        ("compress", {"--data": "npz:{w}/giant.npz"}, "are such as 1e+30; they must be one whole class number"),
        ("compress", {"--data": "parquet:{w}/gaps.parquet"}, "are such as None; they must be one whole class number"),
        ("compress", {"--data": "parquet:{w}/holes.parquet"}, "has no bytes in the column 'image'"),
        ("compress", {"--data": "parquet:{w}/paths.parquet"}, "image 0 of '{w}/paths.parquet' "),
        ("compress", {"--data": f"npz:{lines.LONG}"}, "cannot be read: OSError: File name too long"),
        # folders of images
        ("compress", {"--data": "imagefolder:{w}/hello.txt"}, "hello.txt' is no folder; expected one with a folder per class"),
        ("compress", {"--data": "imagefolder:{w}/huge"}, "is no readable image: DecompressionBombError"),
        ("compress", {"--data": "imagefolder:{w}/deep"}, "has pixels of more than 8 bits"),
        ("compress", {"--data": "imagefolder:{w}/five"}, "--data: labels are from 0 to 4, but the network has 4 outputs"),
        (
            "compress",
            {"--data": "imagefolder:{w}/four", "--calibration": "imagefolder:{w}/three"},
            "--data has 4 folders of classes and --calibration 3, and 'class3' is not in both",
        ),
        (
            "compress",
            {"--data": "imagefolder:{w}/three", "--calibration": None, "--keep": None, "--max-drop": "5"},
            "there are 3 folders of classes and the network has 4 outputs",
        ),
        # callables
        (
            "compress",
            {"--data": "{w}/nets.py:data_fewer_labels", "--calibration": None},
            "(20, 3, 8, 8) and (19,); there must be",
        ),
        ("compress", {"--data": "{w}/nets.py:data_no_example", "--calibration": None}, "returned nothing"),
        ("compress", {"--data": "{w}/nets.py:data_nan", "--calibration": None}, "returned inputs that are NaN or infinite"),
        ("compress", {"--data": "{w}/nets.py:batches", "--calibration": None, "--input": "1,3,8,8"}, "--input is for stored"),
        (
            "compress",
            {"--data": "{w}/nets.py:batches", "--calibration": None, "--mean": "0"},
            "--mean and --std are for images of",
        ),
        (
            "compress",
            {"--data": "npz:{w}/floats.npz", "--calibration": None, "--mean": "0.5"},
            "--mean and --std are for images of",
        ),
        ("compress", {"--data": "folder:{w}/four"}, "No module named 'folder'; allowed are parquet:FILE, imagefolder:DIR"),
        # the user's own code
        ("compress", {"": "{w}/nets.py:exits_well"}, "raised SystemExit: no reason given ({w}/nets.py, line"),
        ("compress", {"": "{w}/script_exits.py:build"}, "cannot be imported: SystemExit: 0 ({w}/script_exits.py, line 2)"),
        (
            "compress",
            {"": "{w}/script_argparse.py:build"},
            "cannot be imported: SystemExit: 2 ({w}/script_argparse.py, line 4)",
        ),
        (
            "compress",
            {"": "{w}/script_imports.py:build"},
            "'a_module_that_is_not_there' ({w}/script_imports.py, line 1); allowed",
        ),
        (
            "compress",
            {"": "{w}/nets.py:forward_raises"},
            "do not go through the network: LookupError: no such row ({w}/nets.py, line",
        ),
        ("inspect", {"": "{w}/nets.py:forward_raises"}, "LookupError: no such row ({w}/nets.py, line"),
        ("compress", {"": "{w}/nets.py:forward_exits"}, "ended the program: SystemExit: 0 ({w}/nets.py, line"),
        ("compress", {"": "{w}/nets.py:none_out"}, "--data: the network returns NoneType; top-1 needs logits"),
        ("train", {"": "{w}/nets.py:none_out"}, "--calibration: the network returns NoneType; top-1 needs logits"),
        ("compress", {"": "{w}/nets.py:raises_many_lines"}, "hree three ' ({w}/nets.py, line"),
        ("train", {"": "{w}/nets.py:no_parameters"}, "the model has no parameters"),
        ("train", {"": "{w}/nets.py:nan"}, "the model's '2.weight' holds NaN"),
        ("compress", {"": "{w}/nets.py:lazy"}, "is lazy and has no value yet"),
        (
            "compress",
            {"": ":build"},
            "':build' cannot be imported: ValueError: Empty module name; allowed are torchvision:NAME",
        ),
        # weights
        ("compress", {"--weights": "{w}/numbers.pth"}, "numbers.pth' holds no state dict"),
        ("compress", {"--weights": "{w}/complex.pth"}, "0.weight is complex, the model's is not"),
        ("compress", {"--weights": f"{{w}}/{lines.LONG}"}, "there is no weight file"),
        ("compress", {"--weights": "{w}/renamed.pth"}, "it lacks 0.weight, 0.bias, 2.weight and 3 more; it has beyond"),
        # numbers
        ("inspect", {"--input": "32,32"}, "an input of 32 x 32: the example does not go through the model"),
        ("compress", {"--input": "1,3,1,1"}, "--data: inputs of 40 x 3 x 1 x 1 do not go through the network"),
        ("inspect", {"--input": "1,3,99999999,99999999"}, "268,435,456 values at most"),
        ("compress", {"--input": "1,3,100000,8"}, "the input is 100000 x 8 pixels; allowed are at most 10,000 each"),
        ("compress", {"--std": "0"}, "std is 0; allowed are numbers from 1e-06 to 1e6"),
        ("compress", {"--mean": "nan"}, "mean is nan; allowed are numbers from -1e+06 to 1e6"),
        ("compress", {"--seed": "99999999999999999999"}, "'99999999999999999999' is out of range"),
        ("compress", {"--device": "meta"}, "the device 'meta' cannot be used"),
        ("evaluate", {"--images": "0"}, "--images is 0; it must be a whole number of at least 1"),
        ("evaluate", {"--images": "-1"}, "'-1' is out of range"),
        ("evaluate", {"--data": ""}, "the data '' is not understood"),
        ("demo", {"--out": ""}, "the output '' exists already"),
        ("evaluate", {"": "{w}/letters"}, "letters/report.json' cannot be used: it is no text"),
        # words that would be ignored
        ("compress", {"--selection": "npz:{w}/held.npz"}, "--selection has images for decisions: it needs --max-drop"),
        ("compress", {"--plan": "{w}/run/plan.json", "--methods": None, "--exclude": "0"}, "leave --search, --exclude"),
        ("train", {"--plan": "{w}/run/plan.json", "--keep": None}, "give --methods only for what the plan needs"),
        ("train", {"--keep": "0.7", "--every": "1", "--mean": "100"}, "lower the rate (now 0.02)"),  # and nothing is kept
        (
            "train",
            {"--keep": None, "--metric": "flops"},
            "metric is 'flops'; allowed are 'params', 'macs', 'bytes' and 'latency'",
        ),
        (
            "compress",
            {"--at-most": "many:bytes"},
            "--at-most: 'many:bytes' has no number before the colon; write it as 4e6:bytes",
        ),
        ("compress", {"--at-most": "4e6"}, "--at-most: metric is ''; allowed are 'params', 'macs', 'bytes' and 'latency'"),
        ("compress", {"--at-most": "0:macs"}, "--at-most: AtMost was given 0.0; allowed are positive numbers"),
        ("compress", {"--at-most": "1e6:macs", "--search": "Uniform"}, "Uniform holds one budget, and 2 were given; choose by"),
        # places
        ("compress", {"--out": "/proc/x"}, "the output '/proc/x' cannot be written: FileNotFoundError: No such file"),
        ("compress", {"--out": f"{{h}}/{lines.LONG}"}, "cannot be written: OSError: File name too long; choose another place"),
        ("compress", {"--out": "{h}/" + "n" * 250}, "cannot be written: OSError: File name too long; choose another place"),
        ("compress", {"--out": lines.BYTES}, "has bytes that are no UTF-8; choose another name"),
    ],
)
def test_a_sentence_for_every_wrong_word(world, command, change, match):
    with at_home(world) as home:
        before = sorted(home.rglob("*"))
        change = BUDGET | change if command == "compress" and "--plan" not in change else change
        code, _, err = called(world, home, command, change)
        assert code == 2 and match.replace("{w}", str(world)) in err, err
        sentence = err.splitlines()[-1]
        assert sentence.startswith("spectrim: ") and "[Errno" not in sentence and len(sentence) < 1200
        assert sorted(home.rglob("*")) == before


def test_folders_of_classes_that_are_not_the_outputs_are_warned_of(world):
    change = {"--data": "imagefolder:{w}/three", "--calibration": None}
    for command, more in (("compress", BUDGET), ("train", {"--calibration": "imagefolder:{w}/three", "--batch": "8"})):
        with at_home(world) as home:
            code, _, err = called(world, home, command, change | more)
            assert code == 0 and "warning  there are 3 folders of classes and the network has 4 outputs" in err, err


def test_hidden_folders_are_no_classes(world):
    with at_home(world) as home:
        code, out, err = called(world, home, "compress", BUDGET | {"--data": "imagefolder:{w}/hidden", "--json": True})
        assert code == 0 and json.loads(out)["test"]["examples"] == 20, err


def test_weights_beside_other_tensors_are_found(world):
    with at_home(world) as home:
        assert called(world, home, "compress", BUDGET | {"--weights": "{w}/tensors.pth"})[0] == 0


def test_a_run_is_evaluated_from_any_folder(world):
    """It was made with names relative to another folder."""
    with at_home(world) as home:
        os.chdir(home / "new")
        code, out, err = called(world, home, "evaluate", {})
        assert code == 0 and "->" in out and "40 images" in out, err


def test_a_folder_of_a_class_that_may_not_be_read_is_not_passed_over(world, monkeypatch):
    def locked(self, iterdir=Path.iterdir):
        if self.name == "class1":
            raise PermissionError(13, "Permission denied", str(self))
        return iterdir(self)

    monkeypatch.setattr(Path, "iterdir", locked)
    with pytest.raises(ValueError, match=r"class1' cannot be read: Permission denied"):
        open_images(f"imagefolder:{world}/four")
