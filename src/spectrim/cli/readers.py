"""Labelled images as they are stored: Parquet, folders of image files, NumPy archives, and the four files of Fashion-MNIST.

torchvision and Hugging Face datasets read some of these, too, but the former runs with one version of torch only, and the
latter copies what it reads into a cache of its own. Pillow and PyArrow do the work in both, and here when they are needed.
"""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}


@dataclass(frozen=True)
class Images:
    """Labelled images, each read when it is asked for.

    Attributes:
        read: From an index to an array (H, W), (H, W, C) of uint8, or a float array (C, H, W) taken as it is.
        labels: Class numbers, one per image.
    """

    read: Callable[[int], np.ndarray]
    labels: Sequence[int]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def part(self, indices: Sequence[int]) -> Images:
        """Return the images of these indices, in this order."""
        return Images(lambda index: self.read(indices[index]), [self.labels[index] for index in indices])


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
    mixed = [files[index] for index in np.random.default_rng(0).permutation(len(files))]  # any slice holds all classes
    return Images(
        lambda index: _decode(mixed[index][0].read_bytes(), repr(str(mixed[index][0]))), [label for _, label in mixed]
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
