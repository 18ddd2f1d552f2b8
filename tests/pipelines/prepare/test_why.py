"""Why a shard is made again: `why` for each thing that may have changed, and as a person asks for it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from accounts import make
from click.testing import CliRunner
from made import write_pairs

from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.prepare.plan import Job, plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.prepare.why import reasons
from rwkvfusion.stages.dataset import commit
from rwkvfusion.stages.dataset.manifest import Manifest, Quarantined, read_manifest, write_manifest
from rwkvfusion.stages.guidance.stage import fingerprint

SHARD = "train-000000"


def job_of(root: Path, **more: Any) -> Job:
    recipe: dict[str, Any] = {"shard": {"pairs": 4}, **more, "output": str(root / "out")}
    recipe["source"] = {"layout": "msrs", "root": str(root / "raw"), **more.get("source", {})}
    return plan_job(PrepareRecipe.model_validate(recipe))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Four pairs of the smallest kind, as one committed shard."""
    write_pairs(tmp_path / "raw", ["a00", "a01", "b00", "b01"], height=24, width=32)
    job = job_of(tmp_path)
    assert reasons(job) == {SHARD: "not made yet"}
    assert reasons(make(job, [SHARD])) == {}
    return tmp_path


def tar(root: Path) -> Path:
    return root / "out" / "msrs" / f"{SHARD}.tar"


def prove(root: Path, change: Callable[[Manifest], dict[str, Any]]) -> None:
    store = Store(str(root / "out" / "msrs"))
    manifest = read_manifest(store, SHARD)
    assert manifest is not None
    write_manifest(store, manifest.model_copy(update=change(manifest)))


def cut(root: Path) -> None:
    tar(root).write_bytes(tar(root).read_bytes()[:1000])


def remove(root: Path, *stems: str) -> None:
    for stem in stems:
        for folder in ("vi", "ir"):
            (root / "raw" / "train" / folder / f"{stem}.png").unlink()


def other_stage(manifest: Manifest) -> dict[str, Any]:
    """As if text had been made by a version, and with weights, that there are no more."""
    *others, text = manifest.stages
    identity = {**text.identity, "version": 0, "weights": {"sha256": "0123456789abcdef" * 4}}
    stages = (*others, text.model_copy(update={"identity": identity, "fingerprint": "0" * 64}))
    return {"stages": stages, "fingerprint": fingerprint("", [stage.fingerprint for stage in stages[1:]])}


def other_schema(manifest: Manifest) -> dict[str, Any]:
    stages = tuple(stage.model_copy(update={"fingerprint": "0" * 64}) for stage in manifest.stages)
    whole = fingerprint("", [stage.fingerprint for stage in stages[1:]])
    return {"stages": stages, "fingerprint": whole, "schema_version": 0}


def in_quarantine(manifest: Manifest) -> dict[str, Any]:
    lost = Quarantined(key=manifest.keys[0], files=("x.png", "y.png"), stage="source", kind="size", message="odd")
    return {"keys": manifest.keys[1:], "quarantined": (lost,)}


def nothing(root: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        (nothing, {"merge": {"match_iou": 0.4}}, r"merge\.match_iou 0\.\d+ -> 0\.4"),
        (nothing, {"text": {"width": 64}, "merge": {"match_iou": 0.4}}, r"merge\.match_iou .*; text\.width \d+ -> 64"),
        (nothing, {"masks": "none"}, r"caption.max_regions 3 -> 0; stage detect removed; .* and 1 more"),
        (nothing, {"masks": "annotation"}, r".*segment\.method grabcut -> annotation.*"),
        (nothing, {"source": {"scale": {"infrared": 200}}}, r"source\.scale\.infrared null -> 200(\.0)?"),
        (lambda root: prove(root, other_stage), {}, r"text\.version 0 -> \d; text\.weights\.sha256 01234567.* -> null"),
        (lambda root: prove(root, lambda _: {"fingerprint": "0" * 64}), {}, r"source\.scale, .* proof says nothing"),
        (lambda root: prove(root, other_schema), {}, r"schema_version 0 -> \d"),
        (lambda root: remove(root, "b00"), {}, r"1 pair removed \(b00\)"),
        (lambda root: remove(root, "a00", "a01", "b00"), {}, r"3 pairs removed \(a00, a01, b00\)"),
        (lambda root: prove(root, lambda _: {"plan": "0" * 64}), {}, r"files of at least one of its 4 pairs .*"),
        (lambda root: prove(root, lambda one: {**in_quarantine(one), "plan": "0" * 64}), {}, r"1 pair changed \(a00\)"),
        (cut, {}, r"a tar of 1000 bytes, not \d{4,}"),
        (lambda root: tar(root).unlink(), {}, r"no tar"),
        (cut, {"text": {"width": 64}}, r"text\.width \d+ -> 64; a tar of 1000 bytes, not \d+"),
    ],
)  # fmt: skip
def test_why_says_what_changed(made: Path, change: Callable[[Path], None], settings: dict[str, Any], said: str) -> None:
    change(made)
    assert list(reasons(job_of(made, **settings))) == [SHARD]
    assert_matches(reasons(job_of(made, **settings))[SHARD], said)


def assert_matches(text: str, pattern: str) -> None:
    assert re.fullmatch(pattern, text), text


