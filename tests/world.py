"""A user's folder for command lines: networks, weights, images, plans and runs, right ones and every kind of wrong one."""

import contextlib
import io
import json
import os
import shutil
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from spectrim import cli

NETS = """
import sys
import numpy as np
import torch
from torch import nn


def build(outputs=4, inputs=3):
    generator = torch.random.get_rng_state()
    torch.manual_seed(0)
    first, second = nn.Conv2d(inputs, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2)
    network = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(72, outputs))
    torch.random.set_rng_state(generator)
    return network

def prints():
    print("building"); print("building", file=sys.stderr)
    return build()

def raises(): return 1 / 0
def raises_many_lines(): raise KeyError("one\\n[red]two[/red]\\n" + "three " * 900)
def recursion(): return recursion()
def opens(): return open("/nowhere/at/all")
def exits(): sys.exit(3)
def exits_well(): sys.exit()
def needs(x): return x
def nothing(): return None
def a_class(): return nn.Conv2d
def text(): return "network"
number = 3

class Own(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.network, self.what = build(), what

    def forward(self, x):
        x = self.network(x)
        return self.what(x)

def stop(x): sys.exit(0)
def fail(x): raise LookupError("no such row")
def forward_raises(): return Own(fail)
def forward_exits(): return Own(stop)
def none_out(): return Own(lambda x: None)
def text_out(): return Own(lambda x: "cat")
def scalar_out(): return Own(lambda x: x.sum())
def tuple_out(): return Own(lambda x: (x, None))
def dict_out(): return Own(lambda x: {"logits": x})
def one_row(): return Own(lambda x: x[:1])
def integers(): return Own(lambda x: x.long())
def nan_out(): return Own(lambda x: x * float("nan"))
def no_parameters(): return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
def no_layers(): return nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(2), nn.Flatten())
def five(): return build(5)
def two(): return build(2)
def one(): return build(1)
def grey(): return build(4, 1)
def double(): return build().double()
def lazy(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
def scripted(): return torch.jit.script(build())
def frozen():
    network = build()
    return network.requires_grad_(False)
def nan():
    network = build()
    network[2].weight.data[0] = float("nan")
    return network
def meta(): return build().to("meta")

def images(seed=3, count=20, labels=None):
    x = torch.tensor(np.random.default_rng(seed).standard_normal((count, 3, 8, 8)), dtype=torch.float32)
    return [(x, build()(x).argmax(1) if labels is None else labels(count))]

def batches(): return images()
def others(): return images(4, 24)
def generator(): yield from images()
def data_raises(): raise RuntimeError("the disk is gone")
def data_later():
    yield from images()
    raise RuntimeError("the disk is gone")
def data_number(): return 5
def data_text(): return ["a", "b"]
def data_triples(): return [(x, y, y) for x, y in images()]
def data_numpy(): return [(x.numpy(), y.numpy()) for x, y in images()]
def data_empty(): return []
def data_no_example(): return [(torch.zeros(0, 3, 8, 8), torch.zeros(0).long())]
def data_fewer_labels(): return [(x, y[:-1]) for x, y in images()]
def data_one_hot(): return images(labels=lambda count: torch.eye(4)[torch.arange(count) % 4])
def data_float(): return images(labels=lambda count: torch.arange(count) / 7)
def data_scalar(): return [(x[0], y[0]) for x, y in images()]
def data_high(): return images(labels=lambda count: torch.arange(count) + 100)
def data_nan(): return [(x * float("nan"), y) for x, y in images()]
def data_shapes(): return images() + [(torch.zeros(4, 3, 9, 9), torch.zeros(4).long())]
def data_integers(): return [(x.long(), y) for x, y in images()]
def data_exits(): sys.exit(0)
"""
SCRIPTS = {
    "syntax": "def build(:\n    pass\n",
    "imports": "import a_module_that_is_not_there\n",
    "exits": "import sys\nsys.exit(0)\n",
    "argparse": "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--lr', required=True)\nparser.parse_args()\n",
    "raises": "table = {}\ntable['width']\n",
    "empty": "",
}


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def bomb(size=60000):
    """A PNG that says it is huge."""
    head = b"IHDR" + struct.pack(">2I5B", size, size, 8, 2, 0, 0, 0)
    chunks = ((13, head), (0, b"IDAT"), (0, b"IEND"))
    packed = (struct.pack(">I", size) + data + struct.pack(">I", zlib.crc32(data)) for size, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def make_world(folder):
    """Fill a folder with a user's files."""
    (folder / "nets.py").write_text(NETS)
    for name, text in SCRIPTS.items():
        (folder / f"script_{name}.py").write_text(text)
    (folder / "script_bytes.py").write_bytes(b"\xff\xfe\x00\x80")
    (folder / "folder.py").mkdir()
    (folder / "empty").mkdir()
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("mine")
    (folder / "hello.txt").write_text("hello")
    names = {}
    exec(compile(NETS, "nets.py", "exec"), names)
    network = names["build"]()
    _weights(folder, network)
    _arrays(folder, network)
    _tables(folder, network)
    _pictures(folder)
    return network


def _weights(folder, network):
    state = network.state_dict()
    save_file(state, folder / "w.safetensors")
    save_file({"conv.weight": torch.zeros(2)}, folder / "other.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "w.safetensors").read_bytes()[:-50])
    optimizer = torch.optim.Adam(network.parameters())
    saved = {
        "w": state,
        "parallel": {f"module.{key}": value for key, value in state.items()},
        "half": {key: value.half() for key, value in state.items()},
        "checkpoint": {"state_dict": state, "optimizer": optimizer.state_dict(), "epoch": 3},
        "tensors": {"model": state, "step": torch.tensor(3)},
        "renamed": {f"layer{key}": value for key, value in state.items()},
        "optimizer": {"optimizer": optimizer.state_dict(), "epoch": 3},
        "numbers": dict(enumerate(state.values())),
        "words": dict.fromkeys(state, "weight"),
        "complex": {key: value.to(torch.complex64) for key, value in state.items()},
        "nan": {key: value * float("nan") for key, value in state.items()},
        "list": [1, 2],
        "tensor": torch.zeros(3),
        "whole": nn.Sequential(*network),
    }
    for name, value in saved.items():
        torch.save(value, folder / f"{name}.pth")
    (folder / "text.pth").write_text("hello")
    (folder / "nothing.pth").write_text("")
    (folder / "cut.pth").write_bytes((folder / "w.pth").read_bytes()[:900])
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), folder / "script.pth")


