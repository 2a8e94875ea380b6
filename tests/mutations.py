"""JSON changed at random, and what may come of it."""

import copy
import json
import os
import random

from hypothesis import HealthCheck, Phase, settings

import spectrim as st

BY_HAND = int(os.environ.get("SPECTRIM_EXAMPLES", "0"))
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2.5, -0.0, 10**30, -(10**18), 1e308, float("nan"), float("inf"), float("-inf")),
    *("", "same", "zeros", "ChannelSVD", "Linear", "Conv1d", "[/b]", "\ud800", "\u202e\x00é\n", "9" * 50, [], {}, [[]], [1, 2]),
    *([0, 0], [3, 3], [1] * 9, ["a"], [None], [[1, 1], [1, 1]], {"a": {"b": []}}, {"": None}, [10**12] * 3, {"rank": 3}),
)


def places(value, above=()):
    """The path to every value inside JSON data."""
    yield above
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*above, key))


def at(data, path):
    for key in path:
        data = data[key]
    return data


def change(data, r):
    """Change one thing in JSON data."""
    *way, last = r.choice([path for path in places(data) if path] or [("format",)])
    place, kind = at(data, way), r.randrange(7)
    if kind == 0:
        del place[last]
    elif kind == 1 and isinstance(place, list):
        place.insert(last, copy.deepcopy(r.choice(place)))
    elif kind == 1:
        place[r.choice(("later", "name", "rank", "rows", "", "\ud800"))] = place.pop(last)
    elif kind == 2 and isinstance(place[last], (int, float)):
        place[last] = r.choice((place[last] + 1, -place[last], place[last] * 2, str(place[last]), [place[last]]))
    elif kind == 3:
        place[last] = copy.deepcopy(at(data, r.choice(list(places(data)))))
    else:
        place[last] = copy.deepcopy(r.choice(VALUES))


def mutated(text, seed):
    """The text with one to three things changed."""
    r, data = random.Random(seed), json.loads(text)
    for _ in range(r.choice((1, 1, 1, 2, 3))):
        change(data, r)
    text, kind = json.dumps(data), r.randrange(30)
    if kind == 0:
        return text[: r.randrange(len(text))]
    if kind == 1:
        place = r.randrange(len(text))
        return text[:place] + r.choice(('"', "{", "[" * 2000, "1" * 5000, "\x00", "é", ",")) + text[place + 1 :]
    return text.replace('"schema": 2', f'"schema": {r.choice((0, 1, 3, "null"))}') if kind == 2 else text


def examples(count):
    """Settings of a property with so many cheap examples."""
    some = {"max_examples": BY_HAND or count, "derandomize": not BY_HAND, "phases": (Phase.generate,), "deadline": None}
    return settings(suppress_health_check=list(HealthCheck), **some)


def sentence(action, *values):
    """What an action returns; None where it refuses in one sentence."""
    try:
        return action(*values)
    except (ValueError, TypeError) as error:
        assert type(error) in (ValueError, TypeError, st.BudgetError) and str(error) and "\n" not in str(error), repr(error)
        return None
