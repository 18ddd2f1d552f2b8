"""Recipes: what fits is read, what does not is named with the nearest valid key."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.recipe import RecipeError, _fields, _models, builtin_recipes, load_recipe
from rwkvfusion.pipelines.registry.recipe import PromoteRecipe
from rwkvfusion.pipelines.train.recipe import TrainRecipe


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    pairs: int = 64


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    output: str
    shard: Inner = Inner()
    more: dict[str, Inner] = {}


def recipe(tmp_path: Path, text: str) -> str:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return str(path)


def test_overrides_reach_nested_fields_and_keep_their_types(tmp_path: Path) -> None:
    path = recipe(tmp_path, "output: out\n")
    found = load_recipe(path, Outer, ["shard.pairs=8", "output=s3://bucket/a=b"])
    assert found == Outer(output="s3://bucket/a=b", shard=Inner(pairs=8))


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("output: a\nshrd: {pairs: 3}\n", [], ["unknown key 'shrd'", "did you mean 'shard'"]),
        ("output: a\nshard: {pair: 3}\n", [], ["unknown key 'shard.pair'", "did you mean 'shard.pairs'"]),
        ("output: a\nshard: {zzz: 3}\n", [], ["valid here: pairs"]),
        ("shard: {pairs: 3}\n", [], ["'output' is required", "--set output="]),
        ("output: a\nmore: {x: {zzz: 3}}\n", [], ["unknown key 'more.x.zzz', valid here: pairs"]),
        ("output: a\nmore: {x: {pair: 3}}\n", [], ["did you mean 'more.x.pairs'"]),
        ("output: a\nmore: {x: vi}\n", [], ["more.x must be a group of settings, {KEY: VALUE}, not 'vi'"]),
        ("output: a\nshard: {pairs: many}\n", [], ["shard.pairs must be a whole number, not 'many'"]),
        ("output: a\npairs: 3\n", [], ["unknown key 'pairs', did you mean 'shard.pairs'?"]),
        ("output: a\n", ["shard.pairs"], ["--set takes a.b=value"]),
        ("output: a\n", ["shard=3"], ["shard", "3"]),
        ("output: a\n", ["a." * 9000], ["--set takes", "..."]),
        ("- a\n- b\n", [], ["must be a mapping"]),
        ("output: [\n", [], ["is not YAML"]),
        ("output: &a [*a]\n", [], ["output must be a text, not [["]),
        ("[" * 3000, [], ["nested too deeply"]),
        ("output: " + "{a: " * 3000, [], ["nested too deeply"]),
        ("output: " + "9" * 5000, [], ["a value cannot be read"]),
        ("output: 2024-13-45\n", [], ["month must be in 1..12"]),
        ('output: !!int ""\n', [], ["a value cannot be read"]),
        ("output: !!timestamp x\n", [], ["a value cannot be read"]),
        ("output: !!bool x\n", [], ["a value cannot be read"]),
        ("output: !!python/name:os.system\n", [], ["is not YAML", "os.system"]),
        ("output: a\0b\n", [], ["is not YAML", "#x0000"]),
        ("output:\n\t- a\n", [], ["is not YAML", "'\\t'"]),
        ("output: 2024-01-01\n", [], ["output", "datetime.date"]),
        ("output: a\n1: 2\nnull: 3\n", [], ["the key 1 is no text", "the key None is no text"]),
        ("output: a\nshard: {pairs: [" + "x, " * 9000 + "]}\n", [], ["shard.pairs", "..."]),
        ("x" * 100_001, [], ["more than 100000 characters"]),
        ("output: a\n" + "".join(f"k{n}: 1\n" for n in range(3000)), [], ["'k0'", "and 2992 more"]),
        ('output: a\n"\\x1b[31m": 1\n', [], ["unknown key '\\x1b[31m'"]),
    ],
)
def test_a_bad_recipe_names_the_key_and_the_way_out(
    tmp_path: Path, text: str, overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe(tmp_path, text), Outer, overrides)
    for word in words:
        assert word in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 2000


def test_overrides_that_are_no_yaml_are_text(tmp_path: Path) -> None:
    path = recipe(tmp_path, "output: out\n")
    for text in ("*.png", "a: b: c", "[" * 3000, "9" * 5000, "!!int x", "%2e"):
        assert load_recipe(path, Outer, [f"output={text}"]).output == text


@pytest.mark.parametrize("path", ["~nobody-of-this-name/r.yaml", "a\0b", "x" * 5000, "/dev", "/dev/null/x", "", "~"])
def test_a_path_that_is_none_is_a_missing_recipe(path: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe(path, Outer)


def test_a_missing_recipe_lists_the_built_in_ones() -> None:
    with pytest.raises(RecipeError, match=r"did you mean msrs\.yaml"):
        load_recipe("msr.yaml", Outer)


def test_every_built_in_prepare_recipe_is_valid(tmp_path: Path) -> None:
    prepare = [
        name for name in builtin_recipes() if not name.startswith(("promote_", "retrain_", "train_", "demo_train"))
    ]
    assert {"vif.yaml", "mif.yaml", "mef.yaml", "mff.yaml", "msrs.yaml"} <= set(prepare)
    for name in prepare:
        found = load_recipe(name, PrepareRecipe, ["source.layout=msrs", f"source.root={tmp_path}"])
        assert found.output


def test_guidance_chooses_each_method_and_a_stage_can_differ(tmp_path: Path) -> None:
    def methods(*sets: str) -> list[str]:
        recipe = load_recipe("vif", PrepareRecipe, ("source.layout=tno", "source.root=x", *sets))
        return [group.method for group in (recipe.caption, recipe.detect, recipe.segment, recipe.text)]

    assert methods() == ["measured", "salient", "grabcut", "hashed"]
    assert methods("guidance=full") == ["florence2", "grounding_dino", "sam", "encoder"]
    assert methods("guidance=full", "text.method=hashed")[3] == "hashed"
    assert methods("masks=annotation") == ["measured", "annotation", "annotation", "hashed"]
    with pytest.raises(RecipeError, match=r"detect.method: there is no 'dino'; did you mean 'grounding_dino'"):
        methods("detect.method=dino")
    with pytest.raises(RecipeError, match=r"unknown key 'detect.box_treshold', did you mean 'detect.box_threshold'"):
        methods("guidance=full", "detect.box_treshold=0.1")


def test_a_recipe_of_another_command_is_told_as_such(tmp_path: Path) -> None:
    """Built in, of a file, and where `--set` makes it one; a recipe of no command is told key by key."""
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: retrain_vif.yaml\n")
    with pytest.raises(RecipeError, match=r"^vif.yaml is a recipe for `rwkvfusion prepare`: run that, or name"):
        load_recipe("vif", TrainRecipe)
    with pytest.raises(RecipeError, match=r"^train_vif.yaml is a recipe for `rwkvfusion train`"):
        load_recipe("train_vif", PrepareRecipe)
    with pytest.raises(RecipeError, match=r"unknown key 'trian'"):
        load_recipe("vif", PrepareRecipe, ("trian.x=3",))
    file.write_text("nothing: 1\n")
    with pytest.raises(RecipeError, match=r"unknown key 'nothing'"):
        load_recipe(str(file), TrainRecipe)


RECIPES: list[type[BaseModel]] = [PrepareRecipe, TrainRecipe, PromoteRecipe]


@pytest.mark.parametrize("model", RECIPES, ids=[model.__name__ for model in RECIPES])
def test_whatever_a_field_is_set_to_is_refused_in_our_words(model: type[BaseModel], tmp_path: Path) -> None:
    path, messages = recipe(tmp_path, "{}\n"), []
    keys = sorted(dotted(model))
    for key in keys:
        for value in ("-1.5", "[[]]", "{zzz: {}}", "zzz", "null", "true"):
            try:
                load_recipe(path, model, [f"{key}={value}"])
            except RecipeError as error:
                messages.append(str(error).removeprefix(f"{path}: "))
    lines = {line for message in messages for line in message.split("; ")}
    foreign = r"Input|[Vv]alue error|a valid |dictionary|NoneType|pydantic|\[int|function-"
    assert [line for line in lines if re.search(foreign, line)] == []
    # What is in a group of its own takes none of them all.
    assert [key for key in keys if "." in key and not any(key in line for line in lines)] == []


def dotted(model: type[BaseModel], above: str = "", depth: int = 0) -> set[str]:
    """Every field as --set names it."""
    found = set()
    for name, annotation in _fields(model).items():
        found.add(f"{above}{name}")
        for inner in _models(annotation) if depth < 3 else ():
            found |= dotted(inner, f"{above}{name}.", depth + 1)
    return found
