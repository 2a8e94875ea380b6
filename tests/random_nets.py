"""Random small networks of every kind of graph. The same description always makes the same structure."""

import copy
import random
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: (nn.BatchNorm1d, nn.InstanceNorm1d), 2: (nn.BatchNorm2d, nn.InstanceNorm2d), 3: (nn.BatchNorm3d, nn.InstanceNorm3d)}
ACTIVATIONS = (
    lambda: nn.ReLU(inplace=True),
    nn.ReLU,
    nn.GELU,
    lambda: nn.SiLU(inplace=True),
    nn.PReLU,
    nn.Tanh,
    lambda: nn.LeakyReLU(0.1, inplace=True),
    lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.3)),
    nn.Identity,
)


def groups(r, inputs, outputs):
    fitting = [g for g in range(1, inputs + 1) if not inputs % g and not outputs % g]
    return r.choice((1, 1, 1, r.choice(fitting)))


def conv(r, x, outputs=None, inputs=None, kind=None):
    """A convolution on x, or on as many other channels, that keeps the spatial sizes."""
    inputs, sizes = inputs or x.shape[1], x.shape[2:]
    outputs = outputs or inputs
    dims = len(sizes)
    same = r.random() < 0.25
    kernel = [r.choice((1, 3, 3, 5, *((2, 4) if same else ()))) for _ in sizes]
    dilation = [r.choice((1, 1, 2)) for _ in sizes]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    wraps = all(n < size for n, size in zip(reach, sizes, strict=True))
    mode = r.choice(("zeros", "zeros", "reflect", "replicate", "circular")) if wraps else "zeros"
    options = {"dilation": dilation, "groups": groups(r, inputs, outputs), "bias": r.random() < 0.6, "padding_mode": mode}
    return (kind or CONV[dims])(inputs, outputs, kernel, padding="same" if same else [n // 2 for n in reach], **options)


def free(r, x):
    """A convolution of any stride, and of any other number of channels."""
    inputs, outputs = x.shape[1], r.randint(1, 12)
    axes = [
        [(k, s, p, d) for k in (1, 2, 3, 4) for s in (1, 2, 3) for p in (0, 1, 2) for d in (1, 2) if n + 2 * p > d * (k - 1)]
        for n in x.shape[2:]
    ]
    kernel, stride, padding, dilation = zip(*map(r.choice, axes), strict=True)
    options = {"groups": groups(r, inputs, outputs), "bias": r.random() < 0.6}
    return CONV[len(axes)](inputs, outputs, kernel, stride, padding, dilation, **options)


def transposed(r, x):
    inputs, outputs, sizes = x.shape[1], r.randint(1, 12), x.shape[2:]
    kernel, stride, dilation = ([r.choice(numbers) for _ in sizes] for numbers in ((1, 2, 3), (1, 2), (1, 1, 2)))
    out = [r.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True)]
    padding = [
        r.choice([p for p in (0, 1) if (n - 1) * s - 2 * p + d * (k - 1) + o >= 0])
        for n, k, s, d, o in zip(sizes, kernel, stride, dilation, out, strict=True)
    ]
    given = {"groups": groups(r, inputs, outputs), "bias": r.random() < 0.6, "dilation": dilation}
    return TRANSPOSED[len(sizes)](inputs, outputs, kernel, stride, padding, out, **given)


def norm(r, x):
    channels = x.shape[1]
    batch, instance = NORMS[x.ndim - 2]
    flat = x[0, 0].numel() > 1
    others = [lambda: nn.GroupNorm(1, channels), nn.Identity, *([lambda: instance(channels, affine=True)] if flat else [])]
    return r.choice((lambda: batch(channels), lambda: batch(channels), lambda: batch(channels), *others))()


def standardized(dims):
    """A convolution whose weight has zero mean and unit variance."""

    class Standardized(CONV[dims]):
        def forward(self, x):
            flat = self.weight.flatten(1)
            weight = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True, correction=0) + 1e-3)
            return self._conv_forward(x, weight.view_as(self.weight), self.bias)

    return Standardized


