"""Pictures: accuracy by size, and one sequence's way through the machine. One style for all."""

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from experiment.checkpoint import write_atomically
from experiment.configuration import Data
from experiment.scoring import Score, Trace
from ntm.addressing import SHIFTS
from tasks import label

# Okabe & Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999", "#F0E442")
MARKERS = "osD^vP*Xh"
STYLE = {
    "figure.dpi": 130,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "image.interpolation": "nearest",
    "image.cmap": "viridis",
}


def accuracy_by_size(
    scores: dict[str, dict[tuple, Score]],
    data: dict[str, Data],
    path: Path,
    beside: dict[str, dict[str, float]] | None = None,
    memory: str = "",
) -> None:
    """Draw the share of exact sequences and the wrong bits a sequence over size, a line a model.

    A size of one number is drawn to scale; those of several stand side by side.

    Args:
        scores: by model name, then by size; all of one task.
        data: by model name, what it was trained on.
        path: the PNG file to write.
        beside: by model name, wrong bits a sequence of other machines, by length: grey lines.
        memory: what the title says of the memory of the test, where it is not a blank one as configured.
    """
    sizes = sorted({size for by_size in scores.values() for size in by_size})
    to_scale = len(sizes[0]) == 1
    place = {size: size[0] if to_scale else i for i, size in enumerate(sizes)}
    with plt.rc_context(STYLE):
        figure, (top, bottom) = plt.subplots(2, 1, figsize=(7.2, 5.2), sharex=True, layout="constrained")
        one = len(scores) == 1
        for i, (name, by_size) in enumerate(scores.items()):
            x, of = [place[size] for size in sorted(by_size)], [by_size[size] for size in sorted(by_size)]
            style = {"color": COLOURS[i % 9], "marker": MARKERS[i % 9], "markersize": 5, "clip_on": False, "zorder": 3}
            style |= {"linewidth": 1.5 if to_scale else 0, "alpha": 1 if one else 0.85}
            style |= {"elinewidth": 1.5, "capsize": 2}
            below, above = [s.exact - s.exact_low for s in of], [s.exact_high - s.exact for s in of]
            top.errorbar(x, [s.exact for s in of], [below, above], label=name, **style)
            bottom.errorbar(x, [score.bits for score in of], [score.bits_interval for score in of], **style)
        for low, high in sorted({(of.low, of.high) for of in data.values()}):
            if to_scale:
                for axes in (top, bottom):
                    axes.axvspan(low[0], high[0], color="#000000", alpha=0.07, linewidth=0)
                top.text(low[0], 0.04, " trained", fontsize=8, color="#555555")
        for i, by_length in enumerate((beside or {}).values()):
            label_once = None if i else "those replaced"
            bottom.plot(list(map(int, by_length)), list(by_length.values()), "o-", color="#aaaaaa", markersize=3,
                        linewidth=1, label=label_once)  # fmt: skip
        top.set(ylabel="exact sequences (%)", ylim=(0, 1.03))
        top.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
        bottom.set(ylabel="wrong bits a sequence", xlabel=f"size ({' x '.join(sizes[0]._fields)})")
        bottom.set_ylim(0, max(1.0, 1.08 * bottom.get_ylim()[1]))
        if not to_scale:
            bottom.set_xticks(list(place.values()), [label(size) for size in place])
        sequences = min(score.sequences for by_size in scores.values() for score in by_size.values())
        which = f"{next(iter(scores))}: a" if one else "A"
        title = f"{which}ccuracy by size, {sequences:,} fresh sequences a point, bars: 95% interval"
        top.set_title(f"{title}\n{memory}" if memory else title, loc="left")
        if not one:
            of_both = (
                a + b for a, b in zip(top.get_legend_handles_labels(), bottom.get_legend_handles_labels(), strict=True)
            )
            figure.legend(*of_both, loc="outside right upper", fontsize=8)
        for axes in (top, bottom):
            axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        save_figure(figure, path)


def counted(number: int | str, what: str) -> str:
    """Say how many there are, by a number or "no"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture as `write_atomically` does, and forget the figure."""
    picture = io.BytesIO()
    figure.savefig(picture)
    plt.close(figure)
    write_atomically(path, picture.getvalue())


