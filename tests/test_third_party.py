"""Decompositions and rank selections of third parties: the examples of CONTRIBUTING.md, and a sentence for every mistake."""

import dataclasses
import json
import re
import subprocess
import sys
import types
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import spectrim as st
from commands import compressing, training
from nets import GEOMETRIES, layer_and_input
from spectrim import cli
from spectrim.core.factorization import parse
from spectrim.demo import demo_images, demo_model
from spectrim.pipeline import calibration
from spectrim.sensitivity.options import offers
from spectrim.sensitivity.scores import NAMES
from spectrim.targets.timing import interleaved
from spectrim.testing import check_factorization, check_search, random_menu
from tables import LAYERS

GUIDE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
BLOCKS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", GUIDE, re.S))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(calibration, "JUDGED", (16, 64))
    monkeypatch.setitem(interleaved.__kwdefaults__, "seconds", 0.1)


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """The modules that CONTRIBUTING.md shows, as the files of a user who works in their folder."""
    for name, text in BLOCKS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for name in BLOCKS:
        sys.modules.pop(name.removesuffix(".py"), None)


def module(name):
    """A module of CONTRIBUTING.md in memory."""
    found = types.ModuleType(f"guide_{name}")
    sys.modules[found.__name__] = found
    exec(BLOCKS[f"{name}.py"], found.__dict__)
    return found


PlainInput = module("my_methods").PlainInput
LeastFirst = module("my_searches").LeastFirst


# --- the examples


def test_the_guide_shows_short_complete_modules_and_how_to_check_them():
    assert set(BLOCKS) == {"my_methods.py", "check_methods.py", "my_searches.py", "check_searches.py"}
    assert BLOCKS["my_methods.py"].count("\n") < 50 and BLOCKS["my_searches.py"].count("\n") < 20
    assert all(f"`{name}`" in GUIDE for name in NAMES) and all(name in st.Search.__doc__ for name in NAMES)


