"""Training examples: from songs to documents, a fresh draw each time.

Design decisions
- A draw decides corpus (so that shares of *tokens* come out as the recipe says), song (in proportion to its bars),
  task, window, tracks, transposition, velocity and header fields; the prompt and its answer are then built by the
  same function that builds prompts for generation.
- Everything is drawn from the generator it is given and from nothing else, so a document is a pure function of
  (seed, epoch, index).
- A window is cut to the space there is: fewer past bars first, then fewer tracks, then fewer generated bars.
- Transposition moves pitches, key and chords, never drums, and only as far as all pitches stay between 0 and 127.

Knows: songs, the intermediate representation, the prompt builder. Must not know: rows, batches, models.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ..models.errors_mortm import DataError, PromptError
from ..models.music_names import CHORD_BASSES, CHORD_ROOTS, DRUMS, GENRES
from ..models.music_score import ChordTable, MetricScore
from ..models.prompt_building import training_example
from ..models.token_vocabulary import CONTROLS, MetricVocabulary, TokenKind
from .annotations import transpose_key
from .packing import Document, fill_row, generator
from .score_store import ScoreStore


CHORD_TASKS = ("over_chords", "chords")
# Names of tasks in a recipe. full: past, future, other tracks and chords are all given; meta: the header is the
# answer; from_nothing: it is all that is given
TASKS = ("continue", "infill", "accompany", *CHORD_TASKS, "full", "meta", "from_nothing")
_PITCH_CLASS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_SHARP_ROOTS = "C C# D Eb E F F# G Ab A Bb B".split()  # one spelling for each pitch class after transposition


@dataclass
class ExampleRecipe:
    """How examples are drawn, where no recipe file says it (`mortm_hf.training.arguments.DataRecipe` has these fields
    too, with the same meaning).

    Attributes:
        row_length: tokens of a row.
        rows: rows of a pack.
        past_bars: least and most bars given before the answer.
        generated_bars: least and most bars of the answer.
        velocity: chance that an example has velocities.
        header_dropout: chance that a header field is left out.
        track_subset: chance that only some tracks are taken.
        transpose: least and most semitones.
        past_loss: the past of plain continuations counts in the loss.
        tasks: share of the documents by task.
        corpora: `{name: {"weight": share of the tokens}}`; empty: every song in proportion to its bars.
    """

    """How examples are drawn: the one definition of these fields, of which a recipe file's section `data` has more
    (`mortm_hf.training.arguments.DataRecipe`)."""

    row_length: int = field(default=2048, metadata={"help": "tokens of a row"})
    rows: int = field(default=1, metadata={"help": "rows of a pack (one pack is one step of one process)"})
    past_bars: tuple[int, int] = field(default=(4, 8), metadata={"help": "bars that are given: least and most"})
    generated_bars: tuple[int, int] = field(default=(4, 8), metadata={"help": "bars that are generated"})
    velocity: float = field(default=0.2, metadata={"help": "share of windows that carry velocity"})
    header_dropout: float = field(default=0.25, metadata={"help": "chance that a header field is left out"})
    track_subset: float = field(default=0.3, metadata={"help": "chance that only some tracks take part"})
    transpose: tuple[int, int] = field(default=(-5, 6), metadata={"help": "semitones: least and most"})
    past_loss: bool = field(default=True, metadata={"help": "count the past of plain continuations in the loss"})
    tasks: dict[str, float] = field(
        default_factory=lambda: {
            "continue": 40.0,
            "infill": 20.0,
            "accompany": 10.0,
            "over_chords": 10.0,
            "full": 5.0,
            "chords": 10.0,
            "meta": 5.0,
        },
        metadata={"help": "share of the documents by task, as '{continue: 3, infill: 1}'"},
    )
    corpora: dict[str, dict] = field(
        default_factory=dict,
        metadata={"help": "share of the tokens by corpus, as '{lieder: {weight: 1}}'; none: every song by its bars"},
    )

    def weights(self) -> dict[str, float]:
        """Share of the tokens of each corpus (normalised by the user of this)."""
        return {name: float(rule["weight"]) for name, rule in self.corpora.items()}


@dataclass(frozen=True)
class Draw:
    """What one document is to be: decided before any token is made.

    Attributes:
        song: index of the song.
        task: one of `TASKS`.
        start: first bar of the window, counted in the song.
        first: first generated bar, `start <= first`.
        last: bar after the last generated one, `first < last`.
        stop: bar after the window, `last <= stop`.
        tracks: tracks of the song that are generated.
        others: tracks of the song that are given.
        semitones: the transposition.
        velocity: whether notes have velocities.
    """

    song: int
    task: str
    start: int
    first: int
    last: int
    stop: int
    tracks: tuple[int, ...]
    others: tuple[int, ...]
    semitones: int
    velocity: bool


def _name_shift(names: list[str], semitones: int) -> np.ndarray:
    """`[len(names)]` index of each root or bass name moved by semitones (names that are no pitch stay)."""
    bare = [n.lstrip("/") for n in names]
    slash = any(n.startswith("/") for n in names)
    out = np.arange(len(names))
    for i, name in enumerate(bare):
        if name and name[0] in _PITCH_CLASS and set(name[1:]) <= {"#", "b"}:
            tone = (_PITCH_CLASS[name[0]] + name.count("#") - name[1:].count("b") + semitones) % 12
            target = ("/" if slash else "") + _SHARP_ROOTS[tone]
            out[i] = names.index(target)
    return out


_ROOT_SHIFT = np.stack([_name_shift(list(CHORD_ROOTS), s) for s in range(12)])
_BASS_SHIFT = np.stack([_name_shift(list(CHORD_BASSES), s) for s in range(12)])


def transpose(score: MetricScore, semitones: int) -> MetricScore:
    """A score moved by semitones: pitches (not drums), key and chords.

    Args:
        score: quantised music; pitches must stay inside 0 to 127 (see `transposition_range`).
        semitones: upward.
    """
    if not semitones:
        return score
    drum = score.programs[score.track] == DRUMS if len(score.track) else np.zeros(0, bool)
    pitch = np.where(drum, score.pitch, score.pitch + semitones)
    chords = score.chords
    if chords is not None:
        root, bass = np.asarray(chords.root), np.asarray(chords.bass)
        step = semitones % 12
        root = np.where(root < len(CHORD_ROOTS), _ROOT_SHIFT[step][np.minimum(root, len(CHORD_ROOTS) - 1)], root)
        bass = np.where(bass < len(CHORD_BASSES), _BASS_SHIFT[step][np.minimum(bass, len(CHORD_BASSES) - 1)], bass)
        chords = ChordTable(chords.onset, root.astype(np.int16), chords.quality, bass.astype(np.int16))
    return replace(score, pitch=pitch, chords=chords, key=transpose_key(score.key, semitones))


def transposition_range(score: MetricScore, low: int, high: int) -> tuple[int, int]:
    """The semitones by which the pitched notes of a score can move and stay between 0 and 127.

    Args:
        score: quantised music; without pitched notes it moves by 0.
        low: least semitones wanted.
        high: most semitones wanted.

    Returns:
        Least and most semitones.
    """
    if len(score.track):
        pitched = score.pitch[score.programs[score.track] != DRUMS]
        if len(pitched):
            return max(low, -int(pitched.min())), min(high, 127 - int(pitched.max()))
    return 0, 0


class _Counts:
    """Notes of a song by track and bar, as cumulative sums: window sizes without touching the notes."""

    def __init__(self, score: MetricScore):
        cells = np.bincount(score.track * score.n_bars + score.bar_of_notes(), minlength=score.n_tracks * score.n_bars)
        self.sums = np.zeros((score.n_tracks, score.n_bars + 1), dtype=np.int64)
        np.cumsum(cells.reshape(score.n_tracks, score.n_bars), axis=1, out=self.sums[:, 1:])

    def notes(self, first: int, last: int) -> np.ndarray:
        """`[n_tracks]` notes in bars `[first, last)`."""
        return self.sums[:, last] - self.sums[:, first]

    def tokens(self, tracks, first: int, last: int, velocity: bool) -> float:
        """About how many tokens these tracks take over these bars."""
        notes = self.notes(first, last)[list(tracks)]
        sounding = notes > 0
        return float((3.3 + velocity) * notes.sum() + sounding.sum() * (2 + 1.4 * (last - first)) + 4)


class _Scores:
    """Index -> score of a store, read when it is asked for."""

    def __init__(self, store: ScoreStore):
        self.store = store

    def __getitem__(self, index: int) -> MetricScore:
        return self.store.songs[index].score


class _SongCounts:
    """Index -> `_Counts` of a store, those of the songs used last kept."""

    KEPT = 1 << 16

    def __init__(self, store: ScoreStore):
        self.store = store
        self._found: dict[int, _Counts] = {}

    def __getitem__(self, index: int) -> _Counts:
        counts = self._found.get(index)
        if counts is None:
            if len(self._found) >= self.KEPT:
                self._found.clear()
            counts = self._found[index] = _Counts(self.store.songs[index].score)
        return counts


class ExampleSource:
    """Draws training documents from a store by a recipe's `data` section.

    Args:
        store: songs of one split.
        vocabulary: the token table.
        recipe: an `ExampleRecipe`, or anything with its fields.
        seed: of the balancing of corpora.
        packs: rows of the balancing of corpora.

    Raises:
        DataError: `data.option`, a task or a corpus that the recipe or the package does not have.
    """

    def __init__(self, store: ScoreStore, vocabulary: MetricVocabulary, recipe, seed: int = 0, packs: int = 300):
        self.store, self.vocabulary, self.recipe = store, vocabulary, recipe
        self.songs, self.counts = _Scores(store), _SongCounts(store)
        self.genres = [(GENRES.index(name),) if name else () for name in store.labels("genre")]
        corpora = store.corpora() if recipe.corpora else {"": np.arange(len(store))}  # all as one: each by its bars
        self.names = list(corpora)
        self.members = [corpora[name] for name in self.names]
        n_bars = store.n_bars().astype(np.float64)
        bars = [n_bars[rows] for rows in self.members]
        self.chances = [np.cumsum(b / b.sum()) for b in bars]
        tasks = recipe.tasks or {"continue": 1.0}
        unknown = set(tasks) - set(TASKS)
        if unknown:
            raise DataError(
                f"unknown tasks in the recipe: {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}",
                "data.option",
            )
        self.tasks = list(tasks)
        self.task_chances = np.cumsum(np.array(list(tasks.values()), dtype=np.float64) / sum(tasks.values()))
        weights = recipe.weights() if recipe.corpora else dict.fromkeys(self.names, 1.0)
        strange = [name for name in self.names if name not in weights]
        if strange:
            raise DataError(
                f"the recipe gives no weight to the corpora {', '.join(strange[:5])}: name them under `corpora`, or "
                "leave `corpora` out to take everything alike",
                "data.option",
            )
        self.corpus_of = np.zeros(len(store), dtype=np.int64)
        for number, rows in enumerate(self.members):
            self.corpus_of[rows] = number
        self.corpus_chances = self._balanced(np.array([float(weights[name]) for name in self.names]), seed, packs)

    def _balanced(self, weights: np.ndarray, seed: int, packs: int, rounds: int = 3) -> np.ndarray:
        """Chance of each corpus per *document* such that the shares of tokens in filled rows follow the weights.

        Documents differ in size and the end of a row favours short ones, so the chances are found by filling rows and
        correcting, from random numbers of their own.
        """
        wanted = weights / weights.sum()
        if len(wanted) == 1:
            return np.ones(1)
        chances = wanted.copy()
        for attempt in range(rounds):
            self.corpus_chances = np.cumsum(chances / chances.sum())
            tokens = np.ones(len(wanted))
            for k in range(packs):
                rng = generator(seed, 0x517E, attempt, k)
                for document in fill_row(self, rng, self.recipe.row_length):
                    tokens[self.corpus_of[document.source]] += len(document.ids)
            chances = chances * wanted / (tokens / tokens.sum())
        return np.cumsum(chances / chances.sum())

    def draw(self, rng: np.random.Generator, limit: int) -> Document | None:
        """One document, or `None` where none was found.

        Args:
            rng: decides everything.
            limit: most tokens.
        """
        corpus = int(np.searchsorted(self.corpus_chances, rng.random(), side="right"))
        plan = self.plan(corpus, rng, limit)
        return None if plan is None else self.render(plan, rng, limit)

    def plan(self, corpus: int, rng: np.random.Generator, limit: int) -> Draw | None:
        """Everything about a document but its tokens.

        Args:
            corpus: index of the corpus it comes from.
            rng: decides everything.
            limit: most tokens.

        Returns:
            The draw; None where no track sounds in the drawn bars, or they cannot be cut to fit.
        """
        recipe = self.recipe
        rows = self.members[corpus]
        song = int(rows[np.searchsorted(self.chances[corpus], rng.random(), side="right")])
        score, counts = self.songs[song], self.counts[song]
        task = self.tasks[int(np.searchsorted(self.task_chances, rng.random(), side="right"))]
        if task in CHORD_TASKS and score.chords is None:
            task = "continue"
        past = int(rng.integers(recipe.past_bars[0], recipe.past_bars[1] + 1))
        made = int(rng.integers(recipe.generated_bars[0], recipe.generated_bars[1] + 1))
        made = min(made, max(1, (score.n_bars + 1) // 2))
        future = past // 2 if task in ("infill", "full") else 0
        past -= future
        if task in ("accompany", "over_chords") and rng.random() < 0.5:
            past = 0
        if task in ("chords", "meta", "from_nothing"):
            past = 0
        spare = score.n_bars - made
        past, future = min(past, spare), min(future, max(spare - past, 0))
        if task == "infill" and not future:
            task = "continue"
        velocity = bool(rng.random() < recipe.velocity) and bool(np.ptp(score.velocity) > 3)
        start = int(rng.integers(0, score.n_bars - past - made - future + 1))
        first, last = start + past, start + past + made
        stop = last + future
        tracks, others = self._tracks(counts, rng, task, first, last)
        if not tracks:
            return None
        # Shorten until it fits: past bars, then tracks, then generated bars (the prompt builder does the last cut).
        budget = limit - 24 - 2 * len(tracks)

        def size() -> float:
            chords = 5.0 * (last - first) if task in (*CHORD_TASKS, "full") else 0.0
            given = counts.tokens(others, first, last, velocity) if others else 0.0
            if task == "full" and others:  # what surrounds the generated bars holds these tracks too
                given += counts.tokens(others, start, stop, velocity)
            return counts.tokens(tracks, start, stop, velocity) + given + chords

        while size() > budget:
            if first - start > 2:
                start += 1
            elif stop - last > 2:
                stop -= 1
            elif len(tracks) + len(others) > 2:
                tracks, others = _drop_one(tracks, others, rng)
            elif last - first > 2:
                last -= 1
                stop -= 1
            elif start < first:
                start += 1
            else:
                return None
        if task == "infill" and stop == last:
            task = "continue"
        if task == "full" and not others and (score.chords is None or stop == last):
            task = "infill" if stop > last else "continue"  # too little is known to call it that
        if not counts.notes(first, last)[list(tracks)].all():
            tracks = tuple(t for t in tracks if counts.notes(first, last)[t])
            if not tracks:
                return None
        low, high = transposition_range(score, *recipe.transpose)
        return Draw(
            song=song,
            task=task,
            start=start,
            first=first,
            last=last,
            stop=stop,
            tracks=tracks,
            others=others,
            semitones=int(rng.integers(low, high + 1)),
            velocity=velocity,
        )

    def render(self, plan: Draw, rng: np.random.Generator, limit: int) -> Document | None:
        """The tokens of a draw.

        Args:
            plan: of `plan`.
            rng: decides which controls are left out and how the key is spelled.
            limit: most tokens.

        Returns:
            The document; None where it does not fit after all.
        """
        chance = {control.name: control.drop * self.recipe.header_dropout for control in CONTROLS}
        score = self.songs[plan.song].window(plan.start, plan.stop)
        score = transpose(score, plan.semitones)
        melody = plan.task not in ("chords", "meta")
        # A description is learnt whole and in one spelling: nothing of it is left out or drawn.
        random = {"drop": chance, "rng": rng} if plan.task != "meta" else {}
        try:
            ids, answer = training_example(
                self.vocabulary,
                score,
                plan.first - plan.start,
                plan.last - plan.first,
                past_bars=plan.first - plan.start,
                future_bars=plan.stop - plan.last,
                task="melody" if melody else plan.task,
                targets=plan.tracks if melody else None,
                const=plan.others if melody else plan.tracks,
                chords=plan.task == "over_chords" or (plan.task == "full" and score.chords is not None),
                velocity=plan.velocity,
                genres=self.genres[plan.song],
                max_length=limit,
                **random,
            )
        except PromptError:
            return None
        target = np.zeros(len(ids), dtype=bool)
        target[answer:] = True
        if self.recipe.past_loss and plan.task == "continue":
            past = np.flatnonzero(ids[:answer] == self.vocabulary.id(TokenKind.PAST))
            if len(past):
                target[past[0] + 1 :] = True
        notes = 0 if not melody else int(self.counts[plan.song].notes(plan.first, plan.last)[list(plan.tracks)].sum())
        return Document(ids, target, plan.song, plan.task, notes)

    def _tracks(self, counts: _Counts, rng, task: str, first: int, last: int) -> tuple[tuple, tuple]:
        """(generated tracks, given tracks), both in file order; only tracks that sound in the generated bars."""
        sounding = np.flatnonzero(counts.notes(first, last))
        if len(sounding) > 1 and rng.random() < self.recipe.track_subset:
            size = int(rng.integers(1, len(sounding) + 1))
            sounding = np.sort(rng.choice(sounding, size, replace=False))
        if task in ("accompany", "full") and len(sounding) > 1:
            made = int(rng.integers(1, len(sounding)))
            chosen = np.sort(rng.choice(sounding, made, replace=False))
            return tuple(chosen.tolist()), tuple(np.setdiff1d(sounding, chosen).tolist())
        return tuple(sounding.tolist()), ()


def _drop_one(tracks: tuple, others: tuple, rng) -> tuple[tuple, tuple]:
    """Leave out one track, the given ones first; at least one generated and (if there was one) one given remain."""
    pool = others if len(others) > 1 or len(tracks) == 1 else tracks
    gone = int(rng.integers(len(pool)))
    left = pool[:gone] + pool[gone + 1 :]
    return (left, others) if pool is tracks else (tracks, left)
