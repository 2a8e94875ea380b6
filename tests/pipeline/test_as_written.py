"""Networks as people write them: each is answered rightly, or refused in one sentence that says why; and stays as it was."""

import copy
import math
import threading
import types
from collections import defaultdict, namedtuple
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn import functional

import spectrim as st

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(1))
QUICK = st.Config(methods=(st.ChannelSVD(),))


def conv(inputs, outputs, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


class Plain(nn.Module):
    """Two convolutions and a head, with hooks to be overridden."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 12), nn.Linear(12, 5)

    def features(self, x):
        return torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3))

    def forward(self, x):
        return self.head(self.features(x))


def whole_rank(model, example, **options):
    """The network rebuilt and refitted at full rank, which must change nothing."""
    layers = st.find_layers(model, example)
    method = st.ChannelSVD()
    fitting = {layer.name: (method, method.full_rank(layer.convolution)) for layer in layers if method.fits(layer.convolution)}
    plan = st.plan_from(model, example, fitting)
    return (
        plan,
        lambda calibration: st.compress(model, example, plan=plan, calibration=calibration, config=st.Config(**options)).model,
    )


def error(model, small, *inputs):
    with torch.no_grad():
        wanted, found = model.eval()(*inputs), small.eval()(*inputs)
    return float((found - wanted).norm() / (wanted - wanted.mean(0)).norm())


class Branching(Plain):
    """Asks for the class of its layers."""

    def forward(self, x):
        for layer in (self.a, self.b):
            x = layer(x)
            x = torch.relu(x) if isinstance(layer, nn.Conv2d) else -x
        return self.head(x.mean((2, 3)))


class Siamese(Plain):
    """Joins both images along the batch."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(24, 5)

    def forward(self, x, y):
        return self.head(torch.cat(self.features(torch.cat([x, y])).chunk(2), 1))


class Overwriting(Plain):
    """Changes a layer's input in place after the layer has seen it, before its answer meets the shortcut."""

    def __init__(self):
        super().__init__()
        self.b, self.head = conv(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.a(x)
        y = self.b(x)
        return self.head((y + functional.relu_(x)).mean((2, 3)))


class Making(Overwriting):
    """Makes tensors on its way to the addition."""

    def forward(self, x):
        x = self.a(x) * torch.linspace(1, 2, 8) + torch.zeros(8, 1, 1)
        return self.head((self.b(x) + x).mean((2, 3)))


class Clips(Plain):
    """Four frames belong together."""

    def forward(self, x):
        x = torch.relu(self.a(x))
        x = x.unflatten(0, (-1, 4)).roll(1, 1).flatten(0, 1)
        return self.head(torch.relu(self.b(x)).mean((2, 3))).unflatten(0, (-1, 4)).mean(1)


@pytest.mark.parametrize(
    ("make", "inputs", "left"),
    [
        (Branching, (X,), {"a", "b"}),
        (Siamese, (torch.zeros_like(X), torch.zeros_like(X)), {"a", "b"}),
        (Overwriting, (X,), set()),
        (Making, (X,), set()),
        (Clips, (torch.randn(8, 3, 8, 8),), set()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_full_rank_changes_nothing_and_what_cannot_be_followed_is_left(make, inputs, left):
    torch.manual_seed(0)
    model, example = make(), inputs[0] if len(inputs) == 1 else inputs
    plan, refitted = whole_rank(model, example, gradient=make is not Overwriting)  # its forward has no backward
    assert left == {"a", "b"} - set(plan)
    real = tuple(DATA.roll(shift, 0) for shift in range(len(inputs)))
    small = refitted([real if len(real) > 1 else real[0]])
    assert error(model, small, *real) < 1e-3 and error(model, st.apply(plan, model), *real) < 1e-4
    skipped = st.inspect(model, example).skipped
    assert all("class, length or attributes" in skipped[name] or "2 streams of the batch" in skipped[name] for name in left)


class Scaled(Siamese):
    """An image and its mirror image, times a number."""

    def forward(self, x, scale):
        return super().forward(scale * x, scale * x.flip(1))


def test_a_number_among_the_inputs_stays_and_zeros_hide_no_streams():
    for scale in (torch.tensor(0.5), torch.tensor(0.0)):
        skipped = st.inspect(Scaled(), (X[:1], scale)).skipped
        assert "2 streams of the batch" in skipped["a"]


def test_hooks_that_change_values_run_once():
    torch.manual_seed(0)
    model = Plain()
    model.b.register_forward_hook(lambda module, args, y: 3 * y + 0.1)
    model.b.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
    plan, refitted = whole_rank(model, X)
    assert error(model, refitted([DATA]), DATA) < 1e-3 and error(model, st.apply(plan, model), DATA) < 1e-4


def test_noise_in_the_forward_is_told_from_a_missing_batch():
    class Noisy(Plain):
        def forward(self, x):
            return self.head(self.features(x + 0.5 * torch.randn_like(x)))

    assert all("draws random numbers" in reason for reason in st.inspect(Noisy(), X).skipped.values())


class Grid(Plain):
    """Makes a buffer in its first forward, counts its calls, and keeps what it saw."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.kept = None

    def forward(self, x):
        if not hasattr(self, "grid"):
            self.register_buffer("grid", torch.linspace(-1, 1, x.shape[-1]).expand(x.shape[-2], -1).clone())
        self.calls += 1
        self.kept = [self.features(x + self.grid)]
        return self.head(self.kept[0])


class Merging(nn.Linear):
    """Merges an adapter when it is put in eval mode, as LoRA layers do."""

    def __init__(self, inputs, outputs):
        self.merged = False
        super().__init__(inputs, outputs)
        self.adapter = nn.Parameter(torch.ones(outputs, inputs))

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * self.adapter.data
            self.merged = not mode
        return self


@pytest.mark.parametrize("action", [st.inspect, st.find_layers, st.cost, lambda m, x: st.plan_from(m, x, {})])
def test_nothing_of_the_users_network_changes(action):
    model = nn.Sequential(Grid(), nn.ReLU(), Merging(5, 5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    action(model, X)
    assert model.state_dict().keys() == before.keys() and model[0].kept is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules()) and not model[2].merged


@dataclass
class Answer:
    logits: torch.Tensor
    note: str = ""


Pair = namedtuple("Pair", "logits extra")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: [{"deep": (y, None)}],
        lambda y: defaultdict(list, logits=y),
        lambda y: Answer(y, "fine"),
        lambda y: Pair(y, 3),
        lambda y: {"maps": [y, y.square()], "count": 2},
    ],
)
def test_outputs_of_any_nesting(wrap):
    class Wrapped(Plain):
        def forward(self, x):
            return wrap(super().forward(x))

    result = st.compress(Wrapped(), X, budget=st.Keep(0.6), calibration=[DATA], config=QUICK)
    assert result.report.kept[1] <= 0.6 and math.isfinite(result.report.measured_harm)


@pytest.mark.parametrize(
    ("example", "items"),
    [
        (({"image": X, "size": 8},), [({"image": DATA, "size": 8},)]),
        ({"x": X, "flag": None}, [{"x": DATA, "flag": None}]),
        ((X, None), [(DATA, None)]),
        ((X, torch.ones(())), [DATA]),
    ],
)
def test_inputs_of_any_nesting(example, items):
    class Taking(Plain):
        def forward(self, x, flag=None):
            return super().forward(x["image"] if isinstance(x, dict) else x)

    result = st.compress(Taking(), example, budget=st.Keep(0.6), calibration=items, config=QUICK)
    assert result.report.kept[1] <= 0.6 and result.report.images == 24


def bound_elsewhere():
    model = Plain()
    model.forward = lambda x: model.head(model.features(x))
    return model


def hiding():
    model = Plain()
    model.modules = []
    return model


def locked():
    model = Plain()
    model.b.lock = threading.Lock()
    return model


class Asserting(Plain):
    def forward(self, x):
        assert x.shape[-1] == 224, "wrong size"
        return super().forward(x)


class Decoding(Plain):
    def forward(self, x):
        y = super().forward(x).sigmoid()
        y[..., :2] = y[..., :2] * 2
        return y


class Scalar(Plain):
    def forward(self, x):
        return super().forward(x), x.square().mean()


class Boxes(Plain):
    def forward(self, x):
        return [{"boxes": row.mean() * image[image > 1]} for row, image in zip(super().forward(x), x, strict=True)]


@pytest.mark.parametrize(
    ("make", "kind", "match"),
    [
        (bound_elsewhere, ValueError, "forward of the model was replaced by a function that holds the network itself"),
        (hiding, TypeError, "attribute 'modules', which hides"),
        (locked, TypeError, "cannot be copied, because of its attribute 'b.lock'"),
        (Asserting, ValueError, "does not go through the model: AssertionError: wrong size"),
        (Decoding, ValueError, "use gradient=False"),
        (Scalar, ValueError, r"a scalar \(0-dim\) tensor"),
        (Boxes, ValueError, "Config\\(harm=...\\)"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), ValueError, "'0.weight' is lazy"),
        (lambda: Plain().to("meta"), ValueError, "meta device"),
        (lambda: Plain().to(torch.float8_e4m3fn), ValueError, "in which nothing can be computed"),
    ],
)
def test_what_cannot_be_done_gets_one_sentence(make, kind, match):
    with pytest.raises(kind, match=match) as caught:
        st.compress(make(), X, budget=st.Keep(0.5), calibration=[DATA], config=QUICK)
    assert "\n" not in str(caught.value)


def test_a_forward_that_is_bound_again_is_copied_with_the_network():
    model = Plain()
    model.forward = types.MethodType(lambda self, x: 2 * Plain.forward(self, x), model)
    plan, refitted = whole_rank(model, X)
    assert set(plan) == {"a", "b", "head"} and error(model, refitted([DATA]), DATA) < 1e-3


class Masked(Plain):
    """Minus infinity by design, and one norm under two names."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))
        self.norm = nn.BatchNorm2d(8)
        self.again = self.norm
        self.register_buffer("view", torch.arange(6.0).expand(2, 6))

    def get_extra_state(self):
        return {"classes": ["a", "b"]}

    def set_extra_state(self, state):
        self.classes = state["classes"]

    def forward(self, x):
        return self.head(torch.relu(self.b(self.again(self.norm(self.a(x))))).mean((2, 3)))


@pytest.mark.parametrize("make", [Masked, Grid])
def test_any_state_is_saved_and_loaded(make, tmp_path):
    result = st.compress(make(), X, budget=st.Keep(0.6), calibration=[DATA], config=QUICK)
    again = st.load(result.save(tmp_path / "run"), make())
    torch.testing.assert_close(again(DATA), result.model.eval()(DATA), rtol=0, atol=0)
    assert any("not saved" in note for note in result.report.notes) == (make is Masked)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


class Dot(nn.Module):
    def forward(self, q):
        return functional.scaled_dot_product_attention(q, q, q)


@pytest.mark.parametrize(
    ("model", "shape", "macs"),
    [
        (nn.Sequential(nn.LSTM(64, 64, batch_first=True)), (8, 64), 8 * 4 * (64 * 64 + 64 * 64)),
        (nn.Sequential(nn.GRU(16, 16, batch_first=True)), (8, 16), 8 * 3 * (16 * 16 + 16 * 16)),
        (Attention(), (64, 32), 64 * 4 * 32 * 32 + 2 * 64 * 64 * 32),
        (nn.TransformerEncoderLayer(32, 4, 128, batch_first=True), (64, 32), 64 * (4 * 32 + 2 * 128) * 32 + 2 * 64 * 64 * 32),
        (Dot(), (4, 64, 8), 2 * 4 * 64 * 64 * 8),
    ],
    ids=["LSTM", "GRU", "attention", "encoder layer", "dot product"],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_costs_are_whole(model, shape, macs, batch):
    assert st.cost(model, torch.randn(batch, *shape)).macs == macs


def test_parts_that_do_not_grow_with_the_batch_count_whole_and_nothing_is_rounded():
    class Constant(Plain):
        def __init__(self):
            super().__init__()
            self.table, self.embed = nn.Parameter(torch.randn(1, 3)), nn.Linear(3, 1)

        def forward(self, x):
            return super().forward(x) + self.embed(self.table)

    macs = {batch: st.cost(Constant(), torch.randn(batch, 3, 8, 8)).macs for batch in (1, 2, 5)}
    assert set(macs.values()) == {st.cost(Plain(), X).macs + 3}


def test_an_operator_that_is_not_counted_is_named():
    class Fourier(nn.Module):
        def forward(self, x):
            return torch.fft.rfft(x).abs()

    with pytest.warns(UserWarning, match="not counted: aten::_fft_r2c"):
        st.cost(Fourier(), torch.randn(2, 8))


def test_harm_is_of_images_that_no_fit_saw_or_the_report_says_so():
    few = st.compress(Plain(), X, budget=st.Keep(0.6), calibration=[DATA], config=QUICK)
    assert any("too few to keep some away from the fits" in note for note in few.report.notes)
    many = torch.randn(64, 3, 8, 8)
    prepared = st.prepare(Plain(), X, calibration=[many], config=QUICK)
    assert sum(map(len, prepared.unseen)) == 16 and torch.equal(torch.cat(list(prepared.unseen)), many[48:])
    wide = nn.Sequential(nn.Flatten(), nn.Linear(192, 40), nn.ReLU(), nn.Linear(40, 5))
    notes = st.compress(wide, X, budget=st.Keep(0.6), calibration=[many], config=QUICK).report.notes
    assert any("48 images are few for 1" in note and "about 384 would do" in note for note in notes)


class Outputs(nn.Module):
    """A small network whose outputs are arranged by the test."""

    def __init__(self, arrange):
        super().__init__()
        self.stem, self.layer, self.arrange = conv(3, 8), conv(8, 6), arrange

    def forward(self, x):
        return self.arrange(self.layer(torch.relu(self.stem(x))))


@pytest.mark.parametrize("harm", [None, lambda found, wanted: (found - wanted).square().mean()], ids=["default", "own"])
@pytest.mark.parametrize("width", [8, 7], ids=["that divides the batch", "that does not"])
def test_outputs_with_the_batch_behind_are_refused(harm, width):
    """(T, N, C), as CTC wants it: harms would be a fraction of what they are, of T over N."""
    model, data = Outputs(lambda y: y.mean(2).permute(2, 0, 1)).eval(), torch.randn(32, 3, 8, width)
    with pytest.raises(ValueError, match="its batch is dimension 1, .* batch first, as y.movedim\\(1, 0\\)"):
        st.prepare(model, data[:1], calibration=[data], config=replace(QUICK, harm=harm))
    wrapped = nn.Sequential(model, nn.Module())
    wrapped[1].forward = lambda y: y.movedim(1, 0)
    assert st.prepare(wrapped, data[:1], calibration=[data], config=replace(QUICK, harm=harm)).menu.layers


def test_outputs_that_ones_own_harm_does_not_look_at_may_be_anything():
    def arrange(y):
        return y.mean((2, 3)), y.mean(), [torch.rand(1 + int(y.sum().abs() * 1e3) % 4, 4)], {"time": y.mean(2).permute(2, 0, 1)}

    def harm(found, wanted):
        return (found[0] - wanted[0]).square().mean() / wanted[0].square().mean()

    model, plain = Outputs(arrange).eval(), Outputs(lambda y: (y.mean((2, 3)),)).eval()
    plain.load_state_dict(model.state_dict())
    found, alone = (
        st.compress(each, X, budget=st.Keep(0.6), calibration=[DATA], config=replace(QUICK, harm=harm))
        for each in (model, plain)
    )
    assert found.plan == alone.plan and found.report.measured_harm == pytest.approx(alone.report.measured_harm)
    with pytest.raises(ValueError, match="returns a scalar"):
        st.compress(model, X, budget=st.Keep(0.6), calibration=[DATA], config=QUICK)


def test_a_module_of_python_among_the_attributes_is_shared():
    model = nn.Sequential(conv(3, 8), nn.Flatten(), nn.LazyLinear(5))
    model(X)
    model.config, model[0].tools = math, [{"library": functional}]
    result = st.compress(model, X, budget=st.Keep(0.6), calibration=[DATA], config=QUICK)
    assert result.model.config is math and result.plan


class Same(nn.Conv2d):
    """TensorFlow's padding, which depends on the size of the input."""

    def forward(self, x):
        pads = []
        for size, kernel, stride in zip(reversed(x.shape[2:]), reversed(self.kernel_size), reversed(self.stride), strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return functional.conv2d(functional.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardized(nn.Conv2d):
    """Weights of zero mean and unit variance."""

    def forward(self, x):
        flat = self.weight.flatten(1)
        weight = ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)).view_as(self.weight)
        return self._conv_forward(x, weight, self.bias)


class Dynamic(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight * x.mean(), self.bias)


@pytest.mark.parametrize("method", [st.ChannelSVD(), st.SpatialSVD(), st.Tucker2(), st.TensorTrain(), st.InputSVD()], ids=repr)
@pytest.mark.parametrize("kind", [Same, Standardized])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_in_disguise_are_exact_at_full_rank(method, kind, stride, tmp_path):
    torch.manual_seed(0)
    padding = {} if kind is Same else {"padding": 1}

    def make():
        return nn.Sequential(conv(3, 6), nn.ReLU(), kind(6, 8, 3, stride, **padding), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))

    model = make().eval()
    model(X)
    (layer,) = (layer for layer in st.find_layers(model, X) if layer.name == "2")
    assert layer.baked == (kind is Standardized) and bool(layer.pad) == (kind is Same and stride == 2)
    plan = st.plan_from(model, X, {"2": (method, method.full_rank(layer.convolution))})
    result = st.compress(model, X, plan=st.Plan.from_json(plan.to_json()), calibration=[DATA])
    assert error(model, result.model, DATA) < 1e-4 and error(model, st.apply(plan, model), DATA) < 1e-5
    assert st.cost(result.model, X) == result.plan.cost
    again = st.load(result.save(tmp_path / "run"), copy.deepcopy(model))
    assert torch.equal(again(DATA), result.model.eval()(DATA))


def test_a_weight_that_depends_on_the_input_is_left_with_its_reason():
    skipped = st.inspect(nn.Sequential(nn.Conv2d(3, 8, 3), Dynamic(8, 8, 1), nn.Flatten()), X).skipped
    assert "computes its weight from its input" in skipped["1"]


def test_many_wide_groups_take_little_memory():
    """Of 24 groups of 31 x 31 inputs only the average covariance is kept where the bound says so; the layer is still cut."""
    model = nn.Sequential(nn.Conv2d(3, 24, 4, 4), nn.Conv2d(24, 24, 15, padding=7, groups=24), nn.Flatten(), nn.Linear(384, 5))
    x = torch.randn(8, 3, 16, 16)
    config = st.Config(methods=(st.SpatialSVD(),), memory=64 * 400_000)
    prepared = st.prepare(model.eval(), x[:1], calibration=[x], config=config)
    assert prepared.moments["1"].pooled and prepared.moments["1"].covariance.shape == (1, 225, 225)
    assert not prepared.moments["0"].pooled
    plan = st.choose(prepared, st.Keep(0.8))
    realized = st.realize(prepared, plan)
    assert "1" in plan and "too many groups" in realized.decisions["1"]
    assert torch.isfinite(realized.model(x)).all()
