"""The page's colours, by role, for a light and a dark page.

Roles, not hues, are named: what the model learned is blue, entropy is orange wherever it stands, and the two signs of an
advantage (or of a weight's distance from 1) are a sea blue and a crimson that stay apart for every kind of colour vision.
The test beside this file holds contrasts and distances to numbers.
"""

LIGHT = {
    "paper": "#fbfbf9", "card": "#ffffff", "sunk": "#f3f3ef", "ink": "#16191d", "muted": "#586069", "rule": "#e2e3de", "grid": "#e9eae6",
    "learn": "#1b5cc0", "learn-1": "#123f8c", "learn-2": "#2a68c8", "learn-3": "#4f8ada", "learn-4": "#74a5e4", "learn-5": "#93bbec",
    "entropy": "#b8500c", "entropy-1": "#e0a069", "entropy-2": "#c8671f", "entropy-3": "#7d3304",
    "plus": "#00759e", "minus": "#b3273f", "middle": "#b9bdc2",
    "warn": "#8a5a00", "bad": "#b3261e", "good": "#1b6e3c",
}  # fmt: skip

DARK = {
    "paper": "#0f1215", "card": "#161a1f", "sunk": "#1c2127", "ink": "#e8eaed", "muted": "#9ba5b0", "rule": "#2a3138", "grid": "#242a31",
    "learn": "#78a9ff", "learn-1": "#b5d0ff", "learn-2": "#8ab4ff", "learn-3": "#6698ec", "learn-4": "#4d7fd2", "learn-5": "#406cb4",
    "entropy": "#f5963f", "entropy-1": "#a65f25", "entropy-2": "#e58a3a", "entropy-3": "#ffd0a1",
    "plus": "#4cc3ea", "minus": "#ff7a8a", "middle": "#59626c",
    "warn": "#f0bf5a", "bad": "#ff8a80", "good": "#6fd39a",
}  # fmt: skip


TINT = {"light": 0.55, "dark": 0.42}
"""How much of its colour the ground of a token takes at most: words on it stay readable."""


def css() -> str:
    """Both palettes as custom properties: the system's choice, and the reader's (`data-theme` on the root) above it."""
    light, dark = _declarations(LIGHT | {"tint": str(TINT["light"])}), _declarations(DARK | {"tint": str(TINT["dark"])})
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media (prefers-color-scheme: dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}\n"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}\n"
    )


def _declarations(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())
