"""How often a piece of work was begun and not ended: what tells a retry that the process before it died.

{folder}/_attempts/{step}/{shard}
"""

from __future__ import annotations

from rwkvfusion.infra.storage import MissingError, Store

ATTEMPTS = "_attempts"


class Attempts:
    """Of one step, in the folder `store`; one process at a time works on a shard."""

    def __init__(self, store: Store, step: str) -> None:
        self.store = store.sub(f"{ATTEMPTS}/{step}")

    def begin(self, shard: str) -> int:
        """Note that work on `shard` begins; how often it did before without an end."""
        try:
            before = int(self.store.read(shard))
        except (MissingError, ValueError):
            before = 0
        self.store.write(shard, str(before + 1).encode())
        return before

    def end(self, shard: str) -> None:
        """Note that the work is done."""
        self.store.remove(shard)


def forget_attempts(store: Store) -> None:
    """Remove all counts below the folder `store`, where nothing is begun any more."""
    for name in store.files(ATTEMPTS):
        store.remove(name)
