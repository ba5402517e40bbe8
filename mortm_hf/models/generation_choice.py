"""Compiled code: the next token of every row, from logits, grammar and seeded noise.

Design decisions
- The grammar is `token_automaton`'s: the same tables, one row at a time where numpy takes all rows at once. Its rules
  stand in those tables; what is written here again is how they are read, and a test walks both side by side.
- Filters look at legal tokens only, some dozens of a thousand: nothing else has a probability.
- The results are those of transformers' filters to the last bit but one: a probability is rounded to fp32 where they
  round it, its exponential may differ in the last digit.
- This file imports nothing of the package: `generation_compiled` loads it from a folder where compiled code can stay.

Knows: arrays. Must not know: tensors, processors, vocabularies.
"""

from __future__ import annotations

import math

import numpy as np


try:
    from numba import njit
except ImportError as error:  # reported by `generation_compiled.missing`
    raise ImportError("numba is not installed") from error


# Phases and columns of `token_automaton` (a test compares them); whatever else it may change comes in `numbers`
BAR, METER, LENGTH, TEMPO = range(4)
START, TRACK, BLANK, ONSET, PITCH, DURATION, VELOCITY, CLOSED, END, DEAD, ROOT, QUALITY, BASS = range(4, 17)
H_INST = 19
B_START, B_TICKS, B_AFTER, B_METER, B_TEMPO, B_SITU, B_LEFT = 0, 1, 2, 3, 5, 7, 12
T_NEXT, T_MORE, T_LATER_COST, T_LATER = 0, 2, 3, 4
OPEN, FREE = 1 << 30, 1 << 20
# Columns of a row's state, in the order of `GrammarState`
P_PHASE, P_TRACK, P_ONSET, P_PITCH, P_TOTAL, P_ROOM, P_NEED, P_SOUNDING, P_VELOCITY, P_TEMPO, P_BAR = range(11)
# Places in `numbers`: constants of vocabulary and grammar
TOP, LONGEST, STRICT, LOOSE, ANY_FREE, ANY_CHORD, N_BARS, N_TRACKS, NO_ROOT, NO_QUALITY, NO_BASS, DRUMS = range(12)
KIND_ONSET, KIND_VELOCITY, S_PHASE, S_SOUNDING, S_ENOUGH, S_VELOCITY, N_NUMBERS = range(12, 19)
# Columns of `owners`: constants of a row
O_SIDE, O_NUMBER, O_BARS, O_TRACKS, N_OWNER = range(5)
# Places in `options`; 0 or 1: no filter
TEMPERATURE, TOP_K, TOP_P, MIN_P, FINITE, GRAMMAR, NOISE, N_OPTIONS = range(8)
_F = np.float32

plain = njit(nogil=True, error_model="numpy")


