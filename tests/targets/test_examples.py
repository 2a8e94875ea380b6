"""Examples in the docstrings of targets, timing, bench and export run."""

import doctest
import importlib

import pytest

FILES = [
    "core.bench",
    "core.export",
    "core.score",
    "pipeline.bench",
    "pipeline.export",
    *(f"targets.{name}" for name in ("executorch", "onnxruntime", "openvino", "timing", "torch")),
]


@pytest.mark.parametrize("name", FILES)
def test_examples_of_docstrings(name):
    found = doctest.testmod(importlib.import_module(f"spectrim.{name}"))
    assert found.attempted and not found.failed
