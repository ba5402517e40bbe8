"""Control accuracy: does the music have the key, meter, bars, chords, density and instruments that were asked for?

Design decisions
- Requests are what the test songs really are: for each of the chosen windows the header of its eight bars
  (every control) and its chords where the song has any, and no music at all.
  Pitched requests are transposed by a drawn number of semitones, so that a model which always writes the commonest
  keys gains nothing.
- What is asked, and how it is marked, are the rows of `token_controls`: a control that is added there is asked for
  and marked here. Marks are read from the answer's notes by the code that reads human music. The *human* row is the
  very music the request was taken from, so it is the ceiling of each measure (the key estimator errs on real music
  too).
- The *chance* row gives every answer of the model to the other requests of its kind: what a model that knows the style
  but ignores the request would reach.
- Chord tones: of the pitched notes that begin on a beat (the meter's denominator) while a chord holds, those in the
  chord; and the same on the beats where the chord changes.
- An answer that cannot be read back as music fails everything it was asked (without the grammar only).

Knows: songs, prompts, controls. Must not know: models, sampling, reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest

import numpy as np

from ..data.examples import transpose, transposition_range
from ..data.score_store import ScoreStore
from ..models.music_harmony import NO_CHORD, chord_tones
from ..models.music_names import DRUMS, GENRES, METERS
from ..models.music_score import ChordTable, MetricScore
from ..models.prompt_building import MetricPrompt, build_prompt
from ..models.prompt_words import words_of_header
from ..models.token_controls import Described, Figure
from ..models.token_headers import CONTROLS, Header, describe
from .fixed_windows import Window
from .intervals import ratio, share_of
from .model_answers import Ask


BARS = 8
SHIFTS = 8  # requests of other samples that the chance row tries
# figure -> its label and whether it is a share of requests (else a pooled ratio)
FIGURES = {name: figure for control in CONTROLS for name, figure in control.figures.items()} | {
    "chord_tones_on_beats": Figure("chord tones on beats", share=False),
    "chord_tones_at_changes": Figure("chord tones where the chord changes", share=False),
}


@dataclass(frozen=True)
class Request:
    """One request and the music it was taken from.

    Attributes:
        window: where the music stands.
        corpus: its corpus.
        cluster: songs of one cluster are versions of each other.
        human: the eight bars, transposed as the request is.
        ask: what the model is given.
        asked: `Header` of what is asked for.
        chords: in ticks from the first generated bar, or None.
    """

    window: Window
    corpus: str
    cluster: str
    human: MetricScore
    ask: Ask
    asked: Header
    chords: ChordTable | None

    @property
    def kind(self) -> tuple:
        """What must be alike for another request to be a fair exchange."""
        return ("key" in self.asked, self.chords is not None)


def make_requests(
    tokenizer, store: ScoreStore, windows: Sequence[Window], count: int, context: int, seed: int = 0
) -> list[Request]:
    """Requests taken from human music.

    The corpora alternate, each going through its windows in a drawn order; where a corpus has no more, the others fill
    up.

    Args:
        tokenizer: `MortmTokenizer` of the model.
        store: the songs.
        windows: 16-bar windows; the second eight bars of each are what is asked for. Windows whose eight bars change
            meter, or have no note, are passed over.
        count: most requests.
        context: tokens of prompt and answer together.
        seed: of the order and the transpositions.
    """
    songs = {song.path: song for song in store.songs}
    groups: dict[str, list[Window]] = {}
    for window in windows:
        groups.setdefault(songs[window.path].corpus, []).append(window)

    def requests(members: list[Window]) -> Iterator[Request]:
        for index in np.random.default_rng([seed, len(members)]).permutation(len(members)).tolist():
            song, rng = songs[members[index].path], np.random.default_rng([seed, index])
            request = _request(tokenizer, song, members[index], rng, context)
            if request is not None:
                yield request

    rounds = zip_longest(*map(requests, groups.values()))
    return list(islice((request for of_each in rounds for request in of_each if request is not None), count))


def _request(tokenizer, song, window: Window, rng: np.random.Generator, context: int) -> Request | None:
    first = window.start + 8
    human = song.score.window(first, first + BARS)
    if human.n_bars != BARS or not human.n_notes or human.bars.irregular.any() or np.ptp(human.bars.meter):
        return None
    human = human.take_tracks(human.sounding_tracks())
    low, high = transposition_range(human, -5, 6)
    pitched = bool((human.programs != DRUMS).any())
    step = int(rng.integers(low, high + 1)) if pitched else 0
    human = transpose(human, step)
    chords = human.chords
    if chords is not None and (not len(chords) or (chords.root == NO_CHORD[0]).all()):
        chords = None
    if chords is not None and chords.onset[0] > 0:
        silence = (np.array([v]) for v in NO_CHORD)
        columns = zip(silence, (chords.root, chords.quality, chords.bass))
        chords = ChordTable(np.append(0, chords.onset), *(np.append(a, b) for a, b in columns))
    genres = (GENRES.index(song.genre),) if song.genre in GENRES else ()
    facts = Described(
        bars=human.bars,
        instruments=tuple(human.programs.tolist()),
        tempo=human.tempo,
        music=human,
        sources=(replace(human, genres=genres),),
    )
    asked = describe(facts)
    prompt = MetricPrompt(
        instruments=asked.instruments,
        bars=BARS,
        meter=METERS[asked["meter"]],
        chords=chords,
        omit=() if "key" in asked else ("key",),
        **words_of_header(asked),
    )
    room = int(min(2 * (4 * human.n_notes + 3 * BARS * human.n_tracks) + 64, context // 2))
    try:
        built = build_prompt(tokenizer.vocabulary, prompt, max_length=context - room, dialect=tokenizer.dialect)
    except ValueError as error:
        if not isinstance(getattr(error, "code", None), str):
            raise
        return None
    ask = Ask(built.ids, built.plan, room)
    return Request(window, song.corpus, song.cluster, human, ask, asked, chords)


# ---------------------------------------------------------------------------------------------------------------------
# Measures


def chord_tone_counts(score: MetricScore, chords: ChordTable) -> dict[str, tuple[int, int]]:
    """How many pitched notes on beats are tones of the chord.

    Args:
        score: the music.
        chords: in ticks of the music; where there is no chord nothing is counted.

    Returns:
        `{figure: (in the chord, all)}` of the notes that begin on beats, and on beats where the chord changes.
    """
    pitched = (score.programs != DRUMS)[score.track] if score.n_notes else np.zeros(0, bool)
    onset, tone = score.onset[pitched], score.pitch[pitched] % 12
    bar = score.bars.of(onset)
    beat = 96 // np.array([METERS[m][1] for m in score.bars.meter])
    row = np.searchsorted(chords.onset, onset, side="right") - 1
    on_beat = ((onset - score.bars.start[bar]) % beat[bar] == 0) & (row >= 0) if len(onset) else np.zeros(0, bool)
    member = np.zeros((len(chords) + 1, 12), dtype=bool)
    for i, (root, quality) in enumerate(zip(chords.root.tolist(), chords.quality.tolist())):
        member[i, list(chord_tones(root, quality))] = True
    on_beat &= member[row].any(axis=1) if len(onset) else on_beat
    hit = member[row, tone] & on_beat if len(onset) else on_beat
    change = on_beat & (onset == chords.onset[np.maximum(row, 0)]) if len(onset) else on_beat
    return {
        "chord_tones_on_beats": (int(hit.sum()), int(on_beat.sum())),
        "chord_tones_at_changes": (int((hit & change).sum()), int(change.sum())),
    }


def measure(score: MetricScore | None, request: Request) -> dict[str, bool | tuple[float, float] | None]:
    """What of a request an answer fulfils.

    Args:
        score: the answer, or None where it cannot be read.
        request: what was asked for.

    Returns:
        A mark for each of `FIGURES`: yes or no, or (part, whole); None: not asked.
    """
    answer = None if score is None or not score.n_notes else score.take_tracks(score.sounding_tracks())
    found: dict = dict.fromkeys(FIGURES)
    for control in CONTROLS:
        if control.name in request.asked:
            found |= control.score(request.asked[control.name], request.asked.instruments, answer)
    if request.chords is not None:
        # no notes, no share of them: an unreadable answer counts as one wrong note
        lost = {"chord_tones_on_beats": (0, 1), "chord_tones_at_changes": (0, 1)}
        found |= lost if answer is None else chord_tone_counts(score, request.chords)
    return found


def control_report(requests: Sequence[Request], answers: Sequence[MetricScore | None]) -> dict[str, dict]:
    """Accuracy of every control over the requests that state it.

    Args:
        requests: what was asked for.
        answers: the music of each; None where nothing can be read.

    Returns:
        `{figure: {"value", "low", "high", "n"}}` of `FIGURES`: shares of requests with Wilson intervals, pooled ratios
        with those of a bootstrap over songs.
    """
    rows = [measure(answer, request) for answer, request in zip(answers, requests)]
    report = _report(rows, [r.cluster for r in requests])
    return report | {name: share_of([row[name] for row in rows]) for name, f in FIGURES.items() if f.share}


def chance_report(requests: Sequence[Request], answers: Sequence[MetricScore | None]) -> dict[str, dict]:
    """`control_report` of answers against other requests of their kind (keys and chords stated or not).

    Args:
        requests: what was asked for.
        answers: the music of each; None where nothing can be read.

    Returns:
        `{figure: {"value", "low", "high", "n"}}` of `FIGURES`.
    """
    kinds: dict[tuple, list[int]] = {}
    for index, request in enumerate(requests):
        kinds.setdefault(request.kind, []).append(index)
    rows, clusters = [], []
    for members in kinds.values():
        for shift in range(1, min(SHIFTS, len(members) - 1) + 1):
            for place, index in enumerate(members):
                other = requests[members[(place + shift) % len(members)]]
                rows.append(measure(answers[index], other))
                clusters.append(requests[index].cluster)
    return _report(rows, clusters)


def _report(rows: list[dict], clusters: list[str]) -> dict[str, dict]:
    report = {}
    for name in FIGURES:
        parts = [row[name] for row in rows]
        parts = [(0, 0) if p is None else p if isinstance(p, tuple) else (float(p), 1) for p in parts]
        report[name] = ratio([p[0] for p in parts], [p[1] for p in parts], clusters)
    return report


def read_answer(tokenizer, prompt: np.ndarray, answer: np.ndarray) -> MetricScore | None:
    """The music of an answer.

    Args:
        tokenizer: `MortmTokenizer` of the model.
        prompt: `[n]` ids.
        answer: `[m]` ids.

    Returns:
        `MetricScore` without key and chords; None where nothing can be read.
    """
    try:
        music = tokenizer.decode_score(np.concatenate([prompt, answer]).astype(np.int64))
    except (ValueError, IndexError):
        return None
    return replace(music, key=None, chords=None)
