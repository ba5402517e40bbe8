"""Documents for an encoder: those of pretraining, and bare windows as classifiers read them.

Design decisions
- A model that judges sees two forms: a window behind its prompt (what a policy writes) and a window alone, without
  header, tempo and velocity (what labelled sets hold). An encoder has to know both before it is fine-tuned, so a share
  of its documents is bare, and a share of these has all pitched tracks merged into one.
- Songs, windows' lengths, track subsets and transposition are drawn as for pretraining, by the same recipe.

Knows: songs, the drawing of examples, the bare form. Must not know: masks, rows, models.
"""

from __future__ import annotations

import numpy as np

from ..models.inputs_bertm import bare_segment, merge_tracks
from ..models.music_names import DRUMS
from ..models.token_vocabulary import MetricVocabulary
from .examples import ExampleSource, transpose, transposition_range
from .packing import Document
from .score_store import ScoreStore


class PieceSource(ExampleSource):
    """Draws documents as `ExampleSource` does, a share of them bare.

    Args:
        store: songs of one split.
        vocabulary: the token table.
        recipe: an `ExampleRecipe`, or anything with its fields.
        seed: of the balancing of corpora.
        packs: rows of the balancing of corpora.
        bare: share of the documents that are `<EOS> <MGEN> tracks <TE>`.
        merged: share of the bare ones in which all pitched tracks are one track.
        bare_bars: least and most bars of a bare window.

    Raises:
        ValueError: shares outside 0 to 1, or bar counts out of order.
    """

    def __init__(
        self,
        store: ScoreStore,
        vocabulary: MetricVocabulary,
        recipe,
        seed: int = 0,
        packs: int = 300,
        bare: float = 0.4,
        merged: float = 0.5,
        bare_bars: tuple[int, int] = (4, 16),
    ):
        if not (0 <= bare <= 1 and 0 <= merged <= 1 and 1 <= bare_bars[0] <= bare_bars[1]):
            raise ValueError("bare and merged must lie in 0 to 1, bare_bars must be two bar counts, the smaller first")
        self.bare, self.merged, self.bare_bars = bare, merged, bare_bars
        super().__init__(store, vocabulary, recipe, seed, packs)

    def draw(self, rng: np.random.Generator, limit: int) -> Document | None:
        """One document, bare or as for pretraining.

        Args:
            rng: decides everything.
            limit: most tokens.

        Returns:
            A `Document`, or `None` where none was found.
        """
        if rng.random() >= self.bare:
            return super().draw(rng, limit)
        corpus = int(np.searchsorted(self.corpus_chances, rng.random(), side="right"))
        rows = self.members[corpus]
        song = int(rows[np.searchsorted(self.chances[corpus], rng.random(), side="right")])
        return self.bare_window(song, rng, limit)

    def bare_window(self, song: int, rng: np.random.Generator, limit: int) -> Document | None:
        """A bare window of one song.

        Args:
            song: index of the song.
            rng: decides bars, tracks, transposition and form.
            limit: most tokens.

        Returns:
            A `Document`, or `None` where none was found.
        """
        score, counts = self.songs[song], self.counts[song]
        bars = min(int(rng.integers(self.bare_bars[0], self.bare_bars[1] + 1)), score.n_bars)
        first = int(rng.integers(0, score.n_bars - bars + 1))
        merged = bool(rng.random() < self.merged)
        while bars > 1 and counts.tokens(range(score.n_tracks), first, first + bars, False) > limit:
            bars = bars * 3 // 4
        tracks, _ = self._tracks(counts, rng, "continue", first, first + bars)
        if not tracks:
            return None
        window = score.window(first, first + bars).take_tracks(tracks)
        low, high = transposition_range(window, *self.recipe.transpose)
        window = transpose(window, int(rng.integers(low, high + 1)))
        if merged and (window.programs[window.track] != DRUMS).any():
            window = merge_tracks(window)
        ids = bare_segment(self.vocabulary, window)
        if len(ids) > limit:
            return None
        target = np.ones(len(ids), dtype=bool)
        target[:2] = False
        return Document(ids, target, song, "bare", window.n_notes)


__all__ = ["PieceSource"]
