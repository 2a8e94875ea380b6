import pytest

import spectrim as st
from spectrim.core.cost import bounds_of, limit_of, written


@pytest.mark.parametrize("metric", ["params", "macs"])
def test_costs_add_up_field_by_field(metric):
    first, second = st.Cost(5, 70), st.Cost(2, 30)
    assert (first + second, first - second) == (st.Cost(7, 100), st.Cost(3, 40))
    assert first.of(metric) == {"params": 5, "macs": 70}[metric]


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (st.Keep(1), "Keep(1, 'macs')"),
        (st.Keep(0.5, "params"), "Keep(0.5, 'params')"),
        (st.AtMost(4e6, "bytes"), "AtMost(4000000, 'bytes')"),
        (st.AtMost(24.5, "latency"), "AtMost(24.5, 'latency')"),
        (st.MaxDrop(0), "MaxDrop(0, 'macs')"),
        (st.MaxDrop(1.5, "params"), "MaxDrop(1.5, 'params')"),
    ],
)
def test_budgets_are_written_as_in_code(budget, text):
    assert str(budget) == text and eval(text, vars(st)) == budget


@pytest.mark.parametrize("bad", [0, -0.5, 1.2, float("nan"), "0.5", None])
def test_impossible_fractions(bad):
    with pytest.raises(ValueError, match=r"Keep was given .*; allowed is a fraction in \(0, 1\]"):
        st.Keep(bad, "macs")


@pytest.mark.parametrize("bad", [0, -1, float("inf"), float("nan"), "4e6", None])
def test_impossible_bounds(bad):
    with pytest.raises(ValueError, match="AtMost was given .*; allowed are positive numbers"):
        st.AtMost(bad, "bytes")


@pytest.mark.parametrize(
    ("bound", "limit"),
    [
        (st.Keep(0.5, "params"), 50),
        (st.Keep(0.29, "macs"), 29),
        (st.AtMost(70.9, "bytes"), 70),
        (st.AtMost(1e-5, "latency"), 10),  # milliseconds to nanoseconds
    ],
)
def test_what_a_bound_allows_of_a_hundred(bound, limit):
    assert limit_of(bound, 100) == limit


def test_several_bounds_are_a_list_of_hard_ones():
    several = [st.Keep(0.5), st.AtMost(9, "bytes")]
    assert bounds_of(several) == tuple(several) and bounds_of(several[0]) == (several[0],)
    assert written(several) == "Keep(0.5, 'macs') and AtMost(9, 'bytes')" and written(several[1]) == "AtMost(9, 'bytes')"
    for bad in ([], [st.Keep(0.5), st.MaxDrop(1)], 0.5, st.MaxDrop(1)):
        with pytest.raises(TypeError, match=r"it must be Keep\(fraction, metric\), AtMost\(value, metric\) or a list"):
            bounds_of(bad)


@pytest.mark.parametrize("metric", ["bytes", "latency"])
def test_a_cost_has_shapes_only(metric):
    with pytest.raises(ValueError, match=f"a Cost has no '{metric}'"):
        st.Cost(1, 2).of(metric)


@pytest.mark.parametrize("bad", [-1, float("inf"), float("nan"), "1.5", None])
def test_impossible_drops(bad):
    with pytest.raises(ValueError, match=r"MaxDrop was given .*; allowed are numbers of at least 0"):
        st.MaxDrop(bad, "macs")


@pytest.mark.parametrize("kind", [st.Keep, st.AtMost, st.MaxDrop])
def test_unknown_metrics(kind):
    with pytest.raises(ValueError, match="metric is 'flops'; allowed are 'params', 'macs', 'bytes' and 'latency'"):
        kind(0.5, "flops")
