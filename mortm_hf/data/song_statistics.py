"""What is in a data set: figures, a Markdown report and plots.

Design decisions
- Counted on whole columns, without reading songs one by one; only the tokens of windows are made, for a fixed sample.
- Figures first (a plain dictionary, JSON as it is), then text and pictures from the figures alone.

Knows: columns of songs, the prompt builder, matplotlib (for the plots only). Must not know: training, the Hub.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from ..models.music_harmony import ESTIMATED_KEYS, estimate_keys, key_twins
from ..models.music_instruments import instrument_name
from ..models.music_names import DRUMS, METERS, QUALITY_NAMES, ROOT_NAMES, TEMPO_CENTRES
from ..models.prompt_building import training_example
from ..models.token_vocabulary import MetricVocabulary
from .schema import SongRows, table_of
from .score_store import ScoreStore
from .whole_files import replace_file


TOP = 16
WINDOW = (8, 8)  # given and generated bars, as the fixed test windows


def _rows(store: ScoreStore) -> SongRows:
    if isinstance(store.songs, SongRows):
        return store.songs
    from datasets import Dataset

    return SongRows(Dataset(table_of(list(store.songs))))


def _spread(values: np.ndarray) -> dict[str, float]:
    """Quartiles and extremes."""
    if not len(values):
        return {}
    at = np.percentile(values, [0, 5, 25, 50, 75, 95, 100])
    names = ("min", "p5", "p25", "median", "p75", "p95", "max")
    return {"mean": round(float(np.mean(values)), 3)} | {k: round(float(v), 3) for k, v in zip(names, at)}


def _counted(names, weights=None) -> dict[str, int]:
    """Counts in falling order."""
    total: Counter = Counter()
    for name, weight in zip(names, weights if weights is not None else np.ones(len(names), int)):
        total[name] += int(weight)
    return dict(sorted(((k, n) for k, n in total.items() if n), key=lambda item: (-item[1], str(item[0]))))


def dataset_stats(store: ScoreStore, windows: int = 2000, skipped: list[dict] | None = None, seed: int = 0) -> dict:
    """Figures of the songs of a store.

    Args:
        store: the songs.
        windows: windows of 8 given and 8 generated bars whose tokens are counted (a fixed random sample).
        skipped: `[{"file", "code", "message"}]`; by default the store's.
        seed: of the sample of windows.

    Returns:
        `{"songs", "bars", "notes", "corpora", "splits", "meters", "keys", "tempo", "instruments", ...}`; distributions
        as counts, sizes as mean and percentiles.
    """
    rows = _rows(store)
    bars, notes = rows.lengths("bar_length"), rows.lengths("note_pitch")
    meters = np.bincount(rows.values("bar_meter"), minlength=len(METERS))
    tempo = rows.values("bar_tempo")
    program, tracks = rows.values("program"), rows.lengths("program")
    song_of_note = np.repeat(np.arange(len(rows)), notes)
    first_track = np.cumsum(tracks) - tracks
    notes_of_track = np.bincount(first_track[song_of_note] + rows.values("note_track"), minlength=len(program))
    first_bar = np.cumsum(bars) - bars
    notes_of_bar = np.bincount(first_bar[song_of_note] + rows.values("note_bar"), minlength=int(bars.sum()))
    pitch, velocity = rows.values("note_pitch"), rows.values("note_velocity")
    drum = program[first_track[song_of_note] + rows.values("note_track")] == DRUMS
    # stated keys, else estimated ones, as the header of a window would have them
    sound = np.bincount(
        song_of_note[~drum] * 12 + pitch[~drum] % 12,
        weights=rows.values("note_duration")[~drum],
        minlength=12 * len(rows),
    )
    guess = [ESTIMATED_KEYS[k] if k >= 0 else "none" for k in estimate_keys(sound.reshape(-1, 12))]
    keys = [g if k in (None, "Unknown") else key_twins(k)[0] for k, g in zip(rows.labels("key"), guess)]
    chords = rows.values("chord_root"), rows.values("chord_quality")
    chord_names = [f"{ROOT_NAMES[r]} {QUALITY_NAMES[q]}".replace(" None", "") for r, q in zip(*map(list, chords))]
    problems = skipped if skipped is not None else [{"file": f, "code": "", "message": m} for f, m in store.skipped]
    sounding = notes_of_track > 0
    song_of_track = np.repeat(np.arange(len(rows)), tracks)
    instruments = np.bincount(program[sounding], minlength=DRUMS + 1)
    cells = rows.labels("cluster")
    return {
        "songs": len(rows),
        "clusters": len(set(cells)),
        "bars": int(bars.sum()),
        "notes": int(notes.sum()),
        "corpora": _counted(rows.labels("corpus")),
        "splits": _counted(rows.labels("split")),
        "genres": _counted([g or "none" for g in rows.labels("genre")]),
        "key_sources": _counted([s or "none" for s in rows.labels("key_source")]),
        "chord_sources": _counted([s or "none" for s in rows.labels("chord_source")]),
        "meters": {f"{n}/{d}": int(c) for (n, d), c in sorted(zip(METERS, meters), key=lambda x: -x[1]) if c},
        "keys": _counted(keys),
        "chords": dict(list(_counted(chord_names).items())[:TOP]),
        "tempo": _counted(
            [str(round(float(TEMPO_CENTRES[t]))) if t >= 0 else "none" for t in range(-1, len(TEMPO_CENTRES))],
            np.bincount(tempo.astype(np.int64) + 1, minlength=len(TEMPO_CENTRES) + 1),
        ),
        "instruments": _counted([instrument_name(i) for i in range(DRUMS + 1)], instruments),
        "bars_per_song": _spread(bars),
        "notes_per_song": _spread(notes),
        "tracks_per_song": _spread(np.bincount(song_of_track[sounding], minlength=len(rows))),
        "notes_per_bar": _spread(notes_of_bar),
        "notes_per_bar_counts": np.bincount(np.minimum(notes_of_bar, 64), minlength=65).tolist(),
        "bars_per_song_counts": _histogram(bars),
        "pitch_counts": np.bincount(pitch[~drum], minlength=128).tolist(),
        "velocity_counts": np.bincount(velocity >> 2, minlength=32).tolist(),
        "songs_with_dynamics": int(_varied(velocity, notes).sum()),
        "tokens_per_window": _window_tokens(rows, windows, seed),
        "skipped": _counted([p.get("code") or p.get("message", "") for p in problems]),
        "skipped_files": list(problems),
    }


def _varied(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`[n]` whether the values of each song differ by more than a bin."""
    edges = np.cumsum(lengths) - lengths
    keep = lengths > 0
    span = np.zeros(len(lengths), dtype=np.int64)
    if keep.any():
        high = np.maximum.reduceat(values, edges[keep]).astype(np.int64)
        span[keep] = high - np.minimum.reduceat(values, edges[keep])
    return span > 3


