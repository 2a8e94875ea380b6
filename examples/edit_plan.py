"""Change one rank of a plan by hand, and have it fitted as if it had been chosen.

python examples/edit_plan.py
"""

import json

import spectrim as st
from spectrim.demo import demo_images, demo_model


def main(images: int = 512, config: st.Config | None = None) -> tuple[st.Result, st.Result]:
    """Choose a plan, double one of its ranks, and compare both networks' harms."""
    model, (calibration, _) = demo_model(), demo_images("calibration")
    given = {"calibration": calibration[:images], "config": config or st.Config(methods=(st.ChannelSVD(), st.SpatialSVD()))}
    chosen = st.compress(model, calibration[:1], budget=st.Keep(0.4, "macs"), **given)

    text = json.loads(chosen.plan.to_json())  # what plan.json holds: method, rank and options of every layer
    name = max(chosen.plan, key=lambda layer: chosen.plan[layer].harm)  # the layer that is predicted to suffer most
    text["layers"][name]["rank"] *= 2
    plan = st.Plan.from_json(json.dumps(text))  # refused in a sentence if the rank is not possible

    edited = st.compress(model, calibration[:1], plan=plan, **given)
    for title, result in (("chosen", chosen), ("edited", edited)):
        report = result.report
        print(f"{title}: {name} has rank {result.plan[name].rank}, {100 * report.kept[1]:.1f} % of the MACs are kept, and the")
        print(f"        outputs differ by {report.measured_harm:.4f} {report.harm_unit} on images that no fit has seen")
    return chosen, edited


if __name__ == "__main__":
    main()
