"""spectrim makes trained convolutional networks smaller and faster by low-rank factorization."""

import importlib
import logging
import typing

from spectrim import integrations as integrations
from spectrim.core.bench import Bench, BenchRow, Latency, Verdict
from spectrim.core.cost import AtMost, BudgetError, Cost, Keep, MaxDrop
from spectrim.core.export import Export, Match, Preprocess
from spectrim.core.factorization import Factorization, Fit, Moments, Rank
from spectrim.core.figures import Try
from spectrim.core.layer import Layer
from spectrim.core.menu import LayerMenu, Menu
from spectrim.core.plan import Option, Plan
from spectrim.core.records import Report, Training
from spectrim.core.score import Measurement, Score
from spectrim.core.search import Probe, QuadraticModel, Search
from spectrim.factorize import CP, ChannelSVD, InputSVD, PivotSVD, SpatialSVD, TensorTrain, TiledSVD, Tucker2
from spectrim.factorize.algebra import harm, regress_last, symmetric_roots
from spectrim.factorize.parts import grid, pointwise, spatial
from spectrim.network.accuracy import Accuracy
from spectrim.network.counting import cost
from spectrim.network.surgery import apply, plan_from
from spectrim.network.survey import find_layers
from spectrim.pipeline.account import account
from spectrim.pipeline.bench import bench
from spectrim.pipeline.choose import choose
from spectrim.pipeline.compress import compress
from spectrim.pipeline.config import Config
from spectrim.pipeline.export import export
from spectrim.pipeline.inspect import inspect
from spectrim.pipeline.maxdrop import maxdrop
from spectrim.pipeline.prepare import Prepared, prepare
from spectrim.pipeline.realize import Realized, realize
from spectrim.pipeline.result import Result, load
from spectrim.refit.reconstruct import Reconstruct
from spectrim.search import ALDS, VBMF, Energy, Greedy, Interaction, Knapsack, Portfolio, Similarity, Uniform
from spectrim.search.level import equal_level
from spectrim.targets.base import Session, Target
from spectrim.targets.executorch import ExecuTorch
from spectrim.targets.onnxruntime import OnnxRuntime
from spectrim.targets.openvino import OpenVINO
from spectrim.targets.torch import Torch
from spectrim.train import Distortion, Recipe, Schedule, fit, loss_along
from spectrim.version import __version__ as __version__

logging.getLogger("spectrim").addHandler(logging.NullHandler())  # who wants to read it adds another

if typing.TYPE_CHECKING:
    from spectrim import testing as testing
else:

    def __getattr__(name: str) -> typing.Any:
        """Import `spectrim.testing`, which only authors of methods need, when it is asked for."""
        if name != "testing":
            raise AttributeError(f"module 'spectrim' has no attribute {name!r}")
        return importlib.import_module("spectrim.testing")


__all__ = [
    "ALDS",
    "CP",
    "VBMF",
    "Accuracy",
    "AtMost",
    "Bench",
    "BenchRow",
    "BudgetError",
    "ChannelSVD",
    "Config",
    "Cost",
    "Distortion",
    "Energy",
    "ExecuTorch",
    "Export",
    "Factorization",
    "Fit",
    "Greedy",
    "InputSVD",
    "Interaction",
    "Keep",
    "Knapsack",
    "Latency",
    "Layer",
    "LayerMenu",
    "Match",
    "MaxDrop",
    "Measurement",
    "Menu",
    "Moments",
    "OnnxRuntime",
    "OpenVINO",
    "Option",
    "PivotSVD",
    "Plan",
    "Portfolio",
    "Prepared",
    "Preprocess",
    "Probe",
    "QuadraticModel",
    "Rank",
    "Realized",
    "Recipe",
    "Reconstruct",
    "Report",
    "Result",
    "Schedule",
    "Score",
    "Search",
    "Session",
    "Similarity",
    "SpatialSVD",
    "Target",
    "TensorTrain",
    "TiledSVD",
    "Torch",
    "Training",
    "Try",
    "Tucker2",
    "Uniform",
    "Verdict",
    "account",
    "apply",
    "bench",
    "choose",
    "compress",
    "cost",
    "equal_level",
    "export",
    "find_layers",
    "fit",
    "grid",
    "harm",
    "inspect",
    "load",
    "loss_along",
    "maxdrop",
    "plan_from",
    "pointwise",
    "prepare",
    "realize",
    "regress_last",
    "spatial",
    "symmetric_roots",
]
