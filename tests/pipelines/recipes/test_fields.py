"""`recipe`: every field of a recipe in plain words, and the page that is made of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel, ValidationError

from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.recipe import COMMANDS, builtin_recipes, command_of, load_recipe, model_of, settings_of
from rwkvfusion.pipelines.recipes.fields import RecipeField, fields_of
from rwkvfusion.pipelines.recipes.page import page

ROOT = Path(__file__).resolve().parents[3]
FIELDS = {command: list(fields_of(model_of(command))) for command in COMMANDS}
LEAVES = {command: [field for field in fields if not field.is_group] for command, fields in FIELDS.items()}
STARTS = {
    "prepare": {"source": {"layout": "tno", "root": "/data"}},
    "train": {"data": {"url": "/out"}},
    "promote": {"name": "a", "sets": {"x": {"url": "/out"}}, "gate": {"metrics": ["Qabf"]}},
}
"""The least that a recipe of each command has."""


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["recipe", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_page_is_what_the_models_say() -> None:
    assert (ROOT / "docs/recipes.md").read_text(encoding="utf-8") == page(), "make docs writes it anew"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_field_says_what_it_is_in_plain_words(command: str) -> None:
    assert [field.name for field in FIELDS[command] if len(field.meaning) < 5] == []
    jargon = re.compile(r"None|Literal|Optional|pydantic|tuple|\bstr\b|\bint\b|\bbool\b|Union|\(\?")
    assert [field for field in FIELDS[command] if jargon.search(f"{field.type} {field.limits} {field.meaning}")] == []
    # Of another method a field may be another one.
    names = [(field.name, field.when) for field in FIELDS[command]]
    assert len(names) == len({*names}) > 20


def test_every_setting_of_a_whole_recipe_is_a_field_and_no_field_is_made_up() -> None:
    """Each recipe as the models hold it, with all defaults, against the fields that are shown."""
    for name in builtin_recipes():
        command = command_of(settings_of(name)[1])
        assert command is not None
        sets = ["source.root=/d", "source.layout=tno"] if command == "prepare" else []
        held = load_recipe(name, model_of(command), sets)
        shown = {field.name for field in LEAVES[command]}
        assert {*_paths(held)} <= shown, name


def _paths(value: Any, prefix: str = "", *, keyed: bool = False) -> list[str]:
    if isinstance(value, BaseModel):
        parts = {info.alias or name: getattr(value, name) for name, info in type(value).model_fields.items()}
    elif isinstance(value, dict) and value and all(isinstance(one, BaseModel) for one in value.values()):
        parts = {"NAME": next(iter(value.values()))}
    else:
        return [prefix]
    # A group that is not there has no field of its own.
    return [
        path
        for key, one in parts.items()
        if one not in (None, {})
        for path in _paths(one, f"{prefix}.{key}".strip("."))
    ]


@pytest.mark.parametrize("command", STARTS)
def test_limits_are_those_that_hold(command: str) -> None:
    """Just outside of each numeric limit a value is refused, at its field; on a limit that belongs to it, it is not."""
    tried = 0
    for field in LEAVES[command]:
        for limit in field.limits:
            for value, good in _around(limit, whole="whole" in field.type):
                tried += 1
                refused = _refused(command, field, value)
                assert refused != good, (field, value)
    assert tried > 15


def _around(limit: str, *, whole: bool) -> list[tuple[float, bool]]:
    step = 1 if whole else 1e-3
    if match := re.fullmatch(r"([\d.]+) to ([\d.]+)", limit):
        low, high = map(float, match.groups())
        return [(low - step, False), (high + step, False)]
    if match := re.fullmatch(r"(at least|above|at most|below) ([\d.]+)", limit):
        word, edge = match[1], float(match[2])
        outside = edge - step if word in ("at least", "above") else edge + step
        return [(outside, False), (edge, word in ("at least", "at most"))]
    return []


def _refused(command: str, field: RecipeField, value: float) -> bool:
    """Whether the model refuses that value of that field, and because of it."""
    settings: dict[str, Any] = json.loads(json.dumps(STARTS[command]))
    place = settings
    *parents, last = field.name.replace(".NAME", ".x").split(".")
    for parent in parents:
        place = place.setdefault(parent, {})
    number = int(value) if value == int(value) else value
    place[last] = {"x": number} if field.type.startswith("{") else number
    if field.when:
        path, method = field.when.split("=")
        settings[path.split(".")[0]]["method"] = method.split(" or ")[0]
    try:
        model_of(command).model_validate(settings)
    except ValidationError as error:
        numeric = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
        return any(last in problem["loc"] and problem["type"] in numeric for problem in error.errors())
    return False


@pytest.mark.parametrize("command", STARTS)
def test_a_default_that_is_shown_is_the_one_that_holds(command: str) -> None:
    held = model_of(command).model_validate(STARTS[command])
    for field in LEAVES[command]:
        if field.required or field.when or ".NAME." in field.name or field.name.endswith("method"):
            continue
        value: Any = held
        for part in field.name.split("."):
            model = type(value)
            name = next((n for n, f in model.model_fields.items() if (f.alias or n) == part), None) if value else None
            value = None if name is None else getattr(value, name)
        if value is not None and field.name not in ("data.url", "name", "source.layout", "source.root"):
            assert json.loads(json.dumps(value)) == field.default, field.name


def test_the_command_lists_shows_and_explains_recipes(tmp_path: Path) -> None:
    listed = json.loads(run("--json"))
    assert {*listed} == {*builtin_recipes()}
    assert {one["command"] for one in listed.values()} == {*COMMANDS}
    for name in listed:
        assert f"\n  {name} " in run()
    # As it stands, it is the same recipe again.
    (tmp_path / "own.yaml").write_text(run("promote_vif"))
    promote = model_of("promote")
    assert load_recipe(str(tmp_path / "own.yaml"), promote) == load_recipe("promote_vif", promote)
    assert json.loads(run("promote_vif", "--json")) == yaml.safe_load(run("promote_vif"))


def test_what_a_recipe_sets_is_shown_at_its_field_also_where_it_lies_on_another() -> None:
    lines = run("retrain_vif", "--fields").splitlines()
    at = lines.index("prepare.NAME.source.root: text, not empty; required")
    assert "    retrain_vif.yaml has prepare.msrs.source.root=data/MSRS" in lines[at : at + 3]
    assert "    retrain_vif.yaml has promote.gate.metrics=[Qabf, Qcv]" in lines
    told = json.loads(run("vif", "--fields", "--json"))
    assert (told["command"], told["recipe"]) == ("prepare", "vif.yaml")
    assert told["sets"]["prompts"][0] == "people"
    assert {"name", "type", "limits", "required", "default", "meaning", "when"} == {*told["fields"][0]}
    assert json.loads(run("train", "--json"))["sets"] == {}


def test_what_cannot_be_shown_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("nothing: 1\n")
    for arguments, words in (
        (["--fields"], "--fields is of one recipe or command: name a recipe, or prepare, train"),
        (["vff.yaml"], "did you mean vif.yaml?"),
        ([str(tmp_path / "odd.yaml"), "--fields"], "is the recipe of no command: name the command whose fields"),
    ):
        result = CliRunner().invoke(main, ["recipe", *arguments])
        assert result.exit_code in (1, 2)
        assert words in " ".join(result.output.split())
