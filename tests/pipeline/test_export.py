"""Files for devices: each answers as the network when its own runtime reads it, says what it is, and replaces nothing by accident."""

import json
import os
from importlib.util import find_spec

import pytest
import torch
from torch import nn

import spectrim as st
from nets import Residual
from spectrim.pipeline import export as module
from spectrim.pipeline.export import FORMATS
from spectrim.targets import executorch

METHODS = [
    st.ChannelSVD(),
    st.PivotSVD(),
    st.InputSVD(),
    st.SpatialSVD(),
    st.Tucker2(),
    st.CP(),
    st.CP(depthwise="kernel"),
    st.TensorTrain(),
    st.TiledSVD(),
]
generator = torch.Generator().manual_seed(0)
x = torch.randn(6, 3, 8, 8, generator=generator)
IMAGES = torch.randint(0, 256, (20, 8, 8, 3), generator=generator, dtype=torch.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def missing(suffix, quantize=None):
    """What is not installed of what a format needs."""
    form = FORMATS[suffix]
    extra = [form.int8[1]] if quantize and form.int8 else []
    return form.target.missing() + [name for name in extra if find_spec(name) is None]


def formats(quantize=None):
    """Every format, skipped where its runtime is not installed."""
    found = [suffix for suffix, form in FORMATS.items() if quantize is None or form.int8]
    skipped = {suffix: missing(suffix, quantize) for suffix in found}
    marks = {s: pytest.mark.skipif(bool(names), reason=f"{', '.join(names)} not installed") for s, names in skipped.items()}
    return pytest.mark.parametrize("suffix", [pytest.param(suffix, marks=marks[suffix]) for suffix in found])


def onnx_oracle(path, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = {entry: text for entry, text in session.get_modelmeta().custom_metadata_map.items()}
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]), found


def openvino_oracle(path, inputs):
    import openvino

    model = openvino.Core().read_model(path)
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = {name: str(value.astype(str)) for name, value in model.get_rt_info()["spectrim"].items()}
    return torch.from_numpy(compiled([inputs.numpy()])[0].copy()), found


def torch_oracle(path, inputs):
    extra = {"spectrim.json": ""}
    program = torch.export.load(path, extra_files=extra)
    return program.module()(inputs).detach(), json.loads(extra["spectrim.json"])


def executorch_oracle(path, inputs):
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    forward = program.load_method("forward")
    found = [forward.execute([row.clone()])[0].clone() for row in inputs.split(1)]
    return torch.cat(found), json.loads(program.load_method("spectrim").execute([])[0])


ORACLES = {".onnx": onnx_oracle, ".xml": openvino_oracle, ".pt2": torch_oracle, ".pte": executorch_oracle}


def close(found, model, inputs, tolerance):
    with torch.no_grad():
        wanted = model.eval()(inputs)
    return float((found - wanted).norm() / wanted.norm()) < tolerance


