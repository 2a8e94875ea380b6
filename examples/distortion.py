"""Train for the cut: every few steps kernels are replaced by their low-rank reconstructions.

python examples/distortion.py

A network that was trained so loses less when it is cut at the end.
"""

import torch
from torch.nn.functional import cross_entropy

import spectrim as st
from spectrim.demo import demo_images, demo_model, test_batches


def main(epochs: int = 3, every: int = 10, images: int = 1024) -> tuple[float, float, float]:
    """Print top-1 of the original, of the trained network, and of that network after the cut."""
    model, (x, y) = demo_model(), demo_images("calibration")
    x, y, evaluate = x[:images], y[:images], st.Accuracy(test_batches())
    before = evaluate(model)
    config = st.Config(methods=(st.ChannelSVD(), st.SpatialSVD()))
    plan = st.choose(st.prepare(model, x[:1], calibration=x, config=config), st.Keep(0.35, "macs"))

    distortion = st.Distortion(model.train(), plan, every=every)
    optimizer = torch.optim.SGD(model.parameters(), 0.005, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):  # any loop of your own
            optimizer.zero_grad()
            cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            distortion.step()  # every tenth step: kernels <- their low-rank reconstructions
    small = distortion.finish().eval()  # the last distortion is the decomposition
    scores = before, evaluate(model.eval()), evaluate(small)
    print("top-1 {:.2f}, trained {:.2f}, cut {:.2f}".format(*(100 * score for score in scores)))
    print(f"{st.cost(small, x[:1]).macs:,} MACs of {plan.original.macs:,}")
    return scores


if __name__ == "__main__":
    main()
