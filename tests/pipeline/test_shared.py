"""The real checkpoint on real images, where the shared folder is there; skipped, and said so, where not."""

import torch
from spectrim.data import Batches, Form, open_images
from spectrim.zoo import load_weights, make_model

import spectrim as st


def test_resnet20_at_half_of_its_macs(shared):
    model = make_model("examples/cifar_resnet.py:resnet20")
    load_weights(model, str(shared / "models/resnet20-cifar10jpeg.safetensors"))
    form = Form(3, (32, 32))
    train = open_images(f"parquet:{shared}/data/cifar10-jpeg/train.parquet")
    test = open_images(f"parquet:{shared}/data/cifar10-jpeg/test.parquet")
    calibration = Batches(train.part(range(256)), form)
    evaluate = st.Accuracy(list(Batches(test.part(range(1000)), form, 250)))
    result = st.compress(
        model, torch.zeros(1, 3, 32, 32), budget=st.Keep(0.5, "macs"), calibration=calibration, evaluate=evaluate
    )
    assert result.report.kept[1] <= 0.5
    assert abs(result.report.selection.before - 0.8813) < 0.03
    assert result.report.selection.drop < 3.5  # 1.1 with 1,024 images on the whole test set
