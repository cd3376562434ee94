"""Numbers from tensors. Pure functions: no model, no input or output, no state.

What most people come for stands here; each module has more:

tokens        per-token signals of a language model, from hidden states and the LM head or from logits
distribution  entropies and divergences of finite distributions; `tilting`, `temperature`, `dirichlet`, `scoring` build on it
counts, nsb   entropy from few draws: point estimates, and a posterior with an interval; `symbols`: information between symbol sequences
answers       answer and semantic entropy, pass@k, maj@k, support; `sequences`: uncertainty of whole responses
level         token -> window -> segment -> turn -> response -> group; normalisers; summaries of an entropy vector
attention     entropy of every row of attention, streamed; `attention_ceilings`: what it can be compared with
spectrum      effective rank, RankMe, alpha-ReQ, LiDAR, von Neumann entropy, conditioning; `diffusion`, `koopman`
codes         sparse codes, activation codes; `sparsity`: activation sparsity
samples       entropy and mutual information from samples
"""

from isentrope.measure.answers import answer_entropy, maj_at_k, pass_at_k, semantic_entropy, support
from isentrope.measure.attention import attention_entropy, visible_keys
from isentrope.measure.counts import count_entropy
from isentrope.measure.diffusion import diffusion_entropy, diffusion_information
from isentrope.measure.distribution import cross_entropy, f_divergence, jeffreys, js, kl, min_entropy, renyi, reverse_kl, shannon, tsallis, varentropy
from isentrope.measure.nsb import nsb_entropy
from isentrope.measure.samples import knn_entropy, ksg_mutual_information
from isentrope.measure.spectrum import StreamingCovariance, alpha_req, effective_rank, rankme, spectral_entropy, von_neumann_entropy
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
    "Discriminant", "Entropy", "ExpectedDiscriminant", "InNucleus", "LogProb", "MaxProb", "MeanLogit", "NucleusEntropy", "Rank", "Signal",
    "StreamingCovariance", "SumSquares", "TargetProb", "TopKEntropy", "TopKTail", "Varentropy", "alpha_req", "answer_entropy", "attention_entropy",
    "count_entropy", "cross_entropy", "diffusion_entropy", "diffusion_information", "effective_rank", "f_divergence", "jeffreys", "js", "kl",
    "knn_entropy", "ksg_mutual_information", "maj_at_k", "min_entropy", "nsb_entropy", "pass_at_k", "rankme", "renyi", "reverse_kl", "semantic_entropy",
    "shannon", "spectral_entropy", "support", "token_signals", "token_signals_from_logits", "tsallis", "varentropy", "visible_keys",
    "von_neumann_entropy",
]  # fmt: skip
