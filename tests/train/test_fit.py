"""The training loop: it learns, its learning rate is as documented, what is interrupted goes on exactly, wrong input is refused."""

import copy
import dataclasses
import itertools
import math
import signal
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import spectrim as st
from nets import InPlace
from spectrim.train import checkpoint
from spectrim.train.precision import autocast, has_fast_bfloat16
from spectrim.train.recipe import one_cycle
from training import network, plan_of, same


def rates(steps, rise, groups=(0.02,)):
    """Return the learning rates of each step, relative to the largest, that an optimizer is given."""
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in groups])
    cycle = one_cycle(optimizer, st.Recipe(rise=rise), steps)
    found = []
    for _ in range(steps):
        found.append([group["lr"] / rate for group, rate in zip(optimizer.param_groups, groups, strict=True)])
        optimizer.step()
        cycle.step()
    return found


def documented(step, steps, rise):
    """Return the learning rate relative to the largest: from 1/25 up to 1 at step `rise * steps`, then to 1/1000 at the end."""
    peak = rise * steps
    if step < peak:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * step / peak)) / 2
    return 0.001 + 0.999 * (1 + math.cos(math.pi * (step - peak) / (steps - peak))) / 2


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 10, 97, 1000])
@pytest.mark.parametrize("rise", [0.05, 0.2, 0.25, 1 / 3, 0.5, 0.999, 1.0])
def test_the_learning_rate_is_one_cycle_of_two_half_cosines(steps, rise):
    wanted = [documented(step, steps, rise) for step in range(steps)]
    assert [rate for (rate,) in rates(steps, rise)] == pytest.approx(wanted, rel=1e-12)
    assert rates(steps, rise, (0.02, 0.5)) == [pytest.approx([rate, rate]) for rate in wanted]  # each group has its own largest


@pytest.mark.parametrize("steps", [1, 2, 5, 100])
def test_a_rate_that_does_not_rise_begins_at_the_largest(steps):
    found = [rate for (rate,) in rates(steps, 0.0)]
    wanted = [documented(step + 1, steps + 1, 0.0) for step in range(steps)]  # torch's cycle is a step further
    assert found == pytest.approx(wanted, rel=1e-12)