def padded(dims):
    """A convolution that puts zeros behind its input, as TensorFlow does for even strides."""

    class Padded(CONV[dims]):
        def forward(self, x):
            return super().forward(functional.pad(x, [0, 1] * dims))

    return Padded


def activated(dims):
    """A convolution that goes on with a norm and an activation, in place or not."""

    class Activated(CONV[dims]):
        def forward(self, x):
            x = super().forward(x)
            x = x if self.norm is None else self.norm(x)
            return x.relu_() if self.activation is None else self.activation(x)

    return Activated


def doing_more(r, x):
    layer = conv(r, x, kind=activated(x.ndim - 2))
    layer.norm = r.choice((None, norm(r, x)))
    layer.activation = r.choice((None, functional.silu, functional.leaky_relu, nn.PReLU(), nn.ReLU(inplace=True)))
    return {"a": layer, "b": conv(r, x)}


class Block(nn.Module):
    """Modules, and what to do with them."""

    def __init__(self, kind, seed, x):
        super().__init__()
        make, self.run = KINDS[kind]
        for name, module in make(random.Random(seed), x).items():
            setattr(self, name, module)

    def forward(self, x):
        return self.run(self, x)


def tokens(x):
    return x.flatten(2).transpose(1, 2)


def back(y, x):
    return y.transpose(1, 2).reshape(len(x), -1, *x.shape[2:])


def plain(r, x, outputs=None, layer=None):
    layer = layer or conv(r, x, outputs)
    return {"a": layer, "n": norm(r, layer(x)), "f": r.choice(ACTIVATIONS)()}


def scaled(layer):
    layer.register_forward_hook(lambda module, args, y: 1.5 * y)
    layer.register_forward_pre_hook(lambda module, args: (args[0] + 0.1,))
    return layer


def tied(r, x):
    made = plain(r, x)
    other = copy.deepcopy(made["a"])
    other.weight = made["a"].weight
    return made | {"b": other}


def attention(r, x):
    return {"a": nn.MultiheadAttention(x.shape[1], 1, batch_first=True), "n": nn.LayerNorm(x.shape[1])}


def lists(r, x):
    return {"l": nn.ModuleList(conv(r, x) for _ in range(2)), "d": nn.ModuleDict({"one": conv(r, x), "other": conv(r, x)})}


def shared_norm(r, x):
    return {"a": conv(r, x), "b": conv(r, x), "n": NORMS[x.ndim - 2][0](x.shape[1])}


def inner(r, x):
    return {"a": conv(r, x), "b": conv(r, x), "n": norm(r, x), "m": norm(r, x), "f": r.choice(ACTIVATIONS)()}


def split(r, x):
    c = x.shape[1] - x.shape[1] // 2
    return {"a": conv(r, x, inputs=c), "f": r.choice(ACTIVATIONS)()}


def mlp(r, x):
    c, wide = x.shape[1], r.randint(1, 16)
    return {"n": nn.LayerNorm(c), "a": nn.Linear(c, wide, bias=r.random() < 0.5), "b": nn.Linear(wide, c)}