@plain
def advance(vocabulary, grammar, owner, state, ends, bars, tracks, token):
    """One more token of one row, as `Grammar.step`.

    Args:
        vocabulary: the twelve tables `kind` to `tempo_id` of `choose`.
        grammar: the five tables `numbers` to `prices` of `choose`.
        owner: [N_OWNER] the row's constants.
        state: [11] its columns, in the order of `GrammarState`, changed in place.
        ends: [128] last offset of every pitch, in ticks from the start of the track, changed in place.
        bars: constants of its current bar, see `token_automaton`, changed in place.
        tracks: constants of its current track, see `token_automaton`, changed in place.
        token: its next id.
    """
    kinds, values, follow, gap = vocabulary[0], vocabulary[1], vocabulary[2], vocabulary[3]
    numbers, all_bars, all_tracks, all_ends = grammar[0], grammar[1], grammar[2], grammar[3]
    kind, value = kinds[token], values[token]
    before = state[P_PHASE]
    phase = follow[before * len(vocabulary[6]) + kind]
    state[P_PHASE] = phase
    is_track, is_pitch, is_duration = phase == TRACK, phase == PITCH, phase == DURATION
    if is_track:
        state[P_TRACK] += 1
        state[P_BAR] = -1
    elif phase == BAR:
        state[P_BAR] += 1
    track = state[P_TRACK]
    place = min(max(state[P_BAR], 0), numbers[N_BARS] - 1) + owner[O_BARS] + (track > 0) * numbers[N_BARS]
    bars[:] = all_bars[place]
    place = min(track + 1, numbers[N_TRACKS]) + owner[O_TRACKS]
    tracks[:] = all_tracks[place]
    last_pitch, moved = state[P_PITCH], False
    if phase == BAR:
        state[P_ONSET], moved = -1, True
    elif phase == ONSET:
        moved = value != state[P_ONSET]
        state[P_ONSET] = value
    if is_pitch or phase == ROOT or phase == H_INST:
        state[P_PITCH] = value
    elif moved:
        state[P_PITCH] = -1
    column = min(max(state[P_PITCH], 0), 127)
    at = bars[B_START] + state[P_ONSET]
    if numbers[LOOSE]:
        state[P_NEED] = 1
    elif is_pitch:
        again = 1 if numbers[STRICT] or value == last_pitch else 0
        state[P_NEED] = max(ends[column] - at + again, 1)
    if is_track:
        ends[:] = all_ends[place]
    if is_pitch:
        state[P_TOTAL], state[P_ROOM] = 0, numbers[TOP]
    elif is_duration:
        state[P_TOTAL] += value
        state[P_ROOM] = min(gap[value], numbers[LONGEST] - state[P_TOTAL])
        ends[column] = at + state[P_TOTAL]
    if is_track:
        state[P_SOUNDING] = 0
    elif is_pitch:
        state[P_SOUNDING] = 1
    if state[P_VELOCITY] < 0:
        state[P_VELOCITY] = (before == DURATION and not is_duration) * 1 + (phase == VELOCITY) * 1 - 1
    if phase == TEMPO:
        state[P_TEMPO] = value


