"""Stored images of the command line: formats, forms, batches."""

import gzip
import io
import struct
import threading

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from spectrim.cli.datasets import Batches, Form, ShuffledBatches, open_images, to_inputs, to_size
from spectrim.cli.readers import Images
from spectrim.train.batches import set_epoch

RGB = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), dtype=np.uint8)


def inputs(images, form):
    """Return the images as inputs, and check that the labels are theirs."""
    batches = list(Batches(images, form))
    assert torch.cat([labels for _, labels in batches]).tolist() == list(images.labels)
    return torch.cat([x for x, _ in batches])


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def write_idx(folder, name, array, packed):
    data = struct.pack(">4B", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    (folder / (name + (".gz" if packed else ""))).write_bytes(gzip.compress(data) if packed else data)


@pytest.mark.parametrize("cell", [lambda data, i: {"bytes": data, "path": str(i)}, lambda data, i: data])
def test_parquet(tmp_path, cell):
    cells = [cell(png(image), i) for i, image in enumerate(RGB)]
    pyarrow.parquet.write_table(pyarrow.table({"img": cells, "label": list(range(6))}), tmp_path / "a.parquet")
    images = open_images(f"parquet:{tmp_path}/a.parquet")
    assert len(images) == 6 and np.array_equal(images.read(3), RGB[3])
    part = images.part([4, 1])
    assert list(part.labels) == [4, 1] and np.array_equal(part.read(1), RGB[1])
    found = inputs(images, Form(3, (8, 8), (0.5,), (0.25,)))
    torch.testing.assert_close(found, (torch.tensor(RGB).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25)


@pytest.fixture
def folder(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for index in range(5):
            Image.fromarray(RGB[index].repeat(8, 0).repeat(6, 1)).save(tmp_path / label / f"{index}.png")
    (tmp_path / "cat" / "._0.png").write_bytes(b"of an archive")  # no picture, so it is passed over
    return tmp_path


def test_imagefolder_resizes_and_mixes_the_classes(folder):
    images = open_images(f"imagefolder:{folder}")
    assert len(images) == 10 and set(images.labels[:6]) == {0, 1}
    assert inputs(images, Form(3, (32, 32))).shape == (10, 3, 32, 32)
    assert inputs(images, Form(1, (28, 28), (0.5,), (0.5,))).shape == (10, 1, 28, 28)


def test_a_damaged_image_is_named(folder):
    damaged = folder / "cat" / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    images, form = open_images(f"imagefolder:{folder}"), Form(3, (32, 32))
    for batches in (Batches(images, form), ShuffledBatches(images, form, size=5)):
        with pytest.raises(ValueError, match=r"cat/0.png' is no readable image"):
            list(batches)


def test_npz(tmp_path):
    np.savez(tmp_path / "a.npz", images=RGB[..., 0], labels=np.arange(6))
    found = inputs(open_images(f"npz:{tmp_path}/a.npz"), Form(3, (8, 8), (0.0,), (1.0,)))  # grey, for a network that wants RGB
    torch.testing.assert_close(found, (torch.tensor(RGB[..., 0]) / 255)[:, None].expand(6, 3, 8, 8))
    floats = np.random.default_rng(0).standard_normal((4, 3, 5, 5))
    np.savez(tmp_path / "b.npz", x=floats, y=np.zeros(4))
    assert torch.equal(inputs(open_images(f"npz:{tmp_path}/b.npz"), Form(3, (5, 5))), torch.tensor(floats).float())


def test_fashion_mnist(tmp_path):
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
        ("npz:{}/planes.npz", "are uint8, 2 x 3 x 4 x 4; allowed are uint8, N x H x W"),
        ("npz:{}/halves.npz", "labels of .* are such as 0.5"),
        ("npz:{}/empty.npz", "holds no image"),
        ("fashion-mnist:{}", "has no t10k-images"),
    ],
)
def test_bad_data_gets_a_sentence(tmp_path, spec, match):
    (tmp_path / "text.parquet").write_text("hello")
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "names.npz", a=np.zeros(3))
    np.savez(tmp_path / "planes.npz", images=np.zeros((2, 3, 4, 4), np.uint8), labels=np.zeros(2))
    np.savez(tmp_path / "halves.npz", images=RGB, labels=np.arange(6) + 0.5)
    np.savez(tmp_path / "empty.npz", images=RGB[:0], labels=np.arange(0))
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "columns.parquet")
    with pytest.raises(ValueError, match=match):
        open_images(spec.format(tmp_path))


@pytest.mark.parametrize(
    ("image", "form"),
    [
        (np.full((64, 48, 3), 51, np.uint8), Form(3, (32, 32), (0,), (1,))),
        (np.full((20, 90, 3), 51, np.uint8), Form(1, (32, 24), (0,), (1,))),
        (np.full((64, 48), 51, np.uint8), Form(3, (32, 32), (0,), (1,))),
        (np.full((32, 32, 3), 51, np.uint8), Form(1, (32, 32), (0,), (1,))),
        (np.full((32, 32), 51, np.uint8), Form(1, (32, 32), (0,), (1,))),
    ],
)
def test_any_image_gets_the_channels_and_size_of_a_form(image, form):
    found = to_inputs([to_size(image, form)], form)
    torch.testing.assert_close(found, torch.full((1, form.channels, *form.size), 0.2))
    assert found.is_contiguous()


def test_the_centre_is_what_is_kept():
    image = np.zeros((512, 512, 1), np.uint8)
    image[32:480, 32:480] = 255  # of 512 pixels the 448 in the middle: 224 of 256
    found = to_size(image, Form(1, (224, 224), (0,), (1,)))
    assert found[1:-1, 1:-1].min() == 255 and found.min() > 128  # the resizing mixes the edge with what is around


def test_forms():
    with pytest.raises(ValueError, match="4 channels"):
        Form(4, (8, 8))
    with pytest.raises(ValueError, match="mean has 2 numbers"):
        Form(3, (8, 8), (0.1, 0.2))


def counted(count=10):
    """Return images whose pixels are their label, and the indices that are read."""
    read = []
    return Images(lambda index: read.append(index) or np.full((4, 4), index, np.uint8), list(range(count))), read


FORM = Form(1, (4, 4), (0.0,), (1 / 255,))


def test_batches_are_in_order_and_can_be_read_again():
    images, _ = counted()
    batches = Batches(images, FORM, 4)
    for _ in range(2):
        assert [labels.tolist() for _, labels in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(Batches(images.part([]), FORM)) == []
    assert batches.bytes == 640 and [len(labels) for _, labels in batches.in_memory()] == [4, 4, 2]


def test_one_batch_is_read_ahead():
    images, read = counted()
    threads = threading.active_count()
    batches = iter(Batches(images, FORM, 4))
    next(batches)
    batches.close()
    assert set(range(4)) <= set(read) <= set(range(8)) and threading.active_count() == threads


def test_shuffled_batches_hold_every_image_once_and_change_their_order():
    images, _ = counted()
    batches = ShuffledBatches(images, FORM, size=5)
    orders = []
    for epoch in range(2):
        set_epoch(batches, epoch)
        found = list(batches)
        assert len(found) == len(batches) == 2
        for x, labels in found:
            assert torch.equal(x[:, 0, 0, 0].round().long(), labels)
        orders.append(torch.cat([labels for _, labels in found]).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10)) and orders[0] != orders[1]
    assert len(ShuffledBatches(images, FORM, size=4)) == 2