def test_what_was_read_in_another_way_is_named_from_either_side(made: Path) -> None:
    at_200 = {"source": {"scale": {"infrared": 200}}}
    assert reasons(make(job_of(made, **at_200), [SHARD])) == {}
    assert_matches(reasons(job_of(made))[SHARD], r"source\.scale\.infrared 200(\.0)? -> null")
    # Proofs of before it was noted do not name it, and are not taken to.
    prove(made, lambda one: {"stages": (one.stages[0].model_copy(update={"identity": {}}), *one.stages[1:])})
    assert_matches(reasons(job_of(made))[SHARD], r"source\.scale, .* proof says nothing")
    assert_matches(reasons(job_of(made, **at_200, text={"width": 64}))[SHARD], r"text\.width \d+ -> 64")


def test_a_setting_of_a_later_version_is_named(made: Path) -> None:
    def later(manifest: Manifest) -> dict[str, Any]:
        source = manifest.stages[0].model_copy(update={"identity": {"gamma": 2.2}})
        return {"stages": (source, *manifest.stages[1:]), "fingerprint": "0" * 64}

    prove(made, later)
    assert reasons(job_of(made))[SHARD] == "source.scene.gamma 2.2 -> null"


def test_what_was_begun_for_a_reason_and_ended_by_another_job_keeps_it(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the proof of the tar under its interim name and the last one."""

    def dies(store: Store, manifest: Manifest) -> None:
        write_manifest(store, manifest)
        if manifest.file is not None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(commit, "write_manifest", dies)
        with pytest.raises(KeyboardInterrupt):
            make(job_of(made, text={"width": 64}), [SHARD])
    job = job_of(made, text={"width": 64})
    assert reasons(job) == {SHARD: "a job that ended early has not given its tar its name"}
    make(job, [SHARD])
    manifest = read_manifest(job.store, SHARD)
    assert manifest is not None
    assert_matches(manifest.why or "", r"text\.width \d+ -> 64")


def test_pairs_in_quarantine_are_tried_again_by_name(made: Path) -> None:
    prove(made, in_quarantine)
    assert reasons(job_of(made)) == {}
    assert reasons(replace(job_of(made), retry=True)) == {SHARD: "1 pair in quarantine, tried again (a00)"}


def test_a_person_asks_and_is_told(made: Path) -> None:
    """One setting, two more pairs, a tar that is short: by `prepare --dry-run` and by `status --shards`."""
    write_pairs(made / "raw", ["x00"], "test", 24, 32)
    make(job_of(made), ["test-000000"])
    sets = [f"source.root={made / 'raw'}", f"output={made / 'out'}", "shard.pairs=4"]

    def run(command: str, *more: str) -> Any:
        words = [word for one in sets for word in ("--set", one)]
        result = CliRunner().invoke(main, [command, "msrs", *words, *more])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout) if "--json" in more else result.stdout

    assert run("prepare", "--dry-run", "--json")["why"] == {}
    setting = ("--set", "merge.match_iou=0.4")
    facts = run("prepare", "--dry-run", "--json", *setting)
    assert set(facts["why"]) == {"test-000000", SHARD}
    (reason,) = set(facts["why"].values())
    assert f"  2: {reason} (test-000000, {SHARD})" in run("prepare", "--dry-run", *setting).splitlines()

    write_pairs(made / "raw", ["y00", "y01"], "test", 24, 32)
    cut(made)
    why = run("prepare", "--dry-run", "--json")["why"]
    assert why["test-000000"] == "2 pairs added (y00, y01)"
    assert_matches(why[SHARD], r"a tar of 1000 bytes, not \d+")
    assert {one["shard"]: one["why"] for one in run("status", "--json")["shards"]} == why
    lines = run("status", "--shards").splitlines()
    assert lines[1].split()[-1] == "why"
    assert all(any(line.startswith(shard) and line.endswith(reason) for line in lines) for shard, reason in why.items())


def test_afterwards_the_dataset_says_why_it_was_made_again(made: Path) -> None:
    """Of a setting, of a tar that is short, and of a shard that was made once; the URL alone is asked."""
    url = str(made / "out" / "msrs")

    def said() -> dict[str, tuple[str | None, str | None]]:
        result = CliRunner().invoke(main, ["status", url, "--json"])
        return {one["shard"]: (one["why"], one["made_again"]) for one in json.loads(result.stdout)["shards"]}

    def again() -> str:
        table = CliRunner().invoke(main, ["status", url, "--shards"]).stdout
        (line,) = [line for line in table.splitlines() if line.startswith(SHARD)]
        return line.partition(f"made again {datetime.now(UTC):%Y-%m-%d} ")[2][len("00:00 UTC: ") :].rstrip()

    assert said() == {SHARD: (None, None)}
    write_pairs(made / "raw", ["x00"], "test", 24, 32)
    make(job_of(made, merge={"match_iou": 0.4}), [SHARD, "test-000000"])
    assert said()["test-000000"] == (None, None)
    assert_matches(again(), r"merge\.match_iou 0\.\d+ -> 0\.4")
    assert said()[SHARD] == (None, again())
    cut(made)
    to_be, was = said()[SHARD]
    assert_matches(to_be or "", r"a tar of 1000 bytes, not \d+")
    assert_matches(was or "", r"merge\.match_iou .*")
    make(job_of(made, merge={"match_iou": 0.4}), [SHARD])
    assert_matches(again(), r"a tar of 1000 bytes, not \d+")
