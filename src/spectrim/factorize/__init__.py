"""The decompositions, one a file."""

from spectrim.factorize.channel import ChannelSVD
from spectrim.factorize.cp import CP
from spectrim.factorize.input import InputSVD
from spectrim.factorize.pivot import PivotSVD
from spectrim.factorize.spatial import SpatialSVD
from spectrim.factorize.tiled import TiledSVD
from spectrim.factorize.tt import TensorTrain
from spectrim.factorize.tucker import Tucker2

# These compete unless others are named. ChannelSVD has PivotSVD's kernels, costs more MACs and takes less time.
USUAL = (PivotSVD(), ChannelSVD(), SpatialSVD(), SpatialSVD(axis=1), CP(depthwise="kernel"))

__all__ = ["CP", "ChannelSVD", "InputSVD", "PivotSVD", "SpatialSVD", "TensorTrain", "TiledSVD", "Tucker2"]
