"""Plug-ins of other packages that are wrong: one sentence says whose they are and what to do, before anything runs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from made_packages import forget, use, write_package

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.plugins import PluginError, installed, plugins
from rwkvfusion.kernels.backends.packaged import BackEndError
from rwkvfusion.kernels.biwkv import back_end
from rwkvfusion.model.metrics.score import Picture, Scene, Scores, score
from rwkvfusion.model.metrics.table import Comparison, metrics_of
from rwkvfusion.model.training.losses.config import LossConfig
from rwkvfusion.model.training.losses.loss import try_others
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.doctor.machine import plugins_wrong
from rwkvfusion.stages.guidance.chain import GuidanceConfig, guidance_stages
from rwkvfusion.stages.source.config import SourceConfig
from rwkvfusion.stages.source.source import Source

MODULE = "somebodys.py"


@pytest.fixture(autouse=True)
def nothing_installed_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    monkeypatch.undo()
    forget()


def layout(name: str = "mine") -> None:
    Source(SourceConfig(layout=name, root="/"))


def stage(**settings: object) -> None:
    guidance_stages(GuidanceConfig.model_validate({"detect": {"method": "mine", **settings}}), "vif")


def metric() -> None:
    metrics_of(Comparison.SOURCES)


def loss() -> None:
    config = LossConfig(others={"mine": 1.0}).resolved("vif")
    try_others(config, n_sources=2, channels=1, has_target=False)


def operator() -> None:
    back_end("cpu")


_LAYOUT = "from rwkvfusion.stages.source.layouts import Layout, Place\nmine = "
_VIF = "(Place('visible', ('a',)), Place('infrared', ('b',)))"
_STAGE = """
from rwkvfusion.stages.guidance.stage import Stage, StageConfig
class Config(StageConfig):
    least: int = 3
class mine(Stage[Config]):
    name, version = "detect", 1
    requires, provides = frozenset({"images"}), frozenset({"boxes"})
    def process(self, samples):
        return list(samples)
"""
_METRIC = """
from rwkvfusion.model.metrics.table import Comparison, PackagedMetric
mine = PackagedMetric("mine", "higher", (0, 1), "nothing", "luma", "x", "y", lambda fused, sources: 0.5,
                      comparison=Comparison.SOURCES, version="1")
