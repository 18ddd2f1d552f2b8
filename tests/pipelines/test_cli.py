"""The command line: help that needs nothing heavy, and one clear message for each mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from made import write_pairs

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


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["prepare", "msrs", "--set", "sourse.root=x"], ["unknown key 'sourse'", "did you mean 'source'"]),
        (["prepare", "msrs", "--set", "source.root={tmp}/nowhere"], ["nowhere", "does not exist"]),
        (["prepare", "msrs", "--set", "source.root={tmp}/empty"], ["empty"]),
        (["prepare", "vif", "--set", "source.layout=mrs", "--set", "source.root={tmp}"], ["mrs", "msrs"]),
        (["prepare", "mff", "--set", "source.layout=tno", "--set", "source.root={tmp}/empty"], ["mff", "tno"]),
        (["verify", "{tmp}/empty"], ["no dataset at"]),
    ],
)
def test_a_mistake_gives_one_message_and_no_traceback(tmp_path: Path, args: list[str], words: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "rwkvfusion.pipelines.cli", *(a.format(tmp=tmp_path) for a in args)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


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
