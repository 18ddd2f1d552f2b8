"""The galleries that `view` and `evaluate` write, in a browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import CHROMIUM, open_gallery
from made_datasets import pairs, write_dataset
from made_galleries import guided, lose, luma_case, write_evaluation
from playwright.sync_api import Page

from rwkvfusion.pipelines.gallery.run import view_gallery

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


def keys(page: Page) -> list[str]:
    page.wait_for_timeout(200)
    return page.locator("#cards .name span").all_text_contents()


def visible_overlays(page: Page) -> set[str]:
    """Names of the overlays that lie on the picture that is shown."""
    page.wait_for_timeout(200)
    shown = page.locator("#panes .layer.current .over")
    return {str(one.get_attribute("alt")) for one in shown.all() if one.is_visible()}


def test_the_gallery_of_a_dataset(tmp_path: Path) -> None:
    url = write_dataset(tmp_path / "data", [[*pairs(4, 4)[0], guided("zebra")]])
    lose(url, "gone")
    view_gallery(url, str(tmp_path / "out"))
    with open_gallery(tmp_path / "out") as page:
        assert keys(page) == ["pair-0000", "pair-0001", "pair-0002", "pair-0003", "zebra"]
        page.select_option("#by", "boxes")
        assert keys(page)[0] == "zebra"
        page.fill("#q", "warm lamp")
        assert keys(page) == ["zebra"]
        page.click("#cards a")
        page.wait_for_selector(".stage")
        assert page.locator("#layers button").all_text_contents() == ["visible", "infrared"]
        assert visible_overlays(page) == {"boxes"}
        page.click("#overlays button:has-text('merged mask')")
        page.click("#overlays button:has-text('boxes')")
        assert visible_overlays(page) == {"merged mask"}
        page.reload()
        page.wait_for_selector(".stage")
        assert visible_overlays(page) == {"merged mask"}
        assert "A car by day.\nWarm" not in (page.locator("#text").text_content() or "")
        assert page.locator("#text").inner_text().splitlines() == ["visible: A car by day.", "infrared: Warm lamp."]
        page.click("nav a:has-text('Quarantine')")
        assert "it ends early" in page.locator("tr", has_text="gone").inner_text()
        page.click("nav a:has-text('Histograms')")
        bar = page.locator("section", has_text="labels of boxes").locator("tr", has_text="car").locator("i")
        assert (bar.bounding_box() or {"width": 0})["width"] > 20
        assert page.evaluate("document.documentElement.scrollWidth") <= 1400
    with open_gallery(tmp_path / "out", 390, 844) as page:
        for name in ("Quarantine", "Histograms"):
            page.click(f"nav a:has-text('{name}')")
            assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_gallery_of_an_evaluation(tmp_path: Path) -> None:
    cases = [luma_case(f"pair {n}", seed=n, target=True) for n in range(3)]
    write_evaluation(tmp_path, "vif", *cases)
    with open_gallery(tmp_path) as page:
        page.select_option("#by", "Qcv")
        page.select_option("#a", "ours")
        values = {case.key: case.values[next(iter(case.values))]["ours"]["Qcv"] for case in cases}
        assert keys(page) == sorted(values, key=lambda key: -values[key])
        page.select_option("#b", "visible")
        differences = {
            case.key: value - case.values[next(iter(case.values))]["visible"]["Qcv"]
            for case, value in zip(cases, values.values(), strict=True)
        }
        assert keys(page) == sorted(differences, key=lambda key: -differences[key])
        page.click("#cards a")
        page.wait_for_selector(".stage")
        assert visible_overlays(page) == set()
        page.keyboard.down("6")
        assert page.locator("#panes b").text_content() == "error of ours"
        page.keyboard.up("6")
        assert page.locator("#panes b").text_content() == "visible"
        row = page.locator("#values tr", has_text="ours").first
        assert "ours" in row.inner_text()
        page.click("#overlays button:has-text('merged mask')")
        assert visible_overlays(page) == {"merged mask"}
