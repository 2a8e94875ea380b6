"""The real checkpoint on real images, where the shared folder is there; skipped, and said so, where not."""

from pathlib import Path

import torch

import spectrim as st
from spectrim.cli.datasets import Batches, Form, open_images
from spectrim.cli.models import load_weights, make_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "cifar_resnet.py"


def test_resnet20_at_half_of_its_macs(shared):
    model = make_model(f"{EXAMPLE}:resnet20")
    load_weights(model, str(shared / "models/resnet20-cifar10jpeg.safetensors"))
    form = Form(3, (32, 32))
    train = open_images(f"parquet:{shared}/data/cifar10-jpeg/train.parquet")
    test = open_images(f"parquet:{shared}/data/cifar10-jpeg/test.parquet")
    calibration = list(Batches(train.part(range(128)), form))
    evaluate = st.Accuracy(list(Batches(test.part(range(500)), form, 250)))
    example = torch.zeros(1, 3, 32, 32)
    config = st.Config(methods=(st.ChannelSVD(), st.SpatialSVD(), st.SpatialSVD(axis=1)))  # CP takes a minute more
    result = st.compress(model, example, budget=st.Keep(0.5), calibration=calibration, evaluate=evaluate, config=config)
    assert result.report.kept[1] <= 0.5
    assert abs(result.report.selection.before - 0.8813) < 0.03
    assert result.report.selection.drop < 3.5  # 1.1 with 1,024 images on the whole test set
