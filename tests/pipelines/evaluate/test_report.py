"""What a report keeps: a second call computes only what changed; kinds are never mixed; runs of MLflow."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from made import scene
from made_datasets import pair, picture, write_dataset
from made_fusers import luma_fuser

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.infra.storage import Store
from rwkvfusion.infra.tracking import using
from rwkvfusion.model.metrics.luma.planes import luma
from rwkvfusion.model.metrics.score import ScoreError
from rwkvfusion.model.metrics.table import VERSION, Comparison, Convention
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.evaluate import rows as rows_module
from rwkvfusion.pipelines.evaluate.cases.samples import DatasetCases, select_samples
from rwkvfusion.pipelines.evaluate.report.findings import parts_of
from rwkvfusion.pipelines.evaluate.results import Results, Shown, finite
from rwkvfusion.pipelines.evaluate.rows import FILE, PARTIAL, Kept, Kind, from_parquet, to_parquet
from rwkvfusion.pipelines.evaluate.run import How, evaluate
from rwkvfusion.pipelines.evaluate.systems import ModelSystem
from rwkvfusion.pipelines.parallel import in_order

FLOOR = ["source a alone", "source b alone", "mean", "maximum"]
STEMS = ("00001D", "00002N", "00003D", "00004N")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Four pairs in `a` and `b`, and results of two systems in `one` and `two`."""
    for place, name in enumerate(("a", "b", "one", "two")):
        (tmp_path / name).mkdir()
        for seed, stem in enumerate(STEMS):
            (tmp_path / name / f"{stem}.png").write_bytes(encode_png(scene(10 * place + seed, 48, 64, 1)))
    return tmp_path


def options(folders: Path, *systems: str) -> list[str]:
    fused = [word for name in systems for word in ("--fused", f"{name}={folders / name}")]
    return ["evaluate", "--a", str(folders / "a"), "--b", str(folders / "b"), *fused]


def run(arguments: list[str], *more: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, [*arguments, *more])
    assert done.exit_code == code, done.output
    return done.stderr


def kept(stderr: str) -> tuple[int, int]:
    """(rows taken from the report, all rows)."""
    found = [line for line in stderr.splitlines() if "rows of scores were in" in line]
    if not found:
        return 0, 0
    words = found[0].split()
    return int(words[0]), int(words[2])


def table(folder: Path) -> tuple[dict[str, list[object]], dict[str, str]]:
    read = pq.read_table(folder / FILE)
    return read.to_pydict(), {key.decode(): value.decode() for key, value in read.schema.metadata.items()}


def test_a_report_has_a_row_for_each_picture_and_says_what_it_is_of(folders: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [*options(folders, "one"), "--report", str(tmp_path / "r"), "--json", "-"])
    columns, facts = table(tmp_path / "r")
    assert facts["rwkvfusion.convention"] == "y"
    assert facts["rwkvfusion.metrics_version"] == VERSION
    assert facts["rwkvfusion.task"] == "vif"
    assert columns["key"] == [stem for stem in STEMS for _ in range(5)]
    assert columns["system"] == [*FLOOR, "one"] * 4
    assert set(columns["comparison"]) == {"sources"}
    means = json.loads(done.stdout)
    for name in (*FLOOR, "one"):
        mine = [value for value, system in zip(columns["EN"], columns["system"], strict=True) if system == name]
        assert np.mean(mine) == pytest.approx(means[name]["EN"])


