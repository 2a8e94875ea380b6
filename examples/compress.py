"""Half the MACs of a trained network, scored by accuracy and loss.

python examples/compress.py

The network and its images come with the package; put your own in their place.
"""

import torch
from torch.nn.functional import cross_entropy

import spectrim as st
from spectrim.demo import demo_images, demo_model, selection_batches


def main(images: int = 1024, config: st.Config | None = None) -> st.Result:
    """Compress, print the report, return the result."""
    model = demo_model()
    calibration, _ = demo_images("calibration")  # training images; no labels are needed
    batches = selection_batches()  # pairs (inputs, labels) that the network was not trained on

    def loss(network: torch.nn.Module) -> st.Measurement:
        each = torch.cat([cross_entropy(network(x), y, reduction="none") for x, y in batches])  # (N,), for a standard error
        return st.Measurement(each, unit="nats", larger_is_better=False)

    result = st.compress(
        model,
        calibration[:1],  # the shape of an input
        budget=st.Keep(0.5, "macs"),
        calibration=calibration[:images],
        evaluate={"top-1": st.Accuracy(batches), "loss": loss},  # the first would decide for st.MaxDrop(1.5)
        config=config,
    )
    print(result)
    return result  # result.save("runs/half") writes plan, weights and report


if __name__ == "__main__":
    main()
