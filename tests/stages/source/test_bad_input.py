"""`prepare` on a dataset full of bad files: what is good is committed, each bad file is named with its reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bad_files import make_mess
from made_datasets import picture

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.prepare.plan import Job, plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe, QuarantineConfig
from rwkvfusion.pipelines.prepare.report import plan_lines
from rwkvfusion.pipelines.prepare.run import prepare
from rwkvfusion.pipelines.prepare.verify import verify
from rwkvfusion.pipelines.recipe import load_recipe
from rwkvfusion.stages.dataset.manifest import read_manifests
from rwkvfusion.stages.dataset.sample import Sample
from rwkvfusion.stages.dataset.tar import unpack
from rwkvfusion.stages.guidance.chain import GuidanceConfig, guidance_stages
from rwkvfusion.stages.guidance.stage import run


def job(raw: Path, out: Path) -> Job:
    sets = ["source.layout=paired", f"source.root={raw}", "source.modalities.visible.folder=vi", "masks=none",
            "source.modalities.infrared.folder=ir", f"output={out}"]  # fmt: skip
    return plan_job(load_recipe("vif", PrepareRecipe, sets))


def tree(root: Path, without: Path) -> dict[str, int]:
    found = (path for path in root.rglob("*") if without not in (path, *path.parents))
    return {str(path): path.lstat().st_mtime_ns for path in found if not path.is_dir() or path.is_symlink()}


@pytest.mark.parametrize(("n_good", "n_bad"), [(50, 250), pytest.param(200, 1000, marks=pytest.mark.slow)])
def test_good_pairs_are_committed_and_every_bad_file_is_named(
    tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch, n_good: int, n_bad: int
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    monkeypatch.chdir(work)
    mess = make_mess(tmp_path / "raw", n_good, n_bad)
    assert n_bad <= mess.n_bad <= n_bad + 1
    planned = job(tmp_path / "raw", out)
    for name, change in mess.late.items():
        change(mess.root / name)
    before = tree(tmp_path, without=out)
    outcome = prepare(planned, say=lambda _: None)
    assert outcome.exit_code == 3
    assert tree(tmp_path, without=out) == before
    assert {path.name for path in out.iterdir()} == {planned.dataset}

    manifests = read_manifests(Store(outcome.dataset_url))
    committed = [s for m in manifests if m.sha256 for s in unpack((out / planned.dataset / m.tar).read_bytes())]
    assert {(s.image("visible").path, s.image("infrared").path) for s in committed} == mess.good
    assert len(committed) == outcome.pairs == n_good
    for sample in committed:
        assert all(image.data == (mess.root / image.path).read_bytes() for image in sample.images)

    quarantined = [q for m in manifests for q in m.quarantined]
    assert len(quarantined) == len(mess.refused)
    named = {name: q for q in quarantined for name in q.files if name in mess.refused}
    assert {name: q.kind for name, q in named.items()} == mess.refused
    assert all(printable(name) in q.message and q.message.isprintable() for name, q in named.items())
    reasons = {u.name: u.reason for u in planned.unpaired}
    assert {name for name, words in mess.unpaired.items() if words not in reasons.get(name, "")} == set()
    assert all(reason.isprintable() for reason in reasons.values())
    hostile = [one for one in planned.unpaired if not one.name.isprintable()]
    assert hostile
    assert all(line.isprintable() for line in plan_lines(replace(planned, unpaired=(*hostile[:3],))))

    assert verify(outcome.dataset_url, deep=True).problems == ()
    # Where more may be in quarantine all is well, and nothing is made again.
    lenient = planned.recipe.model_copy(update={"quarantine": QuarantineConfig(max_fraction=0.9)})
    again = prepare(replace(planned, recipe=lenient, committed={m.shard: m for m in manifests}), say=lambda _: None)
    assert (again.exit_code, again.shards_made, again.pairs) == (0, 0, n_good)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (2, 2), (1, 20000), (20000, 1), (2, 9000)])
@pytest.mark.parametrize("kind", ["noise", "flat", "spot"])
@pytest.mark.filterwarnings("error")
def test_builtin_guidance_takes_any_size(size: tuple[int, int], kind: str) -> None:
    array = np.full((*size, 3), 7, np.uint8)
    if kind == "noise":
        array = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    if kind == "spot":
        array[size[0] // 3 :, size[1] // 3 : size[1] // 2 + 1] = 250
    images = (picture("visible", array), picture("infrared", 255 - array[:, :, :1]))
    samples = [Sample(key="k", dataset="d", split="train", task="vif", images=images)]
    for stage in guidance_stages(GuidanceConfig(), "vif"):
        stage.load()
        samples = run(stage, samples)
    (sample,) = samples
    assert sample.error is None
    assert sample.text is not None
    assert sample.caption is not None
    assert kind != "flat" or "little detail" in sample.caption
