"""A few seconds of what `python tests/helpers/fuzz.py` does for minutes, and that it would find what it looks for."""

from __future__ import annotations

import faulthandler
import os
import signal
import time

import pytest
from fuzz import Target, case, finding, fuzz, targets
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvfusion.infra.errors import RwkvFusionError

TARGETS = {target.name: target for target in targets()}


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_readers_answer_with_a_right_result_or_an_error_of_ours(name: str, seed: int) -> None:
    data = case(TARGETS[name], seed, 0)
    assert finding(TARGETS[name], data) is None


@pytest.mark.parametrize("name", TARGETS)
def test_examples_are_read_undamaged(name: str) -> None:
    read = 0
    for data in TARGETS[name].examples:
        try:
            TARGETS[name].read(data)
            read += 1
        except RwkvFusionError:
            continue
    assert read > 0


def _planted(data: bytes) -> None:
    what = data[:1]
    if what == b"k":
        faulthandler.disable()  # it would say so at length
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == b"h":
        time.sleep(60)
    if what == b"e":
        raise KeyError("not ours")
    if what == b"o":
        raise RwkvFusionError("ours")


def test_crashes_hangs_and_other_errors_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.HANG_SECONDS", 0.6)
    planted = [Target(what.decode(), (what * 9,), (what,), _planted) for what in (b"k", b"h", b"e", b"o", b"g")]
    counts, findings = fuzz(planted, 4, seed=1)
    assert {found.split(" ")[0] + found.split(" ")[1] for found in findings} >= {"k:died", "h:hangs", "e:KeyError"}
    assert not [found for found in findings if found.startswith(("o", "g"))]
    assert set(counts) == {target.name for target in planted}
