"""Pictures and pages: `build` turns a run directory into one self-contained HTML file."""

from isentrope.report.page import build

__all__ = ["build"]