def _histogram(values: np.ndarray, bins: int = 30) -> dict[str, list]:
    if not len(values):
        return {"edges": [], "counts": []}
    counts, edges = np.histogram(np.minimum(values, np.percentile(values, 99)), bins=bins)
    return {"edges": np.round(edges, 2).tolist(), "counts": counts.tolist()}


def _window_tokens(rows: SongRows, windows: int, seed: int) -> dict:
    """Tokens of windows of 8 given and 8 generated bars, all tracks, without velocity."""
    given, made = WINDOW
    bars = rows.lengths("bar_length")
    places = np.maximum(bars - (given + made) + 1, 0)
    if not places.sum():
        return {"window": f"{given} + {made} bars", "counted": 0, "counts": _histogram(np.zeros(0))}
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(int(places.sum()), min(windows, int(places.sum())), replace=False))
    last = np.cumsum(places)
    song = np.searchsorted(last, chosen, side="right")
    start = chosen - (last[song] - places[song])
    vocabulary = MetricVocabulary.default()
    sizes = []
    for index, at in zip(song.tolist(), start.tolist()):
        try:
            example = training_example(vocabulary, rows[index].score, at + given, made, past_bars=given)
        except ValueError:  # nothing sounds in the generated bars
            continue
        sizes.append(len(example.ids))
    sizes = np.array(sizes)
    over = {str(limit): round(float((sizes > limit).mean()), 4) if len(sizes) else 0.0 for limit in (1024, 2048, 4096)}
    return {
        "window": f"{given} + {made} bars",
        "counted": len(sizes),
        **_spread(sizes),
        "share_over": over,
        "counts": _histogram(sizes),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Text and pictures


def markdown(figures: dict, name: str) -> str:
    """The report as Markdown.

    Args:
        figures: of `dataset_stats`.
        name: its title.
    """

    def table(head: tuple[str, ...], body) -> list[str]:
        lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        return [*lines, *(f"| {' | '.join(str(cell) for cell in line)} |" for line in body), ""]

    def shares(title: str, counts: dict, unit: str, top: int = TOP) -> list[str]:
        total = max(sum(counts.values()), 1)
        body = [(key, count, f"{100 * count / total:.1f} %") for key, count in list(counts.items())[:top]]
        if len(counts) > top:
            rest = sum(list(counts.values())[top:])
            body.append((f"{len(counts) - top} others", rest, f"{100 * rest / total:.1f} %"))
        return [f"## {title}", "", *table((title.lower(), unit, "share"), body)]

    window = figures["tokens_per_window"]
    sizes = ("bars_per_song", "notes_per_song", "tracks_per_song", "notes_per_bar")
    points = ("mean", "p5", "median", "p95", "max")
    body = [(s.replace("_", " "), *(figures[s].get(p, "") for p in points)) for s in sizes]
    body.append((f"tokens of {window['window']}", *(window.get(p, "") for p in points)))
    lines = [
        f"# {name}",
        "",
        f"{figures['songs']} songs, {figures['bars']} bars, {figures['notes']} notes, {figures['clusters']} clusters. "
        f"{figures['songs_with_dynamics']} songs have dynamics, {len(figures['skipped_files'])} files were skipped.",
        "",
        *table(("", *points), body),
    ]
    over = ", ".join(f"{100 * v:.1f} % over {k}" for k, v in window.get("share_over", {}).items())
    if over:
        lines += [f"Of {window['counted']} windows {over} tokens (all tracks, no velocity).", ""]
    for title, counts, unit, top in (
        ("Corpus", "corpora", "songs", TOP),
        ("Split", "splits", "songs", TOP),
        ("Genre", "genres", "songs", TOP),
        ("Meter", "meters", "bars", TOP),
        ("Key (stated, else estimated)", "keys", "songs", 24),
        ("Tempo", "tempo", "bars", TOP),
        ("Instrument", "instruments", "tracks", TOP),
        ("Chords from", "chord_sources", "songs", TOP),
    ):
        lines += shares(title, figures[counts], unit, top)
    if figures["skipped_files"]:
        lines += shares("Skipped", figures["skipped"], "files")
        lines += table(("file", "reason"), [(p["file"], p["message"]) for p in figures["skipped_files"][:20]])
    return "\n".join(lines).rstrip() + "\n"


def write_stats(figures: dict, folder: str | Path, name: str) -> list[Path]:
    """Write `stats.json`, `report.md` and one PNG a distribution; each appears whole.

    Args:
        figures: of `dataset_stats`.
        folder: to write into.
        name: title of the report.

    Returns:
        The files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = plots(figures)
    text = markdown(figures, name) + "\n## Plots\n\n" + "\n\n".join(f"![{p}]({p}.png)" for p in pictures) + "\n"
    files = [(folder / "stats.json", lambda p: p.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n"))]
    files.append((folder / "report.md", lambda p: p.write_text(text, encoding="utf-8")))
    files += [
        (folder / f"{title}.png", lambda p, f=figure: f.savefig(p, format="png", dpi=110))
        for title, figure in pictures.items()
    ]
    for path, write in files:
        replace_file(path, write)
    return [path for path, _ in files]


def plots(figures: dict) -> dict:
    """`{name: matplotlib Figure}` of every distribution that is not empty."""
    from matplotlib.figure import Figure

    made = {}

    def bars(name: str, title: str, unit: str, places, counts, label: str = "", **options):
        figure = made[name] = Figure(figsize=(7.5, 3.6), layout="constrained")
        axes = figure.add_subplot()
        axes.bar(places, counts, color="#3b6ea5", **options)
        axes.set(title=title, xlabel=label, ylabel=unit)
        return axes

    for name, title, unit, top in (
        ("corpora", "Corpora", "songs", TOP),
        ("meters", "Meters", "bars", TOP),
        ("keys", "Keys", "songs", 24),
        ("instruments", "Instruments", "tracks", TOP),
        ("chords", "Chords", "chords", TOP),
        ("skipped", "Skipped files", "files", TOP),
    ):
        some = {str(key): count for key, count in list(figures[name].items())[:top]}
        if some:
            axes = bars(name, title, unit, list(some), list(some.values()))
            if max(map(len, some)) > 4:
                axes.set_xticks(range(len(some)), list(some), rotation=50, ha="right", fontsize=8)
    tempo = {int(k): v for k, v in figures["tempo"].items() if k != "none"}
    if tempo:
        beats = sorted(tempo)
        axes = bars("tempo", "Tempo", "bars", [str(b) for b in beats], [tempo[b] for b in beats], "quarters a minute")
        axes.tick_params(axis="x", rotation=60, labelsize=8)
    window = figures["tokens_per_window"]
    for name, title, unit, label, found in (
        ("bars_per_song", "Bars of a song", "songs", "bars", figures["bars_per_song_counts"]),
        ("tokens_per_window", f"Tokens of {window['window']}", "windows", "tokens", window["counts"]),
    ):
        if found["counts"]:
            first, second, *_ = edges = found["edges"]
            bars(name, title, unit, edges[:-1], found["counts"], label, width=second - first, align="edge")
    for name, title, unit, label, counts, step in (
        ("notes_per_bar", "Notes of a bar (64: 64 and more)", "bars", "notes", figures["notes_per_bar_counts"], 1),
        ("pitches", "Pitches (no drums)", "notes", "MIDI pitch", figures["pitch_counts"], 1),
        ("velocities", "Velocities", "notes", "velocity", figures["velocity_counts"], 4),
    ):
        bars(name, title, unit, step * np.arange(len(counts)), counts, label, width=step, align="edge")
    return made
