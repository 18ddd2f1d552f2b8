"""Adding pairs costs what is added: which shards are written again as pairs come and go."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from math import ceil
from pathlib import Path
from shutil import copytree, rmtree

import numpy as np
import pyarrow as pa
import pytest
from accounts import make
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from made import scene
from PIL import Image

from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.prepare.assignment import MOST_WAVES, Assignment, assign, moves, waves
from rwkvfusion.pipelines.prepare.plan import Job, plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.prepare.run import prepare
from rwkvfusion.pipelines.prepare.verify import verify
from rwkvfusion.stages.dataset.dataset import Dataset
from rwkvfusion.stages.dataset.manifest import ASSIGNMENT, Manifest, Quarantined
from rwkvfusion.stages.dataset.tar import members_by_key

Pair = tuple[str, int, str]
"""Split, members (0 are the most), key."""
Shards = dict[str, tuple[str, ...]]
"""The keys in each."""


def put(pairs: Iterable[Pair], size: int, before: Assignment | None = None) -> Assignment:
    ordered = sorted(pairs)
    kinds = sorted({(split, members) for split, members, _ in ordered})
    groups = np.array([kinds.index((split, members)) for split, members, _ in ordered], np.int64)
    keys = pa.array([key for *_, key in ordered], pa.string())
    return assign(keys, groups, [split for split, _ in kinds], size, before)


def content(assignment: Assignment) -> Shards:
    keys = assignment.keys.to_pylist()
    return {name: tuple(keys[place] for place in places) for name, places in assignment.places()}


def shuffled(assignment: Assignment, seed: int) -> Assignment:
    """The same as others might have written it down."""
    order = np.random.default_rng(seed).permutation(len(assignment.keys))
    return Assignment(assignment.keys.take(order), assignment.shards.take(order), assignment.size)


def check(pairs: Collection[Pair], shards: Shards, size: int) -> None:
    kind = {key: (split, members) for split, members, key in pairs}
    assert sorted(key for keys in shards.values() for key in keys) == sorted(kind)
    numbers: dict[str, list[int]] = defaultdict(list)
    for name, keys in shards.items():
        split, _, number = name.rpartition("-")
        ((of, members),) = {kind[key] for key in keys}
        assert of == split
        assert list(keys) == sorted(keys)
        numbers[split].append(int(number))
        # Who takes the first shard of a split for all of them loses nothing.
        assert number != "000000" or members == most_members(pairs)[split]
    for found in numbers.values():
        assert found == list(range(len(found)))
    for counts in sizes(pairs, shards).values():
        assert 1 <= counts[0] <= counts[-1] <= size
        assert len(counts) == 1 or counts[0] + counts[1] > size


def most_members(pairs: Iterable[Pair]) -> dict[str, int]:
    """By split."""
    return {split: members for split, members, _ in sorted(pairs, reverse=True)}


def sizes(pairs: Iterable[Pair], shards: Shards) -> dict[tuple[str, int], list[int]]:
    """Of the shards of each kind of pairs, ascending."""
    kind = {key: (split, members) for split, members, key in pairs}
    counts: dict[tuple[str, int], list[int]] = defaultdict(list)
    for keys in shards.values():
        counts[kind[keys[0]]].append(len(keys))
    return {of: sorted(found) for of, found in counts.items()}


def check_written(before: Shards, was: set[Pair], now: Shards, pairs: set[Pair], size: int) -> None:
    """No more shards are written than the pairs that came fill, and the one with room, and two for each that lost
    pairs; or where pairs with more members than all others came. Growth fills shards."""
    stayed = {key for *_, key in pairs & was}
    n_less = sum(not stayed.issuperset(keys) for keys in before.values())
    come = Counter(pair[:2] for pair in pairs - was)
    n_first = sum(members != most_members(was).get(split, members) for split, members in most_members(pairs).items())
    allowed = 2 * n_less + sum(1 + ceil(count / size) for count in come.values()) + 2 * n_first
    assert sum(before.get(name) != keys for name, keys in now.items()) <= allowed
    if was <= pairs:
        old = sizes(was, before)
        for of, counts in sizes(pairs, now).items():
            assert sum(count < size for count in counts) <= max(1, sum(count < size for count in old.get(of, [])))


KINDS = [("train", 0), ("train", 1), ("test", 0), ("train", 2)]
numbers = st.sets(st.integers(0, 79), max_size=25)
edits = st.lists(st.tuples(numbers, numbers, st.sets(st.integers(0, 79), max_size=2)), max_size=5)


@given(st.integers(0, 80), st.integers(1, 4), edits, st.integers(1, 9), st.integers(0, 9))
def test_each_pair_is_in_one_shard_and_few_are_written_again(
    n: int, n_kinds: int, steps: list[tuple[set[int], set[int], set[int]]], size: int, seed: int
) -> None:
    """Pairs go, come, and have other members than before."""
    kinds = {number: KINDS[number % n_kinds] for number in range(n)}
    before, was = None, set[Pair]()
    for gone, come, others in [(set[int](), set[int](), set[int]()), *steps]:
        kinds |= {number: KINDS[number % n_kinds] for number in come} | {number: KINDS[1] for number in others}
        kinds = {number: kind for number, kind in kinds.items() if number not in gone}
        pairs = {(*kind, f"{number:03d}") for number, kind in kinds.items()}
        now = put(pairs, size, before)
        check(pairs, content(now), size)
        if before is not None:
            check_written(content(before), was, content(now), pairs, size)
            assert content(put(pairs, size, shuffled(before, seed))) == content(now)
            old = {key: name for name, keys in content(before).items() for key in keys}
            moved = {name: {old[key] for key in keys if key in old} - {name} for name, keys in content(now).items()}
            found = moves(content(now), content(before))
            assert {name: {*others} for name, others in found.items()} == {n: o for n, o in moved.items() if o}
        assert put(pairs, size, now).is_as(now)
        before, was = now, pairs


killed = st.lists(st.tuples(numbers, numbers, st.integers(1, 9) | st.none(), st.integers(0, 9) | st.none()), max_size=5)


@given(st.integers(0, 80), st.integers(1, 3), killed, st.booleans())
def test_no_pair_is_out_of_reach_while_shards_are_made_anew_and_none_is_made_again(
    n: int, n_kinds: int, steps: list[tuple[set[int], set[int], int | None, int | None]], backwards: bool
) -> None:
    """Pairs go and come, and `shard.pairs` changes; those of one part of the shards are committed in any order, and a
    job is killed once its plan is written, after some of them, or after all."""
    there, size, before = set(range(n)), 4, None
    held, cached = Shards(), Shards()
    for gone, come, other, n_commits in [(set[int](), set[int](), None, None), *steps]:
        there, size = (there | come) - gone, other or size
        before = put([(*KINDS[number % n_kinds], f"{number:03d}") for number in there], size, before)
        new = content(before)
        made = {name: keys for name, keys in new.items() if keys != held.get(name)}
        moved = moves(made, {name: keys for name, keys in held.items() if name in made or name not in new})
        parts = waves({name: {one for one in moved.get(name, ()) if one in made} for name in made})
        assert sorted(name for part in parts for name in part) == sorted(made)
        assert len(parts) <= MOST_WAVES
        stay, exchanged = seen(held) & seen(new), set[str]()
        for part in parts:
            order = part[::-1] if backwards else part
            for at, name in enumerate(order):
                exchanged.update(*({*new[name]} & {*held[one]} for one in moved.get(name, ()) if one in order[:at]))
            # Only what comes at once as it takes from each other, or as there would be too many parts.
            assert not exchanged or part is parts[-1]
            for name in order:
                if n_commits is not None and (n_commits := n_commits - 1) < 0:
                    break
                known = seen(cached, (name, *moved.get(name, ())))
                assert (stay - exchanged).intersection(new[name]) <= known
                cached[name] = held[name] = new[name]
                assert stay - exchanged <= seen(held)
        if n_commits is None or n_commits >= 0:
            held = {name: held[name] for name in new}


def seen(shards: Shards, names: Iterable[str] | None = None) -> set[str]:
    return {key for name in (shards if names is None else names) for key in shards.get(name, ())}


def test_a_long_chain_of_moves_is_cut() -> None:
    pairs = [("train", 0, f"{i:05d}") for i in range(6400)]
    old, new = content(put(pairs, 64)), content(put(pairs, 63))
    moved = moves(new, old)
    # Of 102 shards each but the first takes from the one before.
    assert len(moved) == 101
    parts = waves({name: {one for one in moved.get(name, ()) if one in new} for name in new})
    assert len(parts) == MOST_WAVES
    # Also within the last part who takes comes first.
    place = {name: at for at, name in enumerate(name for part in parts for name in part)}
    assert {*place} == {*new}
    assert all(place[name] < place[one] for name, others in moved.items() for one in others if one in new)


@given(st.integers(0, 90), st.integers(0, 90), st.integers(1, 9))
def test_a_dataset_made_at_once_is_cut_in_order_and_so_is_one_whose_size_was_changed(
    n_rich: int, n_poor: int, size: int
) -> None:
    pairs = [("train", 0, f"{i:03d}") for i in range(0, 2 * n_rich, 2)] + [
        ("train", 1, f"{i:03d}") for i in range(1, 2 * n_poor, 2)
    ]
    rich, poor = ([key for _, members, key in pairs if members == kind] for kind in (0, 1))
    parts = [tuple(keys[at : at + size]) for keys in (rich, poor) for at in range(0, len(keys), size)]
    cut = {f"train-{number:06d}": part for number, part in enumerate(parts)}
    assert content(put(pairs, size)) == cut
    assert content(put(pairs, size, put(pairs[1:], size + 1))) == cut


def test_what_is_left_of_many_shards_becomes_one() -> None:
    pairs = [("train", 0, f"{i:02d}") for i in range(40)]
    left = [pair for shard, count in enumerate((8, 4, 2, 1, 1)) for pair in pairs[8 * shard :][:count]]
    now = put(left, 8, put(pairs, 8))
    assert content(now) == {
        "train-000000": tuple(f"{i:02d}" for i in range(8)),
        "train-000001": ("08", "09", "10", "11", "16", "17", "24", "32"),
    }
    moved = {"train-000001": ("train-000002", "train-000003", "train-000004")}
    assert moves(content(now), content(put(pairs, 8))) == moved


def test_the_record_is_read_as_it_was_written_and_a_damaged_one_is_none() -> None:
    store = Store("memory://recorded")
    before = put([("train", 0, f"{i:02d}") for i in range(10)], 4)
    now = put([("train", 0, f"{i:02d}") for i in range(4, 10)], 4, before)
    now.write(store)
    data = store.read(ASSIGNMENT)
    with pa.ipc.open_file(data) as reader:
        table = reader.read_all()
    # Version 0.2.0 wrote which pairs had moved, and reads no file that does not say it.
    assert json.loads(table.schema.metadata[b"facts"]) == {"size": 4, "moved": {}}
    sink = pa.BufferOutputStream()
    facts = json.dumps({"size": 4, "moved": {"train-000000": ["train-000002"]}})
    with pa.ipc.new_file(sink, table.schema.with_metadata({"facts": facts})) as writer:
        writer.write_table(table)
    for of_a_version in (data, sink.getvalue().to_pybytes()):
        store.write(ASSIGNMENT, of_a_version)
        read = Assignment.read(store)
        assert read is not None
        assert (content(read), read.size) == (content(now), 4)
    for damaged in (b"", data[:-30], data[:40]):
        store.write(ASSIGNMENT, damaged)
        assert Assignment.of_dataset(store, []) is None


def proof(shard: str, keys: tuple[str, ...], quarantined: tuple[str, ...] = ()) -> Manifest:
    lost = [Quarantined(key=key, files=(), stage="source", kind="unreadable", message="") for key in quarantined]
    return Manifest(
        shard=shard, dataset="made", task="vif", sha256=None, size=0, keys=keys, quarantined=tuple(lost), plan="",
        fingerprint="", stages=(), schema_version=1, package_version="0.1.0", commit=None,
    )  # fmt: skip


@given(st.sets(st.integers(0, 6)), st.booleans())
def test_a_dataset_without_a_record_is_adopted_whichever_shards_of_it_are_committed(
    committed: set[int], grows: bool
) -> None:
    pairs = [("train", 0, f"{i:02d}") for i in range(10)] + [("train", 1, f"{i:02d}") for i in range(10, 20)]
    pairs.append(("test", 0, "t"))
    whole = content(put(pairs, 4))
    names = [name for place, name in enumerate(whole) if place in committed]
    # Of each the last pair is in quarantine.
    before = Assignment.of_proofs(proof(name, whole[name][:-1], whole[name][-1:]) for name in names)
    assert content(put(pairs, 4, before)) == whole
    pairs += [("train", 0, "0"), ("train", 0, "99")] if grows else []
    now = content(put(pairs, 4, before))
    check(pairs, now, 4)
    assert content(put([], 4, before)) == {}
    full = [name for name in names if len(whole[name]) == 4]
    assert not full or all(now[name] == whole[name] for name in full)


LONG = [f"p{i:06d}" for i in range(0, 1_000_000, 10)]
"""100,000 keys with room between them."""


def test_the_table_of_the_page() -> None:
    rng = np.random.default_rng(0)
    anywhere = {count: [f"p{i:06d}x" for i in rng.choice(1_000_000, count, replace=False)] for count in (1, 10, 1000)}
    cases = {
        f"{count:,} {'pair' if count == 1 else 'pairs'} added, {where}": [*LONG, *come]
        for count in (1, 10, 1000)
        for where, come in (
            ("all before the others", [f"a{i:06d}" for i in range(count)]),
            ("anywhere", anywhere[count]),
        )
    }
    cases["64 pairs removed, the first"] = LONG[64:]
    cases["64 pairs removed, anywhere"] = sorted({*LONG}.difference(rng.choice(LONG, 64, replace=False)))
    before = put([("train", 0, key) for key in LONG], 64)
    was = content(before)

    def written(keys: list[str], before: Assignment | None) -> int:
        now = content(put([("train", 0, key) for key in keys], 64, before))
        return sum(was.get(name) != part for name, part in now.items())

    counted = {case: (written(keys, None), written(keys, before)) for case, keys in cases.items()}
    page = (Path(__file__).parents[3] / "docs" / "regenerate.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+ pairs? (?:added|removed), .*?) \| ([\d,]+) \| ([\d,]+) \|$", page, re.MULTILINE)
    shown = {case: tuple(int(number.replace(",", "")) for number in numbers) for case, *numbers in rows}
    assert shown == counted


# -- datasets on a disk ------------------------------------------------------------------------------------------------


def add(root: Path, names: str) -> None:
    """A pair for each letter, with pictures of its own."""
    for name in names:
        visible = scene(ord(name), 32, 32)
        for folder, picture in (("vi", visible), ("ir", 255 - visible[:, ::-1, 0])):
            path = root / "raw" / "train" / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)


def remove(root: Path, names: str) -> None:
    for name in names:
        for folder in ("vi", "ir"):
            (root / "raw" / "train" / folder / f"{name}.png").unlink()


def job_of(root: Path, out: str = "out") -> Job:
    recipe = {"source": {"layout": "msrs", "root": str(root / "raw")}, "output": str(root / out),
              "masks": "none", "shard": {"pairs": 3}}  # fmt: skip
    return plan_job(PrepareRecipe.model_validate(recipe))


def keys(job: Job) -> dict[str, str]:
    return {shard.name[-1]: "".join(pair.key for pair in shard.pairs) for shard in job.shards}


def tars(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.glob("*.tar"))}


def members(folder: Path) -> dict[tuple[str, str], bytes]:
    """What the dataset holds, by key and field, whichever shards that is in."""
    unpacked = (members_by_key(path.read_bytes()) for path in folder.glob("*.tar"))
    return {(key, name): data for shard in unpacked for key, named in shard for name, data in named.items()}


def test_a_job_that_is_killed_goes_on_with_the_same_plan_whatever_was_committed(tmp_path: Path) -> None:
    add(tmp_path, "dfghijkmnpqrst")
    job = job_of(tmp_path)
    make(job, [shard.name for shard in job.shards])
    add(tmp_path, "ao")
    remove(tmp_path, "dfghp")
    job = job_of(tmp_path)
    assert (keys(job), job.stale) == ({"0": "st", "1": "aij", "2": "kmn", "3": "oqr"}, ("train-000004",))
    pending = [shard.name for shard in job.pending]
    job.assignment.write(job.store)
    for count in range(len(pending)):
        for committed in itertools.combinations(pending, count):
            copytree(tmp_path / "out", tmp_path / "killed")
            killed = job_of(tmp_path, "killed")
            make(killed, committed)
            again = job_of(tmp_path, "killed")
            assert again.shards == job.shards
            assert {shard.name for shard in again.pending} == {*pending}.difference(committed)
            assert again.moved == ({} if "train-000000" in committed else {"train-000000": ("train-000004",)})
            rmtree(tmp_path / "killed")


def test_while_pairs_move_no_reader_misses_one_or_sees_one_twice(tmp_path: Path) -> None:
    """A job that two shards make one, and the last of all takes the number that is free, is killed at every moment."""
    names = "dfghijkmnpqr"
    add(tmp_path, names)
    make(job_of(tmp_path), [shard.name for shard in job_of(tmp_path).shards])
    folder, left = tmp_path / "out" / "msrs", {*names} - {*"dfij"}
    before = {sample.key: sample for sample in Dataset.open(str(folder)).samples()}
    remove(tmp_path, "dfij")

    def check(*, over: bool) -> None:
        """What readers see now: each pair once, as it was; of those that went maybe some, until it is over."""
        samples = list(Dataset.open(str(folder), allow_incomplete=not over).samples())
        seen = {sample.key: sample for sample in samples}
        assert len(seen) == len(samples)
        assert {*seen} == left if over else left <= {*seen} <= {*names}
        assert seen == {key: before[key] for key in seen}
        assert verify(str(folder), deep=True, allow_incomplete=not over).clean

    job = job_of(tmp_path)
    assert (keys(job), job.stale) == ({"0": "gh", "1": "pqr", "2": "kmn"}, ("train-000003",))
    waves = [[shard.name for shard in wave] for wave in job.waves]
    assert waves == [["train-000000"], ["train-000001"]]
    job.assignment.write(job.store)
    job.planned.write(job.store)
    for wave in waves:
        for name in wave:
            check(over=False)
            make(job_of(tmp_path), [name])
            # Killed here: who comes next goes on with what is left.
            assert [[shard.name for shard in part] for part in job_of(tmp_path).waves] == waves[waves.index(wave) + 1 :]
    # All that is planned is there; what is not, is not read, and goes as the next job ends.
    check(over=True)
    assert job_of(tmp_path).stale == ("train-000003",)
    prepare(job_of(tmp_path), say=lambda _: None)
    assert (job_of(tmp_path).stale, job_of(tmp_path).pending) == ((), ())
    check(over=True)


@pytest.mark.parametrize("n_committed", [0, 1])
@pytest.mark.parametrize(("change", "name"), [(remove, "r"), (add, "s")])
def test_a_source_that_changes_after_a_kill_costs_no_reader_a_pair_and_no_stage_its_work(
    tmp_path: Path, change: Callable[[Path, str], None], name: str, n_committed: int
) -> None:
    """Where pairs are is told by the proofs: what is planned may have changed twice since."""
    add(tmp_path, "dfghijkmnpqr")
    job = job_of(tmp_path)
    make(job, [shard.name for shard in job.shards])
    remove(tmp_path, "dfij")
    job = job_of(tmp_path)
    assert (keys(job), job.stale) == ({"0": "gh", "1": "pqr", "2": "kmn"}, ("train-000003",))
    # Killed once its plan is written, or after the first commit.
    make(job, [shard.name for wave in job.waves for shard in wave][:n_committed])
    change(tmp_path, name)
    job = job_of(tmp_path)
    assert any(job.moved.values())
    stay = {*"ghkmnpqr"} - {name}
    for shard in [shard.name for wave in job.waves for shard in reversed(wave)]:
        new = {pair.key for one in job.shards if one.name == shard for pair in one.pairs} & {"s"}
        assert job.moved == job_of(tmp_path).moved
        job = make(job, [shard])
        records = job.committed[shard].stages
        assert {record.made for record in records if record.stage != "source"} == {len(new)}
        assert stay <= {sample.key for sample in Dataset.open(job.store.url, allow_incomplete=True).samples()}
    assert (job.pending, job.moved) == ((), {})


@pytest.mark.usefixtures("local_ray")
def test_a_dataset_that_grew_holds_the_same_samples_as_one_made_at_once(tmp_path: Path) -> None:
    add(tmp_path, "dfghijkm")
    job = job_of(tmp_path)
    make(job, [shard.name for shard in job.shards])
    folder = tmp_path / "out" / "msrs"
    before = tars(folder)
    add(tmp_path, "a")
    remove(tmp_path, "dfg")
    words = [
        f"source.root={tmp_path}/raw",
        f"output={tmp_path}/out",
        "source.layout=msrs",
        "shard.pairs=3",
        "masks=none",
    ]
    command = ["prepare", "vif.yaml", *(word for one in words for word in ("--set", one)), "--json"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    outcome = json.loads(result.stdout)
    assert (outcome["shards_made"], outcome["shards_kept"], outcome["pairs"]) == (1, 1, 6)
    # Of the pairs of the last shard, which took the place of the first, all was cached under its former number.
    assert set(outcome["made"].values()) == {1}
    proofs = [Manifest.from_json(path.read_bytes(), "") for path in sorted((folder / "_manifests").iterdir())]
    assert [proof.why for proof in proofs] == ["3 pairs added (a, k, m); 3 pairs removed (d, f, g)", None]
    after = tars(folder)
    assert [*after] == ["train-000000.tar", "train-000001.tar"]
    assert after["train-000001.tar"] == before["train-000001.tar"]
    assert verify(str(folder), deep=True).clean
    fresh = job_of(tmp_path, "fresh")
    make(fresh, [shard.name for shard in fresh.shards])
    assert members(folder) == members(tmp_path / "fresh" / "msrs")
    # In other tars, unless it is told which.
    grown = job_of(tmp_path)
    assert fresh.shards != grown.shards
    Store(f"{tmp_path}/copied/msrs").write(ASSIGNMENT, grown.store.read(ASSIGNMENT))
    assert job_of(tmp_path, "copied").shards == grown.shards
    assert json.loads(CliRunner().invoke(main, command).stdout)["shards_made"] == 0
    assert tars(folder) == after
