"""Block-wise reconstruction in the pipeline: what is kept of it, what it is said to be, and that it can be gone on with."""

import copy
import dataclasses
import itertools
import json

import pytest
import torch
from torch import nn

import spectrim as st
from commands import interrupted_block
from nets import InPlace, Residual, labelled, settle
from spectrim.pipeline import reconstruction
from spectrim.pipeline.calibration import Images
from spectrim.pipeline.checks import check_reconstruct
from spectrim.pipeline.fitted import DENSE
from spectrim.sensitivity.measured import measured_harm

METHODS = (st.ChannelSVD(),)
QUICK = st.Reconstruct(steps=20, batch=16)
CONFIG = st.Config(methods=METHODS, batch=32, reconstruct=QUICK)


@pytest.fixture(scope="module")
def case():
    """Another network than the other files' one, whose fits are so good that 16 unseen images refuse gradient steps."""
    return labelled(1)


@pytest.fixture(scope="module")
def found(case):
    model, x, _ = case
    prepared = st.prepare(model, x[:1], calibration=[x], config=CONFIG)
    plan = st.choose(prepared, st.Keep(0.5))
    return prepared, plan, st.realize(prepared, plan)


def without(prepared):
    return dataclasses.replace(prepared, config=dataclasses.replace(prepared.config, reconstruct=None))


def judged(prepared, model):
    return measured_harm(prepared.model, model, prepared.unseen, prepared.harm)


def said(realized):
    texts = {name: text for name, text in realized.decisions.items() if not text.startswith(DENSE)}
    return {name: text.partition("; ")[2] for name, text in texts.items()}