@pytest.mark.parametrize("name", ["check_methods.py", "check_searches.py"])
def test_the_checks_of_the_guide_run(examples, name):
    done = subprocess.run([sys.executable, name], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_decomposition_of_the_guide_keeps_its_contract_on_every_geometry(geometry):
    several = 64 if geometry == "linear on a map" else 6
    fits = check_factorization(PlainInput(), *layer_and_input(geometry, several))
    assert fits == (LAYERS[geometry].channels[1] > LAYERS[geometry].groups)


def test_the_check_takes_a_linear_layer_behind_a_flatten():
    layer = nn.Sequential(nn.Flatten(), nn.Linear(4 * 3 * 4, 12)).double()
    assert check_factorization(PlainInput(), layer, torch.randn(64, 4, 3, 4).double())


def test_the_rank_selection_of_the_guide_keeps_its_contract():
    check_search(LeastFirst())
    assert LeastFirst.title == "LeastFirst" and LeastFirst.reference == ""


def test_testing_is_an_attribute_that_nothing_pays_for():
    code = "import sys, spectrim as st; assert 'spectrim.testing' not in sys.modules; print(st.testing.check_search.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "check_search"
    with pytest.raises(AttributeError, match="module 'spectrim' has no attribute 'colour'"):
        st.colour  # noqa: B018


# --- what a decomposition may be


@dataclass(frozen=True)
class Tuples(PlainInput):
    """With an option that JSON knows as a list."""

    table: tuple = (1, ("a", 2.5))


class Undecorated(PlainInput):
    """It has no options of its own, so there is nothing to decorate."""


def test_titles_are_names_of_classes_unless_they_are_given():
    assert (PlainInput.title, Tuples.title, PlainInput.reference) == ("PlainInput", "Tuples", "")
    assert st.ChannelSVD.title == "ChannelSVD" and st.ChannelSVD.reference

    @dataclass(frozen=True)
    class Named(st.ChannelSVD):
        title = "Mine"

    assert Named.title == "Mine" and Named.reference == st.ChannelSVD.reference
    assert repr(type("Plain", (st.Search,), {"select": lambda *given: []})()) == "Plain()"


@pytest.mark.parametrize("method", [Tuples(), Tuples(table=()), Undecorated(steps=3)], ids=repr)
def test_options_come_back_from_json(method):
    assert check_factorization(method, *layer_and_input("plain"))
    (layer,) = st.find_layers(nn.Sequential(layer_and_input("plain")[0]), layer_and_input("plain")[1])
    plan = st.Plan({"0": st.Option(layer, method, 2)}, layer.cost)
    assert st.Plan.from_json(plan.to_json()) == plan


def test_nothing_but_fits_is_asked_of_a_layer_that_does_not_fit():
    @dataclass(frozen=True)
    class Never(PlainInput):
        def fits(self, layer):
            return st.Fit("it never does")

        def candidates(self, layer):
            raise AssertionError("asked")

    layer = LAYERS["plain"]
    assert Never().ranks(layer) == [] and offers(layer, [Never()], None) == []
    assert check_factorization(Never(), *layer_and_input("plain")) is False
    found = st.inspect(nn.Sequential(nn.Conv2d(6, 8, 3)), torch.zeros(1, 6, 9, 9), config=[Never()])
    assert found.layers[0].reasons == {"Never": "it never does"}


def broken(**body):
    """A decomposition like that of the guide in which some functions are others."""
    return dataclass(frozen=True)(type("Broken", (PlainInput,), body))()


def of(name, change):
    """A function that changes what that of the guide returns; harms are those of the guide."""
    losses = {"losses": lambda self, *given: PlainInput().losses(*given)}
    return {**losses, name: lambda self, *given: change(getattr(PlainInput, name)(self, *given))}


def half_parts(self, layer, rank):
    (outputs, inputs) = layer.channels
    first = st.pointwise(layer, inputs, rank, None)
    return first, replace(st.spatial(layer, (layer.groups * rank, outputs), range(2), first), bias=layer.bias)


@dataclass
class Thawed(PlainInput.__mro__[1]):
    """Not frozen."""

    steps: int = 3
    fits, full_rank, candidates, parts = (vars(PlainInput)[name] for name in ("fits", "full_rank", "candidates", "parts"))
    factors, merge, losses = (vars(PlainInput)[name] for name in ("factors", "merge", "losses"))


Bare = type("Bare", (st.Factorization,), {name: item for name, item in vars(Thawed).items() if not name.startswith("_")})


class Forgotten(PlainInput):
    """An option, and no decorator that would make it one."""

    steps: int = 5


MISTAKES = {
    "not frozen": (Thawed, "Thawed is a dataclass that can be changed; write @dataclass(frozen=True) above `class Thawed`"),
    "no dataclass": (
        Bare,
        "Bare is no dataclass; write @dataclass(frozen=True) above `class Bare`: its fields are its options",
    ),
    "an option without decorator": (Forgotten, "Forgotten is no dataclass; write @dataclass(frozen=True)"),
    "a list as option": (
        lambda: Tuples(table=[1]),
        "the option table of Tuples is [1]; plans keep options as JSON, so they must be",
    ),
    "a tensor inside": (lambda: Tuples(table=(torch.ones(1),)), "the option table of Tuples is (tensor([1.]),); plans keep"),
    "fits True": (
        lambda: broken(fits=lambda self, layer: True),
        "Broken.fits() returned True for layer '0'; it must return Fit()",
    ),
    "fits False": (lambda: broken(fits=lambda self, layer: False), 'Fit() for yes or Fit("why not") for no'),
    "no bias": (
        lambda: broken(**of("parts", lambda parts: (parts[0], replace(parts[1], bias=False)))),
        "the last part has bias=False, the layer has bias=True; write replace(part, bias=layer.bias)",
    ),
    "two biases": (
        lambda: broken(**of("parts", lambda parts: (replace(parts[0], bias=True), parts[1]))),
        "a part before the last has a bias",
    ),
    "no parts": (lambda: broken(parts=lambda self, layer, rank: ()), "parts() at rank 4: no part has a weight"),
    "channels that do not meet": (lambda: broken(parts=half_parts), "part 1 reads 8 channels where part 0 has 4"),
    "candidates descending": (lambda: broken(**of("candidates", lambda ranks: ranks[::-1])), "candidates() are not ascending"),
    "no candidates": (lambda: broken(candidates=lambda self, layer: []), "candidates() returned []; it must be a list of"),
    "impossible candidates": (
        lambda: broken(**of("candidates", lambda ranks: [*ranks, 99])),
        "rank 99 of layer '0' is out of range",
    ),
    "no group axis": (
        lambda: broken(**of("factors", lambda factors: tuple(factor.flatten(0, 1) for factor in factors))),
        "Broken.factors() returned for layer '0' at rank 4 weights of shapes (8, 4, 1, 1), (12, 4, 3, 3); parts() has, canonical, "
        "(2, 4, 4, 1, 1), (2, 6, 4, 3, 3)",
    ),
    "a factor too many": (
        lambda: broken(**of("factors", lambda factors: (*factors, factors[0]))),
        "(2, 4, 4, 1, 1); parts() has",
    ),
    "merge of another shape": (
        lambda: broken(**of("merge", lambda merged: merged[:, :-1])),
        "Broken.merge() returned for layer '0' at rank 1 a kernel of shape (2, 5, 4, 3, 3); it is (2, 6, 4, 3, 3)",
    ),
    "NaN": (
        lambda: broken(**of("losses", lambda losses: [np.nan for _ in losses])),
        "losses() returned nan for rank 1 of layer '0'",
    ),
    "negative": (
        lambda: broken(**of("losses", lambda losses: [-loss for loss in losses])),
        "a harm is finite and not negative",
    ),
    "too few": (
        lambda: broken(**of("losses", lambda losses: losses[1:])),
        "losses() returned 3 numbers for 4 ranks of layer '0'",
    ),
    "no losses": (lambda: broken(losses=lambda self, weight, ranks, moments: None), "losses() returned None for layer '0'"),
    "twice the harm": (
        lambda: broken(**of("losses", lambda losses: [2 * loss for loss in losses])),
        "losses() must return what harm(weight, self.merge(self.factors(weight, rank, moments)), moments) is",
    ),
    "kernels of other ranks": (
        lambda: broken(kernels=lambda self, weight, ranks, moments: PlainInput().kernels(weight, ranks[::-1], moments)),
        "rank 1: kernels() must yield what self.merge(self.factors(weight, rank, moments)) is",
    ),
    "too few kernels": (
        lambda: broken(kernels=lambda self, weight, ranks, moments: PlainInput().kernels(weight, ranks[1:], moments)),
        "kernels() yielded 3 kernels for 4 ranks; each needs one",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_check_says_what_is_wrong(name):
    make, words = MISTAKES[name]
    method = make()
    x = torch.randn(6, 8, 9, 9).double()
    with pytest.raises(AssertionError, match=re.escape(words)) as caught:
        check_factorization(method, nn.Conv2d(8, 12, 3, groups=2).double(), x)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["not frozen", "no dataclass", "an option without decorator", "a list as option"])
def test_a_configuration_and_a_plan_say_the_same(name):
    make, words = MISTAKES[name]
    method, layer = make(), LAYERS["plain"]
    with pytest.raises(TypeError, match=re.escape(words)):
        st.Config(methods=(method,))
    with pytest.raises(TypeError, match=re.escape(words)):
        st.Plan({"0": st.Option(layer, method, 2)}, layer.cost).to_json()


@pytest.mark.parametrize("images", [32, 64])  # too few to keep some away from the fits, and enough
@pytest.mark.parametrize(
    "name", ["fits True", "no group axis", "merge of another shape", "NaN", "negative", "too few", "no losses"]
)
def test_compress_blames_the_method_and_names_the_layer(name, images):
    make, words = MISTAKES[name]
    words = words.split(" for layer")[0].split(" at rank")[0].replace("3 numbers for 4 ranks of layer '0'", "")
    x = torch.randn(images, 8, 9, 9)
    model = nn.Sequential(nn.Conv2d(8, 12, 3, groups=2), nn.Flatten(), nn.Linear(12 * 49, 5))
    config = st.Config(methods=(make(),), exclude=("2",), refit=False)
    with pytest.raises((ValueError, TypeError), match=re.escape(words.split(" for rank")[0])) as caught:
        st.compress(model, x[:1], budget=st.Keep(0.99), calibration=[x], config=config)
    assert "'0'" in str(caught.value) and "\n" not in str(caught.value)


CONV, IMAGES = nn.Conv2d(8, 12, 3).double(), torch.randn(6, 8, 9, 9).double()


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ((PlainInput, CONV, IMAGES), TypeError, r"the class PlainInput; give an instance, such as PlainInput\(\)"),
        (("PlainInput", CONV, IMAGES), TypeError, "'PlainInput'; it must be a spectrim.Factorization"),
        ((PlainInput(), IMAGES, CONV), TypeError, "given Tensor and Conv2d; give a layer and a tensor"),
        (
            (PlainInput(), nn.Conv2d(8, 12, 3), IMAGES),
            ValueError,
            r"float32 and torch.float64; both must be double: layer.double\(\)",
        ),
        ((PlainInput(), CONV, IMAGES.float()), ValueError, "both must be double"),
        ((PlainInput(), CONV, IMAGES[:2]), ValueError, "there are 2 examples; the check needs at least 4"),
        (
            (PlainInput(), nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)).double(), IMAGES),
            ValueError,
            "the check is of one layer that can be factorized, and the module has 2: Conv2d '0.0', Conv2d '0.1'",
        ),
        ((PlainInput(), nn.BatchNorm2d(8).double(), IMAGES), ValueError, "can be factorized, and the module has none"),
    ],
)
def test_a_check_that_is_called_wrongly_says_how_it_is_called(given, error, words):
    with pytest.raises(error, match=words):
        check_factorization(*given)


