import pytest

import spectrim as st
from spectrim.search.knapsack import frontier
from spectrim.testing import check_search, random_menu


def test_knapsack_is_exact_and_keeps_its_contract():
    check_search(st.Knapsack(), exact=True)


def test_frontier_is_what_no_other_option_beats():
    for row in random_menu(1).options:
        kept = frontier(row, "params")
        for option in row:
            better = [o for o in row if o.cost.params <= option.cost.params and o.harm < option.harm]
            assert option in kept or better or any(o.cost == option.cost and o.harm == option.harm for o in kept)


def test_budgets():
    assert st.Keep(1.0, "params").fraction == 1
    for bad in (0, -0.5, 1.2, float("nan")):
        with pytest.raises(ValueError, match="allowed is a fraction"):
            st.Keep(bad, "macs")
    with pytest.raises(ValueError, match="allowed are 'params' and 'macs'"):
        st.Keep(0.5, "flops")
    for bad in (-1, float("inf"), 100):
        with pytest.raises(ValueError, match="allowed are points"):
            st.MaxDrop(bad, "macs")
    with pytest.raises(st.BudgetError, match=r"reach \d\.\d+ at least; raise the fraction"):
        st.Knapsack().select(random_menu(0), st.Keep(0.01, "params"))
