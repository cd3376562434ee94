"""One run of a comparison, done by a worker: `python -m isentrope.lab.work DIR`, with DIR/config.yaml as the driver wrote it.

The run is the library's own `train.run`. A worker starts it, goes on with it from its newest checkpoint, or starts it again if it had
none. It ends when its driver does: its standard input is a pipe from the driver, and at the end of that it exits at once, so that no
orphan holds a directory that a resumed driver needs. When the run is done, its checkpoints and weights go (keep=True leaves them): a
comparison needs the tape, and 150 runs would fill a disk.
"""

import os
import shutil
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path

from isentrope.errors import UserError

SUMMARY = "summary.json"
ASKED = "asked.yaml"
KEEP = "--keep-models"
PATIENCE = 60.0
"""Seconds to wait for a directory that a dying worker of a killed driver still holds."""


def work(directory: Path, *, keep: bool = False) -> None:
    """Makes the run in `directory` finished; does nothing if it is. Raises what the run raises."""
    if (directory / SUMMARY).is_file():
        return
    from isentrope import config as configuration
    from isentrope.train.run import MARK, run

    asked = configuration.load(asked_file(directory), out=str(directory))
    until = time.monotonic() + PATIENCE
    while True:
        try:
            if (directory / MARK).is_file():
                run(asked, resume=directory)
            else:
                shutil.rmtree(directory, ignore_errors=True)  # killed before it began
                run(asked)
            break
        except UserError as error:
            if "is in use" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.5)
    if not keep:
        for name in ("checkpoints", "model"):
            shutil.rmtree(directory / name, ignore_errors=True)


def asked_file(directory: Path) -> Path:
    """Where the driver writes the configuration of the run in `directory`: beside it, because a run begins in an empty one."""
    return directory.with_name(f"{directory.name}.{ASKED}")


def ends_with_its_driver() -> None:
    """From now on this process exits as soon as its standard input does."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


def attempt(directory: Path, *, keep: bool = False) -> int:
    """`work`, told as an exit code: 0 done, 2 the user's input, 1 all else; the reason is then the last line of the error stream."""
    from isentrope.cli import _quiet

    _quiet()
    warnings.simplefilter("default")
    try:
        work(directory, keep=keep)
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        return 2
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1
    return 0


def main() -> int:
    ends_with_its_driver()
    return attempt(Path(sys.argv[1]), keep=KEEP in sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