def machine(shown: Trace, title: str, path: Path) -> None:
    """Draw one sequence's way through the machine, after Figure 6 of the paper.

    Left, what goes in and out; right, what is added and read, and where. Of the rows, the shortest arc is drawn that
    holds all that the heads shown visit.

    Args:
        shown: from `experiment.scoring.trace`; the first read head and the first write head are drawn.
        title: of the whole picture.
        path: the PNG file to write.
    """
    answering = np.flatnonzero(shown.mask)
    order = visited_window(shown)
    read, write = first_of(shown.read_weighting), first_of(shown.write_weighting)
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            4, 2, figsize=(9.6, 8.4), sharex=True, layout="constrained", height_ratios=(2, 2, 2, 4)
        )
        masked = np.where(shown.mask[:, None] > 0, shown.outputs, np.nan)
        targets = np.where(shown.mask[:, None] > 0, shown.targets, np.nan)
        left = (
            (panels[0, 0], shown.inputs, "inputs", "channel", input_limits(shown)),
            (panels[1, 0], targets, "targets", "bit", (0, 1)),
            (panels[2, 0], masked, f"outputs ({counted(shown.wrong_bits, 'wrong bit')})", "bit", (0, 1)),
        )
        for axes, values, name, label, limits in left:
            _heat(figure, axes, values.T, name, label, limits)
        _heat(figure, panels[0, 1], shown.erases[:, 0].T, f"erase vector, e{write}", "column", (0, 1))
        right = (
            (panels[1, 1], shown.adds[:, 0], f"add vector, a{write}"),
            (panels[2, 1], shown.reads[:, 0], f"read vector, r{read}"),
        )
        for axes, values, name in right:
            limit = max(1e-6, float(np.abs(values).max()))
            _heat(figure, axes, values.T, name, "column", (-limit, limit), "PuOr")
        for axes, values, name in (
            (panels[3, 0], shown.write_weighting[:, 0], f"write weighting, w{write}"),
            (panels[3, 1], shown.read_weighting[:, 0], f"read weighting, w{read}"),
        ):
            _heat(figure, axes, values[:, order].T, name, rows_label(shown, order), (0, 1))
            ticks = np.linspace(0, len(order) - 1, min(8, len(order))).round().astype(int)
            axes.set_yticks(ticks, [str(order[i]) for i in ticks])
            axes.set_xlabel("time (steps)")
        for axes in panels.flat:
            if len(answering):
                axes.axvline(answering[0] - 0.5, color="#D55E00", linewidth=1)
        figure.suptitle(f"{title}\n({said_of_line('orange', shown)})")
        save_figure(figure, path)


def controls(shown: Trace, title: str, path: Path) -> None:
    """Draw how the heads address over time: gate (eq. 7), mean shift (eq. 8), sharpening (eq. 9), key strength (eq. 5).

    Args:
        shown: from `experiment.scoring.trace`; the first read head and the first write head are drawn.
        title: of the whole picture.
        path: the PNG file to write.
    """
    readers, first_answer = shown.read_weighting.shape[1], np.flatnonzero(shown.mask)
    panels = (
        ("interpolation gate, g", shown.interpolation_gate, (-0.03, 1.03)),
        ("mean shift (rows)", shown.shift_weighting @ np.array(SHIFTS), (1.08 * min(SHIFTS), 1.08 * max(SHIFTS))),
        (r"sharpening, $\gamma$", shown.sharpening, (0.8, None)),
        (r"key strength, $\beta$", shown.key_strength, (0, None)),
    )
    with plt.rc_context(STYLE):
        figure, axes_of = plt.subplots(4, 1, figsize=(7.2, 6.4), sharex=True, layout="constrained")
        for axes, (name, values, limits) in zip(axes_of, panels, strict=True):
            for head, label, colour, line in (
                (0, f"read head{first_of(shown.read_weighting)}", "#0072B2", "-"),
                (readers, f"write head{first_of(shown.write_weighting)}", "#D55E00", "--"),
            ):
                axes.plot(values[:, head], line, color=colour, label=label, linewidth=1.5)
            axes.set(ylabel=name, ylim=limits)
            axes.grid(axis="y", color="#dddddd", linewidth=0.6)
            if len(first_answer):
                axes.axvline(first_answer[0] - 0.5, color="#000000", linewidth=1, linestyle=":")
        axes_of[-1].set_xlabel(f"time (steps); {said_of_line('dotted', shown)}")
        axes_of[0].legend(loc="upper right", ncols=2)
        figure.suptitle(title)
        save_figure(figure, path)


def memory_over_time(traces: dict[str, Trace], title: str, path: Path) -> None:
    """Draw the rows of memory that a head visits: at first, before the first answer, and when all is answered.

    All have one scale of colours.

    Args:
        traces: by what to call it, one from `experiment.scoring.trace` for each row of pictures.
        title: of the whole picture.
        path: the PNG file to write.
    """
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            len(traces), 3, figsize=(7.2, 3.6 * len(traces)), sharey="row", squeeze=False, layout="constrained"
        )
        moments = {name: memories_shown(shown) for name, shown in traces.items()}
        limit = max(1e-6, float(np.abs(list(moments.values())).max()))
        for axes_of, (name, shown) in zip(panels, traces.items(), strict=True):
            order, wrong = visited_window(shown), shown.wrong_bits
            at_first, before_answering, at_last = moments[name]
            for axes, values, when in (
                (axes_of[0], at_first, name),
                (axes_of[1], before_answering, "before the first answer"),
                (axes_of[2], at_last, f"when all is answered, {counted(wrong or 'no', 'wrong bit')}"),
            ):
                image = axes.imshow(values[order], aspect="auto", vmin=-limit, vmax=limit, cmap="PuOr", origin="lower")
                axes.set_title(when, loc="left", fontsize=8.5)
                axes.set_xlabel("column of memory")
                axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
            ticks = np.linspace(0, len(order) - 1, min(10, len(order))).round().astype(int)
            axes_of[0].set_yticks(ticks, [str(order[i]) for i in ticks])
            axes_of[0].set_ylabel(rows_label(shown, order))
            figure.colorbar(image, ax=axes_of, fraction=0.04, pad=0.02, label="value")
        figure.suptitle(title)
        save_figure(figure, path)


