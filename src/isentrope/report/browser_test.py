"""The page in headless Chromium: drawn, quiet, requesting nothing, deaf to hostile text, readable on a phone and in the dark."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from isentrope.report import build, synthetic

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
SCREENS = {"desktop": {"viewport": {"width": 1280, "height": 900}}, "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}}
PICTURES = ("pass-at-k", "reward", "entropy-steps", "entropy-position", "entropy-map", "entropy-tenths", "pressure-plot", "touch-0", "removed-0")

pytestmark = [pytest.mark.browser, pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing: apt-get install chromium")]


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Pages of a plain run, of a hostile one and of one that has just begun."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        "plain": build(synthetic.write(folder / "plain", updates=60)),
        "hostile": build(synthetic.write(folder / "hostile", updates=40, hostile=True)),
        "young": build(synthetic.write(folder / "young", updates=1, links=(), finished=False)),
    }


class Visit:
    """An open page, and everything that it said or asked for."""

    def __init__(self, browser, path: Path, screen: str = "desktop", scheme: str = "light"):
        self.context = browser.new_context(color_scheme=scheme, **SCREENS[screen])
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)  # CI shares its two cores
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready=yes]")
        self.own = path.as_uri()

    def check_quiet(self) -> None:
        assert self.said == []
        assert [url for url in self.asked if url != self.own and not url.startswith("data:")] == []
        assert self.page.evaluate("'pwned' in window") is False


@pytest.fixture
def visit(chromium, runs) -> Iterator:
    opened: list[Visit] = []

    def open_page(run: str, **options) -> Visit:
        opened.append(Visit(chromium, runs[run], **options))
        return opened[-1]

    yield open_page
    for one in opened:
        one.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("run", ["plain", "hostile", "young"])
def test_quiet_and_no_wider_than_the_screen(visit, run, screen, scheme):
    page = visit(run, screen=screen, scheme=scheme)
    page.page.mouse.wheel(0, 3000)
    page.check_quiet()
    assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    edges = "[...document.querySelectorAll('figure, .tile, .sample, table, pre')].map(element => element.parentElement.getBoundingClientRect().right)"
    assert max(page.page.evaluate(edges)) <= SCREENS[screen]["viewport"]["width"]
    ground = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) > 380) == (scheme == "light")


def test_every_picture_is_drawn_with_its_data_and_its_axes(visit):
    page = visit("plain").page
    for id in PICTURES:
        drawn = page.evaluate(
            """id => { const plot = document.getElementById(id), box = plot.querySelector('.main-svg').getBoundingClientRect();
            return { width: box.width, height: box.height, marks: plot.querySelectorAll('.js-line, .points path, .hm image').length,
              words: [...plot.querySelectorAll('text')].map(text => text.textContent).join(' | ') } }""",
            id,
        )
        assert drawn["width"] > 300
        assert drawn["height"] > 200
        assert drawn["marks"] > 0, id
        assert any(axis in drawn["words"] for axis in ("update", "position", "tenth of the response", "N, nats")), (id, drawn["words"])
        assert any(unit in drawn["words"] for unit in ("nats", "%", "mean reward", "tokens")), (id, drawn["words"])
    lines = page.evaluate("[...document.querySelectorAll('#pass-at-k .scatterlayer .js-line')].map(line => line.getAttribute('d').length)")
    assert len(lines) >= 5
    assert min(lines) > 20
    assert page.evaluate("document.querySelectorAll('#pressure-plot .points path').length") > 100


def test_a_tooltip_tells_the_values_of_the_tape(visit):
    page = visit("plain").page
    plot = page.locator("#reward .nsewdrag")
    plot.scroll_into_view_if_needed()
    plot.hover(position={"x": 100, "y": 60})
    page.wait_for_selector("#tip:not([hidden])")
    title, *rows = page.locator("#tip").inner_text().split("\n")
    step = int(title.removeprefix("update "))
    charts = page.evaluate("JSON.parse(document.getElementById('charts').textContent).reward")
    expected = charts["series"][0]["y"][charts["series"][0]["x"].index(step)]
    assert rows[0] == "one update"
    assert float(rows[1]) == pytest.approx(expected, rel=5e-3)


def test_switches_redraw(visit):
    visited = visit("plain")
    page = visited.page
    ticks = "[...document.querySelectorAll('#entropy-steps .ytick text')].map(text => text.textContent)"
    before = page.evaluate(ticks)
    page.click("#entropy [data-value=log]")
    page.wait_for_timeout(300)
    assert page.evaluate(ticks) != before
    dots = "document.querySelector('#pressure-plot .points path').getAttribute('transform')"
    first = page.evaluate(dots)
    page.click('[data-switch="phase:pressure-plot"] button:last-child')
    page.wait_for_timeout(300)
    assert page.evaluate(dots) != first
    visited.check_quiet()


def test_samples_are_coloured_filtered_and_explained(visit):
    visited = visit("plain")
    page = visited.page
    colours = "new Set([...document.querySelectorAll('.tok')].map(token => token.style.backgroundColor)).size"
    assert page.evaluate(colours) > 10
    page.click("[data-switch=outcome] [data-value=wrong]")
    assert set(page.locator(".sample .outcome").all_inner_texts()) == {"✗ wrong"}
    page.click("[data-switch=colour] [data-value=weight]")
    assert page.locator(".tok.off").count() > 0
    page.locator(".tok").nth(3).hover()
    said = page.locator("#tip").inner_text()
    for name in ("entropy H, nats", "S, nats", "N, nats", "probability p", "advantage A", "weight w", "push"):
        assert name in said
    page.locator(".completion").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".tok.here").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    visited.check_quiet()


def test_a_tap_on_a_token_explains_it(visit):
    page = visit("plain", screen="phone").page
    token = page.locator(".tok").nth(2)
    token.scroll_into_view_if_needed()
    token.tap()
    page.wait_for_selector("#tip:not([hidden])")
    box = page.locator("#tip").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390


def test_the_reader_changes_light_and_dark(visit):
    visited = visit("plain")
    page = visited.page
    line = "getComputedStyle([...document.querySelectorAll('#reward .js-line')].pop()).stroke"
    ground, colour = page.evaluate("getComputedStyle(document.body).backgroundColor"), page.evaluate(line)
    page.click("#theme")
    page.wait_for_selector("html[data-ready=yes]")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != ground
    assert page.evaluate(line) != colour
    page.click("#theme")
    page.wait_for_selector("html[data-ready=yes]")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
    assert page.evaluate(line) == colour
    visited.check_quiet()


def test_hostile_text_is_shown_and_does_nothing(visit):
    visited = visit("hostile")
    page = visited.page
    shown = page.evaluate("document.querySelector('#samples-list').innerText")
    for text in (
        "<script>window.pwned=1</script>",
        '"><img src=x onerror=window.pwned=1>',
        "{{constructor",
        "⟨U+2028⟩",
        "⟨U+202E⟩",
        "␀␇␛[31m�",
        "<b>bold</b>&amp;<br>%{x}",
    ):
        assert text in shown, text
    for group, value in (("colour", "advantage"), ("when", "late"), ("outcome", "right"), ("outcome", "all")):
        page.click(f"[data-switch={group}] [data-value={value}]")
    for token in range(0, 24, 3):
        page.locator(".tok").nth(token).hover()
    for id in ("pressure-plot", "touch-2", "pass-at-k"):
        page.locator(f"#{id} .nsewdrag").first.hover()
    for details in page.locator("summary").all():
        details.click()
    # Plotly reads some HTML in its texts: the names of tokens in its picture must be text to it, too.
    written = page.evaluate("JSON.parse(document.getElementById('charts').textContent)['pressure-plot'].phases.flatMap(phase => phase.text)")
    known = {text.replace(" ", "␣").replace("\n", "↵")[:14] for text in written}
    named = set()
    for button in page.locator('[data-switch="phase:pressure-plot"] button').all():
        button.click()
        page.wait_for_timeout(300)
        named |= set(page.evaluate("[...document.querySelectorAll('#pressure-plot .annotation-text')].map(text => text.textContent)"))
    named = {name for name in named if name[:4] not in ("S of", "S > ", "S < ", "All ")}
    assert named <= known
    assert any("<b>" in name for name in named)
    assert page.evaluate("document.querySelectorAll('#pressure-plot a, .plot b, .plot img, .plot script').length") == 0
    assert page.evaluate("document.querySelectorAll('main img, main script, main iframe').length") == 0
    assert "<script>window.pwned=1</script>" in page.evaluate("document.querySelector('header').innerText")
    assert page.title().count("<script>") == 3
    visited.check_quiet()


def test_the_policy_stops_a_script_that_got_in(visit):
    """The second wall, by itself: even an element that is put into the page runs nothing and fetches nothing."""
    visited = visit("plain")
    visited.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.pwned=1><img src=\"https://example.invalid/a.png\">')")
    visited.page.evaluate("{ const made = document.createElement('script'); made.textContent = 'window.pwned = 1'; document.body.append(made); }")
    visited.page.wait_for_timeout(300)
    assert visited.page.evaluate("'pwned' in window") is False
    assert any("Content Security Policy" in text for text in visited.said)


def test_a_young_run_says_what_is_missing(visit):
    page = visit("young", screen="phone").page
    text = page.locator("main").inner_text()
    assert "not finished: update 1" in text
    assert "No intervention: plain objective (GRPO)" in text
