"""From music to what BERTM's heads read: windows of equal form, and batches of them.

Design decisions
- A head hears a *window*: some consecutive bars, `<EOS> <MGEN> tracks <TE>`, without header, tempo and velocity. What
  stands around the notes of a file would tell its origin, not its music. How many bars, and whether the tracks are
  kept or merged into one, is what the head was trained on: its configuration says so (`window_bars`, `window_form`).
- A song is judged window by window; what is said of it is the mean. So length as such changes nothing: a song twice as
  long is not judged twice as well.
- Batches are filled by length up to a number of tokens: padding is cheap, and a long song does not need more memory.

Knows: quantised music, the token language, arrays. Must not know: models, labels, MIDI files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from .errors_mortm import MidiError
from .metric_score import MetricScore
from .metric_vocabulary import DRUMS, MetricVocabulary, TokenKind
from .midi_codec import encode_tracks


WINDOW_FORMS = ("tracks", "merged", "drums")


def bare_segment(vocabulary: MetricVocabulary, score: MetricScore) -> np.ndarray:
    """`<EOS> <MGEN> tracks <TE>` of a score, int32: no header, tempo or velocity."""
    plain = replace(score, tempo=np.full(score.n_bars, -1, dtype=np.int16))
    begin = np.array([vocabulary.id(TokenKind.BOS), vocabulary.id(TokenKind.MGEN)], dtype=np.int32)
    end = np.array([vocabulary.id(TokenKind.END)], dtype=np.int32)
    return np.concatenate([begin, encode_tracks(vocabulary, plain), end]).astype(np.int32)


def merge_tracks(score: MetricScore, drums: bool = False) -> MetricScore:
    """All pitched tracks (or all drum tracks) as one track of program 0 (or drums), velocity 90.

    Notes of one onset and pitch become the longest of them; a note still sounding when its pitch starts again ends
    there, so that one track can hold them.
    """
    kept = np.flatnonzero((score.programs[score.track] == DRUMS) == drums)
    order = kept[np.lexsort((-score.duration[kept], score.onset[kept], score.pitch[kept]))]
    pitch, onset, duration = score.pitch[order], score.onset[order], score.duration[order]
    first = np.append(True, (pitch[1:] != pitch[:-1]) | (onset[1:] != onset[:-1]))[: len(order)]
    pitch, onset, duration = pitch[first], onset[first], duration[first]
    again = pitch[1:] == pitch[:-1]
    duration[:-1] = np.where(again, np.minimum(duration[:-1], onset[1:] - onset[:-1]), duration[:-1])
    order = np.lexsort((duration, pitch, onset))
    return replace(
        score,
        track=np.zeros(len(order), dtype=np.int64),
        onset=onset[order],
        pitch=pitch[order],
        duration=duration[order],
        velocity=np.full(len(order), 90, dtype=np.int64),
        programs=np.array([DRUMS if drums else 0], dtype=np.int16),
        names=(),
        chords=None,
    )


def clip_durations(score: MetricScore) -> MetricScore:
    """Notes that ring past the last bar end with it (a window cut out of a song else tells that it goes on)."""
    return replace(score, duration=np.minimum(score.duration, score.bars.end - score.onset))


def song_windows(
    score: MetricScore, bars: int, form: str = "tracks", rest: float = 0.5
) -> list[tuple[tuple[int, int], MetricScore]]:
    """The consecutive windows of a song that hold notes: `((first bar, bar after the last), music)`.

    Args:
        bars: length of a window; what is left at the end is a window of its own if it has at least the share `rest` of
            that length, or is the only one.
        form: "tracks" keeps them, "merged" makes one of all pitched ones, "drums" one of the drums.

    Raises:
        MidiError: no such notes in the whole song (code "midi.empty").
    """
    if form not in WINDOW_FORMS:
        raise ValueError(f"the form of a window must be one of {', '.join(WINDOW_FORMS)}, got {form!r}")
    found = []
    for first in range(0, score.n_bars, bars):
        last = min(first + bars, score.n_bars)
        if first and last - first < rest * bars:
            break
        music = clip_durations(score.window(first, last))
        if form != "tracks":
            music = merge_tracks(music, drums=form == "drums")
        if music.n_notes:
            found.append(((first, last), music))
    if not found:
        what = {"tracks": "notes", "merged": "pitched notes", "drums": "drum notes"}[form]
        raise MidiError(f"nothing to judge: the song has no {what}", "midi.empty")
    return found


def batches_by_length(lengths: Sequence[int], budget: int = 8192) -> list[np.ndarray]:
    """Indices in batches of similar length: at most `budget` tokens with padding (one row at least)."""
    order = np.argsort(np.asarray(lengths), kind="stable")[::-1]
    batches, at = [], 0
    while at < len(order):
        size = max(1, budget // max(int(lengths[order[at]]), 1))
        batches.append(order[at : at + size])
        at += size
    return batches


def pad_rows(rows: Sequence, pad: int, device=None, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids -> (ids, mask), both `[rows, longest]` int64."""
    longest = max(len(row) for row in rows)
    ids = np.full((len(rows), longest), pad, dtype=np.int64)
    sizes = np.array([len(row) for row in rows])
    mask = np.arange(longest)[None] < sizes[:, None]
    if side == "left":
        mask = mask[:, ::-1]
    ids[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask.astype(np.int64)).to(device)


__all__ = [
    "WINDOW_FORMS",
    "bare_segment",
    "batches_by_length",
    "clip_durations",
    "merge_tracks",
    "pad_rows",
    "song_windows",
]