def memories_shown(shown: Trace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The memory at first, before the first answer, and after the last step, each (N, M)."""
    first_answer = int(np.flatnonzero(shown.mask)[0])
    before_answering = shown.memories[first_answer - 1] if first_answer else shown.first_memory
    return shown.first_memory, before_answering, shown.memories[-1]


def said_of_line(which: str, shown: Trace) -> str:
    """What the line before the first answer means, in words."""
    answering = np.flatnonzero(shown.mask)
    gaps = (np.diff(answering) > 1).any() or shown.mask[-1] == 0  # as where queries lie between answers
    return f"{which} line: before the first answer" if gaps else f"right of the {which} line, the machine answers"


def first_of(weighting: np.ndarray) -> str:
    """What to add to a head's name, where there are several of its kind, (T, heads, N): the first is drawn."""
    heads = weighting.shape[1]
    return f" (1 of {heads})" if heads > 1 else ""


def input_limits(shown: Trace) -> tuple[float, float]:
    """The range of the inputs: 0 to 1 for bits and marks, more where a channel carries a number."""
    return min(0.0, float(shown.inputs.min())), max(1.0, float(shown.inputs.max()))


def visited_window(shown: Trace) -> np.ndarray:
    """Find the rows of the circular memory that a head visits, in order: the shortest arc that holds them."""
    visited = np.flatnonzero(np.maximum(shown.write_weighting[:, 0], shown.read_weighting[:, 0]).max(0) > 0.05)
    rows = shown.memories.shape[1]
    if len(visited) == 0:
        return np.arange(rows)
    gaps = np.diff(np.append(visited, visited[0] + rows))
    start = visited[(gaps.argmax() + 1) % len(visited)]
    length = rows - int(gaps.max()) + 1
    margin = min(2, (rows - length) // 2)
    first = 0 if length == rows else start - margin
    return (first + np.arange(length + 2 * margin)) % rows


def rows_label(shown: Trace, order: np.ndarray) -> str:
    """What the axis of some rows says: memory is a circle, in which the last row lies below row 0."""
    count = shown.memories.shape[1]
    circle = ", a circle" if len(order) < count else ""
    return f"row ({len(order)} of {count}{circle})"


def _heat(
    figure, axes: Axes, values, name: str, label: str, limits: tuple[float, float], colours: str = "viridis"
) -> None:
    image = axes.imshow(values, aspect="auto", vmin=limits[0], vmax=limits[1], cmap=colours, origin="lower")
    axes.set_title(name, loc="left")
    axes.set_ylabel(label)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
    figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)


CAPTIONS = {  # of `trace_images`
    "answer_above_target": "Above, the probability of each bit of the answer; below, the target; time goes right. Dark "
    "blue is 0, yellow is 1; grey steps do not count. The sequence is held out, and the same at each point.",
    "read_weighting": "Where the first read head is: rows of memory from top to bottom, time to the right.",
    "write_weighting": "Where the first write head is: rows of memory from top to bottom, time to the right.",
    "memory": "The memory after the last step: a column is a row of it. Orange is below 0, purple above.",
}


def trace_images(shown: Trace) -> dict[str, np.ndarray]:
    """Make tensorboard images (3, height, width) of a trace: outputs over targets, weightings, the final memory."""
    gap = np.full((1, shown.mask.size), np.nan)
    answer = np.vstack(
        (np.where(shown.mask > 0, shown.outputs.T, np.nan), gap, np.where(shown.mask > 0, shown.targets.T, np.nan))
    )
    limit = max(1e-6, float(np.abs(shown.memories[-1]).max()))
    return {
        "answer_above_target": _pixels(answer, 8),
        "read_weighting": _pixels(shown.read_weighting[:, 0].T, 4),
        "write_weighting": _pixels(shown.write_weighting[:, 0].T, 4),
        "memory": _pixels(shown.memories[-1].T / limit / 2 + 0.5, 6, "PuOr"),
    }


def _pixels(values: np.ndarray, zoom: int, colours: str = "viridis") -> np.ndarray:
    """Colour values in [0, 1], (rows, columns); NaN becomes grey."""
    colour_map = matplotlib.colormaps[colours].with_extremes(bad="lightgrey")
    image = colour_map(np.ma.masked_invalid(values), bytes=True)[..., :3]
    return image.repeat(zoom, 0).repeat(zoom, 1).transpose(2, 0, 1)
