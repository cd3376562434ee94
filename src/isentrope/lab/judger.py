"""The Entropy Judger: from entropies of what was written to the chance that its answer is right, and the best of k answers by it.

Source: arXiv 2602.04234 (sheet `multi-agent-entropy`, H and I). The mean of two classifiers of boosted trees (100 trees, learning rate 0.1, depth 6, seed
42); scikit-learn's two stand in for the two libraries of the released code. A missing feature takes the median of its column in the training data.
Questions are never split between training and test: the same question appears under every run.

Selecting needs no label, judging a selection does:

    best of k       the run with the largest p among the first k of a question
    early stop      the first run with p >= threshold, the last if there is none
    plurality       the most frequent answer of the first k, ties drawn by the seed (the released code asks instead whether more than half of them are
                    CORRECT, which is no vote)
    mean, oracle    the share of right ones among the first k, and whether there is one
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isentrope.errors import UserError

SEED = 42
Row = Mapping[str, float]


@dataclass
class EntropyJudger:
    """Learns P(right) from rows of features (`isentrope.measure.agents.question_features`); `fit`, then `chance`.

    Raises UserError for rows of which all or none are right, or without a feature.
    """

    trees: int = 100
    learning_rate: float = 0.1
    depth: int = 6
    names: tuple[str, ...] = ()
    _median: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    _models: tuple[Any, ...] = field(default=(), repr=False)

    def fit(self, rows: Sequence[Row], right: Sequence[bool]) -> "EntropyJudger":
        """Features that are NaN or missing in every row are left out."""
        from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier

        if len(rows) != len(right) or len(set(map(bool, right))) < 2:
            raise UserError(f"judger: {sum(map(bool, right))} of {len(right)} answers to {len(rows)} rows are right; to learn, some must be and some not.")
        named = sorted({name for row in rows for name in row})
        table = _table(rows, named)
        known = np.atleast_1d(np.isfinite(table).any(axis=0))
        if not known.any():
            raise UserError("judger: no row has a feature that is a number.")
        self.names = tuple(name for name, there in zip(named, known.tolist(), strict=True) if there)
        self._median = np.nanmedian(np.where(np.isfinite(table[:, known]), table[:, known], np.nan), axis=0)
        filled, labels = self._filled(table[:, known]), np.asarray(right, dtype=bool)
        common = {"learning_rate": self.learning_rate, "max_depth": self.depth, "random_state": SEED}
        one = GradientBoostingClassifier(n_estimators=self.trees, **common)
        whole: Any = False  # scikit-learn's stub knows "auto" alone
        other = HistGradientBoostingClassifier(max_iter=self.trees, early_stopping=whole, **common)
        self._models = (one.fit(filled, labels), other.fit(filled, labels))
        return self

    def chance(self, rows: Sequence[Row]) -> np.ndarray:
        """[row] the chance that each answer is right. Raises UserError before `fit`."""
        if not self._models:
            raise UserError("judger: it has not learned from anything yet. Call fit first.")
        filled = self._filled(_table(rows, self.names))
        return np.mean([model.predict_proba(filled)[:, 1] for model in self._models], axis=0)

    def _filled(self, table: np.ndarray) -> np.ndarray:
        return np.where(np.isfinite(table), table, self._median)


def judged(rows: Sequence[Row], right: Sequence[bool], question: Sequence[Hashable], *, folds: int = 5) -> np.ndarray:
    """[row] the chance of every answer by a judger that has seen none of its question's (grouped k-fold).

    Raises UserError for fewer questions than folds, or a fold that leaves only right or only wrong answers.
    """
    from sklearn.model_selection import GroupKFold

    keys = {key: at for at, key in enumerate(dict.fromkeys(question))}
    if len(keys) < folds:
        raise UserError(f"judger: {folds} folds need at least as many questions. Got {len(keys)}.")
    groups, labels, found = np.array([keys[key] for key in question]), np.asarray(right, dtype=bool), np.zeros(len(rows))
    for train, test in GroupKFold(folds).split(groups, labels, groups):
        judger = EntropyJudger().fit([rows[at] for at in train], labels[train].tolist())
        found[test] = judger.chance([rows[at] for at in test])
    return found


# --- choosing among the first k runs of every question: tables are [question, run]


def best_of(chance: np.ndarray, right: np.ndarray, k: int) -> float:
    """Accuracy of the run with the largest chance among the first k; the first of equals."""
    first = _first(chance, k)
    return float(right[np.arange(len(right)), first.argmax(axis=1)].mean())


def early_stop(chance: np.ndarray, right: np.ndarray, threshold: float) -> tuple[float, float]:
    """(accuracy, mean number of runs used) of the first run with a chance of at least `threshold`, the last where there is none."""
    enough = chance >= threshold
    stop = np.where(enough.any(axis=1), enough.argmax(axis=1), chance.shape[1] - 1)
    return float(right[np.arange(len(right)), stop].mean()), float((stop + 1).mean())


def plurality(answers: Sequence[Sequence[Hashable]], right: np.ndarray, k: int, *, seed: int = SEED) -> float:
    """Accuracy of the most frequent of the first k answers; None counts as no vote, and ties are drawn."""
    generator, score = np.random.default_rng(seed), 0.0
    for row, said in enumerate(answers):
        votes = Counter(answer for answer in said[:k] if answer is not None)
        if votes:
            most = max(votes.values())
            tied = [answer for answer, count in votes.items() if count == most]
            chosen = tied[int(generator.integers(len(tied)))]
            score += bool(right[row, list(said).index(chosen)])
    return score / max(len(answers), 1)


def mean_of(right: np.ndarray, k: int) -> float:
    """Share of right ones among the first k."""
    return float(_first(right, k).mean())


def oracle(right: np.ndarray, k: int) -> float:
    """Share of questions with a right one among the first k."""
    return float(_first(right, k).any(axis=1).mean())


def within(chance: np.ndarray, right: np.ndarray) -> float:
    """AUROC among the runs of one question, averaged over all its pairs of a right and a wrong one (ties count a half); NaN without such a pair.

    What a judger knows beyond which questions are easy.
    """
    wins, pairs = 0.0, 0
    for score, label in zip(chance, right.astype(bool), strict=True):
        gap = score[label][:, None] - score[~label][None, :]
        wins += float((gap > 0).sum() + 0.5 * (gap == 0).sum())
        pairs += gap.size
    return wins / pairs if pairs else float("nan")


def _first(table: np.ndarray, k: int) -> np.ndarray:
    if not 1 <= k <= table.shape[1]:
        raise UserError(f"judger: k must be between 1 and the {table.shape[1]} runs of a question. Got {k}.")
    return table[:, :k]


def _table(rows: Sequence[Row], names: Sequence[str]) -> np.ndarray:
    return np.array([[float(row.get(name, np.nan)) for name in names] for row in rows], dtype=float).reshape(len(rows), len(names))
