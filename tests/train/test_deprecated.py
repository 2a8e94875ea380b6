"""Old names warn and work."""

import pytest

import spectrim as st
from spectrim.core.deprecation import renamed
from spectrim.integrations.common import DistortionHolder
from spectrim.train import Training
from training import network, plan_of


@renamed(colour="color")
def paint(*, color="blue"):
    """Paint."""
    return color


def test_a_renamed_argument_has_two_names_but_one_value():
    with pytest.warns(DeprecationWarning, match=r"paint\(colour=...\) is deprecated; write paint\(color=...\)") as caught:
        assert paint(colour="red") == "red"
    assert caught[0].filename == __file__  # where it is called
    assert paint(color="green") == "green" and paint() == "blue" and paint.__doc__ == "Paint."
    with pytest.raises(TypeError, match="both colour= and color="):
        paint(colour="red", color="red")


def test_twist_is_a_distortion():
    model, x, y = network()
    distortion = st.Distortion(model, plan_of(model, x), every=1)
    with pytest.warns(DeprecationWarning, match=r"fit\(twist=...\) is deprecated"):
        assert st.fit(model, (x, y), recipe=st.Recipe(epochs=1), twist=distortion).distortions == 1
    with pytest.warns(DeprecationWarning, match=r"loss_along\(twist=...\) is deprecated"):
        old = st.loss_along(model, distortion.plan, batches=[(x, y)], points=2, twist=distortion)
    assert old == st.loss_along(model, distortion.plan, batches=[(x, y)], points=2, distortion=distortion)
    holder = DistortionHolder(distortion.plan)
    with pytest.warns(DeprecationWarning, match="its `distortion`"):
        assert holder.twist is None
    holder.begin(model)
    with pytest.warns(DeprecationWarning, match="its `distortion`"):
        assert holder.twist is holder.distortion is not None


def test_names_of_records_and_settings():
    with pytest.warns(DeprecationWarning, match=r"now Recipe.settings\(\)"):
        assert st.Recipe().words() == st.Recipe().settings()
    with pytest.warns(DeprecationWarning, match="now spectrim.train.Training"):
        assert st.train.History is Training
    with pytest.raises(AttributeError, match="no attribute 'Histories'"):
        _ = st.train.Histories
