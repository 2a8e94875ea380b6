"""Examples in the docstrings of targets, timing and bench run."""

import doctest
import importlib

import pytest

FILES = [
    "core.bench",
    "pipeline.bench",
    *(f"targets.{name}" for name in ("executorch", "onnxruntime", "openvino", "timing", "torch")),
]


@pytest.mark.parametrize("name", FILES)
def test_examples_of_docstrings(name):
    found = doctest.testmod(importlib.import_module(f"spectrim.{name}"))
    assert found.attempted and not found.failed
