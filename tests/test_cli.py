"""The command line: help that needs nothing heavy, and one clear message for each mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.cluster import ClusterError, connect


def test_help_is_quick_to_import() -> None:
    heavy = ["ray", "torch", "mlflow", "cv2", "transformers"]
    code = f"import rwkvfusion.pipelines.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", sorted(main.commands))
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
