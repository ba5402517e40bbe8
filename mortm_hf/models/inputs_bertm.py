"""From music to what BERTM's heads read: windows of equal form, and batches of them.

Design decisions
- A head reads a *window*: some consecutive bars, `<EOS> <MGEN> tracks <TE>`, without header, tempo and velocity. What
  stands around the notes of a file shows its origin, not its music. How many bars, and in which form, is what the head
  was trained on: its configuration states it (`window_bars`, `window_form`).
- Tracks follow each other in a row of ids, so notes that sound together stand far apart in it. The forms "merged" (no
  drums) and "condensed" (drums kept) write all pitched tracks as one, as a short score does: harmony becomes local.
- A song is judged window by window, and its logits are the mean of theirs. So length as such changes nothing: a song
  twice as long is not judged twice as well.
- Batches are filled by length up to a number of tokens: padding is cheap, and a long song does not need more memory.

Knows: quantised music, the token language, arrays. Must not know: models, labels, MIDI files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from .errors_mortm import MidiError
from .music_names import DRUMS
from .music_score import MetricScore
from .token_codec import encode_tracks
from .token_vocabulary import MetricVocabulary, TokenKind


WINDOW_FORMS = ("tracks", "merged", "drums", "condensed")


def bare_segment(vocabulary: MetricVocabulary, score: MetricScore) -> np.ndarray:
    """`<EOS> <MGEN> tracks <TE>` of a score: no header, tempo or velocity.

    Args:
        vocabulary: the token table.
        score: the music.

    Returns:
        `[n]` int32 ids.
    """
    plain = replace(score, tempo=np.full(score.n_bars, -1, dtype=np.int16))
    begin = np.array([vocabulary.id(TokenKind.BOS), vocabulary.id(TokenKind.MGEN)], dtype=np.int32)
    end = np.array([vocabulary.id(TokenKind.END)], dtype=np.int32)
    return np.concatenate([begin, encode_tracks(vocabulary, plain), end]).astype(np.int32)


def merge_tracks(score: MetricScore, drums: bool = False) -> MetricScore:
    """All pitched tracks (or all drum tracks) as one track of program 0 (or drums), velocity 90.

    Notes of one onset and pitch become the longest of them; a note still sounding when its pitch starts again ends
    there, so that one track can hold them.

    Args:
        score: the music.
        drums: merge the drum tracks instead of the pitched ones.

    Returns:
        A score of one track.
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


def condense(score: MetricScore) -> MetricScore:
    """All pitched tracks as one and all drum tracks as one (`merge_tracks`): one track, or two if there are both."""
    pitched, drums = merge_tracks(score), merge_tracks(score, drums=True)
    if not pitched.n_notes or not drums.n_notes:
        return pitched if pitched.n_notes else drums
    joined = {
        name: np.concatenate([getattr(pitched, name), getattr(drums, name)])
        for name in ("onset", "pitch", "duration", "velocity", "programs")
    }
    track = np.concatenate([pitched.track, drums.track + 1])
    return replace(pitched, track=track, **joined)


def in_window_form(score: MetricScore, form: str) -> MetricScore:
    """A score in one of the forms that heads are trained on.

    Args:
        score: the music.
        form: one of `WINDOW_FORMS`.

    Returns:
        The score itself ("tracks"), or one of one or two tracks.
    """
    if form == "tracks":
        return score
    return condense(score) if form == "condensed" else merge_tracks(score, drums=form == "drums")


def clip_durations(score: MetricScore) -> MetricScore:
    """Notes that ring past the last bar end with it (else a window shows that its song continues)."""
    return replace(score, duration=np.minimum(score.duration, score.bars.end - score.onset))


def song_windows(
    score: MetricScore, bars: int, form: str = "tracks", rest: float = 0.5
) -> list[tuple[tuple[int, int], MetricScore]]:
    """The consecutive windows of a song that hold notes.

    Args:
        score: the song.
        bars: length of a window.
        form: "tracks" keeps them, "merged" makes one of all pitched ones, "drums" one of the drums, "condensed" both.
        rest: the end of the song is a window of its own if it has at least this share of `bars`, or is the only one.

    Returns:
        `((first bar, bar after the last), music)` of each.

    Raises:
        ValueError: an unknown form.
        MidiError: no such notes in the whole song (`midi.empty`).
    """
    if form not in WINDOW_FORMS:
        raise ValueError(f"the form of a window must be one of {', '.join(WINDOW_FORMS)}, got {form!r}")
    found = []
    for first in range(0, score.n_bars, bars):
        last = min(first + bars, score.n_bars)
        if first and last - first < rest * bars:
            break
        music = in_window_form(clip_durations(score.window(first, last)), form)
        if music.n_notes:
            found.append(((first, last), music))
    if not found:
        what = {"merged": "pitched notes", "drums": "drum notes"}.get(form, "notes")
        raise MidiError(f"nothing to judge: the song has no {what}", "midi.empty")
    return found


def batches_by_length(lengths: Sequence[int], budget: int = 8192) -> list[np.ndarray]:
    """Rows in batches of similar length.

    Args:
        lengths: tokens of each row.
        budget: most tokens of a batch with padding; one row is always taken.

    Returns:
        Indices of the rows of each batch, the longest rows first.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")[::-1]
    batches, at = [], 0
    while at < len(order):
        size = max(1, budget // max(int(lengths[order[at]]), 1))
        batches.append(order[at : at + size])
        at += size
    return batches


def pad_rows(rows: Sequence, pad: int, device=None, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as one batch.

    Args:
        rows: ids of each row.
        pad: padding id.
        device: where the tensors go; the CPU by default.
        side: "right" or "left", where the padding goes.

    Returns:
        Ids and mask (1: real token), both `[rows, longest]` int64.
    """
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
    "condense",
    "in_window_form",
    "merge_tracks",
    "pad_rows",
    "song_windows",
]
