"""What a training step makes smaller."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectrim.network.accuracy import check_labels
from spectrim.network.calling import call, evaluation_mode, tensors_of
from spectrim.train.recipe import Recipe


def training_loss(network: nn.Module, inputs: Tensor, labels: Tensor, recipe: Recipe, teacher: nn.Module | None) -> Tensor:
    """Return the loss (1 - d) * cross-entropy + d * t^2 * KL(teacher || network), both of outputs divided by t for the latter.

    Args:
        network: A classifier with logits (N, K), in training.
        inputs: Images (N, C, H, W), or whatever it takes, on its device.
        labels: Class numbers (N,), on its device.
        recipe: For d (`distill`), t (`temperature`) and the label smoothing.
        teacher: Network with the same inputs and outputs; None for d = 0.

    Raises:
        ValueError: If a label is no class of the network; on the CPU only, since other devices would be waited for.

    Reference:
        Hinton, Vinyals, Dean: Distilling the knowledge in a neural network (arXiv 1503.02531).
    """
    logits = tensors_of(call(network, inputs))[0]
    if labels.device.type == "cpu":
        check_labels(labels, logits)
    loss = functional.cross_entropy(logits.float(), labels, label_smoothing=recipe.smoothing)
    if teacher is None or not recipe.distill:
        return loss
    with torch.no_grad(), evaluation_mode(teacher):
        wanted = tensors_of(call(teacher, inputs))[0].float() / recipe.temperature
    divergence = functional.kl_div(
        (logits.float() / recipe.temperature).log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean"
    )
    return (1 - recipe.distill) * loss + recipe.distill * recipe.temperature**2 * divergence
