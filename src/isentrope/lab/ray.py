"""Runs on Ray, one a task: a local instance of `ray.init`, or a cluster by its address. Needs the extra `[ray]`.

On a cluster every machine must see the comparison's directory under the same path. A task's process serves one run only
(`max_calls=1`), so no run inherits another's state, and Ray itself starts no second try: what is half done when a worker dies is the
driver's to submit again, from its checkpoint. When a driver dies Ray ends its tasks.
"""

import os
import sys
from pathlib import Path
from typing import Any

from isentrope.errors import UserError
from isentrope.lab.pool import THREADS, Ended, last_line, log_of

ATTEMPTS = 4
"""How often a Ray of this machine is asked to start."""


class Ray:
    """workers: runs at a time on a local instance (default: Ray's count of cores). address: a cluster's; its cores count then.

    Raises ImportError without ray, UserError if the cluster cannot be reached or a local one does not start.
    """

    def __init__(self, workers: int | None = None, address: str | None = None):
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default, and no warning about it
        import ray

        self._ray: Any = ray
        _begin(ray, workers, address)
        self.slots = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._remote = ray.remote(num_cpus=1, max_calls=1, max_retries=0)(_task)
        self._running: dict[Any, tuple[str, Path]] = {}

    def submit(self, key: str, directory: Path, *, keep: bool) -> None:
        log_of(directory).parent.mkdir(parents=True, exist_ok=True)
        self._running[self._remote.remote(str(directory.resolve()), keep)] = (key, log_of(directory))

    def wait(self, seconds: float) -> list[Ended]:
        """The runs that have ended, as soon as there is one; none after `seconds`."""
        if not self._running:
            return []
        ended, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        return [self._ended(reference) for reference in ended]

    def _ended(self, reference: Any) -> Ended:
        key, log = self._running.pop(reference)
        try:
            reason: str | None = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return Ended(key, f"its worker died: {' '.join(str(error).split())[:300]}", killed=True)
        return Ended(key) if reason is None else Ended(key, last_line(log) or reason)

    def close(self) -> None:
        """Ends the tasks that still run; their runs go on from their checkpoints another time."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running = {}
        self._ray.shutdown()


def _begin(ray: Any, workers: int | None, address: str | None) -> None:
    """ray.init, more than once for a local instance: on a busy machine its processes may take longer than the 30 s that Ray gives them."""
    local = {"num_cpus": workers, "include_dashboard": False} if address is None else {}
    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(address=address or "local", log_to_driver=False, configure_logging=False, **local)
            return
        except Exception as error:  # Ray raises it bare when a start takes too long
            ray.shutdown()
            if address is not None or attempt == ATTEMPTS:
                where = f"no Ray at {address!r}" if address is not None else f"Ray did not start here in {ATTEMPTS} attempts"
                way_out = (
                    "Leave --address out for one on this machine."
                    if address is not None
                    else "Try again when the machine is less busy, or take --launcher local."
                )
                raise UserError(f"compare: {where}: {' '.join(str(error).split())[:300]} {way_out}") from error


def _task(directory: str, keep: bool) -> str | None:
    """In a process of Ray's: makes the run finished. Returns the reason if it fails."""
    os.environ.update(THREADS)  # before torch is imported, which reads them then
    log = os.open(log_of(Path(directory)), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    from isentrope.lab.work import attempt

    code = attempt(Path(directory), keep=keep)
    sys.stdout.flush()
    return None if code == 0 else f"ended with code {code}"
