"""The Neural Turing Machine: a readable model and a fast path that computes the same."""

from ntm.backend import Backend, BackendError
from ntm.ntm import FREE, NTM, Costs, NTMState

__all__ = ["FREE", "NTM", "Backend", "BackendError", "Costs", "NTMState"]
