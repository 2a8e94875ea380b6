"""What the tests of training begin with: a settled network, its images and labels, plans of half the rank, and plain steps."""

import torch
from torch.nn import functional

import spectrim as st
from nets import Residual, settle

CONVOLUTIONS = ("conv1", "conv2", "conv3")


def network(count=64):
    torch.manual_seed(0)
    x = torch.randn(count, 3, 8, 8)
    return settle(Residual(), x), x, torch.arange(count) % 5


def plan_of(model, x, method=None, layers=CONVOLUTIONS):
    found = {layer.name: layer for layer in st.find_layers(model, x[:1])}
    method = method or st.ChannelSVD()
    ranks = {name: method.ranks(found[name]) for name in layers}
    return st.plan_from(model, x[:1], {name: (method, ranks[name][len(ranks[name]) // 2]) for name in layers})


def steps(model, x, y, count, distortion=None, optimizer=None):
    """Make plain steps of SGD; return the optimizer, so that further ones can follow."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(count):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if distortion is not None:
            distortion.step()
    return optimizer


def same(first, second):
    """Return whether two networks hold the same numbers, bit by bit."""
    return all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
