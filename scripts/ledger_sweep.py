"""The ledger at several learning rates, as one picture and one table for the docs.

    for rate in 1.0e-4 3.0e-4 1.0e-3; do isentrope train --preset demo --out runs/lr-$rate --set trl.learning_rate=$rate; done
    python scripts/ledger_sweep.py runs/lr-1.0e-4 runs/lr-3.0e-4 runs/lr-1.0e-3 --out docs/ledger.svg

One panel per run: measured against predicted change of mean entropy, from the gradient half-way (dots) and at the opening weights (rings).
"""

import argparse
from pathlib import Path

import numpy as np
import yaml

from isentrope.explain.agreement import agreement
from isentrope.files import write_text_atomic
from isentrope.tape import Tape

SIDE, GAP, TOP, LEFT = 250, 34, 46, 58
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #586069 } .t { fill: #16191d; font-size: 13px } .a { stroke: #b9bdc2; fill: none }
.d { stroke: #586069; stroke-dasharray: 3 3 } .half { fill: #b8500c } .open { fill: none; stroke: #1b5cc0; stroke-width: 1.3 }
@media (prefers-color-scheme: dark) { text { fill: #9ba5b0 } .t { fill: #e8eaed } .a { stroke: #59626c } .d { stroke: #9ba5b0 }
.half { fill: #f5963f } .open { stroke: #78a9ff } }
"""


def panel(path: Path, at: int) -> tuple[str, str]:
    """A run's picture at place `at`, and its row of the table."""
    ledger = Tape.read(path).table("ledger").sort("step")
    rate = float(yaml.safe_load((path / "config.yaml").read_text())["trl"]["learning_rate"])
    measured, half, opening = (ledger[name].to_numpy() for name in ("measured", "theory/exact", "theory/first_order"))
    exact, first = agreement(half, measured), agreement(opening, measured)
    every = np.concatenate([measured, half, opening])
    low, high = min(0.0, every.min()), max(0.0, every.max())
    room = 0.06 * (high - low)
    low, high = low - room, high + room
    left = LEFT + at * (SIDE + GAP + LEFT - 20)
    x = lambda value: left + SIDE * (value - low) / (high - low)  # noqa: E731
    y = lambda value: TOP + SIDE * (high - value) / (high - low)  # noqa: E731
    parts = [
        f'<text class="t" x="{left}" y="18">learning rate {rate:g}</text>',
        f'<text x="{left}" y="36">half-way: r {exact.correlation.value:.3f}, slope {exact.slope.value:.2f}</text>',
        f'<rect class="a" x="{left}" y="{TOP}" width="{SIDE}" height="{SIDE}"/>',
        f'<line class="d" x1="{left}" y1="{TOP + SIDE}" x2="{left + SIDE}" y2="{TOP}"/>',
        f'<line class="a" x1="{left}" x2="{left + SIDE}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>',
        f'<line class="a" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{TOP}" y2="{TOP + SIDE}"/>',
        f'<text x="{left - 4}" y="{TOP + 10}" text-anchor="end">{high:.2g}</text>',
        f'<text x="{left - 4}" y="{TOP + SIDE}" text-anchor="end">{low:.2g}</text>',
        f'<text x="{left + SIDE / 2}" y="{TOP + SIDE + 18}" text-anchor="middle">predicted change, nats</text>',
    ]
    parts += [f'<circle class="open" cx="{x(a):.1f}" cy="{y(b):.1f}" r="4.5"/>' for a, b in zip(opening, measured, strict=True)]
    parts += [f'<circle class="half" cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.6"/>' for a, b in zip(half, measured, strict=True)]
    told = lambda found: f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"  # noqa: E731
    row = f"| {rate:g} | {told(exact.correlation)} | {told(exact.slope)} | {told(first.correlation)} | {told(first.slope)} |"
    return "\n".join(parts), row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/ledger.svg"))
    options = parser.parse_args()
    made = [panel(path, at) for at, path in enumerate(options.runs)]
    width, height = LEFT + len(made) * (SIDE + GAP + LEFT - 20), TOP + SIDE + 46
    key = f'<text x="{LEFT}" y="{height - 6}">measured change, nats, upwards. Dots: gradient half-way along the update. Rings: at the opening weights.</text>'
    body = "\n".join(picture for picture, _ in made)
    label = "Measured against predicted change of entropy at several learning rates"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{label}"><style>{STYLE}</style>'
    write_text_atomic(options.out, f"{head}\n{body}\n{key}\n</svg>\n")
    print("| learning rate | half-way: correlation | slope | opening: correlation | slope |\n|---|---|---|---|---|")
    print("\n".join(row for _, row in made))


if __name__ == "__main__":
    main()