def _labelled(network, seed, count):
    """Images of bytes, and as labels what the network answers."""
    images = np.random.default_rng(seed).integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)
    x = torch.tensor(images).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)) / torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    with torch.no_grad():
        return images, network(x).argmax(1).numpy()


def _arrays(folder, network):
    images, labels = _labelled(network, 1, 40)
    floats = np.random.default_rng(5).standard_normal((30, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        answers = network(torch.tensor(floats)).argmax(1).numpy()
    arrays = {
        "test": (images, labels),
        "train": _labelled(network, 2, 60),
        "held": _labelled(network, 3, 24),
        "floats": (floats, answers),
        "whole": (images, labels.astype(float)),
        "flat": (images[..., 0], labels),
        "one": (images[:1], labels[:1]),
        "none": (images[:0], labels[:0]),
        "high": (images, labels + 4),
        "below": (images, labels - 5),
        "half": (images, labels + 0.5),
        "infinite": (images, np.where(labels > 0, labels, np.inf)),
        "giant": (images, np.where(labels > 0, labels, 1e30)),
        "words": (images, np.array(["cat"] * 40)),
        "truth": (images, labels > 1),
        "hot": (images, np.eye(4)[labels]),
        "fewer": (images, labels[:30]),
        "scalar": (np.uint8(3), np.int64(2)),
        "integers": (images.astype(np.int64), labels),
        "planes": (images.transpose(0, 3, 1, 2), labels),
        "nan": (np.where(floats > 2, np.nan, floats), answers),
        "pixels": (images[:, :0], labels),
        "letters": (np.array(["a"] * 40), labels),
        "wide": (np.concatenate((floats, floats), 1), answers),
    }
    for name, (x, y) in arrays.items():
        np.savez(folder / f"{name}.npz", images=x, labels=y)
    np.savez(folder / "unlabelled.npz", images=images)
    np.savez(folder / "pickles.npz", images=np.array([{}, []], dtype=object), labels=np.arange(2))
    np.save(folder / "array.npy", images)
    shutil.copy(folder / "array.npy", folder / "array.npz")
    (folder / "cut.npz").write_bytes((folder / "test.npz").read_bytes()[:3000])
    damaged = bytearray((folder / "test.npz").read_bytes())
    damaged[300:2000] = bytes(1700)
    (folder / "damaged.npz").write_bytes(damaged)
    (folder / "nothing.npz").write_bytes(b"")
    (folder / "json.npz").write_text('{"images": [], "labels": []}')
    with zipfile.ZipFile(folder / "zip.npz", "w") as archive:
        archive.writestr("images.npy", "hello")
        archive.writestr("labels.npy", "hello")


def _tables(folder, network):
    images, labels = _labelled(network, 4, 20)
    pictures = [png(image) for image in images]
    tables = {
        "good": {"image": [{"bytes": each, "path": ""} for each in pictures], "label": labels},
        "columns": {"a": [1]},
        "unlabelled": {"image": pictures},
        "paths": {"image": [{"bytes": b"" if label else None, "path": "a.png"} for label in labels], "label": labels},
        "holes": {"image": [*pictures[:-1], None], "label": labels},
        "gaps": {"image": pictures, "label": [*labels.tolist()[:-1], None]},
        "texts": {"image": [b"hello"] * 20, "label": labels},
        "words": {"image": pictures, "label": ["cat"] * 20},
        "none": {"image": pictures[:0], "label": labels[:0]},
        "lists": {"image": pictures, "label": [[1]] * 20},
    }
    for name, columns in tables.items():
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"{name}.parquet")
    (folder / "text.parquet").write_text("hello")
    (folder / "nothing.parquet").write_text("")
    (folder / "cut.parquet").write_bytes((folder / "good.parquet").read_bytes()[:-200])


def _pictures(folder):
    generator = np.random.default_rng(6)
    for name, classes in {"four": 4, "five": 5, "three": 3, "damaged": 4, "huge": 4, "hidden": 4, "deep": 4}.items():
        for label in range(classes):
            place = folder / name / f"class{label}"
            place.mkdir(parents=True)
            for index in range(5):
                (place / f"{index}.png").write_bytes(png(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)))
    (folder / "damaged" / "class1" / "0.png").write_bytes(b"no picture")
    (folder / "huge" / "class1" / "0.png").write_bytes(bomb())
    (folder / "hidden" / ".checkpoints").mkdir()
    for file in (folder / "deep").rglob("*.png"):
        Image.fromarray(generator.integers(0, 65535, (8, 8), dtype=np.uint16)).save(file)
    (folder / "flatfolder").mkdir()
    (folder / "flatfolder" / "a.png").write_bytes(png(np.zeros((8, 8), np.uint8)))


