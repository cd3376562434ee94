"""Numbers from tensors. Pure functions: no model, no input or output, no state."""

from isentrope.measure.tokens import (
    Discriminant,
    Entropy,
    ExpectedDiscriminant,
    LogProb,
    MaxProb,
    MeanLogit,
    NucleusEntropy,
    Rank,
    Signal,
    SumSquares,
    TargetProb,
    Varentropy,
    token_signals,
    token_signals_from_logits,
)  # fmt: skip

__all__ = [
    "Discriminant", "Entropy", "ExpectedDiscriminant", "LogProb", "MaxProb", "MeanLogit", "NucleusEntropy", "Rank", "Signal", "SumSquares", "TargetProb",
    "Varentropy", "token_signals", "token_signals_from_logits",
]  # fmt: skip
