"""Which weights a recipe ends up with."""

import pytest
from pydantic import ValidationError

from rwkvfusion.model.training.losses.config import TERMS, LossConfig, loss_preset
from rwkvfusion.stages.dataset.task import LUMA_TASKS, SHARPENING_TASKS, TASKS


def weights(config: LossConfig) -> dict[str, float]:
    return {name: weight for name in TERMS if (weight := getattr(config, name))}


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_presets_leave_nothing_open(task: str, paper: bool) -> None:
    preset = loss_preset(task, paper=paper)
    assert None not in preset.model_dump().values()
    assert LossConfig().resolved(task, paper=paper) == preset
    assert preset.resolved(task, paper=not paper) == preset


@pytest.mark.parametrize("task", LUMA_TASKS)
def test_the_papers_preset_is_eq_20_and_ours_is_another(task: str) -> None:
    assert weights(loss_preset(task, paper=True)) == {"intensity": 10, "gradient": 20, "ssim": 2}
    assert not weights(loss_preset(task)).keys() & {"intensity", "gradient", "ssim"}


@pytest.mark.parametrize("task", SHARPENING_TASKS)
@pytest.mark.parametrize("paper", [False, True])
def test_sharpening_is_eq_19(task: str, paper: bool) -> None:
    assert weights(loss_preset(task, paper=paper)) == {"target": 1, "ssim": 0.1}


def test_what_a_recipe_says_wins() -> None:
    config = LossConfig(anchor=0, vif=1.5, steeper_gain=1.0, anchor_to="maximum")
    found = config.resolved("vif")
    assert (found.anchor, found.vif, found.steeper_gain, found.anchor_to) == (0, 1.5, 1.0, "maximum")
    assert found.qabf == loss_preset("vif").qabf
    assert weights(LossConfig(qabf=3).resolved("vif", paper=True)) == {
        "intensity": 10, "gradient": 20, "ssim": 2, "qabf": 3,
    }  # fmt: skip


def test_sharpening_refuses_terms_of_its_sources_and_ignores_weights_that_it_never_looked_at() -> None:
    with pytest.raises(ValueError, match="hmif has no loss term qabf or anchor: its sources differ in resolution"):
        LossConfig(qabf=1, anchor=2).resolved("hmif")
    assert weights(LossConfig(intensity=10, gradient=20, ssim=0.2).resolved("hmif")) == {"target": 1, "ssim": 0.2}
    assert weights(LossConfig(qabf=0).resolved("hmif")) == {"target": 1, "ssim": 0.1}


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="unknown task 'xyz'"):
        LossConfig().resolved("xyz")
    with pytest.raises(ValueError, match="no term of the loss has a weight"):
        LossConfig.model_validate(dict.fromkeys(TERMS, 0)).resolved("vif")
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        LossConfig(vif=-1)
    with pytest.raises(ValidationError, match="'maximum', 'steeper', 'sharper' or 'exposed'"):
        LossConfig.model_validate({"anchor_to": "brighter"})
