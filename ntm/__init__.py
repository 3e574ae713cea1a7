"""The Neural Turing Machine: a reference model and a fused path that computes the same."""

from ntm.backend import Backend, BackendError
from ntm.baseline import LSTMBaseline
from ntm.ntm import NTM
from ntm.state import NTMState

__all__ = ["NTM", "Backend", "BackendError", "LSTMBaseline", "NTMState"]
