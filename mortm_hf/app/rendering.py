"""Hearing and seeing music: WAV files and piano-roll pictures.

Design decisions
- Sound is made by `data.synthesis`; here it becomes a file.
- A picture is laid out like sheet music: as many bars a system as fit, drums in a strip of their own below, the
  generated bars shaded. Bar numbers count from 0, as every bar range of the API does.
- Drawing is columns of arrays: one polygon collection per track and system, no loop over notes.

Knows: scores, matplotlib (imported when a picture is drawn, extra `[app]`). Must not know: models, tokens.
"""

from __future__ import annotations

import importlib.util
import os
import wave
from pathlib import Path

import numpy as np

from ..data.synthesis import SAMPLE_RATE, synthesize
from ..models.errors_mortm import CommandError
from ..models.midi_files import load_score, quantize
from ..models.music_grid import TICKS_PER_QUARTER
from ..models.music_instruments import instrument_name
from ..models.music_names import DRUMS, METERS, TEMPO_CENTRES
from ..models.music_score import MetricScore
from .files import Outputs
from .names import drum_name, key_name


# ---------------------------------------------------------------------------------------------------------------------
# Sound


def render_wav(score, path: str | os.PathLike, soundfont: str | os.PathLike | None = None) -> Path:
    """Writes music as a stereo 16-bit WAV file; the whole file or none.

    Args:
        score: path, MIDI bytes or `symusic.Score`.
        path: the file to write.
        soundfont: SF2 or SF3 bank; by default that of pretty_midi.

    Raises:
        MidiError: the input is no usable MIDI.
        AudioError: the soundfont is missing or damaged, or the music is too long.
        CommandError: the file cannot be written.
    """
    with Outputs() as out:
        staged = out.stage(path)
        sound = synthesize(score, soundfont)
        with wave.open(str(staged), "wb") as file:
            file.setnchannels(2)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes(sound.tobytes())
    return Path(path)


# ---------------------------------------------------------------------------------------------------------------------
# Piano roll

COLOURS = "#2F6FDE #E2583E #12A08A #8A57CF #E0A100 #D3468A #4C8C2B #5B6C80 #0FA3C7 #A8632A".split()
INK, GREY, FAINT, LINE = "#1B2430", "#6B7787", "#F3F5F8", "#C3CAD4"
NEW, NEW_EDGE = "#FFF1CF", "#E8A317"
QUARTERS_A_ROW = 48
MAX_BARS = 64


def draw_piano_roll(
    score,
    path: str | os.PathLike,
    highlight: tuple[int, int] | None = None,
    title: str | None = None,
    bars: tuple[int, int] | None = None,
) -> Path:
    """Draws music as a PNG; the whole file or none.

    Args:
        score: path, MIDI bytes or `symusic.Score`.
        path: the file to write.
        highlight: bars `[a, b)` to shade as new.
        title: the heading; by default the file's name.
        bars: bars `[a, b)` to draw; by default all, or the 64 around `highlight` in longer music.

    Raises:
        MidiError: the input is no usable MIDI.
        CommandError: matplotlib is missing, or the range has no bars.
    """
    require_matplotlib()
    with Outputs() as out:
        staged = out.stage(path)
        music = quantize(load_score(score))
        first, last = _drawn_bars(music.n_bars, highlight, bars)
        figure = _figure(music, first, last, highlight, title or _title_of(score))
        figure.savefig(staged, format="png", dpi=150, facecolor="white")
    return Path(path)