@pytest.fixture(scope="module")
def factorized():
    """A network with a layer for each decomposition, and its plan."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), *(nn.Conv2d(16, 16, 3, padding=1) for _ in METHODS)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 12)).eval()
    by_name = {layer.name: layer.convolution for layer in st.find_layers(model, x)}
    choices = {str(1 + i): (method, _middle(method, by_name[str(1 + i)])) for i, method in enumerate(METHODS)}
    choices[str(len(layers) + 3)] = (st.TensorTrain(), _middle(st.TensorTrain(), by_name[str(len(layers) + 3)]))
    plan = st.plan_from(model, x, choices)
    return st.apply(plan, model), plan


def _middle(method, layer):
    ranks = list(method.candidates(layer))
    return ranks[len(ranks) // 2]


@formats()
def test_all_decompositions_go_into_every_format(suffix, factorized, tmp_path):
    model, plan = factorized
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = st.export(model, x[:1], tmp_path / f"small{suffix}", calibration=[x], plan=plan)
    answer, metadata = ORACLES[suffix](tmp_path / f"small{suffix}", x)  # of another size than the example
    assert close(answer, model, x, 1e-4) and found.difference < 1e-4 and found.agreement == 1 and found.images == 6
    assert st.Plan.from_json(metadata["plan"]) == plan
    assert json.loads(metadata["versions"]) == found.versions and found.versions["spectrim"] == st.__version__
    assert found.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    batch = 1 if suffix == ".pte" else "batch"
    assert found.inputs[0].endswith(f"float32 ({batch}, 3, 8, 8)") and found.outputs == (f"output float32 ({batch}, 12)",)


@formats()
def test_images_go_in_and_probabilities_of_classes_come_out(suffix, tmp_path):
    model = Residual(width=8).eval()
    inputs = (IMAGES.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    labels = ["a", "b", "é", "d", "e f"]
    path = tmp_path / f"small{suffix}"
    found = st.export(model, inputs[:1], path, calibration=[inputs], preprocess=st.Preprocess(MEAN, STD), labels=labels)
    answer, metadata = ORACLES[suffix](path, IMAGES)
    assert close(answer, with_softmax(model), inputs, 1e-4) and json.loads(metadata["labels"]) == labels
    assert json.loads(metadata["preprocess"]) == {"input": "uint8 NHWC", "mean": list(MEAN), "std": list(STD)}
    assert "image uint8 (" in found.inputs[0] and str(path) in str(found) and "0.001" in str(found)


def with_softmax(model):
    return nn.Sequential(model, nn.Softmax(1))


@formats("int8")
@pytest.mark.filterwarnings("ignore")  # of quantizers
def test_int8_is_smaller_and_told_beside_the_float_file(suffix, factorized, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten())
    model = nn.Sequential(*model, nn.Linear(1024, 5)).eval()
    images = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    path = tmp_path / f"small{suffix}"
    found = st.export(model, x[:1], path, calibration=[(images, torch.zeros(40))], quantize="int8")
    answer, _ = ORACLES[suffix](path, images)
    assert found.unquantized.difference < 1e-4 and found.bytes < found.unquantized.bytes / 1.5
    with torch.no_grad():
        wanted = model(images)
    assert float((answer - wanted).norm() / wanted.norm()) == pytest.approx(found.difference, rel=0.2)
    assert 1e-4 < found.difference < 0.1 and found.agreement == float((answer.argmax(1) == wanted.argmax(1)).double().mean())
    assert "int8" in str(found) and found.tolerance == module.TOLERANCES["int8"] and "int8" in found._repr_html_()
    small = factorized[0]
    assert st.export(small, x[:1], tmp_path / f"two{suffix}", calibration=[images], quantize="int8").difference < 0.3


@formats("int8")
@pytest.mark.filterwarnings("ignore")  # of quantizers
def test_channels_that_were_moved_and_put_beside_others_in_int8(suffix, tmp_path):
    class Fire(nn.Module):
        def __init__(self):
            super().__init__()
            self.squeeze, self.one, self.three = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 16, 3, padding=1)

        def forward(self, x):
            x = self.squeeze(x).relu()
            return torch.cat([self.one(x).relu(), self.three(x).relu()], 1)

    torch.manual_seed(0)
    model, images = Fire().eval(), torch.randn(40, 3, 8, 8)
    nn.init.zeros_(model.three.bias)
    small = st.apply(st.plan_from(model, x, {"three": (st.PivotSVD(), 6)}), model)
    found = st.export(small, x[:1], tmp_path / f"fire{suffix}", calibration=[images], quantize="int8")
    assert 1e-4 < found.difference < 0.15


def sound():
    """Norms of 1-D maps: one that a convolution takes in, and two that none does."""
    torch.manual_seed(0)
    layers = [nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8), nn.Conv1d(8, 6, 1), nn.Tanh()]
    model = nn.Sequential(*layers, nn.BatchNorm1d(6, affine=False)).train()
    model(2 + torch.randn(64, 4, 20))
    return model.eval()


def test_norms_of_sound_that_no_convolution_takes_in_are_products_and_sums():
    model, inputs = sound(), torch.randn(5, 4, 20)
    network = executorch._rewritten(torch.export.export(model, (inputs,)))
    called = [str(node.target) for node in network.graph.nodes if node.op == "call_function"]
    assert (
        called.count("aten.batch_norm.default") == 1 and called.count("aten.mul.Tensor") == called.count("aten.add.Tensor") == 2
    )
    torch.testing.assert_close(network(inputs), model(inputs))


@pytest.mark.parametrize(("size", "pooled"), [(1, True), ((2, 3), True), (4, False)])
def test_adaptive_maxima_of_equal_parts_are_those_of_windows(size, pooled):
    model, inputs = nn.Sequential(nn.AdaptiveMaxPool2d(size), nn.Flatten()), torch.randn(5, 4, 6, 6)
    network = executorch._rewritten(torch.export.export(model, (inputs,)))
    called = [str(node.target) for node in network.graph.nodes if node.op == "call_function"]
    assert ("aten.max_pool2d.default" in called) == pooled and ("aten.adaptive_max_pool2d.default" in called) != pooled
    torch.testing.assert_close(network(inputs), model(inputs))


@formats("int8")
@pytest.mark.filterwarnings("ignore")  # of quantizers
def test_norms_of_sound_in_int8(suffix, tmp_path):
    found = st.export(
        sound(), torch.randn(1, 4, 20), tmp_path / f"sound{suffix}", calibration=[torch.randn(40, 4, 20)], quantize="int8"
    )
    assert found.unquantized.difference < 1e-5 and 1e-5 < found.difference < 0.1


@formats()
def test_a_network_that_takes_one_size_of_batch_only(suffix, tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x):
            return self.layer(x).reshape(2, 2, 2)

    found = st.export(Fixed(), torch.randn(2, 3), tmp_path / f"fixed{suffix}")
    assert found.inputs[0].endswith("(2, 3)") and found.agreement is None and found.images == 2


@formats()
def test_several_inputs_and_outputs(suffix, tmp_path):
    class Several(nn.Module):
        def forward(self, first, second):
            return {"sum": first + second, "rest": (first[:, :2] * 2, first.argmax(1))}

    a, b = torch.randn(3, 4), torch.randn(3, 4)
    assert len(st.export(Several(), (a, b), tmp_path / f"two{suffix}").outputs) == 3
    found = st.export(
        Several(), {"second": b, "first": a}, tmp_path / f"words{suffix}", calibration=[{"first": b, "second": a}]
    )
    assert len(found.inputs) == 2


@formats()
def test_a_file_that_is_there_stays_unless_it_is_to_go(suffix, tmp_path, monkeypatch):
    model, path = nn.Linear(3, 2), tmp_path / f"small{suffix}"
    other = path.with_suffix(".bin") if suffix == ".xml" else path
    other.write_text("mine")
    with pytest.raises(ValueError, match="exists already; choose another name, or ask for it to be overwritten"):
        st.export(model, torch.randn(2, 3), path)
    monkeypatch.setattr(module, "difference", lambda found, wanted: float("nan"))
    monkeypatch.setattr(module, "relative", lambda sums: float("nan"))
    with pytest.raises(ValueError, match=f"the {suffix} file answers otherwise than the network: outputs differ by nan %"):
        st.export(model, torch.randn(2, 3), path, overwrite=True)
    assert other.read_text() == "mine" and list(tmp_path.iterdir()) == [other]
    monkeypatch.undo()
    st.export(model, torch.randn(2, 3), path, overwrite=True)
    assert sorted(file.suffix for file in tmp_path.iterdir()) == ([".bin", ".xml"] if suffix == ".xml" else [suffix])
    assert other.read_bytes() != b"mine"


def test_files_come_back_where_one_cannot_be_put(tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    new.mkdir(), old.mkdir()
    (new / "a").write_text("new")  # and no b
    for name in "ab":
        (old / name).write_text("mine")
    with pytest.raises(FileNotFoundError):
        module._put([new / "a", new / "b"], [old / "a", old / "b"])
    assert [(old / name).read_text() for name in "ab"] == ["mine", "mine"]


@formats()
def test_random_numbers_and_decisions_are_refused(suffix, tmp_path):
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    class Deciding(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    for model in (Noisy(), Deciding()):
        with pytest.raises(ValueError, match=r"answers otherwise than the network|cannot be exported") as caught:
            st.export(model, torch.randn(2, 3), tmp_path / f"small{suffix}")
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(bool(missing(".onnx")), reason="onnx is not installed")
def test_an_operator_that_is_not_there_is_told_with_its_layer(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    with pytest.raises(
        ValueError, match=r"cannot be exported for ONNX: .*\(the operator aten::special_bessel_j0 of the layer '1'\)"
    ):
        st.export(nn.Sequential(nn.Linear(3, 2), Odd()), torch.randn(2, 3), tmp_path / "small.onnx")


GIVEN = {"model": nn.Linear(3, 2), "example": torch.randn(2, 3), "path": "small.pt2"}
IMAGE = {"model": nn.Conv2d(3, 4, 3), "example": torch.zeros(1, 3, 8, 8), "preprocess": st.Preprocess(MEAN, STD)}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"path": "small.tflite"},
            r"'small.tflite' has the suffix '.tflite'; allowed are .onnx \(ONNX\), .pt2 \(torch.export\)",
        ),
        ({"path": "small"}, "'small' has the suffix ''; allowed are"),
        ({"path": "nowhere/small.pt2"}, "cannot be written: its folder is not there"),
        ({"quantize": "int8"}, r"int8 is for .onnx, .xml and .pte; a .pt2 file \(torch.export\) is written in float only"),
        ({"quantize": "int4"}, "quantize is 'int4'; it must be 'int8', or None"),
        ({"labels": "ab"}, "labels is 'ab'; it must hold the name of each class"),
        ({"labels": []}, "labels is .*; it must hold the name of each class"),
        ({"labels": ["a", "b", "c"]}, "there are 3 labels; the network must take one tensor and return as many logits"),
        ({"plan": "plan.json"}, "plan is str; it must be a Plan, or None"),
        ({"preprocess": (0.5, 0.5)}, "preprocess is tuple; it must be a Preprocess, or None"),
        ({"preprocess": st.Preprocess((0.5,), (0.5,))}, "preprocess is for networks that take images"),
        (
            {**IMAGE, "preprocess": st.Preprocess((0.5, 0.5), (1.0,))},
            "preprocess has 2 numbers in mean; the example has 3 channels",
        ),
        ({**IMAGE, "calibration": [torch.randn(9, 3, 8, 8)]}, "the calibration inputs are no images behind preprocess"),
        ({"calibration": [torch.randn(2, 4)]}, r"calibration inputs have shape \(2, 4\)"),
        ({"calibration": []}, "the calibration data is empty"),
        ({"model": "net"}, "the model is str; it must be a torch.nn.Module"),
    ],
)
def test_wrong_arguments_get_a_sentence(change, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, TypeError), match=text):
        st.export(**GIVEN | change)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(bool(missing(".onnx")), reason="onnx is not installed")
def test_int8_needs_calibration(tmp_path):
    with pytest.raises(ValueError, match="quantize='int8' needs calibration: some hundred inputs"):
        st.export(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "small.onnx", quantize="int8")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot be written: PermissionError"):
        st.export(**GIVEN | {"path": tmp_path / "small.pt2"})


def test_a_folder_that_only_says_that_it_can_be_written(tmp_path, monkeypatch):
    def refused(*args, **more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.tempfile, "TemporaryDirectory", refused)
    with pytest.raises(ValueError, match="cannot be written: PermissionError: Permission denied; choose another place"):
        st.export(**GIVEN | {"path": tmp_path / "small.pt2"})


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pte"])
def test_what_is_not_installed_is_told_with_the_extra_that_brings_it(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr("spectrim.targets.base.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "spectrim\['):
        st.export(**GIVEN | {"path": tmp_path / f"small{suffix}"})


def test_int8_of_openvino_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr("spectrim.targets.base.find_spec", lambda name: True)
    monkeypatch.setattr("spectrim.targets.files.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'int8 for OpenVINO IR needs nncf.*pip install "spectrim\[nncf\]"'):
        st.export(**GIVEN | {"path": tmp_path / "small.xml", "quantize": "int8", "calibration": [x]})


@pytest.mark.parametrize("values", [(), (0.0,), (float("nan"),), ("a",), 0.5])
def test_numbers_of_preprocess(values):
    with pytest.raises(ValueError, match="std is .*; it must be a tuple of numbers above 0, one for each channel"):
        st.Preprocess((0.5,), values)


def test_an_example_of_one_value_is_replaced_by_random_numbers(tmp_path):
    seen = []

    class Noting(nn.Module):
        def forward(self, x):
            if not torch.compiler.is_compiling():
                seen.append(x.clone())
            return 2 * x

    st.export(Noting(), torch.zeros(2, 3), tmp_path / "small.pt2")
    assert any(float(value.std()) > 0.3 for value in seen)
