"""Train the VGG-16-BN that the benchmarks compress, on the JPEG copy of CIFAR-10, in one sitting.

    python benchmarks/train_vgg.py ../shared/data/cifar10-jpeg vgg16.safetensors

Small images first (16, then 24, then 32 pixels; `--epochs 4,2,1`): a 16-pixel epoch costs a quarter, and two CPU cores reach
about 85 % in an hour. On a GPU give `--epochs 0,0,40`. SGD with Nesterov momentum, one cycle over all epochs, weight decay
5e-4, batch 128, crops and flips. bf16 autocast where the processor has it. The last 5,000 training images are not trained
on: decisions about compression can be made on them. What is done is kept beside the output, and goes on after an
interruption.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common.images import batches, read
from common.networks import vgg16
from common.training import BATCH, Growing, printed
from safetensors.torch import save_file

import spectrim as st

SELECTION = 5000
SIDES = (16, 24, 32)


def main() -> None:
    """Train, test, write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("out", type=Path, help="safetensors file that is written")
    parser.add_argument("--epochs", default="4,2,1", help="at 16, 24 and 32 pixels")
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--images", type=int, default=45_000, help="how many are trained on")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sides = [side for side, count in zip(SIDES, arguments.epochs.split(","), strict=True) for _ in range(int(count))]
    x, y = read(arguments.data, "train", stop=min(arguments.images, 50_000 - SELECTION))
    model = vgg16().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    recipe = st.Recipe(
        epochs=len(sides),
        batch=BATCH,
        rate=arguments.rate,
        rise=0.25,
        weight_decay=5e-4,
        smoothing=0.05,
        crop=0,  # the batches do it
        flip=False,
        checkpoint=arguments.out.with_suffix(".part.pt"),
        progress=printed("VGG-16-BN"),
    )
    st.fit(model, Growing((x.to(device), y.to(device)), sides), recipe=recipe)
    for split, start in (("train", -SELECTION), ("test", 0)):
        unseen = read(arguments.data, split, start)
        print(f"top-1 on {len(unseen[1]):,} other images of {split}: {st.Accuracy(batches(unseen, 500))(model):.4f}")
    model = model.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, arguments.out)
    arguments.out.with_suffix(".part.pt").unlink()


if __name__ == "__main__":
    main()
