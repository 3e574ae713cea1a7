"""A whole batch: arguments checked, shards handed to threads, and the unroll as PyTorch's autograd sees it."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from ntm.controller import LSTMState
from ntm.fused.layout import Sizes, State, reads_width, state_cells, transpose_weights, workspace_size
from ntm.fused.loss import LossArgs
from ntm.fused.runtime import Workspace, run_parallel
from ntm.fused.unroll import UnrollArgs, groups_backward, groups_forward, groups_forward_backward
from ntm.machine import TRANSPOSED, lie_in_flat, unpack_parameters
from ntm.shards import GROUP, WHOLE, Part, add_in_pairs, shards
from ntm.state import NTMState


def state_tensors(state: NTMState) -> State:
    """A state's tensors as a `State`, but with memory (B, N, M); empty, where the controller has no hidden and cell."""
    return State(*state[:3], *(state.controller or [state.memory.new_empty(1, 0)] * 2))


def swap_memory_axes(state: State) -> State:
    """A view of a state with [N][M] and [M][N] exchanged in its memory."""
    return state._replace(memory=state.memory.swapaxes(1, 2))


def contiguous(tensor: Tensor) -> np.ndarray:
    """A tensor's array, copied if it has gaps: compiled code takes none with gaps."""
    return np.ascontiguousarray(tensor.numpy())


def initial_state(weights: np.ndarray, sizes: Sizes, memory: np.ndarray) -> State:
    """The state before the first step, as `NTM.initial_state`, in NumPy: calls of PyTorch take five times as long.

    Args:
        weights: all parameters, packed: the learned initial state is their end.
        sizes: the machine's.
        memory: M_0, (B, M, N), or (1, M, N) for all sequences.
    """
    weighting = np.zeros((1, 2 * sizes.num_read_heads, memory.shape[2]), weights.dtype)
    weighting[:, :, 0] = 1
    cell_at = weights.size - state_cells(sizes)
    hidden_at = cell_at - state_cells(sizes)
    reads = weights[hidden_at - reads_width(sizes) : hidden_at].reshape(1, sizes.num_read_heads, sizes.width)
    return State(memory, weighting, reads, weights[None, hidden_at:cell_at], weights[None, cell_at:])


def packed_weights(parameters: list[Tensor], flat: Tensor | None) -> np.ndarray:
    """All parameters, which are `packed_parameters`, as one array: a view where they lie so, else a copy."""
    if flat is not None and lie_in_flat(parameters, flat):
        return flat.detach().numpy()
    arrays = [parameter.detach().numpy() for parameter in parameters]
    packed, at = np.empty(sum(array.size for array in arrays), np.result_type(*arrays)), 0
    for i, array in enumerate(arrays):  # as `pack_parameters`, without PyTorch, whose calls cost more than such copies
        array = array.T if i in TRANSPOSED else array
        packed[at : at + array.size].reshape(array.shape)[:] = array
        at += array.size
    return packed


def unpacked_gradients(parameters: list[Tensor], flat: np.ndarray) -> list[Tensor]:
    """Flat gradients in the shapes of the parameters; contiguous where the parameter is; may be views."""
    pieces = unpack_parameters(torch.from_numpy(flat), parameters)
    return [d.contiguous() if p.is_contiguous() else d for d, p in zip(pieces, parameters, strict=True)]


