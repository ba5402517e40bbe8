"""Chord estimation measured with mir_eval: the model's answers against the annotations.

Design decisions
- Time is counted in quarters, not seconds: a bar weighs the same at every tempo, and no tempo map is needed.
- `root` is mir_eval's root score; `root + quality` its `tetrads` (root and all chord tones up to the seventh; ninths
  and basses do not count); `majmin` is kept for comparison with the literature. Scores are weighted by duration:
  summed over songs, the ratio of sums, with intervals over songs.
- Only the notes are read: annotated keys and chords are taken away before the prompt is built.
- Windows may overlap, and a song may be read in several transpositions: every answer then votes for the stretch that
  it covers, the middle of a window with more weight than its edges; the root is elected first, then its quality.

Knows: chord tables, prompts, mir_eval. Must not know: files, reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..data.annotations import PITCH_ROOT, ROOT_PITCH
from ..data.examples import transpose, transposition_range
from ..models.music_harmony import NO_CHORD, estimate_key, merge_repeats
from ..models.music_names import QUALITY_NAMES, ROOT_NAMES
from ..models.music_score import ChordTable, MetricScore
from ..models.prompt_building import MetricPrompt, build_prompt
from .intervals import ratio
from .model_answers import AnswerCache, Ask, Sampling, answer_all


METRICS = {"root": "root", "root + quality": "tetrads", "majmin": "majmin"}  # ours -> mir_eval's
QUARTER = 24
# Harte's spelling of the quality tokens, where it is not the token's own name
HARTE = {
    "None": "maj",
    "m": "min",
    "m7": "min7",
    "m7b5": "hdim7",
    "b5": "(1,3,b5)",
    "6": "maj6",
    "m6": "min6",
    "m9": "min9",
    "add9": "maj(9)",
    "mmaj7": "minmaj7",
    "7sus4": "sus4(b7)",
}


def harte(root: int, quality: int) -> str:
    """Harte's label of a chord, bass left out: `"C:min7"`, `"N"`.

    Args:
        root: value of the root token.
        quality: value of the quality token.
    """
    if root == NO_CHORD[0]:
        return "N"
    name = QUALITY_NAMES[quality]
    return f"{ROOT_NAMES[root]}:{HARTE.get(name, name)}"


def labelled(table: ChordTable | None, end: int) -> tuple[np.ndarray, list[str]]:
    """A chord table as mir_eval takes it; what lies before the first chord is no chord.

    Args:
        table: the chords, or `None`.
        end: last tick.

    Returns:
        `[n, 2]` intervals in quarters and their labels.
    """
    if table is None or not len(table):
        return np.array([[0.0, end / QUARTER]]), ["N"]
    edges = np.append(np.clip(table.onset, 0, end), end)
    labels = [harte(r, q) for r, q in zip(table.root.tolist(), table.quality.tolist())]
    if edges[0] > 0:
        edges, labels = np.append(0, edges), ["N", *labels]
    keep = np.flatnonzero(np.diff(edges) > 0)
    return np.stack([edges[keep], edges[keep + 1]], axis=1) / QUARTER, [labels[i] for i in keep]


def compare(reference: ChordTable | None, estimate: ChordTable | None, end: int) -> dict[str, tuple[float, float]]:
    """How long an estimate is right; mir_eval leaves out what it cannot compare (no such label comes out of our token
    table).

    Args:
        reference: the annotated chords.
        estimate: the estimated ones.
        end: ticks of the song.

    Returns:
        `{metric: (quarters right, quarters counted)}`.
    """
    import mir_eval

    spans, right, guess = mir_eval.util.merge_labeled_intervals(*labelled(reference, end), *labelled(estimate, end))
    weight = mir_eval.util.intervals_to_durations(spans)
    scores = {}
    for name, metric in METRICS.items():
        comparison = getattr(mir_eval.chord, metric)(right, guess)
        counted = comparison >= 0
        scores[name] = (float((comparison * weight)[counted].sum()), float(weight[counted].sum()))
    return scores


def summary(scores: Sequence[dict], clusters: Sequence[str]) -> dict[str, dict]:
    """Scores of an estimator over songs.

    Args:
        scores: of `compare`, one a song.
        clusters: of the songs.

    Returns:
        `{metric: {"value", "low", "high", "n"}}`.
    """
    return {name: ratio([s[name][0] for s in scores], [s[name][1] for s in scores], clusters) for name in METRICS}


def paired(scores: Sequence[dict], others: Sequence[dict], clusters: Sequence[str]) -> dict[str, dict]:
    """Differences of two estimators on the same songs (first minus second).

    Args:
        scores: of the first, one a song.
        others: of the second.
        clusters: of the songs.
    """
    return {
        name: ratio([a[name][0] - b[name][0] for a, b in zip(scores, others)], [a[name][1] for a in scores], clusters)
        for name in METRICS
    }


def notes_only(score: MetricScore, tracks: str = "all") -> MetricScore:
    """What an estimator may read: the notes without key and chords.

    Args:
        score: a song.
        tracks: "all", or "melody": the track of that name alone (the first where there is none).

    Raises:
        ValueError: other `tracks`.
    """
    bare = replace(score, key=None, chords=None)
    if tracks == "all":
        return bare
    if tracks != "melody":
        raise ValueError(f"tracks must be 'all' or 'melody', got {tracks!r}")
    named = [i for i, name in enumerate(score.names) if "melody" in name.lower()]
    return bare.take_tracks(named[:1] or [int(score.sounding_tracks()[0])])


# ---------------------------------------------------------------------------------------------------------------------
# The model


@dataclass(frozen=True)
class ChordReading:
    """How a model reads a song.

    Attributes:
        window: bars of a window.
        stride: bars from one window to the next; less than `window`: they overlap.
        key: "song" (one estimate for the whole song), "window" (one each, the pipeline's rule) or "none".
        beams: 1 takes the likeliest token each time.
        semitones: transpositions in which the song is read.
        samples: answers drawn a window instead of the likeliest one (0: the likeliest).
    """

    window: int = 2
    stride: int = 2
    key: str = "song"
    beams: int = 1
    semitones: tuple[int, ...] = (0,)
    samples: int = 0

    def __str__(self) -> str:
        named = [
            f"{self.window} bars every {self.stride}",
            f"key of the {self.key}" if self.key != "none" else "no key",
        ]
        named += [f"{self.beams} beams"] if self.beams > 1 else []
        named += [f"{len(self.semitones)} transpositions"] if len(self.semitones) > 1 else []
        named += [f"{self.samples} samples"] if self.samples else []
        return ", ".join(named)


@dataclass(frozen=True)
class _Job:
    song: int
    start: int  # bars
    stop: int
    semitones: int
    shift: int  # tick of the window's first bar


def _jobs(
    tokenizer, songs: Sequence[MetricScore], reading: ChordReading, context: int
) -> tuple[list[_Job], list[Ask]]:
    jobs, asks = [], []
    for number, song in enumerate(songs):
        low, high = transposition_range(song, -6, 6)
        for step in dict.fromkeys(int(np.clip(s, low, high)) for s in reading.semitones):
            moved = transpose(song, step)
            key = estimate_key(moved) if reading.key == "song" else None
            last = max(song.n_bars - reading.window, 0)
            starts = sorted(
                {*range(0, last + 1, reading.stride), last}
                if reading.stride < reading.window
                else set(range(0, song.n_bars, reading.stride))
            )
            for start in starts:
                stop = min(start + reading.window, song.n_bars)
                if not len(moved.window(start, stop).onset):
                    continue  # silence: no chord
                for ask_stop, ask in _prompts(tokenizer, moved, start, stop, key, reading, context):
                    for _ in range(max(reading.samples, 1)):
                        jobs.append(_Job(number, *ask_stop, step, int(song.bars.start[ask_stop[0]])))
                        asks.append(ask)
    return jobs, asks


def _prompts(tokenizer, song, start: int, stop: int, key, reading: ChordReading, context: int):
    """The prompt of a window; one that does not fit the context is read in halves."""
    if not len(song.window(start, stop).onset):
        return
    room = 64 * (stop - start)
    omit = ("key",) if reading.key == "none" else ()
    # without velocities, as most training windows are: they cost a quarter of the tokens and say nothing of chords
    prompt = MetricPrompt(
        task="chords", song=song, start=start, bars=stop - start, tracks=True, key=key, omit=omit, velocity=False
    )
    try:
        built = build_prompt(tokenizer.vocabulary, prompt, max_length=context - room, dialect=tokenizer.dialect)
    except ValueError as error:
        if getattr(error, "code", "") != "prompt.too_long" or stop - start == 1:
            raise
        middle = (start + stop) // 2
        yield from _prompts(tokenizer, song, start, middle, key, reading, context)
        yield from _prompts(tokenizer, song, middle, stop, key, reading, context)
        return
    yield (start, stop), Ask(built.ids, built.plan, room)


def model_chords(
    model,
    tokenizer,
    songs: Sequence[MetricScore],
    reading: ChordReading = ChordReading(),
    *,
    batch: int = 32,
    cache_folder=None,
    identity: str = "",
    seed: int = 0,
    progress: str | None = None,
) -> list[ChordTable | None]:
    """The chords of every song as a model writes them.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        songs: what the model may read (see `notes_only`).
        reading: windows, key and decoding.
        batch: windows that run together.
        cache_folder: folder of finished answers, or `None`.
        identity: of the model, for the cache.
        seed: of drawn answers.
        progress: title of a progress bar; `None`: no bar.

    Returns:
        A table each, in ticks from the song's start; `None` where nothing sounds.
    """
    context = int(getattr(model.config, "max_position_embeddings", None) or 4096)
    jobs, asks = _jobs(tokenizer, songs, reading, context)
    sampling = Sampling(do_sample=reading.samples > 0, num_beams=reading.beams)
    cache = AnswerCache(cache_folder, "chords", identity, asks, sampling, seed)
    found = answer_all(model, tokenizer, asks, sampling, seed, batch=batch, cache=cache, progress=progress)
    votes: list[list] = [[] for _ in songs]
    for job, ask, ids in zip(jobs, asks, found):
        table = tokenizer.decode_score(np.concatenate([ask.ids, ids])).chords
        if table is None:
            table = ChordTable(*(np.array([v]) for v in (0, *NO_CHORD)))
        bars = songs[job.song].bars
        span = int(bars.start[job.start]), int(bars.start[job.stop])
        votes[job.song].append((span, _lowered(table, job.semitones, job.shift)))
    return [elect(v, song.bars.end) for v, song in zip(votes, songs)]


def _lowered(table: ChordTable, semitones: int, shift: int) -> ChordTable:
    """A window's answer moved to the song's place and, if it was read in another key, back to its own."""
    root = table.root
    if semitones:
        pitch = ROOT_PITCH[root]
        root = np.where(pitch >= 0, PITCH_ROOT[(pitch - semitones) % 12], root)
    bass = table.bass if not semitones else np.full(len(table), NO_CHORD[2])
    return ChordTable(table.onset + shift, root, table.quality, bass)


def elect(votes: Sequence[tuple[tuple[int, int], ChordTable]], end: int) -> ChordTable | None:
    """One table out of answers over stretches of a song.

    Between any two places where some answer changes, the root with the most weight wins, and of its chords the quality
    and bass with the most; a vote weighs its distance from the nearer edge of its stretch. Where there is one answer
    only it is taken as it is; where there is none there is no chord.

    Args:
        votes: `((first tick, tick after the last), table)`; outside its stretch a table does not count.
        end: ticks of the song.
    """
    if not votes:
        return None
    edges = np.unique(np.concatenate([[0], *[[*span, *table.onset] for span, table in votes]]))
    edges = edges[edges < end]
    middle = (edges + np.append(edges[1:], end)) / 2
    rows, cells, weights = [], [], []
    for (first, last), table in votes:
        inside = np.flatnonzero((middle >= first) & (middle < last))
        row = np.searchsorted(table.onset, edges[inside], side="right") - 1
        inside, row = inside[row >= 0], row[row >= 0]
        cells.append(inside)
        weights.append(1.0 + np.minimum(middle[inside] - first, last - middle[inside]) / QUARTER)
        pitch = ROOT_PITCH[table.root[row]]
        rows.append(np.stack([pitch, table.root[row], table.quality[row], table.bass[row]], axis=1))
    cell, weight, chord = np.concatenate(cells), np.concatenate(weights), np.concatenate(rows)
    by_root = np.zeros((len(edges), 13))
    np.add.at(by_root, (cell, chord[:, 0]), weight)  # -1 (no chord) is the last column
    winner = by_root.argmax(axis=1)
    kept = np.flatnonzero(chord[:, 0] % 13 == winner[cell])
    cell, weight, chord = cell[kept], weight[kept], chord[kept]
    values, kind = np.unique(chord, axis=0, return_inverse=True)
    tally = np.zeros((len(edges), len(values)))
    np.add.at(tally, (cell, kind.reshape(-1)), weight)
    best = values[tally.argmax(axis=1)]
    silent = ~tally.any(axis=1)
    best[silent, 1:] = NO_CHORD
    return merge_repeats(ChordTable(edges, best[:, 1], best[:, 2], best[:, 3]))