def test_a_second_call_computes_only_what_changed(folders: Path, tmp_path: Path) -> None:
    report = ("--report", str(tmp_path / "r"))
    assert kept(run(options(folders, "one"), *report)) == (0, 0)
    first = (tmp_path / "r" / FILE).read_bytes()
    assert kept(run(options(folders, "one"), *report)) == (20, 20)
    assert (tmp_path / "r" / FILE).read_bytes() == first, "the same rows in the same order"
    # Another system: the trivial answers and the first one are there.
    assert kept(run(options(folders, "one", "two"), *report)) == (20, 24)
    # One picture of one system, then one source: what depends on it alone is computed again.
    (folders / "two" / "00003D.png").write_bytes(encode_png(scene(99, 48, 64, 1)))
    assert kept(run(options(folders, "one", "two"), *report)) == (23, 24)
    (folders / "a" / "00001D.png").write_bytes(encode_png(scene(98, 48, 64, 1)))
    assert kept(run(options(folders, "one", "two"), *report)) == (18, 24)
    fresh = CliRunner().invoke(main, [*options(folders, "one", "two"), "--json", "-"])
    assert json.loads(fresh.stdout) == json.loads(
        CliRunner().invoke(main, [*options(folders, "one", "two"), *report, "--json", "-"]).stdout
    )
    # Pictures that are declared otherwise are other pictures; by another name they are the same.
    assert kept(run(options(folders, "one", "two"), *report, "--scale", "fused=200")) == (16, 24)
    (folders / "one").rename(folders / "three")
    run(options(folders, "two"), *report)
    assert kept(run(options(folders, "three", "two"), *report)) == (20, 24)


