"""The gallery in a browser: Chromium opens it from a file, a person's hands on keys, mouse and screen."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import numpy as np
import pytest
import s3fs
import skimage.data
from chromium import CHROMIUM, FLAGS, watched
from PIL import Image as Pil
from playwright.sync_api import Browser, Page, Route, sync_playwright

from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines.gallery.layers import EVERY, Item, Layer
from rwkvfusion.pipelines.gallery.site import Column, Site

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
HEIGHT, WIDTH, N = 150, 200, 60
SYSTEMS = ("ours", "mean & <i>", "图像")
METRICS = {"Qabf": "higher", "Qcv": "lower", "SSIM": "higher"}
NASTY = """ "quote" & <b>图像</b> </script>"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    """(N, systems, metrics) float32."""
    return np.random.default_rng(5).random((N, len(SYSTEMS), len(METRICS))).astype(np.float32)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("site")
    columns = [Column(metric, system, better) for system in SYSTEMS for metric, better in METRICS.items()]  # type: ignore[arg-type]
    with Site(Store(str(folder)), f"Title{NASTY}", [*columns, Column("persons")], {"convention": "y"}) as site:
        for n in range(N):
            layers = [Layer(name, encode_png(picture)) for name, picture in pictures(n).items()]
            numbers = dict(zip([column.id for column in columns], map(float, values[n].ravel()), strict=True))
            facts = {"split": "train" if n % 3 else "test"}
            overlay = Layer("masks", encode_png(mask()), EVERY)
            item = Item(key(n), [*layers, overlay], numbers | {"persons": float(n % 7)}, facts, f"caption {n:02}")
            site.add(item)
    return folder


def key(n: int) -> str:
    return f"{n}{NASTY}"


def pictures(n: int) -> dict[str, np.ndarray]:
    """Noise: any wrong pixel shows."""
    draw = np.random.default_rng(n)
    names = ("visible", "infrared", *SYSTEMS)
    return {name: draw.integers(0, 256, (HEIGHT, WIDTH, 1 if name == "infrared" else 3), np.uint8) for name in names}


def mask() -> np.ndarray:
    drawn = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    drawn[40:60, 50:90] = 255, 0, 0, 255
    return drawn


@pytest.fixture
def page(browser: Browser, site: Path) -> Iterator[Page]:
    """The gallery, open. Anything in the console, and anything asked of the outside, fails the test."""
    with browser.new_context(viewport={"width": 1440, "height": 900}) as context, watched(context, site) as page:
        page.wait_for_selector("#cards li")
        yield page


def keys(page: Page) -> list[str]:
    """Those of the cards, once nothing changes any more."""
    page.wait_for_timeout(150)
    return page.locator("#cards .name span").all_text_contents()


def opened(page: Page, n: int, rest: str = "") -> None:
    page.evaluate("hash => { location.hash = hash }", f"n={n}&item={key(n).replace('&', '%26')}{rest}")
    page.wait_for_function("text => document.getElementById('key').textContent === text", arg=key(n))
    page.wait_for_timeout(150)


def on_screen(page: Page, pane: int = 0) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) of the picture in a pane at zoom 1, as Chromium painted it."""
    frame = page.locator("#panes .stage").nth(pane).bounding_box()
    assert frame is not None
    assert (frame["width"], frame["height"]) == (WIDTH, HEIGHT)
    png = page.screenshot(clip=frame)
    with Pil.open(io.BytesIO(png)) as shot:
        return np.array(shot.convert("RGB"))


def expect_split(seen: np.ndarray, left: np.ndarray, right: np.ndarray, at: int, handle: int = 10) -> None:
    """`left` on the left of column `at`, `right` on the right, but for what the handle covers."""
    np.testing.assert_array_equal(seen[:, : at - handle], rgb(left)[:, : at - handle])
    np.testing.assert_array_equal(seen[:, at + handle :], rgb(right)[:, at + handle :])


def rgb(picture: np.ndarray) -> np.ndarray:
    return np.broadcast_to(picture, (HEIGHT, WIDTH, 3))


