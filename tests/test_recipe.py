"""Recipes: what fits is read, what does not is named with the nearest valid key."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from rwkvfusion.pipelines.prepare_recipe import PrepareRecipe
from rwkvfusion.pipelines.recipe import RecipeError, builtin_recipes, load_recipe


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    pairs: int = 64


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    output: str
    shard: Inner = Inner()


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
        ("output: a\nshard: {pairs: many}\n", [], ["shard.pairs", "'many'"]),
        ("output: a\n", ["shard.pairs"], ["--set takes a.b=value"]),
        ("output: a\n", ["shard=3"], ["shard", "3"]),
        ("- a\n- b\n", [], ["must be a mapping"]),
        ("output: [\n", [], ["is not YAML"]),
    ],
)
def test_a_bad_recipe_names_the_key_and_the_way_out(
    tmp_path: Path, text: str, overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe(tmp_path, text), Outer, overrides)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_recipe_lists_the_built_in_ones() -> None:
    with pytest.raises(RecipeError, match=r"Did you mean msrs\.yaml"):
        load_recipe("msr.yaml", Outer)


def test_every_built_in_prepare_recipe_is_valid(tmp_path: Path) -> None:
    prepare = [name for name in builtin_recipes() if "train" not in name]
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
