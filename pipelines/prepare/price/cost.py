"""What shards took to make, step by step, summed from the records of what was done for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from rwkvfusion.stages.dataset.manifest import Effort, StageRecord


@dataclass(frozen=True)
class Cost:
    """What one step took for `pairs` pairs that it ran on.

    Seconds: by the clock, of a core, and those of the former in which it was ready and had no core. Bytes: read by the
    source, cached by a stage, written by the commit. What is not the time by the clock is known of `noted` pairs: of
    shards that an older version made it is not.
    """

    pairs: int = 0
    seconds: float = 0.0
    noted: int = 0
    cpu_seconds: float = 0.0
    queued_seconds: float = 0.0
    retries: int = 0
    bytes: int = 0

    @property
    def per_pair(self) -> float:
        """Seconds a pair by the clock."""
        return self.seconds / max(self.pairs, 1)

    @property
    def cpu(self) -> float:
        """Seconds of a core a pair."""
        return self.cpu_seconds / max(self.noted, 1)

    @property
    def alone(self) -> float:
        """Seconds a pair that it would take with a core to itself."""
        return max(self.per_pair - self.queued_seconds / max(self.noted, 1), 0.0)


def costs(records: Iterable[StageRecord], before: Mapping[str, Cost] = MappingProxyType({})) -> dict[str, Cost]:
    """The sum of `records` by step, added to what was `before`; of pairs for which something was made."""
    sums = dict(before)
    for record in records:
        sum_ = sums.setdefault(record.stage, Cost())
        effort = record.effort or Effort(cpu_seconds=0.0)
        if record.made:
            sums[record.stage] = replace(
                sum_,
                pairs=sum_.pairs + record.made,
                seconds=sum_.seconds + record.seconds,
                noted=sum_.noted + (record.made if record.effort else 0),
                cpu_seconds=sum_.cpu_seconds + effort.cpu_seconds,
                queued_seconds=sum_.queued_seconds + effort.queued_seconds,
                retries=sum_.retries + effort.retries,
                bytes=sum_.bytes + effort.bytes,
            )
    return sums


def marginal(records: Iterable[StageRecord]) -> dict[str, Cost]:
    """`costs` of what more pairs would take: without what the first shard of a process took, where there are others."""
    every = list(records)
    later = costs(record for record in every if not (record.effort and record.effort.first))
    return {step: later[step] if step in later and later[step].pairs else cost for step, cost in costs(every).items()}
