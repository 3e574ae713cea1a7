"""Moving pictures: one sequence's way through the machine, and one sequence's answer as training goes on."""

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from experiment.checkpoint import write_atomically
from experiment.errors import InputError
from experiment.plots import COLOURS, STYLE, counted, input_limits, rows_label, visited_window
from experiment.runlog import logged_values
from experiment.scoring import Trace

STEP, REPORT, LAST = 350, 150, 2500  # milliseconds that a frame is shown
COLOURS_IN_GIF = 128
ZOOM = 3  # of tensorboard's pictures


def steps(shown: Trace, title: str, path: Path) -> None:
    """Write a GIF of one sequence's way through the machine, a frame a step.

    Args:
        shown: from `experiment.scoring.trace`; the first read head and the first write head are drawn.
        title: of the whole picture.
        path: the GIF file to write.
    """
    answering = shown.mask > 0
    weightings = {"write head": shown.write_weighting[:, 0], "read head": shown.read_weighting[:, 0]}
    order = visited_window(shown)
    limit = max(1e-6, float(np.abs(shown.memories).max()))
    rows, bits = np.arange(len(order)), shown.outputs.shape[1]
    labels = [str(row) for row in order]
    with plt.rc_context(STYLE | {"figure.dpi": 90}):
        figure, panels = plt.subplots(
            3, 2, figsize=(7.6, 4.9), layout="constrained", height_ratios=(1.2, 1, 1), width_ratios=(1, 1.1)
        )
        for axes in panels[:, 1]:
            axes.remove()
        right = figure.add_subplot(panels[0, 1].get_gridspec()[:, 1])
        frames = []
        for t in range(len(shown.mask)):
            done = np.arange(len(shown.mask))[:, None] <= t
            strips = (
                ("inputs", np.where(done, shown.inputs, np.nan), input_limits(shown)),
                ("targets", np.where(answering[:, None], shown.targets, np.nan), (0, 1)),
                ("outputs", np.where(answering[:, None] & done, shown.outputs, np.nan), (0, 1)),
            )
            for axes, (name, values, (low, high)) in zip(panels[:, 0], strips, strict=True):
                axes.clear()
                axes.imshow(values.T, aspect="auto", origin="lower", vmin=low, vmax=high)
                axes.axvspan(t - 0.5, t + 0.5, fill=False, edgecolor=COLOURS[1], linewidth=1.5)
                axes.set_title(name, loc="left")
                axes.set_yticks([])
            panels[2, 0].set_xlabel("time (steps)")
            right.clear()
            right.imshow(
                shown.memories[t][order], aspect="auto", origin="lower", cmap="PuOr", vmin=-limit, vmax=limit,
                extent=(0, 1, -0.5, len(order) - 0.5),
            )  # fmt: skip
            for name, colour, side in (("write head", COLOURS[1], -0.02), ("read head", COLOURS[0], 1.02)):
                lengths = 0.3 * weightings[name][t, order] * np.sign(side)
                right.barh(rows, lengths, left=side, height=0.8, color=colour, label=name)
            right.set(xlim=(-0.34, 1.34), xticks=(-0.17, 0.5, 1.17), ylabel=rows_label(shown, order))
            right.set_xticklabels(("write head", "memory", "read head"))
            right.set_yticks(rows[:: max(1, len(rows) // 8)], labels[:: max(1, len(rows) // 8)])
            wrong = int((shown.wrong & done).sum())
            answered = int((answering & done[:, 0]).sum())
            state = f"{answered} vectors of {bits} bits answered" if answered else "reading"
            if answered and shown.wrong_bits == shown.wrong.sum():  # else the task counts them in a way of its own
                state += f", {counted(wrong, 'wrong bit')}"
            figure.suptitle(f"{title}\nstep {t + 1} of {len(shown.mask)}: {state}")
            figure.canvas.draw()
            frames.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3]))
        plt.close(figure)
    _save(frames, STEP, path)


def training(runs: Path, title: str, path: Path) -> None:
    """Write a GIF of a run's fixed sequence, answered at each report, above its target.

    Args:
        runs: the run's folder of events.
        title: of the whole picture.
        path: the GIF file to write.

    Raises:
        InputError: there are no such pictures in the folder.
    """
    font, drawn = ImageFont.load_default(16), []
    for step, value in logged_values(runs / "test", "answer_above_target"):
        content = value.image.encoded_image_string or value.tensor.string_val[2]
        image = Image.open(io.BytesIO(content)).convert("RGB")
        coloured = np.ptp(np.asarray(image), axis=2).any(axis=0)  # what is neither white nor grey
        answer = image.crop((int(coloured.argmax()), 0, image.width, image.height))  # without the time of reading
        answer = answer.resize((answer.width * ZOOM, answer.height * ZOOM), Image.Resampling.NEAREST)
        canvas = Image.new("RGB", (max(answer.width, 400) + 24, answer.height + 60), "white")
        canvas.paste(answer, (12, 48))
        draw = ImageDraw.Draw(canvas)
        draw.text((12, 6), f"{title}, iteration {step:,}", fill="black", font=font)
        draw.text((12, 27), "above, its answer; below, the target", fill="#555555", font=ImageFont.load_default(13))
        drawn.append(canvas)
    if not drawn:
        raise InputError(f"{runs}: holds no pictures of a run; train with this -output first")
    _save(drawn, REPORT, path)


def _save(frames: list[Image.Image], duration: int, path: Path) -> None:
    """Save with one palette for all frames, which keeps the file small, and the last frame held."""
    samples = [frames[i] for i in np.linspace(0, len(frames) - 1, 8).astype(int)]
    palette = Image.fromarray(np.vstack([np.asarray(sample) for sample in samples])).quantize(COLOURS_IN_GIF)
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    durations = [duration] * len(others) + [LAST]
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, duration=durations, loop=0, optimize=True)
    write_atomically(path, file.getvalue())
