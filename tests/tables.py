"""What tests go through: every decomposition, every rank selection, and which decomposition can take which geometry."""

from torch import nn

import spectrim as st
from nets import GEOMETRIES, layer_and_input

METHODS = (
    st.ChannelSVD(),
    st.PivotSVD(),
    st.InputSVD(),
    st.SpatialSVD(),
    st.SpatialSVD(axis=1),
    st.SpatialSVD(axis=2),
    st.Tucker2(),
    st.CP(),
    st.CP(depthwise="kernel"),
    st.TensorTrain(),
    st.TiledSVD(),
    st.TiledSVD(rows=4, columns=1),
    st.TiledSVD(rows=1, columns=3),
)
PLANAR = tuple(method for method in METHODS if method != st.SpatialSVD(axis=2))  # for kernels of two axes
SEARCHES = (st.ALDS, st.Energy, st.Greedy, st.Interaction, st.Knapsack, st.Portfolio, st.Similarity, st.Uniform, st.VBMF)


def layer_of(geometry):
    """Return what a decomposition sees of a geometry."""
    module, x = layer_and_input(geometry)
    (layer,) = st.find_layers(nn.Sequential(module), x)
    return layer.convolution


LAYERS = {name: layer_of(name) for name in GEOMETRIES}


def fitting(methods=METHODS, geometries=GEOMETRIES):
    """Return the pairs of a method and a geometry's name of which the method can take the layer."""
    return [(method, name) for method in methods for name in geometries if method.fits(LAYERS[name])]


def pair(value):
    """Name a method or a geometry in a test's name."""
    return value if isinstance(value, str) else repr(value)
