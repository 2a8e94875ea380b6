"""Data specs of the command line: `parquet:FILE`, `imagefolder:DIR`, `npz:FILE`, `fashion-mnist:DIR`, `module:callable`.

Images are decoded when they are needed, so a folder larger than memory works. They become float tensors (N, C, H, W): grey or
RGB as the network's input asks, resized and centre-cropped where their size differs from it, divided by 255 and normalised.
"""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectrim.cli.models import import_callable
from spectrim.train.batches import order, place

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
KINDS = "parquet:FILE, imagefolder:DIR, npz:FILE, fashion-mnist:DIR, module.path:callable or file.py:callable"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IN_MEMORY = 1 << 29  # bytes of decoded images that are kept rather than decoded again for each network
ZOOM = 256 / 224  # the shorter side before the centre crop, relative to the crop


@dataclass(frozen=True)
class Form:
    """How an image becomes an input.

    Attributes:
        channels: 1 for grey, 3 for RGB.
        size: Height and width.
        mean, std: Per channel, after division by 255.
    """

    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __post_init__(self) -> None:
        """Check that there is a number for each channel."""
        if self.channels not in (1, 3):
            raise ValueError(f"the input has {self.channels} channels; image files give 1 or 3: use a callable for other data")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise ValueError(f"{name} has {len(getattr(self, name))} numbers; the input has {self.channels} channels")


@dataclass(frozen=True)
class Images:
    """Labelled images, each read when it is asked for.

    Attributes:
        read: From an index to an array (H, W), (H, W, C) of uint8, or a float array (C, H, W) taken as it is.
        labels: One per image.
    """

    read: Callable[[int], np.ndarray]
    labels: Sequence[int]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def part(self, indices: Sequence[int]) -> Images:
        """Return some of the images."""
        return Images(lambda index: self.read(indices[index]), [self.labels[index] for index in indices])


@dataclass(frozen=True)
class Batches:
    """Batches (inputs, labels) of images in a form; can be read again and again."""

    images: Images
    form: Form
    size: int = 128

    def in_memory(self) -> Batches | list[tuple[Tensor, Tensor]]:
        """Return the batches read once and for all if they are small enough, else unchanged."""
        return list(self) if self.bytes <= IN_MEMORY else self

    @property
    def bytes(self) -> int:
        """What all images take once they are decoded."""
        return len(self.images) * self.form.channels * self.form.size[0] * self.form.size[1] * 4

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches in order."""
        for start in range(0, len(self.images), self.size):
            chosen = range(start, min(start + self.size, len(self.images)))
            inputs = torch.stack([to_input(self.images.read(index), self.form) for index in chosen])
            yield inputs, torch.tensor([int(self.images.labels[index]) for index in chosen])


class Shuffled:
    """Training batches in another order each epoch, decoded by threads one batch ahead; each process gets its part."""

    def __init__(self, images: Images, form: Form, *, size: int, seed: int = 0) -> None:
        """Store the arguments."""
        self.images, self.form, self.size, self.seed, self.number = images, form, min(size, len(images)), seed, 0

    def __len__(self) -> int:
        """Return the batches of an epoch; an incomplete last one is left out."""
        return len(self.images) // self.size

    def set_epoch(self, epoch: int) -> None:
        """Choose the order."""
        self.number = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's part of every batch."""
        rank, world = place()
        batches = [chosen[rank::world].tolist() for chosen in order(len(self.images), self.size, self.seed, self.number)]
        with ThreadPoolExecutor() as pool:
            coming = [pool.submit(self._input, index) for index in batches[0]]
            for chosen, following in zip(batches, [*batches[1:], []], strict=True):
                here, coming = coming, [pool.submit(self._input, index) for index in following]
                labels = torch.tensor([int(self.images.labels[index]) for index in chosen])
                yield torch.stack([item.result() for item in here]), labels

    def _input(self, index: int) -> Tensor:
        return to_input(self.images.read(index), self.form)


def to_input(image: np.ndarray, form: Form) -> Tensor:
    """Return one image as a normalised float tensor (C, H, W)."""
    if image.dtype != np.uint8:
        return torch.from_numpy(np.array(image)).float()
    if image.ndim == 2:
        image = image[:, :, None]
    if image.shape[2] == 1 and form.channels == 3:
        image = image.repeat(3, 2)
    if image.shape[:2] != form.size or (image.shape[2] != 1 and form.channels == 1):
        image = _resized(image, form)
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (form.mean, form.std))
    return (x - mean) / std


def _resized(image: np.ndarray, form: Form) -> np.ndarray:
    from PIL import Image

    picture = Image.fromarray(image.squeeze())
    picture = picture.convert("L" if form.channels == 1 else "RGB")
    height, width = form.size
    if picture.size != (width, height):
        scale = max(height * ZOOM / picture.height, width * ZOOM / picture.width)
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BILINEAR)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    array = np.asarray(picture)
    return array[:, :, None] if array.ndim == 2 else array


