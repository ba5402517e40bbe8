"""Pipelines of BERTM: `midi-classification` and `midi-feature-extraction`.

Design decisions
- A song is cut into windows of the form the checkpoint was trained on (`window_bars`, `window_form` of its
  configuration); its logits are the mean of its windows', so that a long song is one answer.
- An embedding is the mean of the states of note tokens: of a bar over the notes that begin in it (all tracks), of a
  song over all its notes. Markers and headers would make all songs look alike.
- `transformers`' own "feature-extraction" works on the same checkpoints with text (`tokenizer.decode(ids)`) and gives
  the states of tokens.

Knows: the tokenizer, windows, logits and states. Must not know: layers of models, token strings, what a label means.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors_mortm import PromptError
from .inputs_bertm import bare_segment, batches_by_length, pad_rows, song_windows
from .pipeline_midi import MusicPipeline
from .prompt_words import bar_range, whole_number
from .token_vocabulary import TokenKind


BATCH_TOKENS = 8192


@dataclass
class SongWindows:
    """What a model reads of one song.

    Attributes:
        ids: int ids of each window.
        bars: bars of each window (first, bar after the last), as the song counts them.
        first: first bar that was asked for.
        n_bars: how many were asked for.
    """

    ids: list[np.ndarray]
    bars: list[tuple[int, int]]
    first: int
    n_bars: int


_READING = ("bars", "tracks", "window")


class MidiReadingPipeline(MusicPipeline):
    """What both pipelines share: reading a song into windows, and batches."""

    _rest = 0.5  # of a window, or more: a shorter end of a song is left out

    def preprocess(self, inputs, bars=None, tracks=None, window=None):
        if inputs is not None and self.tokenizer.dialect != "metric":
            return {"song": self._whole_file(inputs, bars=bars, tracks=tracks, window=window)}
        song, first = self.open_song(inputs)[1], 0
        if bars is not None:
            first, last = bar_range(bars, song.n_bars, "bars")
            song = song.window(first, last)
        if tracks is not None:
            chosen = np.atleast_1d(np.asarray(tracks, dtype=np.int64))
            if not len(chosen) or chosen.min() < 0 or chosen.max() >= song.n_tracks:
                raise PromptError(f"tracks must be indices below {song.n_tracks}, got {tracks}", "prompt.tracks")
            song = song.take_tracks(chosen)
        config = self.model.config
        length = whole_number(getattr(config, "window_bars", 8) if window is None else window, "window", 1)
        found = song_windows(song, length, self._form(), self._rest)
        vocabulary = self.tokenizer.vocabulary
        ids = [bare_segment(vocabulary, music) for _, music in found]
        limit = getattr(config, "max_position_embeddings", None) or max(map(len, ids))
        places = [(start + first, stop + first) for (start, stop), _ in found]
        return {"song": SongWindows([row[:limit] for row in ids], places, first, song.n_bars)}

    def _whole_file(self, inputs, **chosen) -> SongWindows:
        """A file as upstream's checkpoints read it: all of it, in their own tokens."""
        given = [name for name, value in chosen.items() if value is not None]
        if given:
            raise PromptError(
                f"a checkpoint of the mortm dialect reads whole files: leave out {', '.join(given)}", "prompt.bars"
            )
        return SongWindows([np.asarray(self.tokenizer.encode_midi(inputs))], [(0, 1)], 0, 1)

    def _form(self) -> str:
        return getattr(self.model.config, "window_form", "tracks")

    def _forward(self, model_inputs, **parameters):
        songs = model_inputs["song"]
        many = isinstance(songs, list)
        songs = songs if many else [songs]
        rows = [row for song in songs for row in song.ids]
        answers: list = [None] * len(rows)
        for batch in batches_by_length([len(row) for row in rows], BATCH_TOKENS):
            ids, mask = pad_rows([rows[i] for i in batch], self.tokenizer.pad_token_id, self.device)
            for i, answer in zip(batch, self._answers(ids, mask, **parameters)):
                answers[i] = answer
        ends = np.cumsum([len(song.ids) for song in songs])
        groups = [(song, answers[end - len(song.ids) : end]) for song, end in zip(songs, ends)]
        return {"answers": groups if many else groups[0]}

    def _answers(self, ids, mask, **parameters):
        """One answer for every row of a batch."""
        raise NotImplementedError