def test_results_of_two_conventions_or_versions_are_never_mixed(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = ("--report", str(tmp_path / "r"))
    run(options(folders, "one"), *report)
    before = (tmp_path / "r" / FILE).read_bytes()
    said = run(options(folders, "one"), *report, "--convention", "rwkvfusion", code=1)
    assert "holds results of convention y, and these are of convention rwkvfusion: they are never mixed" in said
    assert (tmp_path / "r" / FILE).read_bytes() == before
    said = run(options(folders, "one"), *report, "--task", "mff", code=1)
    assert "holds results of task vif, and these are of task mff" in said
    monkeypatch.setattr(rows_module, "metrics_version", lambda _: "older")
    rows, _ = from_parquet(before)
    Store(str(tmp_path / "r")).write(FILE, to_parquet(rows, Kind("vif", Convention.Y)))
    monkeypatch.undo()
    said = run(options(folders, "one"), *report)
    assert "is of version older of the metrics: all is computed again" in said
    assert kept(said) == (0, 0)
    assert (tmp_path / "r" / FILE).read_bytes() == before


def test_rows_survive_the_file_and_a_damaged_one_is_replaced(folders: Path, tmp_path: Path) -> None:
    (folders / "one" / "00001D.png").write_bytes((folders / "a" / "00001D.png").read_bytes())
    run(options(folders, "one"), "--target", str(folders / "a"), "--report", str(tmp_path / "r"))
    data = (tmp_path / "r" / FILE).read_bytes()
    rows, facts = from_parquet(data)
    assert to_parquet(rows, Kind("vif", Convention.Y)) == data
    assert facts["convention"] == "y"
    same = next(row for row in rows if row.system == "one" and row.comparison is Comparison.TARGET)
    assert math.isinf(same.values["PSNR_ref"])
    assert set(same.undefined) == {"PSNR_ref"}
    assert set(same.values) == {"PSNR_ref", "SSIM_ref"}
    for damaged in (b"", data[:-10], b"PAR1" + data[10:]):
        (tmp_path / "r" / FILE).write_bytes(damaged)
        run(options(folders, "one"), "--target", str(folders / "a"), "--report", str(tmp_path / "r"))
        assert (tmp_path / "r" / FILE).read_bytes() == data


class Counted(ModelSystem):
    """Counts how often it is asked for a picture that is not there."""

    made: list[str] = []  # noqa: RUF012

    def open(self, case):  # type: ignore[no-untyped-def]
        entry = super().open(case)

        def make(loaded):  # type: ignore[no-untyped-def]
            Counted.made.append(case.key)
            return entry.make(loaded)

        return type(entry)(entry.digest, make)


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    made = [pair(seed) for seed in range(6)]
    write_dataset(tmp_path / "set", [[one.replace(split="test") for one in made[:4]]], split="test")
    return write_dataset(tmp_path / "set", [[one.replace(split="val") for one in made[4:]]], split="val")


def scored(url: str, system: ModelSystem, store: Store, **how: object) -> Results:
    cases = DatasetCases([select_samples(url, ["test", "val"])], {})
    kept = Kept(store, Kind("vif", Convention.Y))
    return evaluate(cases, [system], How(kept=kept, **how))  # type: ignore[arg-type]


def test_a_model_does_not_fuse_again_what_is_scored(dataset: str, tmp_path: Path) -> None:
    store, fuser = Store(str(tmp_path / "r")), luma_fuser()
    first = scored(dataset, Counted("m", fuser, "a" * 64), store)
    assert sorted(Counted.made) == sorted(first.scored[0].keys)
    Counted.made.clear()
    again = scored(dataset, Counted("m", fuser, "a" * 64), store, by=("split", "odd=*[135]"))
    assert Counted.made == []
    assert finite(again.means) == finite(first.means)
    assert {name: int(part.sum()) for name, part in again.scored[0].slices.items()} == {
        "split test": 4, "split val": 2, "odd": 3
    }  # fmt: skip
    # Without its guidance only those that have some are other pictures; other weights are another model.
    scored(dataset, Counted("m", fuser, "a" * 64, "none"), store)
    assert sorted(Counted.made) == ["pair-0000", "pair-0001", "pair-0003", "pair-0004"]
    Counted.made.clear()
    scored(dataset, Counted("m", fuser, "b" * 64), store)
    assert len(Counted.made) == 6


def test_pairs_are_drawn_from_what_is_in_memory_and_in_order(dataset: str, tmp_path: Path) -> None:
    """Workers draw several at once, the main thread is called in order; nothing is fused twice for it."""
    Counted.made.clear()
    store, drawn, main_thread = Store(str(tmp_path / "r")), [], threading.main_thread()

    def on_case(shown: Shown):  # type: ignore[no-untyped-def]
        assert threading.current_thread() is not main_thread
        values = shown.values[Comparison.SOURCES]
        assert [*values] == [*FLOOR, "m"]
        assert shown.roles == ("visible", "infrared")
        assert shown.pictures["m"].values.shape[:2] == shown.scene.sources[0].values.shape[:2]

        def write() -> None:
            assert threading.current_thread() is main_thread
            drawn.append((shown.key, values["m"]["EN"]))

        return write

    for _ in range(2):
        drawn.clear()
        found = scored(dataset, Counted("m", luma_fuser(), "a" * 64), store, jobs=3, on_case=on_case)
        assert [key for key, _ in drawn] == list(found.scored[0].keys)
        assert [value for _, value in drawn] == found.scored[0].values["m"]["EN"].tolist()
    assert len(Counted.made) == 12, "once for each gallery"


class Blocks:
    """Sees means of 8x8 pixels."""

    def seen(self, picture: np.ndarray) -> np.ndarray:
        height, width, bands = picture.shape
        if height < 48:
            raise ValueError("too small")
        return picture[: height // 8 * 8, : width // 8 * 8].reshape(height // 8, 8, width // 8, 8, bands).mean((1, 3))

    def distance(self, first: np.ndarray, second: np.ndarray) -> float:
        return float(np.abs(first - second).mean())


def test_lpips_is_a_column_where_it_is_asked_for(tmp_path: Path) -> None:
    """Its sum over the sources, of luma; with it, scores without it are not taken for whole."""
    small = pair(7, height=40)
    write_dataset(tmp_path / "set", [[pair(0), pair(1), small]], split="test")
    cases = DatasetCases([select_samples(str(tmp_path / "set"))], {})
    store, system, blocks = Store(str(tmp_path / "r")), ModelSystem("m", luma_fuser(), "a" * 64), Blocks()
    found = {}
    for lpips in (None, blocks, blocks):
        kept = Kept(store, Kind("vif", Convention.Y))
        found = evaluate(cases, [system], How(kept=kept, lpips=lpips)).scored[0]
        assert ("LPIPS" in found.metrics) == (lpips is not None)
    assert (kept.n_new, kept.n_kept) == (0, 15)
    sample = next(iter(cases.selected[0].dataset.samples()))
    first, second = (luma(decode(image.data))[:, :, None] / 255 for image in sample.images)
    between = blocks.distance(blocks.seen(first), blocks.seen(second))
    assert found.values["source a alone"]["LPIPS"][0] == pytest.approx(between)
    assert found.values["mean"]["LPIPS"][0] == pytest.approx(between, abs=2 / 255)
    assert np.isnan(found.values["m"]["LPIPS"][2])
    assert found.undefined["LPIPS"] == "too small"


def test_the_result_is_the_same_whatever_the_number_of_jobs(dataset: str) -> None:
    cases = DatasetCases([select_samples(dataset, ["test", "val"])], {})
    system = ModelSystem("m", luma_fuser())
    one, many = (evaluate(cases, [system], How(jobs=jobs)) for jobs in (1, 4))
    assert one.scored[0].keys == many.scored[0].keys
    for name, row in one.scored[0].values.items():
        for metric, values in row.items():
            np.testing.assert_array_equal(values, many.scored[0].values[name][metric])


def test_what_was_done_before_a_call_was_cut_off_is_kept(dataset: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "r"))

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(dataset, Counted("m", luma_fuser(), "a" * 64), store, on_scene=stop)
    assert not store.exists(FILE), "a part is not taken for the whole"
    assert store.exists(PARTIAL)
    Counted.made.clear()
    scored(dataset, Counted("m", luma_fuser(), "a" * 64), store)
    assert Counted.made == ["pair-0003", "pair-0004", "pair-0005"]
    assert store.exists(FILE)
    assert not store.exists(PARTIAL)


def test_a_call_that_is_cut_off_earlier_than_the_last_one_loses_nothing(dataset: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "r"))
    for last in (5, 1):

        def stop(done: int, _: int, last: int = last) -> None:
            if done == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            scored(dataset, Counted("m", luma_fuser(), "a" * 64), store, on_scene=stop)
    Counted.made.clear()
    scored(dataset, Counted("m", luma_fuser(), "a" * 64), store)
    assert Counted.made == ["pair-0005"]


