"""Imported once by the server that forks the runs: the libraries, and the compiled fused path."""

import torch

import train  # noqa: F401
from experiment.backend import start_backend, use_widest_vectors
from ntm import NTM

use_widest_vectors()
torch.set_num_threads(1)  # threads do not survive a fork
model = NTM(5, 3, 8, 12, 6)
start_backend(model, training=True)
torch.optim.AdamW(model.parameters())  # imports a second's worth of torch
