"""Pictures of an evaluation.

Knows: the layout of `suite.Evaluation.run`, matplotlib. Must not know: models, music.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from .control import FIGURES


COLOURS = {"samples": "#2a6fdb", "samples_free": "#8fb5f0", "chance": "#c9c9c9", "human": "#e07b39"}
NAMES = {"samples": "model", "samples_free": "model, no grammar", "chance": "chance", "human": "human"}
PITCHES = "C Db D Eb E F F# G Ab A Bb B".split()


def draw_all(result: dict, stage: Callable[[str], Path]) -> list[str]:
    """Draw what a result holds.

    Args:
        result: of `Evaluation.run`.
        stage: name of a picture -> path to write it to.

    Returns:
        The names drawn.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = []
    wanted = {"bits": _bits, "control": _control, "music": _figures, "chords": _chords}
    jobs = [(f"{'figures' if part == 'music' else part}.png", part, draw) for part, draw in wanted.items()]
    for name, part, draw in [*jobs, ("distributions.png", "music", _distributions)]:
        if part not in result:
            continue
        figure = draw(result[part], plt)
        if figure is not None:
            figure.savefig(stage(name), dpi=120, bbox_inches="tight")
            plt.close(figure)
            drawn.append(name)
    return drawn


def _spread(entry: dict) -> tuple[float, list[float]]:
    """Value and distances to the ends of its interval; nan where nothing was measured."""
    if entry["value"] is None:
        return float("nan"), [0.0, 0.0]
    return entry["value"], [max(entry["value"] - entry["low"], 0), max(entry["high"] - entry["value"], 0)]


def _bars(axes, groups: list[str], series: dict[str, list[dict]], scale: float = 1.0) -> None:
    """Bars with intervals, one cluster a group."""
    width = 0.8 / max(len(series), 1)
    for index, (name, entries) in enumerate(series.items()):
        values, errors = zip(*(_spread(e) for e in entries))
        place = np.arange(len(groups)) + (index - (len(series) - 1) / 2) * width
        errors = scale * np.array(errors).T
        colour = COLOURS.get(name)
        axes.bar(place, scale * np.array(values), width, yerr=errors, label=NAMES.get(name, name), color=colour,
                 capsize=2, error_kw={"lw": 1})  # fmt: skip
    axes.set_xticks(np.arange(len(groups)), groups)
    axes.spines[["top", "right"]].set_visible(False)


def _bits(found: dict, plt):
    entries = found["by_corpus"]
    series = [{"value": e["bits_per_note"], "low": e["low"], "high": e["high"]} for e in entries.values()]
    figure, axes = plt.subplots(figsize=(7, 3.2))
    _bars(axes, list(entries), {"samples": series})
    axes.set_ylabel("bits a note (lower is better)")
    return figure


def _control(found: dict, plt):
    keys = [k for k in FIGURES if found["samples"][k]["value"] is not None]
    series = {s: [found[s][k] for k in keys] for s in ("samples", "samples_free", "chance", "human") if s in found}
    figure, axes = plt.subplots(figsize=(11, 3.8))
    _bars(axes, [FIGURES[k].label.replace(" (", "\n(").replace(" where", "\nwhere").replace(" within", "\nwithin")
                 .replace(" on", "\non") for k in keys], series, 100.0)  # fmt: skip
    axes.set_ylabel("per cent as asked")
    axes.tick_params(axis="x", labelsize=7)
    axes.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.15))
    return figure


def _figures(found: dict, plt):
    names = [n for n, e in found["figures"]["samples"].items() if e["value"] is not None]
    figure, grid = plt.subplots(2, -(-len(names) // 2), figsize=(11, 5))
    for axes, name in zip(np.ravel(grid), names):
        _bars(axes, [""], {s: [found["figures"][s][name]] for s in ("samples", "human")})
        axes.set_title(name.replace("_", " "), fontsize=9)
    for axes in np.ravel(grid)[len(names) :]:
        axes.set_visible(False)
    figure.tight_layout()
    handles, words = np.ravel(grid)[0].get_legend_handles_labels()
    figure.legend(handles, words, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.05))
    return figure


def _distributions(found: dict, plt):
    figure, grid = plt.subplots(2, 2, figsize=(11, 6))
    titles = {"pitch_class": "pitch class", "duration": "duration (bin)", "onset": "onset in the bar (ticks, 24 a "
              "quarter)", "interval": "interval of the upper line (semitones)"}  # fmt: skip
    for axes, (name, title) in zip(np.ravel(grid), titles.items()):
        for side in ("human", "samples"):
            counts = np.array(found["histograms"][side].get(name) or [0.0], dtype=np.float64)
            place = np.arange(len(counts)) - (24 if name == "interval" else 0)
            axes.step(
                place, counts / max(counts.sum(), 1), where="mid", color=COLOURS[side], label=NAMES[side], lw=1.2
            )
        distance = found["distances"]["samples"][name].get("mean")
        axes.set_title(title + ("" if distance is None else f", JS {distance:.4f} bits"), fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        if name == "pitch_class":
            axes.set_xticks(range(12), PITCHES)
        if name == "onset":
            axes.set_xlim(-1, 97)
    np.ravel(grid)[0].legend(frameon=False)
    figure.tight_layout()
    return figure


def _chords(found: dict, plt):
    tables = [(f"{c}, {t}", e) for t in ("all", "melody") for c, e in found.get(t, {}).items()]
    if not tables:
        return None
    figure, grid = plt.subplots(1, len(tables), figsize=(4 * len(tables), 3.4), sharey=True, squeeze=False)
    for axes, (title, entry) in zip(grid[0], tables):
        metrics = list(entry["scores"]["model"])
        _bars(axes, metrics, {n: [s[m] for m in metrics] for n, s in entry["scores"].items()}, 100.0)
        axes.set_title(title, fontsize=10)
    grid[0][0].set_ylabel("per cent of the time right")
    grid[0][0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    return figure
