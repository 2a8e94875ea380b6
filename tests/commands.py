"""Command lines that the tests of the command line share."""

from spectrim.pipeline import reconstruction

FAST = ("--methods", "ChannelSVD,SpatialSVD")  # CP's fits take most of the time


def compressing(files, out, *more):
    """Arguments that compress the embedded network; without decompositions or a rank selection asked for, the quick ones."""
    common = ["compress", "spectrim.demo:FashionNet", "--weights", str(files / "w.safetensors")]
    data = ["--data", f"npz:{files}/test.npz", "--calibration", f"npz:{files}/calibration.npz", "--images", "96"]
    methods = () if {"--methods", "--plan"} & set(more) else FAST
    search = () if {"--search", "--plan"} & set(more) else ("--search", "Knapsack")
    return [*common, *data, *methods, *search, "--out", str(out), *more]


def training(files, out, *more):
    """Arguments that train the embedded network."""
    data = ["--data", f"npz:{files}/test.npz", "--calibration", f"npz:{files}/calibration.npz", "--images", "64"]
    common = ["train", "spectrim.demo:FashionNet", "--weights", str(files / "w.safetensors"), *data]
    every = ["--every", "3"] if {"--keep", "--plan"} & set(more) and "--every" not in more else []
    methods = () if "--plan" in more else FAST
    return [*common, *methods, "--epochs", "2", *every, "--out", str(out), *more]


def interrupted_block(monkeypatch, number):
    """Interrupt the reconstruction once, in the block of this number; returns the names of the blocks that are begun."""
    fit_block, begun = reconstruction.fit_block, []

    def interrupting(task, block):
        begun.append(block.name)
        if len(begun) == number:
            raise KeyboardInterrupt
        return fit_block(task, block)

    monkeypatch.setattr(reconstruction, "fit_block", interrupting)
    return begun
