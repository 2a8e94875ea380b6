"""Distortion in the real Lightning and Hugging Face trainers, and in two real processes (gloo)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import spectrim as st
from training import CONVOLUTIONS, network

TESTS = Path(__file__).parents[1]
QUIET = pytest.mark.filterwarnings("ignore")  # what these libraries deprecate is not ours


def case():
    model, x, y = network(48)
    return x, y, st.plan_from(model, x[:1], {name: (st.ChannelSVD(), 3) for name in CONVOLUTIONS})


def ranks(model):
    kernels = [getattr(model, name).weight.detach().flatten(1) for name in CONVOLUTIONS]
    return [int(torch.linalg.matrix_rank(kernel, rtol=1e-4)) for kernel in kernels]


@QUIET
def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = network(48)[0]

        def training_step(self, batch, index):
            return functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.05)

    x, y, plan = case()
    loader = DataLoader(TensorDataset(x, y), batch_size=8)

    def trained(epochs, module, callback, checkpoint=None):
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            accumulate_grad_batches=2,
            callbacks=[callback],
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
    whole, first = Module(), callback()
    trained(4, whole, first)
    assert first.distortion.steps == 12 and first.distortion.distortions == 4 and ranks(whole.model) == [3, 3, 3]
    trained(2, half := Module(), callback()).save_checkpoint(tmp_path / "half.ckpt")
    again, second = Module(), callback()
    trained(4, again, second, tmp_path / "half.ckpt")
    assert second.distortion.steps == 12 and second.distortion.distortions == 4
    small = first.finish().eval()
    assert st.cost(small, x[:1]) == plan.cost
    torch.testing.assert_close(small(x), whole.model.eval()(x), rtol=1e-4, atol=1e-4)
    states = [module.state_dict() for module in (whole, again, half)]
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name])
    assert not torch.equal(states[0]["model.conv1.weight"], states[2]["model.conv1.weight"])


@QUIET
def test_hugging_face_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = network(48)[0]

        def forward(self, x, labels):
            logits = self.backbone(x)
            return {"loss": functional.cross_entropy(logits, labels), "logits": logits}

    x, y, plan = case()
    rows = [{"x": image, "labels": label} for image, label in zip(x, y, strict=True)]

    def trained(steps, callback, folder, resume=None):
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
        trainer = transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[callback])
        trainer.train(resume_from_checkpoint=resume)
        return model

    def callback():
        return st.integrations.transformers.DistortionCallback(plan, network="backbone", every=3)

    with pytest.raises(RuntimeError, match="before"):
        callback().finish()
    first = callback()
    trained(4, first, tmp_path / "run")
    assert first.distortion.steps == 4 and first.distortion.distortions == 1
    second = callback()
    model = trained(9, second, tmp_path / "run", str(tmp_path / "run" / "checkpoint-4"))
    assert second.distortion.steps == 9 and second.distortion.distortions == 3 and ranks(model.backbone) == [3, 3, 3]
    small = second.finish().eval()
    torch.testing.assert_close(small(x), model.backbone.eval()(x), rtol=1e-4, atol=1e-4)
    (tmp_path / "run" / "checkpoint-4" / "distortion.pt").unlink()
    with pytest.raises(ValueError, match="resumed at step 4"):
        trained(9, callback(), tmp_path / "run", str(tmp_path / "run" / "checkpoint-4"))


def test_an_unknown_framework():
    with pytest.raises(AttributeError, match="lightning, tracking, transformers"):
        _ = st.integrations.keras


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_two_processes_hold_identical_weights():
    torchrun(str(Path(__file__).parent / "worker.py"))


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
