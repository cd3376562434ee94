"""This installation against recorded outputs of the official implementations: `isentrope verify DIR`.

A number b passes against the recorded a if |a - b| <= tolerance (1 + |a|); every recorded output of a case must be produced. Nothing
is compared with a copy: the adapters call the functions that training calls.
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from isentrope.errors import UserError
from isentrope.verify.cases import Case, Compared, Outputs, Unreadable, adapter_of, answers, largest_error, read_case, split_name

__all__ = ["Case", "CaseResult", "Compared", "Outputs", "Unreadable", "answers", "summary", "table", "verify"]

for _module in pkgutil.iter_modules(__path__):  # an adapter is registered by existing
    if _module.name != "cases" and not _module.name.endswith("_test"):
        importlib.import_module(f"{__name__}.{_module.name}")


@dataclass(frozen=True)
class CaseResult:
    """The verdict on one file. `error` is the largest |a - b| / (1 + |a|) over all outputs, None if nothing could be compared."""

    slug: str
    case: str
    error: float | None
    tolerance: float | None
    reason: str | None = None  # why it failed

    @property
    def passed(self) -> bool:
        return self.reason is None


def verify(
    directory: str | Path, slugs: Sequence[str] | None = None, *, show: Callable[[str], object] | None = None
) -> list[CaseResult]:
    """Checks every `slug__case.npz` in the directory, or those of the slugs, in order of name.

    show: is given one line per case as it is checked and at last `N passed, N failed`.

    Raises UserError if the directory is missing or holds no case, or no case of a slug that was asked for.
    """
    directory = Path(directory)
    paths = _paths(directory, slugs)
    results = []
    width = max(len(f"{slug}  {name}") for slug, name in map(split_name, paths))
    for path in paths:
        result = check(path)
        results.append(result)
        if show is not None:
            show(row(result, width))
    if show is not None:
        show(summary(results))
    return results


def check(path: Path) -> CaseResult:
    """The verdict on one file; nothing that the file holds or the adapter does raises."""
    slug, name = split_name(path)
    try:
        case = read_case(path)
    except (Unreadable, OSError) as error:
        return CaseResult(slug, name, None, None, str(error))
    adapter = adapter_of(slug, name)
    if adapter is None:
        return CaseResult(slug, name, None, case.tolerance, "not implemented")
    try:
        produced = adapter(case)
    except Unreadable as error:
        return CaseResult(slug, name, None, case.tolerance, str(error))
    except NotImplementedError as error:
        return CaseResult(slug, name, None, case.tolerance, f"not implemented: {error}")
    except Exception as error:
        return CaseResult(slug, name, None, case.tolerance, f"{type(error).__name__}: {error}")
    return compare(case, produced)


def compare(case: Case, produced: Outputs) -> CaseResult:
    """The recorded outputs against the produced ones."""
    errors: dict[str, float] = {}
    for key, recorded in case.outputs.items():
        if key not in produced:
            return CaseResult(case.slug, case.name, None, case.tolerance, f"out_{key} is not produced")
        try:
            errors[key] = largest_error(recorded, produced[key])
        except ValueError as error:
            return CaseResult(case.slug, case.name, None, case.tolerance, f"out_{key} {error}")
    worst = max(errors, key=errors.__getitem__)
    wrong = [key for key, error in errors.items() if not error <= case.tolerance]
    reason = None if not wrong else f"out_{worst} differs" if len(wrong) == 1 else f"out_{worst} and {len(wrong) - 1} more differ"
    return CaseResult(case.slug, case.name, errors[worst], case.tolerance, reason)


def row(result: CaseResult, width: int = 0) -> str:
    """`slug  case  largest error  tolerance  PASS|FAIL(reason)` on one line."""
    verdict = "PASS" if result.reason is None else f"FAIL({' '.join(result.reason.split())})"
    numbers = ("-" if value is None else f"{value:.2g}" for value in (result.error, result.tolerance))
    error, tolerance = numbers
    return f"{result.slug + '  ' + result.case:<{width}}  {error:>8}  {tolerance:>7}  {verdict}"


def summary(results: Sequence[CaseResult]) -> str:
    """`N passed, N failed`."""
    passed = sum(result.passed for result in results)
    return f"{passed} passed, {len(results) - passed} failed"


def table(results: Sequence[CaseResult]) -> str:
    """All rows and the summary as text."""
    width = max((len(f"{result.slug}  {result.case}") for result in results), default=0)
    return "\n".join([*(row(result, width) for result in results), summary(results)])


def _paths(directory: Path, slugs: Sequence[str] | None) -> list[Path]:
    if not directory.is_dir():
        raise UserError(f"verify: {directory} is not a directory. It must hold recorded cases, files named slug__case.npz.")
    paths = sorted(directory.glob("*.npz"), key=split_name)
    if not paths:
        raise UserError(f"verify: {directory} holds no recorded case (slug__case.npz).")
    if slugs is None:
        return paths
    present = sorted({split_name(path)[0] for path in paths})
    if missing := [slug for slug in slugs if slug not in present]:
        raise UserError(f"verify: no case of {', '.join(missing)} in {directory}. Slugs there: {', '.join(present)}.")
    return [path for path in paths if split_name(path)[0] in slugs]
