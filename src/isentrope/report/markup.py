"""Text that a model wrote, made harmless and visible; HTML that escapes by construction.

Everything in a run directory is untrusted: completions, prompts, token texts, link names, configuration. There is one way into the
page's HTML, `element`, which escapes every child and attribute that is not already `Markup`, and one way into its script,
`script_json`, whose output holds no character that an HTML parser reacts to. Standard library only.
"""

import html
import json
import math
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

_PLAIN = re.compile(r"[\x20-\x7e\n]*", re.ASCII)
_NAME = re.compile(r"[a-z][a-z0-9-]*")
_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_SCRIPT = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
MAX_TEXT = 20_000
"""Characters of one text that the page shows; the rest is counted, not shown."""


class Markup(str):
    """HTML that is already safe. Only `element` and `join` make it."""


def visible(text: Any, limit: int = MAX_TEXT) -> str:
    """`text` as one can see it: control characters as their pictures, invisible and direction-changing ones by code point.

    Line breaks stay. What goes beyond `limit` characters is cut, and the cut says how much it took.

    >>> visible("a\\x00b\\u202ec")
    'a␀b⟨U+202E⟩c'
    """
    text = text if isinstance(text, str) else str(text)
    if len(text) > limit:
        text = f"{text[:limit]} … ({len(text) - limit:,} more characters)"
    if _PLAIN.fullmatch(text):
        return text
    return "".join(map(_seen, text))


def _seen(character: str) -> str:
    code = ord(character)
    if character == "\n" or 0x20 <= code < 0x7F:
        return character
    if character == "\t":
        return "⇥"
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    return f"⟨U+{code:04X}⟩" if unicodedata.category(character) in _UNSEEN else character


def escape(value: Any) -> Markup:
    """`value` as HTML text, safe inside an element and inside a quoted attribute."""
    return value if isinstance(value, Markup) else Markup(html.escape(visible(value), quote=True))


def join(parts: Iterable[Any], between: str = "") -> Markup:
    """Parts escaped where they need it and put side by side; None leaves nothing."""
    return Markup(html.escape(between).join(escape(part) for part in parts if part is not None))


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """One HTML element. Children that are not `Markup` are escaped; an attribute of None or False is left out.

    `class_` is written class, `data_x` data-x. Handlers (on…) and style are refused: the page's policy forbids the first and
    styles stand in the style sheet.

    >>> element("p", "a < b", class_="note")
    '<p class="note">a &lt; b</p>'
    """
    written = []
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if key.startswith("on") or key == "style" or not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", key):
            raise ValueError(f"element: attribute {key!r} is not allowed; use a class.")
        if value is None or value is False:
            continue
        written.append(f" {key}" if value is True else f' {key}="{escape(value)}"')
    if not _NAME.fullmatch(name) or name in ("script", "style"):
        raise ValueError(f"element: {name!r} is no element that content may make.")
    head = f"<{name}{''.join(written)}>"
    return Markup(head if name in _VOID else f"{head}{join(children)}</{name}>")


def script_json(value: Any) -> str:
    """`value` as JSON that may stand in a <script> element: no `<`, `>`, `&` or Unicode line separator is left in it.

    A float that is no number (NaN, infinity) becomes null; strings pass through `visible`.
    """
    text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_SCRIPT)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, float):
        return significant(value)
    if isinstance(value, dict):
        return {visible(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def significant(value: float | None, digits: int = 4) -> float | int | None:
    """`value` at so many significant digits; None where it is no finite number.

    >>> significant(0.123456), significant(float("nan"))
    (0.1235, None)
    """
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    if not math.isfinite(rounded):  # the last step before infinity rounds up to it
        return value
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded
