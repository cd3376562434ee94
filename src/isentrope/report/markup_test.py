"""Text stays text: whatever a model wrote, a parser finds only the elements that we made and the characters that one may see."""

import json
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isentrope.report.markup import Markup, element, escape, join, script_json, significant, visible
from isentrope.report.synthetic import HOSTILE

ANY = st.text() | st.sampled_from(HOSTILE) | st.text("<>&\"'/=! -\u2028\u2029\u202e\x00\n\t", max_size=30)


class Reader(HTMLParser):
    """What a browser would see of a fragment."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@given(ANY)
def test_a_child_is_one_text(text):
    read = Reader(element("p", text))
    assert read.tags == [("p", {})]
    assert read.text == visible(text)


@given(ANY)
def test_an_attribute_cannot_be_left(text):
    read = Reader(element("p", "inside", title=text))
    assert read.tags == [("p", {"title": visible(text)})]
    assert read.text == "inside"


@given(st.dictionaries(ANY, ANY | st.none() | st.integers() | st.lists(ANY, max_size=3), max_size=4))
def test_script_json_holds_nothing_that_a_parser_reacts_to(value):
    text = script_json(value)
    assert not set(text) & set("<>&\u2028\u2029")
    read = json.loads(text)
    assert read == json.loads(json.dumps({visible(key): _seen(item) for key, item in value.items()}))


def _seen(item):
    if isinstance(item, list):
        return [_seen(one) for one in item]
    return visible(item) if isinstance(item, str) else item


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_becomes_null(value):
    assert json.loads(script_json({"a": [value, 1.0]})) == {"a": [None, 1]}


@given(st.text())
def test_visible_leaves_no_character_that_cannot_be_seen(text):
    seen = visible(text, limit=10**6)
    assert all(character == "\n" or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} for character in seen)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\x00b", "a␀b"),
        ("\x1b[31m", "␛[31m"),
        ("\x7f", "␡"),
        ("a\tb\nc", "a⇥b\nc"),
        ("\r\n", "␍\n"),
        ("\u202egnp", "⟨U+202E⟩gnp"),
        ("\x85", "⟨U+0085⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("\ufffd", "\ufffd"),
        ("é 漢 🙂", "é 漢 🙂"),
    ],
)
def test_visible_by_example(text, seen):
    assert visible(text) == seen


def test_visible_says_how_much_it_cut():
    assert visible("abcdef", limit=4) == "abcd … (2 more characters)"


def test_markup_is_not_escaped_twice_and_text_is_escaped_once():
    assert element("p", element("b", "x & y"), "<") == "<p><b>x &amp; y</b>&lt;</p>"
    assert join(["<", Markup("<br>"), None], between=" & ") == "&lt; &amp; <br>"
    assert escape(escape("<")) == "&lt;"


@pytest.mark.parametrize("attribute", ["onclick", "onerror", "style"])
def test_handlers_and_styles_are_refused(attribute):
    with pytest.raises(ValueError, match="not allowed"):
        element("p", **{attribute: "x"})


@pytest.mark.parametrize("name", ["script", "style", "p onload=x", "P", ""])
def test_elements_that_content_may_not_make(name):
    with pytest.raises(ValueError, match="no element"):
        element(name)


def test_attributes_of_none_and_false_are_left_out():
    assert element("details", open=True, hidden=False, title=None, class_="a", data_x="1") == '<details open class="a" data-x="1"></details>'


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_significant_keeps_the_value_to_four_digits(value):
    kept = significant(value)
    assert kept is not None
    assert abs(kept - value) <= 5e-4 * abs(value)
