import functools

import pytest

from nets import labelled
from spectrim.pipeline import account
from spectrim.targets.timing import interleaved


@pytest.fixture(scope="session")
def case():
    """A small network, inputs, and labels."""
    return labelled(0)


@pytest.fixture(scope="session", autouse=True)
def _short_measurements():
    """Latencies are of five runs: what they are is for the tests of targets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(account, "interleaved", functools.partial(interleaved, seconds=0.0))
        yield
