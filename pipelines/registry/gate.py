"""The gate: what the scores of two models on the same pairs say about which is to be in use. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rwkvfusion.model.metrics.paired import Outcome, compare
from rwkvfusion.model.metrics.paired import Verdict as Compared
from rwkvfusion.pipelines.evaluate.report.findings import Part
from rwkvfusion.pipelines.evaluate.report.terminal import pairs, percent
from rwkvfusion.pipelines.registry.entry import PromoteError, Verdict
from rwkvfusion.pipelines.registry.recipe import CANDIDATE, CHAMPION, GateConfig


@dataclass(frozen=True)
class Decision:
    """The verdict, and why: sentences, those that the verdict is named after first."""

    verdict: Verdict
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """What was found of the candidate besides its scores: sentences about what it fails, none where it does not."""

    pixels: Sequence[str] = ()
    costs: Sequence[str] = ()


def decide(parts: Sequence[Part], gate: GateConfig, findings: Findings = Findings()) -> Decision:
    """Judge the candidate against the champion, where the systems of `parts` have one, and the trivial answers.

    It is promoted where, over all pairs, it wins each of the gate's metrics (the sign-flip permutation test, by Holm
    for all metrics of the table), and is below the best trivial answer in none of their means, and nowhere loses a
    metric (by that test) by more than it may, and fails nothing of `findings`. Without a champion there is nothing to
    win or to lose. PromoteError for a metric of the gate that no pair has.
    """
    compared = [(part, _against(part)) for part in parts]
    gated = [
        (part, verdicts, name) for part, verdicts in compared if not part.name for name in gate.metrics
        if name in part.metrics
    ]  # fmt: skip
    if lacking := sorted({*gate.metrics} - {name for _, _, name in gated}):
        there = ", ".join(name for part in parts if not part.name for name in part.metrics)
        raise PromoteError(f"gate.metrics: these pairs have no {lacking[0]}, but {there}")
    floors = [reason for part, _, name in gated for reason in _below(part, name)]
    wins = [(f"{name} {_told(name, part, verdicts)}", verdicts[name]) for part, verdicts, name in gated if verdicts]
    losses = [reason for part, verdicts in compared for reason in _losses(part, verdicts, gate)]
    few = [reason for reason, one in wins if one.outcome is Outcome.TOO_FEW]
    rest = [reason for reason, one in wins if one.outcome in (Outcome.TIE, Outcome.LOSS)]
    won = tuple(reason for reason, one in wins if one.outcome is Outcome.WIN)
    against = (
        (Verdict.PIXELS, findings.pixels), (Verdict.FLOOR, floors), (Verdict.WORSE, losses),
        (Verdict.LIMIT, findings.costs), (Verdict.NOT_BETTER, rest), (Verdict.TOO_FEW, few),
    )  # fmt: skip
    found = [(verdict, reasons) for verdict, reasons in against if reasons]
    if found:
        return Decision(found[0][0], (*(reason for _, reasons in found for reason in reasons), *won))
    return Decision(Verdict.PROMOTED, won or (f"not below the trivial answers in {', '.join(gate.metrics)}",))


def _against(part: Part) -> Mapping[str, Compared]:
    """Of each metric, the candidate against the champion; nothing where there is none."""
    values = part.scored.values
    if CHAMPION not in part.systems:
        return {}
    return compare({name: (values[CANDIDATE][name], values[CHAMPION][name]) for name in part.metrics}, part.metrics)


def _below(part: Part, name: str) -> Iterator[str]:
    """Where the candidate's mean is not as good as that of the best trivial answer."""
    sign = 1 if part.metrics[name].better == "higher" else -1
    means = {system: row[name] for system, row in part.scored.means.items()}
    own = means[CANDIDATE]
    floor = {system: mean for system, mean in means.items() if system not in part.systems and math.isfinite(mean)}
    if not floor:
        return
    best = max(floor, key=lambda system: sign * floor[system])
    # Also where it is not a number.
    if not sign * own >= sign * floor[best]:
        yield f"{name} is {own:.4g}, that of the trivial answer {best!r} {floor[best]:.4g}"


def _losses(part: Part, verdicts: Mapping[str, Compared], gate: GateConfig) -> Iterator[str]:
    for name, one in verdicts.items():
        limit = gate.may_lose(name)
        if one.outcome is Outcome.LOSS and not abs(one.difference) <= limit:
            yield f"{name} {_told(name, part, verdicts)}, and may lose {percent(limit)}"


def _told(name: str, part: Part, verdicts: Mapping[str, Compared]) -> str:
    """The verdict on a metric in words."""
    one = verdicts[name]
    where = f" on {part.name}" if part.name else ""
    if one.outcome is Outcome.TOO_FEW:
        could = f"could show {percent(one.smallest)}" if math.isfinite(one.smallest) else "can show nothing"
        return f"cannot be told{where}: {pairs(one.n)} {could}, and the difference is {percent(one.difference, '+')}"
    words = {Outcome.WIN: "wins", Outcome.LOSS: "loses", Outcome.TIE: "ties"}[one.outcome]
    interval = f" ({percent(one.low, '+')} to {percent(one.high, '+')})" if math.isfinite(one.low) else ""
    return f"{words}{where} by {percent(one.difference, '+')}{interval}, {pairs(one.n)}"
