"""The Neural Turing Machine: a readable model and a fast path that computes the same."""

from ntm.backend import Backend, BackendError
from ntm.baseline import LSTMBaseline
from ntm.ntm import NTM
from ntm.state import NTMState

__all__ = ["NTM", "Backend", "BackendError", "LSTMBaseline", "NTMState"]
