"""Many budgets from one look at the data, and two budgets at once.

python examples/budgets.py
"""

import spectrim as st
from spectrim.demo import demo_images, demo_model, selection_batches


def main(images: int = 1024, fractions: tuple[float, ...] = (0.7, 0.5), config: st.Config | None = None) -> list[st.Report]:
    """Print what each budget costs; the statistics are computed once."""
    model, (calibration, _) = demo_model(), demo_images("calibration")
    evaluate = st.Accuracy(selection_batches())
    prepared = st.prepare(model, calibration[:1], calibration=calibration[:images], config=config)  # the long part

    bounds = [st.Keep(fraction, "macs") for fraction in fractions]
    both = [st.Keep(0.6, "macs"), st.AtMost(400_000, "bytes")]  # all of a list hold
    reports = []
    for budget in (*bounds, both):
        plan = st.choose(prepared, budget)
        small = st.realize(prepared, plan)  # small.model is the network
        report = st.account(prepared, plan, small, evaluate, budget=budget)
        print(f"{report.budget}: {report.after.macs:,} MACs, {report.after.params:,} parameters, {report.selection.text()}")
        reports.append(report)
    return reports


if __name__ == "__main__":
    main()