@plain
def legal(vocabulary, grammar, owner, state, ends, bars, tracks, remaining, need, lower, upper, found):
    """Ids that may come next in one row, as `Grammar.allowed`.

    Args:
        vocabulary: the twelve tables `kind` to `tempo_id` of `choose`.
        grammar: the five tables `numbers` to `prices` of `choose`.
        owner: [N_OWNER] the row's constants.
        state: [11] its columns, in the order of `GrammarState`.
        ends: [128] last offset of every pitch, in ticks from the start of the track.
        bars: constants of its current bar, see `token_automaton`.
        tracks: constants of its current track, see `token_automaton`.
        remaining: how many tokens may still be written; negative means no limit.
        need: [128] buffer: the shortest note of every pitch, in ticks.
        lower: [kinds] buffer: the smallest value of every kind.
        upper: [kinds] buffer: the largest one.
        found: [vocab] receives the ids, ascending.

    Returns:
        How many ids were found.
    """
    neighbour, past, bound, coefficients = vocabulary[4], vocabulary[5], vocabulary[6], vocabulary[7]
    mask_kind, mask_value, pitch_of, tempo_id = vocabulary[8], vocabulary[9], vocabulary[10], vocabulary[11]
    numbers, prices, kinds = grammar[0], grammar[4], len(bound)
    top, longest_of_all, phase = numbers[TOP], numbers[LONGEST], state[P_PHASE]
    onset, pitch, velocity = state[P_ONSET], state[P_PITCH], state[P_VELOCITY]
    short = state[P_NEED] - state[P_TOTAL]
    at, row = bars[B_START] + onset, min(pitch + 1, 128)
    least = first_end = np.int64(1) << 40
    for p in range(128):
        if numbers[LOOSE]:
            need[p] = OPEN if ends[p] >= OPEN else 1
        else:
            need[p] = ends[p] - at + (1 if numbers[STRICT] else past[row, p])
        least, first_end = min(least, need[p]), min(first_end, ends[p])
    cheapest = min(max((least + (top - 1)) // top, 1), 4)
    prefix = min(phase, 4)
    situation = bars[prefix + B_SITU] + tracks[T_MORE] + owner[O_NUMBER] + phase * numbers[S_PHASE]
    situation += state[P_SOUNDING] * numbers[S_SOUNDING] + velocity * numbers[S_VELOCITY]
    situation += (short <= 0) * numbers[S_ENOUGH]
    price = prices[situation]
    slack = np.int64(FREE)
    if remaining >= 0:
        c = coefficients[phase]
        cost = price[kinds] + bars[prefix + B_LEFT] * c[0] + cheapest * c[1]
        cost += max((short + (top - 1)) // top, 0) * c[2] + (bars[B_AFTER] + 1) * c[3]
        cost += (tracks[T_LATER_COST] + (velocity == 1) * tracks[T_LATER]) * c[4]
        slack = min(remaining - cost, slack)
    longest = min((slack - price[numbers[KIND_ONSET]] + 1) * top, longest_of_all)
    onset_low = onset + 1
    if numbers[LOOSE]:
        onset_low = onset_low if owner[O_SIDE] == 1 else 0
    elif least <= longest and price[kinds + 1] == 1:
        onset_low = onset
    else:
        onset_low = max(onset_low, first_end - bars[B_START] + numbers[STRICT] - longest)
    is_meter, ticks = phase == METER, bars[B_TICKS]
    low, high = np.zeros(8, dtype=np.int64), np.full(8, OPEN, dtype=np.int64)
    low[1], high[1] = bars[B_METER], bars[B_METER + 1]
    low[2], high[2] = bars[B_TEMPO], bars[B_TEMPO + 1]
    low[3] = ticks if is_meter else neighbour[min(max(short, 0), top) + (slack >= 1) * (top + 1)]
    high[3] = ticks if is_meter else state[P_ROOM]
    low[4], high[4] = max(tracks[T_NEXT], (pitch == numbers[DRUMS]) * numbers[DRUMS]), tracks[T_NEXT + 1]
    low[5], high[5] = onset_low, ticks - 1
    if numbers[ANY_CHORD] and pitch == numbers[NO_ROOT] and pitch >= 0:
        low[6] = high[6] = numbers[NO_BASS]
        low[7] = high[7] = numbers[NO_QUALITY]
    for k in range(kinds):
        extra = (velocity < 0) * tracks[T_LATER] if k == numbers[KIND_VELOCITY] else 0
        lower[k] = low[bound[k]]
        upper[k] = -1 if price[k] + extra > slack else high[bound[k]]
    reach = min((cheapest + slack) * top, longest_of_all)
    stated = -1
    if numbers[ANY_FREE] and phase <= LENGTH and bars[B_TEMPO + 1] == OPEN and state[P_TEMPO] >= 0:
        stated = tempo_id[state[P_TEMPO]]
    n = 0
    for token in range(len(mask_kind)):
        kind, value = mask_kind[token], mask_value[token]
        if lower[kind] <= value <= upper[kind] and token != stated:
            if pitch_of[token] == 128 or need[pitch_of[token]] <= reach:
                found[n] = token
                n += 1
    return n


@plain
def _sort(score, order, n):
    """order[:n] = the places of score[:n], ascending: shell sort, as numpy's takes seconds to compile."""
    for i in range(n):
        order[i] = i
    gap = n // 2
    while gap > 0:
        for i in range(gap, n):
            one, j = order[i], i
            while j >= gap and score[order[j - gap]] > score[one]:
                order[j] = order[j - gap]
                j -= gap
            order[j] = one
        gap = 1 if 1 < gap < 3 else gap * 5 // 11


@plain
def _draw(options, logits, noise, found, n, score, order):
    """The token of one row: transformers' filters over the ids `found[:n]`, noise, arg max.

    All arrays but `options` are [vocab]; `score` and `order` are buffers.
    """
    for i in range(n):
        value = logits[found[i]]
        if options[FINITE]:
            if math.isnan(value):
                value = _F(-1e4)
            elif math.isinf(value):
                value = _F(1e4) if value > 0 else _F(-1e4)
        score[i] = value / _F(options[TEMPERATURE]) if options[TEMPERATURE] != 1.0 else value
    k, nothing = int(options[TOP_K]), _F(-np.inf)
    if (0 < k < n) or options[TOP_P] < 1.0 or options[MIN_P] > 0.0:
        _sort(score, order, n)
        best, first = score[order[n - 1]], 0
        if 0 < k < n:
            while score[order[first]] < score[order[n - k]]:
                first += 1
        for last_filter in range(2):
            if (options[MIN_P] > 0.0) if last_filter else (options[TOP_P] < 1.0):
                total = 0.0
                for i in range(first, n):
                    total += math.exp(float(score[order[i]] - best))
                if last_filter:
                    least = _F(options[MIN_P]) * _F(1.0 / total)
                    while first < n - 1 and _F(math.exp(float(score[order[first]] - best)) / total) < least:
                        first += 1
                else:
                    passed, most = 0.0, _F(1.0 - options[TOP_P])
                    while first < n - 1:
                        passed += _F(math.exp(float(score[order[first]] - best)) / total)
                        if _F(passed) > most:
                            break
                        first += 1
        for i in range(first):
            score[order[i]] = nothing
    token, top = found[0], nothing
    for i in range(n):
        value = score[i] + noise[found[i]] if options[NOISE] else score[i]
        if value > top:
            token, top = found[i], value
    return token


@njit(cache=True, nogil=True, error_model="numpy")
def choose(
    options, kind, value, follow, gap, neighbour, past, bound, coefficients, mask_kind, mask_value, pitch_of, tempo_id,
    numbers, all_bars, all_tracks, all_ends, prices, owners, state, ends, bars, tracks, remaining, logits, noise,
    place, rows, given, tokens
):  # fmt: skip
    """The next tokens of some rows.

    Args:
        options: [N_OPTIONS] float64, see the places above.
        kind: [vocab] kind of every id; the tables from here to `tempo_id` are those of `VocabularyTables`.
        value: [vocab] value of every id.
        follow: [phases * kinds] the phase after a phase and a kind.
        gap: [longest duration + 2] the largest duration token that may follow each, in ticks.
        neighbour: [2 * (top + 1)] the next duration token above every duration, then the next below, in ticks.
        past: [129, 128] ticks that a pitch needs beyond its last offset, by the last pitch of its onset.
        bound: [kinds] the interval that limits the values of each.
        coefficients: [phases, 5] of the cost of what is still due.
        mask_kind: [vocab] as `kind`, without ids that are never written.
        mask_value: [vocab] as `value`.
        pitch_of: [vocab] pitch of every id, 128 for others.
        tempo_id: [tempo bins] ids of the tempo tokens.
        numbers: [N_NUMBERS] constants of vocabulary and grammar, see the places above.
        all_bars: [n, columns] constants of all bars of all plans.
        all_tracks: [n, columns] constants of all tracks.
        all_ends: [n, 128] `ends` at the start of every track.
        prices: [situations, kinds + 2] tokens that each kind adds to the shortest way to finish, and the rest of it.
        owners: [batch, N_OWNER] constants of the rows.
        state: [batch, 11] columns of `GrammarState`; it and the next three are changed in place.
        ends: [batch, 128] last offset of every pitch, in ticks.
        bars: [batch, columns] constants of the current bars.
        tracks: [batch, columns] constants of the current tracks.
        remaining: [batch] how many tokens may still be written; negative means no limit.
        logits: [batch, vocab] fp32.
        noise: [batch, positions, vocab] fp32.
        place: position in `noise`.
        rows: [n] the rows to work on.
        given: whether `tokens` are the last ones, which the states do not hold yet.
        tokens: [batch] ids, replaced by the new ones.
    """
    vocabulary = (
        kind,
        value,
        follow,
        gap,
        neighbour,
        past,
        bound,
        coefficients,
        mask_kind,
        mask_value,
        pitch_of,
        tempo_id,
    )
    grammar, size = (numbers, all_bars, all_tracks, all_ends, prices), logits.shape[1]
    found, order = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
    score = np.empty(size, dtype=np.float32)
    need = np.empty(128, dtype=np.int64)
    lower, upper = np.empty(len(bound), dtype=np.int64), np.empty(len(bound), dtype=np.int64)
    for r in rows:
        if options[GRAMMAR]:
            own = owners[r], state[r], ends[r], bars[r], tracks[r]
            if given:
                advance(vocabulary, grammar, own[0], own[1], own[2], own[3], own[4], tokens[r])
            n = legal(
                vocabulary, grammar, own[0], own[1], own[2], own[3], own[4], remaining[r], need, lower, upper, found
            )
            if n == 0:  # as `MetricGrammarLogitsProcessor`
                found[0], n = 0, 1
        else:
            n = size
            for i in range(size):
                found[i] = i
        tokens[r] = _draw(options, logits[r], noise[r, place], found, n, score, order)
