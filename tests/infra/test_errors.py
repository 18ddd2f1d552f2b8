"""What is said of errors that libraries raise, in our words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, Field, ValidationError

from rwkvfusion.infra.errors import TRACEBACK, first_invalid
from rwkvfusion.pipelines import cli


class Settings(BaseModel):
    pairs: int = Field(1, ge=1, le=9)
    names: tuple[str, ...] = Field((), max_length=2)
    kind: Literal["a", "b"] = "a"
    word: str = Field("x", min_length=1, pattern="^x")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pairs": "many"}, "pairs must be a whole number"),
        ({"pairs": 0}, "pairs must be at least 1"),
        ({"pairs": 10}, "pairs must be at most 9"),
        ({"names": ["a", "b", "c"]}, "names must have at most 2 entries"),
        ({"names": [1]}, "names.0 must be a text"),
        ({"kind": "c"}, "kind must be 'a' or 'b'"),
        ({"word": ""}, "word must have at least 1 character"),
        ({"word": "y"}, "word must be of the form ^x"),
        (3, "it must be a group of settings, {KEY: VALUE}"),
    ],
)
def test_a_refused_value_is_named_with_what_it_must_be(values: object, words: str) -> None:
    with pytest.raises(ValidationError) as error:
        Settings.model_validate(values)
    assert first_invalid(error.value) == words


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (
            KeyError("frobs"),
            r"a bug at test_errors\.py:\d+, or input that nobody foresaw: KeyError 'frobs'; report it with ",
        ),
        (RuntimeError("two of one\nname"), r"nobody foresaw: two of one; report it with "),
        (
            OSError(28, "No space left on device", "/out/a.tar"),
            r"^rwkvfusion: cannot use /out/a\.tar: No space left on dev",
        ),
        (MemoryError(), r"^rwkvfusion: the memory does not suffice"),
    ],
)
def test_what_nobody_foresaw_is_one_line_and_a_file(
    raised: Exception, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    @click.command()
    def doctor() -> None:
        raise raised

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(cli._Group, "get_command", lambda *_: doctor)
    monkeypatch.delenv(TRACEBACK, raising=False)
    result = CliRunner().invoke(cli.main, ["doctor"])
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert re.search(words, result.output), result.output
    kept = [path.read_text() for path in tmp_path.glob("rwkvfusion-*.txt")]
    assert len(kept) == (1 if "report" in words else 0)
    assert all("Traceback" in text and "raise raised" in text for text in kept)
    monkeypatch.setenv(TRACEBACK, "1")
    assert CliRunner().invoke(cli.main, ["doctor"]).exception is raised
