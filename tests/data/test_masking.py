"""Masks for music: whole units, shares, what is never hidden, and that the same numbers give the same masks."""

import numpy as np
import pytest
import torch

from mortm_hf.data.encoder_examples import PieceSource
from mortm_hf.data.masking import (
    ATTRIBUTES,
    NOTE_KINDS,
    WAYS,
    MaskedPackDataset,
    MaskingRecipe,
    MusicMaskingCollator,
    choose_tokens,
    mask_tokens,
)
from mortm_hf.data.packing import IGNORE, PackDataset
from mortm_hf.models.token_vocabulary import MetricVocabulary, TokenKind
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from mortm_hf.training.arguments import DataRecipe
from tests.sample_songs import midi, store


VOCABULARY = MetricVocabulary.default()
K = VOCABULARY.kind
STRUCTURE = [
    TokenKind[n]
    for n in "PAD BOS END TRACK_END TAG_END SYSTEM PAST FUTURE CONST_M CONST_C MGEN CGEN META BAR BLANK OTHER".split()
]
RECIPE = DataRecipe(
    tasks={"continue": 50.0, "over_chords": 30.0, "chords": 20.0},
    corpora={"band": {"weight": 1}, "lead": {"weight": 1}},
    velocity=0.5,
)


def only(way, **options):
    return MaskingRecipe(ways={way: 1.0}, **options)


@pytest.fixture(scope="module")
def packs():
    source = PieceSource(store(), VOCABULARY, RECIPE, seed=3, packs=20)
    return PackDataset(source, 8, lambda i: (2, 768), 0, seed=3, epochs=4)


@pytest.fixture(scope="module")
def flat(packs):
    """Many documents one after the other: ids, starts."""
    packed = [packs[i] for i in range(6)]
    ids = np.concatenate([p["input_ids"].numpy().reshape(-1) for p in packed])
    starts = np.concatenate([p["cu_seq_lens_q"].numpy()[:-1] + i * 1536 for i, p in enumerate(packed)])
    return ids, starts


def chosen(flat, recipe, seed=0):
    return choose_tokens(VOCABULARY, *flat, recipe, np.random.default_rng(seed))


def notes_by_hand(ids, starts):
    """Lists of positions, one a note: the slow way, token by token."""
    found, current = [], None
    for i, kind in enumerate(K[ids]):
        if i in starts:
            current = None
        if kind == TokenKind.ONSET and i + 1 < len(ids) and K[ids[i + 1]] == TokenKind.PITCH:
            current = [i]
            found.append(current)
        elif current is not None and kind in NOTE_KINDS and K[ids[i - 1]] != TokenKind.METER:
            current.append(i)
        else:
            current = None
    return found


@pytest.mark.parametrize("way", WAYS)
def test_structure_is_never_hidden(flat, way):
    hidden, _, _ = chosen(flat, only(way, rate=1.0))
    assert not np.isin(K[flat[0][hidden]], STRUCTURE).any()
    assert hidden.sum() > 300


def test_notes_are_hidden_whole(flat):
    ids, starts = flat
    notes = notes_by_hand(ids, set(starts.tolist()))
    hidden, unit, way = chosen(flat, only("note", rate=0.2))
    with_notes = way == WAYS.index("note")
    assert with_notes.any() and not with_notes.all()  # padding has none
    document = np.searchsorted(starts, np.arange(len(ids)), side="right") - 1
    share = np.mean([hidden[note].all() for note in notes])
    assert all(hidden[note].all() or not hidden[note].any() for note in notes)
    assert 0.15 < share < 0.25
    covered = np.zeros(len(ids), bool)
    covered[np.concatenate(notes)] = True
    assert not (hidden & ~covered)[with_notes[document]].any()
    assert all(len(set(unit[note])) == 1 for note in notes)  # one fate
    # every document with notes loses one
    for d in np.flatnonzero(with_notes):
        assert hidden[document == d].any()


def test_bars_are_hidden_whole(flat):
    ids, starts = flat
    hidden, _, way = chosen(flat, only("bar", rate=0.3))
    kind = K[ids]
    ends = set(np.flatnonzero(np.isin(kind, (TokenKind.BAR, TokenKind.TRACK_END))).tolist()) | set(starts.tolist())
    document = np.searchsorted(starts, np.arange(len(ids)), side="right") - 1
    bars, whole = 0, 0
    for begin in np.flatnonzero(kind == TokenKind.BAR):
        if way[document[begin]] != WAYS.index("bar"):
            continue
        end = next(e for e in range(begin + 1, len(ids) + 1) if e in ends or e == len(ids))
        inside = hidden[begin:end][np.isin(kind[begin:end], NOTE_KINDS)]
        if kind[begin + 1] == TokenKind.METER and kind[begin + 2] == TokenKind.DURATION:
            inside = inside[1:]  # the length of a cut bar is no note
        chords = kind[begin:end] == TokenKind.CHORD_ROOT
        if len(inside) and not chords.any():
            bars, whole = bars + 1, whole + inside.all()
            assert inside.all() or not inside.any()
    assert bars > 50 and 0.2 < whole / bars < 0.42


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_are_hidden_in_a_run_of_bars(flat, name):
    ids, starts = flat
    kind = K[ids]
    notes = notes_by_hand(ids, set(starts.tolist()))
    inside = np.zeros(len(ids), bool)
    inside[np.concatenate(notes)] = True
    document = np.searchsorted(starts, np.arange(len(ids)), side="right") - 1
    everything = only(name, attribute_span=(1.0, 1.0))
    hidden, _, way = chosen(flat, everything)
    rows = (way == WAYS.index(name))[document]
    assert rows.any()
    assert np.array_equal(hidden[rows], ((kind == ATTRIBUTES[name]) & inside)[rows])  # all pitches, all onsets, ...
    part, _, way = chosen(flat, only(name, attribute_span=(0.4, 0.4)))
    rows = (way == WAYS.index(name))[document]
    assert (kind[part & rows] == ATTRIBUTES[name]).all()
    assert 0.15 < (part & rows).sum() / ((kind == ATTRIBUTES[name]) & inside & rows).sum() < 0.7
    for d in np.flatnonzero(way == WAYS.index(name))[:20]:
        where = np.flatnonzero((document == d) & inside & (kind == ATTRIBUTES[name]))
        lost = part[where]
        assert lost.any() and np.abs(np.diff(lost.astype(int))).sum() <= 2  # one run