"""
_BACK_END = """
import torch
from rwkvfusion.kernels.backends.torch import backward, forward
CHUNK = 64
def unavailable(): return None
def describe(): return "mine"
def supports(k): return k.device.type == "cpu" and k.dtype == torch.float32
"""

WRONG: list[tuple[str, str, Callable[[], None], str]] = [
    ("layouts", "raise OSError('no disk')", layout, r"cannot be imported: OSError: no disk"),
    ("layouts", "", layout, r"cannot be imported: AttributeError: module 'somebodys' has no attribute 'mine'"),
    ("layouts", "mine = {}", layout, r"must be a `Layout` \(rwkvfusion.stages.source.layouts\), and is of type dict"),
    ("layouts", f"{_LAYOUT}Layout('vix', ())", layout, r"has task 'vix', and there is vif, "),
    ("layouts", f"{_LAYOUT}Layout('vif', Place('a', ('a',)))", layout, r"must have a tuple of `Place`"),
    ("layouts", f"{_LAYOUT}Layout('vif', (Place('a', ('a',)),))", layout, r"two or more modalities, and has a;"),
    (
        "layouts",
        f"{_LAYOUT}Layout('vif', (*{_VIF}, Place('masks', ('m',))))",
        layout,
        r"has a place of role 'masks': did you mean 'mask'\?",
    ),
    (
        "layouts",
        f"{_LAYOUT}Layout('vif', (Place('Visibel', ('a',)), Place('infrared', ('b',))))",
        layout,
        r"role 'Visibel': did you mean 'visible'\?",
    ),
    (
        "layouts",
        f"{_LAYOUT}Layout('pansharpening', {_VIF})",
        layout,
        r"has places of visible, infrared, and pansharpening is made of pan and ms;",
    ),
    (
        "layouts",
        f"{_LAYOUT}Layout('vif', (Place('visible', ('a')),))",
        layout,
        r"has folders 'a' of visible: folders must be a tuple of names, as \('lwir',\);",
    ),
    ("stages", "mine = 3", stage, r"must be a subclass of `Stage`"),
    ("stages", _STAGE.replace("requires, provides", "_, _"), stage, r"lacks provides, requires;"),
    ("stages", _STAGE.replace('version = "detect", 1', '_ = "detect", 1'), stage, r"lacks a `name`.* or a whole"),
    ("stages", _STAGE.replace("[Config]", ""), stage, r"does not say its settings"),
    ("stages", _STAGE.replace("detect", "find"), stage, r"is set as detect.method, and its `name` is 'find'"),
    ("stages", _STAGE.replace("boxes", "text"), stage, r"provides text, and as detect.method has to provide boxes"),
    ("stages", _STAGE.replace('frozenset({"images"})', '"images"'), stage, r"has a `requires` that is no frozenset"),
    ("metrics", "mine = len", metric, r"must be a `PackagedMetric` .*is of type builtin_function_or_method"),
    ("metrics", _METRIC.replace(', version="1"', ""), metric, r"cannot be imported: TypeError: .*'version'"),
    ("metrics", _METRIC.replace('version="1"', 'version=""'), metric, r"has version '': it is a text, and not empty"),
    ("metrics", _METRIC.replace('version="1"', "version=1"), metric, r"has version 1: it is a text, and not empty"),
    ("metrics", _METRIC.replace("(0, 1)", "(1020, 0)"), metric, r"has range \(1020, 0\): the lowest is first"),
    ("metrics", _METRIC.replace("(0, 1)", "(0,)"), metric, r"has range \(0,\): it is two numbers"),
    ("metrics", _METRIC.replace('"mine"', '"other"'), metric, r"is called 'other' in itself"),
    ("metrics", _METRIC.replace("higher", "more"), metric, r"has better 'more': it is one of higher, lower"),
    ("metrics", _METRIC.replace("0.5", "7"), metric, r"fails on noise: 7 is outside of its range 0 to 1"),
    ("metrics", _METRIC.replace("0.5", "float('inf')"), metric, r"fails on noise: inf is outside of its range 0 to 1"),
    ("metrics", _METRIC.replace("0.5", "fused + 'a'"), metric, r"fails on noise: \w*(Type|DType)\w*Error: "),
    ("metrics", _METRIC.replace("0.5", "fused"), metric, r"must return one number, and returns ndarray on noise"),
    ("metrics", _METRIC.replace("0.5", "'a'"), metric, r"must return one number, and returns str on noise"),
    ("metrics", _METRIC.replace("SOURCES", "BOTH"), metric, r"cannot be imported: AttributeError"),
    ("losses", "mine = 3", loss, r"must be a function of `Pictures`, and is of type int"),
    ("losses", "def mine(of): raise KeyError('x')", loss, r"fails on a batch of noise: KeyError: 'x'"),
    ("losses", "def mine(of): return of.fused", loss, r"must return a Tensor that is one finite number"),
    ("losses", "def mine(of): return of.sources[0].mean()", loss, r"gives no gradient to `fused`"),
    ("losses", "def mine(of): return of.target.mean()", loss, r"fails on a batch of noise: AttributeError"),
]


@pytest.mark.parametrize(("group", "text", "used", "message"), WRONG, ids=[f"{one[0]}-{one[3]}" for one in WRONG])
def test_what_is_wrong_is_said_in_one_sentence(
    group: str, text: str, used: Callable[[], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path, "somebodys", {group: {"mine": "somebodys:mine"}}, {MODULE: text})
    use(tmp_path, monkeypatch)
    with pytest.raises(PluginError, match=message) as raised:
        used()
    said = str(raised.value)
    assert re.match(r"\w[\w ]+ 'mine' of somebodys 1.0 \(somebodys:mine\) ", said)
    assert said.endswith("; mend somebodys, or uninstall it")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise OSError('no disk')", "cannot be imported: OSError: no disk"),
        (_BACK_END.replace("CHUNK = 64", ""), "lacks CHUNK"),
        (_BACK_END + "def forward(*_): raise ValueError('no')", "fails: ValueError: no"),
        (_BACK_END + "def forward(*given): given[6].zero_()", "is not the reference for torch.float32 on cpu: it is"),
        (_BACK_END + "def forward(*given): pass", "off in y by nan %"),
        (_BACK_END + "right = backward\ndef backward(*given): return [2 * one for one in right(*given)]",
         "off in gradient of lam by 1e[+]02 %, gradient of u by 1e[+]02 %"),
    ],
)  # fmt: skip
def test_a_back_end_that_is_wrong_computes_nothing(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path, "somebodys", {"backends": {"mine": "somebodys"}}, {MODULE: text})
    use(tmp_path, monkeypatch)
    with pytest.raises(BackEndError, match=rf"^back end 'mine' of somebodys 1.0 .*{message}.*; mend somebodys, or un"):
        operator()


@pytest.mark.parametrize("inside", ["inference", "autocast", "no_grad", "fake"])
def test_a_right_back_end_is_used_whatever_the_caller_is_in(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._subclasses import FakeTensorMode

    write_package(tmp_path, "somebodys", {"backends": {"mine": "somebodys"}}, {MODULE: _BACK_END})
    use(tmp_path, monkeypatch)
    contexts = {
        "inference": torch.inference_mode(),
        "autocast": torch.autocast("cpu", dtype=torch.bfloat16),
        "no_grad": torch.no_grad(),
        "fake": FakeTensorMode(),
    }
    with contexts[inside]:
        assert back_end("cpu") == ("mine (mine of somebodys 1.0)", None)
    assert "mine" not in back_end("cpu", torch.float64)[0]


def test_one_that_cannot_be_used_here_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = _BACK_END.replace("return None", "return 'no such chip'").replace('k.device.type == "cpu"', "False")
    write_package(tmp_path, "somebodys", {"backends": {"mine": "somebodys"}}, {MODULE: text})
    before = back_end("cpu")
    use(tmp_path, monkeypatch)
    assert back_end("cpu")[0] == before[0]
    assert (back_end("cpu")[1] or "").startswith("mine of somebodys 1.0: no such chip")


USES = {"layouts": lambda: layout("other"), "stages": stage, "metrics": metric, "losses": loss, "backends": operator}
BUILT_IN = {"layouts": "M_SRS", "stages": "Salient", "metrics": "psnr", "losses": "SSIM"}


@pytest.mark.parametrize("group", USES)
def test_a_name_is_of_one_package(group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        write_package(tmp_path, name, {group: {"mine": "somebodys:mine"}}, {MODULE: _METRIC})
    use(tmp_path, monkeypatch)
    with pytest.raises((PluginError, BackEndError), match=r"1.0 .*has a name that (first|second) 1.0 has too") as one:
        USES[group]()
    assert "first 1.0" in str(one.value)
    assert "second 1.0" in str(one.value)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        bad = _METRIC.replace('"mine"', f'"{name}"').replace("higher", "up")
        write_package(tmp_path, name, {"metrics": {name: f"{name}_of:mine"}}, {f"{name}_of": bad})
    use(tmp_path, monkeypatch)
    assert sorted(one.partition(" of ")[0] for one in plugins_wrong()) == ["metric 'first'", "metric 'second'"]


@pytest.mark.parametrize("group", BUILT_IN)
def test_what_is_built_in_keeps_its_name(group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, "somebodys", {group: {BUILT_IN[group]: "somebodys:mine"}}, {MODULE: ""})
    use(tmp_path, monkeypatch)
    said = rf"{BUILT_IN[group]!r} of somebodys 1.0 .*is built in, and needs one of its"
    with pytest.raises(PluginError, match=said):
        USES[group]()
    (wrong,) = plugins_wrong()
    assert re.search(said, wrong)


@pytest.mark.parametrize("name", ["tno", "T-N-O", "paired"])
def test_a_layout_that_is_built_in_is_not_taken_for_a_plug_in_of_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path, "somebodys", {"layouts": {name: "somebodys:mine"}}, {MODULE: ""})
    use(tmp_path, monkeypatch)
    for used in (name, "tno"):
        with pytest.raises(PluginError, match=rf"layout '{name}' of somebodys 1.0 .*is built in, and needs one of its"):
            layout(used)


def test_a_method_that_is_built_in_is_not_taken_for_a_plug_in_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path, "somebodys", {"stages": {"salient": "somebodys:mine"}}, {MODULE: _STAGE})
    use(tmp_path, monkeypatch)
    with pytest.raises(PluginError, match=r"method 'salient' of somebodys 1.0 .*is built in, and needs one of its"):
        stage(method="salient")


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("7.0", "7 is outside of its range 0 to 1"),
        ("float('inf')", "inf is outside of its range 0 to 1"),
        ("float('nan')", "nan is outside of its range 0 to 1"),
        ("int('too small')", "invalid literal"),
    ],
)
def test_a_value_that_cannot_be_is_undefined_for_its_reason(
    returned: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Noise is 192 pixels wide, what is scored is not.
    text = _METRIC.replace("0.5", f"0.5 if len(fused) == 192 else {returned}")
    write_package(tmp_path, "somebodys", {"metrics": {"mine": "somebodys:mine"}}, {MODULE: text})
    use(tmp_path, monkeypatch)
    scores = scored()
    assert math.isnan(scores.rows[Comparison.SOURCES]["ours"]["mine"])
    assert scores.undefined[Comparison.SOURCES]["mine"].startswith(reason)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("{}['boo']", r"fails on pair 'a' \(ours\): KeyError: 'boo'"),
        ("fused", r"must return one number, and returns ndarray on pair 'a' \(ours\)"),
    ],
)
def test_a_metric_that_fails_on_a_picture_says_whose_it_is(
    returned: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = _METRIC.replace("0.5", f"0.5 if len(fused) == 192 else {returned}")
    write_package(tmp_path, "somebodys", {"metrics": {"mine": "somebodys:mine"}}, {MODULE: text})
    use(tmp_path, monkeypatch)
    with pytest.raises(
        PluginError,
        match=rf"^metric 'mine' of somebodys 1.0 \(somebodys:mine\) {message}; mend somebodys, or uninstall it$",
    ):
        scored()


def scored() -> Scores:
    first, second = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 1), np.uint8)
    scene = Scene("a", "vif", (Picture("visible", first), Picture("infrared", second)))
    return score(scene, {"ours": Picture("ours", first)}, floors=False)


def test_what_a_recipe_names_and_nobody_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, "somebodys", {"losses": {"yours": "somebodys:mine"}}, {MODULE: _STAGE})
    use(tmp_path, monkeypatch)
    with pytest.raises(
        PluginError, match=r"no package here has a loss term 'mine' \(there is yours\): install the one"
    ):
        loss()
    for used in (layout, lambda name: stage(method=name)):
        with pytest.raises(PluginError, match=r"nobodys:x cannot be imported: .*install its package here and on all"):
            used("nobodys:x")
    with pytest.raises(RwkvFusionError, match=r"method somebodys:mine: it has no setting 'most', but resources, least"):
        stage(method="somebodys:mine", most=2)
    with pytest.raises(RwkvFusionError, match=r"method somebodys:mine: least: Input should be a valid integer"):
        stage(method="somebodys:mine", least="a")


def test_names_are_plain_and_nothing_is_imported_to_list_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"metrics": {"mine": "nobodys:x"}, "losses": {"a term": "nobodys:y"}}
    write_package(tmp_path, "somebodys", points, {})
    use(tmp_path, monkeypatch)
    assert installed() == {"metrics": {"mine": "somebodys 1.0"}, "losses": {"a term": "somebodys 1.0"}}
    assert [one.reference for one in plugins("metrics").values()] == ["nobodys:x"]
    with pytest.raises(PluginError, match="is no plain name"):
        plugins("losses")


def test_a_broken_metric_stops_nothing_that_does_not_use_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `models` asks is of built-in metrics; `doctor` says what is wrong, also of kinds that nobody expects."""
    bad = _METRIC.replace('version="1"', 'version="1", tasks=("vif",)')
    write_package(tmp_path, "somebodys", {"metrics": {"mine": "somebodys:mine"}}, {MODULE: bad})
    use(tmp_path, monkeypatch)
    assert CliRunner().invoke(main, ["models"]).exit_code == 0
    (wrong,) = plugins_wrong()
    assert "has tasks ('vif',): it is a set of names" in wrong


@pytest.mark.parametrize("part", ["supports(k)", "unavailable()"])
def test_a_back_end_that_fails_when_it_is_asked_is_told(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = f"{_BACK_END}\ndef supports(k): return False\ndef {part}: raise OSError('no driver')\n"
    write_package(tmp_path, "somebodys", {"backends": {"mine": "somebodys"}}, {MODULE: bad})
    use(tmp_path, monkeypatch)
    with pytest.raises(BackEndError, match=rf"fails in {part.partition('(')[0]}: OSError: no driver; mend somebodys"):
        operator()
