"""The same music as miditok writes it in REMI, for the comparison of token languages (`compare.py`).

Design decisions
- The quantised notes of our own store are written to symusic scores of 24 ticks a quarter, so that both streams hold
  the same notes; miditok then does what it does (one stream for all programs, time signatures, no velocity, tempo,
  rests or chords; durations up to 768 ticks, the longest single duration of our table).
- Tracks that share a program (three pianos in pop909) would melt into one in REMI; the later ones get the next program
  numbers that are free in the song, so that both streams say which notes belong together.
- A bar is written as a whole number of quarters, else of eighths, else of sixteenths (6/8 as 3/4): miditok divides the
  *beat* by 24, and this keeps the grid at 24 a quarter wherever there is a choice.
- Training windows are drawn by the same plans as ours (song, bars, tracks, transposition); only the writing differs.

Knows: the example source, miditok. Must not know: models, training.
"""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path

import numpy as np


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mortm_hf.data.examples import ExampleSource, transpose
from mortm_hf.data.packing import Document
from mortm_hf.evaluation.fixed_windows import GENERATED, GIVEN, Encoded
from mortm_hf.models.music_grid import TICKS_PER_QUARTER
from mortm_hf.models.music_names import DRUMS


LONGEST = 32  # quarters of the longest duration
METERS = {4: list(range(1, 9)), 8: list(range(1, 17)), 16: list(range(1, 33))}


def make_tokenizer():
    """miditok's REMI as the comparison uses it."""
    from miditok import REMI, TokenizerConfig

    return REMI(
        TokenizerConfig(
            pitch_range=(0, 127),  # miditok has no token for pitch 127: a window that needs it is left out
            beat_res={(0, LONGEST): TICKS_PER_QUARTER},
            special_tokens=["PAD", "BOS", "EOS"],
            use_velocities=False,
            use_chords=False,
            use_rests=False,
            use_tempos=False,
            use_time_signatures=True,
            time_signature_range=METERS,
            use_programs=True,
            one_token_stream_for_programs=True,
            use_pitchdrum_tokens=False,
            remove_duplicated_notes=False,
            delete_equal_successive_time_sig_changes=True,
        )
    )


def meter_of(length: int) -> tuple[int, int] | None:
    """The time signature in which a bar of `length` ticks is written; `None` if it has none."""
    for denominator, numerators in METERS.items():
        unit = 4 * TICKS_PER_QUARTER // denominator
        if length % unit == 0 and length // unit in numerators:
            return length // unit, denominator
    return None


