"""The paper's guidance end to end: tiny checkpoints of the real classes through the recipes, the cluster, the cache."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from made import write_pairs
from operators import run_stage

from rwkvfusion.infra.lease import Fence
from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.prepare.operators import RunStage, Target
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.prepare.verify import verify
from rwkvfusion.stages.dataset.manifest import read_manifests
from rwkvfusion.stages.dataset.sample import Sample
from rwkvfusion.stages.dataset.tar import unpack
from rwkvfusion.stages.guidance.chain import check_weights, guidance_stages
from rwkvfusion.stages.guidance.stage import fingerprints
from rwkvfusion.stages.source.source import Source

PAIRS = 8


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Eight pairs without masks, real ones where they are, as MSRS has them."""
    root = tmp_path_factory.mktemp("raw")
    try:
        real: Path = request.getfixturevalue("real_data")
    except pytest.skip.Exception:
        return write_pairs(root, [f"{i:05d}D" for i in range(PAIRS)])
    for name in sorted(path.name for path in (real / "dev" / "MSRS" / "test" / "vi").iterdir())[:PAIRS]:
        for folder in ("vi", "ir"):
            (root / "train" / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(real / "dev" / "MSRS" / "test" / folder / name, root / "train" / folder / name)
    return root


def run(command: str, recipe: str, raw: Path, out: Path, values: Mapping[str, str], *more: str) -> Result:
    sets = {"source.root": str(raw), "output": str(out), "guidance": "full", "shard.pairs": "4", **values}
    words = [word for name, value in sets.items() for word in ("--set", f"{name}={value}")]
    return CliRunner().invoke(main, [command, recipe, *words, *more])


def made(result: Result) -> dict[str, int]:
    assert result.exit_code == 0, result.output
    counts: dict[str, int] = json.loads(result.stdout)["made"]
    return counts


@pytest.fixture(scope="module")
def full(
    raw: Path, tiny_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory, local_ray: None
) -> tuple[Path, dict[str, int]]:
    out = tmp_path_factory.mktemp("full")
    return out, made(run("prepare", "msrs", raw, out, tiny_models, "--json"))


def samples_at(out: Path) -> list[Sample]:
    return [s for tar in sorted((out / "msrs").glob("*.tar")) for s in unpack(tar.read_bytes())]


def test_all_four_models_fill_complete_shards(full: tuple[Path, dict[str, int]]) -> None:
    out, counts = full
    assert counts == dict.fromkeys(("caption", "detect", "segment", "merge", "text"), PAIRS)
    assert verify(str(out), deep=True).problems == ()
    samples = samples_at(out)
    assert len(samples) == PAIRS
    for sample in samples:
        assert [caption.role for caption in sample.captions] == ["visible", "infrared"]
        assert sample.caption
        assert sample.boxes
        assert {box.role for box in sample.boxes} == {"visible", "infrared"}
        assert sample.instances
        assert sample.mask is not None
        assert sample.text is not None
        assert sample.text.tokens > 0
    assert any(sample.mask.labels for sample in samples if sample.mask)
    for manifest in read_manifests(Store(str(out / "msrs"))):
        weights = {record.stage: record.identity.get("weights") for record in manifest.stages}
        assert [name for name, found in weights.items() if found] == ["caption", "detect", "segment", "text"]
        assert str(out.parent) not in manifest.to_json().decode()
    card = (out / "msrs" / "README.md").read_text()
    assert "grounding_dino" in card
    assert "they do not recognise objects" not in card


@pytest.mark.slow
def test_only_what_a_setting_touches_runs_again(
    full: tuple[Path, dict[str, int]], raw: Path, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(full[0], out)

    def again(**values: str) -> dict[str, int]:
        changed = {name.replace("__", "."): value for name, value in values.items()}
        counts = made(run("prepare", "msrs", raw, out, tiny_models | changed, "--json"))
        assert verify(str(out), deep=True).problems == ()
        return {stage: count for stage, count in counts.items() if count}

    before = [tar.read_bytes() for tar in sorted((out / "msrs").glob("*.tar"))]
    assert again() == {}
    assert again(merge__match_iou="0.9") == {"merge": PAIRS}
    assert again(caption__prompt="<CAPTION>") == {"caption": PAIRS, "text": PAIRS}
    # Back to the first settings: everything was kept.
    assert again() == {}
    assert [tar.read_bytes() for tar in sorted((out / "msrs").glob("*.tar"))] == before


def test_a_dry_run_says_what_is_kept_and_how_cards_are_shared(
    full: tuple[Path, dict[str, int]], raw: Path, tiny_models: dict[str, str]
) -> None:
    result = run("prepare", "msrs", raw, full[0], tiny_models | {"merge.match_iou": "0.8"}, "--dry-run")
    assert "kept from before, by stage, in shards: caption of 2, detect of 2, segment of 2, text of 2" in result.output
    assert "caption kept, detect kept, segment kept, merge 1" in result.output
    # Prompts from the captions: the detector and what follows from it read them.
    result = run("prepare", "msrs", raw, full[0], tiny_models | {"prompts": "auto"}, "--dry-run")
    assert "kept from before, by stage, in shards: caption of 2, text of 2" in result.output
    result = run(
        "prepare", "msrs", raw, full[0], tiny_models | {"prompts": "auto", "caption.prompt": "<CAPTION>"}, "--dry-run"
    )
    assert "kept from before" not in result.output


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each library's model is called in this process."""
    import transformers

    from rwkvfusion.stages.guidance.pretrained.sam import segment_anything

    found: Counter[str] = Counter()

    def count(name: str, owner: type, method: str) -> None:
        original: Callable[..., Any] = getattr(owner, method)

        def counted(*args: Any, **kwargs: Any) -> Any:
            found[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, method, counted)

    count("caption", transformers.Florence2ForConditionalGeneration, "generate")
    count("detect", transformers.GroundingDinoForObjectDetection, "forward")
    count("segment", segment_anything().SamPredictor, "set_image")
    count("text", transformers.T5EncoderModel, "forward")
    return found


def test_models_are_called_only_for_what_changed(
    raw: Path, tiny_models: dict[str, str], tmp_path: Path, calls: Counter[str]
) -> None:
    """The same operators as on the cluster, in this process, with the libraries' own calls counted."""

    def guide(**values: str) -> set[str]:
        calls.clear()
        recipe: dict[str, Any] = {
            "source": {"layout": "msrs", "root": str(raw)},
            "guidance": "full",
            "prompts": ["car"],
        }
        for name, value in {**tiny_models, **values}.items():
            group, _, key = name.replace("__", ".").partition(".")
            recipe.setdefault(group, {})[key] = value
        checked = PrepareRecipe.model_validate(recipe)
        source = Source(checked.source)
        stages = guidance_stages(checked, source.task, source.labels)
        check_weights(stages)
        samples = [source.read(ref) for ref in source.plan().pairs[:2]]
        store = Store(str(tmp_path))
        target = Target(store, "msrs", "vif", "", Fence(store, 0))
        for stage, print_ in zip(stages, fingerprints(stages, ""), strict=True):
            samples, _ = run_stage(RunStage(stage, print_, target), samples)
        assert all(sample.error is None for sample in samples)
        return set(calls)

    assert guide() == {"caption", "detect", "segment", "text"}
    assert calls["segment"] == 4  # each of two pictures of two pairs is embedded once
    assert guide() == set()
    assert guide(merge__match_iou="0.8") == set()
    assert guide(caption__prompt="<CAPTION>") == {"caption", "text"}


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails where anything is started."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a cluster was reached")

    monkeypatch.setattr("rwkvfusion.pipelines.prepare.run.connect", refuse)
    return


HEX = "a1" * 32


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"caption.model": "florence-community/nowhere", "caption.revision": "a" * 40},
            ["caption", "fetch"],
        ),
        ({"caption.model": "./no/such/folder"}, ["caption", "no/such/folder"]),
        ({"text.sha256": HEX}, ["text", HEX[:12]]),
        ({"segment.sha256": HEX}, ["segment", HEX[:12]]),
        ({"segment.checkpoint": "missing.pth"}, ["segment", "missing.pth"]),
        ({"detect.revision": "main"}, ["detect", "revision"]),
        ({"caption.model": "{text.model}"}, ["caption", "t5", "florence2"]),
        ({"detect.model": "{caption.model}"}, ["detect", "florence2", "grounding-dino"]),
        ({"segment.checkpoint": "{text.model}/model.safetensors"}, ["segment", "SAM"]),
    ],
)
@pytest.mark.usefixtures("no_cluster")
def test_wrong_weights_are_one_clear_line_before_anything_starts(
    raw: Path, tiny_models: dict[str, str], tmp_path: Path, values: dict[str, str], words: list[str]
) -> None:
    settings = tiny_models | {name: value.format_map(_Braces(tiny_models)) for name, value in values.items()}
    result = run("prepare", "msrs", raw, tmp_path, settings)
    assert result.exit_code == 1, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert all(word in lines[0] for word in ["rwkvfusion:", *words]), lines[0]
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