# --- rank selections


def searching(select, **body):
    return dataclass(frozen=True)(type("Theirs", (st.Search,), {"select": select, **body}))()


def cheapest(self, menu, budget, probe=None):
    return [int(row.frontier(budget.metric)[0]) for row in menu.layers]


def refusing(self, menu, budget, probe=None):
    if menu.least(budget.metric) > budget.fraction * menu.original.of(budget.metric):
        raise ValueError("no way")
    return cheapest(self, menu, budget)


@pytest.mark.parametrize(
    ("search", "words"),
    [
        (
            searching(lambda self, menu, budget, probe: None),
            "returned None; select() must return a list with the number of one option",
        ),
        (searching(lambda self, menu, budget, probe: {"a": 1}), "returned {'a': 1}; select() must return a list"),
        (searching(lambda self, menu, budget, probe: [0.5] * 4), "returned [0.5, 0.5, 0.5, 0.5]; select() must return a list"),
        (searching(lambda self, menu, budget, probe: "0000"), "returned '0000'; select() must return a list"),
        (searching(lambda self, menu, budget, probe: [0]), "chose 1 options for 4 layers"),
        (searching(lambda self, menu, budget, probe: [99] * 4), "chose option 99 of layer 'layer0', which has options 0 to 4"),
        (searching(lambda self, menu, budget, probe: [-1] * 4), "chose option -1 of layer 'layer0'"),
        (searching(cheapest), "which cannot be met; call menu.allowed(budget) first: it raises BudgetError"),
        (
            searching(refusing),
            "Theirs() raised ValueError for Keep(0.05, 'params'), which cannot be met (no way); call menu.allowed",
        ),
        (
            searching(cheapest, score="loud"),
            "looks at the score 'loud', which nothing computes; there are response, closed, cautious, energy, spectral",
        ),
    ],
)
def test_the_check_of_a_rank_selection_says_what_is_wrong(search, words):
    with pytest.raises(AssertionError, match=re.escape(words)):
        check_search(search)