def gate(r, x):
    c, few = x.shape[1], max(1, x.shape[1] // 2)
    linear = r.random() < 0.5
    return {"a": nn.Linear(c, few), "b": nn.Linear(few, c)} if linear else {"c": CONV[x.ndim - 2](c, c, 1)}


def gated(m, x):
    if hasattr(m, "c"):
        return x * torch.sigmoid(m.c(x.mean(list(range(2, x.ndim)), keepdim=True)))
    scale = torch.sigmoid(m.b(torch.relu(m.a(x.flatten(2).mean(2)))))
    return x * scale.view(*scale.shape, *(1,) * (x.ndim - 2))


def into(m, x):
    y = m.m(m.b(m.f(m.n(m.a(x)))))
    y += x
    return y.relu_()


def splitting(m, x):
    kept, changed = x.split((x.shape[1] // 2, x.shape[1] - x.shape[1] // 2), 1)
    return torch.cat((kept, m.f(m.a(changed))), 1)


def siamese(m, x):
    a, b = m.a(torch.cat((x, x.flip(1)))).chunk(2)
    return a + b


def recurrent(m, x):
    y = m.b(m.a(tokens(x)[:, :6])[0][:, -1])
    return x + y.view(*y.shape, *(1,) * (x.ndim - 2))


def each(m, x):
    for layer in (*m.l, *m.d.values()):
        x = torch.relu(layer(x)) + x
    return x


def cast(m, x):
    with torch.autocast("cpu", torch.bfloat16):
        return m.f(m.n(m.a(x))).to(x.dtype)


KINDS = {
    "plain": (plain, lambda m, x: m.f(m.n(m.a(x)))),
    "free": (lambda r, x: plain(r, x, layer=free(r, x)), lambda m, x: m.f(m.n(m.a(x)))),
    "transposed": (lambda r, x: plain(r, x, layer=transposed(r, x)), lambda m, x: m.f(m.n(m.a(x)))),
    "residual": (plain, lambda m, x: torch.relu(m.n(m.a(x)) + x)),
    "bottleneck": (inner, lambda m, x: m.f(x + m.m(m.b(m.f(m.n(m.a(x))))))),
    "two branches": (inner, lambda m, x: m.f(m.n(m.a(x)) + m.m(m.b(x)))),
    "into": (inner, into),
    "concatenate": (lambda r, x: plain(r, x, r.randint(1, 4)), lambda m, x: torch.cat((x, m.f(m.n(m.a(x)))), 1)),
    "split": (split, splitting),
    "twice": (plain, lambda m, x: m.a(m.f(m.n(m.a(x))))),
    "tied": (tied, lambda m, x: m.b(m.f(m.n(m.a(x))))),
    "shared norm": (shared_norm, lambda m, x: m.n(m.b(torch.relu(m.n(m.a(x)))))),
    "lists": (lists, each),
    "alias": (lambda r, x: dict.fromkeys(("a", "other"), conv(r, x)) | {"unused": conv(r, x)}, lambda m, x: m.other(x).tanh()),
    "standardized": (lambda r, x: plain(r, x, layer=conv(r, x, kind=standardized(x.ndim - 2))), lambda m, x: m.f(m.n(m.a(x)))),
    "padded": (lambda r, x: plain(r, x, layer=conv(r, x, kind=padded(x.ndim - 2))), lambda m, x: m.f(m.n(m.a(x)))),
    "activated": (doing_more, lambda m, x: m.b(m.a(x))),
    "weight norm": (lambda r, x: {"a": parametrizations.weight_norm(conv(r, x)), "b": conv(r, x)}, lambda m, x: m.b(m.a(x))),
    "spectral norm": (
        lambda r, x: {"a": parametrizations.spectral_norm(conv(r, x)), "b": conv(r, x)},
        lambda m, x: m.b(m.a(x)),
    ),
    "mlp": (mlp, lambda m, x: x + back(m.b(functional.gelu(m.a(m.n(tokens(x))))), x)),
    "attention": (attention, lambda m, x: x + back(m.a(*[m.n(tokens(x))] * 3, need_weights=False)[0], x)),
    "LSTM": (lambda r, x: {"a": nn.LSTM(x.shape[1], 6, batch_first=True), "b": nn.Linear(6, x.shape[1])}, recurrent),
    "gate": (gate, gated),
    "hooks": (lambda r, x: plain(r, x, layer=scaled(conv(r, x))), lambda m, x: m.f(m.n(m.a(x)))),
    "frozen": (lambda r, x: {"a": conv(r, x).requires_grad_(False), "b": conv(r, x)}, lambda m, x: m.b(m.a(x).relu_())),
    "siamese": (plain, siamese),
    "read directly": (plain, lambda m, x: m.f(m.n(m.a(x))) * m.a.weight.sum()),
    "checkpoint": (plain, lambda m, x: checkpoint(lambda y: m.f(m.n(m.a(y))), x, use_reentrant=False)),
    "functional": (plain, lambda m, x: functional.dropout(m.f(m.n(m.a(x))), 0.5, m.training)),
    "upsample": (plain, lambda m, x: functional.interpolate(m.f(m.n(m.a(x))), scale_factor=2)),
    "autocast": (plain, cast),
    "channel views": (inner, lambda m, x: m.f(m.a(x.flip(1)).roll(1, 1)) - 0.5 * m.n(m.b(x[:, :].clone()))),
}


@dataclass
class Answer:
    logits: Any
    note: str = "fine"


Pair = namedtuple("Pair", "logits extra")
WRAPS = {
    "tensor": lambda y: y,
    "dict": lambda y: {"logits": y, "count": 2},
    "list": lambda y: [None, (y, {"map": y.square()})],
    "dataclass": Answer,
    "namedtuple": lambda y: Pair(y, None),
}
HEADS = {
    "pool": (lambda x: nn.Linear(x.shape[1], 5), lambda m, x: m(x.flatten(2).mean(2))),
    "flatten": (
        lambda x: nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 6), nn.ReLU(), nn.Linear(6, 4)),
        lambda m, x: m(x),
    ),
    "view": (lambda x: nn.Linear(x[0].numel(), 5, bias=False), lambda m, x: m(x.reshape(len(x), -1))),
    "map": (lambda x: CONV[x.ndim - 2](x.shape[1], 3, 1), lambda m, x: m(x)),
    "tokens": (lambda x: nn.Linear(x.shape[1], 3), lambda m, x: m(tokens(x))),
    "scalar": (lambda x: nn.Linear(x.shape[1], 1), lambda m, x: m(x.flatten(2).mean(2))[:, 0]),
}
INPUTS = {
    "one": lambda x, y: x,
    "tuple": lambda x, y: (x,),
    "two": lambda x, y: (x, y),
    "dict": lambda x, y: {"y": y, "x": x},
    "None": lambda x, y: (x, None),
    "number": lambda x, y: {"x": x, "y": 0.5},
    "constant": lambda x, y: (x, torch.tensor(0.5).to(x)),
    "nested": lambda x, y: ({"image": x, "size": 8},),
    "list": lambda x, y: ([x, y],),
}


class Network(nn.Module):
    """A stem for each input, blocks, and a head."""

    def __init__(self, described):
        super().__init__()
        self.d = described
        r, sizes = random.Random(described["seed"]), described["sizes"]
        x = torch.zeros(2, 3, *sizes)
        self.stem = conv(r, x, described["channels"])
        self.second = conv(r, x, described["channels"])
        self.blocks = nn.Sequential()
        with torch.no_grad():
            x = self.stem(x)
            for kind, seed in described["blocks"]:
                self.blocks.append(Block(kind, seed, x))
                x = self.blocks[-1](x)
                if x[0].numel() > 1000:
                    break
        self.head = HEADS[described["head"]][0](x)
        if "buffers" in described["traits"]:
            self.register_buffer("phases", torch.complex(torch.tensor([1.0, -0.0]), torch.tensor([-0.0, 2.0])))
            self.register_buffer("table", torch.arange(3).expand(2, 3))
            self.register_buffer("calls", torch.zeros((), dtype=torch.long), persistent=False)

    def forward(self, x, y=None):
        if isinstance(x, dict):
            x = x["image"]
        if isinstance(x, list):
            x, y = x
        if "in place" in self.d["traits"]:
            x.mul_(0.5).sub_(0.1)
        if "buffers" in self.d["traits"]:
            self.calls += 1
        x = self.stem(x)
        if isinstance(y, torch.Tensor) and y.ndim:
            x = x + self.second(y)
        elif y is not None:
            x = x * y
        x = self.blocks(x)
        x = x.to(next(self.head.parameters()).dtype)
        return WRAPS[self.d["wrap"]](HEADS[self.d["head"]][1](self.head, x))
