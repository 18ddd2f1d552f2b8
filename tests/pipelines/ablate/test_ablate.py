"""Studies: trained and scored in processes of their own, never twice, and what fails or is cut off costs no other."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from made_datasets import pair, pairs, write_dataset

from rwkvfusion.infra.pictures.decode import decode, decode_indices
from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.metrics.contrast import contrasts
from rwkvfusion.model.metrics.score import Picture
from rwkvfusion.pipelines.ablate import study as study_module
from rwkvfusion.pipelines.ablate.run import TABLE, Outcome, ablate, pending
from rwkvfusion.pipelines.ablate.study import BASE, TRAINED, Study, Variant, bundled, plan_study, varied
from rwkvfusion.pipelines.ablate.work import FLOORS, Job, main
from rwkvfusion.pipelines.cli import main as cli
from rwkvfusion.pipelines.evaluate.run import evaluate_dataset, select_samples
from rwkvfusion.pipelines.recipe import RecipeError
from rwkvfusion.pipelines.train.build import make_fuser, make_trainer
from rwkvfusion.pipelines.train.plan import plan_training
from rwkvfusion.stages.dataset.sample import Mask

SCANS = varied("network.scan=1,2")
SMALL = ["data.crop=[32,32]", "network.width=8", "network.levels=[1]", "network.channel_factors=[1]", "optim.warmup=1"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("data") / "made"
    write_dataset(root, pairs(6, 3))
    held_out = [pair(20 + i).replace(split="test") for i in range(3)]
    return write_dataset(root, [held_out], split="test")


def planned(url: str, variants: list[Variant], *more: str, **options: object) -> Study:
    settings = {"n_seeds": 2, "steps": 3, "pairs": 2} | options
    return plan_study("train_vif_small", [f"data.url={url}", *SMALL, *more], variants, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def done(url: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A study of two seeds and one change."""
    folder = tmp_path_factory.mktemp("study")
    return folder, ablate(planned(url, SCANS), folder, jobs=2, say=lambda _: None)


def test_every_field_of_a_training_is_on_the_page_of_formats(done: tuple[Path, Outcome]) -> None:
    page = (Path(__file__).parents[3] / "docs/formats.md").read_text(encoding="utf-8")
    table = page[page.index("| field of training.json") :].partition("\n\n")[0]
    shown = {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split(" | ")[0])}
    folder, _ = done
    trainings = [json.loads(path.read_text()) for path in folder.glob(f"*/{TRAINED}")]
    assert len(trainings) > 1
    assert all({*training} == shown for training in trainings)
    (row,) = re.findall(r"^\| `floors/`.*$", page, re.MULTILINE)
    (scores,) = (json.loads(path.read_text()) for path in (folder / FLOORS).glob("*.json") if path.name != "job.json")
    assert {*scores} <= {*re.findall(r"`(\w+)`", row)}


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.name in ("model.safetensors", TRAINED) or (path.suffix == ".json" and len(path.stem) == 12)
    }


def test_a_study_is_a_table_of_differences(done: tuple[Path, Outcome]) -> None:
    folder, outcome = done
    (table,) = outcome.tables
    assert not outcome.failed
    assert outcome.exit_code == 0
    assert [row.label for row in table.rows] == ["network.scan=2"]
    assert table.metrics == ("MI", "VIF", "SF", "Qabf", "Qcb", "Qcv", "SSIM")
    assert {"mean", "maximum"} < set(table.floors)
    assert {
        (one.n_seeds, one.n_pairs) for one in (*table.base.estimates.values(), *table.rows[0].estimates.values())
    } == {(2, 2)}
    text = (folder / TABLE).read_text()
    assert "| `network.scan=2` | 2 x 2 |" in text
    assert "network.scan=1 is the same training as base: left out" in text


def test_scores_are_those_of_evaluate_and_differences_pair_seeds(done: tuple[Path, Outcome], url: str) -> None:
    folder, outcome = done
    means: dict[tuple[str, int], dict[str, float]] = {}
    for path in folder.glob(f"*/{TRAINED}"):
        facts = json.loads(path.read_text())
        results = evaluate_dataset({"m": Fuser.load(path.parent / "model")}, select_samples(url, ["test"], 2))
        means[facts["variant"], facts["seed"]] = results.means["m"]
    assert means.keys() == {(label, seed) for label in (BASE, "network.scan=2") for seed in (0, 1)}
    (row,) = outcome.tables[0].rows
    for metric, estimate in row.estimates.items():
        by_hand = [means["network.scan=2", seed][metric] - means[BASE, seed][metric] for seed in (0, 1)]
        assert estimate.mean == pytest.approx(np.mean(by_hand))
        # t(0.975, 1) = 12.706, and of two values s / sqrt(2) is half their distance.
        assert estimate.half == pytest.approx(12.7062 * abs(by_hand[0] - by_hand[1]) / 2, rel=1e-4)