def test_a_rank_selection_may_return_an_array_and_must_be_an_instance():
    check_search(searching(lambda self, menu, budget, probe: np.array(LeastFirst().select(menu, budget))))
    with pytest.raises(TypeError, match=r"the class LeastFirst; give an instance, such as LeastFirst\(\)"):
        check_search(LeastFirst)
    with pytest.raises(ZeroDivisionError):  # what fails for a budget that can be met is shown as it is
        check_search(searching(lambda self, menu, budget, probe: 1 // 0))
    menu = random_menu(0)
    assert LeastFirst().select(menu, st.Keep(1.0)) == [0] * len(menu.layers)


# --- plans, reports


def test_what_fails_inside_a_third_partys_method_is_shown_as_it_is():
    """The plan is not incomplete: the method is at fault."""

    @dataclass(frozen=True)
    class Faulty(PlainInput):
        def full_rank(self, layer):
            return layer.colour

    layer = LAYERS["plain"]
    text = st.Plan({"0": st.Option(layer, PlainInput(), 2)}, layer.cost).to_json()
    faulty = text.replace('"PlainInput"', '"Faulty"').replace(PlainInput.__module__, Faulty.__module__)
    with pytest.raises(AttributeError, match="colour"):
        st.Plan.from_json(faulty)
    for field in ("rank", "layer", "method", "kind"):
        with pytest.raises(ValueError, match="the plan is incomplete or has a field of the wrong kind"):
            st.Plan.from_json(text.replace(f'"{field}"', '"other"'))
    for wrong in ('"rank": "2"', '"rank": [2.5]', '"rank": null', '"rank": true'):
        with pytest.raises(ValueError, match="rank .* of layer '0' is not a whole number or a tuple of them"):
            st.Plan.from_json(text.replace('"rank": 2', wrong))
    with pytest.raises(ValueError, match="PlainInput does not take the options .*stepz.*: .*unexpected keyword"):
        st.Plan.from_json(text.replace('"steps"', '"stepz"'))
    assert parse("PlainInput", None, PlainInput.__module__) == PlainInput()


def test_a_plan_that_no_other_program_can_read_is_told_once(tmp_path):
    layer = LAYERS["plain"]
    here = dataclass(frozen=True)(type("Here", (PlainInput,), {"__module__": "__main__"}))()
    plan = st.Plan({name: st.Option(replace(layer, name=name), here, 2) for name in ("a", "b")}, layer.cost)
    with pytest.warns(
        UserWarning, match=r"Here was defined in the program that runs \(__main__\), so no other program"
    ) as told:
        text = plan.to_json()
    assert len(told) == 1 and told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plan.text() == text and st.Plan.from_json(text) == plan
        small = st.Config(methods=(here,), images=64)
        images = demo_images("calibration")[0][:64]
        result = st.compress(demo_model(), images[:1], budget=st.Keep(0.8), calibration=[images], config=small)
    with pytest.warns(UserWarning, match="Here was defined in the program that runs") as told:
        result.save(tmp_path / "run")
    assert len(told) == 1
    assert "chosen by Portfolio(limit=1.5) among Here" in str(result)
    usual = dataclasses.replace(result.report, config=st.Config().settings())
    own = dataclasses.replace(result.report, budget="the given plan")
    for report in (usual, own):
        assert not any(line.startswith("chosen by") for line in st.report.lines(report))


def test_a_probe_is_printed_in_a_line():
    seen = []

    def select(self, menu, budget, probe=None):
        seen.append(repr(probe))
        return LeastFirst().select(menu, budget)

    images = demo_images("calibration")[0][:192]
    config = st.Config(methods=(st.ChannelSVD(),), search=searching(select, images=64), images=64, batch=32)
    prepared = st.prepare(demo_model(), images[:1], calibration=list(images.split(32)), config=config)
    st.choose(prepared, st.Keep(0.6))
    assert seen == ["NetworkProbe(moving=32, judging=32)"]


# --- the command line


MAIN = "import json, sys; from spectrim import cli; print(*(cli.main(command) for command in json.loads(sys.argv[1])))"


def fresh(folder, *commands):
    """Run commands one after another in a process of their own, which has nothing of a third party in memory."""
    texts = json.dumps([list(map(str, command)) for command in commands])
    done = subprocess.run([sys.executable, "-c", MAIN, texts], capture_output=True, text=True, check=True, cwd=folder)
    *out, codes = done.stdout.splitlines()
    return [int(code) for code in codes.split()], "\n".join(out), " ".join(done.stderr.split())


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    """A run that a user made with a decomposition and a rank selection of their own, in the folder where these are."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "my_methods.py").write_text(BLOCKS["my_methods.py"] + "\n\ndef few():\n    return PlainInput(steps=6)\n")
    (folder / "my_searches.py").write_text(BLOCKS["my_searches.py"])
    more = ["--keep", "0.8", "--methods", "my_methods:few", "--search", "my_searches.py:LeastFirst", "--exclude", "layer3*"]
    codes, out, told = fresh(folder, compressing(files, "run", *more))
    assert codes == [0], told
    assert "chosen by LeastFirst() among PlainInput(steps=6)" in out
    return folder / "run"


def test_evaluate_imports_what_the_run_had(run, tmp_path):
    codes, out, told = fresh(tmp_path, ["evaluate", run, "--images", 50])
    assert codes == [0] and out.startswith("top-1"), told


def test_evaluate_takes_files_that_have_moved(run, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in run.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    report = json.loads((moved / "report.json").read_text())
    report["source"] |= {"folder": str(tmp_path / "gone")}
    (moved / "report.json").write_text(json.dumps(report))
    evaluate = ["evaluate", moved, "--images", 50]
    codes, _, told = fresh(tmp_path, evaluate, [*evaluate, "--methods", f"{run.parent}/my_methods.py:PlainInput"])
    assert codes == [2, 0]
    assert "there is no decomposition 'PlainInput'; it was defined in the module 'my_methods'" in told
    assert "say where it is with --methods my_module:PlainInput or --methods file.py:PlainInput" in told
    assert fresh(run.parent, evaluate)[0] == [0]  # from the current folder


def test_a_plan_is_read_with_what_it_needs_imported(run, files, tmp_path):
    plan, spec = run / "plan.json", f"{run.parent}/my_methods.py:PlainInput"
    compress = compressing(files, tmp_path / "again", "--plan", str(plan))
    train = training(files, tmp_path / "trained", "--plan", str(plan), "--every", "1", "--batch", "64")
    train += ["--methods", spec]
    codes, _, told = fresh(tmp_path, compress, [*compress, "--methods", spec], train)
    assert codes == [2, 0, 0], told
    assert f"the plan {str(plan)!r} cannot be used" in told and "--methods my_module:PlainInput" in told
    codes, _, told = fresh(tmp_path, *(["evaluate", tmp_path / name, "--images", 50] for name in ("again", "trained")))
    assert codes == [0, 0], told


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--methods", "nowhere:Mine"], "--methods: 'nowhere:Mine' cannot be imported: No module named 'nowhere'"),
        (["--search", "nowhere:Mine"], "--search: 'nowhere:Mine' cannot be imported: No module named 'nowhere'"),
        (
            ["--methods", "my_methods.PlainInput"],
            "no decomposition 'my_methods.PlainInput' (did you mean my_methods:PlainInput?)",
        ),
        (["--methods", "my_methods.py"], "(did you mean my_methods.py:MyMethod?)"),
        (["--search", "my_searches.LeastFirst"], "(did you mean my_searches:LeastFirst?)"),
        (["--search", "my_searches:Leest"], "--search: 'my_searches:Leest': my_searches has no callable 'Leest'"),
        (["--methods", "my_methods:grid"], "--methods: 'my_methods:grid' cannot be called without arguments: "),
        (["--methods", "my_methods:Fit"], "--methods: 'my_methods:Fit' made Fit; it must make a spectrim.Factorization"),
        (["--methods", "thawed.py:Thawed"], "--methods: Thawed is a dataclass that can be changed"),
        (
            ["--plan", "plan.json", "--methods", "nowhere:Mine"],
            "'plan.json' cannot be used: --methods: 'nowhere:Mine' cannot be",
        ),
        (["--plan", "plan.json", "--methods", "CP"], "--plan says what is done to each layer"),
        (["--plan", "plan.json", "--search", "Energy"], "--plan says what is done to each layer; leave --search, "),
    ],
)
def test_what_cannot_be_imported_is_told_with_its_flag(files, examples, capsys, more, words):
    (examples / "plan.json").write_text(st.Plan({}, st.Cost(1, 1)).to_json())
    thawed = BLOCKS["my_methods.py"].replace("(frozen=True)", "").replace("PlainInput", "Thawed")
    (examples / "thawed.py").write_text(thawed)
    budget = [] if "--plan" in more else ["--keep", "0.5"]
    assert cli.main(compressing(files, examples / "run", *budget, *more)) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert words in told and "torchvision:NAME" not in told
    assert not (examples / "run").exists()
