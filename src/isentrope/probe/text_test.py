"""Which files are a text, and how its tokens lie on it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.errors import UserError
from isentrope.probe.text import MAX_BYTES, read_text, tokenize
from isentrope.train.models import load


@pytest.fixture(scope="module")
def tokenizer():
    return load("embedded").tokenizer


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty. "),
        (b" \n\t\r\n", "empty but for white space"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"\x7fELF\x02\x01\x01\0\0", "binary file (a zero byte at 7)"),
        ("text".encode("utf-16"), "UTF-16"),
        ("caf\xe9".encode("latin-1"), "byte 3 is no UTF-8"),
    ],
)
def test_what_is_no_text_is_refused_in_one_sentence(tmp_path, content, words):
    path = tmp_path / "given"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_text(path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_file_a_folder_and_a_huge_file_are_refused(tmp_path):
    with pytest.raises(UserError, match="no file"):
        read_text(tmp_path / "none.txt")
    with pytest.raises(UserError, match="is a folder"):
        read_text(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be read: Not a directory"):
        read_text(tmp_path / "file" / "below.txt")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse
    with pytest.raises(UserError, match=r"67,108,865 bytes.*head -c"):
        read_text(tmp_path / "huge")


def test_a_text_is_read_as_it_is_without_its_mark(tmp_path):
    (tmp_path / "text").write_bytes("\ufeffa\r\nb é 👩‍🚀\n".encode())
    assert read_text(tmp_path / "text") == "a\r\nb é 👩‍🚀\n"


@settings(max_examples=100, deadline=None)
@given(text=st.text(min_size=1, max_size=60))
def test_spans_cover_the_text_and_follow_one_another(tokenizer, text):
    found = tokenize(tokenizer, text)
    assert "".join(text[a:b] for a, b in found.spans) == text
    assert [a for a, _ in found.spans] == [0, *(b for _, b in found.spans[:-1])]
    assert tokenizer.decode(found.ids) == text
    assert found.prefix == ()


def test_bytes_of_one_character_share_it(tokenizer):
    found = tokenize(tokenizer, "a👩b")
    assert [("a👩b")[a:b] for a, b in found.spans] == ["a", "👩", "", "", "", "b"]


class WithBeginning:
    """A tokenizer without offsets that puts a token before every text and drops what it does not know."""

    is_fast = False

    def __call__(self, text, *, add_special_tokens=True, return_offsets_mapping=False, verbose=True):
        ids = [ord(character) for character in text if character < "\x80"]
        return {"input_ids": [1, *ids] if add_special_tokens else ids}

    def decode(self, ids):
        return "".join(map(chr, ids))


def test_a_prefix_is_found_and_a_text_of_no_tokens_refused():
    found = tokenize(WithBeginning(), "abc")
    assert (found.prefix, found.ids, found.spans) == ((1,), (97, 98, 99), ((0, 1), (1, 2), (2, 3)))
    with pytest.raises(UserError, match="makes no tokens of this text"):
        tokenize(WithBeginning(), "éé")
