"""The fused path: a whole unroll of the NTM, forward and hand-derived backward, as one call on the CPU.

A time step of the reference model (ntm/ntm.py) is about sixty small PyTorch operations, and starting them takes longer
than their arithmetic. Here a step is plain loops, compiled by Numba, around BLAS matrix products. That model is the
definition; this folder computes the same numbers, and the tests hold one against the other. Its README has a map.
"""

from ntm.fused.adamw import FusedAdamW
from ntm.fused.function import forward_backward, unroll
from ntm.fused.runtime import use_threads

__all__ = ["FusedAdamW", "forward_backward", "unroll", "use_threads"]
