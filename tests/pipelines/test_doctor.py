"""`doctor` says what is true of this machine, what to do where something is missing, and what networks cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from made_datasets import TEXT_WIDTH, pairs, write_dataset
from made_fusers import luma_fuser

from rwkvfusion.kernels.backends import cpu
from rwkvfusion.kernels.biwkv import back_end
from rwkvfusion.model.network.config import NetworkConfig, preset
from rwkvfusion.model.network.network import RWKVFusion
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.doctor.machine import machine_facts, operator_line
from rwkvfusion.stages.dataset.task import TASKS

NOT_BUILT = "not built: install a C++ compiler (g++ or clang++) and reinstall the package"


def doctor(*options: str) -> str:
    result = CliRunner().invoke(main, ["doctor", *options])
    assert result.exit_code == 0, result.output
    return result.stdout


def line() -> str:
    return next(line for line in doctor().splitlines() if line.startswith("operator"))


def test_it_names_what_computes_here() -> None:
    name, reason = back_end("cpu")
    facts = json.loads(doctor("--json"))["operator"]
    assert facts["cpu"] == {"back_end": name, "why_not_better": reason, "threads": torch.get_num_threads()}
    assert len(facts["gpus"]) == torch.cuda.device_count()
    assert f"CPU: {name}" in line()


def test_it_says_what_to_do_without_the_cpp_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "unavailable", lambda: NOT_BUILT)
    assert machine_facts()["operator"]["cpu"]["why_not_better"] == NOT_BUILT
    assert f"CPU: plain torch operations ({NOT_BUILT})" in line()


@pytest.mark.parametrize(
    ("gpus", "machine_code", "words"),
    [
        ([], True, "GPU: none that torch sees (CUDA kernels: machine code is in the package)"),
        ([], False, "GPU: none that torch sees (CUDA kernels: NVRTC compiles at first use)"),
        (
            [("CUDA kernels from the package, for sm_90", None), ("plain torch operations", "its compute capability")],
            True,
            "GPU 0: CUDA kernels from the package, for sm_90; GPU 1: plain torch operations (its compute capability)",
        ),
    ],
)
def test_gpus(gpus: list[tuple[str, str | None]], machine_code: bool, words: str) -> None:
    cpus: dict[str, Any] = {"back_end": "C++ kernels, avx2", "why_not_better": None, "threads": 2}
    found = [{"back_end": name, "why_not_better": reason} for name, reason in gpus]
    facts = {"cpu": cpus, "gpus": found, "machine_code_for_gpus": machine_code}
    assert operator_line(facts) == f"CPU: C++ kernels, avx2; {words}"


def test_networks_are_counted_beside_the_papers() -> None:
    rows = {row["task"]: row for row in json.loads(doctor("--model", "--json"))}
    assert rows["pansharpening"]["paper_flops"] == 2_340_000_000
    assert list(rows) == list(TASKS)
    (only,) = json.loads(doctor("--model", "WV3", "--json"))
    assert only == rows["pansharpening"]
    larger = json.loads(doctor("--model", "wv3", "--size", "128x64", "--json"))[0]
    # All but the token that stands for an absent text grows with the pixels.
    assert larger["flops"] == pytest.approx(2 * only["flops"], rel=1e-2)
    assert (larger["width"], larger["height"], larger["paper_flops"]) == (128, 64, None)


def test_a_recipes_network_is_that_of_its_data_or_of_the_task_in_its_name(tmp_path: Path) -> None:
    asked = ("--model", "train_vif_small.yaml", "--set", "network.width=16", "--json")
    (row,) = json.loads(doctor(*asked, "--set", f"data.url={tmp_path / 'none'}"))
    assert "its data is not there" in row["note"]
    assert row["parameters"] == parameters(preset("vif", size="small"))
    # Made pairs have captions of another width than the preset.
    (row,) = json.loads(doctor(*asked, "--set", f"data.url={write_dataset(tmp_path / 'data', pairs(2, 2))}"))
    assert row["note"] == ""
    assert row["parameters"] == parameters(replace(preset("vif", size="small"), text_width=TEXT_WIDTH))


def test_a_recipe_names_a_size_and_what_it_sets_beside_it_wins(tmp_path: Path) -> None:
    asked = ("--model", "train_vif.yaml", "--set", f"data.url={tmp_path / 'none'}", "--set", "network.size=large")
    (row,) = json.loads(doctor(*asked, "--set", "network.width=null", "--set", "network.levels=null", "--json"))
    assert row["parameters"] == parameters(preset("vif", paper=True, size="large"))
    (row,) = json.loads(doctor(*asked, "--set", "network.levels=[1, 1, 1]", "--json"))
    assert row["parameters"] == parameters(replace(preset("vif", paper=True, size="large"), width=32, levels=(1, 1, 1)))


def test_a_models_network_is_measured(tmp_path: Path) -> None:
    fuser = luma_fuser()
    fuser.save(tmp_path / "model")
    costs = json.loads(doctor("--complexity", str(tmp_path / "model"), "--size", "80x64", "--json"))
    (row,) = costs["networks"]
    assert (row["task"], row["in_channels"]) == ("vif", [1, 1])
    assert row["parameters"] == parameters(fuser.network.config)
    assert row["ms"] > 0
    assert costs["growth"] is None
    text = doctor("--complexity", str(tmp_path / "model"), "--size", "80x64")
    assert f"parameters  {row['parameters']:,}\n" in text
    assert "1+1 channels at 80x64" in text


def test_tab_1_is_shown_as_formulas_and_as_measured() -> None:
    text = doctor("--complexity", "--size", "64x32")
    assert "26LC + 4LCN" in text
    assert "L = 2,048 tokens" in text
    grown = next(line for line in text.splitlines() if line.startswith("2,048 "))
    assert float(grown.split()[1]) > 0
    assert max(map(len, text.splitlines())) <= 100


def parameters(config: NetworkConfig) -> int:
    return sum(parameter.numel() for parameter in RWKVFusion(config).parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "vid"), "no network for 'vid': name a task (vif, mif"),
        (("--model", "vif", "--set", "network.width=8"), "--set is for a recipe, and vif is none"),
        (("--complexity", "--set", "network.width=8"), "--set is for a recipe: name it after"),
        (("--complexity", "vif", "--size", "640"), "such as 640x480"),
        (("--size", "64x64"), "--size is for --model or --complexity"),
        (("--model", "vif", "--complexity", "vif"), "give one of them"),
        (("--model", "demo_train", "--set", "data.url=nowhere"), "Prepare the data, or ask about a task"),
        (("--model", "train_vif.yaml", "--set", "network.width=0"), "network: width must hold whole numbers"),
    ],
)
def test_questions_without_an_answer(options: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(main, ["doctor", *options])
    assert result.exit_code != 0
    assert words in result.output