def test_a_training_is_that_of_the_trainer_alone(done: tuple[Path, Outcome], url: str) -> None:
    folder, _ = done
    training = next(one for one in planned(url, SCANS).trainings if (one.variant, one.seed) == (BASE, 1))
    recipe = planned(url, []).recipe_of(Variant(BASE)).model_copy(update={"seed": 1, "workers": 1})
    plan = plan_training(recipe)
    trainer, loader = make_trainer(plan, torch.device("cpu"), rank=0, world=1), plan.loader(0, 1)
    for step in range(3):
        trainer.step(loader.batch(step))
    trainer.network.load_state_dict(trainer.ema)
    mine = make_fuser(plan, trainer.network).network.state_dict()
    theirs = Fuser.load(folder / training.name / "model").network.state_dict()
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-5, atol=1e-6)


GUIDANCES = ("none", "text", "mask", "all", "other", "empty")


@pytest.fixture
def elsewhere(tmp_path: Path) -> str:
    """Three pairs whose objects lie in different places; the last one has none."""
    samples = []
    for i in range(3):
        mask = np.zeros((48, 64), np.uint8)
        mask[8 + 12 * i : 20 + 12 * i, 10 + 15 * i : 25 + 15 * i] = i < 2
        painted = Mask(png=encode_png(mask), labels=("disc",) if i < 2 else ())
        samples.append(pair(30 + i).replace(split="test", mask=painted))
    return write_dataset(tmp_path / "elsewhere", [samples], split="test")


@pytest.mark.slow
def test_guidance_is_compared_with_none_pair_by_pair(url: str, elsewhere: str, tmp_path: Path) -> None:
    options = {"n_seeds": 1, "pairs": 3, "on": (elsewhere,)}
    plain = planned(url, [], **options)
    ablate(plain, tmp_path, say=lambda _: None)
    # What three steps have learnt of masks changes nothing that could be seen.
    folder = tmp_path / plain.trainings[0].name / "model"
    fuser = Fuser.load(folder)
    torch.manual_seed(0)
    for name, parameter in fuser.network.named_parameters():
        if name.endswith("fusion.mask.weight"):
            torch.nn.init.normal_(parameter)
    torch.nn.init.normal_(fuser.network.head.weight, std=0.3)
    fuser.save(folder)
    study = planned(url, [], guidances=GUIDANCES, **options)
    assert [job.is_trained for job in pending(study, tmp_path)] == [True, True]
    outcome = ablate(study, tmp_path, say=lambda _: None)
    assert not outcome.failed
    usual, guided = outcome.tables
    assert (usual.base.label, guided.base.label) == (BASE, "none")
    assert [row.label for row in guided.rows] == list(GUIDANCES[1:])
    assert guided.metrics == ("contrast", "signed", "box", *usual.metrics)
    assert {"contrast", "MI"} <= guided.floors["maximum"].keys()
    rows = {row.label: row.estimates for row in guided.rows}
    assert [rows["empty"][metric].mean for metric in guided.metrics] == [0.0] * len(guided.metrics)
    assert abs(rows["mask"]["MI"].mean) > 0.01
    found = {kind: by_hand(fuser, elsewhere, kind) for kind in ("none", "mask", "other")}
    assert guided.base.estimates["contrast"].mean == pytest.approx(found["none"])
    for kind in ("mask", "other"):
        assert rows[kind]["contrast"].mean == pytest.approx(100 * (found[kind] / found["none"] - 1), abs=1e-6)
    assert len(set(found.values())) == 3
    assert "Below none: differences to it in %" in (tmp_path / TABLE).read_text()
    assert pending(study, tmp_path) == []


def by_hand(fuser: Fuser, url: str, kind: str) -> float:
    """The mean contrast of the two pairs that have an object, each of which is the other's next with one."""
    samples = list(select_samples(url, ["test"], 3).dataset.samples())
    own = [decode_indices(sample.mask.png) for sample in samples[:2] if sample.mask is not None]
    shown = {"none": [None, None], "mask": own, "other": own[::-1]}[kind]
    found = []
    for sample, mask, objects in zip(samples, shown, own, strict=False):
        pictures = {image.role: decode(image.data) for image in sample.images}
        found.append(contrasts(Picture("fused", fuser.fuse(pictures, mask)).luma, objects)["contrast"])
    return float(np.mean(found))


