"""Reports of an evaluation: the same numbers in every form, and names that no form takes for its own signs."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from made import scene

from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.infra.storage import Store
from rwkvfusion.model.metrics.paired import compare, summary
from rwkvfusion.model.metrics.table import Comparison, Convention, metrics_of
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.evaluate.report.documents import JSON, LATEX, MARKDOWN, write_report
from rwkvfusion.pipelines.evaluate.report.findings import parts_of
from rwkvfusion.pipelines.evaluate.report.terminal import percent, result_lines, verdict_lines, wrapped
from rwkvfusion.pipelines.evaluate.results import Results, Scored

ODD = "50%_a|b & {c} *d* $x^2~"


def results(n: int = 12, ours: str = "ours") -> Results:
    """Of `n` pairs, of which the last has no VIF: MI is won, SSIM is lost, Qabf ties, and Qcv cannot be told."""
    ramp = np.linspace(1.0, 2.0, n)
    zigzag = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
    floor = {"MI": ramp, "VIF": ramp / 2, "Qabf": ramp / 3, "Qcv": 100 * ramp, "SSIM": ramp / 2}
    own = {
        "MI": ramp + 1,
        "VIF": np.where(np.arange(n) == n - 1, math.nan, ramp / 2),
        "Qabf": ramp / 3 + 0.0001 * zigzag,
        "Qcv": 100 * ramp + 9 * zigzag,
        "SSIM": ramp / 2 - 0.1,
    }
    scored = Scored(
        Comparison.SOURCES,
        tuple(f"p{i}" for i in range(n)),
        {"mean": floor, ours: own},
        {"VIF": "VIF needs 41 pixels each way, not 32x32"},
        {"night": np.arange(n) < n // 2},
    )
    return Results("vif", Convention.Y, "7", (scored,), (ours,), ("x.png",), "not in every folder", ("y.png: torn",))


TEXT = """\
         MI     VIF    Qabf       Qcv    SSIM
mean  1.500   0.750*  0.500*  150.000*  0.750*
ours  2.500*  0.727   0.500   150.000*  0.650
means over 12 pairs against their sources, convention y (metrics 7); * marks the best; lower is better: Qcv

         MI     VIF    Qabf       Qcv    SSIM