def open_images(spec: str, *, split: str = "test") -> Images:
    """Open the images that a spec names.

    Args:
        spec: Such as `parquet:test.parquet`.
        split: `train` or `test`, where one folder holds both (fashion-mnist).

    Raises:
        ValueError: If the spec is unknown, or there is nothing usable.
    """
    kind, _, place = spec.partition(":")
    if kind not in READERS or not place:
        raise ValueError(f"the data {spec!r} is not understood; allowed are {KINDS}")
    path = Path(place)
    if not path.exists():
        raise ValueError(f"the data {spec!r} is not there: no file or folder {place!r}")
    images = READERS[kind](path, split)
    if not len(images):
        raise ValueError(f"the data {spec!r} holds no image")
    labels = np.asarray(images.labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iuf" or (labels != np.round(labels)).any():
        raise ValueError(
            f"the labels of {spec!r} are such as {images.labels[0]!r}; they must be one whole class number per image"
        )
    return images


def is_callable_spec(spec: str) -> bool:
    """Return whether a spec names a Python callable rather than stored images."""
    kind, _, name = spec.partition(":")
    return bool(name) and kind not in READERS


def open_callable(spec: str) -> list[tuple[Tensor, Tensor]]:
    """Call `module:callable` and return its batches.

    Raises:
        ValueError: If it does not give pairs of tensors.
    """
    batches = list(import_callable(spec)())
    for item in batches:
        if not isinstance(item, (tuple, list)) or len(item) != 2 or not all(isinstance(value, Tensor) for value in item):
            raise ValueError(f"{spec!r} must return an iterable of (inputs, labels), both tensors")
    if not batches:
        raise ValueError(f"{spec!r} returned nothing")
    return [(inputs, labels) for inputs, labels in batches]


def _decode(data: bytes, name: str) -> np.ndarray:
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(data))
        return np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
    except (OSError, SyntaxError) as error:  # what Pillow raises for damaged files
        raise ValueError(f"{name} is no readable image: {error}") from error


def _parquet(path: Path, split: str) -> Images:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("parquet data needs PyArrow: pip install pyarrow") from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is no readable parquet file: {str(error).splitlines()[0]}") from error
    columns: dict[str, Any] = {name: table.schema.field(name).type for name in table.column_names}
    labels = next((name for name in columns if name.lower() in ("label", "labels", "class", "target", "fine_label")), None)
    pictures = next((name for name, kind in columns.items() if "binary" in str(kind)), None)
    if labels is None or pictures is None:
        raise ValueError(f"{str(path)!r} must have a column of image bytes and a column 'label'; it has {', '.join(columns)}")
    cells = table.column(pictures)

    def read(index: int) -> np.ndarray:
        value = cells[index].as_py()
        return _decode(value["bytes"] if isinstance(value, dict) else value, f"image {index} of {str(path)!r}")

    return Images(read, table.column(labels).to_pylist())


def _folder(path: Path, split: str) -> Images:
    classes = sorted(child for child in path.iterdir() if child.is_dir())
    files = [
        (file, label)
        for label, child in enumerate(classes)
        for file in sorted(child.rglob("*"))
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    ]
    if not files:
        raise ValueError(f"{str(path)!r} has no folders of images; expected one per class, as DIR/class/picture.jpg")
    order = np.random.default_rng(0).permutation(len(files))  # so that any slice holds all classes
    files = [files[index] for index in order]
    return Images(
        lambda index: _decode(files[index][0].read_bytes(), repr(str(files[index][0]))), [label for _, label in files]
    )


def _npz(path: Path, split: str) -> Images:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is no readable npz file without pickles: {error}") from error
    pictures = next((arrays[name] for name in ("images", "x", "data") if name in arrays), None)
    labels = next((arrays[name] for name in ("labels", "y", "targets") if name in arrays), None)
    if pictures is None or labels is None or len(pictures) != len(labels):
        raise ValueError(f"{str(path)!r} must hold 'images' and as many 'labels'; it holds {', '.join(arrays)}")
    bytes_fit = pictures.dtype == np.uint8 and (pictures.ndim == 3 or (pictures.ndim == 4 and pictures.shape[3] in (1, 3)))
    if not bytes_fit and not (pictures.dtype.kind == "f" and pictures.ndim == 4):
        raise ValueError(
            f"the images in {str(path)!r} are {pictures.dtype}, {' x '.join(map(str, pictures.shape))}; allowed are uint8, "
            "N x H x W (x 1 or 3), and floats, N x C x H x W, which are taken as they are: normalise them"
        )
    return Images(lambda index: pictures[index], labels.tolist())


def _idx(path: Path, split: str) -> Images:
    prefix = "train" if split == "train" else "t10k"
    pictures, labels = (_read_idx(path, f"{prefix}-{part}-ubyte") for part in ("images-idx3", "labels-idx1"))
    return Images(lambda index: pictures[index], labels.astype(int).tolist())


def _read_idx(folder: Path, name: str) -> np.ndarray:
    plain, packed = folder / name, folder / f"{name}.gz"
    if not plain.exists() and not packed.exists():
        raise ValueError(f"{str(folder)!r} has no {name} or {name}.gz; it must hold the four files of Fashion-MNIST")
    try:
        data = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
        dimensions = data[3]
        shape = struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions])
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, IndexError, struct.error, ValueError) as error:
        raise ValueError(f"{name} in {str(folder)!r} is damaged: {error}") from error


READERS: dict[str, Callable[[Path, str], Images]] = {
    "parquet": _parquet,
    "imagefolder": _folder,
    "npz": _npz,
    "fashion-mnist": _idx,
}
