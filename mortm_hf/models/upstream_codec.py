"""The `mortm` dialect: upstream's MIDI encoding token for token, and a correct decoder for it.

Design decisions
- Bug-compatible where a converted checkpoint depends on it: seconds instead of ticks, floor instead of round, one
  note-off for all notes of a pitch, one track per instrument category, 4/4 only. These defects live nowhere else.
- Needs the bytes of the file: a score in memory has lost the order of note-offs.
- Vectorised by tempo: inside one tempo the bar of every note is a binary search in the accumulated bar lines, which
  gives the same floats as upstream's repeated addition.
- Decoding is *not* bug-compatible: every instrument comes back, on its program, with its own velocities.
- Misuse that upstream turns into silent nonsense (an unknown key becomes `<PAD>`) raises typed errors here.

Knows: SPEC sections 1 and 2, raw MIDI events, token ids. Must not know: torch, tokenizers, prompts' meaning.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .errors_mortm import MidiError, VocabularyError
from .midi_events import MidiEvents, NoteTable, closed_notes, midi_bytes, read_events, seconds_of, tempo_map
from .midi_files import Caps, is_symusic, read_midi
from .music_grid import COMMON_TIME, BarTable
from .music_harmony import estimate_key, parse_key
from .music_instruments import parse_instruments
from .music_names import CATEGORY_PIANO, CATEGORY_SAX
from .music_score import ChordTable, MetricScore, is_score
from .token_codec import DEFAULT_VELOCITY, Segment, parse_header
from .token_vocabulary import BLOCK_KINDS, MetricVocabulary, TokenKind


BAR_TICKS = 96
DEFAULT_CAPS = Caps()
MAX_BAR_TOKENS = 999  # upstream stops writing a track after this many <SME>
LONGEST = 288  # a longer note is written as CLIPPED
CLIPPED = 287
# Category -> General MIDI programs, the lowest that sounds is taken. 4.9 moved SAX to 64-67.
CATEGORY_PROGRAMS = {"PIANO": (0, 1, 2, 3, 4, 5, 6), "SAX": (65, 66, 67, 68)}
CATEGORY_PROGRAMS_49 = {"PIANO": (0, 1, 2, 3, 4, 5, 6), "SAX": (64, 65, 66, 67)}
_CATEGORY_NAMES = {CATEGORY_PIANO: "PIANO", CATEGORY_SAX: "SAX"}
# The program that a decoded category is written with.
DECODED_PROGRAM = {CATEGORY_PIANO: 0, CATEGORY_SAX: 65}

__all__ = [
    "CATEGORY_PROGRAMS",
    "CATEGORY_PROGRAMS_49",
    "decode_upstream",
    "encode_upstream",
    "encode_upstream_tracks",
    "parse_upstream",
    "upstream_categories",
]


# ---------------------------------------------------------------------------------------------------------------------
# names


def upstream_categories(instruments=None) -> list[str]:
    """Requested instruments -> upstream's category names ("PIANO", "SAX"), in the order of the request, each once.

    Args:
        instruments: names, families or General MIDI programs of a category; None for both categories.

    Raises:
        VocabularyError: `vocabulary.instrument`, for anything else.
    """
    if instruments is None:
        return list(CATEGORY_PROGRAMS)
    found = [_CATEGORY_NAMES[c] for c in parse_instruments(instruments, dialect="mortm")]
    if not found:
        raise VocabularyError("name at least one instrument: PIANO, SAX", "vocabulary.instrument")
    return list(dict.fromkeys(found))


def _vocabulary(vocab) -> MetricVocabulary:
    return vocab if hasattr(vocab, "lookup") else MetricVocabulary(dict(vocab))


def _writes_velocity(vocabulary: MetricVocabulary) -> bool:
    """Of upstream's tables only `pro2` has velocities; the default table has them too, but also has meters."""
    return vocabulary.has(TokenKind.VELOCITY, 64) and not vocabulary.has(TokenKind.METER, COMMON_TIME)


# ---------------------------------------------------------------------------------------------------------------------
# MIDI -> ids


def _load(midi, caps: Caps) -> tuple[MidiEvents, str]:
    if is_symusic(midi) or is_score(midi):
        raise MidiError(
            f"the mortm dialect needs a path or MIDI bytes, not a {type(midi).__name__}: a score in memory has lost "
            "the order of its note-offs, which upstream's encoding depends on; save it and pass the file",
            "midi.argument",
        )
    data, name = midi_bytes(midi, caps.bytes)
    events = read_events(data, name, caps.notes)
    for tick, numerator, denominator in events.meters:
        if (numerator, denominator) != (4, 4):
            raise MidiError(
                f"{name} is in {numerator}/{denominator} at tick {tick}: the mortm dialect knows 4/4 only; "
                "use the metric dialect",
                "midi.meter",
            )
    return events, name


