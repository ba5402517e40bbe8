"""The tokenizer: text interface, MIDI interface, saving, errors."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import mortm_hf  # noqa: F401  (registers the tokenizer)
from mortm_hf.models.token_vocabulary import TABLE_SIZE
from mortm_hf.models.tokenization_mortm import MortmTokenizer


MIDI = Path(__file__).parents[1] / "fixtures" / "midi"
FILES = sorted(MIDI.glob("*.mid"))


@pytest.fixture(scope="module")
def tokenizer():
    return MortmTokenizer()


def test_special_tokens(tokenizer):
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<PAD>", "<EOS>", "<TE>")
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 627)
    assert tokenizer.padding_side == "left" and len(tokenizer) == tokenizer.vocab_size == TABLE_SIZE
    assert set(tokenizer.all_special_tokens) == {"<PAD>", "<EOS>", "<TE>", "<UNK>", "<MASK>"}


def test_text_form_round_trips(tokenizer):
    ids = tokenizer.encode_midi(FILES[0])
    text = tokenizer.decode(ids)
    assert text.split() == tokenizer.convert_ids_to_tokens(ids)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    assert tokenizer.decode(ids, skip_special_tokens=True).split() == text.split()[1:-1]
    assert tokenizer("s_0 nonsense")["input_ids"][-1] == tokenizer.unk_token_id


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_encode_decode_encode(tokenizer, path):
    ids = tokenizer.encode_midi(path)
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    score = tokenizer.decode_midi(ids, strict=True)
    assert tokenizer.encode_midi(score) == ids
    assert tokenizer.encode_midi(score.dumps_midi()) == ids
    assert tokenizer.encode_midi(path.read_bytes()) == ids


@pytest.mark.parametrize("velocity", [True, False])
@pytest.mark.parametrize("bars", [(0, 4), (3, 11)])
def test_options_survive_the_round_trip(tokenizer, velocity, bars):
    for path in FILES:
        ids = tokenizer.encode_midi(path, bars=bars, velocity=velocity, key="F# minor")
        assert tokenizer.vocabulary["k_F#m"] in ids
        assert tokenizer.encode_midi(tokenizer.decode_midi(ids).dumps_midi()) == ids


def test_selection_of_tracks_and_instruments(tokenizer):
    path = MIDI / "freedoom_d_map22.mid"
    music = tokenizer.read_midi(path)
    only = tokenizer.encode_midi(path, tracks=[0])
    assert tokenizer.decode_score(only).n_tracks == 1
    drums = tokenizer.decode_score(tokenizer.encode_midi(path, instruments=["drums"]))
    assert drums.programs.tolist() == [128] and drums.n_notes == int((music.programs[music.track] == 128).sum())


def test_call_with_midi_pads_on_the_left(tokenizer):
    batch = tokenizer(midi=[FILES[0], FILES[-1]], bars=(0, 4), padding=True, return_tensors="pt")
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    lengths = batch["attention_mask"].sum(1)
    short = int(lengths.argmin())
    assert batch["attention_mask"][short, 0] == 0 and batch["attention_mask"][short, -1] == 1
    assert torch.equal(batch["input_ids"][:, -1], torch.tensor([627, 627]))
    assert isinstance(tokenizer(midi=FILES[0])["input_ids"][0], int)


def test_saving_and_loading(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "vocab.json").read_text())["version"] == "1"
    again = MortmTokenizer.from_pretrained(tmp_path)
    auto = AutoTokenizer.from_pretrained(tmp_path)
    for other in (again, auto):
        assert other.get_vocab() == tokenizer.get_vocab() and other.dialect == "metric"
        assert other.encode_midi(FILES[0]) == tokenizer.encode_midi(FILES[0])
        assert other.padding_side == "left"


def test_upstream_table_and_dialect_are_kept(tmp_path):
    tokenizer = MortmTokenizer(preset="pro", dialect="mortm")
    assert len(tokenizer) == 629 and tokenizer.unk_token is None
    tokenizer.save_pretrained(tmp_path)
    again = MortmTokenizer.from_pretrained(tmp_path)
    assert again.dialect == "mortm" and again.get_vocab() == tokenizer.get_vocab()
    flat = tmp_path / "vocab_list.json"
    flat.write_text(json.dumps(tokenizer.get_vocab()))
    assert MortmTokenizer(flat, dialect="mortm").get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda t: t.encode_midi(b"no"), "midi.unreadable"),
        (lambda t: t.encode_midi(FILES[0], bars=(4, 4)), "prompt.bars"),
        (lambda t: t.encode_midi(FILES[0], bars=(0, 10_000)), "prompt.bars"),
        (lambda t: t.encode_midi(FILES[0], instruments=["theremin harp"]), "vocabulary.instrument"),
        (lambda t: t.encode_midi(FILES[0], key="H major"), "vocabulary.key"),
        (lambda t: t.encode_midi(FILES[0], instruments=["drums"]), "midi.empty"),
        (lambda t: MortmTokenizer(dialect="klingon"), "vocabulary.dialect"),
        (lambda t: MortmTokenizer("no_such_vocab.json"), "vocabulary.table"),
        (lambda t: t.convert_ids_to_tokens([5000]), "vocabulary.token"),
    ],
)
def test_errors_are_typed(tokenizer, call, code):
    with pytest.raises(ValueError) as caught:
        call(tokenizer)
    assert caught.value.code == code


def test_strict_decoding_names_the_place(tokenizer):
    ids = tokenizer.encode_midi(FILES[0])
    where = next(i for i, token in enumerate(tokenizer.convert_ids_to_tokens(ids)) if token.startswith("d_"))
    broken = ids[:where] + ids[where + 1 :]
    with pytest.raises(ValueError) as caught:
        tokenizer.decode_midi(broken, strict=True)
    assert caught.value.code.startswith("grammar") and caught.value.position in (where, where + 1)
    assert tokenizer.decode_score(broken).n_notes == tokenizer.decode_score(ids).n_notes - 1


def test_pedal_lets_notes_ring(tokenizer):
    import symusic

    score = symusic.Score(480)
    track = symusic.Track("", 0, False)
    track.notes.append(symusic.Note(0, 240, 60, 64))
    track.pedals.append(symusic.Pedal(100, 860))
    score.tracks.append(track)
    assert "d_12" in tokenizer.decode(tokenizer.encode_midi(score))
    assert "d_48" in tokenizer.decode(tokenizer.encode_midi(score, pedal="extend"))