def test_the_rate_of_a_training_is_the_documented_one():
    model, x, y = network()
    seen = []

    class Watching(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"] / 0.5)
            return super().step(closure)

    recipe = st.Recipe(epochs=5, batch=32, rise=0.3, optimizer=lambda parameters: Watching(parameters, 0.5))
    st.fit(model, (x, y), recipe=recipe)
    assert seen == pytest.approx([documented(step, 10, 0.3) for step in range(10)], rel=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fit_learns_and_leaves_the_rest_alone(optimizer):
    model, x, y = network()
    state = torch.get_rng_state()
    start = functional.cross_entropy(model(x), y)
    shares = []
    recipe = st.Recipe(epochs=20, batch=32, optimizer=optimizer, rate=0.05 if optimizer == "sgd" else 0.005, crop=0, flip=False)
    recipe = dataclasses.replace(recipe, progress=lambda stage, share: shares.append((stage, share)))
    training = st.fit(model, (x, y), recipe=recipe)
    assert functional.cross_entropy(model(x), y) < 0.75 * start and not model.training
    assert training.steps == 40 and len(training.loss) == 20 and training.loss[-1] < training.loss[0]
    assert shares[-1] == ("training", 1.0) and shares == sorted(shares, key=lambda item: item[1])
    assert torch.equal(state, torch.get_rng_state())


def test_the_record_says_what_was_done():
    model, x, y = network()
    distortion = st.Distortion(model, plan_of(model, x), every=st.Schedule(2))
    training = st.fit(model, (x, y), recipe=st.Recipe(epochs=2, batch=16), distortion=distortion)
    assert training.recipe == st.Recipe(epochs=2, batch=16).settings() and training.schedule == dataclasses.asdict(
        st.Schedule(2)
    )
    assert (training.steps, training.images, training.distortions, training.accuracy) == (8, 64, 4, {})
    assert 0 < training.distortion_seconds < training.seconds
    with pytest.raises(dataclasses.FrozenInstanceError):
        training.steps = 0
    loader = [(x[:10], y[:10]), (x[10:30], y[10:30])]  # batches of any size
    assert st.fit(model, loader, recipe=st.Recipe(epochs=2)).images == 30


def test_distillation_follows_the_teacher():
    model, x, _ = network()
    student = copy.deepcopy(model)
    with torch.no_grad():
        student.head.weight.mul_(0.2)
    away = functional.mse_loss(student(x), model(x))
    recipe = st.Recipe(epochs=20, batch=32, rate=0.05, crop=0, flip=False, distill=1.0)
    st.fit(student, (x, torch.zeros(64).long()), recipe=recipe, teacher=model)
    assert functional.mse_loss(student(x), model(x)) < 0.5 * away


def test_images_stay_as_they_are():
    model, x, y = network()
    model = InPlace(model)
    batches = list(zip(x.split(16), y.split(16), strict=True))
    before = x.clone()
    recipe = st.Recipe(epochs=2, crop=0, flip=False, distill=0.5, rate=1e-8, smoothing=0)
    for data in (batches, (x, y)):
        distilled = st.fit(copy.deepcopy(model), data, recipe=recipe, teacher=model)
        alone = st.fit(copy.deepcopy(model), data, recipe=dataclasses.replace(recipe, distill=0.0))
        assert distilled.loss[0] == pytest.approx(alone.loss[0] / 2, rel=1e-2)  # the teacher sees what the network sees
    assert torch.equal(x, before)


def test_bfloat16_where_it_is_fast(monkeypatch):
    for capability, fast in (((7, 5), False), ((8, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert has_fast_bfloat16(torch.device("cuda", 1)) == fast
    cpu = torch.device("cpu")
    for capabilities, fast in (({"avx512_bf16": True}, True), ({"avx512_bf16": False}, False), ({"bf16": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert has_fast_bfloat16(cpu) == fast
        product = torch.ones(2, 2)
        for precision, wanted in (("auto", fast), ("float32", False), ("bfloat16", True)):
            with autocast(cpu, precision):
                assert ((product @ product).dtype == torch.bfloat16) == wanted
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in an older torch
    assert not has_fast_bfloat16(cpu) and not has_fast_bfloat16(torch.device("meta"))


def test_only_the_devices_in_use_are_looked_at(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    model, x, y = network()
    assert st.fit(model, (x, y), recipe=st.Recipe(epochs=1)).steps == 1


def test_samplers_are_told_the_epoch():
    model, x, y = network()
    sampler = DistributedSampler(TensorDataset(x, y), num_replicas=2, rank=1)
    st.fit(model, DataLoader(TensorDataset(x, y), 16, sampler=sampler), recipe=st.Recipe(epochs=3))
    assert sampler.epoch == 2


def test_interrupted_fit_goes_on_exactly(tmp_path, monkeypatch):
    model, x, y = network()
    plan = plan_of(model, x)
    recipe = st.Recipe(epochs=3, batch=16, checkpoint=tmp_path / "state.pt")
    monkeypatch.setattr(sys.modules["spectrim.train.fit"], "SAVE_SECONDS", 0.0)
    whole, half, again = (copy.deepcopy(model) for _ in range(3))
    unsaved = dataclasses.replace(recipe, checkpoint=None)
    training = st.fit(whole, (x, y), recipe=unsaved, distortion=st.Distortion(whole, plan, every=2))
    distortion = st.Distortion(half, plan, every=2)
    step, calls = distortion.step, []

    def interrupting():
        calls.append(step())
        if len(calls) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(distortion, "step", interrupting)
    with pytest.raises(KeyboardInterrupt):
        st.fit(half, (x, y), recipe=recipe, distortion=distortion)
    resumed = st.fit(again, (x, y), recipe=recipe, distortion=st.Distortion(again, plan, every=2))
    assert same(whole, again)
    assert resumed.loss == pytest.approx(training.loss) and resumed.steps == training.steps == 12
    done = st.fit(again, (x, y), recipe=recipe, distortion=st.Distortion(again, plan, every=2))
    assert done.steps == 12 and same(whole, again)  # nothing was left to do
    with pytest.raises(ValueError, match="another run \\(other recipe, distortion\\)"):
        st.fit(again, (x, y), recipe=dataclasses.replace(recipe, rate=0.5))
    with pytest.raises(ValueError, match="other data"):
        st.fit(again, (x + 1, y), recipe=recipe, distortion=st.Distortion(again, plan, every=2))


@pytest.mark.parametrize("rise", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_optimizer_and_rate_go_on_exactly_from_every_step(optimizer, rise, tmp_path, monkeypatch):
    model, x, y = network(32)
    recipe = st.Recipe(epochs=3, batch=16, optimizer=optimizer, rise=rise, checkpoint=tmp_path / "state.pt")
    whole, half, again = (copy.deepcopy(model) for _ in range(3))
    st.fit(whole, (x, y), recipe=dataclasses.replace(recipe, checkpoint=None))
    monkeypatch.setattr(sys.modules["spectrim.train.fit"], "SAVE_SECONDS", 0.0)
    passes: list[None] = []

    def fail_in_the_second_step(*_):
        passes.append(None)
        if len(passes) == 3:  # the first is of one image, before the training
            raise ZeroDivisionError

    hook = half.conv1.register_forward_hook(fail_in_the_second_step)
    for done in range(1, 6):
        passes.clear()
        with pytest.raises(ZeroDivisionError):
            st.fit(half, (x, y), recipe=recipe)
        assert torch.load(tmp_path / "state.pt", weights_only=True)["numbers"]["steps"] == done
    hook.remove()
    st.fit(again, (x, y), recipe=recipe)
    assert same(whole, again)


class Watched(TensorDataset):
    """Images that are noisy at each look, and the numbers of those looked at."""

    def __init__(self, *tensors):
        super().__init__(*tensors)
        self.looks = []

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        self.looks.append(index)
        return image + 0.1 * torch.randn(image.shape), label


def test_a_shuffling_loader_goes_on_exactly(tmp_path, monkeypatch):
    model, x, y = network()
    recipe = st.Recipe(epochs=3, batch=16, checkpoint=tmp_path / "state.pt")
    monkeypatch.setattr(sys.modules["spectrim.train.fit"], "SAVE_SECONDS", 0.0)
    whole, half, again = (copy.deepcopy(model) for _ in range(3))
    data = Watched(x, y)
    st.fit(whole, DataLoader(data, 16, shuffle=True), recipe=dataclasses.replace(recipe, checkpoint=None))
    looks, data.looks = data.looks, []
    epochs = [looks[:64], looks[64:128], looks[128:]]
    assert all(sorted(epoch) == list(range(64)) for epoch in epochs) and epochs[0] != epochs[1]
    count = itertools.count(1)
    hook = half.conv1.register_forward_hook(lambda *_: 1 / 0 if next(count) == 7 else None)  # in the third step of epoch 2
    with pytest.raises(ZeroDivisionError):
        st.fit(half, DataLoader(data, 16, shuffle=True), recipe=recipe)
    hook.remove()
    data.looks = []
    torch.manual_seed(7)
    st.fit(again, DataLoader(data, 16, shuffle=True), recipe=recipe)
    assert data.looks == looks[64:] and same(whole, again)


def test_a_signal_waits_for_the_step_and_saves_it(tmp_path):
    model, x, y = network()
    recipe = st.Recipe(epochs=3, batch=16, checkpoint=tmp_path / "state.pt")
    whole, half, again = (copy.deepcopy(model) for _ in range(3))
    st.fit(whole, (x, y), recipe=dataclasses.replace(recipe, checkpoint=None))
    handler = signal.getsignal(signal.SIGINT)
    passes = itertools.count()  # the first is of one image, before the training
    hook = half.conv1.register_forward_hook(lambda *_: signal.raise_signal(signal.SIGINT) if next(passes) == 6 else None)
    with pytest.raises(KeyboardInterrupt):
        st.fit(half, (x, y), recipe=recipe)
    hook.remove()
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.load(tmp_path / "state.pt", weights_only=True)["numbers"]["steps"] == 6
    st.fit(again, (x, y), recipe=recipe)
    assert same(whole, again)


def test_a_second_signal_does_not_wait():
    interruption = checkpoint.Interruption()
    with interruption.awaited():
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    model, x, y = network()
    for state in ([105], {"format": "spectrim-training-2", "about": {}}):
        torch.save(state, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=r"other.pt' has the format .* and this version reads 'spectrim-training-3'"):
            st.fit(model, (x, y), recipe=st.Recipe(checkpoint=tmp_path / "other.pt"))
        assert torch.load(tmp_path / "other.pt", weights_only=True) == state


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"epochs": True},
        {"batch": 1.5},
        {"rise": 2.0},
        {"rate": 0.0},
        {"rate": "fast"},
        {"crop": -1},
        {"crop": 1.5},
        {"optimizer": "magic"},
        {"precision": "float16"},
        {"precision": len},
        {"seed": "a"},
        {"flip": 3},
    ],
    ids=str,
)
def test_wrong_values_of_a_recipe(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} (is )?"):
        st.Recipe(**wrong)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (x / 0, y), "NaN or infinity among them"),
        (lambda x, y: (x, y + 1), r"labels are from \d to 5, but the network has 5 outputs"),
        (lambda x, y: (x, y - 1), "labels are from -1 to"),
        (lambda x, y: (x, y.float()), "one whole number per image"),
        (lambda x, y: (x, functional.one_hot(y)), "one whole number per image"),
        (lambda x, y: (x.byte(), y), "images are torch.uint8"),
        (lambda x, y: (x, y[:3]), "64 images and 3 labels"),
        (lambda x, y: [(x, y[:3])], "64 images and 3 labels"),
        (lambda x, y: [(x, "cat")], "it must be two tensors"),
        (lambda x, y: iter([(x, y)]), "no length"),
        (lambda x, y: [], "is empty"),
    ],
)
def test_what_cannot_be_trained_on_gets_a_sentence_and_leaves_the_network_alone(change, words):
    model, x, y = network()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=words):
        st.fit(model, change(x, y), recipe=st.Recipe(epochs=1, batch=16))
    assert same(model, before) and not model.training


def test_networks_and_recipes_that_do_not_go_together():
    model, x, y = network()
    with pytest.raises(ValueError, match="no teacher"):
        st.fit(model, (x, y), recipe=st.Recipe(distill=0.5))
    with pytest.raises(FloatingPointError, match="lower the rate"):
        st.fit(copy.deepcopy(model), (x, y), recipe=st.Recipe(epochs=20, batch=16, rate=1e3))
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        st.fit(copy.deepcopy(model).requires_grad_(False), (x, y))
    model.conv2.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"'conv2.weight' holds NaN"):
        st.fit(model, (x, y))


def test_distortions_that_the_training_is_too_short_for():
    model, x, y = network()
    plan = plan_of(model, x)
    with pytest.raises(ValueError, match="the first distortion is due after 200 steps, but 1 epochs are 1 steps"):
        st.fit(model, (x, y), recipe=st.Recipe(epochs=1), distortion=st.Distortion(model, plan))
    with pytest.raises(ValueError, match=r"the ranks are the plan's \(tighten=9\), and that is due after 36 steps"):
        distortion = st.Distortion(model, plan, every=st.Schedule(4, tighten=9))
        st.fit(model, (x, y), recipe=st.Recipe(epochs=8, batch=16), distortion=distortion)
    with pytest.raises(ValueError, match="no Distortion of the network"):
        st.fit(model, (x, y), distortion=st.Distortion(network()[0], plan))
