"""Rules read from ids: the notes they find, and what each rewards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mortm_hf.models.token_codec import parse_segment
from mortm_hf.models.token_vocabulary import MetricVocabulary
from mortm_hf.training.rlmf.rules import (
    BarPattern,
    ChordFit,
    Consonance,
    DensityGuard,
    NoteReader,
    RepetitionGuard,
    ScaleAdherence,
)
from tests.training.rlmf.small_runs import rollout


VOCABULARY = MetricVocabulary.default()


def batch(*texts: str, left: int = 0):
    """(ids, mask) of segments written as tokens; `left` pads on the left of every row."""
    rows = [[VOCABULARY[t] for t in text.split()] for text in texts]
    width = max(map(len, rows)) + left
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, left : left + len(row)] = torch.tensor(row)
    return ids, ids != 0


def notes(*texts: str, left: int = 0):
    return NoteReader(VOCABULARY)(*batch(*texts, left=left))


def bars(*contents: str) -> str:
    return " ".join(f"<SME> {c}" for c in contents)


def answer(*contents: str, header: str = "", past: str = "") -> str:
    head = f"<SYSTEM> {header} <TAG_END> " if header else ""
    before = f"<PAST_M> <INST_0> {past} <ESEQ> <TAG_END> " if past else ""
    return f"<EOS> {head}{before}<MGEN> <INST_0> {bars(*contents)} <ESEQ> <TE>"


C = "s_0 p_60 d_24"


def test_the_notes_are_those_of_the_decoder(masked_policy, tokenizer, prompts):
    ids, mask, _, _ = rollout(masked_policy, tokenizer, prompts[:8])
    found = NoteReader(tokenizer.vocabulary)(ids, mask)
    for row in range(len(ids)):
        score = parse_segment(tokenizer.vocabulary, ids[row][mask[row]].numpy()).generated
        here = (found.row == row) & found.new
        place = score.bar_of_notes()
        theirs = sorted(
            zip(place, score.onset - score.bars.start[place], score.pitch, score.duration, score.programs[score.track])
        )
        columns = (found.bar, found.onset, found.pitch, found.duration, found.program)
        assert theirs == sorted(zip(*(c[here].tolist() for c in columns)))
        assert found.bars[row] == score.n_bars and found.track_bars[row] == score.n_bars * score.n_tracks
    assert found.finished.all()


def test_long_durations_are_sums_and_bar_lengths_are_none():
    found = notes(
        "<EOS> <MGEN> <INST_0> <SME> <TS_4/4> d_90 s_0 p_60 d_288 d_24 <SME> s_5 p_61 d_3 <ESEQ> <TE>", left=3
    )
    assert found.duration.tolist() == [312, 3] and found.bar.tolist() == [0, 1] and found.bars.tolist() == [2]


def test_scale():
    scale = ScaleAdherence()
    inside, outside = f"{C} s_24 p_62 d_24", f"{C} s_24 p_61 d_24 s_48 p_63 d_24 s_72 p_66 d_24"
    key = "k_CM"
    rows = [answer(inside, header=key), answer(outside, header=key), answer(outside, header="k_DM"), answer(C)]
    assert scale(notes(*rows)).tolist() == pytest.approx([1.0, 0.25, 0.5, 1.0])
    # without a key: the scale that fits best; minor keys take both sevenths
    chromatic = " ".join(f"s_{24 * i} p_{60 + i} d_24" for i in range(4))
    assert scale(notes(answer(chromatic))).item() == pytest.approx(0.75)
    assert scale(notes(answer("s_0 p_68 d_24 s_24 p_67 d_24", header="k_Am"))).item() == 1.0
    drums = answer("s_0 p_61 d_24", header=key).replace("<INST_0>", "<INST_DRUMS>")
    assert scale(notes(drums)).item() == 0.0, "drums have no scale"


def test_the_given_bars_do_not_count():
    scale = ScaleAdherence()
    past = bars("s_0 p_61 d_24 s_24 p_63 d_24")
    assert scale(notes(answer(C, header="k_CM", past=past))).item() == 1.0


def test_chords():
    chords = "<CONST_C> <SME> s_0 CR_C CQ_None CB_None s_48 CR_G CQ_7 CB_None <SME> <BLANK> <ESEQ> <TAG_END>"
    fit = ChordFit()

    def row(*contents):
        return f"<EOS> {chords} <MGEN> <INST_0> {bars(*contents)} <ESEQ> <TE>"

    assert fit(notes(row(C, "s_0 p_67 d_4"))).item() == 1.0
    assert fit(notes(row("s_0 p_62 d_4 s_48 p_62 d_4", "s_0 p_65 d_4 s_9 p_60 d_4"))).item() == 0.5
    rows = [row("s_47 p_65 d_4", "<BLANK>"), answer(C), row("s_48 p_65 d_4", "<BLANK>")]
    assert fit(notes(*rows)).tolist() == [0.0, 0.5, 1.0], "neutral without chords; each row has its own chords"
    none = row(C, C).replace("CR_C CQ_None", "CR_N CQ_None")
    assert fit(notes(none)).item() == 0.0, "the first note is under no chord, the second under G7"


def test_consonance():
    rule = Consonance(neutral=0.7)
    third, second, ninth = "s_0 p_60 d_4 s_0 p_64 d_4", "s_5 p_60 d_4 s_5 p_61 d_4", "s_0 p_60 d_4 s_0 p_73 d_4"
    seventh = "s_0 p_60 d_4 s_0 p_71 d_4"
    rows = [answer(third, second), answer(ninth), answer(C, "s_0 p_61 d_24"), answer(seventh)]
    assert rule(notes(*rows)).tolist() == pytest.approx([0.5, 0.0, 0.7, 0.0])
    two = f"<EOS> <MGEN> <INST_0> {bars(C, C)} <ESEQ> <INST_40> {bars('s_0 p_61 d_4', 's_0 p_67 d_4')} <ESEQ> <TE>"
    assert rule(notes(two)).item() == 0.5, "tracks are heard together"
    drums = two.replace("<INST_40>", "<INST_DRUMS>")
    assert rule(notes(drums)).item() == pytest.approx(0.7)
    assert rule(notes(answer(third, past=bars(second)))).item() == 1.0, "the given bars do not count"


def test_bar_patterns():
    rhythm, other = "s_0 p_60 d_24 s_48 p_62 d_24", "s_0 p_60 d_24"
    pattern = BarPattern(target=0.5)
    same_rhythm = "s_0 p_67 d_9 s_48 p_72 d_9 s_48 p_76 d_9"  # a chord is one onset
    rows = [answer(rhythm, same_rhythm, other), answer(rhythm, same_rhythm), answer(rhythm, other), answer(rhythm)]
    assert pattern(notes(*rows)).tolist() == pytest.approx([1.0, 0.0, 0.0, 0.5])
    past = bars(rhythm)
    assert pattern(notes(answer(other, rhythm, past=past))).item() == 1.0, "given bars count as earlier ones"
    two = f"<EOS> <MGEN> <INST_0> {bars(rhythm)} <ESEQ> <INST_40> {bars(rhythm)} <ESEQ> <TE>"
    assert pattern(notes(two)).item() == 0.5, "another instrument's bar is nothing to compare with"


def test_guards():
    guard = DensityGuard(low=2, high=4)
    many = " ".join(f"s_{i} p_60 d_1" for i in range(6))
    unfinished = answer(C + " s_24 p_62 d_4").removesuffix(" <TE>")
    rows = [answer(f"{C} s_24 p_62 d_4"), answer(C), answer(many), unfinished]
    assert guard(notes(*rows)).tolist() == pytest.approx([1.0, 0.5, 0.5, 0.0])
    copies = RepetitionGuard(allowed=0.5)
    other = "s_0 p_62 d_24"
    rows = [answer(C, other), answer(C, C), answer(C, C, C, C), answer("<BLANK>", C)]
    assert copies(notes(*rows)).tolist() == pytest.approx([1.0, 1.0, 0.5, 1.0])
    assert copies(notes(answer(C, C, past=bars(C)))).item() == 0.0


def test_rules_do_not_depend_on_padding_or_neighbours(masked_policy, tokenizer, prompts):
    ids, mask, _, _ = rollout(masked_policy, tokenizer, prompts[:8], seed=4)
    reader = NoteReader(tokenizer.vocabulary)
    for rule in (ScaleAdherence(), ChordFit(), BarPattern(), DensityGuard(), RepetitionGuard()):
        together = rule(reader(ids, mask))
        assert ((together >= 0) & (together <= 1)).all()
        for row in range(len(ids)):
            text = ids[row][mask[row]][None]
            assert rule(reader(text, torch.ones_like(text, dtype=torch.bool)))[0] == together[row]


def test_an_empty_batch_of_notes_is_no_accident():
    empty = notes("<EOS> <MGEN>", "<EOS> <SYSTEM> k_CM <TAG_END> <MGEN>")
    for rule in (ScaleAdherence(), ChordFit(), BarPattern(), DensityGuard(), RepetitionGuard()):
        assert np.isfinite(rule(empty).numpy()).all()
