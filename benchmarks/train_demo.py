"""Train the network that `spectrim demo` embeds, and cut the image slices that travel with it.

Fashion-MNIST (Xiao et al. 2017, MIT licence) is read from the four .gz files of a folder, for example the one that
Debian's package `dataset-fashion-mnist` installs:

    python benchmarks/train_demo.py /usr/share/datasets/fashion-mnist src/spectrim/demo

The recipe is ordinary: SGD with Nesterov momentum, one-cycle to 0.1, weight decay 5e-4, batch 256, random crops and
flips, 12 epochs. The last 5,000 training images are not trained on: they are the selection slice's source.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from spectrim.demo.net import FashionNet

HELD_OUT = 5000
MEAN, STD = 0.2860, 0.3530


def read(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (N, 28, 28) uint8 and the labels (N,) of the split `train` or `t10k`."""
    with gzip.open(folder / f"{split}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / f"{split}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return images, labels


def normalise(images: np.ndarray) -> torch.Tensor:
    """Return float images (N, 1, 28, 28), normalised."""
    return (torch.from_numpy(images.copy())[:, None].float() / 255 - MEAN) / STD


def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the top-1 fraction."""
    model.eval()
    with torch.no_grad():
        hits = sum((model(x).argmax(1) == y).sum().item() for x, y in zip(images.split(500), labels.split(500), strict=True))
    return hits / len(images)


def augment(images: torch.Tensor) -> torch.Tensor:
    """Return the batch shifted by up to two pixels and flipped at random."""
    dy, dx = torch.randint(0, 5, (2,)).tolist()
    padded = functional.pad(images, (2, 2, 2, 2), value=-MEAN / STD)[:, :, dy : dy + 28, dx : dx + 28]
    flip = torch.rand(len(images), 1, 1, 1) < 0.5
    return torch.where(flip, padded.flip(3), padded)


def main() -> None:
    """Train, test, write `model.safetensors` and `images.npz`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    train_images, train_labels = read(arguments.data, "train")
    test_images, test_labels = read(arguments.data, "t10k")
    images, labels = normalise(train_images[:-HELD_OUT]), torch.from_numpy(train_labels[:-HELD_OUT].astype(np.int64))
    model = FashionNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = arguments.epochs * (len(images) // 256)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, pct_start=0.2)
    for epoch in range(arguments.epochs):
        start = time.perf_counter()
        model.train()
        for chunk in torch.randperm(len(images))[: len(images) // 256 * 256].split(256):
            batch = augment(images[chunk]).contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(model(batch), labels[chunk], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        held = accuracy(model, normalise(train_images[-HELD_OUT:]), torch.from_numpy(train_labels[-HELD_OUT:].astype(np.int64)))
        print(
            f"epoch {epoch + 1}: loss {loss.item():.3f}, held-out {held:.4f}, {time.perf_counter() - start:.0f} s", flush=True
        )
    test = accuracy(model, normalise(test_images), torch.from_numpy(test_labels.astype(np.int64)))
    print(f"test {test:.4f} (10,000 images)")
    model = model.to(memory_format=torch.contiguous_format)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, arguments.out / "model.safetensors")
    np.savez_compressed(
        arguments.out / "images.npz",
        calibration_images=train_images[:1024],
        calibration_labels=train_labels[:1024],
        selection_images=train_images[-2500:],
        selection_labels=train_labels[-2500:],
        test_images=test_images[:2500],
        test_labels=test_labels[:2500],
    )


if __name__ == "__main__":
    sys.exit(main())
