"""Captions of the dataset's own: read, encoded, in the shards and on the card; what is no text is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from accounts import both, make, tree
from made import scene
from PIL import Image

from rwkvfusion.pipelines.gallery.sheet import draw_row
from rwkvfusion.pipelines.prepare.card import finish_dataset
from rwkvfusion.pipelines.prepare.plan import Job, plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.prepare.report import plan_lines
from rwkvfusion.pipelines.prepare.verify import verify
from rwkvfusion.stages.dataset.manifest import read_manifests, read_shard
from rwkvfusion.stages.dataset.sample import Sample
from rwkvfusion.stages.dataset.tar import unpack
from rwkvfusion.stages.guidance.builtin.text import HashedText, TextConfig
from rwkvfusion.stages.source.config import SourceError
from rwkvfusion.stages.source.pair import PairRef

TEXTS = {
    "bom": (b"\xef\xbb\xbfA red car\r\n  by night.\n\n", "A red car by night."),
    "plain": ("Zwei Mädchen \u2028\u3000 im Schnee 雪".encode(), "Zwei Mädchen im Schnee 雪"),
    "utf16": ("Two dogs.\n".encode("utf-16"), "Two dogs."),
    "empty": (b" \n\t\n", None),
    "none": (None, None),
}
BAD = {
    "latin": ("Mädchen".encode("latin-1"), "is not text in UTF-8"),
    "binary": (b"a\x00b", "holds control characters"),
    "endless": (b"word " * 3000, "has 14999 characters, a caption 10000 at most"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A committed dataset, one pair a text."""
    root = tmp_path_factory.mktemp("captions")
    for seed, (name, (text, _)) in enumerate([*TEXTS.items(), *BAD.items()]):
        for folder, array in (("vi", scene(seed, 48, 64)), ("ir", scene(seed + 50, 48, 64, 1)[:, :, 0])):
            path = root / "raw" / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
        if text is not None:
            (root / "raw" / "text").mkdir(exist_ok=True)
            (root / "raw" / "text" / f"{name}_en.TXT").write_bytes(text)
    source = {"layout": "paired", "root": str(root / "raw"), "caption": {"folder": "text", "suffix": "_en"},
              "modalities": {"visible": {"folder": "vi"}, "infrared": {"folder": "ir"}}}  # fmt: skip
    recipe = {"source": source, "output": str(root / "out"), "masks": "none"}
    job = plan_job(PrepareRecipe.model_validate(recipe))
    done = make(job, [shard.name for shard in job.shards])
    finish_dataset(done, [done.committed[shard.name] for shard in done.shards])
    return done


@pytest.fixture(scope="module")
def samples(made: Job) -> dict[str, Sample]:
    (manifest,) = read_manifests(made.store)
    return {sample.key: sample for sample in unpack(read_shard(made.store, manifest))}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_the_caption_and_is_encoded(samples: dict[str, Sample], name: str) -> None:
    sample, own = samples[name], TEXTS[name][1]
    assert sample.text is not None
    assert sample.caption is not None
    if own is None:
        assert sample.own_caption is None
        assert [caption.role for caption in sample.captions] == ["visible", "infrared"]
        assert sample.caption.startswith("The visible image is")
    else:
        assert (sample.caption, sample.own_caption, sample.captions) == (own, own, ())
    encoded = HashedText(TextConfig()).encode(sample.caption)
    assert np.array_equal(sample.text.array(), encoded.astype(np.float16))
    assert sample.members()[f"{name}.caption.txt"] == sample.caption.encode()


def test_what_is_no_text_is_in_quarantine_with_its_reason(made: Job) -> None:
    (manifest,) = read_manifests(made.store)
    reasons = {lost.key: (lost.stage, lost.kind, lost.message) for lost in manifest.quarantined}
    assert reasons.keys() == BAD.keys()
    for name, (stage, kind, message) in reasons.items():
        assert (stage, kind, f"text/{name}_en.TXT" in message, BAD[name][1] in message) == (
            "source", "unreadable", True, True,
        )  # fmt: skip


def test_the_plan_the_card_and_the_sheet_say_so(made: Job, samples: dict[str, Sample]) -> None:
    assert "captions of the dataset's own: of 7 pairs" in plan_lines(made)
    assert "Of 8 planned pairs 7 have a caption file of the dataset's own" in made.store.read("README.md").decode()
    assert json.loads(made.store.read("dataset.json"))["own_captions"] == 7
    assert verify(made.store.url, deep=True).clean
    heights = {name: draw_row(samples[name], "train-000000", 160).height for name in ("utf16", "none")}
    assert heights["utf16"] < heights["none"]


def test_a_plan_without_captions_is_what_it_was() -> None:
    files = [{"role": "visible", "name": "vi/a.png"}, {"role": "infrared", "name": "ir/a.png"}]
    ref = PairRef(key="a", split="train", files=files)
    assert set(ref.dump()) == {"key", "split", "files", "target", "annotation", "cut"}
    assert PairRef(**ref.dump(), caption="text/a.txt").caption == "text/a.txt"


def test_named_layouts_take_captions_too(tmp_path: Path) -> None:
    names = ["walk/vis.png", "walk/ir.png", "walk/description.txt", "sit/vis.png", "sit/ir.png"]
    plan = tree(tmp_path / "text", *names, layout="textfusion", caption={"prefix": "description"})
    assert {pair.key: pair.caption for pair in plan.pairs} == {"walk": "walk/description.txt", "sit": None}
    plan = tree(tmp_path / "msrs", *both("train/*/1"), "train/words/1.txt", layout="msrs", caption={"folder": "words"})
    assert [pair.caption for pair in plan.pairs] == ["train/words/1.txt"]
    with pytest.raises(SourceError, match=r"source\.caption is for pairs of pictures"):
        tree(tmp_path / "msrs", layout="sice", caption={"folder": "words"})
