import pytest

import spectrim as st


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


@pytest.mark.parametrize("bad", [-1, float("inf"), float("nan"), 100, "1.5", None])
def test_impossible_drops(bad):
    with pytest.raises(ValueError, match=r"MaxDrop was given .*; allowed are points in \[0, 100\)"):
        st.MaxDrop(bad, "macs")


@pytest.mark.parametrize("kind", [st.Keep, st.MaxDrop])
def test_unknown_metrics(kind):
    with pytest.raises(ValueError, match="metric is 'flops'; allowed are 'params' and 'macs'"):
        kind(0.5, "flops")
