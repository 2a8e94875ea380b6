import functools

import pytest
import torch

from nets import Residual, settle
from spectrim.pipeline import account
from spectrim.targets.timing import interleaved


@pytest.fixture(scope="session")
def case():
    """A small network that was never trained, inputs, and as labels what it answers."""
    torch.manual_seed(0)
    x = torch.randn(96, 3, 8, 8)
    model = settle(Residual(width=12), x)
    with torch.no_grad():
        labels = model(x).argmax(1)
    return model, x, labels


@pytest.fixture(scope="session", autouse=True)
def _short_measurements():
    """Latencies are of five runs: what they are is for the tests of targets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(account, "interleaved", functools.partial(interleaved, seconds=0.0))
        yield
