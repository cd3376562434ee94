"""One self-contained page from a run directory.

Why Plotly: it is well kept, it is the one charting library whose Python package carries its whole script, so the page needs no
network, no second package registry and no vendored copy in this repository, and it draws SVG that stays sharp on a phone. Its price
is 4.6 MiB in every page (measured: the size of plotly 7.1.0's `plotly.min.js`), more than half of what a report may weigh; a
run's data is thinned to a few hundred KiB. Plotly's own hover labels read some HTML in their text, so the page does not use them:
its tooltips are DOM nodes filled with text.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from isentrope.errors import UserError
from isentrope.report import palette
from isentrope.report.data import Run, read
from isentrope.report.figure import Section
from isentrope.report.headline import headline, subject
from isentrope.report.markup import Markup, element, join, script_json
from isentrope.report.sections import SECTIONS
from isentrope.tape import write_bytes_atomic

MAX_BYTES = 8_000_000
NAME = "report.html"


def build(run_dir: str | Path) -> Path:
    """Writes `run_dir/report.html` and returns its path. Works on a run that is under way or has little data.

    One file of at most MAX_BYTES that requests nothing. Raises UserError if `run_dir` is no run, or if plotly is missing.
    """
    run = read(run_dir)
    text = _encoded(run)
    if len(text) > MAX_BYTES:
        text = _encoded(replace(run, lean=True))
    if len(text) > MAX_BYTES:
        raise RuntimeError(
            f"report: the page of {run.path} has {len(text):,} bytes, more than {MAX_BYTES:,}. The limits in report/sections are too wide; please report it."
        )
    path = run.path / NAME
    write_bytes_atomic(path, text)
    return path


def _encoded(run: Run) -> bytes:
    return html(run).encode("utf-8", errors="backslashreplace")


def html(run: Run) -> str:
    """The whole page as text."""
    sections = [section for make in SECTIONS if (section := make(run)) is not None]
    foot = f"Made by isentrope {run.record.get('isentrope', '')} from the tape of this run. The file requests nothing; entropies are in nats."
    return document(f"{subject(run)} · isentrope", headline(run), sections, foot, drawers=asset("ledger.js"))


def document(title: str, head: Markup, sections: Sequence[Section], foot: str, *, style: str = "", drawers: str = "") -> str:
    """A self-contained page as text: bar, `head`, sections with their charts, `foot`.

    style: rules beside page.css. drawers: a script that gives page.js drawers for further kinds of charts. Both are ours, never content.
    """
    charts = {id: chart for section in sections for id, chart in section.charts.items()}
    style, library, script = palette.css() + asset("page.css") + style, plotly(), drawers + asset("page.js")
    # Plotly brings a style sheet for its maps, which the policy would report; it is not set where an element has its id already.
    taken = "".join(f'<style id="{id}"></style>' for id in re.findall(r'getElementById\("([0-9a-f]{64})"\)', library))
    links = join(element("a", section.nav, href=f"#{section.id}") for section in sections)
    toggle = element("button", "◐", type="button", id="theme", aria_label="Light or dark page", title="Light or dark page")
    bar = element("nav", element("a", "isentrope", href="#top", class_="brand"), element("div", links, class_="links"), toggle)
    body = element("main", head, *(section.html() for section in sections), element("footer", foot))
    without = element("noscript", element("p", "The pictures need JavaScript, which is switched off; the text and the tables do not.", class_="missing"))
    tip = element("div", id="tip", role="tooltip", hidden=True)
    # Charts' scripts are allowed by their hashes; no other script can run, and nothing can be fetched or sent. Plotly sets style
    # attributes and empty style sheets that it fills by script: the first are allowed as attributes only, the second by the empty hash.
    policy = (
        f"default-src 'none'; script-src {digest(library)} {digest(script)}; style-src {digest(style)} {digest('')}; "
        f"style-src-elem {digest(style)} {digest('')}; style-src-attr 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            element("meta", http_equiv="Content-Security-Policy", content=Markup(policy)),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="referrer", content="no-referrer"),
            element("meta", name="color-scheme", content="light dark"),
            element("title", title),
            element("link", rel="icon", href=_icon()),
            f"<style>{style}</style>{taken}</head><body>",
            bar,
            without,
            body,
            tip,
            f'<script type="application/json" id="charts">{script_json(charts)}</script>',
            f"<script>{library}</script>",
            f"<script>{script}</script>",
            "</body></html>",
            "",
        ]
    )


def digest(text: str) -> str:
    """The policy's source expression for an inline script or style of exactly this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def plotly() -> str:
    """Plotly's script. Raises UserError if the package is missing."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError("report: the pictures need plotly, which is not installed. Install it with: pip install 'isentrope[report]'") from error
    text = get_plotlyjs()
    # Inside <script> only these two sequences mean anything to an HTML parser; as JavaScript strings the escaped ones are equal.
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def asset(name: str) -> str:
    """A file of report/assets as text."""
    return resources.files("isentrope.report").joinpath("assets", name).read_text(encoding="utf-8")


def _icon() -> str:
    """The mark, a falling curve that turns level, as a data address, so that no browser asks a server for an icon."""
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#16191d"/>'
        '<path d="M5 8c7 0 7 14 14 14h8" fill="none" stroke="#f5963f" stroke-width="3.5" stroke-linecap="round"/></svg>'
    )
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
