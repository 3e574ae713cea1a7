"""The memory matrix M_t: N rows of width M, read and written as a whole (Graves et al. 2014, sections 3.1 and 3.2)."""

from torch import Tensor

# Every element of a blank memory. A small constant, so that no parameter depends on N (Collier & Beel 2018).
INITIAL_VALUE = 1e-6


def initial_memory(batch_size: int, memory_units: int, memory_unit_size: int, like: Tensor) -> Tensor:
    """Make M_0, every element at `INITIAL_VALUE`: (B, N, M), of the dtype and on the device of `like`."""
    return like.new_full((1, 1, 1), INITIAL_VALUE).expand(batch_size, memory_units, memory_unit_size)


def read(memory: Tensor, weighting: Tensor) -> Tensor:
    """Read a blend of rows (eq. 2): `r_t = sum_i w_t(i) M_{t-1}(i)`.

    The paper writes M_t, and leaves open whether a head reads before others write; here it does.

    Args:
        memory: (B, N, M).
        weighting: the read heads' w_t, (B, R, N).

    Returns:
        r_t, (B, R, M).
    """
    return weighting @ memory


def write(memory: Tensor, weighting: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """Erase, then add (eq. 3 and 4): `M_t(i) = M_{t-1}(i) prod_h (1 - w_h(i) e_h) + sum_h w_h(i) a_h`.

    Args:
        memory: M_{t-1}, (B, N, M).
        weighting: the write heads' w_t, (B, W, N).
        erase: e_t in (0, 1), (B, W, M).
        add: a_t, (B, W, M).

    Returns:
        M_t, (B, N, M).
    """
    keep = (1 - weighting.unsqueeze(-1) * erase.unsqueeze(-2)).prod(dim=1)  # over heads: (B, W, N, M) -> (B, N, M)
    return memory * keep + weighting.transpose(1, 2) @ add
