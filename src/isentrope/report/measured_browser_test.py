"""The page of a measurement in headless Chromium: drawn, quiet, explained by hover, tap and keys, deaf to hostile text."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from isentrope.probe.measure import measure
from isentrope.report import measured
from isentrope.train.models import load

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
SCREENS = {"desktop": {"viewport": {"width": 1280, "height": 900}}, "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}}
HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1> <b>bold</b>&amp;%{x}\n"

pytestmark = [pytest.mark.browser, pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing: apt-get install chromium")]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The page of a hostile text, with hostile names of tokens."""
    found = measure(load("embedded"), HOSTILE + "12+30=42 é👩\n" * 12, source="<b>x</b>.txt", window=64)
    names = [[HOSTILE[:40], *row[1:]] for row in found.tokens["top_text"].to_list()]
    found = replace(found, tokens=found.tokens.with_columns(pl.Series("top_text", names)))
    return measured.build(found, tmp_path_factory.mktemp("measured"))


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_drawn_quiet_and_explained(chromium, written, screen, scheme):
    context = chromium.new_context(color_scheme=scheme, **SCREENS[screen])
    page, said, asked = context.new_page(), [], []
    page.set_default_timeout(120_000)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(written.as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for id in ("along", "heads", "heads-by-layer", "lens-entropy", "lens-surprise", "lens-size", "rank", "alpha"):
        marks = page.evaluate("id => document.getElementById(id).querySelectorAll('.js-line, .points path, .hm image').length", id)
        assert marks > 0, id
    shown = page.locator("#reading").inner_text()
    assert "<script>window.pwned=1</script>" in shown
    colours = "new Set([...document.querySelectorAll('#reading .tok')].map(token => token.style.backgroundColor)).size"
    assert page.evaluate(colours) > 10
    token = page.locator("#reading .tok").nth(12)
    token.scroll_into_view_if_needed()
    token.tap() if screen == "phone" else token.hover()
    tip = page.locator("#tip").inner_text()
    for words in ("entropy H", "varentropy", "S of the token", "surprise", "rank", "most likely here", "</script>"):
        assert words in tip
    for mode in ("surprise", "varentropy", "S"):
        page.click(f'[data-switch="colour:reading"] [data-value={mode}]')
        assert page.evaluate(colours) > 5
    for mode in ("nats", "sinkless", "share"):
        page.click(f'[data-switch="as:heads"] [data-value={mode}]')
    page.locator("#reading").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".tok.here").count() == 1
    page.click("#theme")
    page.wait_for_selector("html[data-ready=yes]")
    assert page.evaluate("'pwned' in window") is False
    assert said == []
    assert [url for url in asked if url != written.as_uri() and not url.startswith("data:")] == []
    context.close()
