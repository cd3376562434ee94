"""Numbers from tensors. Pure functions: no model, no input or output, no state."""

from isentrope.measure.tokens import (
    Discriminant,
    Entropy,
    ExpectedDiscriminant,
    InNucleus,
    LogProb,
    MaxProb,
    MeanLogit,
    NucleusEntropy,
    Rank,
    Signal,
    SumSquares,
    TargetProb,
    TopKEntropy,
    TopKTail,
    Varentropy,
    token_signals,
    token_signals_from_logits,
)  # fmt: skip

__all__ = [
    "Discriminant", "Entropy", "ExpectedDiscriminant", "InNucleus", "LogProb", "MaxProb", "MeanLogit", "NucleusEntropy", "Rank", "Signal", "SumSquares",
    "TargetProb", "TopKEntropy", "TopKTail", "Varentropy", "token_signals", "token_signals_from_logits",
]  # fmt: skip
