"""compress(): the whole story, on one screen.

layers -> statistics -> menu -> rank selection -> factorized copy, refitted -> evaluate -> report; and for MaxDrop a
search over budgets that uses statistics and menu again and evaluates every network it tries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from spectrim.accuracy import Evaluate, Scorer
from spectrim.cache import Cache, Kept, Ledger, fingerprint, identity, pack, unpack
from spectrim.calibration import collect
from spectrim.config import Config
from spectrim.cost import Budget, BudgetError, Keep, MaxDrop, Metric
from spectrim.factorize import Moments
from spectrim.harm import check, is_logits, output_harm
from spectrim.latency import measure
from spectrim.layer import Example, batch_size, call, evaluation_mode, tensors_of
from spectrim.maxdrop import RESOLUTION, Bracket
from spectrim.plan import Plan
from spectrim.probe import NetworkProbe, account, count
from spectrim.refit import Refitted, reestimate_batchnorm, refit
from spectrim.report import Report, Score, budget_text, make_rows
from spectrim.result import Result
from spectrim.score import build_options, measured_harm
from spectrim.score.menu import Harms, excluded
from spectrim.score.rescore import MEASURED, Data, rescored, restored
from spectrim.search import Menu
from spectrim.statistics import statistics
from spectrim.surgery import apply, cost, duplicate, skeleton
from spectrim.survey import Survey, survey

HARM_IMAGES = 512  # calibration images on which the outputs of the two networks are compared
MEMORY = 1 << 30  # bytes of images that a rank selection may have beyond the calibration's

Tried = tuple[Plan, nn.Module, Score]


def compress(
    model: nn.Module,
    example: Example,
    *,
    budget: Budget,
    calibration: Iterable[Any] | None = None,
    evaluate: Evaluate | None = None,
    config: Config | None = None,
) -> Result:
    """Make a trained network smaller, within a budget.

    Args:
        model: A trained network; never modified.
        example: A batch of inputs: a tensor, or a tuple or dict of tensors; costs are counted for one example of it.
        budget: `Keep(fraction, metric)` or `MaxDrop(points, metric)`.
        calibration: Iterable of inputs or (inputs, targets); no labels are needed. Without it weights are approximated
            without looking at data.
        evaluate: Called with a network in eval mode, returns a number, larger is better; a fraction between 0 and 1 for
            MaxDrop, which requires it. `Accuracy` also gives the standard error.
        config: How.

    Returns:
        The compressed network (stock torch modules only), the plan and the report.

    Raises:
        BudgetError: If the budget cannot be met (a ValueError).
        ValueError: If something given is unusable; the text says what.
        TypeError: If something given is of the wrong kind.
    """
    if not isinstance(budget, (Keep, MaxDrop)):
        raise TypeError(f"the budget is {budget!r}; it must be Keep(fraction, metric) or MaxDrop(points, metric)")
    if isinstance(budget, MaxDrop) and evaluate is None:
        raise ValueError("MaxDrop needs evaluate, a function from a network to its score; give one, or use Keep")
    off = [torch.autocast(kind, enabled=False) for kind in ("cpu", "cuda")]
    with torch.inference_mode(False), torch.enable_grad(), off[0], off[1]:  # whatever the caller has around
        study = Study(model, example, calibration, config or Config())
        scorer = None
        if evaluate is not None:
            with study.stage("evaluate"):
                scorer = Scorer(evaluate, study.model)
            if isinstance(budget, MaxDrop) and abs(scorer.mean) > 1:
                raise ValueError(f"evaluate returned {scorer.mean:g}; MaxDrop needs a fraction between 0 and 1, such as 0.917")
        if isinstance(budget, Keep):
            plan, small = study.shrink(budget)
            score = None
            if scorer is not None:
                with study.stage("evaluate"):
                    score = scorer.score(small)
            return study.result(budget, plan, small, score)
        assert scorer is not None
        return study.most_compressed(budget, scorer)


class Study(Ledger):
    """One network under study: what is computed once and used for every budget.

    Args:
        model: The network; a copy is made.
        example: A batch of inputs.
        calibration: See `compress`.
        config: How.
    """

    def __init__(self, model: nn.Module, example: Example, calibration: Iterable[Any] | None, config: Config) -> None:
        """Check everything, look at the data, and make the menu."""
        self.config = config
        self.probes: list[tuple[float, float]] = []
        batch_size(example)
        self.model = duplicate(model)
        check_weights(self.model)
        if config.refit and calibration is not None:
            check_norms(self.model)
        self.example = example
        size = sum(x[:1].numel() * x.element_size() for x in tensors_of(example))
        extra = min(config.search.images, MEMORY // max(size, 1))
        self.batches, self.more = collect(calibration, example, config.images, config.batch, more=extra)
        found = survey(self.model, example)
        self.original = cost(self.model, example)
        left = {layer.name: "excluded by the configuration" for layer in found.layers if excluded(layer.name, config.exclude)}
        unknown = [pattern for pattern in config.exclude if not any(excluded(layer.name, (pattern,)) for layer in found.layers)]
        if unknown:
            names = ", ".join(layer.name for layer in found.layers)
            raise ValueError(f"exclude has {unknown[0]!r}, which matches no layer; the layers are {names}")
        self.survey = Survey(tuple(layer for layer in found.layers if layer.name not in left), found.skipped | left)
        self.harm = config.harm or output_harm
        self.refitted: dict[str, Refitted] = {}  # the last ones
        words = f"{config.seed} {config.gradient} {config.batch} {config.exclude} {identity(self.harm)} {torch.__version__}"
        key = fingerprint(self.model, [*self.batches, *self.more], words) if config.cache is not None else ""
        super().__init__(Cache(config.cache, key), tensors_of(example)[0].device, config.progress)
        if self.batches and config.harm is not None and config.gradient:
            with torch.no_grad(), evaluation_mode(self.model):
                outputs = call(self.model, self.batches[0])
            check(self.harm, outputs)
        self.moments = self._statistics() if self.batches else None
        self.menu = self._menu()
        self.menus: dict[tuple[str, Metric], Menu] = {}  # the same menu under the scores of other rank selections

    def _statistics(self) -> dict[str, Moments]:
        def work() -> dict[str, Moments]:
            with self.stage("statistics"):
                self.passed(forward=1.0, backward=float(self.config.gradient))
                return statistics(
                    self.model,
                    self.survey.layers,
                    self.batches,
                    seed=self.config.seed,
                    harm=self.harm if self.config.gradient else None,
                    progress=lambda share: self.tell("statistics", share),
                )

        return self.once("moments", work, lambda moments: (pack(moments), {}), lambda kept: unpack(kept[0]))

    def _menu(self) -> Menu:
        def once(name: str, work: Callable[[], Harms]) -> Harms:
            return self.once(f"menu {name}", work, lambda harms: ({}, {"harms": harms}), lambda kept: kept[1]["harms"])

        rows = []
        with self.stage("menu"):
            for done, layer in enumerate(self.survey.layers, 1):
                module = self.model.get_submodule(layer.name)
                moments = None if self.moments is None else self.moments[layer.name]
                multiple_of = self.config.multiple_of
                rows.append(
                    build_options(layer, module, self.config.methods, moments=moments, multiple_of=multiple_of, once=once)
                )
                self.tell("menu", done / len(self.survey.layers))
            return Menu(tuple(rows), self.original)

    @property
    def harm_unit(self) -> str:
        """What the menu's harms are."""
        if not self.batches:
            return "relative squared weight error"
        if self.config.harm is not None:
            return str(self.config.words()["harm"])
        with torch.no_grad(), evaluation_mode(self.model):
            return "nats" if is_logits(call(self.model, self.example)) else "relative squared error"

    def shrink(self, budget: Keep) -> tuple[Plan, nn.Module]:
        """Choose a plan within the budget and build it, refitted."""
        plan = self.select(budget)
        return plan, self.build(plan)

    def select(self, budget: Keep, *, measure: bool = True) -> Plan:
        """Choose a plan within the budget; without `measure` by predictions only."""

        def work() -> Plan:
            with self.stage("search"):
                return self._selected(budget, measure)

        return self.once(
            f"plan {budget} {measure} {self.config.words()}",
            work,
            lambda plan: ({}, {"plan": plan.to_json()}),
            lambda kept: Plan.from_json(kept[1]["plan"]),
        )

    def _selected(self, budget: Keep, measure: bool) -> Plan:
        search = self.config.search
        if search.score != "response" and (search.score, budget.metric) not in self.menus:
            data = Data(self.batches, self.moments, self.harm) if self.moments is not None else None
            self.menus[search.score, budget.metric] = rescored(self.menu, search.score, self.model, budget.metric, data)
            if search.score in MEASURED:
                tried = sum(len(row) - 1 for row in self.menus[search.score, budget.metric].options)
                self.passed(forward=tried + 1.0 if search.score == "measured" else 1.0)
        menu = self.menus.get((search.score, budget.metric), self.menu)
        probe = self.probe() if measure else None
        plan = restored(search.select(menu, budget, probe), self.menu)
        if probe is not None:
            self.passed(**{kind: count / max(self.images, 1) for kind, count in probe.passes.items()})
        return plan

    def probe(self) -> NetworkProbe | None:
        """Return what measures for the search, if there are images enough."""
        wanted = self.config.search.images
        if not wanted or self.moments is None or 4 * count(self.more) < wanted:
            return None
        cut = -(-2 * len(self.more) // 3)
        return NetworkProbe(
            self.model,
            self.moments,
            self.fit,
            self.harm,
            self.more[:cut],
            self.more[cut:],
            tell=lambda share: self.tell("search", 0.99 * share),
        )

    def fit(self, plan: Plan) -> Refitted:
        """Return the refitted network of a plan; the last two are remembered, since searches come back to them."""
        name = plan.to_json()
        if name not in self.refitted:
            self.refitted = dict(list(self.refitted.items())[-1:])
            if self.moments is None or not self.config.refit:
                self.refitted[name] = Refitted(apply(plan, self.model, moments=self.moments), {})
            else:
                self.refitted[name] = refit(
                    self.model,
                    plan,
                    self.batches,
                    self.moments,
                    seed=self.config.seed,
                    progress=lambda share: self.tell("refit", share),
                )
                self.passed(forward=2.0)
        return self.refitted[name]

    def build(self, plan: Plan) -> nn.Module:
        """Return the network that a plan makes of the original."""
        name = "network " + hashlib.blake2b((plan.to_json() + repr(self.config.words())).encode()).hexdigest()

        def work() -> nn.Module:
            with self.stage("refit" if self.moments is not None and self.config.refit else "factorize"):
                small = self.fit(plan).model
            if self.config.batchnorm and self.batches:
                with self.stage("batchnorm"):
                    small = reestimate_batchnorm(small, self.batches)
                    self.passed(forward=1.0)
            return small

        def loaded(kept: Kept) -> nn.Module:
            small = skeleton(plan, self.model)
            small.load_state_dict(kept[0])
            return small

        return self.once(name, work, lambda small: (dict(small.state_dict()), {}), loaded)

    def most_compressed(self, budget: MaxDrop, scorer: Scorer) -> Result:
        """Search over kept fractions, see `Bracket`; every network that could be returned has been evaluated."""
        total, best = self.original.of(budget.metric), None
        self.probes = []
        tried: dict[str, Tried] = {}
        bracket = Bracket(self.least(budget.metric), budget.points, nats=self.moments is not None and self.config.gradient)

        def predicted(keep: float) -> float:
            return self.select(Keep(keep, budget.metric), measure=False).harm

        while (keep := bracket.next(predicted)) is not None:
            found = self._try(self.select(Keep(keep, budget.metric), measure=False), budget.metric, scorer, tried)
            plan, _, score = found
            if bracket.add(keep, plan.cost.of(budget.metric) / total, plan.harm, score.drop):
                best = found
        if best is None:
            kept, drop = self.probes[-1] if self.probes else (1.0, 0.0)
            raise BudgetError(
                f"{budget_text(budget)} cannot be met: keeping {100 * kept:.1f} % of the {budget.metric} already loses "
                f"{drop:.2f} points; allow more points, or give more calibration images"
            )
        if self.probe() is not None:  # what predictions alone just missed, measured choices may reach
            missed = Keep(max(bracket.low, bracket.high / RESOLUTION), budget.metric)
            plan = self.select(missed)
            if plan != self.select(missed, measure=False):
                found = self._try(plan, budget.metric, scorer, tried)
                best = found if found[2].drop <= budget.points + 1e-9 else best
        return self.result(budget, *best)

    def _try(self, plan: Plan, metric: Metric, scorer: Scorer, tried: dict[str, Tried]) -> Tried:
        """Build, evaluate and note; budgets so close that they have the same plan are evaluated once."""
        if plan.to_json() in tried:
            return tried[plan.to_json()]
        small = self.build(plan)
        with self.stage("evaluate"):
            score = scorer.score(small)
        self.probes.append((plan.cost.of(metric) / self.original.of(metric), score.drop))
        self.tell("budgets tried", min(0.99, len(self.probes) / 6))
        tried[plan.to_json()] = plan, small, score
        return plan, small, score

    def least(self, metric: Metric) -> float:
        """Return the smallest fraction that any plan keeps."""
        total = self.original.of(metric)
        saved = sum(row[0].cost.of(metric) - min(option.cost.of(metric) for option in row) for row in self.menu.options)
        if not saved:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(self.survey.skipped.items())[:3])
            raise BudgetError(f"nothing can be compressed: no method pays on any layer. {reasons}".strip())
        return max((total - saved) / total, 1e-6)

    def result(self, budget: Budget, plan: Plan, small: nn.Module, score: Score | None) -> Result:
        """Return the network with the account of it."""
        after = cost(small, self.example)
        if after != plan.cost:
            raise AssertionError(f"the built network costs {after}, the plan says {plan.cost}; please report this")
        harm, interactions = None, None
        if self.moments is not None:
            seen = self.batches[: max(1, HARM_IMAGES // self.config.batch)]
            with self.stage("report"):
                harm = measured_harm(self.model, small, seen, self.harm)
                if plan and self.config.gradient:
                    interactions = account(self.model, small, plan, Data(seen, self.moments, self.harm))
        with self.stage("latency"):
            old, new = measure([self.model, small], self.example)
        report = Report(
            budget_text(budget),
            self.original,
            after,
            make_rows(self.survey, plan),
            self.survey.skipped,
            plan.harm,
            harm,
            self.harm_unit,
            interactions,
            score,
            latency=(old, new),
            seconds=dict(self.seconds),
            passes=dict(self.passes),
            probes=tuple(self.probes),
            settings={
                "config": self.config.words(),
                "torch": torch.__version__,
                "calibration images": self.images,
                "note": self._note(),
            },
        )
        return Result(small, plan, report)

    def _note(self) -> str:
        """Return what the user should know about the rank selection."""
        search = self.config.search
        if not search.images or self.probe() is not None:
            return ""
        return (
            f"{search.title} had too little to measure on and chose by predictions alone: it wants {search.images:,} images "
            f"beyond the calibration's {self.images:,}, and found {count(self.more):,}"
        )

    @property
    def images(self) -> int:
        """How many calibration images statistics and refit use."""
        return count(self.batches)


def check_norms(model: nn.Module) -> None:
    """Check that no normalisation mixes the examples of a batch, of which the refit runs two streams.

    Raises:
        ValueError: If one does.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"the normalisation {name!r} has no running statistics, so it mixes the images of a batch and layers cannot be "
                "refitted to one another; use refit=False"
            )


def check_weights(model: nn.Module) -> None:
    """Check that every weight is finite.

    Raises:
        ValueError: If one is NaN or infinite.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"the model's {name!r} holds NaN or infinite values; give a network that was trained to the end")
