"""How deep a reader has to go: frames of our own between a public function and the linear algebra (the house's first rule)."""

import sys
from pathlib import Path

import pytest
import torch

import spectrim as st
from spectrim.core.factorization import describe
from tables import PLANAR

HOME = str(Path(st.__file__).parent)
SOLVERS = ("cholesky", "cholesky_ex", "eigh", "eigvalsh", "matrix_norm", "qr", "solve", "solve_triangular", "svd", "svdvals")
MOST = 5


def own_frames(frame):
    """Return file and function of our frames, innermost first; comprehensions and lambdas are part of the function around."""
    found = []
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(HOME) and not code.co_name.startswith("<"):
            found.append((Path(code.co_filename).stem, code.co_name))
        frame = frame.f_back
    return found


@pytest.fixture
def stacks(monkeypatch):
    """Our frames at each call of a solver, outermost first."""
    found = set()
    for name in SOLVERS:
        plain = getattr(torch.linalg, name)

        def seen(*args, plain=plain, **kwargs):
            found.add(tuple(reversed(own_frames(sys._getframe(1)))))
            return plain(*args, **kwargs)

        monkeypatch.setattr(torch.linalg, name, seen)
    return found


def deepest(stacks, start, through=None):
    """Return the longest stack from a function down, among those that go through another."""
    found = [stack[stack.index(start) :] for stack in stacks if start in stack and (through is None or through in stack)]
    assert found, f"{start} comes to no solver through {through}"
    return max(found, key=len)


REFITS = {False: ("fitted", "fitted"), True: ("regression", "refit")}  # a rank selection may have had the network fitted before
MODES = {"no data": (False, False), "own inputs": (True, False), "refit": (True, True)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", PLANAR, ids=describe)
def test_from_a_step_to_the_linear_algebra(case, stacks, monkeypatch, method, mode):
    """From the menu, and from each later step; kernels of options are compared on unseen images two frames further down."""
    model, x, _ = case
    data, refit = MODES[mode]
    monkeypatch.setattr("spectrim.factorize.cp.SWEEPS", 2)
    config = st.Config(methods=(method,), refit=refit)
    result = st.compress(model, x[:1], budget=st.Keep(0.9), calibration=[x] if data else None, config=config)
    assert result.plan
    ways = [(("harms", "menus"), ("harms", "_closed_forms"), MOST), (REFITS[data and refit], None, MOST)]
    ways += [(("account", "account"), None, MOST), (("harms", "menus"), ("harms", "_changes"), MOST + 2)] if data else []
    assert deepest(stacks, ("compress", "compress"), ("harms", "menus"))[1:3] == (("prepare", "prepare"), ("harms", "menus"))
    for start, through, most in ways:
        stack = deepest(stacks, start, through)
        assert len(stack) <= most, " > ".join(f"{file}.{name}" for file, name in stack)


@pytest.mark.parametrize("method", PLANAR, ids=describe)
def test_from_apply_to_the_linear_algebra(case, stacks, method):
    model, x, _ = case
    layers = [layer for layer in st.find_layers(model, x[:1]) if method.fits(layer)]
    plan = st.plan_from(model, x[:1], {layer.name: (method, method.candidates(layer)[0]) for layer in layers})
    st.apply(plan, model)
    stack = deepest(stacks, ("surgery", "apply"))
    assert len(stack) <= MOST, " > ".join(f"{file}.{name}" for file, name in stack)


def test_frames_are_counted_as_meant(stacks):
    """Comprehensions, lambdas and other people's frames do not count; ours do."""
    layer = st.find_layers(torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3)), torch.zeros(1, 4, 5, 5))[0]
    st.ChannelSVD().losses(torch.randn(1, *layer.weight), [1])
    assert stacks == {(("channel", "losses"), ("channel", "response_of"))}
    stacks.clear()
    st.TensorTrain().losses(torch.randn(1, *layer.weight), [(1, 1, 1)])
    assert (("tt", "losses"), ("tt", "factors"), ("algebra", "symmetric_roots")) in stacks and len(stacks) == 3