def _select(notes: NoteTable, programs: tuple[int, ...]) -> np.ndarray | None:
    """Rows of the one instrument that upstream takes for a category, or None: the lowest sounding program of the
    category and of it the (channel, track) whose first note ends first. Channel 10 is drums."""
    wanted = np.flatnonzero((notes.channel != 9) & np.isin(notes.program, programs))
    if len(wanted) == 0:
        return None
    wanted = wanted[notes.program[wanted] == notes.program[wanted].min()]
    head = wanted[0]  # tables are in track order, then note-off order: upstream's order of instruments
    return wanted[(notes.channel[wanted] == notes.channel[head]) & (notes.track[wanted] == notes.track[head])]


def _track_ids(vocabulary, notes: NoteTable, segments, resolution: int, velocity: bool, limit: int) -> np.ndarray:
    """Ids of one track, without `<INST_x>` and `<ESEQ>`, ending in `<TE>` (SPEC 2.2)."""
    start, end = seconds_of(notes.start, segments), seconds_of(notes.end, segments)
    order = np.argsort(start, kind="stable")
    start, end, notes = start[order], end[order], notes.take(order)
    n = len(start)
    _, change_time, scale = segments
    segment = np.searchsorted(change_time, start, side="right") - 1
    tempo = 60.0 / (scale * resolution)

    bar_of = np.empty(n, dtype=np.int64)  # number of <SME> written up to each note
    position, duration = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    bar_start, bars, done = 0.0, 0, n
    edges = np.append(np.flatnonzero(np.append(True, segment[1:] != segment[:-1])), n)
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist()):  # one pass for each tempo that has notes
        now = tempo[segment[low]]
        length = (60 / now) * 4
        tick = length / BAR_TICKS
        struck = start[low:high] // tick
        # Bar lines by repeated addition, as many as could be needed.
        room = min(limit - bars, int(min(max((start[high - 1] - bar_start) / length, 0.0), limit)) + 3)
        lines = np.full(room + 1, length)
        lines[0] = bar_start
        lines = np.add.accumulate(lines)
        ahead = np.searchsorted(lines // tick + BAR_TICKS, struck, side="right")
        ahead = np.minimum(ahead, room)
        bar_of[low:high] = bars + ahead
        position[low:high] = np.mod((start[low:high] - lines[ahead]) // tick, BAR_TICKS)
        duration[low:high] = np.maximum(np.abs(end[low:high] // tick - struck), 1)
        bars += int(ahead[-1])
        bar_start = lines[ahead[-1]]
        if bars >= limit:
            done = int(np.searchsorted(bar_of[:high], limit, side="left"))
            break
    duration = np.where(duration > LONGEST, CLIPPED, duration)

    # <SME> (<BLANK> <SME>)* in front of a note that opens bars
    opened = np.diff(bar_of[:done], prepend=0)
    head = np.maximum(2 * opened - 1, 0)
    size = 4 if velocity else 3
    note_at = np.cumsum(head + size) - size
    tail = 2 * (limit - (int(bar_of[done - 1]) if done else 0)) - 1 if done < n else 1  # bars up to the limit, or <TE>
    total = (int(note_at[-1]) + size if done else 0) + tail
    out = np.empty(total, dtype=np.int64)
    bar_id, blank_id = vocabulary.id(TokenKind.BAR), vocabulary.id(TokenKind.BLANK)
    owner = np.repeat(np.arange(done), head)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(head) - head, head)
    out[(note_at - head)[owner] + nth] = np.where(nth & 1, blank_id, bar_id)
    out[note_at] = vocabulary.lookup(TokenKind.ONSET)[position[:done]]
    out[note_at + 1] = vocabulary.lookup(TokenKind.PITCH)[notes.pitch[:done]]
    out[note_at + 2] = vocabulary.lookup(TokenKind.DURATION)[duration[:done]]
    if velocity:
        out[note_at + 3] = vocabulary.lookup(TokenKind.VELOCITY)[notes.velocity[:done]]
    if done < n:
        out[total - tail :] = np.where(np.arange(tail) & 1, blank_id, bar_id)
    else:
        out[-1] = vocabulary.id(TokenKind.END)
    return out


def encode_upstream_tracks(
    midi,
    vocab,
    instruments=None,
    *,
    programs: dict[str, tuple[int, ...]] | None = None,
    velocity: bool | None = None,
    caps: Caps = DEFAULT_CAPS,
) -> dict[str, list[int]]:
    """Upstream's tracks of a MIDI file: category name -> ids, in the order of the request (SPEC 2.1, 2.2).

    A track has no `<SME>` before bar 0, a `<SME>` for each further bar, `<SME> <BLANK>` for an empty one, and ends in
    `<TE>`; after 999 `<SME>` it ends at once. A type 2 file is read as upstream reads it: all its patterns from
    tick 0, of which at most one is taken for each category.

    Args:
        midi: path or MIDI bytes.
        vocab: `MetricVocabulary` or `{token: id}`.
        instruments: see `upstream_categories`.
        programs: category -> programs; by default 4.6.18's (`CATEGORY_PROGRAMS_49` for 4.9).
        velocity: write `v_` after each duration; by default as the table does (`pro2`).
        caps: limits of size.

    Raises:
        MidiError: unreadable; a meter other than 4/4 (`midi.meter`); none of the instruments plays (`midi.empty`).
        VocabularyError: the table lacks a token of the dialect.
    """
    vocabulary = _vocabulary(vocab)
    names = upstream_categories(instruments)
    events, name = _load(midi, caps)
    segments = tempo_map(events)
    notes = closed_notes(events)
    if len(notes.start) > caps.notes:
        raise MidiError(f"{name} has {len(notes.start)} notes, more than the cap of {caps.notes}", "midi.too_large")
    velocity = _writes_velocity(vocabulary) if velocity is None else velocity
    found = {}
    for category in names:
        rows = _select(notes, (programs or CATEGORY_PROGRAMS)[category])
        if rows is None:
            continue
        ids = _track_ids(vocabulary, notes.take(rows), segments, events.ticks_per_quarter, velocity, MAX_BAR_TOKENS)
        if (vocabulary.kind[ids] == TokenKind.ONSET).any():  # upstream drops a track that ends before its first note
            found[category] = ids.tolist()
    if not found:
        wanted = ", ".join(f"{n} (programs {', '.join(map(str, (programs or CATEGORY_PROGRAMS)[n]))})" for n in names)
        raise MidiError(f"{name} has no notes of {wanted}: there is nothing to tokenise", "midi.empty")
    return found


def encode_upstream(
    midi,
    vocab,
    instruments=None,
    key: str | None = "CM",
    *,
    programs: dict[str, tuple[int, ...]] | None = None,
    velocity: bool | None = None,
    caps: Caps = DEFAULT_CAPS,
) -> list[int]:
    """A whole MIDI file as upstream writes it: `<EOS> <SYSTEM> <INST_x>+ k_<key> <TAG_END> <MGEN>`, then for each
    instrument `<INST_x> track <ESEQ>`, then `<TE>`.

    Args:
        midi: path or MIDI bytes.
        vocab: `MetricVocabulary` or `{token: id}`.
        instruments: see `upstream_categories`.
        key: a key name (`parse_key`), or None for the file's own or estimated key.
        programs: category -> programs; by default 4.6.18's (`CATEGORY_PROGRAMS_49` for 4.9).
        velocity: write `v_` after each duration; by default as the table does (`pro2`).
        caps: limits of size.

    Raises:
        MidiError: as `encode_upstream_tracks`.
        VocabularyError: as there; an unknown key (`vocabulary.key`).
    """
    vocabulary = _vocabulary(vocab)
    name = None if key is None else parse_key(key)
    tracks = encode_upstream_tracks(midi, vocabulary, instruments, programs=programs, velocity=velocity, caps=caps)
    if name is None:
        name = _own_key(midi, caps)
    heads = {n: vocabulary.id(TokenKind.INSTRUMENT, c) for c, n in _CATEGORY_NAMES.items()}
    ids = [vocabulary.id(TokenKind.BOS), vocabulary.id(TokenKind.SYSTEM), *(heads[n] for n in tracks)]
    ids += [vocabulary[f"k_{name}"], vocabulary.id(TokenKind.TAG_END), vocabulary.id(TokenKind.MGEN)]
    for category, track in tracks.items():
        ids += [heads[category], *track, vocabulary.id(TokenKind.TRACK_END)]
    return ids + [vocabulary.id(TokenKind.END)]


def _own_key(midi, caps: Caps) -> str:
    score = read_midi(midi, caps)
    return score.key or estimate_key(score) or "Unknown"


# ---------------------------------------------------------------------------------------------------------------------
# ids -> music


def parse_upstream(ids, vocab) -> Segment:
    """Ids of the `mortm` dialect -> `Segment`: header, prompt blocks and generated field, each from its own tick 0.

    Lenient: malformed notes are dropped, ids outside the table and padding are skipped. `<TE> <ESEQ>` ends a track,
    any other `<TE>` ends the sequence. A track that ends in `<TE>`, or that starts with a note, counts its bars from
    an unmarked bar 0 (what `encode_upstream` writes); one that starts with `<SME>` and ends in `<ESEQ>` alone has its
    first bar marked (prompts and generated tracks). Tracks without any field marker are a generated field.

    Args:
        ids: `[n]` ids.
        vocab: `MetricVocabulary` or `{token: id}`.
    """
    vocabulary = _vocabulary(vocab)
    ids = np.asarray(ids, dtype=np.int64).reshape(-1)
    ids = ids[(ids >= 0) & (ids < len(vocabulary))]
    ids = ids[vocabulary.kind[ids] != TokenKind.PAD]
    kind, value = vocabulary.kind[ids].astype(np.int64), vocabulary.value[ids].astype(np.int64)
    following = np.append(kind[1:], TokenKind.OTHER)
    ends = np.flatnonzero((kind == TokenKind.END) & (following != TokenKind.TRACK_END))
    if len(ends):
        kind, value = kind[: ends[0] + 1], value[: ends[0] + 1]
    segment = Segment()
    header = np.zeros(len(kind), dtype=bool)
    closes = np.flatnonzero(kind == TokenKind.TAG_END)
    for at in np.flatnonzero(kind == TokenKind.SYSTEM).tolist():
        later = closes[closes > at]
        stop = int(later[0]) if len(later) else len(kind)
        header[at : stop + 1] = True
        parsed = parse_header(kind[at + 1 : stop], value[at + 1 : stop])
        if at and kind[at - 1] == TokenKind.META:
            segment.meta, segment.generated_kind = parsed, TokenKind.META
        elif segment.header is None:
            segment.header = parsed
    marks = np.flatnonzero(np.isin(kind, (*BLOCK_KINDS, TokenKind.MGEN, TokenKind.CGEN)) & ~header)
    if len(marks) == 0:
        body = ~header
        if (kind[body] == TokenKind.PITCH).any() or segment.header is None:
            segment.generated_kind = segment.generated_kind or TokenKind.MGEN
            segment.generated = _read_block(kind[body], value[body])
        return segment
    for mark, edge in zip(marks.tolist(), [*marks[1:].tolist(), len(kind)]):
        rows = np.arange(mark + 1, edge)
        rows = rows[~header[rows]]
        block = _read_block(kind[rows], value[rows])
        if kind[mark] in (TokenKind.MGEN, TokenKind.CGEN):
            segment.generated_kind, segment.generated = int(kind[mark]), block
        else:
            segment.blocks[int(kind[mark])] = block
    return segment


def _read_block(kind: np.ndarray, value: np.ndarray) -> MetricScore:
    """The tracks (and chords) of one field."""
    n = len(kind)
    heads = np.flatnonzero(kind == TokenKind.INSTRUMENT)
    track_of = np.maximum(np.cumsum(kind == TokenKind.INSTRUMENT) - 1, 0)
    starts = np.append(0, heads[1:]) if len(heads) else np.zeros(1, dtype=np.int64)
    n_tracks = len(starts)
    # How each track counts its bars: its first token that matters, and whether <TE> closes its notes.
    bar_count = np.cumsum(kind == TokenKind.BAR)
    base = np.append(0, bar_count)[starts]
    body = (kind == TokenKind.BAR) | (kind == TokenKind.ONSET) | (kind == TokenKind.BLANK)
    first = np.minimum.accumulate(np.where(body, np.arange(n), n)[::-1])[::-1] if n else np.empty(0, np.int64)
    opening = np.append(kind, TokenKind.OTHER)[np.append(first, n)[np.minimum(starts, n)]]
    finals = np.flatnonzero(kind == TokenKind.END)
    previous = kind[np.maximum(finals - 1, 0)]
    closing = finals[(previous == TokenKind.DURATION) | (previous == TokenKind.VELOCITY)]
    unmarked = np.zeros(n_tracks, dtype=bool)
    unmarked[track_of[closing]] = True
    unmarked |= opening != TokenKind.BAR
    bar_of = np.maximum(bar_count - base[track_of] - ~unmarked[track_of], 0) if n else np.empty(0, np.int64)

    # Notes: s [CR CQ CB] p d [v]; chords: s CR CQ CB.
    pad = np.append(kind, np.zeros(5, dtype=np.int64))
    shifted = np.append(value, np.zeros(5, dtype=np.int64))
    is_chord = (pad[:n] == TokenKind.CHORD_ROOT) & (pad[1 : n + 1] == TokenKind.CHORD_QUALITY)
    is_chord &= pad[2 : n + 2] == TokenKind.CHORD_BASS
    chord_at = np.flatnonzero(is_chord)
    chord_at = chord_at[(chord_at > 0) & (kind[np.maximum(chord_at - 1, 0)] == TokenKind.ONSET)]
    after_chord = np.zeros(n + 5, dtype=bool)
    after_chord[chord_at + 3] = True
    at = np.flatnonzero((kind == TokenKind.PITCH) & (pad[1 : n + 1] == TokenKind.DURATION))
    onset_at = np.where(after_chord[at], at - 4, at - 1)
    fine = (onset_at >= 0) & (pad[np.maximum(onset_at, 0)] == TokenKind.ONSET) & (shifted[at + 1] > 0)
    at, onset_at = at[fine], onset_at[fine]
    loud = pad[at + 2] == TokenKind.VELOCITY
    velocity = np.where(loud, np.maximum(shifted[at + 2], 1), DEFAULT_VELOCITY)
    onset = bar_of[at] * BAR_TICKS + value[onset_at]
    track, pitch, duration = track_of[at], value[at], value[at + 1]
    order = np.lexsort((-velocity, duration, pitch, onset, track))
    track, onset, pitch, duration, velocity = (a[order] for a in (track, onset, pitch, duration, velocity))
    fresh = np.ones(len(track), dtype=bool)  # of equal notes the loudest stays
    fresh[1:] = (np.diff(track) != 0) | (np.diff(onset) != 0) | (np.diff(pitch) != 0) | (np.diff(duration) != 0)

    # Chords can stand in every track; the field has one chord line.
    chords = None
    if len(chord_at):
        when = bar_of[chord_at] * BAR_TICKS + value[chord_at - 1]
        row = np.argsort(when, kind="stable")
        row = row[np.append(True, np.diff(when[row]) != 0)]
        columns = (value[chord_at[row] + i].astype(np.int16) for i in range(3))
        chords = ChordTable(when[row], *columns)

    n_bars = int(bar_of.max()) + 1 if n else 1
    furthest = max((int(onset.max()) if len(onset) else 0), int(chords.onset[-1]) if chords is not None else 0)
    n_bars = max(n_bars, furthest // BAR_TICKS + 1)  # s_96 is the next bar line
    if len(heads):
        programs = np.array([DECODED_PROGRAM.get(v, v) for v in value[heads].tolist()], dtype=np.int16)
    else:
        programs = np.zeros(1, dtype=np.int16)
    return MetricScore(
        bars=BarTable.regular(COMMON_TIME, n_bars),
        track=track[fresh],
        onset=onset[fresh],
        pitch=pitch[fresh],
        duration=duration[fresh],
        velocity=velocity[fresh],
        programs=programs,
        tempo=np.full(n_bars, -1, dtype=np.int16),
        chords=chords,
        explicit_velocity=bool(loud.any()) if len(at) else None,
    )


def decode_upstream(ids, vocab) -> MetricScore:
    """The music of ids of the `mortm` dialect: the generated field, or tracks without a field marker, or of a prompt
    without its answer the first block that sounds.

    Args:
        ids: `[n]` ids.
        vocab: `MetricVocabulary` or `{token: id}`.

    Returns:
        Music in 4/4, without tempo (players use 120), SAX on program 65, PIANO on 0.

    Raises:
        MidiError: `midi.empty`, the ids hold no notes and no chords.
    """
    segment = parse_upstream(ids, vocab)
    fields = [segment.generated, *(segment.blocks[k] for k in sorted(segment.blocks))]
    for field in fields:
        if field is not None and (field.n_notes or field.chords is not None):
            header = segment.header or segment.meta
            return field if header is None else replace(field, key=header.key, genres=header.genres)
    raise MidiError("these ids hold no music to decode", "midi.empty")