def test_unseen_images_agree_to_what_is_kept(found):
    prepared, plan, realized = found
    before = st.realize(without(prepared), plan)
    assert judged(prepared, realized.model) < judged(prepared, before.model)
    assert realized.model.state_dict().keys() == before.model.state_dict().keys()
    kept = {name for name, text in said(realized).items() if text.startswith("reconstructed on 80 images (block ")}
    assert kept and set(said(realized)) == set(plan) and f"{len(kept)} were kept" in realized.notes[0]
    for name in kept:
        pairs = zip(realized.model.get_submodule(name).parameters(), before.model.get_submodule(name).parameters(), strict=True)
        assert not all(torch.equal(*pair) for pair in pairs)
    norms = [module for module in realized.model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm, own in zip(norms, [m for m in before.model.modules() if isinstance(m, nn.BatchNorm2d)], strict=True):
        torch.testing.assert_close(norm.state_dict(), own.state_dict(), rtol=0, atol=0)
        assert norm.training == own.training


def test_refits_on_the_way_see_the_dense_layers_that_were_refitted(case, monkeypatch):
    model, x, _ = case
    prepared = st.prepare(model, x[:1], calibration=[x], config=CONFIG)
    plan = st.plan_from(model, x[:1], {name: (st.ChannelSVD(), 3) for name in ("conv1", "conv3")})
    seen, refit = [], reconstruction.refit

    def watched(*args, given, **settings):
        seen.append(given)
        return refit(*args, given=given, **settings)

    monkeypatch.setattr(reconstruction, "refit", watched)
    realized = st.realize(prepared, plan)
    dense = {name for name, text in realized.decisions.items() if text.startswith(DENSE)}
    assert dense and seen and all(dense <= given.keys() for given in seen)
    for name in dense:
        assert not torch.equal(seen[0][name].weight, model.get_submodule(name).weight)


def rising():
    """Return what measures a harm that is higher each time."""
    levels = itertools.count(1)
    return lambda model, small, batches, harm: [float(next(levels))] * len(batches)


def test_what_unseen_images_do_not_agree_to_goes_back(case, found, monkeypatch):
    prepared, plan, _ = found
    monkeypatch.setattr(reconstruction, "batch_harms", rising())
    realized, before = st.realize(prepared, plan), st.realize(without(prepared), plan)
    torch.testing.assert_close(realized.model.state_dict(), before.model.state_dict(), rtol=0, atol=0)
    assert all(text.startswith(f"{reconstruction.BACK} (block ") for text in said(realized).values())
    assert "taken back: the harm on unseen images went from 1 to 2" in realized.notes[0]


def test_the_order_of_a_pivot_goes_back_too(case, monkeypatch):
    """Refits on the way change which outputs are passed on, which a buffer holds."""
    model, x, _ = case
    prepared = st.prepare(model, x[:1], calibration=[x], config=dataclasses.replace(CONFIG, methods=(st.PivotSVD(),)))
    plan = st.choose(prepared, st.Keep(0.5))
    before = st.realize(without(prepared), plan)
    assert any(name.endswith("order") for name in before.model.state_dict())
    assert "gradient steps were taken" in st.realize(prepared, plan).notes[0]
    monkeypatch.setattr(reconstruction, "batch_harms", rising())
    again = st.realize(prepared, plan)
    torch.testing.assert_close(again.model.state_dict(), before.model.state_dict(), rtol=0, atol=0)


def test_a_block_whose_error_rises_on_unseen_images_keeps_its_fit(found, monkeypatch):
    prepared, plan, whole = found
    fit_block, bad = reconstruction.fit_block, "conv2"

    def overfitted(task, block):
        fitted = fit_block(task, block)
        return dataclasses.replace(fitted, after=(fitted.after[0], 2 * fitted.before[1])) if block.name == bad else fitted

    monkeypatch.setattr(reconstruction, "fit_block", overfitted)
    realized = st.realize(prepared, plan)
    assert said(realized)[bad] == f"{reconstruction.BACK} (block {bad})"
    assert not torch.equal(realized.model.get_submodule(bad)[0].weight, whole.model.get_submodule(bad)[0].weight)
    assert judged(prepared, realized.model) < judged(prepared, st.realize(without(prepared), plan).model)


def test_a_rate_that_destroys_the_network_leaves_it_as_it_was(found):
    prepared, plan, _ = found
    wild = dataclasses.replace(prepared.config, reconstruct=st.Reconstruct(rate=1e30, steps=3))
    realized, before = st.realize(dataclasses.replace(prepared, config=wild), plan), st.realize(without(prepared), plan)
    torch.testing.assert_close(realized.model.state_dict(), before.model.state_dict(), rtol=0, atol=0)


def test_the_network_given_and_the_random_numbers_stay(case):
    model, x, _ = case
    kept, state = copy.deepcopy((model.state_dict(), x)), torch.random.get_rng_state()
    result = st.compress(model, x[:1], budget=st.Keep(0.5), calibration=[x], config=CONFIG)
    torch.testing.assert_close((model.state_dict(), x), kept, rtol=0, atol=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    again = st.compress(model, x[:1], budget=st.Keep(0.5), calibration=[x], config=CONFIG)
    torch.testing.assert_close(result.model.state_dict(), again.model.state_dict(), rtol=0, atol=0)
    other = st.compress(model, x[:1], budget=st.Keep(0.5), calibration=[x], config=dataclasses.replace(CONFIG, seed=1))
    assert any(not torch.equal(a, b) for a, b in zip(other.model.parameters(), again.model.parameters(), strict=True))


def test_interrupted_and_gone_on_with(case, found, tmp_path, monkeypatch):
    model, x, _ = case
    fitted = interrupted_block(monkeypatch, 3)
    config = dataclasses.replace(CONFIG, cache=tmp_path)
    prepared = st.prepare(model, x[:1], calibration=[x], config=config)
    plan = st.choose(prepared, st.Keep(0.5))
    with pytest.raises(KeyboardInterrupt):
        st.realize(prepared, plan)
    resumed, (_, _, whole) = st.realize(prepared, plan), found
    assert len(fitted) > 3 and len(set(fitted)) == len(fitted) - 1  # the one interrupted was begun anew
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    assert (resumed.decisions, resumed.notes, resumed.spent.passes) == (whole.decisions, whole.notes, whole.spent.passes)
    read = st.realize(prepared, plan)
    torch.testing.assert_close(read.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    assert len(set(fitted)) == len(fitted) - 1 and read.spent.seconds["reconstruct"] > 0


def test_the_report_says_so(case, tmp_path):
    model, x, _ = case
    stages = []
    config = dataclasses.replace(CONFIG, progress=lambda stage, share: stages.append((stage, share)))
    result = st.compress(model, x[:1], budget=st.Keep(0.5), calibration=[x], config=config)
    (note,) = [note for note in result.report.notes if "gradient steps" in note]
    assert "without labels" in note and note in str(result)
    assert result.report.passes["backward"] > 1 and result.report.seconds["reconstruct"] > 0
    shares = [share for stage, share in stages if stage == "reconstruct"]
    assert len(shares) > 3 and shares == sorted(shares)
    result.save(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["config"]["reconstruct"] == {"rate": 1e-3, "steps": 20, "batch": 16, "mirror": False}
    loaded = st.load(tmp_path / "out", model)
    torch.testing.assert_close(loaded.state_dict(), result.model.state_dict(), rtol=0, atol=0)


def test_every_network_of_a_bound_on_the_drop_is_reconstructed_and_evaluated(case):
    model, x, labels = case
    evaluated = []

    def evaluate(network):
        evaluated.append({key: value.clone() for key, value in network.state_dict().items()})
        with torch.no_grad():
            return float((network(x).argmax(1) == labels).float().mean())

    result = st.compress(model, x[:1], budget=st.MaxDrop(60), calibration=[x], evaluate=evaluate, config=CONFIG)
    assert result.plan and all("reconstruct" in row.fitted for row in result.report.rows if row.method != "-")
    final = result.model.state_dict()
    assert any(state.keys() == final.keys() and all(torch.equal(state[k], final[k]) for k in final) for state in evaluated)


@pytest.mark.parametrize("refit", [True, False])
def test_a_given_plan_and_a_network_that_changes_its_input(case, found, refit):
    model, x, _ = case
    config = dataclasses.replace(CONFIG, refit=refit, batchnorm=True)
    results = []
    for network in (InPlace(model), InPlace(model, inplace=False)):
        names = [layer.name for layer in st.find_layers(network, x[:1])]
        plan = st.plan_from(network, x[:1], {name: (st.ChannelSVD(), 4) for name in names if name.endswith(("conv1", "conv2"))})
        results.append(st.compress(network, x[:1], plan=plan, calibration=[x], config=config))
    torch.testing.assert_close(results[0].model.state_dict(), results[1].model.state_dict())
    first = "refitted on" if refit else "fitted to its own inputs"
    assert {row.fitted.partition("; ")[0].startswith(first) for row in results[0].report.rows if row.method != "-"} == {True}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_of_other_precision(dtype):
    x = torch.randn(64, 3, 8, 8)
    model = settle(Residual(width=12), x).to(dtype)
    result = st.compress(model, x[:1].to(dtype), budget=st.Keep(0.5), calibration=[x], config=CONFIG)
    assert all(p.dtype == dtype and torch.isfinite(p).all() for p in result.model.parameters())
    assert any("reconstruct" in row.fitted for row in result.report.rows)


def test_layers_called_twice_are_told():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.same, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3, padding=1), nn.Linear(12, 5)

        def forward(self, x):
            x = torch.relu(self.same(torch.relu(self.same(torch.relu(self.stem(x))))))
            return self.head(x.mean((2, 3)))

    model, x = Twice().eval(), torch.randn(64, 3, 8, 8)
    plan = st.plan_from(model, x[:1], {"stem": (st.ChannelSVD(), 6), "same": (st.ChannelSVD(), 6)})
    prepared = st.prepare(model, x[:1], calibration=[x], config=CONFIG, plan=plan)
    decisions = said(st.realize(prepared, prepared.menu.plan([len(row.options) - 1 for row in prepared.menu.layers])))
    assert decisions["same"] == "not reconstructed: one forward calls it more than once"
    assert "(block stem)" in decisions["stem"]


def test_an_empty_plan_and_none_asked_for(case):
    model, x, _ = case
    result = st.compress(model, x[:1], budget=st.Keep(1.0), calibration=[x], config=CONFIG)
    assert not result.plan and not any("gradient" in note for note in result.report.notes)
    usual = st.compress(model, x[:1], budget=st.Keep(0.5), calibration=[x], config=st.Config(methods=METHODS, batch=32))
    assert "reconstruct" not in usual.report.seconds and usual.report.config["reconstruct"] is None


FAULTS = {
    "too few images": (lambda x: [x[:40]], {}, "with 40 calibration images none are kept away from the fits; give at least 48"),
    "no images": (lambda x: None, {}, "there are none; give at least 48, or leave reconstruct out"),
    "no options": (lambda x: [x], {"reconstruct": True}, "reconstruct is True; it must be Reconstruct"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_sentence(case, name):
    model, x, _ = case
    data, change, match = FAULTS[name]
    with pytest.raises((ValueError, TypeError), match=match) as caught:
        config = dataclasses.replace(CONFIG, **change)
        st.compress(model, x[:1], budget=st.Keep(0.5), calibration=data(x), config=config)
    assert "\n" not in str(caught.value)


def test_mirror_is_for_images():
    model, x = nn.Sequential(nn.Conv1d(4, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5)).eval(), torch.randn(64, 4, 8)
    config = dataclasses.replace(CONFIG, reconstruct=st.Reconstruct(mirror=True))
    with pytest.raises(ValueError, match=r"mirror=True is for images, and the example has shape \(1, 4, 8\)"):
        st.compress(model, x[:1], budget=st.Keep(0.5), calibration=[x], config=config)
    assert st.inspect(model, x[:1], calibration=[x], config=config).layers  # which takes no gradient steps


def test_what_decides_the_result_is_in_the_key(case, found, tmp_path):
    model, x, _ = case
    for options in (QUICK, st.Reconstruct(steps=20, batch=16, mirror=True), None):
        config = dataclasses.replace(CONFIG, reconstruct=options, cache=tmp_path)
        realized = st.realize(st.prepare(model, x[:1], calibration=[x], config=config), found[1])
        fresh = st.realize(dataclasses.replace(found[0], config=dataclasses.replace(config, cache=None)), found[1])
        assert realized.decisions == fresh.decisions
        torch.testing.assert_close(realized.model.state_dict(), fresh.model.state_dict(), rtol=0, atol=0)


class Clips(nn.Module):
    """Frames of clips of four, mixed over time inside the second block."""

    def __init__(self):
        super().__init__()
        self.stem, self.mixed, self.head = nn.Conv2d(3, 12, 3), Mixed(), nn.Linear(12, 5)

    def forward(self, x):
        return self.head(self.mixed(torch.relu(self.stem(x))).mean((2, 3)))


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x):
        clips = torch.relu(self.conv(x)).unflatten(0, (-1, 4))
        return (clips + clips.roll(1, 1)).flatten(0, 1)


def test_frames_of_clips_stay_together():
    model, x = Clips().eval(), torch.randn(96, 3, 8, 8)
    config = dataclasses.replace(CONFIG, reconstruct=st.Reconstruct(steps=20, batch=10))
    result = st.compress(model, x[:4], budget=st.Keep(0.5), calibration=[x], config=config)
    fitted = {row.layer: row.fitted for row in result.report.rows if row.method != "-"}
    assert "(block mixed)" in fitted["mixed.conv"] and "not reconstructed" not in fitted["mixed.conv"]


def test_another_default_device(case):
    """As after torch.set_default_device("cuda"), where nothing can be made of what lies on it by mistake."""
    model, x, _ = case
    found = []
    for device in ("meta", "cpu"):
        with torch.device(device):
            found.append(st.compress(model, x[:1], budget=st.Keep(0.5), calibration=[x], config=CONFIG).model.state_dict())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert {value.device for value in found[0].values()} == {torch.device("cpu")}


@pytest.mark.parametrize(("together", "enough"), [(1, 48), (16, 48), (32, 256)])
def test_how_many_images_would_do(together, enough):
    """Of clips, an eighth of whose frames must be a clip at least."""
    with pytest.raises(ValueError, match=f"give at least {enough}, or leave reconstruct out"):
        check_reconstruct(Images([torch.zeros(together, 3)], [], []), torch.zeros(together, 3), CONFIG, together)