class RemiStream:
    """Quantised music -> REMI ids by miditok."""

    def __init__(self):
        self.tokenizer = make_tokenizer()
        vocabulary = self.tokenizer.vocab
        self.pad, self.bos, self.eos = (vocabulary[f"{name}_None"] for name in ("PAD", "BOS", "EOS"))
        self.bar = vocabulary["Bar_None"]
        self.clipped = 0

    def __len__(self) -> int:
        return len(self.tokenizer.vocab)

    def to_symusic(self, score):
        """A `MetricScore` as symusic score, 24 ticks a quarter; `None` if a bar's length has no time signature."""
        import symusic

        out = symusic.Score(TICKS_PER_QUARTER)
        before = None
        for length, start in zip(score.bars.length.tolist(), score.bars.start.tolist()):
            meter = meter_of(length)
            if meter is None:
                return None
            if meter != before:
                out.time_signatures.append(symusic.TimeSignature(start, *meter))
                before = meter
        own = score.programs.tolist()
        used = {p for p in own if p != DRUMS}
        seen: set[int] = set()
        duration = np.minimum(score.duration, LONGEST * TICKS_PER_QUARTER)
        self.clipped += int((duration != score.duration).sum())
        for track, program in enumerate(own):
            rows = score.track == track
            if program != DRUMS:
                if program in seen:
                    program = next(p % 128 for p in range(program + 1, program + 129) if p % 128 not in used)
                    used.add(program)
                seen.add(program)
            if not rows.any():
                continue
            columns = [np.ascontiguousarray(c[rows], dtype=np.int32) for c in (score.onset, duration)]
            pitch = np.ascontiguousarray(score.pitch[rows], dtype=np.int8)
            notes = symusic.Note.from_numpy(*columns, pitch, np.full(len(pitch), 90, dtype=np.int8))
            made = symusic.Track("", 0 if program == DRUMS else int(program), program == DRUMS)
            made.notes = notes
            out.tracks.append(made)
        return out

    def ids(self, score) -> np.ndarray | None:
        """BOS, the music, EOS; `None` where it cannot be written."""
        song = self.to_symusic(score)
        if song is None:
            return None
        found = self.tokenizer.encode(song)
        sequence = found[0] if isinstance(found, list) else found
        return np.array([self.bos, *sequence.ids, self.eos], dtype=np.int64)

    def notes_of(self, ids: np.ndarray) -> int:
        """Notes in a stream (one pitch token each)."""
        return int(np.isin(ids, self._pitches).sum())

    @cached_property
    def _pitches(self) -> np.ndarray:
        return np.array([i for name, i in self.tokenizer.vocab.items() if name.startswith("Pitch_")])

    def split(self, ids: np.ndarray, bars: int) -> int | None:
        """Position of the bar line that opens bar `bars` (0-based); `None` if the music ends before it."""
        lines = np.flatnonzero(ids == self.bar)
        return int(lines[bars]) if len(lines) > bars else None

    def window(self, song, start: int, max_length: int) -> tuple[np.ndarray, int] | str:
        """Ids of a fixed window and the first position that is scored, or the reason why there are none. As in our own
        stream only tracks that sound in the new bars take part, and the oldest bars give way to the length."""
        middle, stop = start + GIVEN, start + GIVEN + GENERATED
        tracks = song.score.window(middle, stop).sounding_tracks()
        if not len(tracks):
            return "no notes in the generated bars"
        for first in range(start, middle + 1):
            ids = self.ids(song.score.window(first, stop).take_tracks(tracks))
            if ids is None:
                return "a bar whose length no time signature has"
            if len(ids) <= max_length:
                answer = self.split(ids, middle - first)
                return (ids, answer) if answer is not None else "no bar line before the generated bars"
        return f"more than {max_length} tokens"


class RemiSource(ExampleSource):
    """Documents drawn as ours are, written in REMI."""

    def __init__(self, store, vocabulary, recipe, stream: RemiStream, seed: int = 0, packs: int = 300):
        self.stream = stream
        super().__init__(store, vocabulary, recipe, seed=seed, packs=packs)

    def render(self, plan, rng, limit: int) -> Document | None:
        score = transpose(self.songs[plan.song].window(plan.start, plan.stop), plan.semitones)
        score = score.take_tracks(np.array(plan.tracks))
        first = 0
        while first <= plan.first - plan.start:  # the estimate of the plan is for our own tokens
            ids = self.stream.ids(score.window(first, score.n_bars))
            if ids is None:
                return None
            if len(ids) <= limit:
                notes = int(self.counts[plan.song].notes(plan.first, plan.last)[list(plan.tracks)].sum())
                return Document(ids, np.ones(len(ids), dtype=bool), plan.song, plan.task, notes)
            first += max(1, int(np.ceil((1 - limit / len(ids)) * (score.n_bars - first))))
        return None


def encode(stream: RemiStream, store, windows, max_length: int) -> tuple[dict, dict]:
    """`{(path, start): Encoded}` of the windows that can be written, and `{(path, start): reason}` of the others."""
    songs = {song.path: song for song in store.songs}
    encoded, left_out = {}, {}
    for window in windows:
        song, key = songs[window.path], (window.path, window.start)
        found = stream.window(song, window.start, max_length)
        if isinstance(found, str):
            left_out[key] = found
            continue
        middle = window.start + GIVEN
        notes = song.score.window(middle, middle + GENERATED).n_notes
        written = stream.notes_of(found[0][found[1] :])
        if written != notes:
            left_out[key] = f"{written} notes written instead of {notes}"
            continue
        encoded[key] = Encoded(window, song.corpus, song.cluster, found[0], found[1], notes)
    return encoded, left_out