def test_sorts_and_filters(page: Page, values: np.ndarray) -> None:
    assert keys(page) == [key(n) for n in range(24)]
    assert page.locator("#count").text_content() == f"1–24 of {N}"
    assert page.locator("h1").text_content() == f"Title{NASTY}"
    page.keyboard.press("ArrowRight")
    assert keys(page) == [key(n) for n in range(24, 48)]
    # A metric, the worst first; of a system, the best first; of two, the difference.
    page.select_option("#by", "Qcv")
    assert keys(page) == [key(n) for n in np.argsort(-values[:, 0, 1])[:24]]
    page.select_option("#a", "图像")
    page.click("#order")
    assert keys(page) == [key(n) for n in np.argsort(values[:, 2, 1])[:24]]
    page.select_option("#b", "ours")
    page.click("#order")
    difference = values[:, 2, 1] - values[:, 0, 1]
    assert keys(page) == [key(n) for n in np.argsort(-difference)[:24]]
    assert page.locator("#cards b").first.text_content() == f"{difference.max():.4g}"
    # By disagreement: the ranks that the metrics give the system.
    page.click("#means button:has-text('disagreement')")
    ranks = np.argsort(np.argsort(values * [-1, 1, -1], axis=1), axis=1)
    page.select_option("#a", "ours")
    page.select_option("#b", "")
    spread = np.ptp(ranks[:, 0], axis=1)
    assert keys(page) == [key(n) for n in np.argsort(-spread, kind="stable")[:24]]
    # Conditions and words narrow it, and the address brings all of it back.
    page.select_option("#column", label="persons")
    page.fill("#bound", "5")
    page.click("#narrow button:has-text('Add')")
    page.keyboard.press("Escape")
    page.locator("h1").click()
    page.keyboard.press("/")
    page.keyboard.type("split:train CAPTION")
    expected = [n for n in np.argsort(-spread, kind="stable") if n % 7 >= 5 and n % 3]
    assert keys(page) == [key(n) for n in expected]
    page.wait_for_timeout(300)
    page.reload()
    page.wait_for_selector("#cards li")
    assert keys(page) == [key(n) for n in expected]
    page.click("#where button")
    page.fill("#q", f'{expected[1]} "quote"')
    assert key(expected[1]) in keys(page)
    page.fill("#q", "nothing of the kind")
    assert keys(page) == []
    assert page.locator("#count").text_content() == f"None of {N}"


