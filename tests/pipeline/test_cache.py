"""Work that survives an interruption: what is found again, what is not, and what it is said to have taken."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import spectrim as st
from spectrim.core.progress import Spent
from spectrim.pipeline import harms
from spectrim.pipeline.cache import Cache, Entry, Ledger, pack, unpack

CPU = torch.device("cpu")
TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.zeros(0, dtype=torch.int64),
    "c": torch.ones(2, dtype=torch.bfloat16),
}
NUMBERS = {"harms": [0.1, 1e-300, 3], "text": "a\nb", "none": None, "nested": {"x": [1, 2]}}


@pytest.mark.parametrize(
    "entry",
    [Entry(TENSORS, NUMBERS), Entry({}, NUMBERS), Entry(TENSORS), Entry()],
    ids=["both", "numbers", "tensors", "nothing"],
)
def test_an_entry_is_one_file_and_comes_back(tmp_path, entry):
    cache = Cache(tmp_path / "new" / "folder", "key")
    assert cache.read("piece", CPU) is None
    cache.write("piece", entry)
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 1  # and no partial one
    found = cache.read("piece", CPU)
    assert found.numbers == dict(entry.numbers) and list(found.tensors) == sorted(entry.tensors)
    for name, value in entry.tensors.items():
        assert found.tensors[name].dtype == value.dtype and torch.equal(found.tensors[name], value)


def test_views_and_shared_tensors_are_kept_as_they_look(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    cache = Cache(tmp_path, "key")
    cache.write("piece", Entry({"column": whole[:, 1], "turned": whole.T, "again": whole.T}))
    found = cache.read("piece", CPU).tensors
    assert torch.equal(found["column"], whole[:, 1]) and torch.equal(found["turned"], found["again"])


@pytest.mark.parametrize("other", [("another", "piece"), ("key", "another")], ids=["key", "name"])
def test_another_key_or_name_finds_nothing(tmp_path, other):
    Cache(tmp_path, "key").write("piece", Entry({}, {"n": 1}))
    key, name = other
    assert Cache(tmp_path, key).read(name, CPU) is None and Cache(tmp_path, "key").read("piece", CPU).numbers == {"n": 1}


def test_another_version_of_the_code_finds_nothing(tmp_path, monkeypatch):
    Cache(tmp_path, "key").write("piece", Entry({}, {"n": 1}))
    monkeypatch.setattr("spectrim.pipeline.cache._code", lambda: "changed")
    assert Cache(tmp_path, "key").read("piece", CPU) is None


DAMAGES = {
    "empty": lambda file: file.write_bytes(b""),
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "garbage": lambda file: file.write_bytes(b"\x80\x04garbage" * 40),
    "of another kind": lambda file: file.write_bytes((2).to_bytes(8, "little") + b"{}"),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_ignored(tmp_path, damage):
    cache = Cache(tmp_path, "key")
    cache.write("piece", Entry(TENSORS, NUMBERS))
    (file,) = tmp_path.iterdir()
    DAMAGES[damage](file)
    assert cache.read("piece", CPU) is None


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = Cache(None, "key")
    cache.write("piece", Entry(TENSORS, NUMBERS))
    assert cache.read("piece", CPU) is None and not list(tmp_path.iterdir())


def test_moments_come_back(case):
    model, x, _ = case
    moments = st.prepare(model, x[:1], calibration=[x], config=st.Config(methods=(st.ChannelSVD(),))).moments
    again = unpack(pack(moments))
    assert list(again) == list(moments)
    for name, moment in moments.items():
        for field, value in vars(moment).items():
            found = getattr(again[name], field)
            assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value


def ledger(folder, told=None):
    return Ledger(Cache(folder, "key"), CPU, told)


def test_work_is_done_once_and_what_it_took_is_counted_each_time(tmp_path):
    done = []

    def work(own):
        with own.piece("answer") as piece:
            if piece.entry is None:
                done.append(1)
                own.passed(forward=3)
                own.add(Spent({"search": 2.0}))
                piece.entry = Entry({}, {"answer": 7})
        return piece.entry.numbers["answer"]

    first, second, nowhere = ledger(tmp_path), ledger(tmp_path), ledger(None)
    assert [work(own) for own in (first, second, nowhere)] == [7, 7, 7] and len(done) == 2
    assert first.spent == second.spent == nowhere.spent == Spent({"search": 2.0}, {"forward": 3})
    assert [work(nowhere), nowhere.passes] == [7, {"forward": 6}]


def test_a_piece_counts_its_own_work_only(tmp_path):
    for own in (ledger(tmp_path), ledger(tmp_path)):
        own.add(Spent({"menu": 5.0}, {"forward": 1.0}))
        with own.piece("answer") as piece:
            if piece.entry is None:
                own.add(Spent({"menu": 2.0}))
                piece.entry = Entry()
        assert own.spent == Spent({"menu": 7.0}, {"forward": 1.0})


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_piece_that_fails_is_not_kept(tmp_path, error):
    own = ledger(tmp_path)
    with pytest.raises(error), own.piece("answer") as piece:
        piece.entry = Entry()
        raise error
    assert not list(tmp_path.iterdir())


def test_a_stage_that_fails_is_over_and_told_its_beginning_only():
    told = []
    own = ledger(None, lambda stage, share: told.append((stage, share)))
    with pytest.raises(ValueError, match="no"), own.stage("search"):
        raise ValueError("no")
    assert not own.running and own.seconds["search"] >= 0 and told == [("search", 0.0)]
    with own.stage("search"):
        assert "search" in own.spent.seconds
    assert told[1:] == [("search", 0.0), ("search", 1.0)]


class Interrupting(st.Accuracy):
    """Is interrupted at the fourth network."""

    calls = 0

    def per_example(self, network):
        self.calls += 1
        if self.calls == 4:
            raise KeyboardInterrupt
        return super().per_example(network)


def test_interrupted_work_is_not_done_again(case, tmp_path):
    model, x, labels = case
    stages = []
    methods = (st.ChannelSVD(),)
    config = st.Config(methods=methods, cache=tmp_path / "cache", progress=lambda stage, share: stages.append(stage))
    budget = st.MaxDrop(20, "macs")
    with pytest.raises(KeyboardInterrupt):
        st.compress(model, x[:1], budget=budget, calibration=[x], evaluate=Interrupting([(x, labels)]), config=config)
    assert "statistics" in stages and "refit" in stages
    stages.clear()
    evaluate = st.Accuracy([(x, labels)])
    resumed = st.compress(model, x[:1], budget=budget, calibration=[x], evaluate=evaluate, config=config)
    assert "statistics" not in stages
    fresh = st.compress(model, x[:1], budget=budget, calibration=[x], evaluate=evaluate, config=st.Config(methods=methods))
    assert resumed.plan == fresh.plan
    again = resumed.report.passes["forward"] - fresh.report.passes["forward"]
    assert again in (0, 2)  # what was done before counts; the refitted network of a choice that is known is made once more
    assert resumed.report.passes["backward"] == fresh.report.passes["backward"]
    assert set(resumed.report.seconds) == set(fresh.report.seconds)
    torch.testing.assert_close(resumed.model(x), fresh.model(x))


def test_an_interrupted_menu_goes_on_at_its_layer(case, tmp_path, monkeypatch):
    (model, x, _), done = case, []
    plain = harms.working_weight
    monkeypatch.setattr(harms, "working_weight", lambda layer, module: done.append(layer.name) or plain(layer, module))

    def interrupt(stage, share):
        if stage == "menu" and 0.5 < share < 1:
            raise KeyboardInterrupt

    methods = (st.ChannelSVD(),)
    with pytest.raises(KeyboardInterrupt):
        st.prepare(model, x[:1], config=st.Config(methods=methods, cache=tmp_path / "cache", progress=interrupt))
    first, done[:] = list(done), []
    prepared = st.prepare(model, x[:1], config=st.Config(methods=methods, cache=tmp_path / "cache"))
    assert len(first) > 1 and done and not set(first) & set(done)
    for row, fresh in zip(
        prepared.menu.layers, st.prepare(model, x[:1], config=st.Config(methods=methods)).menu.layers, strict=True
    ):
        assert row.options == fresh.options and row.scores["response"].tolist() == fresh.scores["response"].tolist()


CHANGES = {  # what must not find the pieces of the call before it
    "weights": {"model": lambda model: setattr(model.conv1.weight, "data", 1.5 * model.conv1.weight)},
    "images": {"x": lambda x: x + 0.01},
    "how many": {"config": {"images": 64}},
    "in batches of": {"config": {"batch": 48}},
    "seed": {"config": {"seed": 1}},
    "gradient": {"config": {"gradient": False}},
    "methods": {"config": {"methods": (st.ChannelSVD(), st.InputSVD())}},
    "multiples": {"config": {"multiple_of": 2}},
    "excluded": {"config": {"exclude": ("conv1",)}},
    "score": {"config": {"search": st.Energy(score="whitened")}},
    "refit": {"config": {"refit": False}},
    "batchnorm": {"config": {"batchnorm": True}},
    "budget": {"budget": st.Keep(0.7)},
    "metric": {"budget": st.Keep(0.6, "params")},
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_decides_the_result_is_in_the_key(case, tmp_path, name):
    """A call with a cache that another call has filled gives what it gives without."""
    model, x, _ = case
    usual = {"methods": (st.ChannelSVD(),), "search": st.Energy(), "batch": 32}

    def run(folder, change):
        network = copy.deepcopy(model)
        with torch.no_grad():
            change.get("model", lambda network: None)(network)
        config = st.Config(**{**usual, **change.get("config", {}), "cache": folder})
        prepared = st.prepare(network, x[:1], calibration=[change.get("x", lambda x: x)(x)], config=config)
        plan = st.choose(prepared, change.get("budget", st.Keep(0.6)))
        return plan, st.realize(prepared, plan)

    run(tmp_path, {})
    plan, realized = run(tmp_path, CHANGES[name])
    wanted, fresh = run(None, CHANGES[name])
    assert plan == wanted and plan.to_json() == wanted.to_json() and realized.decisions == fresh.decisions
    torch.testing.assert_close(realized.model.eval()(x), fresh.model.eval()(x), rtol=1e-5, atol=1e-5)


def test_how_images_are_shared_between_moments_and_measuring_is_in_the_key(case, tmp_path):
    """The same images in the same batches, but not all for the same purpose."""
    model, x, _ = case
    methods, found = (st.ChannelSVD(),), []
    for images, more in ((96, 1), (64, 32)):
        config = st.Config(methods=methods, batch=32, images=images, search=st.Interaction(images=more), cache=tmp_path)
        found.append(st.prepare(model, x[:1], calibration=[x], config=config).moments["conv1"].response)
    assert not torch.equal(*found)


def test_how_much_memory_covariances_may_take_is_in_the_key(case, tmp_path):
    model, x, _ = case
    found = []
    for memory in (1 << 30, 1 << 20, 6400):
        config = st.Config(methods=(st.ChannelSVD(),), batch=32, memory=memory, cache=tmp_path)
        found.append(st.prepare(model, x[:1], calibration=[x], config=config).moments["conv1"].covariance)
    assert found[0] is not None and found[1] is not None and found[2] is None


def test_the_size_of_the_inputs_is_in_the_key(tmp_path):
    """Without calibration the weights are the same at any size, and costs are not."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    ).eval()
    for size in (8, 16):
        x = torch.zeros(1, 3, size, size)
        result = st.compress(model, x, budget=st.Keep(0.7), config=st.Config(cache=tmp_path))
        assert result.plan.original == st.cost(model, x) and result.report.after == st.cost(result.model, x)


class Versioned(nn.Sequential):
    """A network whose state holds something that is no tensor."""

    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        assert state == {"version": 3}


def test_state_that_is_no_tensor_is_the_originals(tmp_path):
    model, x = Versioned(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval(), torch.randn(8, 3, 8, 8)
    prepared = st.prepare(model, x[:1], calibration=[x], config=st.Config(methods=(st.ChannelSVD(),), cache=tmp_path))
    plan = st.choose(prepared, st.Keep(0.6))
    first, again = (st.realize(prepared, plan).model for _ in range(2))
    assert type(again) is Versioned and torch.equal(first(x), again(x)) and not torch.equal(again(x), model(x))


def test_a_cache_holds_no_pickle(case, tmp_path):
    model, x, _ = case
    st.compress(
        model, x[:1], budget=st.Keep(0.6), calibration=[x], config=st.Config(methods=(st.ChannelSVD(),), cache=tmp_path)
    )
    files = list(Path(tmp_path).iterdir())
    assert len(files) > 3 and {file.suffix for file in files} == {".safetensors"}
    for file in files:
        header = file.read_bytes()
        length = int.from_bytes(header[:8], "little")
        assert "numbers" in json.loads(header[8 : 8 + length])["__metadata__"]
