"""Writes src/isentrope/assets/catalogue.json from the shared catalogue.

    python scripts/build_catalogue.py ../shared/CATALOGUE.md
"""

import json
import re
import sys
from pathlib import Path


def main() -> None:
    rows, room = [], ""
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"## [A-Z]\. (.*)", line):
            room = heading[1].rpartition(" - ")[2].strip()
        elif row := re.match(r"\| `([^`]+)` \| (.*?) \|", line):
            rows.append({"slug": row[1], "title": row[2], "room": room})
    target = Path(__file__).parents[1] / "src" / "isentrope" / "assets" / "catalogue.json"
    target.write_text(json.dumps(rows, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(rows)} papers -> {target}")


if __name__ == "__main__":
    main()
