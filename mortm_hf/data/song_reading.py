"""One file -> one song: quantised notes with the labels that stand beside them.

Design decisions
- Annotated keys and chords go before what the file itself says; neither is guessed here.
- A file without a split gets one from a hash of its notes, and the hash is its cluster: the same music under another
  name, in another key or tempo, or with other velocities stays in the same split, and adding files moves none.

Knows: MIDI through the codec, labels. Must not know: where files come from, how songs are stored, tokens.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from ..models.errors_mortm import MidiError
from ..models.midi_chords import parse_chord_text
from ..models.midi_files import load_score, quantize
from ..models.music_names import DRUMS
from ..models.music_score import MetricScore
from .annotations import CHORD_CLOCK, key_name, key_of_label
from .genres import genre_of
from .manifest import SongFile
from .schema import Song, check_size


def read_song(row: SongFile, midi, chords: str | None = None) -> Song:
    """One MIDI file with its labels as a `Song`.

    Args:
        row: its labels.
        midi: its bytes, or its path.
        chords: text of a chord annotation: a chord file, or labels that `MetricPrompt.chords` would take.

    Raises:
        MidiError: the file cannot be used (the message names the reason).
        VocabularyError: its annotation cannot be used.
        PromptError: its annotation cannot be used.
    """
    source = load_score(midi)
    score = quantize(source)
    key = key_of_label(row.key)
    changes: dict = {}
    key_source = "file" if score.key is not None else None
    chord_source = "file" if score.chords is not None else None
    if key is not None:
        changes["key"], key_source = key_name(*key), "annotation"
    if chords is not None and score.n_bars:
        table = parse_chord_text(chords, source, CHORD_CLOCK.get(row.corpus))
        if table is not None and table.onset[0] < score.bars.end:
            changes["chords"], chord_source = table.window(0, score.bars.end), "annotation"
    if changes:
        score = replace(score, **changes)
    if not len(score.onset):
        raise MidiError("no notes", "midi.empty")
    check_size(score, row.path)
    return Song(
        path=row.path,
        corpus=row.corpus,
        song_id=row.song_id,
        cluster=row.cluster,
        split=row.split,
        genre=genre_of(row.genre, row.subgenre),
        score=score,
        variant=row.variant,
        licence=row.licence,
        key_source=key_source,
        chord_source=chord_source,
    )


def fingerprint(score: MetricScore) -> str:
    """16 hex digits that identify a piece by its notes: onsets and pitches of all pitched tracks (of the drums where
    there is nothing else) relative to the first and the lowest one, whatever the track, length and loudness."""
    onset, pitch = score.onset, score.pitch
    pitched = score.programs[score.track] != DRUMS
    if pitched.any():
        onset, pitch = onset[pitched], pitch[pitched]
    if not len(onset):
        return hashlib.sha256(b"").hexdigest()[:16]
    cells = np.sort((onset - onset.min()) * 128 + (pitch - pitch.min()))
    cells = cells[np.append(True, cells[1:] != cells[:-1])]  # doubled in another track
    return hashlib.sha256(cells.astype("<i8").tobytes()).hexdigest()[:16]


def hashed_split(identity: str, shares: tuple[float, float], seed: int = 0) -> str:
    """The split of a piece without one: a pure function of its identity.

    Args:
        identity: of the piece, such as its fingerprint.
        shares: of validation and test.
        seed: another one gives another split.
    """
    digest = hashlib.sha256(f"{seed}:{identity}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2.0**64
    return "validation" if place < shares[0] else "test" if place < sum(shares) else "train"


def place_song(song: Song, shares: tuple[float, float], seed: int = 0) -> Song:
    """A song with its split and cluster filled in where the labels have none.

    Args:
        song: the song.
        shares: of validation and test.
        seed: of the split.
    """
    if song.split and song.cluster:
        return song
    identity = song.cluster or fingerprint(song.score)
    return replace(song, cluster=identity, split=song.split or hashed_split(identity, shares, seed))
