"""Train the VGG-16-BN that the benchmarks compress, on the JPEG copy of CIFAR-10, in one sitting.

    python benchmarks/train_vgg.py ../shared/data/cifar10-jpeg vgg16.safetensors

Small images first (16, then 24, then 32 pixels; `--epochs 4,2,1`): a 16-pixel epoch costs a quarter, and two CPU cores reach
about 85 % in an hour. On a GPU give `--epochs 0,0,40`. SGD with Nesterov momentum, one cycle over all epochs, weight decay
5e-4, batch 128, crops and flips. bf16 autocast where the processor has it. The last 5,000 training images are not trained
on: decisions about compression can be made on them. Finished epochs are kept beside the output, and go on after an
interruption.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from spectrim.data import Batches, Form, open_images
from spectrim.zoo import make_model

HELD_OUT = 5000
SIZES = (16, 24, 32)
BATCH = 128


def images(path: Path) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, 32, 32), normalised, and labels (N,)."""
    found = list(Batches(open_images(f"parquet:{path}"), Form(3, (32, 32)), 500))
    return torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])


def augment(batch: Tensor, size: int) -> Tensor:
    """Return the batch shifted by up to four pixels, flipped at random and resized."""
    dy, dx = torch.randint(0, 9, (2,)).tolist()
    batch = functional.pad(batch, (4, 4, 4, 4), mode="reflect")[:, :, dy : dy + 32, dx : dx + 32]
    batch = torch.where(torch.rand(len(batch), 1, 1, 1, device=batch.device) < 0.5, batch.flip(3), batch)
    if size == 16:
        batch = functional.avg_pool2d(batch, 2)
    elif size < 32:
        batch = functional.interpolate(batch, size=(size, size), mode="bilinear", antialias=True)
    return batch.contiguous(memory_format=torch.channels_last)


def accuracy(model: nn.Module, part: tuple[Tensor, Tensor], device: str) -> float:
    """Return the top-1 fraction at 32 pixels."""
    model.eval()
    with torch.no_grad():
        hits = [
            (model(x.to(device)).argmax(1).cpu() == y).sum().item()
            for x, y in zip(part[0].split(500), part[1].split(500), strict=True)
        ]
    return sum(hits) / len(part[0])


def fast_bf16(device: str) -> bool:
    """Return whether bf16 is a gain: on GPUs, and on processors with instructions for it."""
    return device != "cpu" or torch.cpu._is_avx512_bf16_supported()


def main() -> None:
    """Train, test, write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", default="4,2,1", help="at 16, 24 and 32 pixels")
    parser.add_argument("--rate", type=float, default=0.05)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = [size for size, count in zip(SIZES, arguments.epochs.split(","), strict=True) for _ in range(int(count))]
    x, y = images(arguments.data / "train.parquet")
    held, (x, y) = (x[-HELD_OUT:], y[-HELD_OUT:]), (x[:-HELD_OUT].to(device), y[:-HELD_OUT].to(device))
    model = make_model(f"{Path(__file__).parent.parent / 'examples/cifar_vgg.py'}:vgg16")
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), arguments.rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(sizes) * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.rate, total_steps=steps, pct_start=0.25)
    kept, done = arguments.out.with_suffix(".part.pt"), 0
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        done = state["done"]
    for epoch in range(done, len(sizes)):
        start = time.perf_counter()
        model.train()
        for chunk in torch.randperm(len(x), device=device)[: len(x) // BATCH * BATCH].split(BATCH):
            batch = augment(x[chunk], sizes[epoch])
            with torch.autocast(device, torch.bfloat16, enabled=fast_bf16(device)):
                loss = functional.cross_entropy(model(batch), y[chunk], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        torch.save({**states, "done": epoch + 1}, kept)
        took = time.perf_counter() - start
        print(f"epoch {epoch + 1}, {sizes[epoch]} px: loss {loss.item():.3f}, held-out at 32 px "
              f"{accuracy(model, held, device):.4f}, {took:.0f} s", flush=True)  # fmt: skip
    print(f"test {accuracy(model, images(arguments.data / 'test.parquet'), device):.4f} (10,000 images)")
    model = model.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, arguments.out)
    kept.unlink()


if __name__ == "__main__":
    sys.exit(main())
