"""The gate on made-up scores: which verdict, for which reason, and how often it is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

from rwkvfusion.model.metrics.table import Comparison, Convention, metrics_of
from rwkvfusion.pipelines.evaluate.report.findings import Part, parts_of
from rwkvfusion.pipelines.evaluate.results import Results, Scored
from rwkvfusion.pipelines.registry.entry import PromoteError, Verdict
from rwkvfusion.pipelines.registry.gate import Decision, Findings, decide
from rwkvfusion.pipelines.registry.recipe import CANDIDATE, CHAMPION, GateConfig

METRICS = metrics_of(Comparison.SOURCES)
GATE = GateConfig(metrics=("Qabf", "Qcv"), loss=0.01)
N = 60
Column = Mapping[str, np.ndarray]


def parts(
    candidate: Column, champion: Column | None, floor: float = 0.5, night: np.ndarray | None = None
) -> list[Part]:
    """The tables of an evaluation: {metric: values}. The trivial answer has `floor` of the candidate's first values."""
    n = len(next(iter(candidate.values())))
    trivial = {name: np.full(n, floor if METRICS[name].better == "higher" else 1 / floor) for name in candidate}
    systems = {CANDIDATE: candidate} | ({} if champion is None else {CHAMPION: champion})
    values = {"mean": trivial, **{name: dict(column) for name, column in systems.items()}}
    slices = {} if night is None else {"night": night}
    scored = Scored(Comparison.SOURCES, tuple(f"{i}" for i in range(n)), values, slices=slices)
    results = Results("vif", Convention.Y, "2", (scored,), tuple(systems))
    return list(parts_of(results, scored))


def column(seed: int, n: int = N, **factors: float) -> dict[str, np.ndarray]:
    """Values around 1 that differ between pictures alike for every seed, and by 1 % of noise; times the factors."""
    pictures = np.random.default_rng(99).uniform(0.8, 1.2, n)
    rng = np.random.default_rng(seed)
    return {name: pictures * factors.get(name, 1.0) * (1 + rng.normal(0, 0.01, n)) for name in ("Qabf", "Qcv", "SD")}


BETTER = {"Qabf": 1.03, "Qcv": 0.95}


def test_a_win_of_all_of_the_gates_metrics_is_promoted() -> None:
    decision = decide(parts(column(1, **BETTER), column(2)), GATE)
    assert decision.verdict is Verdict.PROMOTED
    assert [reason.split(" by ")[0] for reason in decision.reasons] == ["Qabf wins", "Qcv wins"]


@pytest.mark.parametrize(
    ("factors", "verdict", "words"),
    [
        ({"Qabf": 1.03}, Verdict.NOT_BETTER, "Qcv ties by"),
        ({"Qabf": 1.03, "Qcv": 1.005}, Verdict.NOT_BETTER, "Qcv"),
        ({**BETTER, "SD": 0.97}, Verdict.WORSE, "SD loses by -3.0 %"),
        ({"Qabf": 0.9, "Qcv": 0.95}, Verdict.WORSE, "Qabf loses by -10 %"),
        ({"Qabf": 1.03, "Qcv": 1.1}, Verdict.WORSE, "Qcv loses by +10"),
    ],
)
def test_what_is_not_a_win_is_named(factors: dict[str, float], verdict: Verdict, words: str) -> None:
    decision = decide(parts(column(1, **factors), column(2)), GATE)
    assert decision.verdict is verdict
    assert decision.reasons[0].startswith(words)


def test_a_loss_is_allowed_up_to_its_metrics_own_limit() -> None:
    loses = parts(column(1, **BETTER, SD=0.97), column(2))
    for limit, verdict in ((0.05, Verdict.PROMOTED), (0.02, Verdict.WORSE)):
        assert decide(loses, GATE.model_copy(update={"losses": {"SD": limit}})).verdict is verdict


def test_a_loss_on_one_slice_is_found_and_the_slice_is_named() -> None:
    night = np.arange(N) < 20
    candidate = column(1, **BETTER)
    assert decide(parts(candidate, column(2), night=night), GATE).verdict is Verdict.PROMOTED
    candidate["SD"] = candidate["SD"] * np.where(night, 0.95, 1.02)
    decision = decide(parts(candidate, column(2), night=night), GATE)
    assert decision.verdict is Verdict.WORSE
    assert decision.reasons[0].startswith("SD loses on night by -")
    assert decision.reasons[0].endswith("20 pairs, and may lose 1.0 %")


def test_too_few_pairs_say_what_they_could_show() -> None:
    few = decide(parts(column(1, 5, **BETTER), column(2, 5)), GATE)
    assert few.verdict is Verdict.TOO_FEW
    assert few.reasons[0].startswith("Qabf cannot be told: 5 pairs can show nothing, and the difference is +")
    noisy = {name: one * np.random.default_rng(7).uniform(0.7, 1.3, 12) for name, one in column(1, 12).items()}
    some = decide(parts(noisy, column(2, 12)), GATE)
    assert some.verdict is Verdict.TOO_FEW
    assert "12 pairs could show " in some.reasons[0]


def test_the_floor_holds_with_and_without_a_champion() -> None:
    for champion in (None, column(2)):
        assert decide(parts(column(1, **BETTER), champion, floor=0.9), GATE).verdict is Verdict.PROMOTED
        decision = decide(parts(column(1, **BETTER), champion, floor=1.1), GATE)
        assert decision.verdict is Verdict.FLOOR
        assert decision.reasons[0] == f"Qabf is {decision.reasons[0].split()[2]} that of the trivial answer 'mean' 1.1"
    undefined = column(1) | {"Qabf": np.full(N, math.nan)}
    assert decide(parts(undefined, None), GATE).verdict is Verdict.FLOOR


def test_other_findings_refuse_what_wins_and_are_said_first() -> None:
    wins = parts(column(1, **BETTER), column(2))
    pixels = decide(wins, GATE, Findings(["grain"], ["time"]))
    assert pixels.verdict is Verdict.PIXELS
    assert pixels.reasons[:2] == ("grain", "time")
    assert decide(wins, GATE, Findings([], ["time"])).verdict is Verdict.LIMIT


def test_a_metric_that_no_pair_has_is_an_error() -> None:
    with pytest.raises(PromoteError, match=r"^gate\.metrics: these pairs have no PSNR_ref, but Qabf, Qcv, SD$"):
        decide(parts(column(1), None), GATE.model_copy(update={"metrics": ("PSNR_ref",)}))


def _simulated(count: int, n: int = N, **factors: float) -> list[Decision]:
    night = np.arange(n) < n // 3
    one = GateConfig(metrics=("Qabf",), loss=0.01)
    return [
        decide(parts(column(2 * i, n, **factors), column(2 * i + 1, n), night=night), one) for i in range(count)
    ]  # fmt: skip


def test_of_equal_models_at_most_5_of_100_are_promoted() -> None:
    """Even by a gate of one metric: it is compared with what it would be by the sign of the mean, which is half."""
    decisions = _simulated(400, 20)
    assert np.mean([one.verdict is Verdict.PROMOTED for one in decisions]) <= 0.05


def test_a_loss_of_2_percent_on_a_slice_is_refused_in_95_of_100() -> None:
    night = np.arange(N) < 30
    refused = []
    for seed in range(100):
        candidate = column(2 * seed, **BETTER)
        candidate["SD"] = candidate["SD"] * np.where(night, 0.98, 1.0)
        verdict = decide(parts(candidate, column(2 * seed + 1), night=night), GATE).verdict
        refused.append(verdict is Verdict.WORSE)
    assert np.mean(refused) >= 0.95
