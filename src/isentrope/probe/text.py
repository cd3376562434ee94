"""The text that is measured: read from a file with one sentence for every way in which it can be none, and cut into tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isentrope.errors import UserError

MAX_BYTES = 64 * 2**20
"""A larger file is refused: at a thousand tokens a second it would be measured for hours."""


class TextError(UserError, ValueError):
    """A text that cannot be measured; the message says why, and the way out."""


def read_text(path: Path) -> str:
    """The file as text: UTF-8, a byte-order mark left out, line ends as they are.

    Raises TextError for a file that is missing, a folder, unreadable, empty, too large, or no UTF-8 text.
    """
    if path.is_dir():
        raise TextError(f"--text: {path} is a folder. Give a text file in it.")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TextError(f"--text: {path} has {path.stat().st_size:,} bytes, and {MAX_BYTES:,} is the most. Cut it: head -c 1000000 {path} > part.txt")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise TextError(f"--text: no file {path}. Give a text file, in UTF-8.") from error
    except OSError as error:
        raise TextError(f"--text: {path} cannot be read: {error.strerror or error}. Give a text file that you may read.") from error
    if not content.strip(b"\xef\xbb\xbf \t\r\n\f\v"):
        raise TextError(f"--text: {path} is empty{' but for white space' if content else ''}. Give a file with some text in it.")
    at = content.find(b"\0")
    if at >= 0:
        raise TextError(f"--text: {path} is a binary file (a zero byte at {at}), or text in UTF-16. Give text in UTF-8.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(f"--text: {path} is binary, or text in another encoding: byte {error.start} is no UTF-8. Convert it with iconv -t UTF-8.") from error


@dataclass(frozen=True)
class Tokens:
    """A text as the model reads it: `ids[t]` stands for `text[spans[t][0]:spans[t][1]]`; the spans follow one another and leave
    nothing out. A token that ends inside a character has an empty span after the character's first token. `prefix`: what the
    tokenizer puts before any text (often one token, the beginning of a sequence)."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    prefix: tuple[int, ...]


def tokenize(tokenizer: Any, text: str) -> Tokens:
    """`text` in tokens of a Hugging Face tokenizer.

    Raises TextError where the tokenizer makes no token, or makes one that is its word for "unknown" of everything.
    """
    fast = bool(tokenizer.is_fast)
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    ids = tuple(coded["input_ids"])
    if not ids:
        raise TextError("--text: the model's tokenizer makes no tokens of this text. Give a text with words in it.")
    if fast:
        ends = [end for _, end in coded["offset_mapping"]]
    else:  # no offsets: the lengths of the decoded tokens, which are right where the tokenizer changes nothing
        ends, reached = [], 0
        for token in ids:
            reached += len(tokenizer.decode([token]))
            ends.append(reached)
    return Tokens(ids, _spans(ends, len(text)), _prefix(tokenizer, text, ids))


def _spans(ends: Sequence[int], length: int) -> tuple[tuple[int, int], ...]:
    """Spans that begin where the last one ended: white space that a tokenizer trims from its offsets goes to the token after it."""
    found, reached = [], 0
    for at, end in enumerate(ends):
        end = length if at == len(ends) - 1 else max(reached, min(end, length))
        found.append((reached, end))
        reached = end
    return tuple(found)


def _prefix(tokenizer: Any, text: str, ids: tuple[int, ...]) -> tuple[int, ...]:
    """What the tokenizer's own way of coding puts before the text."""
    head = text[:200]
    plain, whole = tokenizer(head, add_special_tokens=False)["input_ids"], tokenizer(head)["input_ids"]
    for size in range(len(whole) - len(plain) + 1):
        if whole[size : size + len(plain)] == plain:
            return tuple(whole[:size])
    return ()
