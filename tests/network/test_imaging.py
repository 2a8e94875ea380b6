"""Images and inputs: one is made of the other, either way."""

import pytest
import torch
from torch import nn

import spectrim as st
from spectrim.network.imaging import Imaging, Probabilities, images_of

PREPROCESS = {3: st.Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: st.Preprocess((0.286,), (0.353,))}


@pytest.mark.parametrize("channels", PREPROCESS)
def test_images_come_back_from_inputs_and_give_them_again(channels):
    images = torch.arange(256, dtype=torch.uint8).repeat(channels).reshape(4, 8, 8, channels)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (PREPROCESS[channels].mean, PREPROCESS[channels].std))
    inputs = (images.permute(0, 3, 1, 2) / 255 - mean) / std
    found, levels = images_of(inputs, PREPROCESS[channels])
    assert torch.equal(found, images) and levels < 1e-3 and found.stride() == torch.empty(found.shape).stride()
    torch.testing.assert_close(Imaging(nn.Identity(), PREPROCESS[channels])(images), inputs)


def test_how_far_inputs_are_from_images():
    inputs = torch.tensor([300.0, -7.0, 3.25]).reshape(3, 1, 1, 1) / 255
    images, levels = images_of(inputs, st.Preprocess((0.0,), (1.0,)))
    assert images.flatten().tolist() == [255, 0, 3] and levels == pytest.approx(45, abs=1e-3)


def test_probabilities_add_up():
    found = Probabilities(nn.Linear(3, 4))(torch.randn(5, 3))
    torch.testing.assert_close(found.sum(1), torch.ones(5))
