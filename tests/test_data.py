import copy
import gzip
import io
import struct
from collections import OrderedDict

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from spectrim.data import Batches, Form, Images, Shuffled, is_callable_spec, open_callable, open_images, to_input
from spectrim.zoo import import_callable, load_weights, make_model

RGB = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), dtype=np.uint8)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def write_idx(folder, name, array, packed):
    data = struct.pack(">4B", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    (folder / (name + (".gz" if packed else ""))).write_bytes(gzip.compress(data) if packed else data)


def test_parquet(tmp_path):
    cells = [{"bytes": png(image), "path": str(i)} for i, image in enumerate(RGB)]
    pyarrow.parquet.write_table(pyarrow.table({"img": cells, "label": list(range(6))}), tmp_path / "a.parquet")
    images = open_images(f"parquet:{tmp_path}/a.parquet")
    assert len(images) == 6 and np.array_equal(images.read(3), RGB[3]) and list(images.part([4, 1]).labels) == [4, 1]
    form = Form(3, (8, 8), (0.5,), (0.25,))
    batches = Batches(images, form, 4)
    (first, labels), (second, _) = list(batches)
    assert first.shape == (4, 3, 8, 8) and len(second) == 2 and labels.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(first[2], (torch.tensor(RGB[2]).permute(2, 0, 1) / 255 - 0.5) / 0.25)
    assert len(list(batches)) == 2  # can be read again


def test_imagefolder_resizes_and_mixes_the_classes(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for index in range(5):
            Image.fromarray(RGB[index].repeat(8, 0).repeat(6, 1)).save(tmp_path / label / f"{index}.png")
    images = open_images(f"imagefolder:{tmp_path}")
    assert len(images) == 10 and set(images.labels[:6]) == {0, 1}
    assert to_input(images.read(0), Form(3, (32, 32))).shape == (3, 32, 32)
    assert to_input(images.read(0), Form(1, (28, 28), (0.5,), (0.5,))).shape == (1, 28, 28)
    (tmp_path / "cat" / "._0.png").write_bytes(b"of an archive")  # no picture, so it is passed over
    assert len(open_images(f"imagefolder:{tmp_path}")) == 10
    damaged = tmp_path / "cat" / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    images = open_images(f"imagefolder:{tmp_path}")
    with pytest.raises(ValueError, match=r"cat/0.png' is no readable image"):
        list(Batches(images, Form(3, (32, 32))))
    flat = np.full((64, 48, 3), 51, np.uint8)
    torch.testing.assert_close(to_input(flat, Form(3, (32, 32), (0,), (1,))), torch.full((3, 32, 32), 0.2))


def test_npz_and_fashion_mnist(tmp_path):
    np.savez(tmp_path / "a.npz", images=RGB[..., 0], labels=np.arange(6))
    images = open_images(f"npz:{tmp_path}/a.npz")
    assert to_input(images.read(1), Form(3, (8, 8))).shape == (3, 8, 8)
    floats = np.random.randn(4, 3, 5, 5).astype(np.float32)
    np.savez(tmp_path / "b.npz", x=floats, y=np.zeros(4))
    assert torch.equal(to_input(open_images(f"npz:{tmp_path}/b.npz").read(2), Form(3, (5, 5))), torch.tensor(floats[2]))
    for split, packed in (("train", True), ("t10k", False)):
        count = 4 if split == "train" else 2
        write_idx(tmp_path, f"{split}-images-idx3-ubyte", RGB[:count, :, :, 0].copy(), packed)
        write_idx(tmp_path, f"{split}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8), packed)
    assert len(open_images(f"fashion-mnist:{tmp_path}")) == 2
    train = open_images(f"fashion-mnist:{tmp_path}", split="train")
    assert len(train) == 4 and np.array_equal(train.read(3), RGB[3, :, :, 0])


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("tar:x", "not understood; allowed are parquet:FILE"),
        ("parquet", "not understood"),
        ("parquet:{}/none.parquet", "not there"),
        ("parquet:{}/text.parquet", "no readable parquet"),
        ("parquet:{}/columns.parquet", "column of image bytes"),
        ("imagefolder:{}", "has no folders of images; expected one per class"),
        ("npz:{}/text.npz", "no readable npz"),
        ("npz:{}/names.npz", "must hold 'images'"),
        ("fashion-mnist:{}", "has no t10k-images"),
    ],
)
def test_bad_data_gets_a_sentence(tmp_path, spec, match):
    (tmp_path / "text.parquet").write_text("hello")
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "names.npz", a=np.zeros(3))
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "columns.parquet")
    with pytest.raises(ValueError, match=match):
        open_images(spec.format(tmp_path))


