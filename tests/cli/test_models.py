"""Models and weights of the command line: specs, callables, files."""

import copy
from collections import OrderedDict

import pytest
import torch

from spectrim.cli.datasets import is_callable_spec, open_callable
from spectrim.cli.models import import_callable, load_weights, make_model

SOURCE = """
import torch
def build(): return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
def images(): return [(torch.zeros(2, 3, 8, 8), torch.zeros(2).long())]
def wrong(): return [1]
def nothing(): return []
def needs(x): return x
number = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mynets.py"
    path.write_text(SOURCE)
    return path


def test_batches_of_a_callable(file):
    assert is_callable_spec(f"{file}:images") and is_callable_spec("mine:images")
    assert not is_callable_spec("npz:a.npz") and not is_callable_spec("folder")
    ((inputs, labels),) = open_callable(f"{file}:images")
    assert inputs.shape == (2, 3, 8, 8) and labels.tolist() == [0, 0]
    for name, match in [
        ("wrong", "must return an iterable"),
        ("nothing", "returned nothing"),
        ("number", "no callable"),
        ("absent", "no callable"),
    ]:
        with pytest.raises(ValueError, match=match):
            open_callable(f"{file}:{name}")


def test_models(file, tmp_path):
    assert not make_model(f"{file}:build").training
    assert import_callable("torch.nn:Linear") is torch.nn.Linear
    for spec, match in [
        ("resnet18", "not understood"),
        ("nowhere.nets:build", "cannot be imported"),
        (f"{tmp_path}/gone.py:build", "there is no file"),
        (f"{file}:images", "must return a torch.nn.Module"),
        (f"{file}:needs", "without arguments"),
    ]:
        with pytest.raises(ValueError, match=match):
            make_model(spec)


def test_weights_with_and_without_the_prefix_of_a_wrapper(file, tmp_path):
    model = make_model(f"{file}:build")
    torch.save({"state_dict": {f"module.{k}": v + 1 for k, v in model.state_dict().items()}}, tmp_path / "w.pth")
    before = model[0].weight.clone()
    load_weights(model, str(tmp_path / "w.pth"))
    torch.testing.assert_close(model[0].weight, before + 1)
    wrapping = torch.nn.Sequential(OrderedDict(module=torch.nn.Linear(2, 3), head=torch.nn.Linear(3, 2)))
    for wrapper in (wrapping, torch.nn.DataParallel(wrapping)):  # its own keys begin with module.
        torch.save(wrapper.state_dict(), tmp_path / "wrapper.pth")
        again = copy.deepcopy(wrapping)
        torch.nn.init.zeros_(again.module.weight)
        load_weights(again, str(tmp_path / "wrapper.pth"))
        assert torch.equal(again.module.weight, wrapping.module.weight)


def test_weights_that_cannot_be_loaded(file, tmp_path):
    model = make_model(f"{file}:build")
    torch.save(model, tmp_path / "pickled.pth")
    with pytest.raises(ValueError, match="pickle that needs code"):
        load_weights(model, str(tmp_path / "pickled.pth"))
    torch.nn.init.zeros_(model[0].weight)
    load_weights(model, str(tmp_path / "pickled.pth"), trust_pickle=True)
    assert model[0].weight.any()
    (tmp_path / "bad.safetensors").write_text("hello")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([1], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").write_text("")
    for name, match in [
        ("text.pth", "damaged"),
        ("empty.pth", "damaged"),
        ("bad.safetensors", "damaged"),
        ("gone.pth", "no weight file"),
        ("other.pth", "do not fit"),
        ("list.pth", "no state dict"),
    ]:
        with pytest.raises(ValueError, match=match):
            load_weights(model, str(tmp_path / name))