def test_every_layer_on_screen_is_its_png(page: Page) -> None:
    opened(page, 3, "&zoom=1&hide=masks")
    layers = pictures(3)
    for number, (name, picture) in enumerate(layers.items(), start=1):
        page.keyboard.down(str(number))
        assert page.locator("#panes b").text_content() == name
        np.testing.assert_array_equal(on_screen(page), rgb(picture))
        page.keyboard.up(str(number))
        np.testing.assert_array_equal(on_screen(page), rgb(layers["visible"]))
    # The slider: left of it the one, right of it the other.
    page.keyboard.press("s")
    page.select_option("#left", "infrared")
    page.select_option("#right", "图像")
    expect_split(on_screen(page), layers["infrared"], layers["图像"], WIDTH // 2)
    frame = page.locator(".pane").bounding_box()
    assert frame is not None
    middle = frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1], steps=5)
    page.mouse.up()
    expect_split(on_screen(page), layers["infrared"], layers["图像"], WIDTH // 2 + 60)
    # The difference, as often as asked.
    page.keyboard.press("d")
    one, other = (rgb(layers[name]).astype(int) for name in ("infrared", "图像"))
    for gain in (1, 2, 4, 8, 16):
        page.select_option("#gain", str(gain))
        page.wait_for_timeout(100)
        np.testing.assert_array_equal(on_screen(page), np.minimum(255, gain * abs(one - other)))
    page.select_option("#right", "infrared")
    page.wait_for_timeout(100)
    assert not on_screen(page).any()
    # Side by side, all at once.
    page.locator("h1").click()
    page.keyboard.press("g")
    assert page.locator(".pane").count() == len(layers)
    for pane, picture in enumerate(layers.values()):
        np.testing.assert_array_equal(on_screen(page, pane), rgb(picture))


def test_overlays_lie_above_and_can_be_switched(page: Page) -> None:
    opened(page, 4, "&zoom=1")
    visible, drawn = pictures(4)["visible"], mask()
    np.testing.assert_array_equal(on_screen(page), np.where(drawn[..., 3:] > 0, drawn[..., :3], visible))
    page.click("#overlays button")
    assert page.locator("#overlays button").get_attribute("aria-pressed") == "false"
    np.testing.assert_array_equal(on_screen(page), visible)


def test_zooms_about_the_pointer_and_tells_values(page: Page) -> None:
    opened(page, 5, "&mode=grid&zoom=1")
    frame = page.locator(".pane").nth(1).bounding_box()
    assert frame is not None
    x, y = frame["x"] + frame["width"] / 2 + 31, frame["y"] + frame["height"] / 2 - 22
    page.mouse.move(x, y)

    def told() -> list[int]:
        return [int(number) for number in (page.locator("#at").text_content() or "").removeprefix("at ").split(", ")]

    column, line = told()
    np.testing.assert_allclose((column, line), (WIDTH // 2 + 31, HEIGHT // 2 - 22), atol=1)
    said = page.locator("#layers output").all_text_contents()
    assert said == [" ".join(map(str, picture[line, column])) for picture in pictures(5).values()]
    # What is below the pointer stays below it, in every pane.
    page.mouse.wheel(0, -900)
    page.mouse.move(x + 1, y)
    np.testing.assert_allclose(told(), (column, line), atol=1)
    assert page.locator("#actual").text_content() == "800 %"
    boxes = [stage.bounding_box() for stage in page.locator(".stage").all()]
    assert len({(box["width"], box["height"]) for box in boxes if box}) == 1
    # Dragged by a picture's pixel or more; kept in the address.
    page.mouse.down()
    page.mouse.move(x + 81, y, steps=4)
    page.mouse.up()
    page.wait_for_timeout(300)
    np.testing.assert_allclose(told(), (column, line), atol=1)
    before = [stage.bounding_box() for stage in page.locator(".stage").all()]
    page.reload()
    page.wait_for_selector(".stage")
    page.wait_for_timeout(200)
    assert [stage.bounding_box() for stage in page.locator(".stage").all()] == before
    page.keyboard.press("0")
    page.keyboard.press("a")
    assert page.locator("#actual").text_content() == "100 %"
    page.keyboard.press("+")
    page.keyboard.press("+")
    assert page.locator("#actual").text_content() == "200 %"
    assert page.locator(".stage img").first.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"


def test_walks_through_the_pairs_in_the_order_of_the_list(page: Page, values: np.ndarray) -> None:
    page.select_option("#by", "SSIM")
    order = np.argsort(values[:, 0, 2])
    page.click("#cards li:nth-child(2) a")
    page.wait_for_function("text => document.getElementById('key').textContent === text", arg=key(order[1]))
    assert page.locator("#place").text_content() == f"2 of {N}"
    assert page.locator("#values tbody tr:nth-child(1) td").nth(2).text_content() == f"{values[order[1], 0, 2]:#.4g}"
    page.keyboard.press("ArrowRight")
    page.wait_for_function("text => document.getElementById('key').textContent === text", arg=key(order[2]))
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("text => document.getElementById('key').textContent === text", arg=key(order[0]))
    assert page.locator("#previous").is_disabled()
    # However much stands beside it, a low window still has all layers to choose from.
    page.set_viewport_size({"width": 1024, "height": 400})
    assert (page.locator("#layers").bounding_box() or {"height": 0})["height"] > 25 * (2 + len(SYSTEMS))
    page.keyboard.press("Escape")
    assert keys(page)[:2] == [key(n) for n in order[:2]]
    # An address from before the gallery was made anew: the number is another's, the key finds it.
    opened(page, 7)
    page.evaluate("hash => { location.hash = hash }", "n=2&item=" + key(7).replace("&", "%26"))
    page.wait_for_timeout(200)
    assert page.locator("#key").text_content() == key(7)
    page.evaluate("location.hash = 'n=2&item=gone'")
    page.wait_for_selector("#alert:visible")
    assert page.locator("#alert").text_content() == "There is no pair called gone here"


def test_fits_a_phone_and_follows_two_fingers(browser: Browser, site: Path) -> None:
    phone: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "device_scale_factor": 3}
    with browser.new_context(**phone) as context, watched(context, site) as page:
        page.wait_for_selector("#cards li")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.tap("#cards li a")
        page.wait_for_selector(".stage")
        for mode in ("Grid", "Slider", "Difference", "Flip"):
            page.tap(f"button:has-text('{mode}')")
            assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.tap("button:has-text('100 %'), #actual")
        frame = page.locator(".pane").bounding_box()
        assert frame is not None
        x, y = frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2
        screen = context.new_cdp_session(page)
        for kind, half in [
            ("touchStart", 30),
            *(("touchMove", half) for half in (40, 60, 80, 90)),
            ("touchEnd", 0),
        ]:
            points = [{"x": x + side * half, "y": y, "id": side + 1} for side in (-1, 1) if half]
            screen.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        page.wait_for_timeout(300)
        assert page.locator("#actual").text_content() == "300 %"


def test_opens_from_a_bucket(browser: Browser, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, str] = {}
    call = s3fs.S3FileSystem._call_s3

    async def listening(fs: Any, method: str, *args: Any, **options: Any) -> Any:
        # Where nothing is said, AWS keeps this; the server of the tests looks at names.
        if method == "put_object":
            told[f"{options['Bucket']}/{options['Key']}"] = options.get("ContentType", "binary/octet-stream")
        return await call(fs, method, *args, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", listening)
    with Site(Store(f"{s3_url}/gallery"), "In a bucket", [Column("persons")]) as site:
        layers = [Layer(name, encode_png(picture)) for name, picture in pictures(0).items()]
        site.add(Item("only", layers, {"persons": 2.0}, {}))
    store = fsspec.filesystem("s3")
    page, root = browser.new_page(), f"{s3_url}/gallery".removeprefix("s3://")
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))

    def serve(route: Route) -> None:
        """As the bucket does for anybody who may read it: what lies there, and what it was said to be."""
        path = root + urlsplit(route.request.url).path
        route.fulfill(body=store.cat_file(path), content_type=told[path])

    page.route("http://bucket.test/**", serve)
    page.goto("http://bucket.test/index.html")
    page.click("#cards a")
    page.wait_for_selector(".stage")
    page.keyboard.press("a")
    np.testing.assert_array_equal(on_screen(page), pictures(0)["visible"])
    page.close()
    assert said == []


@pytest.mark.timeout(900)
def test_ten_thousand_pairs_open_as_fast_as_ten(browser: Browser, tmp_path: Path) -> None:
    columns = [Column(f"metric {number}", "ours", "higher") for number in range(8)]
    draw, photograph = np.random.default_rng(0), skimage.data.astronaut()

    def piece() -> bytes:
        y, x = draw.integers(0, 512 - 48), draw.integers(0, 512 - 64)
        return encode_png(photograph[y : y + 48, x : x + 64])

    layers = [[Layer(name, piece()) for name in ("visible", "infrared", "ours")] for _ in range(24)]
    n = 10_000
    with Site(Store(str(tmp_path)), "Many", columns) as site:
        for number in range(n):
            numbers = {column.id: float(value) for column, value in zip(columns, draw.random(8), strict=True)}
            facts = {"split": "train", "shard": f"train-{number // 64:06}"}
            site.add(Item(f"{number:05}", layers[number % 24], numbers, facts, f"A street with {number} persons. " * 5))
    seconds, read = [], 0
    for _ in range(3):
        with browser.new_context() as context:
            page, asked = context.new_page(), []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto((tmp_path / "index.html").as_uri(), wait_until="commit")
            seconds.append(
                page.evaluate("""async () => {
                const drawn = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
                while (!document.querySelector(".thumb img")?.complete) await drawn();
                await document.querySelector(".thumb img").decode();
                await drawn();
                return performance.now() / 1000;
            }""")
            )
            read = sum(Path(urlsplit(url).path).stat().st_size for url in asked if url.startswith("file:"))
            assert page.locator("#count").text_content() == f"1–24 of {n}"
            # Sorting reads one column, and of the rest what is shown.
            page.select_option("#by", "metric 3")
            page.wait_for_selector("#cards b")
            assert sum("column-" in url for url in asked) == 1
    assert min(seconds) < 1
    assert read < 300_000
    print(f"first picture after {min(seconds):.2f} s and {read / 1000:.0f} kB of {n} pairs")
