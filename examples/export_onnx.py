"""An ONNX file that takes images of bytes and gives probabilities, and what runs it.

python examples/export_onnx.py

It needs the extra `export`: pip install "spectrim[export]".
"""

import numpy as np

import spectrim as st
from spectrim.demo import MEAN, STD, demo_images, demo_model

NAMES = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


def main(path: str = "small.onnx", images: int = 256, quantize: str | None = "int8") -> float:
    """Write the file, run it as a device would, and return the share of right answers."""
    import onnxruntime

    calibration, _ = demo_images("calibration")
    config = st.Config(methods=(st.ChannelSVD(), st.SpatialSVD()))
    result = st.compress(demo_model(), calibration[:1], budget=st.Keep(0.5), calibration=calibration[:images], config=config)
    made = st.export(  # written, read again, run, compared with the network; only then is the file there
        result.model, calibration[:1], path, calibration=calibration[:images], quantize=quantize,
        preprocess=st.Preprocess((MEAN,), (STD,)), labels=NAMES, plan=result.plan,
    )  # fmt: skip
    print(made)

    x, labels = demo_images("test")
    pixels = ((x * STD + MEAN) * 255).round().byte().permute(0, 2, 3, 1).numpy()  # N x H x W x C, as a camera gives them
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(None, {session.get_inputs()[0].name: pixels[:500]})
    first = probabilities[0].argmax()
    print(f"image 0 is a {NAMES[first]} with probability {probabilities[0, first]:.2f}; it was a {NAMES[labels[0]]}")
    return float(np.mean(probabilities.argmax(1) == labels[:500].numpy()))


if __name__ == "__main__":
    print(f"top-1 of the file on 500 test images  {100 * main():.1f}")
