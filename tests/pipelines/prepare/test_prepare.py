"""`prepare` end to end on Ray: commits, quarantine, a second run, fixed bytes, and other readers of a shard."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from click.testing import CliRunner, Result
from made import write_pairs
from PIL import Image

from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.prepare.verify import verify
from rwkvfusion.stages.dataset.manifest import read_manifests
from rwkvfusion.stages.dataset.tar import unpack

pytestmark = pytest.mark.usefixtures("local_ray")


def run(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


def prepare(raw: Path, out: Path, *more: str) -> Result:
    sets = [f"source.root={raw}", f"output={out}", "shard.pairs=3", "quarantine.max_fraction=0.3"]
    return run("prepare", "msrs", *(word for s in sets for word in ("--set", s)), *more)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_pairs(tmp_path_factory.mktemp("raw"), [f"{i:05d}D" for i in range(5)])
    write_pairs(root, ["00007N"], "test")
    truncated = root / "train" / "vi" / "00003D.png"
    truncated.write_bytes(truncated.read_bytes()[:500])
    Image.new("L", (50, 40)).save(root / "train" / "ir" / "00004D.png")
    Image.new("L", (50, 40)).save(root / "train" / "ir" / "lonely.png")
    return root


@pytest.fixture(scope="module")
def made(raw: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    out = tmp_path_factory.mktemp("out")
    result = prepare(raw, out)
    assert result.exit_code == 3, result.output  # 2 of 6 in quarantine, 30 % allowed
    return out / "msrs"


def test_good_pairs_are_committed_and_bad_ones_are_named(made: Path) -> None:
    manifests = read_manifests(Store(str(made)))
    assert [m.shard for m in manifests] == ["test-000000", "train-000000", "train-000001"]
    assert sorted(k for m in manifests for k in m.keys) == ["00000d", "00001d", "00002d", "00007n"]
    reasons = {q.key: q for m in manifests for q in m.quarantined}
    assert reasons["00003d"].kind == "unreadable"
    assert "00003D.png" in reasons["00003d"].message
    assert reasons["00004d"].kind == "size_mismatch"
    assert "128x96" in reasons["00004d"].message
    assert "50x40" in reasons["00004d"].message
    facts = json.loads((made / "dataset.json").read_text())
    assert facts["pairs"] == {"test": 1, "train": 3}
    assert any("lonely" in u["name"] for u in facts["unpaired"])
    assert verify(str(made), deep=True).problems == ()


def test_every_sample_is_guided_and_keeps_its_bytes(made: Path, raw: Path) -> None:
    n_objects = 0
    for sample in unpack((made / "train-000000.tar").read_bytes()):
        for image in sample.images:
            assert image.data == (raw / image.path).read_bytes()
        assert sample.caption is not None
        assert len(sample.caption) > 20
        assert sample.mask is not None
        indices = np.asarray(Image.open(io.BytesIO(sample.mask.png)))
        assert indices.shape == (96, 128)
        assert indices.max() == len(sample.mask.labels)
        n_objects += len(sample.mask.labels)
        assert sample.text is not None
        assert np.isfinite(sample.text.array()).all()
    assert n_objects > 0


def test_a_second_run_does_nothing_and_says_so(made: Path, raw: Path) -> None:
    def files() -> dict[Path, int]:
        """All but the lease, which says who was here last."""
        return {p: p.stat().st_mtime_ns for p in made.rglob("*") if p.is_file() and p.parent.name != "_lease"}

    before = files()
    result = prepare(raw, made.parent)
    assert "nothing to do" in result.output
    assert before == files()


def test_a_run_that_was_killed_is_completed_with_the_same_bytes(made: Path, raw: Path, tmp_path: Path) -> None:
    copytree(made, tmp_path / "msrs")
    tars = sorted(p.name for p in made.glob("*.tar"))
    # As a kill leaves it: one tar without its proof, one proof cut off.
    (tmp_path / "msrs" / "_manifests" / "test-000000.json").unlink()
    cut = tmp_path / "msrs" / "_manifests" / "train-000000.json"
    cut.write_bytes(cut.read_bytes()[:100])
    assert "train-000000.json is not a shard manifest" in run("verify", str(tmp_path)).output
    for unproven in ("test-000000.tar", "train-000000.tar"):
        (tmp_path / "msrs" / unproven).write_bytes(b"half")
    result = prepare(raw, tmp_path)
    assert "committed 2 shards" in result.output
    assert [(tmp_path / "msrs" / t).read_bytes() for t in tars] == [(made / t).read_bytes() for t in tars]


def test_other_settings_make_the_shards_again_and_status_says_which(made: Path, raw: Path, tmp_path: Path) -> None:
    sets = ("--set", f"source.root={raw}", "--set", f"output={made.parent}", "--set", "shard.pairs=3")
    result = run("status", "msrs", *sets, "--set", "text.width=64", "--json")
    assert {s["state"] for s in json.loads(result.output)["shards"]} == {"outdated"}
    result = run("status", "msrs", *sets, "--json")
    assert {s["state"] for s in json.loads(result.output)["shards"]} == {"committed"}
    result = run("prepare", "msrs", *sets, "--dry-run", "--json", "--set", f"output={tmp_path}")
    assert json.loads(result.output)["pairs"] == 6
    assert not list(tmp_path.iterdir())


def test_a_limit_never_shrinks_a_dataset(made: Path, raw: Path, tmp_path: Path) -> None:
    result = prepare(raw, made.parent, "--limit", "1")
    assert result.exit_code == 1
    assert re.search(r"--limit 1 would drop \d+: use another output", result.output)
    result = prepare(raw, tmp_path, "--limit", "1", "--dry-run", "--json")
    assert json.loads(result.output)["pairs"] == 1


def test_verify_finds_what_is_wrong_and_what_it_says_mends_it(made: Path, raw: Path, tmp_path: Path) -> None:
    copytree(made, tmp_path / "msrs")
    tar = tmp_path / "msrs" / "train-000000.tar"
    whole = tar.read_bytes()
    data = bytearray(whole)
    data[len(data) // 2] ^= 1
    tar.write_bytes(bytes(data))
    assert run("verify", str(tmp_path)).exit_code == 0
    deep = run("verify", str(tmp_path), "--deep")
    assert deep.exit_code == 1
    said = re.search(r"remove (\S+), then run `rwkvfusion prepare RECIPE` again", deep.output)
    assert said is not None, deep.output
    assert Path(said[1]) == tar
    assert "nothing to do" in prepare(raw, tmp_path).output
    Path(said[1]).unlink()
    assert re.search("is missing: run `rwkvfusion prepare RECIPE` again", run("verify", str(tmp_path)).output)
    assert "no tar (train-000000)" in prepare(raw, tmp_path).output
    assert tar.read_bytes() == whole
    assert run("verify", str(tmp_path), "--deep").exit_code == 0
