"""Train the network that `spectrim demo` embeds, and cut the image slices that travel with it.

Fashion-MNIST (Xiao et al. 2017, MIT licence) is read from the four .gz files of a folder, for example the one that
Debian's package `dataset-fashion-mnist` installs:

    python benchmarks/train_demo.py /usr/share/datasets/fashion-mnist src/spectrim/demo

The recipe is ordinary: SGD with Nesterov momentum, one cycle to 0.1, weight decay 5e-4, batch 256, random crops and
flips, 12 epochs. The last 5,000 training images are not trained on: they are the selection slice's source. The weights
embedded now were trained by this recipe in a loop of its own (up to commit 804ce73), which cropped a whole batch alike.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from common.images import batches, read, stored
from common.training import printed
from safetensors.torch import save_file

import spectrim as st
from spectrim.demo import MEAN, STD, FashionNet

SELECTION = 5000
SLICES = {"calibration": ("train", 0, 1024), "selection": ("train", -2500, None), "test": ("test", 0, 2500)}


def main() -> None:
    """Train, test, write `model.safetensors` and `images.npz`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the four files")
    parser.add_argument("out", type=Path, help="folder that is written to")
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = FashionNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    progress = printed("FashionNet")
    recipe = st.Recipe(
        epochs=arguments.epochs, batch=256, rate=0.1, weight_decay=5e-4, smoothing=0.05, crop=2, progress=progress
    )
    st.fit(model, read(arguments.data, "train", stop=-SELECTION, normalised=(MEAN, STD)), recipe=recipe)
    for split, start in (("train", -SELECTION), ("test", 0)):
        unseen = read(arguments.data, split, start, normalised=(MEAN, STD))
        print(f"top-1 on {len(unseen[1]):,} other images of {split}: {st.Accuracy(batches(unseen, 500))(model):.4f}")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, arguments.out / "model.safetensors")
    arrays = {}
    for name, (split, start, stop) in SLICES.items():
        images = stored(arguments.data, split)
        chosen = range(len(images))[start:stop]
        arrays[f"{name}_images"] = np.stack([images.read(index) for index in chosen])
        arrays[f"{name}_labels"] = np.array([images.labels[index] for index in chosen], np.uint8)
    np.savez_compressed(arguments.out / "images.npz", **arrays)


if __name__ == "__main__":
    main()
