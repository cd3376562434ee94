"""The theorems of `explain.theory` and what each misses on the reference worlds: writes the table of docs/theory.md. Seconds.

python scripts/theory_table.py            # write
python scripts/theory_table.py --check    # fail if the page says otherwise than this machine finds
"""

import argparse
import sys
from pathlib import Path

from isentrope.explain.theorems import STEP, THEOREMS

DOCS = Path(__file__).parents[1] / "docs" / "theory.md"
START, END = "<!-- table: python scripts/theory_table.py -->\n", "<!-- end of table -->\n"


def table() -> str:
    lines = [f"| statement | sheet | function | missed at step {STEP:g}, nats | factor when the step is halved |", "|---|---|---|---|---|"]
    for theorem in THEOREMS:
        identity = theorem.order is None
        missed = "rounding" if identity and theorem.size() < 1e-12 else f"{theorem.size():.1e}"
        factor = "identity" if identity else f"{theorem.factor():.2f}"
        function = theorem.function if "`" in theorem.function else f"`{theorem.function}`"
        sheets = ", ".join(sheet if sheet == "derived" else f"`{sheet}`" for sheet in theorem.sheet.split(", "))
        statement = theorem.name.replace("|", "\\|")
        lines.append(f"| {statement} | {sheets} | {function} | {missed} | {factor} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    page = DOCS.read_text(encoding="utf-8")
    before, rest = page.split(START)
    after = rest.split(END)[1]
    now = before + START + table() + END + after
    if parser.parse_args().check:
        return int(now != page)
    DOCS.write_text(now, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