def test_an_interrupt_does_not_wait_for_the_pairs_in_work() -> None:
    """After a few seconds the process ends, whatever is kept by then."""
    free = threading.Event()

    def work(number: int) -> int:
        if number == 1:
            raise KeyboardInterrupt
        return number if number == 0 else free.wait(20)

    try:
        with pytest.raises(KeyboardInterrupt):
            list(in_order(work, ((number,) for number in range(9)), 2))
        assert not free.is_set()
        assert [thread for thread in threading.enumerate() if thread.name.startswith("work")], "it still works"
    finally:
        free.set()


def test_scores_do_not_hold_where_another_model_takes_values_otherwise(tmp_path: Path) -> None:
    """A model says what counts as 1 of values that nothing declares; beside one that says nothing it is not heard."""
    shallow = pair(0).replace(split="test")
    images = tuple(
        picture(one.role, scene(seed, 48, 64, one.channels).astype(np.uint16) * 4)
        for seed, one in enumerate(shallow.images)
    )
    url = write_dataset(tmp_path / "set", [[shallow.replace(images=images)]], split="test")
    says = ModelSystem("says", luma_fuser(1023, 1023), "a" * 64)
    silent = ModelSystem("silent", luma_fuser(), "b" * 64)

    def found(*systems: ModelSystem, kept: Kept | None = None) -> dict[str, dict[str, float | None]]:
        return finite(evaluate(DatasetCases([select_samples(url)], {}), systems, How(kept=kept)).means)

    store, kind = Store(str(tmp_path / "r")), Kind("vif", Convention.Y)
    alone = found(says, kept=Kept(store, kind))
    both = found(says, silent, kept=Kept(store, kind))
    assert both == found(says, silent)
    assert both["mean"] != alone["mean"]


def test_a_part_has_no_table_where_none_of_its_pairs_are_compared(tmp_path: Path) -> None:
    plain, other = (pair(seed).replace(split=split) for seed, split in ((0, "test"), (1, "testb")))
    truth = other.replace(target=picture("target", scene(5, 48, 64)))
    write_dataset(tmp_path / "set", [[plain]], split="test")
    url = write_dataset(tmp_path / "set", [[truth]], split="testb")
    found = evaluate(DatasetCases([select_samples(url)], {}), [], How(by=("split",)))
    names = {scored.comparison: [part.name for part in parts_of(found, scored)] for scored in found.scored}
    assert names[Comparison.SOURCES] == ["", "split test", "split testb"]
    assert names[Comparison.TARGET] == ["", "split testb"]