def test_ways_come_in_their_shares(flat):
    counts = np.zeros(len(WAYS))
    for seed in range(20):
        _, _, way = chosen(flat, MaskingRecipe(ways={"note": 3, "pitch": 1}), seed)
        counts += np.bincount(way, minlength=len(WAYS))
    named = dict(zip(WAYS, counts))
    assert named["note"] / (named["note"] + named["pitch"]) == pytest.approx(0.75, abs=0.05)
    assert set(np.array(WAYS)[counts > 0]) == {"note", "pitch", "token"}  # "token": padding and chord answers


def test_labels_and_fates(flat):
    ids = flat[0]
    out, labels = mask_tokens(VOCABULARY, *flat, only("note", rate=0.5), np.random.default_rng(1))
    hidden = labels != IGNORE
    assert np.array_equal(labels[hidden], ids[hidden]) and np.array_equal(out[~hidden], ids[~hidden])
    masked = out == VOCABULARY["<MASK>"]
    assert not masked[~hidden].any()
    notes = notes_by_hand(ids, set(flat[1].tolist()))
    notes = [note for note in notes if hidden[note].all()]
    fates = [masked[note].mean() for note in notes]
    assert set(fates) == {0.0, 1.0}  # a note is masked as a whole
    assert np.mean(fates) == pytest.approx(0.8, abs=0.05)
    exchanged = hidden & ~masked
    assert (K[out[exchanged]] == K[ids[exchanged]]).all()  # by tokens of the same kind
    changed = np.mean([any(out[i] != ids[i] for i in note) for note, fate in zip(notes, fates) if fate == 0])
    assert 0.35 < changed < 0.65  # half of the rest stays
    every, _ = mask_tokens(VOCABULARY, *flat, only("note", mask=1.0, exchange=0.0), np.random.default_rng(1))
    assert np.isin(every[every != ids], VOCABULARY["<MASK>"]).all()


def test_packs_are_masked_the_same_way_every_time(packs):
    one, two = (MaskedPackDataset(packs, VOCABULARY, MaskingRecipe()) for _ in range(2))
    assert len(one) == len(packs)
    first, again = one[3], two[3]
    for name in ("input_ids", "labels", "position_ids"):
        assert torch.equal(first[name], again[name])
    whole = packs[3]["input_ids"]
    hidden = first["labels"] != IGNORE
    assert torch.equal(first["labels"][hidden], whole[hidden]) and 0.05 < hidden.float().mean() < 0.5
    assert torch.equal(torch.where(hidden, whole, first["input_ids"]), whole)
    # the same documents of another epoch get other masks
    other = one[3 + 8]
    assert not torch.equal(other["labels"], first["labels"])


def test_collator_pads_and_hides():
    tokenizer = MortmTokenizer()
    rows = [tokenizer.encode_midi(midi(s), bars=(0, b)) for s, b in ((0, 2), (1, 6), (2, 4))]
    batch = MusicMaskingCollator(tokenizer, seed=5)([{"input_ids": row} for row in rows])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["input_ids"].shape == (3, max(map(len, rows)))
    for i, row in enumerate(rows):
        real = batch["attention_mask"][i].bool()
        assert real.sum() == len(row) and (batch["labels"][i][~real] == IGNORE).all()
        labels, ids = batch["labels"][i][real], torch.tensor(row)
        hidden = labels != IGNORE
        assert hidden.any() and torch.equal(labels[hidden], ids[hidden])
        assert torch.equal(torch.where(hidden, ids, batch["input_ids"][i][real]), ids)
    again = MusicMaskingCollator(tokenizer, seed=5)
    assert torch.equal(again(rows)["labels"], batch["labels"])
    assert not torch.equal(again(rows)["labels"], batch["labels"])  # the second batch is masked anew
    other = MusicMaskingCollator(tokenizer, seed=6)(rows)
    assert not torch.equal(other["labels"], batch["labels"])
    with pytest.raises(ValueError, match="empty"):
        again([[]])


@pytest.mark.parametrize(
    "options",
    [
        {"ways": {"notes": 1.0}},
        {"ways": {}},
        {"ways": {"note": 0.0}},
        {"rate": 0.0},
        {"attribute_span": (0.5, 0.2)},
        {"mask": 0.9, "exchange": 0.2},
    ],
)
def test_recipes_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="masking"):
        MaskingRecipe(**options)
