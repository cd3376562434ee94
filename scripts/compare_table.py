"""The verdicts of a finished comparison as a Markdown table: `python scripts/compare_table.py runs/compare`."""

import json
import sys
from pathlib import Path


def cell(row: dict | None) -> str:
    if row is None:
        return "-"
    text = f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
    return f"**{text}**" if row["found"] else text


def main() -> None:
    found = json.loads((Path(sys.argv[1]) / "results.json").read_text())

    def row(where: str, beside: str, method: str, metric: str) -> dict | None:
        return next((one for one in found[where][beside] if (one["method"], one["metric"]) == (method, metric)), None)

    print("| method | verdict | pass@1 less GRPO's | pass@1 less placebo's | pass@4 less GRPO's | entropy at the same reward, nats | would be seen (pass@1) |")
    print("|---|---|---|---|---|---|---|")
    for method, verdict in found["verdicts"].items():
        one = row("matched_step", "to_baseline", method, "pass@1")
        cells = [
            cell(one), cell(row("matched_step", "to_placebo", method, "pass@1")), cell(row("matched_step", "to_baseline", method, "pass@4")),
            cell(row("matched_reward", "to_baseline", method, "entropy")), "-" if one is None else f"{one['detectable']:.3f}",
        ]  # fmt: skip
        print(f"| `{method}` | {verdict['word']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