@pytest.mark.slow
def test_guidance_that_no_pair_has_is_said(url: str, tmp_path: Path) -> None:
    outcome = ablate(planned(url, [], n_seeds=1, pairs=1, guidances=("none", "other")), tmp_path, say=lambda _: None)
    assert "no other pair has a mask" in outcome.failed["base, seed 0"]
    result = CliRunner().invoke(cli, ["ablate", "train_vif_small", "--guidance", "both", "-o", str(tmp_path)])
    assert result.exit_code == 2
    assert "'both': there is none, text, mask, all, other, empty" in result.output


@pytest.mark.slow
def test_what_is_done_is_not_done_again_and_a_study_grows(done: tuple[Path, Outcome], url: str) -> None:
    folder, first = done
    before = state(folder)
    assert len(before) == 4 * 3 + 1
    assert pending(planned(url, SCANS), folder) == []
    again = ablate(planned(url, SCANS), folder, say=lambda _: None)
    assert state(folder) == before
    assert again.tables == first.tables
    # Another variant and more pairs: the old ones are scored on these, not trained.
    study = planned(url, [bundled("narrow: network.width=4")], n_seeds=1, pairs=3)
    assert [(job.title, job.is_trained) for job in pending(study, folder)] == [
        ("the trivial answers", True), ("base, seed 0", True), ("narrow, seed 0", False),
    ]  # fmt: skip
    ablate(study, folder, say=lambda _: None)
    after = state(folder)
    assert {name: after[name] for name in before} == before
    # The variants of earlier calls are in the table again, with all their seeds.
    grown = ablate(planned(url, [bundled("narrow: network.width=4")], n_seeds=1), folder, say=lambda _: None)
    (table,) = grown.tables
    assert {row.label: row.estimates["MI"].n_seeds for row in table.rows} == {"narrow": 1, "network.scan=2": 2}
    assert table.base.estimates["MI"].n_seeds == 2


