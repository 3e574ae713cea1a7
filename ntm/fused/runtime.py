"""Threads, and memory that is used again."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from ntm.fused.blas import set_blas_threads
from ntm.fused.layout import align_up

MAX_SPARE_BYTES = 2**26  # of buffers that wait to be used again

_spare_buffers: list[np.ndarray] = []  # fresh memory costs page faults


class Workspace:
    """Flat arrays with anything in them, each at the beginning of a cache line.

    Keep this for as long as its arrays are used: when it goes, the next workspace takes their memory.

    Args:
        lengths: of the arrays.
        dtype: the type of their numbers.
    """

    def __init__(self, lengths: list[int], dtype: np.dtype) -> None:
        starts = [0, *accumulate(map(align_up, lengths))]
        self.memory = borrow_buffer(starts[-1] * dtype.itemsize)
        numbers = self.memory[: starts[-1] * dtype.itemsize].view(dtype)
        self.arrays = [numbers[start : start + length] for start, length in zip(starts, lengths, strict=False)]

    # Defaults, since module globals may be gone when the interpreter shuts down.
    def __del__(self, spare=_spare_buffers, most=MAX_SPARE_BYTES) -> None:
        if self.memory.nbytes <= most:
            spare.append(self.memory)
            while sum(memory.nbytes for memory in spare) > most:
                del spare[:1]


def borrow_buffer(needed: int) -> np.ndarray:
    """The last returned buffer that has at least so many bytes, else a new one; 64-byte aligned."""
    for i in range(len(_spare_buffers) - 1, -1, -1):
        try:
            if _spare_buffers[i].nbytes >= needed:
                memory = _spare_buffers.pop(i)
                if memory.nbytes >= needed:  # else another thread took what was there
                    return memory
        except IndexError:  # another thread took it
            continue
    memory = np.empty(needed + 64, np.uint8)
    return memory[-memory.ctypes.data % 64 :]


class ComputeMode:
    """While it lasts, BLAS uses one thread, and denormal numbers are taken for 0 in this thread.

    Weightings and their gradients fade to such numbers everywhere, and arithmetic on them is many times slower.
    """

    TINY = np.array(1e-40, np.float32)

    def __enter__(self) -> None:
        self.before = bool(self.TINY * 1 == 0), set_blas_threads(1)
        torch.set_flush_denormal(True)

    def __exit__(self, *_) -> None:
        flushed, threads = self.before
        torch.set_flush_denormal(flushed)
        set_blas_threads(threads)


_threads: int | None = None
_pool: ThreadPoolExecutor | None = None


def use_threads(count: int | None = None) -> int:
    """Give the fused path threads of its own, as many as PyTorch had if not said otherwise, and PyTorch a single one.

    PyTorch's threads wait by spinning, on the cores that this path uses, and what else a training step does is too
    little to share out. Without this call, the fused path takes as many threads as PyTorch has; after it, a later
    `torch.set_num_threads` no longer matters to it.
    """
    global _threads
    _threads = count or _threads or torch.get_num_threads()
    torch.set_num_threads(1)
    return _threads


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forget_pool)  # threads do not survive one


def run_parallel(jobs: list[Callable[[], Any]]) -> list:
    """Call the jobs, in parallel where there are threads for that; results in order."""
    global _pool
    threads = min(_threads or torch.get_num_threads(), len(jobs))
    if threads < 2:
        with ComputeMode():
            return [job() for job in jobs]
    if _pool is None or _pool._max_workers < threads - 1:
        _pool = ThreadPoolExecutor(threads - 1)
    results, left = [None] * len(jobs), iter(range(len(jobs)))

    def worker() -> None:
        with ComputeMode():
            for i in left:
                results[i] = jobs[i]()

    others = [_pool.submit(worker) for _ in range(threads - 1)]
    try:
        worker()
    finally:
        wait(others)  # whatever happened: they write to buffers that would be handed on
    for other in others:
        other.result()
    return results
