"""The history of an alias: in step with it whatever happens, and quick."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from made_registries import GRAINIER, GRAINY, NAME, Registry, fuser, promote_and_tell
from mlflow import MlflowClient

from rwkvfusion.infra.lease import LeaseError
from rwkvfusion.model.names import WEIGHTS
from rwkvfusion.pipelines.registry.entry import PromoteError, Step, Verdict, line_of, withdrawn_by
from rwkvfusion.pipelines.registry.history import History
from rwkvfusion.pipelines.registry.recipe import PromoteRecipe
from rwkvfusion.pipelines.registry.rollback import rollback, why
from rwkvfusion.pipelines.registry.run import promote

ANYWHERE = pytest.mark.parametrize(
    "registry", ["file", pytest.param("server", marks=[pytest.mark.slow, pytest.mark.mlflow])], indirect=True
)
"""Once in an SQLite file, once on a server before PostgreSQL."""
WRITES = ("log_text", "log_param", "set_registered_model_alias", "set_model_version_tag", "set_tag")


class Killed(BaseException):
    """As a process dies: nothing after it is done, not even leases are given back."""


@pytest.fixture
def versions(registry: Registry) -> Registry:
    """Four versions of one fuser, of which the first is the champion."""
    fuser(GRAINY).save(registry.folder / "model")
    for _ in range(4):
        registry.add(registry.folder / "model")
    registry.point("champion", "1")
    return registry


def open_history(registry: Registry) -> History:
    return History.open(registry.uri, NAME, "champion")


def move(registry: Registry, version: str) -> None:
    with open_history(registry).moving() as turn:
        turn.add(Verdict.PROMOTED, version, version, reasons=("better",), weights_sha256=turn.weights_of(version))


def told(registry: Registry) -> list[tuple[str, str | None, str | None]]:
    return [(str(one.verdict), one.before, one.after) for one in open_history(registry).proofs]


def check_in_step(registry: Registry) -> None:
    """Alias and history agree, entries are numbered without a gap, follow from each other and are what was written."""
    history = open_history(registry)
    proofs = history.proofs
    assert history.is_in_step, (proofs, history.done, registry.champion)
    assert [one.number for one in proofs] == [*range(1, len(proofs) + 1)]
    assert all(one.after == next_.before for one, next_ in itertools.pairwise(proofs))
    for proof in proofs:
        assert history.read(proof).number == proof.number
        if proof.version is not None:
            assert "promotion.entry" in registry.client.get_model_version(NAME, proof.version).tags


def test_the_line_of_champions_ends_where_the_alias_came_back_to() -> None:
    moves = ["1", "2", "3", "2", None, "4", "1"]
    steps = [
        Step(number=i, verdict=Verdict.PROMOTED, version=to, before=None, after=to, when="", weights_sha256=None)
        for i, to in enumerate(moves, start=1)
    ]
    lines = [line_of(steps[:n]) for n in range(len(moves) + 1)]
    assert lines == [[], ["1"], ["1", "2"], ["1", "2", "3"], ["1", "2"], ["1", "2"], ["1", "2", "4"], ["1"]]


def test_what_was_taken_out_of_use_is_known_until_the_alias_comes_back() -> None:
    def moves(*verdicts_and_places: tuple[Verdict, str]) -> list[Step]:
        places = [None, *(place for _, place in verdicts_and_places)]
        return [
            Step(number=i, verdict=verdict, version=to, before=places[i - 1], after=to, when="", weights_sha256=None)
            for i, (verdict, to) in enumerate(verdicts_and_places, start=1)
        ]

    up = [(Verdict.PROMOTED, "1"), (Verdict.PROMOTED, "2")]
    assert withdrawn_by(moves(*up), "1") is None
    assert withdrawn_by(moves(*up, (Verdict.FOUND, "1")), "2") is not None
    back = moves(*up, (Verdict.ROLLED_BACK, "1"), (Verdict.NOT_BETTER, "1"))
    found = withdrawn_by(back, "2")
    assert found is not None
    assert found.number == 3
    assert withdrawn_by(back, "1") is None
    assert withdrawn_by(moves(*up, (Verdict.ROLLED_BACK, "1"), (Verdict.ROLLED_BACK, "2")), "2") is None


@ANYWHERE
def test_rollback_goes_back_along_the_line_and_to_champions_alone(versions: Registry) -> None:
    for version in ("2", "3"):
        move(versions, version)
    entry = rollback(NAME, "champion", tracking=versions.uri)
    assert (entry.before, entry.after, versions.champion) == ("3", "2", "2")
    assert entry.reasons == ("its weights have the SHA-256 that was registered",)
    assert rollback(NAME, "champion", tracking=versions.uri).after == "1"
    with pytest.raises(PromoteError, match=r"is at version 1, and there was no champion before$"):
        rollback(NAME, "champion", tracking=versions.uri)
    assert rollback(NAME, "champion", "3", versions.uri).after == "3"
    with pytest.raises(PromoteError, match=r"version 4 of tiny never was @champion, .* there was 1, 2, 3$"):
        rollback(NAME, "champion", "4", versions.uri)
    assert versions.champion == "3"
    assert told(versions)[3:] == [
        ("rolled back to", "3", "2"),
        ("rolled back to", "2", "1"),
        ("rolled back to", "1", "3"),
    ]
    champion, about = why(NAME, "champion", "2", versions.uri)
    assert champion == "3"
    assert [one.number for one in about] == [2, 3, 4, 5]
    check_in_step(versions)


def test_weights_that_are_not_those_that_were_registered_are_not_brought_back(registry: Registry) -> None:
    registry.add(fuser(GRAINY), "champion")
    registry.add(fuser(0.2))
    move(registry, "2")
    weights = registry.files("1") / WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(PromoteError, match="version 1 is not what was registered: its SHA-256 differs"):
        rollback(NAME, "champion", tracking=registry.uri)
    weights.unlink()
    with pytest.raises(PromoteError, match="--to names another version"):
        rollback(NAME, "champion", tracking=registry.uri)
    assert registry.champion == "2"
    weights.write_bytes(whole)
    assert rollback(NAME, "champion", tracking=registry.uri).after == "1"


@ANYWHERE
def test_an_alias_that_others_move_gets_an_entry_that_says_so(versions: Registry) -> None:
    move(versions, "2")
    versions.point("champion", "4")
    assert why(NAME, "champion", "4", versions.uri)[1][0].reasons == (
        "@champion is on version 4: it was moved by something else than promote and rollback",
    )
    versions.client.delete_registered_model_alias(NAME, "champion")
    move(versions, "3")
    assert told(versions) == [
        ("found", None, "1"),
        ("promoted", "1", "2"),
        ("found", "2", "4"),
        ("found", "4", None),
        ("promoted", None, "3"),
    ]
    check_in_step(versions)


def test_an_entry_that_was_changed_is_seen(versions: Registry) -> None:
    move(versions, "2")
    history = open_history(versions)
    proof = history.proofs[-1]
    (file,) = versions.folder.rglob(Path(proof.file).name)
    entry = json.loads(file.read_text()) | {"who": "nobody"}
    file.write_text(json.dumps(entry))
    with pytest.raises(PromoteError, match="was changed or damaged since"):
        history.read(proof)


@ANYWHERE
@pytest.mark.parametrize("is_done", [False, True], ids=["before the call", "after the call"])
def test_who_dies_at_any_step_leaves_what_the_next_command_completes(
    versions: Registry, monkeypatch: pytest.MonkeyPatch, is_done: bool
) -> None:
    """Each call that writes is the last one in turn: the entry is there with its move, or neither is."""
    move(versions, "2")
    seen = set()
    for n in itertools.count(1):
        before, count = len(told(versions)), itertools.count(1)
        target = {"2": "3", "3": "2"}[versions.champion or ""]
        with monkeypatch.context() as patched:
            last = _dies_at(patched, count, n, is_done)
            with suppress(Killed):
                move(versions, target)
        if len(last) < n:
            break
        seen.add(last[n - 1])
        _die(versions)
        why(NAME, "champion", "2", versions.uri)
        check_in_step(versions)
        after = told(versions)
        assert len(after) - before == (versions.champion == target), (n, last)
    assert seen == {*WRITES}


def _dies_at(patched: pytest.MonkeyPatch, count: itertools.count[int], n: int, is_done: bool) -> list[str]:
    """Let the n-th call that writes raise, once it is done or before; the calls so far."""
    called: list[str] = []
    main = threading.current_thread()

    def dying(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **words: Any) -> Any:
            if threading.current_thread() is not main:
                return call(*args, **words)
            called.append(name)
            number = next(count)
            if number > n or (number == n and not is_done):
                raise Killed(name)
            result = call(*args, **words)
            if number == n:
                raise Killed(name)
            return result

        return instead

    for name in WRITES:
        patched.setattr(MlflowClient, name, dying(name, getattr(MlflowClient, name)))
    return called


def _die_now(*_: object, **__: object) -> None:
    raise Killed


def _die(registry: Registry) -> None:
    """What is left of the lease is that of a process that is gone."""
    history = open_history(registry)
    data = registry.client.get_run(history.run_id).data
    name = max(name for name in data.params if name.startswith("moving/_lease/"))
    record = json.loads(data.tags.get(name, data.params[name]))
    record["holder"]["began"] -= 1000
    registry.client.set_tag(history.run_id, name, json.dumps(record))


@ANYWHERE
def test_a_rollback_that_died_is_completed_and_not_done_twice(
    versions: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("2", "3"):
        move(versions, version)
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "set_registered_model_alias", _die_now)
        patched.setattr(MlflowClient, "set_tag", _die_now)
        with pytest.raises(Killed):
            rollback(NAME, "champion", tracking=versions.uri)
    _die(versions)
    assert versions.champion == "3"
    entry = rollback(NAME, "champion", tracking=versions.uri)
    assert (entry.number, entry.after, versions.champion) == (4, "2", "2")
    check_in_step(versions)


@ANYWHERE
def test_two_are_kept_apart(versions: Registry) -> None:
    history = open_history(versions)
    with history.judging(), pytest.raises(LeaseError, match=r"^tiny@champion is being written by process \d+ on "):
        open_history(versions).judging().__enter__()
    with history.judging():
        pass
    # Moves wait for each other.
    moves = [threading.Thread(target=move, args=(versions, version)) for version in ("2", "3", "4")]
    for one in moves:
        one.start()
    for one in moves:
        one.join()
    assert len(told(versions)) == 4
    check_in_step(versions)


@ANYWHERE
def test_a_history_that_was_deleted_in_the_browser_is_brought_back(versions: Registry) -> None:
    move(versions, "2")
    run_id = open_history(versions).run_id
    versions.client.delete_run(run_id)
    versions.client.delete_experiment(versions.client.get_run(run_id).info.experiment_id)
    assert open_history(versions).run_id == run_id
    check_in_step(versions)


@ANYWHERE
def test_rollback_and_why_are_quick_with_200_versions(registry: Registry) -> None:
    """The commands' own work, without the imports: less than 2 s of this process's time."""
    fuser(GRAINY).save(registry.folder / "model")
    for _ in range(200):
        registry.add(registry.folder / "model")
    registry.point("champion", "1")
    history = open_history(registry)
    for version in range(2, 16):
        with history.moving() as turn:
            turn.add(Verdict.PROMOTED, str(version), str(version), weights_sha256=None)
    begin = time.process_time()
    assert rollback(NAME, "champion", tracking=registry.uri).after == "14"
    assert [one.number for one in why(NAME, "champion", "14", registry.uri)[1]] == [14, 15, 16]
    assert time.process_time() - begin < 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("registry", "kills"), [("file", 50), pytest.param("server", 20, marks=pytest.mark.mlflow)], indirect=["registry"]
)
def test_alias_and_history_agree_after_random_kills(
    registry: Registry, kills: int, make_recipe: Callable[..., PromoteRecipe]
) -> None:
    """Half of them while the move is made, which is short, half at any time."""
    registry.add(fuser(GRAINY), "champion")
    candidate = registry.add(fuser(GRAINIER), "candidate")
    better = registry.files(candidate)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow", "rwkvfusion.pipelines.registry.run"])
    values, rng = make_recipe().model_dump(mode="json"), random.Random(17)

    def begin() -> tuple[Any, Any, Any]:
        events = context.Event(), context.Event()
        process = context.Process(target=promote_and_tell, args=(values, registry.uri, *events))
        process.start()
        return process, *events

    def back() -> str:
        """The first is in use again, and there is another candidate: the one before was taken out of use."""
        rollback(NAME, "champion", tracking=registry.uri)
        assert registry.champion == "1"
        return registry.add(better, "candidate")

    process, is_scored, is_done = begin()
    start = time.monotonic()
    assert is_scored.wait(300)
    scored = time.monotonic() - start
    assert is_done.wait(300)
    moved = time.monotonic() - start - scored
    process.join()
    assert registry.champion == candidate
    candidate, n_moved = back(), 0
    for i in range(kills):
        process, is_scored, _ = begin()
        if i % 2:
            assert is_scored.wait(300)
        time.sleep(rng.uniform(0, moved if i % 2 else scored + moved))
        process.kill()
        process.join()
        if i % 5 == 4:
            # The same command ends as if nothing had happened.
            recipe = PromoteRecipe.model_validate(values)
            assert promote(recipe, tracking=registry.uri, say=lambda _: None).is_promoted
            assert registry.champion == candidate
        else:
            why(NAME, "champion", candidate, registry.uri)
        check_in_step(registry)
        if registry.champion == candidate:
            n_moved += i % 5 != 4
            candidate = back()
    print(f"{kills} kills, a version scored after {scored:.1f} s and in use {moved:.1f} s later: {n_moved} moves done")
    assert 0.06 * kills <= n_moved <= 0.74 * kills
