"""One generated sequence, window by window.

Design decisions
- A call is cut into windows of a few bars, the length models are trained on; each window is prompted with the bars
  before it, the generated ones among them.
- How many bars a window takes follows from the song's own density and the context; constant material that does not
  fit halves it.

Knows: the tokenizer's methods, prompts, quantised music. Must not know: models, sampling, pipelines.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .errors_mortm import PromptError
from .music_harmony import merge_repeats
from .music_instruments import category_of, parse_instrument
from .music_names import DRUMS
from .music_score import ChordTable, MetricScore, is_chord_table, is_score
from .prompt_building import PromptIds, build_prompt
from .prompt_words import read_chords
from .token_vocabulary import CONTROLS
from .upstream_codec import DECODED_PROGRAM


PAST_BARS = 8  # given before the generated bars
_NEW_TRACK_TOKENS = 40.0  # a bar, where nothing is known of a track


@dataclass
class SongRequest:
    """One input and what is asked of it.

    Attributes:
        original: `symusic.Score` of the file, or None.
        song: the music on the grid, or None.
        start: first generated bar.
        bars: how many bars are generated.
        window: most bars at a time.
        past: bars given before the generated ones, as in `MetricPrompt`.
        future: bars given after them, as in `MetricPrompt`.
        inside: the bars are rewritten in the song; else they follow its bars before `start`, and what came after
            is dropped.
        tracks: constant tracks, as in `MetricPrompt`.
        targets: indices of the song's tracks to generate, or None: the instruments of `fields`.
        chords: entries (symbol, bar, beat), a `ChordTable`, True or None.
        meter: one, or a list with one a bar.
        task: of `MetricPrompt`.
        fields: further fields of `MetricPrompt`, the same in every window.
    """

    original: Any
    song: MetricScore | None
    start: int
    bars: int
    window: int
    past: Any = PAST_BARS
    future: Any = None
    inside: bool = False
    tracks: Any = None
    targets: tuple[int, ...] | None = None
    chords: Any = None
    meter: Any = None
    task: str = "melody"
    fields: dict = field(default_factory=dict)

    @property
    def stop(self) -> int:
        """The bar after the last generated one."""
        return self.start + self.bars


def spread_chords(chords, start: int, bars: int):
    """Chords of a request as (symbol, bar, beat) entries in bars of the song.

    Args:
        chords: what `read_chords` takes, or True.
        start: first generated bar.
        bars: how many bars are generated.

    Returns:
        The entries; a `ChordTable`, True and None as they are.

    Raises:
        PromptError: more symbols than bars, a place outside the bars (`prompt.bars`), unreadable entries.
    """
    chords = chords if chords is True else read_chords(chords)
    if chords is None or chords is True or is_chord_table(chords):
        return chords
    if not isinstance(chords[0], str):
        for symbol, bar, _ in chords:
            if not start <= bar < start + bars:
                raise PromptError(
                    f"the chord {symbol!r} in bar {bar} is outside the generated bars {start} to {start + bars}",
                    "prompt.bars",
                )
        return chords
    if len(chords) > bars:
        raise PromptError(
            f"got {len(chords)} chords for {bars} bars: give one a bar, or place them as (symbol, bar, beat)",
            "prompt.bars",
        )
    return [(chords[i % len(chords)], start + i, 0) for i in range(bars)]


def _chords_within(chords, first: int, last: int, ticks: tuple[int, int]):
    """The chords of bars `[first, last)`; the one that sounds at their start is restated there."""
    if chords is None or chords is True:
        return chords
    if is_chord_table(chords):
        return chords.window(*ticks)
    placed = sorted(chords, key=lambda c: c[1:])
    here = [c for c in placed if first <= c[1] < last]
    before = [c for c in placed if c[1] < first]
    if before and not any(c[1:] == (first, 0) for c in here):
        here.insert(0, (before[-1][0], first, 0))
    return here or None


def _bars_with_notes(song: MetricScore, at: int, past: int) -> int:
    """How many bars before bar `at` to give: more than `past` where in those no note begins (a long last chord)."""
    before = song.onset[song.onset < song.bars.start[at]]
    last = int(song.bars.of(before.max())) if len(before) else at
    return past if at - last <= past else past + at - 1 - last


def _orders_of(values, instruments) -> list[int]:
    """For each generated instrument its place in the request: the n-th of a value for the n-th."""
    left = list(enumerate(values))
    found = []
    for value in instruments:
        place = next((pair for pair in left if pair[1] == value), None)
        if place is not None:
            left.remove(place)
            found.append(place[0])
    return found


class SongRow:
    """One sequence while it is generated: the song so far and the bars that are left.

    Args:
        request: what is asked for.
        seed: of the sequence.
    """

    def __init__(self, request: SongRequest, seed: int):
        self.request, self.seed = request, seed
        self.song, self.targets = request.song, request.targets
        # for each track of `song` the track of the file that it is, -1 for a new one
        self.source = list(range(request.song.n_tracks)) if request.song is not None else []
        # controls of tracks that were asked for one by one: from the first window on one for each track
        names = [c.name for c in CONTROLS if c.level == "track"]
        self.by_track = {n: request.fields[n] for n in names if isinstance(request.fields.get(n), (list, tuple))}
        self.made = 0  # bars generated so far
        self.prompts: list[list[int]] = []
        self.answers: list[list[int]] = []
        self.chords: list[ChordTable] = []
        self.notes: list[str] = []
        self.complete = True
        self.built: PromptIds | None = None
        self.count = 0

    @property
    def left(self) -> int:
        """How many bars are left to generate."""
        return self.request.bars - self.made

    @property
    def at(self) -> int:
        """First bar of the next window."""
        return self.request.start + self.made

    def _tokens_a_bar(self) -> float:
        """About how many tokens a generated bar takes, from the song's own density."""
        if self.request.task != "melody":
            return _NEW_TRACK_TOKENS
        asked = len(self.request.fields.get("instruments") or ())
        if self.song is None or self.targets is None:
            sounding = 0 if self.song is None else len(self.song.sounding_tracks())
            return _NEW_TRACK_TOKENS * max(1, asked or sounding)
        last = max(min(self.at, self.song.n_bars), 1)
        stretch = self.song.window(max(last - 2 * PAST_BARS, 0), last, tracks=self.targets)
        return max((4 * stretch.n_notes) / stretch.n_bars + 2 * len(self.targets), 8.0)

    def build(self, tokenizer, context: int) -> None:
        """Build the prompt of the next window, of as many bars as leave room for their answer.

        Args:
            tokenizer: `MortmTokenizer`.
            context: tokens of prompt and answer together.

        Raises:
            PromptError: one bar does not fit either (`prompt.too_long`), or an impossible request.
        """
        per_bar = 1.5 * self._tokens_a_bar()
        count = min(self.request.window, self.left)
        while count > 1 and per_bar * count > context / 2:
            count = (count + 1) // 2
        while True:
            reserve = int(min(max(per_bar * count, 128), context / 2))
            try:
                self.built = self._prompt(tokenizer, count, context - reserve)
                break
            except ValueError as error:
                if getattr(error, "code", "") != "prompt.too_long" or count == 1:
                    raise
                count = (count + 1) // 2
        self.count = count
        text = str(self.built.report)
        if text:
            self.notes.append(f"bars {self.at} to {self.at + count}: {text}")

    def _prompt(self, tokenizer, count: int, max_length: int) -> PromptIds:
        request, song, at = self.request, self.song, self.at
        fields = request.fields | self.by_track
        ticks = (0, 1 << 40)
        if song is not None and self.made:
            first = int(song.bars.start[request.start])
            ticks = (int(song.bars.start[at]) - first, 1 << 40)
        tracks, meter, past, future = request.tracks, request.meter, request.past, request.future
        if self.made:
            if is_score(tracks):
                tracks = tracks.window(self.made, self.made + count)
            if past is not True and not isinstance(past, (int, np.integer)):
                past = PAST_BARS  # music of its own stands before the first window only
            if future is not None and not isinstance(future, (bool, int, np.integer)) and self.left > count:
                future = None
            fields.pop("instruments", None)
        elif self.targets is not None:
            fields.pop("instruments", None)
        if song is None and (past is True or isinstance(past, (int, np.integer))):
            past = None
        elif song is not None and past and not isinstance(past, bool) and isinstance(past, (int, np.integer)):
            past = _bars_with_notes(song, at, int(past))
        if self.left > count:
            future = None  # what follows this window is yet to be rewritten
        if isinstance(meter, list):
            meter = meter[self.made : self.made + count]
        prompt = tokenizer.prompt(
            **fields,
            task=request.task,
            song=song,
            start=None if song is None else at,
            bars=count,
            past=past,
            future=future,
            tracks=tracks,
            chords=_chords_within(request.chords, at, at + count, ticks),
            meter=meter,
            targets=self.targets,
        )
        return build_prompt(tokenizer.vocabulary, prompt, max_length=max_length, dialect=tokenizer.dialect)

    def accept(self, tokenizer, answer: list[int]) -> None:
        """Take in the answer of this window.

        Args:
            tokenizer: `MortmTokenizer`.
            answer: generated ids.
        """
        built = self.built
        prompt = built.ids.tolist()
        self.prompts.append(prompt)
        self.answers.append(answer)
        self.complete &= bool(answer) and answer[-1] == tokenizer.eos_token_id
        music = tokenizer.decode_score(prompt + answer)
        if self.request.task == "chords":
            first = int(self.song.bars.start[self.at])
            if music.chords is not None:
                self.chords.append(replace(music.chords, onset=music.chords.onset + first))
        else:
            self._merge(music, tokenizer.dialect)
            if built.chords is not None:
                first = int(self.song.bars.start[self.at])
                self.chords.append(replace(built.chords, onset=built.chords.onset + first))
        self.made += self.count

    @property
    def span(self) -> tuple[int, int]:
        """First and last tick of the generated bars in the song so far."""
        start = self.song.bars.start
        return int(start[self.request.start]), int(start[self.request.stop])

    def chord_table(self) -> ChordTable:
        """The chords of the generated bars, asked for or estimated, in ticks of the song."""
        columns = [[getattr(table, name) for table in self.chords] for name in ("onset", "root", "quality", "bass")]
        found = [np.concatenate(column) if column else np.empty(0, dtype=np.int64) for column in columns]
        return merge_repeats(ChordTable(*found))

    def _merge(self, music: MetricScore, dialect: str) -> None:
        built = self.built
        passage, inside = built.passage, self.request.inside
        asked = self.request.fields.get("instruments")
        if not self.made and asked is not None:
            order = _orders_of([parse_instrument(i, dialect) for i in asked], passage.instruments)
            self.by_track = {n: [v[i] for i in order if i < len(v)] for n, v in self.by_track.items()}
        if passage.song is None or (not inside and passage.start == 0):
            self.song = built.merge(music, inside)
            self.source = [-1] * self.song.n_tracks
            self.targets = tuple(range(self.song.n_tracks))
            return
        if passage.song is not self.song:  # the dialect could not take all tracks: the passage holds those it could
            programs = self.song.programs.tolist()
            self.source = [s for s, p in zip(self.source, programs) if category_of(p) is not None]
        targets = passage.targets[: music.n_tracks]
        new = [int(p) for p, t in zip(music.programs, targets) if t < 0]
        programs = np.array([*passage.song.programs.tolist(), *new])
        order = np.argsort(programs == DRUMS, kind="stable")  # as merging does: drums stay last
        rank = np.argsort(order)
        fresh = iter(range(passage.song.n_tracks, len(programs)))
        self.targets = tuple(int(rank[t if t >= 0 else next(fresh)]) for t in targets)
        self.source = [self.source[o] if o < passage.song.n_tracks else -1 for o in order]
        self.song = built.merge(music, inside)
        if dialect == "mortm":  # categories are no programs: the program that each is written with
            programs = [DECODED_PROGRAM.get(p, p) for p in self.song.programs.tolist()]
            self.song = replace(self.song, programs=np.array(programs, dtype=np.int16))