class MidiClassificationPipeline(MidiReadingPipeline):
    """What kind of music a MIDI file holds.

    ```python
    pipe = pipeline("midi-classification", model=folder)
    pipe("song.mid")  # [{"label": "pop", "score": 0.93}, {"label": "lied", "score": 0.04}, ...]
    ```

    Args (of a call, or of the pipeline as defaults of its calls):
        inputs: path, MIDI bytes, `symusic.Score`, `MetricScore`, or a list of them.
        bars: (first, bar after the last) to read; by default all.
        tracks: indices of the tracks to read; by default all.
        window: bars read at a time; by default those the model was trained on.
        top_k: how many labels to give; by default all.
        windows: also give the scores of every window.

    Returns:
        Dicts of `label` and `score`, the likeliest first (a list of such lists for a list of inputs). Scores of
        several labels sum to 1, unless the model knows several labels at a time; a model of one logit gives that
        label's probability and, where its configuration names it (`negative_label`), that of the opposite. With
        `windows`: a dict of `labels` (this list) and `windows` (dicts of `bars` and `labels`).

    Raises:
        MidiError: an unusable input (a `ValueError` with a `code`).
        PromptError: an impossible request, likewise.
    """

    _options = (_READING, (), ("top_k", "windows"))

    def _answers(self, ids, mask):
        return self.model(input_ids=ids, attention_mask=mask).logits.float().cpu().numpy()

    def postprocess(self, model_outputs, top_k=None, windows=False):
        song, logits = model_outputs["answers"]
        labels = self._labels(np.mean(logits, axis=0), top_k)
        if not windows:
            return labels
        parts = [{"bars": bars, "labels": self._labels(row, top_k)} for bars, row in zip(song.bars, logits)]
        return {"labels": labels, "windows": parts}

    def _labels(self, logits: np.ndarray, top_k: int | None) -> list[dict]:
        config = self.model.config
        names = [config.id2label[i] for i in range(len(logits))]
        if len(logits) == 1:
            chance = _sigmoid(logits)
            if getattr(config, "negative_label", None) is not None:
                names, chance = [*names, config.negative_label], np.append(chance, 1 - chance)
        elif config.problem_type == "multi_label_classification":
            chance = _sigmoid(logits)
        else:
            chance = np.exp(logits - logits.max())
            chance /= chance.sum()
        order = np.argsort(-chance, kind="stable")[:top_k]
        return [{"label": names[i], "score": float(chance[i])} for i in order]


class MidiFeatureExtractionPipeline(MidiReadingPipeline):
    """A song and its bars as vectors, for search, maps and classifiers of one's own.

    ```python
    pipe = pipeline("midi-feature-extraction", model=folder)
    found = pipe("song.mid")
    found["song"], found["bars"]              # [hidden], [n_bars, hidden]
    ```

    Args (of a call, or of the pipeline as defaults of its calls):
        inputs: path, MIDI bytes, `symusic.Score`, `MetricScore`, or a list of them.
        bars: (first, bar after the last) to read; by default all.
        tracks: indices of the tracks to read; by default all.
        window: bars read at a time; by default those the model was trained on.
        layer: whose states; -1 is the last, 0 the embeddings.

    Returns:
        A dict (a list of them for a list of inputs): `song` `[hidden]` float32, mean over the states of all note
        tokens; `bars` `[n_bars, hidden]`, mean over those of the notes that begin in the bar (zeros where none does);
        `notes` `[n_bars]`, how many note tokens that were.

    Raises:
        MidiError: an unusable input (a `ValueError` with a `code`).
        PromptError: an impossible request, likewise.
    """

    _rest = 0.0
    _options = (_READING, ("layer",), ())

    def _whole_file(self, inputs, **chosen):
        raise PromptError(
            "a checkpoint of the mortm dialect does not mark bar 0: `mortm convert FOLDER --extend-vocab -o NEW` and "
            "some training on the metric one come first",
            "prompt.dialect",
        )

    def _answers(self, ids, mask, layer=-1):
        model = getattr(self.model, self.model.base_model_prefix, self.model)
        outputs = model(input_ids=ids, attention_mask=mask, output_hidden_states=layer != -1)
        states = outputs.last_hidden_state if layer == -1 else outputs.hidden_states[layer]
        states = states.float().cpu().numpy()
        return [(row[: int(n)], chosen[: int(n)].cpu().numpy()) for row, chosen, n in zip(states, ids, mask.sum(1))]

    def postprocess(self, model_outputs):
        song, answers = model_outputs["answers"]
        kinds = self.tokenizer.vocabulary.kind
        n_bars, width = song.n_bars, answers[0][0].shape[1]
        sums, counts = np.zeros((n_bars, width), dtype=np.float64), np.zeros(n_bars, dtype=np.int64)
        for (first, last), (states, ids) in zip(song.bars, answers):
            kind = kinds[ids]
            # every track of a window begins with bar 0 again
            track = np.cumsum(kind == TokenKind.INSTRUMENT)
            bar = np.cumsum(kind == TokenKind.BAR) - 1 - (track - 1) * (last - first)
            notes = np.isin(kind, (TokenKind.ONSET, TokenKind.PITCH, TokenKind.DURATION))
            at = bar[notes] + first - song.first
            np.add.at(sums, at, states[notes])
            counts += np.bincount(at, minlength=n_bars)
        total = max(int(counts.sum()), 1)
        return {
            "song": (sums.sum(0) / total).astype(np.float32),
            "bars": (sums / np.maximum(counts, 1)[:, None]).astype(np.float32),
            "notes": counts,
        }


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(x, dtype=np.float64)))


__all__ = ["MidiClassificationPipeline", "MidiFeatureExtractionPipeline"]
