"""Labelled images as they are stored: Parquet, folders of image files, NumPy archives, and the four files of Fashion-MNIST.

torchvision and Hugging Face datasets read some of these, too, but the former runs with one version of torch only, and the
latter copies what it reads into a cache of its own. Pillow and PyArrow do the work in both, and here when they are needed.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spectrim.network.calling import first_line

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}


@dataclass(frozen=True)
class Images:
    """Labelled images, each read when it is asked for.

    Attributes:
        read: From an index to an array (H, W), (H, W, C) of uint8, or a float array (C, H, W) taken as it is.
        labels: Class numbers, one per image.
        classes: Names of the classes in the order of their numbers, where these follow from the names.
    """

    read: Callable[[int], np.ndarray]
    labels: Sequence[int]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def part(self, indices: Sequence[int]) -> Images:
        """Return the images of these indices, in this order."""
        return Images(lambda index: self.read(indices[index]), [self.labels[index] for index in indices], self.classes)


def _decode(data: Callable[[], bytes], name: str) -> np.ndarray:
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(data()))
        deep = picture.mode[0] in "IF"
        pixels = None if deep else np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
    except Exception as error:  # Pillow raises of every kind for damaged files
        raise ValueError(f"{name} is no readable image: {first_line(error).split(' <')[0]}") from error
    if pixels is None:
        raise ValueError(f"{name} has pixels of more than 8 bits (Pillow's mode {picture.mode}); save it with 8 bits a channel")
    return pixels


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
        value, name = cells[index].as_py(), f"image {index} of {str(path)!r}"
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            raise ValueError(f"{name} has no bytes in the column {pictures!r}")
        return _decode(lambda: data, name)

    return Images(read, table.column(labels).to_pylist())


def _folder(path: Path, split: str) -> Images:
    if not path.is_dir():
        raise ValueError(f"{str(path)!r} is no folder; expected one with a folder per class, as DIR/class/picture.jpg")
    classes = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    for child in classes:
        try:
            next(child.iterdir(), None)
        except OSError as error:  # which rglob passes over
            raise ValueError(f"the folder {str(child)!r} cannot be read: {error.strerror}") from error
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
        lambda index: _decode(mixed[index][0].read_bytes, repr(str(mixed[index][0]))),
        [label for _, label in mixed],
        tuple(child.name for child in classes),
    )


def _npz(path: Path, split: str) -> Images:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in archive.files}
    except Exception as error:  # of every kind, for what is no zip file, or a damaged one
        raise ValueError(f"{str(path)!r} is no readable npz file without pickles: {first_line(error)}") from error
    pictures = next((arrays[name] for name in ("images", "x", "data") if name in arrays), None)
    labels = next((arrays[name] for name in ("labels", "y", "targets") if name in arrays), None)
    if pictures is None or labels is None or not pictures.ndim or pictures.shape[:1] != labels.shape[:1]:
        raise ValueError(f"{str(path)!r} must hold 'images' and as many 'labels'; it holds {', '.join(arrays)}")
    bytes_fit = pictures.dtype == np.uint8 and (pictures.ndim == 3 or (pictures.ndim == 4 and pictures.shape[3] in (1, 3)))
    if not bytes_fit and not (pictures.dtype.kind == "f" and pictures.ndim == 4):
        raise ValueError(
            f"the images in {str(path)!r} are {pictures.dtype}, {' x '.join(map(str, pictures.shape))}; allowed are uint8, "
            "N x H x W (x 1 or 3), and floats, N x C x H x W, which are taken as they are: normalise them"
        )
    if pictures.size == 0 < len(pictures) or (pictures.dtype.kind == "f" and not np.isfinite(pictures).all()):
        what = "NaN or infinite values" if pictures.size else "images without a pixel"
        raise ValueError(f"{str(path)!r} holds {what}")
    return Images(lambda index: pictures[index], labels.tolist())


def _idx(path: Path, split: str) -> Images:
    prefix = "train" if split == "train" else "t10k"
    pictures, labels = (_read_idx(path, f"{prefix}-{part}-ubyte") for part in ("images-idx3", "labels-idx1"))
    if pictures.ndim != 3 or labels.ndim != 1 or len(pictures) != len(labels):
        shapes = " and ".join(" x ".join(map(str, array.shape)) for array in (pictures, labels))
        raise ValueError(f"images and labels of {prefix} in {str(path)!r} are {shapes}; they must be N x H x W and N")
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
    except (OSError, EOFError, IndexError, struct.error, ValueError, zlib.error) as error:
        raise ValueError(f"{name} in {str(folder)!r} is damaged: {error}") from error


READERS: dict[str, Callable[[Path, str], Images]] = {
    "parquet": _parquet,
    "imagefolder": _folder,
    "npz": _npz,
    "fashion-mnist": _idx,
}