def make_unroll_args(
    weights: np.ndarray,
    sizes: Sizes,
    inputs: Tensor,
    initial: State,
    cell_mask: Tensor | None = None,
    blur_cost: float = 0.0,
) -> UnrollArgs:
    """Check the arguments of an unroll and make its `UnrollArgs`.

    Args:
        weights: all parameters, packed.
        sizes: the machine's.
        inputs: (T, B, input_size).
        initial: the initial state: arrays, each of B sequences or of one for all.
        cell_mask, blur_cost: as in `NTM.forward_backward`.

    Raises:
        TypeError: inputs, state and weights are not all of one floating-point type on the CPU; `cell_mask` is not bool.
        ValueError: state or `cell_mask` do not have the model's shapes, or there is a `cell_mask` but no cell.
    """
    (steps, batch, _), array, dtype = inputs.shape, contiguous(inputs), weights.dtype
    if any(x.dtype != dtype for x in (array, *initial)):
        raise TypeError(f"the fused path needs inputs and state in {dtype}, as the weights are")
    rows, heads = initial.memory.shape[2], 2 * sizes.num_read_heads
    cells = state_cells(sizes)
    shapes = [(heads, rows), (sizes.num_read_heads, sizes.width), (cells,), (cells,)]
    if [part.shape[1:] for part in initial] != [(sizes.width, rows), *shapes]:
        raise ValueError(f"this model takes a state of shapes {[(rows, sizes.width), *shapes]} a sequence")
    if not {len(part) for part in initial} <= {1, batch}:
        raise ValueError(f"this batch takes a state of {batch} sequences, or one for all")
    if cell_mask is not None and not sizes.lstm:
        raise ValueError("a feed-forward controller has no cells that could forget: leave cell_mask away")
    if cell_mask is not None and cell_mask.dtype != torch.bool:
        raise TypeError(f"cell_mask must be of type bool, not {cell_mask.dtype}: others take the reference path")
    if cell_mask is not None and cell_mask.shape != (steps, batch, sizes.cells):
        raise ValueError(f"cell_mask must be {(steps, batch, sizes.cells)}, not {tuple(cell_mask.shape)}")
    return UnrollArgs(
        inputs=array,
        cell_mask=np.empty((steps, batch, 0), bool) if cell_mask is None else contiguous(cell_mask),
        initial_state=initial,
        weights=weights,
        weights_transposed=weights[:0],
        sizes=sizes,
        blur_weight=dtype.type(blur_cost / (heads * max(1, batch * steps))),
        logits=np.empty((steps, batch, sizes.outputs), dtype),
    )


def make_sizes(parameters: list[Tensor]) -> Sizes:
    """Read a model's sizes off its `packed_parameters`."""
    gates, _, controls, _, output, _, reads, *hidden_and_cell = (parameter.shape for parameter in parameters)
    (num_read_heads, width), cells, lstm = reads, controls[1], bool(hidden_and_cell)
    inputs = gates[1] - num_read_heads * width - (cells if lstm else 0)
    return Sizes(inputs, num_read_heads, width, cells, output[0], lstm)


def make_loss_args(args: UnrollArgs, targets: Tensor, mask: Tensor) -> LossArgs:
    """Check targets and mask and make `LossArgs`.

    Raises:
        TypeError: targets or mask are of another type than the weights.
        ValueError: they do not fit the logits, or no step counts.
    """
    arrays, shape, dtype = (contiguous(targets), contiguous(mask)), args.logits.shape, args.logits.dtype
    if any(array.dtype != dtype for array in arrays):
        raise TypeError(f"the fused path needs targets and mask in {dtype}, as the weights are")
    if [array.shape for array in arrays] != [shape, shape[:2]]:
        raise ValueError(f"targets and mask must be {shape} and {shape[:2]}")
    counted = arrays[1].sum()
    if counted == 0:
        raise ValueError("no step counts: the mask is 0 everywhere")
    return LossArgs(*arrays, dtype.type(1 / (counted * shape[2])))


