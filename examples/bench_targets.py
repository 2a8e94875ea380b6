"""Whether it is faster where it will run: both networks in turn on every runtime that is installed.

python examples/bench_targets.py
"""

import spectrim as st
from spectrim.demo import demo_images, demo_model


def main(images: int = 256, batch: int = 1, seconds: float = 1.0, targets: tuple[st.Target, ...] | None = None) -> st.Bench:
    """Print times, and what the pairs of runs say of each."""
    model, (calibration, _) = demo_model(), demo_images("calibration")
    if targets is None:
        targets = tuple(target for target in (st.Torch(), st.OnnxRuntime(), st.OpenVINO()) if not target.missing())
    config = st.Config(methods=(st.ChannelSVD(), st.SpatialSVD()))
    result = st.compress(model, calibration[:1], budget=st.Keep(0.4), calibration=calibration[:images], config=config)
    found = st.bench(
        {"original": model, "compressed": result.model}, calibration[:1], targets=targets, batches=(batch,), seconds=seconds
    )
    print(found)
    for (setting, _), verdict in found.verdicts.items():
        print(f"{setting}: {verdict.word}, {verdict.low:.2f} to {verdict.high:.2f} times the original's time")
    return found


if __name__ == "__main__":
    main()
