"""Distortion in the real Lightning and Hugging Face trainers, and in two real processes (gloo)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.nets import Residual, settle
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import spectrim as st

NAMES = ("conv1", "conv2", "conv3")
QUIET = pytest.mark.filterwarnings("ignore")  # what these libraries deprecate is not ours


def network():
    torch.manual_seed(0)
    x = torch.randn(48, 3, 8, 8)
    model = settle(Residual(), x)
    return model, x, torch.arange(48) % 5, st.plan_from(model, x[:1], {name: (st.ChannelSVD(), 3) for name in NAMES})


def ranks(model):
    return [int(torch.linalg.matrix_rank(getattr(model, name).weight.detach().flatten(1), rtol=1e-4)) for name in NAMES]


@QUIET
def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = network()[0]

        def training_step(self, batch, index):
            return functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.05)

    _, x, y, plan = network()
    loader = DataLoader(TensorDataset(x, y), batch_size=8)

    def trained(epochs, module, twist, checkpoint=None):
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            accumulate_grad_batches=2,
            callbacks=[twist],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, loader, ckpt_path=checkpoint)
        return trainer

    def callback():
        return st.integrations.lightning.DistortionCallback(plan, network="model", every=3)

    with pytest.raises(RuntimeError, match="before"):
        callback().finish()
    whole, twist = Module(), callback()
    trained(4, whole, twist)
    assert twist.twist.steps == 12 and twist.twist.distortions == 4 and ranks(whole.model) == [3, 3, 3]
    half, first = Module(), callback()
    trained(2, half, first).save_checkpoint(tmp_path / "half.ckpt")
    again, second = Module(), callback()
    trained(4, again, second, tmp_path / "half.ckpt")
    assert second.twist.steps == 12 and second.twist.distortions == 4
    small = twist.finish().eval()
    assert st.cost(small, x[:1]) == plan.cost
    torch.testing.assert_close(small(x), whole.model.eval()(x), rtol=1e-4, atol=1e-4)
    for one, other in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)


@QUIET
def test_hugging_face_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = network()[0]

        def forward(self, x, labels):
            logits = self.backbone(x)
            return {"loss": functional.cross_entropy(logits, labels), "logits": logits}

    _, x, y, plan = network()
    rows = [{"x": image, "labels": label} for image, label in zip(x, y, strict=True)]

    def trained(steps, twist, folder, resume=None):
        model = Wrapped()
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            save_steps=4,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            lr_scheduler_type="constant",
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[twist])
        trainer.train(resume_from_checkpoint=resume)
        return model

    def callback():
        return st.integrations.transformers.DistortionCallback(plan, network="backbone", every=3)

    with pytest.raises(RuntimeError, match="before"):
        callback().finish()
    first = callback()
    trained(4, first, tmp_path / "run")
    assert first.twist.steps == 4 and first.twist.distortions == 1
    second = callback()
    model = trained(9, second, tmp_path / "run", str(tmp_path / "run" / "checkpoint-4"))
    assert second.twist.steps == 9 and second.twist.distortions == 3 and ranks(model.backbone) == [3, 3, 3]
    small = second.finish().eval()
    torch.testing.assert_close(small(x), model.backbone.eval()(x), rtol=1e-4, atol=1e-4)
    (tmp_path / "run" / "checkpoint-4" / "distortion.pt").unlink()
    with pytest.raises(ValueError, match="resumed at step 4"):
        trained(9, callback(), tmp_path / "run", str(tmp_path / "run" / "checkpoint-4"))


def test_an_unknown_framework():
    with pytest.raises(AttributeError, match="lightning, transformers"):
        _ = st.integrations.keras


WORKER = """
import copy, sys
import torch
from torch import distributed
import spectrim as st
from tests.test_frameworks import NAMES, network, ranks

distributed.init_process_group("gloo")
rank = distributed.get_rank()
model, x, y, plan = network()
plan = st.plan_from(model, x[:1], {"conv1": (st.CP(), 4), "conv2": (st.ChannelSVD(), 3), "conv3": (st.CP("kernel"), 3)})
other = st.plan_from(model, x[:1], {"conv2": (st.SpatialSVD(), 2)})
moments = []

class Watching(st.Distortion):
    def distort(self, model=None):
        super().distort(model)
        factors = [factor for name in self.plan for factor in self.written[name]]
        weights = torch.cat([p.detach().double().flatten() for p in (*self.model.parameters(), *factors)])
        both = [torch.empty_like(weights) for _ in range(2)]
        distributed.all_gather(both, weights)
        assert torch.equal(*both), "the weights or factors differ after a distortion"
        moments.append(self.steps)

schedule = st.Schedule(4, replan=2)
# a different plan in each process: the first one's must win
twist = Watching(model, plan, every=schedule, replan=lambda network: other if rank == 0 else plan)
history = st.fit(model, (x, y), recipe=st.Recipe(epochs=4, batch=16, rate=0.05), twist=twist)
assert history.steps == 12 and moments == [4, 8, 12], (history, moments)
assert list(twist.plan) == ["conv2"]
small = twist.finish()
weights = torch.cat([p.detach().flatten() for p in (*model.parameters(), *small.parameters())])
both = [torch.empty_like(weights) for _ in range(2)]
distributed.all_gather(both, weights)
assert torch.equal(*both)
torch.testing.assert_close(small.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-4)
distributed.destroy_process_group()
"""


def torchrun(*arguments, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_two_processes_hold_identical_weights(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    torchrun(str(tmp_path / "worker.py"))


def test_train_command_in_two_processes(tmp_path):
    images, labels = np.random.default_rng(0).integers(0, 255, (400, 28, 28), np.uint8), np.arange(400) % 10
    np.savez(tmp_path / "images.npz", images=images, labels=labels)
    data = f"npz:{tmp_path}/images.npz"
    command = ["-m", "spectrim", "train", "spectrim.demo:demo_model", "--data", data, "--calibration", data]
    options = ["--keep", "0.4", "--epochs", "1", "--every", "1", "--images", "64", "--methods", "ChannelSVD", "--json"]
    done = torchrun(*command, *options, "--out", str(tmp_path / "run"))
    report = json.loads(done.stdout)  # printed by one process only
    assert report["kept"]["macs"] <= 0.4 and report["training"]["steps"] == 2
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"dense.safetensors", "model.safetensors", "plan.json", "report.json"} <= files
    assert not (tmp_path / "run.partial").exists()