class Unroll(torch.autograd.Function):
    """An unroll as PyTorch sees it."""

    @staticmethod
    def forward(ctx, args, save_for_backward, *inputs_state_and_parameters):
        """Return logits and the final state's five tensors.

        Values are taken from `args`; the tensors are named so that autograd knows what to give gradients.
        """
        (steps, batch, _), rows, dtype = args.inputs.shape, args.initial_state.memory.shape[2], args.logits.dtype
        final = State(*(np.empty((batch, *part.shape[1:]), dtype) for part in args.initial_state))
        shard_ranges, slots = shards(batch), steps if save_for_backward else 1
        shard_sizes = [stop - first for first, stop in shard_ranges]
        lengths = [workspace_size(slots, min(GROUP, size), rows, args.sizes, True) for size in shard_sizes]
        # Groups that are kept at a time.
        counts = [size // min(GROUP, size) if save_for_backward else 1 for size in shard_sizes]
        workspace = Workspace([n * length for n, length in zip(counts, lengths, strict=True)], dtype)
        buffers = [array.reshape(-1, length) for array, length in zip(workspace.arrays, lengths, strict=True)]
        jobs = [
            partial(groups_forward, *shard, args, each, save_for_backward, final)
            for shard, each in zip(shard_ranges, buffers, strict=True)
        ]
        run_parallel(jobs)
        if save_for_backward:
            ctx.set_materialize_grads(False)  # None where nothing comes back, as it is for PyTorch's own operations
            parameters = inputs_state_and_parameters[1 + len(State._fields) :]
            ctx.save_for_backward(*parameters)  # PyTorch refuses backward where one was changed in place since
            ctx.args, ctx.workspace, ctx.shards = args, workspace, list(zip(shard_ranges, buffers, strict=True))
        return tuple(map(torch.from_numpy, (args.logits, *swap_memory_axes(final))))

    @staticmethod
    def backward(ctx, d_logits, d_memory, *d_others):
        """Return a gradient for each argument of `forward`; None where autograd would have none."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the fused path is not twice differentiable: leave create_graph away, or take Backend.REFERENCE"
            )
        parameters, args, needed, dtype = ctx.saved_tensors, ctx.args, ctx.needs_input_grad, ctx.args.logits.dtype
        (steps, batch, _), count = args.inputs.shape, args.weights.size
        given = [d_logits, None if d_memory is None else d_memory.swapaxes(1, 2), *d_others]
        shapes = [args.logits.shape, *((batch, *part.shape[1:]) for part in args.initial_state)]
        try:
            pairs = zip(given, shapes, strict=True)
            d_logits, *d_final = [np.zeros(shape, dtype) if d is None else contiguous(d) for d, shape in pairs]
        except RuntimeError as error:  # a batched tensor, which is no array
            raise RuntimeError("the fused path has no batched gradients: take Backend.REFERENCE") from error
        workspace = Workspace([count] * (1 + len(ctx.shards)), dtype)
        weights_transposed, *d_parts = workspace.arrays
        transpose_weights(args.weights, args.sizes, weights_transposed)
        args = args._replace(weights_transposed=weights_transposed)
        d_final, d_initial = State(*d_final), State(*(np.empty(shape, dtype) for shape in shapes[1:]))
        d_inputs = np.empty(args.inputs.shape if needed[2] else (0, 0, 0), dtype)
        jobs = [
            partial(groups_backward, *shard, args, buffers, d_logits, d_final, d_initial, d_inputs, d_part)
            for (shard, buffers), d_part in zip(ctx.shards, d_parts, strict=True)
        ]
        run_parallel(jobs)
        d_initial = swap_memory_axes(State(*map(torch.from_numpy, d_initial)))
        shared = (len(part) < batch for part in args.initial_state)
        d_initial = [d.sum(0, keepdim=True) if one else d for d, one in zip(d_initial, shared, strict=True)]
        d_weights = unpacked_gradients(parameters, add_in_pairs(d_parts or [np.zeros(count, dtype)]).copy())
        d_weights[6:] = [None] * len(d_weights[6:])  # the learned initial state: that is in `d_initial`, if it was used
        if given[0] is None:
            d_weights[4:6] = None, None  # the output map
            if steps == 1 and all(d is None for d in given[1:4]):  # one step, of which the controller's state was used
                d_weights[2:4] = d_initial[:2] = None, None  # the heads' map; memory and weighting before the step
        return None, None, torch.from_numpy(d_inputs) if needed[2] else None, *d_initial, *d_weights


def unroll(
    named: dict[str, Tensor],
    flat: Tensor | None,
    inputs: Tensor,
    state: NTMState | Tensor,
    cell_mask: Tensor | None = None,
) -> tuple[Tensor, NTMState]:
    """Compute what `NTM.unroll` computes, faster. Not twice differentiable.

    Args:
        named: `packed_parameters`.
        flat: the tensor that they are views of; None, or any other, if they are not.
        inputs, cell_mask: as in `NTM.unroll`.
        state: as there; each tensor may be of one sequence for all. Or M_0 alone, (1, N, M), if no gradient is wanted.

    Raises:
        TypeError, ValueError: as `make_unroll_args`.
    """
    parameters, tensors = list(named.values()), () if isinstance(state, Tensor) else state_tensors(state)
    save_for_backward = torch.is_grad_enabled() and any(x.requires_grad for x in (inputs, *tensors, *parameters))
    if save_for_backward:  # copies: PyTorch would not see the mask, or weights by way of `flat`, change before backward
        flat, cell_mask = None, None if cell_mask is None else cell_mask.clone()
    weights, sizes = packed_weights(parameters, flat), make_sizes(parameters)
    if tensors:
        initial = State(*(contiguous(part.detach()) for part in swap_memory_axes(tensors)))
    else:
        initial = initial_state(weights, sizes, contiguous(state.swapaxes(1, 2)))
    args = make_unroll_args(weights, sizes, inputs.detach(), initial, cell_mask)
    if save_for_backward:
        logits, *final = Unroll.apply(args, True, inputs, *tensors, *parameters)
    else:
        logits, *final = Unroll.forward(None, args, False)  # without a graph, in half the time
    return logits, NTMState(*final[:3], LSTMState(*final[3:]) if args.sizes.lstm else ())


def loss_and_gradients(
    args: UnrollArgs, loss_args: LossArgs, gradients: np.ndarray, shard_ranges: list[tuple[int, int]]
) -> float:
    """Shards forward and back, each group while it is in cache: returns their loss, and adds to the flat gradients."""
    count, rows = gradients.size, args.initial_state.memory.shape[2]
    workspace = Workspace([count] * len(shard_ranges), gradients.dtype)
    weights_transposed, *d_parts = workspace.arrays
    transpose_weights(args.weights, args.sizes, weights_transposed)
    args = args._replace(weights_transposed=weights_transposed)

    def shard(first: int, stop: int, accumulate: bool, d_part: np.ndarray) -> float:
        length = workspace_size(len(args.inputs), min(GROUP, stop - first), rows, args.sizes, False)
        workspace = Workspace([length], d_part.dtype)  # when the shard is worked on, not for all shards at once
        return groups_forward_backward(first, stop, args, loss_args, workspace.arrays[0], accumulate, d_part)

    jobs = [partial(shard, *shard_ranges[0], True, gradients)]  # adds to what is there
    jobs += [partial(shard, *where, False, d_part) for where, d_part in zip(shard_ranges[1:], d_parts, strict=True)]
    losses = run_parallel(jobs)
    add_in_pairs([gradients, *d_parts])
    return add_in_pairs(losses)


def forward_backward(
    named: dict[str, Tensor],
    flat: Tensor | None,
    inputs: Tensor,
    targets: Tensor,
    mask: Tensor,
    memory: Tensor,
    cell_mask: Tensor | None = None,
    blur_cost: float = 0.0,
    part: Part = WHOLE,
) -> tuple[float, Tensor]:
    """Compute what `NTM.forward_backward` computes, faster.

    Args:
        named: `packed_parameters`.
        flat: the tensor that they are views of, none of them frozen; None, if they are not.
        inputs, targets, mask, cell_mask, blur_cost, part: as in `NTM.forward_backward`.
        memory: M_0, (B, N, M), or (1, N, M) for all sequences.

    Raises:
        RuntimeError: inputs or memory want a gradient.
        TypeError, ValueError: as `make_unroll_args` and `make_loss_args`.
    """
    if inputs.requires_grad or memory.requires_grad:
        raise RuntimeError("forward_backward gives inputs and memory no gradient: take backward() of a loss")
    parameters = list(named.values())
    weights = packed_weights(parameters, None) if flat is None else flat.detach().numpy()
    sizes = make_sizes(parameters)
    initial = initial_state(weights, sizes, contiguous(memory.swapaxes(1, 2)))
    args = make_unroll_args(weights, sizes, inputs, initial, cell_mask, blur_cost)
    loss_args = make_loss_args(args, targets, mask)
    shard_ranges, sequences = part.shards(inputs.shape[1]), part.sequences(inputs.shape[1])
    logits = torch.from_numpy(args.logits[:, sequences])
    if flat is not None:
        return loss_and_gradients(args, loss_args, flat.grad.numpy(), shard_ranges), logits
    gradients = np.zeros_like(args.weights)
    loss = loss_and_gradients(args, loss_args, gradients, shard_ranges)
    for parameter, gradient in zip(parameters, unpacked_gradients(parameters, gradients), strict=True):
        if parameter.requires_grad and parameter.grad is not None:
            parameter.grad += gradient
        elif parameter.requires_grad:
            parameter.grad = gradient
    return loss, logits