def test_forms():
    with pytest.raises(ValueError, match="4 channels"):
        Form(4, (8, 8))
    with pytest.raises(ValueError, match="mean has 2 numbers"):
        Form(3, (8, 8), (0.1, 0.2))


SOURCE = """
import torch
def build(): return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
def images(): return [(torch.zeros(2, 3, 8, 8), torch.zeros(2).long())]
def wrong(): return [1]
def needs(x): return x
number = 3
"""


def test_models_and_weights(tmp_path):
    file = tmp_path / "mynets.py"
    file.write_text(SOURCE)
    model = make_model(f"{file}:build")
    assert not model.training
    assert is_callable_spec(f"{file}:images") and is_callable_spec("mine:images")
    assert not is_callable_spec("npz:a.npz") and not is_callable_spec("folder")
    assert len(open_callable(f"{file}:images")) == 1
    for name, match in [("wrong", "must return an iterable"), ("number", "no callable"), ("absent", "no callable")]:
        with pytest.raises(ValueError, match=match):
            open_callable(f"{file}:{name}")
    for spec, match in [
        ("resnet18", "not understood"),
        ("nowhere.nets:build", "cannot be imported"),
        (f"{tmp_path}/gone.py:build", "there is no file"),
        (f"{file}:images", "must return a torch.nn.Module"),
        (f"{file}:needs", "without arguments"),
    ]:
        with pytest.raises(ValueError, match=match):
            make_model(spec)
    assert import_callable("torch.nn:Linear") is torch.nn.Linear
    torch.save({"state_dict": {f"module.{k}": v + 1 for k, v in model.state_dict().items()}}, tmp_path / "w.pth")
    before = model[0].weight.clone()
    load_weights(model, str(tmp_path / "w.pth"))
    torch.testing.assert_close(model[0].weight, before + 1)
    wrapping = torch.nn.Sequential(OrderedDict(module=torch.nn.Linear(2, 3), head=torch.nn.Linear(3, 2)))
    for name, wrapper in [
        ("plain", wrapping),
        ("parallel", torch.nn.DataParallel(wrapping)),
    ]:  # its own keys begin with module.
        torch.save(wrapper.state_dict(), tmp_path / f"{name}.pth")
        again = copy.deepcopy(wrapping)
        torch.nn.init.zeros_(again.module.weight)
        load_weights(again, str(tmp_path / f"{name}.pth"))
        assert torch.equal(again.module.weight, wrapping.module.weight)
    torch.save(model, tmp_path / "pickled.pth")
    with pytest.raises(ValueError, match="pickle that needs code"):
        load_weights(model, str(tmp_path / "pickled.pth"))
    load_weights(model, str(tmp_path / "pickled.pth"), trust_pickle=True)
    (tmp_path / "bad.safetensors").write_text("hello")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([1], tmp_path / "list.pth")
    for name, match in [
        ("bad.safetensors", "damaged"),
        ("gone.pth", "no weight file"),
        ("other.pth", "do not fit"),
        ("list.pth", "no state dict"),
    ]:
        with pytest.raises(ValueError, match=match):
            load_weights(model, str(tmp_path / name))


def test_shuffled_batches_hold_every_image_once_and_change_their_order():
    images = Images(lambda index: np.full((4, 4), index, np.uint8), list(range(10)))
    batches = Shuffled(images, Form(1, (4, 4), (0.0,), (1.0,)), size=5)
    orders = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        found = list(batches)
        assert len(found) == len(batches) == 2
        for inputs, labels in found:
            assert torch.equal((inputs[:, 0, 0, 0] * 255).round().long(), labels)
        orders.append(torch.cat([labels for _, labels in found]).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10)) and orders[0] != orders[1]