def test_two_lines_or_parts_of_one_name_are_refused(folders: Path) -> None:
    assert "two are called 'n'" in run(options(folders, "one"), "--by", "n=*D", "--by", "n=*N", code=2)
    (folders / "model").mkdir()
    luma_fuser().save(folders / "model")
    model = ("--model", f"m={folders / 'model'}", "--guidance", "none", "--fused", f"m (none)={folders / 'one'}")
    assert "two are called 'm (none)'" in run(options(folders), *model, code=2)


def test_several_datasets_are_one_table_with_parts(tmp_path: Path) -> None:
    urls = []
    for name, seeds in (("first", (0, 1)), ("second", (1, 2))):
        urls.append(write_dataset(tmp_path / name, [[pair(seed) for seed in seeds]], split="test"))
    selected = [select_samples(url) for url in urls]
    found = evaluate(DatasetCases(selected, {}), [], How(by=("dataset", "night=*N")))
    assert found.scored[0].keys == tuple(
        f"{url}/pair-{seed:04d}" for url, seeds in zip(urls, ((0, 1), (1, 2)), strict=True) for seed in seeds
    )
    slices = found.scored[0].slices
    assert [part.tolist() for part in slices.values()] == [[True, True, False, False], [False, False, True, True]]
    assert [line for line in found.warnings if "night" in line] == [
        "--by night: no pair has a name that its pattern fits; one is called visible"
    ]
    other = select_samples(write_dataset(tmp_path / "third", [[pair(3)]], "pansharpening", "test"))
    with pytest.raises(ScoreError, match="pansharpening"):
        DatasetCases([selected[0], other], {})


def test_a_run_of_mlflow_has_settings_means_pictures_and_the_report(folders: Path, tmp_path: Path) -> None:
    (folders / "one" / "00001D.png").write_bytes((folders / "a" / "00001D.png").read_bytes())
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    arguments = [*options(folders, "one"), "--fused", f"two (100 %)={folders / 'two'}"]
    more = ("--experiment", "fusion", "--tracking-uri", uri, "--target", str(folders / "a"))
    said = run(arguments, *more, "--report", str(tmp_path / "r"))
    assert "logged as run" in said
    with using(uri) as client:
        experiment = client.get_experiment_by_name("fusion").experiment_id
        (found,) = client.search_runs([experiment])
        assert found.info.status == "FINISHED"
        assert found.data.tags["convention"] == "y"
        assert found.data.tags["metrics_version"] == VERSION
        assert found.data.params["task"] == "vif"
        columns, _ = table(tmp_path / "r")
        rows = zip(columns["Qabf"], columns["system"], columns["comparison"], strict=True)
        mine = [value for value, system, kind in rows if (system, kind) == ("two (100 %)", "sources")]
        assert found.data.metrics["two 100.Qabf"] == pytest.approx(np.mean(mine))
        assert found.data.metrics["mean.SSIM_ref"] > 0
        names = {one.path for one in client.list_artifacts(found.info.run_id)}
        assert names >= {"pairs_sources.json", "pairs_target.json", "report", "recipe.yaml"}
        assert f"report/{FILE}" in {one.path for one in client.list_artifacts(found.info.run_id, "report")}
        logged = client.load_table(experiment, "pairs_target.json", [found.info.run_id])
        infinite = logged[(logged.system == "one") & (logged.key == "00001D")]
        assert infinite.PSNR_ref.isna().all()
        assert (logged.convention == f"convention y (metrics {VERSION})").all()


def test_a_folder_of_another_systems_results_needs_one_command_and_no_ray(folders: Path) -> None:
    """In a process of its own: neither Ray nor torch is imported, and nothing is started."""
    program = (
        "import sys\nfrom rwkvfusion.pipelines.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print(sorted({'ray', 'torch'} & set(sys.modules)), file=sys.stderr)"
    )
    arguments = [sys.executable, "-c", program, *options(folders, "one"), "--json", "-"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {*FLOOR, "one"}
    assert done.stderr.splitlines()[-1] == "[]"