def require_matplotlib() -> None:
    """Make sure that pictures can be drawn.

    Raises:
        CommandError: matplotlib is missing (`command.missing`).
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError("pictures need matplotlib: pip install 'mortm_hf[app]'", "command.missing")


def _title_of(score) -> str:
    return Path(score).name if isinstance(score, str | os.PathLike) else "Piano roll"


def _drawn_bars(n_bars: int, highlight, bars) -> tuple[int, int]:
    if bars is None:
        bars = (0, n_bars)
        if n_bars > MAX_BARS:
            # the new bars with what leads to them
            stop = min(max(highlight[1] if highlight else MAX_BARS, MAX_BARS), n_bars)
            bars = (stop - MAX_BARS, stop)
    first, last = max(bars[0], 0), min(bars[1], n_bars)
    if first >= last:
        raise CommandError(f"bars {bars[0]}:{bars[1]} hold nothing to draw; the music has {n_bars} bars")
    return first, last


def _systems(music: MetricScore, first: int, last: int) -> list[tuple[int, int]]:
    """Bars `[first, last)` cut into systems of whole bars, about equally many in each."""
    ticks = music.bars.start[last] - music.bars.start[first]
    rows = max(1, int(-(-ticks // (QUARTERS_A_ROW * TICKS_PER_QUARTER))))
    step = -(-(last - first) // rows)
    if rows > 1 and step > 4:
        step = -(-step // 2) * 2  # an even number of bars keeps phrases together
    return [(a, min(a + step, last)) for a in range(first, last, step)]


def _figure(music: MetricScore, first: int, last: int, highlight, title: str):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    systems = _systems(music, first, last)
    width = max(int(music.bars.start[b] - music.bars.start[a]) for a, b in systems)
    bar = music.bar_of_notes()
    shown = (bar >= first) & (bar < last)
    drums = music.programs[music.track] == DRUMS
    pitched = music.pitch[shown & ~drums]
    low, high = (int(pitched.min()), int(pitched.max())) if len(pitched) else (60, 71)
    # at least an octave and a half, so that a single line does not fill the page
    pad = max(0, 19 - (high - low + 1))
    low, high = max(0, low - 1 - pad // 2), min(127, high + 1 + pad - pad // 2)
    lanes = np.unique(music.pitch[shown & drums])
    roll = 0.7 + 0.042 * (high - low + 1) if len(pitched) or not len(lanes) else 0.0
    strip = 0.35 + 0.17 * len(lanes) if len(lanes) else 0.0
    head, foot, gap = 0.95, 0.25, 0.42
    height = head + foot + len(systems) * (roll + strip) + gap * (len(systems) - 1)

    figure = Figure(figsize=(15, height))
    FigureCanvasAgg(figure)
    colours = _track_colours(music)
    _heading(figure, music, first, last, highlight, title, colours, height)
    top = height - head
    for a, b in systems:
        wide = 0.925 * float(music.bars.start[b] - music.bars.start[a]) / width
        rows = np.flatnonzero(shown & (bar >= a) & (bar < b))
        # notes that ring into this system from the one before
        into = shown & (bar < a) & (music.onset + music.duration > music.bars.start[a])
        ringing = np.flatnonzero(into & ~drums)
        numbered = False
        if roll:
            axes = figure.add_axes([0.055, (top - roll) / height, wide, roll / height])
            _grid(axes, music, a, b, highlight, numbers=True)
            _draw_pitched(axes, music, np.union1d(rows[~drums[rows]], ringing), low, high, colours, highlight, bar)
            numbered = True
            top -= roll
        if strip:
            axes = figure.add_axes([0.055, (top - strip) / height, wide, (strip - 0.06) / height])
            _grid(axes, music, a, b, highlight, numbers=not numbered)
            _draw_drums(axes, music, rows[drums[rows]], lanes, colours, highlight, bar)
            top -= strip
        top -= gap
    return figure


def _track_colours(music: MetricScore) -> list[str]:
    """One colour a track; drums are always the ink colour."""
    colours, free = [], 0
    for program in music.programs.tolist():
        colours.append(INK if program == DRUMS else COLOURS[free % len(COLOURS)])
        free += program != DRUMS
    return colours


def _heading(figure, music, first, last, highlight, title, colours, height) -> None:
    from matplotlib.lines import Line2D

    figure.text(0.055, 1 - 0.20 / height, title, fontsize=15, fontweight="bold", color=INK, va="top")
    meters = list(dict.fromkeys("{}/{}".format(*METERS[m]) for m in music.bars.meter[first:last].tolist()))
    facts = [", ".join(meters[:4]) + (" …" if len(meters) > 4 else "")]
    tempo = music.tempo[first:last]
    if len(tempo) and tempo[0] >= 0:
        facts.append(f"♩ = {TEMPO_CENTRES[tempo[0]]:.0f}")
    if music.key and music.key != "Unknown":
        facts.append(key_name(music.key))
    facts.append(f"bars {first} to {last - 1} of {music.n_bars}")
    if highlight:
        facts.append(f"new: bars {highlight[0]} to {highlight[1] - 1}")
    figure.text(0.055, 1 - 0.53 / height, "   ·   ".join(facts), fontsize=10, color=GREY, va="top")
    sounding = music.sounding_tracks()
    shown = np.flatnonzero(sounding) if sounding.dtype == bool else sounding
    handles = [
        Line2D([], [], marker="D" if music.programs[t] == DRUMS else "s", linestyle="", markersize=8, color=colours[t])
        for t in shown.tolist()[:12]
    ]
    labels = [_track_label(music, t) for t in shown.tolist()[:12]]
    if highlight:
        handles.append(Line2D([], [], marker="s", linestyle="", markersize=9, color=NEW, markeredgecolor=NEW_EDGE))
        labels.append("new")
    figure.legend(
        handles,
        labels,
        loc="upper right",
        bbox_to_anchor=(0.985, 1 - 0.12 / height),
        ncols=min(len(handles), 5),
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
        handletextpad=0.2,
        columnspacing=1.2,
    )


def _track_label(music: MetricScore, track: int) -> str:
    name = music.names[track].strip() if track < len(music.names) else ""
    name = name[:24].strip() or instrument_name(int(music.programs[track]))
    drums = music.programs[track] == DRUMS and "drum" not in name.lower()
    return f"{name} (drums)" if drums else name


def _grid(axes, music: MetricScore, a: int, b: int, highlight, numbers: bool) -> None:
    """Bar lines, beats, numbers and the shading of new bars."""
    lines = music.bars.start[a : b + 1]
    axes.set_xlim(lines[0], lines[-1])
    axes.set_ylim(0, 1)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])
    tall = axes.get_xaxis_transform()
    if highlight and highlight[0] < b and highlight[1] > a:
        x0, x1 = (music.bars.start[min(max(h, a), b)] for h in highlight)
        axes.axvspan(x0, x1, color=NEW, linewidth=0, zorder=0.5)
        for edge, inside in ((x0, highlight[0] >= a), (x1, highlight[1] <= b)):
            if inside:
                axes.axvline(edge, color=NEW_EDGE, linewidth=1.6, zorder=1.4)
    quarters = np.arange(lines[0], lines[-1], TICKS_PER_QUARTER)
    axes.vlines(quarters, 0, 1, transform=tall, color=LINE, linewidth=0.4, alpha=0.45, zorder=0.8)
    axes.vlines(lines, 0, 1, transform=tall, color="#98A2B0", linewidth=0.9, zorder=1.0)
    if numbers:
        for number, x, room in zip(range(a, b), lines[:-1].tolist(), np.diff(lines).tolist()):
            if room >= TICKS_PER_QUARTER:
                new = highlight is not None and highlight[0] <= number < highlight[1]
                axes.text(
                    x,
                    1,
                    f" {number}",
                    transform=tall,
                    fontsize=8,
                    color="#B57A00" if new else GREY,
                    fontweight="bold" if new else "normal",
                    va="bottom",
                )


def _shades(music: MetricScore, rows: np.ndarray, colours: list[str], highlight, bar: np.ndarray) -> np.ndarray:
    """`[rows, 3]` colours: loud notes are full, soft ones paler, and given notes step back a little behind new ones.
    Blended with white rather than transparent, so that unisons stay clean."""
    from matplotlib.colors import to_rgb

    alpha = 0.55 + 0.45 * np.clip((music.velocity[rows] - 20) / 80, 0, 1)
    if highlight is not None:
        new = (bar[rows] >= highlight[0]) & (bar[rows] < highlight[1])
        alpha = np.where(new, alpha, alpha * 0.72)
    rgb = np.array([to_rgb(colour) for colour in colours])[music.track[rows]]
    return 1 - alpha[:, None] * (1 - rgb)


def _draw_pitched(axes, music, rows, low, high, colours, highlight, bar) -> None:
    from matplotlib.collections import PolyCollection

    axes.set_ylim(low - 0.5, high + 0.5)
    keys = np.arange(low, high + 1)
    start, stop = axes.get_xlim()
    for key in keys[np.isin(keys % 12, (1, 3, 6, 8, 10))].tolist():
        axes.axhspan(key - 0.5, key + 0.5, color="#0B1F3A", alpha=0.035, linewidth=0, zorder=0.6)
    octaves = keys[keys % 12 == 0]
    axes.hlines(octaves - 0.5, start, stop, color=LINE, linewidth=0.7, zorder=0.7)
    axes.set_yticks(octaves, [f"C{key // 12 - 1}" for key in octaves.tolist()], fontsize=8, color=GREY)
    if not len(rows):
        return
    rows = rows[::-1]
    left = np.maximum(music.onset[rows], start)
    right = np.minimum(music.onset[rows] + music.duration[rows], stop)
    right = np.maximum(right - 0.8, left + 1.5)  # a hair of air between repeated notes
    pitch = music.pitch[rows]
    # Earlier tracks lie on top and are slimmer, so that unisons of two tracks show both.
    half = 0.45 - 0.15 * (1 - (music.track[rows] + 1) / len(colours))
    corners = np.stack([left, right, right, left], 1), np.stack([pitch - half] * 2 + [pitch + half] * 2, 1)
    faces = _shades(music, rows, colours, highlight, bar)
    axes.add_collection(
        PolyCollection(np.stack(corners, 2), facecolors=faces, edgecolors=faces * 0.75, linewidths=0.5, zorder=2),
        autolim=False,
    )


def _draw_drums(axes, music, rows, lanes, colours, highlight, bar) -> None:
    axes.set_ylim(-0.7, len(lanes) - 0.3)
    for lane in range(0, len(lanes), 2):
        axes.axhspan(lane - 0.5, lane + 0.5, color="#0B1F3A", alpha=0.035, linewidth=0, zorder=0.6)
    axes.set_yticks(range(len(lanes)), [drum_name(int(p)) for p in lanes], fontsize=6.5, color=GREY)
    if not len(rows):
        return
    axes.scatter(
        music.onset[rows],
        np.searchsorted(lanes, music.pitch[rows]),
        s=6 + 26 * np.clip(music.velocity[rows] / 127, 0, 1),
        marker="D",
        color=_shades(music, rows, colours, highlight, bar),
        linewidths=0,
        zorder=2,
        clip_on=False,
    )