@pytest.mark.slow
def test_results_of_other_code_are_used_only_where_that_is_asked_for(
    done: tuple[Path, Outcome], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, first = done
    monkeypatch.setattr(study_module, "code_version", lambda: "0ther000")
    assert len(pending(planned(url, SCANS), folder)) == 4
    study = planned(url, SCANS, any_code=True)
    assert pending(study, folder) == []
    (table,) = ablate(study, folder, say=lambda _: None).tables
    assert table.base == first.tables[0].base
    assert re.fullmatch(r"\d of these trainings are of other code than this\.", " ".join(table.notes))


def test_a_process_refuses_to_train_for_other_code(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (training, *_) = planned(url, []).trainings
    changed = Job(tmp_path, study_module.replace(training, code="0ther000"), ())
    changed.write()
    assert main(tmp_path) == 1
    assert "the code has changed" in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / TRAINED).exists()


@pytest.mark.slow
def test_one_that_fails_says_why_and_the_others_go_on(url: str, tmp_path: Path) -> None:
    variants = [bundled("diverges: optim.lr=1e30 optim.max_skipped=1"), *varied("network.scan=2")]
    outcome = ablate(planned(url, variants, n_seeds=1, steps=20), tmp_path, say=lambda _: None)
    assert outcome.exit_code == 1
    assert list(outcome.failed) == ["diverges, seed 0"]
    assert "not finite" in outcome.failed["diverges, seed 0"]
    (table,) = outcome.tables
    assert [row.label for row in table.rows] == ["network.scan=2"]
    assert "failed: diverges, seed 0" in (tmp_path / TABLE).read_text()


@pytest.mark.slow
def test_an_interrupt_keeps_what_is_done_and_the_same_command_goes_on(url: str, tmp_path: Path) -> None:
    arguments = ["ablate", "train_vif_small", "--seeds", "1", "--pairs", "1"]
    for one in (f"data.url={url}", *SMALL, "steps=2"):
        arguments += ["--set", one]
    arguments += ["--variant", "long: steps=100000", "-o", str(tmp_path / "out")]
    process = subprocess.Popen([sys.executable, "-m", "rwkvfusion.pipelines.cli", *arguments], start_new_session=True)
    began = time.monotonic()
    while len(list(tmp_path.glob("out/*/job.json"))) < 3:
        assert process.poll() is None
        assert time.monotonic() - began < 200
        time.sleep(0.2)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    before = state(tmp_path)
    assert sum(name.endswith(TRAINED) for name in before) == 1
    arguments[arguments.index("long: steps=100000")] = "long: steps=3"
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert {row["label"] for row in facts["tables"][0]["rows"]} == {"long"}
    after = state(tmp_path)
    assert {name: value for name, value in after.items() if name in before and FLOORS not in name} == {
        name: value for name, value in before.items() if FLOORS not in name
    }


@pytest.mark.slow
def test_seconds_are_as_many_steps_as_fit(url: str, tmp_path: Path) -> None:
    outcome = ablate(planned(url, [], n_seeds=1, steps=None, seconds=2.0), tmp_path, say=lambda _: None)
    assert not outcome.failed
    (facts,) = (json.loads(path.read_text()) for path in tmp_path.glob(f"*/{TRAINED}"))
    assert facts["steps"] > 3
    assert 0.5 < facts["cpu_seconds"] < 6


def test_keys_are_of_what_is_trained(url: str, tmp_path: Path) -> None:
    def key(*settings: str, **options: object) -> str:
        return planned(url, [], *settings, **options).trainings[0].key

    same = key()
    assert key("network.scan=1") == same
    assert key("data.prefetch=0", "output=elsewhere", "log_every=1", "data.cache_mb=1") == same
    others = [key("seed=1"), key("optim.lr=0.1"), key("network.scan=2"), key("data.flip=false"), key(steps=4)]
    assert len({same, *others}) == 6
    # Other pairs are another training, the same pairs elsewhere are not.
    assert key(f"data.url={write_dataset(tmp_path / 'other', pairs(5, 3))}", on=[url]) != same
    assert key(f"data.url={write_dataset(tmp_path / 'same', pairs(6, 3))}", on=[url]) == same


def test_code_is_known_by_what_it_does(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text('"""A."""\n\n\ndef f(x):\n    """B."""\n    return x + 1  # one\n')
    first = study_module._code(path)
    path.write_text("def f(x):\n    return (x + 1)\n")
    assert study_module._code(path) == first
    path.write_text("def f(x):\n    return x + 2\n")
    assert study_module._code(path) != first


def test_forms_of_variants() -> None:
    assert varied("data.crop=[96,96],[64,64]") == [
        Variant("data.crop=[96,96]", ("data.crop=[96,96]",)), Variant("data.crop=[64,64]", ("data.crop=[64,64]",)),
    ]  # fmt: skip
    assert bundled("wide: network.width=24 'loss={ssim: 1}'") == Variant("wide", ("network.width=24", "loss={ssim: 1}"))
    for text in ("network.scan", "=1", "network.scan="):
        with pytest.raises(RecipeError, match="--vary"):
            varied(text)
    for text in ("network.scan=1", ": a=1", "a:", "a: b", "a: 'b=1"):
        with pytest.raises(RecipeError, match="--variant"):
            bundled(text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--vary", "network.scan=4"], "network.scan=4"),
        (["--vary", "netwrk.scan=2"], "did you mean 'network'"),
        (["--vary", "network.scan=2,2"], "two variants are called 'network.scan=2'"),
        (["--variant", "base: network.scan=2"], "two variants are called 'base'"),
        (["--splits", "train", "--on", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_said_before_anything_is_trained(
    url: str, tmp_path: Path, arguments: list[str], words: str
) -> None:
    call = ["ablate", "train_vif_small", "--set", f"data.url={url}", "-o", str(tmp_path / "out"), *arguments]
    result = CliRunner().invoke(cli, call)
    assert (result.exit_code, words in result.output) == (1, True), result.output
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_would_be_done(url: str, tmp_path: Path) -> None:
    call = ["ablate", "train_vif_small", "--set", f"data.url={url}", "--vary", "network.scan=2", "--seeds", "2"]
    result = CliRunner().invoke(cli, [*call, "-o", str(tmp_path / "out"), "--dry-run", "--json"])
    assert json.loads(result.output)["pending"] == [
        "the trivial answers", "base, seed 0", "network.scan=2, seed 0", "base, seed 1", "network.scan=2, seed 1",
    ]  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_nothing_held_out_is_an_error(tmp_path: Path) -> None:
    url = write_dataset(tmp_path / "made", pairs(3, 3))
    with pytest.raises(RecipeError, match="--on"):
        planned(url, [])
