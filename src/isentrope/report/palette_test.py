"""Contrasts (WCAG 2.2) and distances under simulated colour vision, on both pages."""

import numpy as np
import pytest

from isentrope.report.palette import DARK, LIGHT, TINT, css

THEMES = {"light": LIGHT, "dark": DARK}
# Linear-RGB simulation of full dichromacy: Machado, Oliveira, Fernandes 2009, table 1, severity 1.0.
VISION = {
    "full": np.eye(3),
    "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritan": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}


def linear(colour: str) -> np.ndarray:
    value = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    high, low = sorted((float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def lab(colour: str, vision: str) -> np.ndarray:
    """OKLab, on which a distance of 0.02 is just noticeable."""
    rgb = np.clip(VISION[vision] @ linear(colour), 0, 1)
    to_cone = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566], [0.0883024619, 0.2817188376, 0.6299787005]])
    to_lab = np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099], [0.0259040371, 0.7827717662, -0.8086757660]])
    return to_lab @ np.cbrt(to_cone @ rgb)


def distance(one: str, other: str, vision: str) -> float:
    return float(np.linalg.norm(lab(one, vision) - lab(other, vision)))


@pytest.mark.parametrize("theme", THEMES)
def test_text_is_readable_on_every_ground(theme):
    colours = THEMES[theme]
    for text in ("ink", "muted", "warn", "bad", "good", "learn", "entropy"):
        for ground in ("paper", "card", "sunk"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


@pytest.mark.parametrize("theme", THEMES)
def test_lines_that_carry_meaning_stand_out(theme):
    colours = THEMES[theme]
    for line in ("learn", "learn-1", "learn-2", "learn-3", "entropy", "entropy-2", "entropy-3", "plus", "minus"):
        assert contrast(colours[line], colours["card"]) >= 3, line


@pytest.mark.parametrize("theme", THEMES)
def test_words_on_the_deepest_tint_are_readable(theme):
    colours, depth = THEMES[theme], TINT[theme]
    for role in ("entropy", "learn", "plus", "minus"):
        parts = [(int(colours[role][at : at + 2], 16), int(colours["card"][at : at + 2], 16)) for at in (1, 3, 5)]
        ground = "#" + "".join(f"{round(depth * top + (1 - depth) * under):02x}" for top, under in parts)
        assert contrast(colours["ink"], ground) >= 4.5, (role, contrast(colours["ink"], ground))


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", THEMES)
def test_pairs_that_oppose_each_other_stay_apart(theme, vision):
    colours = THEMES[theme]
    for one, other in (("plus", "minus"), ("learn", "entropy"), ("plus", "middle"), ("minus", "middle")):
        assert distance(colours[one], colours[other], vision) >= 0.08, (one, other)


@pytest.mark.parametrize("theme", THEMES)
def test_ramps_go_one_way(theme):
    for stem, count in (("learn", 5), ("entropy", 3)):
        lightness = [lab(THEMES[theme][f"{stem}-{step}"], "full")[0] for step in range(1, count + 1)]
        change = np.diff(lightness)
        assert (change > 0.03).all() or (change < -0.03).all(), (stem, lightness)


def test_both_palettes_have_the_same_roles_and_reach_the_page():
    assert LIGHT.keys() == DARK.keys()
    sheet = css()
    assert all(sheet.count(f"--{name}:") == 3 for name in LIGHT)