def edit_world(folder):
    """Plans and saved runs that something was done to."""
    plan, report = (json.loads((folder / "run" / name).read_text()) for name in ("plan.json", "report.json"))
    name = next(iter(plan["layers"]))
    rows = {
        "renamed": {"renamed" + key: row for key, row in plan["layers"].items()},
        "ranks": plan["layers"] | {name: plan["layers"][name] | {"rank": 10**6}},
        "kinds": plan["layers"] | {name: 3},
        "none": {},
    }
    for kind, layers in rows.items():
        (folder / f"{kind}.json").write_text(json.dumps(plan | {"layers": layers}))
    (folder / "list.json").write_text("[1]")
    for copy in ("broken", "nobody", "planless", "cutrun", "foreign", "letters"):
        shutil.copytree(folder / "run", folder / copy)
    (folder / "broken" / "report.json").write_text((folder / "run" / "report.json").read_text()[:500])
    (folder / "nobody" / "report.json").write_text(json.dumps(report | {"source": None}))
    (folder / "planless" / "plan.json").unlink()
    (folder / "cutrun" / "model.safetensors").write_bytes((folder / "run" / "model.safetensors").read_bytes()[:-9])
    shutil.copy(folder / "other.safetensors", folder / "foreign" / "model.safetensors")
    (folder / "letters" / "report.json").write_bytes(b"\xff\xfe{")


@contextlib.contextmanager
def at_home(world):
    """A folder of its own for each line, from which it is called."""
    home, before = world.parent / f"{world.name}-home", Path.cwd()
    home.mkdir()
    (home / "busy").mkdir()
    (home / "busy" / "notes.txt").write_text("mine")
    (home / "taken.partial").mkdir()
    (home / "taken.partial" / "notes.txt").write_text("mine")
    (home / "new").mkdir()
    os.chdir(home)
    try:
        yield home
    finally:
        os.chdir(before)
        shutil.rmtree(home)


def run(arguments):
    """Return exit code, standard output and standard error, as a shell would have them."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace", write_through=True)
    modules, path = dict(sys.modules), list(sys.path)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(arguments)
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - set(modules):
            if name in ("nets", "folder", "hello") or name.startswith("script_"):
                del sys.modules[name]
    return code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()