mean  1.227   0.614*  0.409*  122.727*  0.614*
ours  2.227*  0.614*  0.409*  122.727*  0.514
means over 6 pairs of night against their sources, convention y (metrics 7); * marks the best; lower is better: Qcv
VIF: mean of ours 11 of 12 (VIF needs 41 pixels each way, not 32x32)
could not be scored: y.png: torn
left out, not in every folder: x.png (1 in all)
ours against mean: wins MI; loses SSIM; ties VIF Qabf; too few pairs for Qcv (12
  pairs could show 8.1 %)"""


def test_the_terminal_says_means_slices_gaps_and_verdicts() -> None:
    assert "\n".join([*result_lines(results(), 80), *wrapped(verdict_lines(results()), 80)]) == TEXT


def test_pairs_that_can_show_nothing_are_said_once() -> None:
    assert [*verdict_lines(results(5))] == [
        "5 pairs: too few to tell systems apart by 5 metrics, which takes 9",
    ]
    assert [*verdict_lines(Results("vif", Convention.Y, "7", results().scored))] == []
    # One that has values for 8 pairs alone, of 9.
    assert "VIF (8 pairs show nothing)" in " ".join(verdict_lines(results(9)))


def test_a_percent_sign_is_not_broken_from_its_number() -> None:
    line = "ours against mean: too few pairs for Qcv (30 pairs could show 4.1 %), SD (10 %)"
    for width in range(30, 80):
        broken = [*wrapped([line], width)]
        assert " ".join(map(str.strip, broken)) == line
        assert not any(part.strip().startswith("%") for part in broken)
        assert max(map(len, broken)) <= width


def test_percents_have_two_digits_of_use() -> None:
    told = [percent(part) for part in (1.2345, 0.0999, 0.01234, 0.00994, 0.0001, -0.5)]
    assert told == ["123 %", "10 %", "1.2 %", "0.99 %", "0.01 %", "-50 %"]
    assert percent(0.021, "+") == "+2.1 %"
    assert [percent(part) for part in (264.9, -12.0)] == ["over 1000 %", "below -1000 %"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(results(ours=ODD), Store(str(folder)))
    return folder


def test_json_has_all_numbers(report: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    found: dict[str, Any] = json.loads((report / JSON).read_text(), parse_constant=refuse)
    assert (found["convention"], found["metrics_version"], found["task"]) == ("y", "7", "vif")
    assert found["left_out"] == {"why": "not in every folder", "names": ["x.png"]}
    (scored,) = results(ours=ODD).scored
    columns = metrics_of(Comparison.SOURCES)
    for table, part in zip(found["tables"], parts_of(results(ours=ODD), scored), strict=True):
        assert (table["slice"], table["pairs"]) in ((None, 12), ("night", 6))
        chosen = slice(None) if table["slice"] is None else scored.slices["night"]
        for system, row in scored.values.items():
            row = {name: column[chosen] for name, column in row.items()}
            for name, one in summary(row).items():
                told = table["systems"][system][name]
                assert told == {**asdict(one), "rank": part.ranks[system][name]}
        ours, mean = scored.values[ODD], scored.values["mean"]
        pairs = {name: (ours[name][chosen], mean[name][chosen]) for name in scored.metrics}
        (verdicts,) = table["verdicts"]
        assert (verdicts["first"], verdicts["second"]) == (ODD, "mean")
        for name, verdict in compare(pairs, columns).items():
            expected = {key: value if not isinstance(value, float) or math.isfinite(value) else None
                        for key, value in asdict(verdict).items()}  # fmt: skip
            assert verdicts["metrics"][name] == expected


def test_markdown_has_tables_verdicts_and_what_does_not_count(report: Path) -> None:
    text = (report / MARKDOWN).read_text()
    lines = text.splitlines()
    name = r"50%\_a\|b & \{c\} \*d\* \$x^2\~"
    assert f"| metric | n | mean | {name} |" in lines
    (mi, *_) = [line for line in lines if line.startswith("| MI ↑")]
    assert mi.startswith("| MI ↑ | 12 | 1.500 ± 0.328<br>")
    assert "**2.500** ± 0.328<br>" in mi
    assert any(line.startswith("| VIF ↑ | 11 to 12 |") for line in lines)
    assert "Over 12 pairs against their sources, convention y (metrics 7)." in lines
    assert "## Against their sources: night" in lines
    assert "6 pairs: too few to tell systems apart by 5 metrics, which takes 9" in lines
    assert any(line.startswith("| MI | **win** +67 % (+6") for line in lines)
    assert "| Qcv | too few pairs: could show 8.1 % |" in lines
    assert r"- left out, not in every folder: x.png (1 in all)" in lines
    # Every row has the columns of its head.
    widths: list[int] = []
    for line in lines:
        if line.startswith("|"):
            widths.append(len(line.replace(r"\|", "").split("|")))
        else:
            assert len(set(widths)) <= 1
            widths = []


def test_latex_marks_the_best_and_prints_every_sign(report: Path) -> None:
    text = (report / LATEX).read_text()
    name = r"50\%\_a\textbar{}b \& \{c\} *d* \$x\textasciicircum{}2\textasciitilde{}"
    assert f"\n{name} & \\textbf{{2.500}} {{\\scriptsize$\\pm$ 0.328}} & " in text
    assert "\nmean & \\underline{1.500} {\\scriptsize$\\pm$ 0.328} & " in text
    assert "Qcv $\\downarrow$" in text
    assert "convention y (metrics 7); the best is bold, the second underlined; $\\uparrow$ higher" in text
    assert f"VIF: mean of {name} 11 of 12 (VIF needs" in text
    assert text.count("{") == text.count("}")
    for line in text.splitlines():
        if line.endswith(r"\\") and "&" in line:
            assert line.replace(r"\&", "").count("&") == 5


def test_the_command_writes_the_report_beside_the_scores(tmp_path: Path) -> None:
    for seed, folder in enumerate(("a", "b", "fused")):
        (tmp_path / folder).mkdir()
        for name in range(3):
            (tmp_path / folder / f"{name}.png").write_bytes(encode_png(scene(10 * seed + name, 48, 64, 1)))
    args = ["--a", str(tmp_path / "a"), "--b", str(tmp_path / "b"), "--fused", f"ours={tmp_path / 'fused'}"]
    done = CliRunner().invoke(main, ["evaluate", *args, "--report", str(tmp_path / "r"), "--json", "-"])
    assert done.exit_code == 0, done.output
    means = json.loads(done.stdout)
    (found,) = json.loads((tmp_path / "r" / JSON).read_text())["tables"]
    for system, row in means.items():
        for name, mean in row.items():
            assert found["systems"][system][name]["mean"] == (mean if mean is None else pytest.approx(mean))
    assert "Over 3 pairs against their sources, convention y" in (tmp_path / "r" / MARKDOWN).read_text()
    assert "over 3 pairs against their sources, convention y" in (tmp_path / "r" / LATEX).read_text()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_compiles(report: Path, tmp_path: Path) -> None:
    document = tmp_path / "main.tex"
    lines = (
        r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{",
        str(report / "report"),
        r"}\end{document}",
    )
    document.write_text("".join(lines))
    args = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", document.name]
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "main.pdf").stat().st_size > 10_000
