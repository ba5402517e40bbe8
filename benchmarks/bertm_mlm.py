"""What the bundled encoder knows of hidden notes: accuracy on the test split, against copying and counting.

    python benchmarks/bertm_mlm.py --data PACK [--model FOLDER] [--json FILE] [--limit N]

Every fixed test window (`starter.test.csv`) gives its eight later bars as one bare piece (no header, tempo, velocity;
tracks kept). One way of hiding at a time, always with `<MASK>`:

- note: 15 % of the notes, whole. bar: 25 % of the bars of each track, whole. pitch, onset, duration: of all notes in
  half of the bars.

Asked is the likeliest token at every hidden place; a note is right if all its tokens are. Baselines, which are told
what kind of token each place holds:

- unigram: the most frequent pitch, onset and duration of the train split.
- previous note: pitch and duration of the last visible note of the track (of the next, where there is none), the
  onset where that note ends.
- previous bar: the note of the same rank in the bar before, where it is visible; else the previous note.

Macro-average over corpora of the share in each corpus; 95 % intervals over song clusters.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RECIPES = ROOT / "mortm_hf" / "training" / "recipes"
WAYS = {"note": {"rate": 0.15}, "bar": {"rate": 0.25}} | {
    name: {"attribute_span": (0.5, 0.5)} for name in ("pitch", "onset", "duration")
}
ATTRIBUTES = ("onset", "pitch", "duration")
MODELS = ("model", "previous bar", "previous note", "unigram")


class Notes:
    """The notes of a flat batch of pieces, in order: where their tokens are and which note stands before.

    Attributes:
        place: `[notes, 3]` positions of onset, pitch and first duration token. piece: `[notes]`.
    """

    def __init__(self, vocabulary, ids, starts):
        from mortm_hf.models.token_vocabulary import TokenKind

        kind = vocabulary.kind[ids]
        at = np.flatnonzero((kind[:-1] == TokenKind.ONSET) & (kind[1:] == TokenKind.PITCH))
        self.place = at[:, None] + np.arange(3)
        self.piece = np.searchsorted(starts, at, side="right") - 1
        track = np.cumsum(kind == TokenKind.INSTRUMENT)[at]
        bar = np.cumsum(kind == TokenKind.BAR)[at]
        self.value = vocabulary.value[ids[self.place]]
        n, index = len(at), np.arange(len(at))
        # numbers of tracks and bars run through the batch, so equal numbers mean the same track and bar
        self.track = track
        first_of_bar = np.searchsorted(bar, bar)
        before = np.searchsorted(bar, bar - 1)
        twin = before + index - first_of_bar
        fits = (twin < first_of_bar) & (np.minimum(twin, n - 1) >= 0)
        twin = np.minimum(twin, n - 1)
        self.twin = np.where(fits & (bar[twin] == bar - 1) & (track[twin] == track), twin, -1)

    def previous(self, visible: np.ndarray) -> np.ndarray:
        """`[notes]` the last visible note of the track before each (the next one where there is none; -1: none)."""
        n, index = len(visible), np.arange(len(visible))
        last = np.maximum.accumulate(np.where(visible, index, -1))
        last = np.append(-1, last[:-1])
        after = np.minimum.accumulate(np.where(visible, index, n)[::-1])[::-1]
        same = (last >= 0) & (self.track[last] == self.track)
        after = np.minimum(after, n - 1)
        follows = visible[after] & (self.track[after] == self.track)
        return np.where(same, last, np.where(follows, after, -1))

    def copied(self, visible: np.ndarray, unigram: np.ndarray, by_bar: bool) -> np.ndarray:
        """`[notes, 3]` values of a note that is copied from a neighbour."""
        source = self.previous(visible)
        before = source < np.arange(len(source))
        guess = self.value[source].copy()
        follows = guess[:, 0] + np.where(before, guess[:, 2], 0)
        guess[:, 0] = np.where(follows < 96, follows, 0)  # behind the last note; in a new bar from its beginning
        guess[source < 0] = unigram
        if by_bar:
            good = (self.twin >= 0) & visible[self.twin]
            guess[good] = self.value[self.twin[good]]
        return guess


def frequent(vocabulary, store) -> np.ndarray:
    """`[3]` the most frequent onset in the bar, pitch and duration of a store."""
    from mortm_hf.models.token_vocabulary import LONG_DURATIONS

    counts = [np.zeros(192, int), np.zeros(128, int), np.zeros(LONG_DURATIONS[0] - 23, int)]
    for song in store.songs:
        score = song.score
        onset = score.onset - score.bars.start[score.bar_of_notes()]
        for column, values in zip(counts, (onset, score.pitch, np.minimum(score.duration, len(counts[2]) - 1))):
            column += np.bincount(values, minlength=len(column))
    return np.array([column.argmax() for column in counts])


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the training pack")
    parser.add_argument("--model", default="", help="checkpoint folder; by default the bundled encoder")
    parser.add_argument("--cache", default="", help="folder for prepared stores")
    parser.add_argument("--limit", type=int, default=0, help="windows of each corpus (0: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default="", help="write all figures here")
    options = parser.parse_args(words)

    import torch
    from tqdm import tqdm

    import mortm_hf
    from mortm_hf.data import build_store
    from mortm_hf.data.masking import MaskingRecipe, choose_tokens
    from mortm_hf.data.packing import generator
    from mortm_hf.evaluation.fixed_windows import GENERATED, GIVEN, read_windows
    from mortm_hf.evaluation.intervals import ratio_by_group
    from mortm_hf.models.inputs_bertm import bare_segment, batches_by_length, clip_durations, pad_rows
    from mortm_hf.models.modeling_bertm import BertmForMaskedLM
    from mortm_hf.models.tokenization_mortm import MortmTokenizer
    from mortm_hf.training.tasks import read_data

    torch.set_num_threads(options.threads)
    folder = options.model or mortm_hf.BERTM
    tokenizer = MortmTokenizer.from_pretrained(folder)
    model = BertmForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    vocabulary = tokenizer.vocabulary
    selection = read_data(RECIPES / "starter.yaml").selection()
    train, test = (build_store(options.data, selection, s, options.cache or None) for s in ("train", "test"))
    unigram = frequent(vocabulary, train)
    print(f"most frequent in train: onset {unigram[0]}, pitch {unigram[1]}, duration {unigram[2]}")

    songs = {song.path: song for song in test.songs}
    rows, corpus, cluster, seen = [], [], [], {}
    for window in read_windows(RECIPES / "starter.test.csv"):
        song = songs[window.path]
        music = song.score.window(window.start + GIVEN, window.start + GIVEN + GENERATED)
        if not music.n_notes or (options.limit and seen.get(song.corpus, 0) >= options.limit):
            continue
        ids = bare_segment(vocabulary, clip_durations(music))
        if len(ids) > model.config.max_position_embeddings:
            continue
        seen[song.corpus] = seen.get(song.corpus, 0) + 1
        rows.append(ids)
        corpus.append(song.corpus)
        cluster.append(song.cluster)
    corpus, cluster = np.array(corpus), np.array(cluster)
    print(f"{len(rows)} windows: " + ", ".join(f"{k} {v}" for k, v in seen.items()))

    n = len(rows)
    names = (*ATTRIBUTES, "whole note")
    hits = {m: {w: np.zeros((n, 4)) for w in WAYS} for m in MODELS}
    total = {w: np.zeros((n, 4)) for w in WAYS}
    mask_id = vocabulary["<MASK>"]
    batches = batches_by_length([len(row) for row in rows], 8192)
    for number, batch in enumerate(tqdm(batches, desc="scoring", unit="batch")):
        chosen = [rows[i] for i in batch]
        sizes = np.array([len(row) for row in chosen])
        starts = np.cumsum(sizes) - sizes
        flat = np.concatenate(chosen).astype(np.int64)
        notes = Notes(vocabulary, flat, starts)
        for way, setting in WAYS.items():
            recipe = MaskingRecipe(ways={way: 1.0}, **setting)
            hidden = choose_tokens(vocabulary, flat, starts, recipe, generator(options.seed, number, 7))[0]
            ids, mask = pad_rows(np.split(np.where(hidden, mask_id, flat), starts[1:]), tokenizer.pad_token_id)
            with torch.no_grad():
                best = model(input_ids=ids, attention_mask=mask).logits.argmax(-1)[mask.bool()].numpy()
            lost = hidden[notes.place]
            visible = ~lost.any(1)
            truth = flat[notes.place]
            # every token of a note, also where its length takes several
            wrong = np.cumsum(np.append(0, hidden & (best != flat)))
            ends = np.append(notes.place[1:, 0], len(flat))
            guesses = {
                "model": best[notes.place] == truth,
                "unigram": notes.value == unigram,
                "previous note": notes.copied(visible, unigram, False) == notes.value,
                "previous bar": notes.copied(visible, unigram, True) == notes.value,
            }
            for name, right in guesses.items():
                right = right & lost
                whole = (right | ~lost).all(1) & lost.any(1)
                if name == "model":
                    whole = (wrong[ends] == wrong[notes.place[:, 0]]) & lost.any(1)
                table = np.column_stack([right, whole])
                for column in range(4):
                    hits[name][way][batch, column] = np.bincount(
                        notes.piece, weights=table[:, column], minlength=len(batch)
                    )
            counts = np.column_stack([lost, lost.any(1)])
            for column in range(4):
                total[way][batch, column] = np.bincount(notes.piece, weights=counts[:, column], minlength=len(batch))

    result = {"windows": n, "seed": options.seed, "model": Path(folder).name, "limit": options.limit, "accuracy": {}}
    for way in WAYS:
        print(f"\nhidden: {way}\n| | " + " | ".join(names) + " |\n|---|" + "---|" * 4)
        for name in MODELS:
            cells = []
            for column, what in enumerate(names):
                if not total[way][:, column].sum() or (way in ATTRIBUTES and what == "whole note"):
                    cells.append("")
                    continue
                parts = (hits[name][way][:, column], total[way][:, column])
                found = ratio_by_group(*parts, corpus, cluster, resamples=1000)["macro"]
                result["accuracy"].setdefault(way, {}).setdefault(name, {})[what] = found
                cells.append(f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]")
            print(f"| {name} | " + " | ".join(cells) + " |")
    for name in seen:
        rows_of = corpus == name
        result.setdefault("whole notes by corpus", {})[name] = {
            m: float(hits[m]["note"][rows_of, 3].sum() / max(total["note"][rows_of, 3].sum(), 1)) for m in MODELS
        }
    print("\nwhole notes, hidden notes, by corpus: " + json.dumps(result["whole notes by corpus"], indent=1))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
