"""The whole evaluation of a checkpoint, or of a folder of generated music, as one dictionary.

Design decisions
- Parts (`PARTS`) are independent; each is cached as JSON under a name made of everything it depends on, and the
  answers of the model are cached batch by batch: a run that was cut off goes on, a second one is quick.
- Every figure of samples stands beside the same figure of what composers wrote in the very windows the samples were
  asked for; distances are taken to the other windows of the split, so that the human row is a fair floor.
- Music of unknown origin (a folder of MIDI files) is cut into passages of eight bars and measured by the same code;
  what needs probabilities or requests (bits, grammar, control, chords) does not apply to it.

Knows: stores, windows, the metrics of this package. Must not know: command lines, files of reports.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ..data.labelled_windows import evenly
from ..data.whole_files import write_json
from ..models.music_score import MetricScore
from ..models.token_grammar import infer_plan
from .bits_per_note import model_bits, summarise
from .chord_baselines import Majority, Templates
from .chord_estimation import METRICS, ChordReading, compare, model_chords, notes_only, paired, summary
from .control import chance_report, control_report, make_requests, read_answer
from .copying import copied_from
from .distances import FEATURES, distribution_distances, diversity, histograms
from .eval_data import EvalData
from .fixed_windows import GENERATED, GIVEN, Encoded, Window, encode_windows
from .grammar_errors import violations
from .intervals import mean
from .model_answers import AnswerCache, Ask, Sampling, answer_all
from .music_figures import FIGURES, table_of_figures
from .variety import spread_windows, variety


PARTS = ("bits", "grammar", "control", "music", "chords")
FORMAT = 3  # of the cached parts


@dataclass(frozen=True)
class Settings:
    """How much is measured and how music is drawn.

    Attributes:
        samples: answers a set (continuations, requests, requests without the grammar), of eight bars each.
        bits_windows: windows of each corpus whose bits are counted (0: all).
        chord_songs: songs of each corpus whose chords are estimated (0: all).
        tune_songs: songs that the chord baselines are tuned on.
        train_songs: songs that copies are looked for in (0: all).
        melody: estimate chords from the melody alone as well.
        batch: answers drawn together.
        seed: of all that is drawn.
        sampling: how answers are drawn.
        reading: how chords are estimated.
    """

    samples: int = 200
    bits_windows: int = 0
    chord_songs: int = 0
    tune_songs: int = 60
    train_songs: int = 0
    melody: bool = True
    batch: int = 32
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    reading: ChordReading = field(default_factory=ChordReading)

    @classmethod
    def quick(cls, **changes) -> Settings:
        """Minutes on one core: few samples, the first windows, no figure fit for publication."""
        small = {"samples": 12, "bits_windows": 2, "chord_songs": 3, "tune_songs": 8, "melody": False}
        return cls(**(small | changes))


def first_of_each(items: Sequence, corpus_of: Callable, count: int) -> list:
    """The first items of every corpus, in order.

    Args:
        items: any sequence.
        corpus_of: item -> name of its corpus.
        count: how many of each (all if 0).
    """
    seen: dict[str, int] = {}
    kept = []
    for item in items:
        name = corpus_of(item)
        seen[name] = seen.get(name, 0) + 1
        if not count or seen[name] <= count:
            kept.append(item)
    return kept


class Evaluation:
    """One model (or none) on one split.

    Args:
        model: a causal language model, or `None`.
        tokenizer: its tokenizer.
        data: songs and windows.
        settings: how much is measured.
        identity: of the model; cached answers are filed under it.
        cache: folder of finished parts and answers, or `None`.
        progress: show bars.
    """

    def __init__(
        self, model, tokenizer, data: EvalData, settings: Settings, identity="", cache=None, progress: bool = False
    ):
        self.model, self.tokenizer, self.data, self.settings = model, tokenizer, data, settings
        self.identity, self.progress = identity, progress
        self.cache = None if cache is None else Path(cache)
        self.context = 4096 if model is None else int(getattr(model.config, "max_position_embeddings", None) or 4096)

    def run(self, parts: Sequence[str] = PARTS) -> dict:
        """`{part: figures}` of the named parts, in the order of `PARTS`."""
        return {part: self._cached(part, getattr(self, f"_{part}")) for part in PARTS if part in parts}

    # ------------------------------------------------------------------------------------------------------- helpers

    def _title(self, text: str) -> str | None:
        return text if self.progress else None

    def _cached(self, name: str, work: Callable[[], dict]) -> dict:
        if self.cache is None:
            return work()
        songs = [
            (s.path, s.score.n_notes, s.genre, s.score.key, s.score.chords is not None) for s in self.data.songs.songs
        ]
        songs.append([self.data.name, self.data.train is not None])
        key = json.dumps([FORMAT, name, self.identity, asdict(self.settings), songs, [str(w) for w in self.windows]])
        path = self.cache / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        found = json.loads(json.dumps(work()))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
        return found

    @property
    def windows(self) -> list[Window]:
        """The fixed windows."""
        return list(self.data.windows)

    @cached_property
    def _encoded(self) -> tuple[list[Encoded], list]:
        return encode_windows(self.tokenizer.vocabulary, self.data.songs, self.windows, self.context)

    def _answers(self, name: str, asks: Sequence[Ask], sampling: Sampling) -> list[np.ndarray]:
        settings = self.settings
        cache = AnswerCache(self.cache, name, self.identity, asks, sampling, settings.seed)
        return answer_all(
            self.model,
            self.tokenizer,
            asks,
            sampling,
            settings.seed,
            batch=settings.batch,
            cache=cache,
            progress=self._title(name),
        )

    # --------------------------------------------------------------------------------------------------------- parts

    def _bits(self) -> dict:
        encoded, left_out = self._encoded
        windows = first_of_each(encoded, lambda w: w.corpus, self.settings.bits_windows)
        found = model_bits(self.model, windows, self.tokenizer.pad_token_id, progress=self._title("bits"))
        return {"by_corpus": summarise(found, windows), "left_out": len(left_out)}

    @cached_property
    def _requests(self):
        return make_requests(
            self.tokenizer,
            self.data.songs,
            self.windows,
            self.settings.samples,
            self.context,
            self.settings.seed,
        )

    def _free(self) -> list[np.ndarray]:
        sampling = replace(self.settings.sampling, grammar=False)
        return self._answers("requests-free", [r.ask for r in self._requests], sampling)

    def _grammar(self) -> dict:
        asks = [r.ask for r in self._requests]
        return violations(self.tokenizer, [a.ids for a in asks], self._free())

    def _control(self) -> dict:
        requests = self._requests
        asks = [r.ask for r in requests]
        drawn = self._answers("requests", asks, self.settings.sampling)
        found: dict[str, object] = {}
        for name, answers in (("samples", drawn), ("samples_free", self._free())):
            music = [read_answer(self.tokenizer, a.ids, ids) for a, ids in zip(asks, answers)]
            found[name] = control_report(requests, music)
            if name == "samples":
                found["chance"] = chance_report(requests, music)
        found["human"] = control_report(requests, [r.human for r in requests])
        corpora = [r.corpus for r in requests]
        return found | {"requests": {name: corpora.count(name) for name in dict.fromkeys(corpora)}}

    def _music(self) -> dict:
        encoded, _ = self._encoded
        picked = spread_windows(encoded, self.settings.samples)
        vocabulary, dialect = self.tokenizer.vocabulary, self.tokenizer.dialect
        asks = []
        for window in picked:
            prompt = window.ids[: window.answer]
            room = min(2 * (len(window.ids) - window.answer) + 64, self.context - window.answer)
            asks.append(Ask(prompt, infer_plan(vocabulary, prompt, dialect), max(room, 1)))
        answers = self._answers("continuations", asks, self.settings.sampling)
        songs = {song.path: song.score for song in self.data.songs.songs}
        human, past, made = [], [], []
        for window, ask, ids in zip(picked, asks, answers):
            score, start = songs[window.window.path], window.window.start
            past.append(score.window(start, start + GIVEN))
            human.append(score.window(start + GIVEN, start + GIVEN + GENERATED))
            made.append(read_answer(self.tokenizer, ask.ids, ids))
        kept = [i for i, score in enumerate(made) if score is not None and score.n_notes]
        chosen = {w.window for w in picked}
        others = [w for w in encoded if w.window not in chosen]
        report = self.music_report(
            [made[i] for i in kept],
            [picked[i].corpus for i in kept],
            human,
            [w.corpus for w in picked],
            [w.cluster for w in picked],
            others,
        )
        report["variety"] = {
            "samples": variety([(made[i], past[i]) for i in kept]),
            "human": variety(list(zip(human, past))),
        }
        return report | {"unreadable": len(made) - len(kept)}

    def music_report(
        self,
        made: Sequence[MetricScore],
        corpora: Sequence[str],
        human: Sequence[MetricScore],
        human_corpora: Sequence[str],
        clusters: Sequence[str],
        others: Sequence[Encoded],
    ) -> dict:
        """Figures, distances, copies and diversity of passages beside those of human passages.

        Args:
            made: the passages.
            corpora: of these passages.
            human: human passages.
            human_corpora: of these passages.
            clusters: songs of the human passages.
            others: windows of the split that distances are taken to.
        """
        songs = {song.path: song.score for song in self.data.songs.songs}
        reference = [songs[w.window.path].window(w.window.start + GIVEN, w.window.start + 16) for w in others]
        names = [w.corpus for w in others]
        if not set(corpora) & set(names):  # music of unknown origin: one mixture against the other
            corpora, human_corpora, names = ["all"] * len(made), ["all"] * len(human), ["all"] * len(names)
        sets = {"samples": (made, corpora), "human": (human, human_corpora)}
        report: dict[str, dict] = {"figures": {}, "distances": {}, "diversity": {}, "histograms": {}}
        train = self.data.train_songs
        for name, (passages, of) in sets.items():
            table = table_of_figures(passages, self._title(f"figures of {name}"))
            groups = clusters if name == "human" and len(clusters) == len(passages) else None
            report["figures"][name] = {key: mean(table[key], groups) for key in FIGURES}
            report["distances"][name] = distribution_distances(passages, of, reference, names)
            report["diversity"][name] = diversity(passages)
            counts = [histograms(p) for p in passages]
            report["histograms"][name] = {
                key: np.sum([c[key] for c in counts], axis=0).tolist() if counts else [] for key in FEATURES
            }
        if train is not None:
            scores = first_of_each([s.score for s in train.songs], lambda s: "", self.settings.train_songs)
            report["copying"] = {name: copied_from(scores, p).summary() for name, (p, _) in sets.items()}
            report["copying"]["train_songs"] = len(scores)
        return report | {"passages": {name: len(p) for name, (p, _) in sets.items()}}

    def _chords(self) -> dict:
        settings = self.settings
        songs = [s for s in self.data.songs.songs if s.score.chords is not None]
        songs = first_of_each(songs, lambda s: s.corpus, settings.chord_songs)
        if not songs:
            return {"skipped": "no song of the split has annotated chords"}
        train, held = self.data.train_songs, self.data.validation_songs
        report: dict[str, object] = {"reading": str(settings.reading), "tuned": {}}
        for tracks in ("all", "melody") if settings.melody else ("all",):
            inputs = [notes_only(s.score, tracks) for s in songs]
            guesses = {
                "model": model_chords(
                    self.model,
                    self.tokenizer,
                    inputs,
                    settings.reading,
                    batch=settings.batch,
                    cache_folder=self.cache,
                    identity=self.identity,
                    seed=settings.seed,
                    progress=self._title(f"chords from {tracks}"),
                )
            }
            if train is not None:
                guesses |= chord_baselines(
                    songs, inputs, train, held, tracks, settings.tune_songs, report["tuned"], self._title("templates")
                )
            scores = {
                name: [compare(s.score.chords, g, s.score.bars.end) for s, g in zip(songs, found)]
                for name, found in guesses.items()
            }
            report[tracks] = chord_tables(songs, scores)
        return report


def chord_baselines(songs, inputs, train, held, tracks: str, limit: int, tuned: dict, progress=None) -> dict:
    """Guesses of the constant and template baselines, fitted corpus by corpus.

    Args:
        songs: the songs to guess.
        inputs: what of them may be read.
        train: songs to fit on.
        held: songs to tune on, or `None`: those of `train`.
        tracks: as `notes_only` takes them.
        limit: most songs to tune on (0: all).
        tuned: their settings are put here.
        progress: title of a progress bar; `None`: no bar.

    Returns:
        `{estimator: [a table a song]}`.
    """
    from tqdm import tqdm

    guesses: dict[str, list] = {"majority": [None] * len(songs), "majority of key": [None] * len(songs)}
    guesses["templates"] = [None] * len(songs)
    for corpus in tqdm(list(dict.fromkeys(s.corpus for s in songs)), desc=progress, disable=progress is None):
        majority = Majority.fit(s.score for s in train.songs if s.corpus == corpus)
        pool = [s.score for s in (held or train).songs if s.corpus == corpus and s.score.chords is not None]
        pool = pool[:: max(1, -(-len(pool) // limit))] if limit else pool
        rule = Templates.tune([notes_only(s, tracks) for s in pool], [s.chords for s in pool])
        tuned[f"{corpus}, {tracks}"] = {"majority": str(majority), **asdict(rule), "songs": len(pool)}
        for index, song in enumerate(songs):
            if song.corpus == corpus:
                guesses["majority"][index] = majority.estimate(inputs[index])
                guesses["majority of key"][index] = majority.estimate(inputs[index], by_key=True)
                guesses["templates"][index] = rule.estimate(inputs[index])
    return guesses


def chord_tables(songs, scores: dict[str, list[dict]]) -> dict:
    """Scores by corpus.

    Args:
        songs: the songs.
        scores: `{estimator: [scores of compare]}`.

    Returns:
        `{corpus: {"songs", "quarters", "scores": {estimator: summary}, "differences": {baseline: model minus it}}}`.
    """
    tables = {}
    for corpus in dict.fromkeys(s.corpus for s in songs):
        rows = [i for i, s in enumerate(songs) if s.corpus == corpus]
        clusters = [songs[i].cluster for i in rows]
        mine = {name: [found[i] for i in rows] for name, found in scores.items()}
        tables[corpus] = {
            "songs": len(rows),
            "quarters": sum(s[next(iter(METRICS))][1] for s in mine["model"]),
            "scores": {name: summary(found, clusters) for name, found in mine.items()},
            "differences": {n: paired(mine["model"], f, clusters) for n, f in mine.items() if n != "model"},
        }
    return tables


def passages_of(scores: Sequence[MetricScore], count: int, bars: int = GENERATED) -> list[MetricScore]:
    """Consecutive passages (a shorter piece is one passage), evenly over all pieces.

    Args:
        scores: the pieces.
        count: most passages.
        bars: of a passage.
    """
    found = []
    for score in scores:
        starts = range(0, max(score.n_bars - bars + 1, 1), bars)
        pieces = [score.window(at, min(at + bars, score.n_bars)) for at in starts]
        found += [p.take_tracks(p.sounding_tracks()) for p in pieces if p.n_notes]
    return evenly(found, count)


def music_of_files(scores: Sequence[MetricScore], evaluation: Evaluation) -> dict:
    """The music part for pieces of unknown origin, beside the human windows of the split.

    Args:
        scores: the pieces.
        evaluation: of the split; it needs no model.
    """
    encoded, _ = evaluation._encoded
    picked = spread_windows(encoded, evaluation.settings.samples)
    chosen = {w.window for w in picked}
    songs = {song.path: song.score for song in evaluation.data.songs.songs}
    human = [songs[w.window.path].window(w.window.start + GIVEN, w.window.start + 16) for w in picked]
    made = passages_of(scores, evaluation.settings.samples)
    others = [w for w in encoded if w.window not in chosen]
    names = ["files"] * len(made)
    found = evaluation.music_report(
        made, names, human, [w.corpus for w in picked], [w.cluster for w in picked], others
    )
    found["variety"] = {"samples": variety([(m, None) for m in made]), "human": variety([(h, None) for h in human])}
    return found
