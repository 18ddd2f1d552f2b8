"""The command line: help that needs nothing heavy, and one clear message for each mistake."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import cv2
import pytest
from click.testing import CliRunner
from made import scene, write_pairs

from rwkvfusion.model.shipped import shipped
from rwkvfusion.pipelines import cli
from rwkvfusion.pipelines.cli import COMMANDS, main
from rwkvfusion.pipelines.cluster import ClusterError, connect


def test_help_is_quick_to_import() -> None:
    heavy = ["ray", "torch", "mlflow", "cv2", "transformers", "numpy", "pydantic", "yaml", "rich"]
    code = (
        "import sys; from rwkvfusion.pipelines.cli import main; main(['--help'], standalone_mode=False);"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_room_with_flags_is_a_command() -> None:
    rooms = {path.parent.name for path in Path(cli.__file__).parent.glob("*/command.py")}
    assert rooms == {module.partition(".")[0] for module, _ in COMMANDS.values() if module.endswith(".command")}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_help_is_a_sentence_options_that_say_what_they_take_and_an_example(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.help is not None
    first = " ".join(command.help.partition("\n\n")[0].split())
    assert first.endswith(".")
    assert len(first) <= 120
    assert re.search(rf"\n\s*rwkvfusion {name}\b", command.help), "it has no example"
    options = {option.opts[-1]: option for option in command.params if isinstance(option, click.Option)}
    assert [name for name, option in options.items() if not re.search(r"\.$|\]$|\]\.$", option.help or "")] == []
    # A number says what holds without it; of what narrows a choice to N, that is all of them.
    numbers = {name: one for name, one in options.items() if isinstance(one.type, click.IntRange | click.FloatRange)}
    told = re.compile(r"\[|\bN\b|instead of")
    assert [name for name, one in numbers.items() if not (one.show_default or told.search(one.help or ""))] == []


def test_a_mistake_gives_one_message_and_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rwkvfusion.pipelines.cli", "prepare", "msrs", "--set", "sourse.root=x"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "rwkvfusion: msrs.yaml: unknown key 'sourse', did you mean 'source'?\n"


PAIRED = "prepare vif --set source.layout=paired --set source.root=raw --set source.modalities.visible.folder=vi"
PAIRED += " --set source.modalities.infrared.folder=ir "


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("fus a.png b.png", 2, "there is no command 'fus': did you mean fuse?"),
        ("demo --steps x", 2, "'x' is not a whole number"),
        ("fuse --model vif-tny raw/vi/a.png raw/ir/a.png -o o.png", 1, "no model at vif-tny: did you mean vif-tiny?"),
        (
            "fuse --model models:/x@champion raw/vi/a.png raw/ir/a.png -o o.png",
            1,
            "no model models:/x@champion: there is",
        ),
        ("fuse raw/vi/a.png nowhere.png -o o.png", 1, "nowhere.png: there is no such file"),
        ("fuse raw/vi/a.png words.png -o o.png", 1, "words.png: not a picture in a format we read"),
        ("fuse raw/vi/a.png raw/ir/a.png -o o.xyz", 1, "o.xyz: a fused picture is written as .png"),
        ("prepare vfi", 1, "no recipe 'vfi': did you mean vif.yaml?"),
        (
            "prepare msrs --set source.root=nowhere",
            1,
            "nowhere does not exist: set it to the folder that holds the data",
        ),
        ("prepare msrs --set source.root=empty", 1, "no pair of layout 'msrs' below"),
        (
            "prepare vif --set source.layout=mrs --set source.root=raw",
            1,
            "unknown source.layout 'mrs': did you mean 'msrs'?",
        ),
        (
            "prepare mff --set source.layout=tno --set source.root=raw",
            1,
            "the recipe is for task 'mff', layout 'tno' is for 'vif'",
        ),
        ("verify raw", 1, "no dataset at"),
        ("prepare words.png", 1, "words.png is no recipe: it must be a mapping of settings, KEY: VALUE"),
        ("prepare bad.yaml", 1, "bad.yaml is not YAML: line 2, column 2: expected ',' or ']'"),
        (f"{PAIRED} --set shard.pairs=many", 1, "shard.pairs must be a whole number, not 'many'"),
        (f"{PAIRED} --set pairs=3", 1, "unknown key 'pairs', did you mean 'shard.pairs'?"),
        (f"{PAIRED} --set source.modalities.infrared.folder=x", 1, "looked for visible in a folder `vi`, infrared in"),
        (f"{PAIRED} --set output=s3://bucket/x", 1, "no credentials are set: set AWS_ACCESS_KEY_ID"),
        (f"{PAIRED} --set output=gs://bucket/x", 1, "cannot open gs://bucket/x/paired: Please install gcsfs"),
        (f"{PAIRED} --set guidance=full --dry-run", 1, "is not on this machine"),
        (
            "train train_vif_small --set data.url=nowhere",
            1,
            "nothing was committed there (make one with `rwkvfusion pre",
        ),
        ("rollback rwkvfusion-vif --tracking-uri foo://bar", 1, "MLflow cannot be at foo://bar: use a server's URL"),
        ("rollback rwkvfusion-vif", 1, "set MLFLOW_TRACKING_URI or --tracking-uri to where it is"),
        ("lineage words.png", 1, "words.png does not say what made it"),
        ("evaluate --a raw/vi --b raw/ir --fused f=nowhere", 1, "nowhere is not a folder"),
        ("evaluate --a raw/vi --b raw/ir --fused f", 2, "'f': give NAME=DIR"),
        ("export --model vif -o x.foo", 1, "x.foo: a model is exported as .onnx or .pt2"),
        ("doctor --size 3", 2, "width and height in pixels, such as 640x480, not '3'"),
    ],
)
def test_a_mistake_is_answered_in_our_words(
    arguments: str, code: int, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "PROFILE", "ENDPOINT_URL"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for folder in ("vi", "ir"):
        (tmp_path / "raw" / folder).mkdir(parents=True)
        assert cv2.imwrite(str(tmp_path / "raw" / folder / "a.png"), scene(1, 64, 64))
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.png").write_text("hello")
    (tmp_path / "bad.yaml").write_text("a: [1\nb: 2\n")
    result = CliRunner().invoke(main, arguments.split())
    assert (result.exit_code, line in result.output) == (code, True), result.output
    assert not re.search(r"Traceback|[a-z]Error\b|Exception|pydantic|Errno|a bug at", result.output)


def test_a_warning_of_ours_is_a_line_for_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        assert cv2.imwrite(name, scene(1, 64, 64))
    shutil.copytree(shipped()["vif-tiny"].folder, tmp_path / "vif-tiny")
    result = CliRunner().invoke(main, ["fuse", "--model", "vif-tiny", "a.png", "b.png", "-o", "c.png"])
    assert result.exit_code == 0, result.output
    told = "warning: vif-tiny is the model that comes with the package; the folder here is ./vif-tiny\n"
    assert (told in result.stderr, "UserWarning" in result.stderr) == (True, False)


def test_a_cluster_that_cannot_be_used_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(**_: object) -> None:
        raise Exception("The current node timed out.\nMore of it.")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with (
        pytest.raises(ClusterError, match=r"answers at 127\.0\.0\.1:9: .*refused.* `ray start"),
        connect("127.0.0.1:9"),
    ):
        pass
    monkeypatch.setattr("ray.init", dies)
    with pytest.raises(ClusterError, match=r"did not start on this machine: The current node timed out\.$"), connect():
        pass


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("fuse a.png b.png -o c.png --split test", "--split is for a dataset: with a pair A B it has no effect"),
        ("fuse --dataset d -o c --guidance builtin", "--guidance is for a pair A B or two folders: with a dataset"),
        ("fuse --dataset d -o c --guidance none", "--guidance is for a pair A B or two folders: with a dataset"),
        ("fuse --a v --b i -o c --allow-incomplete", "--allow-incomplete is for a dataset: with two folders"),
        ("fuse --a v -o c", "give either a pair A B, or --a DIR and --b DIR"),
        ("fuse a.png b.png -o c.png --jobs 2", "--jobs is for two folders or a dataset: with a pair"),
        ("evaluate --dataset d --scale 2047", "--scale is for folders: with a dataset it has no effect"),
        ("evaluate --a v --b i --limit 3", "--limit is for a dataset: with folders it has no effect"),
        ("evaluate --a v --b i --name x", "--name is for a --model without a NAME"),
        ("evaluate --a v --b i --fused f=f --guidance none", "--guidance is for models"),
        ("evaluate --a v --b i --fused f=f --model f=m", "two are called 'f'"),
        ("evaluate --a v --b i --by night", "give split, dataset or NAME=GLOB"),
        ("evaluate --a v --b i --sensor WV3", "--sensor is for pansharpening without targets"),
        ("evaluate --a p --b m --target g --task pansharpening --sensor WV3", "--sensor is for pansharpening without"),
        ("evaluate --dataset d --model x=m --name y", "--name is for a --model without a NAME"),
        ("view d --key a --limit 3", "--limit is for samples evenly spread: with --key it has no effect"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(arguments: str, words: str) -> None:
    result = CliRunner().invoke(main, arguments.split())
    assert (result.exit_code, words in result.output) == (2, True), result.output


def test_prompts_that_nobody_reads_are_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path / "raw", ["a"], height=16, width=16)
    arguments = ["prepare", "msrs", "--dry-run", "--set", f"source.root={tmp_path}/raw", "--set", "prompts=[tram]"]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, "no stage looks for objects by words" in result.output) == (2, True)
