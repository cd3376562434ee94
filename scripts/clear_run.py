"""Removes a run directory of ours so that a demo can be made again; anything else is left and refused.

    python scripts/clear_run.py runs/demo
"""

import shutil
import sys
from pathlib import Path


def main() -> int:
    directory = Path(sys.argv[1])
    if not directory.exists() or not any(directory.iterdir()):
        return 0
    if not ((directory / "run.json").is_file() or set(directory.iterdir()) == {directory / "config.yaml"}):
        print(f"{directory} is not empty and holds no run of isentrope; move it away first.", file=sys.stderr)
        return 2
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
