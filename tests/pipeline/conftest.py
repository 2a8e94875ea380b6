import pytest
import torch

from nets import Residual, settle


@pytest.fixture(scope="session")
def case():
    """A small network that was never trained, inputs, and as labels what it answers."""
    torch.manual_seed(0)
    x = torch.randn(96, 3, 8, 8)
    model = settle(Residual(width=12), x)
    with torch.no_grad():
        labels = model(x).argmax(1)
    return model, x, labels