class _Braces(dict[str, str]):
    """`{text.model}` names a setting, where str.format would look for an attribute."""

    def __missing__(self, key: str) -> Any:
        return type("_", (), {name.partition(".")[2]: v for name, v in self.items() if name.startswith(f"{key}.")})


@pytest.mark.usefixtures("no_cluster")
def test_every_missing_model_is_named_at_once(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("RWKVFUSION_CACHE", str(tmp_path / "cache"))
    result = run("prepare", "m3fd", raw, tmp_path / "out", {"source.layout": "msrs"})
    assert result.exit_code == 1
    assert [line.removeprefix("rwkvfusion: ").partition(":")[0] for line in result.stderr.strip().splitlines()] == [
        "caption.model", "detect.model", "segment.checkpoint", "text.model",
    ]  # fmt: skip


def test_the_papers_settings() -> None:
    def stages(recipe: str, *values: str) -> list[Any]:
        from rwkvfusion.pipelines.recipe import load_recipe

        loaded = load_recipe(recipe, PrepareRecipe, ("guidance=full", *values))
        return guidance_stages(loaded, str(loaded.task))

    fixed = stages("m3fd")
    assert [stage.name for stage in fixed] == ["caption", "detect", "segment", "merge", "text"]
    assert fixed[1].config.prompts == ("People", "Car", "Bus", "Lamp", "Motorcycle", "Truck")
    assert "caption" not in fixed[1].requires
    for recipe in ("mef", "mff", "mif"):
        auto = stages(recipe, "source.layout=harvard", "source.root=x")
        assert auto[1].requires == {"images", "caption"}
    for recipe in ("pansharpening", "hmif"):
        assert [s.name for s in stages(recipe, "source.layout=paired", "source.root=x")] == ["caption", "text"]
    own = stages("msrs", "masks=annotation")
    assert [type(stage).__name__ for stage in own][1:3] == ["AnnotatedBoxes", "AnnotatedMasks"]


def test_each_stage_can_be_set_apart(raw: Path, tiny_models: dict[str, str], tmp_path: Path) -> None:
    values = {name: value for name, value in tiny_models.items() if name.startswith("text.")}
    values |= {"guidance": "builtin", "text.method": "encoder"}
    job_facts = json.loads(run("prepare", "msrs", raw, tmp_path, values, "--dry-run", "--json").stdout)
    methods = {stage["stage"]: stage["config"].get("method") for stage in job_facts["stages"]}
    assert methods == {
        "detect": "salient", "caption": "measured", "segment": "grabcut", "merge": None, "text": "encoder",
    }  # fmt: skip
    wrong = run("prepare", "msrs", raw, tmp_path, values | {"detect.method": "grounding_dini"}, "--dry-run")
    assert "did you mean 'grounding_dino'?" in wrong.output
    wrong = run("prepare", "msrs", raw, tmp_path, {"caption.promt": "<CAPTION>"}, "--dry-run")
    assert "did you mean 'caption.prompt'?" in wrong.output
    values = {"guidance": "builtin", "detect.method": "grounding_dino", "prompts": "auto"}
    wrong = run("prepare", "msrs", raw, tmp_path, values, "--dry-run")
    assert "set prompts=[person, car, ...]" in wrong.output


def test_fetch_says_where_the_weights_are(raw: Path, tiny_models: dict[str, str], tmp_path: Path) -> None:
    result = run("fetch", "msrs", raw, tmp_path, {name: v for name, v in tiny_models.items() if "merge" not in name})
    assert result.exit_code == 0, result.output
    for name in ("caption.model", "detect.model", "segment.checkpoint", "text.model"):
        assert tiny_models[name] in result.stderr
    assert "needs no models" in run("fetch", "msrs", raw, tmp_path, {"guidance": "builtin"}).stderr


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_weights_that_lack_a_tensor_are_told_in_one_line(
    raw: Path, tiny_models: dict[str, str], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(tiny_models["text.model"], tmp_path / "t5") / "model.safetensors"
    tensors = load_file(broken)
    tensors.pop("encoder.block.1.layer.0.SelfAttention.q.weight")
    save_file(tensors, broken, metadata={"format": "pt"})
    values = {"guidance": "builtin", "masks": "none", "text.method": "encoder", "text.model": str(broken.parent)}
    result = run("prepare", "msrs", raw, tmp_path / "out", values, "--limit", "1")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"rwkvfusion: text: {broken.parent} is not a complete T5Encoder")
    assert "Traceback" not in result.output
