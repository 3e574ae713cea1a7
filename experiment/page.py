"""A page of its own for a browser, with a trained model inside: one types bits and watches the heads move."""

import base64
import json
from pathlib import Path

from experiment.checkpoint import write_atomically
from experiment.configuration import Configuration
from ntm import NTM, addressing, memory

TEMPLATE = Path(__file__).with_name("page.html")
PLACE = "/*SPEC*/null"  # where the template takes the model


def page(model: NTM, configuration: Configuration) -> str:
    """Make the page: the template, with the model's sizes and weights (float32, base64) in it."""
    weights = {name: tensor.detach().cpu().float() for name, tensor in model.state_dict().items()}
    network, data = configuration.network, configuration.data
    spec = {
        "name": configuration.name,
        "bits": data.task.seq_width,
        "trained": [data.low.seq_len, data.high.seq_len],
        "width": network.memory_unit_size,
        "cells": network.controller_size,
        "heads": network.num_heads,
        "initial_value": memory.INITIAL_VALUE,
        "norm_epsilon": addressing.NORM_EPSILON,
        "log_epsilon": addressing.LOG_EPSILON,
        "weights": [[name, tensor.numel()] for name, tensor in weights.items()],
        "data": base64.b64encode(b"".join(t.numpy().astype("<f4").tobytes() for t in weights.values())).decode(),
    }
    return TEMPLATE.read_text(encoding="utf-8").replace(PLACE, json.dumps(spec))


def write_page(model: NTM, configuration: Configuration, path: Path) -> None:
    """Write the page, a single file that needs no network."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page(model, configuration).encode())
