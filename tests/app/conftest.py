"""Music for the tests of the command line: the bundled song, and a small piece with drums and a meter change."""

import os
from pathlib import Path

import pytest
import symusic

import mortm_hf


@pytest.fixture(scope="session")
def song() -> Path:
    return Path(os.path.dirname(mortm_hf.__file__)) / "app" / "demo" / "schumann_wenn_ich_in_deine_augen_seh.mid"


@pytest.fixture(scope="session")
def band(tmp_path_factory) -> Path:
    """Six bars of 4/4, then two of 3/4: piano and drums, 96 quarters a minute, no key signature."""
    score = symusic.Score(480)
    score.time_signatures.append(symusic.TimeSignature(0, 4, 4))
    score.time_signatures.append(symusic.TimeSignature(6 * 1920, 3, 4))
    score.tempos.append(symusic.Tempo(0, qpm=96))
    piano, drums = symusic.Track("Keys", 0, False), symusic.Track("Kit", 0, True)
    for beat in range(30):
        for pitch in ((60, 64, 67), (57, 60, 64), (53, 57, 60), (55, 59, 62))[beat // 4 % 4]:
            piano.notes.append(symusic.Note(beat * 480, 480, pitch, 60 + beat))
        drums.notes.append(symusic.Note(beat * 480, 120, (36, 38)[beat % 2], 100))
    score.tracks.append(piano)
    score.tracks.append(drums)
    path = tmp_path_factory.mktemp("music") / "band.mid"
    score.dump_midi(str(path))
    return path


@pytest.fixture(scope="session")
def bad_files(tmp_path_factory) -> dict[str, Path]:
    """Files that cannot be used, by what is wrong."""
    folder = tmp_path_factory.mktemp("bad")
    files = {"text": folder / "text.mid", "empty": folder / "empty.mid", "silent": folder / "silent.mid"}
    files["text"].write_text("not a MIDI file")
    files["empty"].write_bytes(b"")
    score = symusic.Score(480)
    score.tracks.append(symusic.Track("silence", 0, False))
    score.dump_midi(str(files["silent"]))
    return files | {"missing": folder / "missing.mid"}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A folder with a random two-layer model and its tokenizer."""
    import torch

    torch.manual_seed(0)
    config = mortm_hf.MortmConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_local_experts=2,
        num_experts_per_tok=1,
        max_position_embeddings=1024,
    )
    folder = tmp_path_factory.mktemp("tiny_model")
    mortm_hf.MortmForCausalLM(config).save_pretrained(folder)
    mortm_hf.MortmTokenizer().save_pretrained(folder)
    return folder
