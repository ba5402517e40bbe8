"""MetricPrompt: ten tasks, what a prompt may know, chords, meters, the context's limit, and going back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mortm_hf.models.midi_files import read_midi
from mortm_hf.models.music_grid import BarTable
from mortm_hf.models.music_harmony import chord_symbol, chord_table
from mortm_hf.models.music_names import DRUMS, METERS
from mortm_hf.models.music_score import MetricScore
from mortm_hf.models.prompt_building import MetricPrompt, build_prompt, parse_prompt, training_example
from mortm_hf.models.token_codec import parse_segment
from mortm_hf.models.token_grammar import find_errors
from mortm_hf.models.token_vocabulary import MetricVocabulary, TokenKind


MIDI = Path(__file__).parent.parent / "fixtures" / "midi"
VOCABULARY = MetricVocabulary.default()
K = TokenKind
MARKERS = ("<SYSTEM>", "<PAST_M>", "<FUTURE_M>", "<CONST_M>", "<CONST_C>", "<MGEN>", "<CGEN>", "<META>")
COMMON, WALTZ = METERS.index((4, 4)), METERS.index((3, 4))


def text(ids):
    return [VOCABULARY.tokens[i] for i in ids]


def layout(ids):
    """[(marker, instruments of the block)] in order."""
    found = []
    for token in text(ids):
        if token in MARKERS:
            found.append((token, []))
        elif token.startswith("<INST_"):
            found[-1][1].append(token[6:-1])
    return found


def make_song(n_bars=16, programs=(0, 33, 40, DRUMS), meter=COMMON, seed=0, chords=True):
    """Every track plays three notes in every bar."""
    rng = np.random.default_rng(seed)
    bars = BarTable.regular(meter, n_bars)
    cells = [(t, b, k) for t in range(len(programs)) for b in range(n_bars) for k in range(3)]
    track = np.array([t for t, _, _ in cells])
    onset = np.array([bars.start[b] + 24 * k for _, b, k in cells])
    pitch = rng.choice([60, 62, 64, 65, 67, 69, 71], len(cells))
    table = chord_table(bars.start[:-1:2], [("C", "Am7", "F/A", "G7")[i % 4] for i in range((n_bars + 1) // 2)])
    return MetricScore(
        bars=bars,
        track=track,
        onset=onset,
        pitch=pitch,
        duration=rng.integers(6, 25, len(cells)),
        velocity=np.full(len(cells), 80),
        programs=np.array(programs, dtype=np.int16),
        tempo=np.full(n_bars, 20, dtype=np.int16),
        chords=table if chords else None,
    )


SONG = make_song()

# past, future, const tracks, chords of DESIGN's table; targets are the instruments to generate
TASKS = {
    "from nothing": dict(targets=[0, 1], layout=[("<SYSTEM>", "0 33"), ("<MGEN>", "")]),
    "1 continue all": dict(
        targets=[0, 1, 2, 3], past=4, layout=[("<SYSTEM>", "0 33 40 D"), ("<PAST_M>", "0 33 40 D")]
    ),
    "2 continue one": dict(
        targets=[2], past=4, tracks=[0, 1], layout=[("<SYSTEM>", "40"), ("<PAST_M>", "0 33 40"), ("<CONST_M>", "0 33")]
    ),
    "3 over chords": dict(
        targets=[2], past=4, chords=True, layout=[("<SYSTEM>", "40"), ("<PAST_M>", "40"), ("<CONST_C>", "")]
    ),
    "4 both": dict(
        targets=[2],
        past=4,
        tracks=[0],
        chords=True,
        layout=[("<SYSTEM>", "40"), ("<PAST_M>", "0 40"), ("<CONST_M>", "0"), ("<CONST_C>", "")],
    ),
    "5 infill all": dict(
        targets=[0, 1],
        past=4,
        future=2,
        layout=[("<SYSTEM>", "0 33"), ("<PAST_M>", "0 33"), ("<FUTURE_M>", "0 33")],
    ),
    "6 infill one": dict(
        targets=[1],
        past=4,
        future=2,
        tracks=[0, 3],
        layout=[("<SYSTEM>", "33"), ("<PAST_M>", "0 33 D"), ("<FUTURE_M>", "0 33 D"), ("<CONST_M>", "0 D")],
    ),
    "7 infill over chords": dict(
        targets=[1],
        past=4,
        future=2,
        chords=True,
        layout=[("<SYSTEM>", "33"), ("<PAST_M>", "33"), ("<FUTURE_M>", "33"), ("<CONST_C>", "")],
    ),
    "8 everything": dict(
        targets=[3],
        past=4,
        future=2,
        tracks=[0, 1, 2],
        chords=True,
        layout=[
            ("<SYSTEM>", "D"),
            ("<PAST_M>", "0 33 40 D"),
            ("<FUTURE_M>", "0 33 40 D"),
            ("<CONST_M>", "0 33 40"),
            ("<CONST_C>", ""),
        ],
    ),
    "9 accompany": dict(targets=[1, 3], tracks=[0], layout=[("<SYSTEM>", "33 D"), ("<CONST_M>", "0")]),
    "10 melody over chords": dict(targets=[2], chords=True, layout=[("<SYSTEM>", "40"), ("<CONST_C>", "")]),
    "chords": dict(task="chords", tracks=[0, 1], layout=[("<SYSTEM>", ""), ("<CONST_M>", "0 33"), ("<CGEN>", "")]),
    "meta": dict(task="meta", tracks=[0, 3], layout=[("<CONST_M>", "0 D"), ("<META>", "")]),
}


@pytest.mark.parametrize("name", TASKS)
def test_the_filled_fields_decide_the_blocks(name):
    case = dict(TASKS[name])
    expected = [(m, ["DRUMS" if i == "D" else i for i in names.split()]) for m, names in case.pop("layout")]
    if expected[-1][0] not in ("<MGEN>", "<CGEN>", "<META>"):
        expected.append(("<MGEN>", []))
    song = replace(SONG, key="FM")
    prompt = MetricPrompt(song=song, start=6, bars=3, **case)
    built = build_prompt(VOCABULARY, prompt)
    assert built.ids.dtype == np.int32 and text(built.ids)[0] == "<EOS>"
    assert layout(built.ids) == expected
    assert str(built.report) == ""
    # the same request as a training example: one code path, then the answer
    example = training_example(VOCABULARY, song, prompt, omit=("density",))
    assert (example.ids[: example.answer_start] == built.ids).all()
    assert text(example.ids)[-1] == "<TE>" and find_errors(VOCABULARY, [example.ids]) == [None]
    if case.get("task", "melody") == "melody":
        assert built.plan.kind == K.MGEN and built.plan.bars.n_bars == 3
        assert list(built.plan.instruments) == [int(SONG.programs[t]) for t in case["targets"]]
        assert (built.plan.tempo == 20).all()


@pytest.mark.parametrize("name", TASKS)
def test_a_prompt_knows_nothing_of_the_answer(name):
    """Other notes in the generated bars of the generated tracks, or other chords to be told, leave the prompt as it
    is: no leak through blocks, key or header."""
    case = {k: v for k, v in TASKS[name].items() if k != "layout"}
    prompt = MetricPrompt(song=SONG, start=6, bars=3, **case)
    inside = np.isin(SONG.track, case.get("targets", [])) & (SONG.onset >= 6 * 96) & (SONG.onset < 9 * 96)
    other = replace(SONG, pitch=np.where(inside, SONG.pitch + 6, SONG.pitch))
    if case.get("task") == "chords":
        other = replace(other, chords=chord_table([0, 600], ["F#m7", "Bb"]))
    again = build_prompt(VOCABULARY, replace(prompt, song=other))
    assert (again.ids == build_prompt(VOCABULARY, prompt).ids).all()
    kept = training_example(VOCABULARY, SONG, prompt, omit=("density",))
    changed = training_example(VOCABULARY, other, prompt, omit=("density",))
    if name not in ("from nothing", "10 melody over chords"):  # there the key is a wish about the answer
        assert (kept.ids[: kept.answer_start] == changed.ids[: changed.answer_start]).all()
    if inside.any() or case.get("task") == "chords":
        assert len(kept.ids) != len(changed.ids) or (kept.ids != changed.ids).any()


def test_the_header_says_what_was_asked_in_its_order():
    prompt = MetricPrompt(
        instruments=["drums", "violin", "bass"],
        bars=4,
        key="Bb minor",
        meter="3/4",
        tempo=120,
        genre=["jazz", "Hip Hop"],
        density=[1, 5, None],
    )
    built = build_prompt(VOCABULARY, prompt)
    assert text(built.ids) == [
        *("<EOS>", "<SYSTEM>", "<INST_40>", "<NOTE_DENSE_5>", "<INST_32>", "<INST_DRUMS>", "<NOTE_DENSE_1>"),
        *("<GEN_MEASURE_COUNT_4>", "<GENRE_jazz>", "<GENRE_hiphop>", "<TS_3/4>", "<BPM_123>", "k_Bbm"),
        *("<TAG_END>", "<MGEN>"),
    ]
    assert built.plan.instruments == (40, 32, DRUMS) and built.passage.targets == (-1, -1, -1)
    assert built.plan.bars.length.tolist() == [72] * 4
    bare = build_prompt(VOCABULARY, replace(prompt, omit=("density", "bars", "genre", "meter", "tempo", "key")))
    assert text(bare.ids) == "<EOS> <SYSTEM> <INST_40> <INST_32> <INST_DRUMS> <TAG_END> <MGEN>".split()
    free = build_prompt(VOCABULARY, MetricPrompt(instruments=["piano"]))
    assert free.plan.bars.n_bars == 8 and free.plan.tempo is None and free.plan.velocity is False
    assert "<GEN_MEASURE_COUNT_8>" in text(free.ids) and not any(t.startswith("<BPM") for t in text(free.ids))


def test_training_headers_lose_fields_at_random():
    rng = np.random.default_rng(0)
    seen = {"<GEN_MEASURE_COUNT_2>": 0, "<INST_0>": 0, "<TS_4/4>": 0, "k_DbM": 0}
    song = replace(SONG, key="C#M")
    for _ in range(300):
        example = training_example(VOCABULARY, song, 4, 2, targets=[0], drop={"bars": 0.5, "meter": 1.0}, rng=rng)
        head = text(example.ids[: example.answer_start])
        for token in seen:
            seen[token] += token in head
    assert 110 < seen["<GEN_MEASURE_COUNT_2>"] < 190
    assert seen["<INST_0>"] == 300 and seen["<TS_4/4>"] == 0
    same = [training_example(VOCABULARY, song, 4, 2, drop=0.3, rng=np.random.default_rng(7)).ids for _ in range(2)]
    assert (same[0] == same[1]).all()
    with pytest.raises(ValueError, match="rng"):
        training_example(VOCABULARY, song, 4, 2, drop=0.3)
    with pytest.raises(ValueError, match="no header field colour"):
        training_example(VOCABULARY, song, 4, 2, omit=["colour"])


def test_silent_tracks_are_left_out_and_something_must_sound():
    rows = ~((SONG.track == 1) & (SONG.onset >= 6 * 96) & (SONG.onset < 9 * 96))
    names = ("track", "onset", "pitch", "duration", "velocity")
    quiet = replace(SONG, **{n: getattr(SONG, n)[rows] for n in names})
    example = training_example(VOCABULARY, quiet, 6, 3, past_bars=2, targets=[0, 1])
    assert dict(layout(example.ids))["<MGEN>"] == ["0"] and dict(layout(example.ids))["<SYSTEM>"] == ["0"]
    assert dict(layout(example.ids))["<PAST_M>"] == ["0", "33"]
    with pytest.raises(ValueError, match="no generated track sounds") as caught:
        training_example(VOCABULARY, quiet, 6, 3, targets=[1])
    assert caught.value.code == "prompt.empty"
    built = build_prompt(VOCABULARY, MetricPrompt(song=quiet, start=6, bars=3, targets=[0], tracks=[1]))
    assert built.report.empty_blocks == ("tracks",) and "tracks is silent" in str(built.report)
    with pytest.raises(ValueError, match="no chords to learn"):
        training_example(VOCABULARY, make_song(chords=False), 2, 2, task="chords")


# -------------------------------------------------------------------------------------------------- chords and meters


def chords_of(ids, marker=K.CONST_C):
    block = parse_segment(VOCABULARY, ids).blocks[marker]
    return [(int(o), chord_symbol(r, q, b)) for o, r, q, b in zip(*(vars(block.chords)[n] for n in FIELDS))]


FIELDS = ("onset", "root", "quality", "bass")


def over(chords, **changes):
    return build_prompt(VOCABULARY, MetricPrompt(**dict(instruments=["piano"], bars=6, chords=chords) | changes)).ids


def test_one_chord_a_bar_cycles_and_repeats_hold():
    expected = [(0, "C"), (96, "Am7/G"), (192, "F"), (288, "C"), (384, "Am7/G"), (480, "F")]
    assert chords_of(over("C Am7/G F")) == expected
    assert chords_of(over(["C", "A:min7/b7", "F:maj"])) == expected
    assert chords_of(over("C | Am7/G | F")) == expected
    assert chords_of(over(["C", "C", "G"])) == [(0, "C"), (192, "G"), (288, "C"), (480, "G")]
    tokens = text(over("C C G"))
    assert tokens[tokens.index("<CONST_C>") + 1 :][:3] == ["<SME>", "<TS_4/4>", "s_0"]
    assert tokens[-3:] == ["<ESEQ>", "<TAG_END>", "<MGEN>"]
    assert tokens.count("<BLANK>") == 2  # held bars


def test_chords_stand_where_they_are_put():
    placed = [("Dm", 1, 2), ("G7", 2), ("C", 3, 1.5)]
    expected = [(0, "N"), (144, "Dm"), (192, "G7"), (324, "C")]
    assert chords_of(over(placed)) == expected
    assert chords_of(over({(1, 2): "Dm", (2, 0): "G7", (3, 1.5): "C"})) == expected
    # bars of the song, beats of the meter: in 6/8 beat 3 is a dotted quarter in
    assert chords_of(over([("C", 10), ("F", 10, 3)], song=SONG, start=10, meter="6/8")) == [(0, "C"), (36, "F")]


def test_annotation_files_speak_of_the_song(tmp_path):
    file = tmp_path / "song.chords.tsv"
    file.write_text("start_tick\tend_tick\tchord\n0\t9600\tC:maj\n9600\t12000\tG:7\n", encoding="utf-8")
    for name in (file, str(file)):
        built = build_prompt(VOCABULARY, MetricPrompt(song=SONG, start=4, bars=3, targets=[0], chords=name))
        assert chords_of(built.ids) == [(0, "C"), (96, "G7"), (216, "N")]  # 480 ticks a quarter, bar 5 begins at 9600
    with pytest.raises(ValueError, match="give `song`"):
        over(str(file))
    beyond = over(chord_table([0, 96 * 5, 96 * 7], ["C", "G", "F"]))  # a table starts with the generated bars
    assert chords_of(beyond) == [(0, "C"), (480, "G")]


def test_a_window_restates_the_sounding_chord():
    # chords change at bars 0, 2, 4, ..: bar 5 begins inside the third
    built = build_prompt(VOCABULARY, MetricPrompt(song=SONG, start=5, bars=3, targets=[0], chords=True))
    assert chords_of(built.ids) == [(0, "F/A"), (96, "G7")]
    example = training_example(VOCABULARY, SONG, 5, 3, task="chords")
    answer = text(example.ids[example.answer_start :])
    assert answer[:6] == ["<SME>", "<TS_4/4>", "s_0", "CR_F", "CQ_None", "CB_/A"]
    late = replace(SONG, chords=chord_table([6 * 96 + 48], ["G"]))
    example = training_example(VOCABULARY, late, 6, 1, task="chords")
    assert (
        text(example.ids[example.answer_start :])[2:10] == "s_0 CR_N CQ_None CB_None s_48 CR_G CQ_None CB_None".split()
    )


def test_generated_bars_take_their_meter_from_what_is_given():
    waltz = make_song(meter=WALTZ)
    continued = build_prompt(VOCABULARY, MetricPrompt(song=waltz, past=4, bars=5))
    assert continued.passage.start == 16 and continued.plan.bars.length.tolist() == [72] * 5
    assert continued.passage.targets == (0, 1, 2, 3) and not continued.passage.inside
    cut = BarTable.from_lengths([96, 96, 40, 96, 72, 96], [COMMON, COMMON, COMMON, COMMON, WALTZ, COMMON])
    song = replace(make_song(6), bars=cut, tempo=np.full(6, 20))
    keep = song.onset < cut.end
    song = replace(song, **{n: getattr(song, n)[keep] for n in ("track", "onset", "pitch", "duration", "velocity")})
    inside = build_prompt(VOCABULARY, MetricPrompt(song=song, start=2, bars=3, past=2, future=1, targets=[0]))
    assert inside.plan.bars.length.tolist() == [40, 96, 72] and inside.passage.inside
    assert "<TS_4/4>" in text(inside.ids)[: text(inside.ids).index("<TAG_END>")]
    over_chords = over("C G", song=song, start=2, bars=3, tracks=[0], targets=[1], instruments=None)
    assert text(over_chords).count("d_40") >= 2  # CONST_M and CONST_C both state the cut bar
    mixed = build_prompt(VOCABULARY, MetricPrompt(instruments=[0], bars=3, meter=["4/4", "7/8", (3, 4)]))
    assert mixed.plan.bars.length.tolist() == [96, 84, 72]
    beyond = build_prompt(VOCABULARY, MetricPrompt(song=song, start=4, past=2, bars=4, targets=[0]))
    assert beyond.plan.bars.length.tolist() == [72, 96, 96, 96]  # two bars of the song, then its last meter


def test_tempo_goes_on_and_is_overruled():
    song = replace(SONG, tempo=np.arange(16).astype(np.int16))
    inside = MetricPrompt(song=song, start=4, bars=3, past=4, future=2)
    assert build_prompt(VOCABULARY, inside).plan.tempo.tolist() == [4, 5, 6]
    assert (build_prompt(VOCABULARY, replace(inside, tempo=240)).plan.tempo == 31).all()
    silent = replace(SONG, tempo=np.full(16, -1, dtype=np.int16))
    assert (build_prompt(VOCABULARY, MetricPrompt(song=silent, past=4, bars=2)).plan.tempo == -1).all()


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ([20, 20, 20, 20, 20, 19, 17, 12], 20),  # a final ritardando is left behind
        ([20, 20, 20, 14, 14, 14, 14, 14], 14),  # a new tempo is kept
        ([-1, -1, -1, -1, -1, -1, 18, 18], 18),
        ([21, 20, 22, 21, 20, 22, 21, 20], 21),  # played by hand
    ],
)
def test_continued_takes_the_tempo_of_the_bars_heard(ending, expected):
    song = replace(SONG, tempo=np.array([3] * 8 + ending, dtype=np.int16))
    for request in (MetricPrompt(song=song, past=8, bars=2), MetricPrompt(song=song, start=16, bars=2, targets=[0])):
        assert build_prompt(VOCABULARY, request).plan.tempo.tolist() == [expected] * 2
    alone = MetricPrompt(past=song.window(8, 16), bars=2)
    assert build_prompt(VOCABULARY, alone).plan.tempo.tolist() == [expected] * 2


# ------------------------------------------------------------------------------------------------- material and length


def test_instruments_name_the_song_s_tracks_in_order():
    song = make_song(programs=(0, 40, 0, 40, DRUMS))
    built = build_prompt(VOCABULARY, MetricPrompt(song=song, past=2, bars=2, instruments=["drums", "violin", 56, 40]))
    assert built.plan.instruments == (40, 40, 56, DRUMS) and built.passage.targets == (1, 3, -1, 4)
    built = build_prompt(VOCABULARY, MetricPrompt(song=song, start=3, bars=2, instruments=["violin"], tracks=[1]))
    assert built.passage.targets == (3,)  # track 1 is given, so the second violin is meant
    built = build_prompt(VOCABULARY, MetricPrompt(song=song, start=3, bars=2, targets=[0], tracks=True))
    assert layout(built.ids)[1] == ("<CONST_M>", ["40", "0", "40", "DRUMS"])
    built = build_prompt(VOCABULARY, MetricPrompt(song=song, start=3, bars=2, targets=[4], tracks="strings"))
    assert layout(built.ids)[1] == ("<CONST_M>", ["40", "40"])


def test_material_may_be_files_bytes_and_other_music():
    path = MIDI / "bwv45.7.mid"
    song = read_midi(path)
    wanted = build_prompt(VOCABULARY, MetricPrompt(song=song, past=4, bars=2)).ids
    for source in (path, str(path), path.read_bytes()):
        assert (build_prompt(VOCABULARY, MetricPrompt(song=source, past=4, bars=2)).ids == wanted).all()
    own = MetricPrompt(past=(path, (0, 4)), future=song.window(4, 6), bars=3, key=song.key)
    built = build_prompt(VOCABULARY, own)
    assert [m for m, _ in layout(built.ids)] == ["<SYSTEM>", "<PAST_M>", "<FUTURE_M>", "<MGEN>"]
    assert built.plan.instruments == tuple(song.programs[song.window(0, 4).sounding_tracks()].tolist())
    const = MetricPrompt(tracks=song.window(4, 6), instruments=["flute"])
    assert build_prompt(VOCABULARY, const).plan.bars.n_bars == 2


def test_too_long_drops_the_oldest_past_then_the_farthest_future_never_the_rest():
    song = replace(SONG, key="CM")
    prompt = MetricPrompt(song=song, start=8, bars=2, targets=[0], tracks=[1], past=8, future=6, chords=True)
    whole = build_prompt(VOCABULARY, prompt)
    least = build_prompt(VOCABULARY, replace(prompt, past=None, future=None)).ids
    lost = []
    for room in range(len(whole.ids), len(least) - 1, -7):
        built = build_prompt(VOCABULARY, prompt, max_length=room)
        report = built.report
        assert len(built.ids) <= room
        lost.append((report.dropped_past_bars, report.dropped_future_bars))
        assert report.dropped_future_bars == 0 or report.dropped_past_bars == 8
        kept = replace(
            prompt, past=8 - report.dropped_past_bars or None, future=6 - report.dropped_future_bars or None
        )
        assert (built.ids == build_prompt(VOCABULARY, kept).ids).all()
        more = replace(kept, past=(kept.past or 0) + 1) if not report.dropped_future_bars else None
        if more is not None and report.dropped_past_bars:
            assert len(build_prompt(VOCABULARY, more).ids) > room  # no bar is dropped without need
    assert lost[0] == (0, 0) and (8, 6) in lost and lost == sorted(lost)
    assert "oldest past bars dropped" in str(build_prompt(VOCABULARY, prompt, max_length=len(least) + 40).report)
    with pytest.raises(ValueError, match="without any past or future") as caught:
        build_prompt(VOCABULARY, prompt, max_length=len(least) - 1)
    assert caught.value.code == "prompt.too_long"
    example = training_example(VOCABULARY, SONG, 8, 2, past_bars=8, targets=[0], max_length=120)
    assert len(example.ids) <= 120
    with pytest.raises(ValueError, match="answer alone"):
        training_example(VOCABULARY, SONG, 8, 2, targets=[0], max_length=20)


@pytest.mark.parametrize("name", ["bwv45.7", "freedoom_d_map22", "groove_highlife", "hensel_im_wald", "jerusalem"])
def test_real_music_makes_grammatical_examples_that_read_back(name):
    song = read_midi(MIDI / f"{name}.mid")
    if song.n_bars > 4:
        song = replace(song, chords=chord_table([0, int(song.bars.start[4]) + 13], ["C", "G7/B"]))
    rng = np.random.default_rng(len(name))
    made = []
    while len(made) < 12:
        bars = int(rng.integers(1, 7))
        start = int(rng.integers(0, max(song.n_bars - bars, 1)))
        order = rng.permutation(song.n_tracks)
        cut = int(rng.integers(1, song.n_tracks + 1))
        try:
            example = training_example(
                VOCABULARY,
                song,
                start,
                min(bars, song.n_bars - start),
                past_bars=int(rng.integers(0, 6)),
                future_bars=int(rng.integers(0, 6)),
                task=str(rng.choice(["melody", "melody", "chords", "meta"])),
                const=np.sort(order[cut:]),
                chords=bool(rng.random() < 0.5),
                velocity=bool(rng.random() < 0.5),
                drop=0.2,
                rng=rng,
            )
        except ValueError as error:
            assert error.code == "prompt.empty"
            continue
        made.append(example.ids)
        prompt = example.ids[: example.answer_start]
        assert (build_prompt(VOCABULARY, parse_prompt(VOCABULARY, prompt)).ids == prompt).all()
        assert (build_prompt(VOCABULARY, parse_prompt(VOCABULARY, example.ids)).ids == prompt).all()
    assert find_errors(VOCABULARY, made) == [None] * len(made)


def test_answers_hold_the_generated_tracks_of_the_window():
    example = training_example(VOCABULARY, SONG, 6, 3, past_bars=2, targets=[1, 3], const=[0])
    answer = parse_segment(VOCABULARY, example.ids).generated
    window = SONG.window(6, 9).take_tracks([1, 3])
    for name in ("track", "onset", "pitch", "duration"):
        assert (getattr(answer, name) == getattr(window, name)).all()
    assert text(example.ids)[example.answer_start - 1] == "<MGEN>"


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "request_, code, words",
    [
        (dict(instruments=["kazoo"]), "vocabulary.instrument", "kazoo"),
        (dict(instruments=["piano"], key="H major"), "vocabulary.key", "H major"),
        (dict(instruments=["piano"], chords=["C", "Q7"]), "vocabulary.chord", "Q7"),
        (dict(instruments=["piano"], meter="5/3"), "vocabulary.meter", "5/3"),
        (dict(instruments=["piano"], meter="9/4"), "vocabulary.meter", "1/4 to 8/4"),
        (dict(instruments=["piano"], genre="polka"), "vocabulary.genre", "polka"),
        (dict(instruments=["piano"], bars=0), "prompt.bars", "at least 1"),
        (dict(instruments=["piano"], bars=-4), "prompt.bars", "at least 1"),
        (dict(instruments=["piano"], bars=2.5), "prompt.bars", "whole number"),
        (dict(instruments=[]), "prompt.empty", "at least one"),
        (dict(), "prompt.empty", "at least one instrument"),
        (dict(instruments=["piano"], tempo=0), "prompt.tempo", "quarters a minute"),
        (dict(instruments=["piano"], density=11), "prompt.material", "1 \\(sparse\\)"),
        (dict(instruments=["piano"], density=[1, 2]), "prompt.material", "density: got 2 values for 1"),
        (dict(instruments=["piano"], task="dance"), "prompt.task", "melody, chords, meta"),
        (dict(instruments=["piano"], past=4), "prompt.material", "give `song`"),
        (dict(instruments=["piano"], bars=2, chords="C D E"), "prompt.bars", "3 chords for 2 bars"),
        (dict(instruments=["piano"], chords=[("C", 9)]), "prompt.bars", "outside the generated bars"),
        (dict(instruments=["piano"], chords=[("C", 1, 4)]), "prompt.bars", "outside its bar"),
        (dict(instruments=["piano"], chords=["C", ("G", 1)]), "prompt.material", "either all"),
        (dict(instruments=["piano"], bars=3, meter=["4/4", "3/4"]), "prompt.bars", "2 meters for 3 bars"),
        (dict(instruments=["piano"], scale=[0, 12]), "prompt.material", "pitch classes"),
        (dict(instruments=["piano"], pitch_range=(70, 60)), "prompt.material", "lowest"),
        (dict(task="chords"), "prompt.empty", "needs music"),
        (dict(task="meta", song=SONG, past=4), "prompt.material", "tracks"),
        (dict(task="chords", song=SONG, chords="C"), "prompt.material", "leave out"),
        (dict(song=SONG, start=17, past=4), "prompt.bars", "within the song's 16 bars"),
        (dict(song=SONG, past=(4, 2)), "prompt.bars", "0 <= start < stop"),
        (dict(song=SONG, start=3, past=(0, 5)), "prompt.bars", "overlap"),
        (dict(song=SONG, future=4), "prompt.bars", "`start` is missing"),
        (dict(song=SONG, start=14, bars=4, targets=[0], tracks=[1]), "prompt.bars", "end with bar 16"),
        (dict(song=SONG, targets=[9]), "prompt.material", "tracks 0 to 3"),
        (dict(song=SONG, targets=[1], tracks=[1], start=2), None, ""),
        (dict(song=SONG, targets=[0], tracks=["flute"], start=2), "prompt.material", "no track of 'flute'"),
        (dict(song=SONG, start=2, bars=2, future=2, meter="3/4"), "prompt.material", "does not fit"),
        (dict(song=SONG, start=14, bars=4, past=2, chords=True), "prompt.material", "chords=True"),
        (dict(song="missing.mid", past=4), "midi.unreadable", "missing.mid"),
    ],
)
def test_requests_that_cannot_be_served_say_why(request_, code, words):
    if code is None:  # a target named among the constant tracks is not constant
        assert layout(build_prompt(VOCABULARY, MetricPrompt(**request_)).ids) == [("<SYSTEM>", ["33"]), ("<MGEN>", [])]
        return
    with pytest.raises(ValueError, match=words) as caught:
        build_prompt(VOCABULARY, MetricPrompt(**request_))
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_training_windows_must_lie_in_the_song():
    for start, bars in ((-1, 2), (0, 0), (15, 2), (0, 17)):
        with pytest.raises(ValueError, match="not within the song") as caught:
            training_example(VOCABULARY, SONG, start, bars)
        assert caught.value.code == "prompt.bars"
