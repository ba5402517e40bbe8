"""The bundled encoder and its heads: small, and better than nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mortm_hf
from mortm_hf.models.token_vocabulary import TokenKind


SONG = next((Path(mortm_hf.__file__).parent / "app" / "demo").glob("*.mid"))
FOLDERS = (mortm_hf.BERTM, mortm_hf.BERTM_GENRE, mortm_hf.BERTM_QUALITY)


def test_together_they_are_small():
    size = sum(p.stat().st_size for folder in FOLDERS for p in Path(folder).rglob("*") if p.is_file())
    assert size <= 12_000_000
    for folder in FOLDERS:
        assert (Path(folder) / "model.safetensors").stat().st_size < 4_000_000


def test_labels_and_probabilities():
    genre = mortm_hf.pipeline("midi-classification", device="cpu")(str(SONG))
    assert sum(entry["score"] for entry in genre) == pytest.approx(1)
    assert "lied" in {entry["label"] for entry in genre[:2]}  # Schumann
    assert len(genre) == 5 and genre[-1]["score"] < 0.05  # and no pop
    quality = mortm_hf.pipeline("midi-classification", model=mortm_hf.BERTM_QUALITY, device="cpu")(str(SONG))
    assert {entry["label"] for entry in quality} == {"human", "machine"}
    reward = mortm_hf.BertmReward.from_pretrained(mortm_hf.BERTM_QUALITY)
    human = reward.rate(str(SONG))
    assert human == pytest.approx({e["label"]: e["score"] for e in quality}["human"], abs=0.05)


def test_the_reward_hears_damage():
    reward = mortm_hf.BertmReward.from_pretrained(mortm_hf.BERTM_QUALITY, mode="logit")
    score = reward.tokenizer.read_midi(str(SONG))
    rng = np.random.default_rng(0)
    onset = np.clip(score.onset + rng.integers(-20, 21, score.n_notes), 0, score.bars.end - 1)
    order = np.lexsort((score.duration, score.pitch, onset, score.track))
    columns = {n: getattr(score, n)[order] for n in ("track", "pitch", "duration", "velocity")}
    damaged = replace(score, onset=onset[order], **columns)
    assert reward.rate(str(SONG)) > reward.rate(damaged) + 0.5


@pytest.mark.parametrize(("kind", "least"), [(TokenKind.ONSET, 0.5), (TokenKind.DURATION, 0.4)])
def test_the_encoder_finds_hidden_tokens(kind, least):
    """Better than always saying the piece's most frequent onset or duration (0.25 and 0.35)."""
    tokenizer = mortm_hf.MortmTokenizer.from_pretrained(mortm_hf.BERTM)
    model = mortm_hf.BertmForMaskedLM.from_pretrained(mortm_hf.BERTM).eval()
    vocabulary = tokenizer.vocabulary
    ids = torch.tensor(tokenizer.encode_midi(str(SONG), bars=(0, 8)))
    places = np.flatnonzero(vocabulary.kind[ids.numpy()] == kind)
    common = np.bincount(ids[places].numpy()).max() / len(places)
    rows = ids.repeat(len(places[::5]), 1)
    where = torch.arange(len(rows)), torch.tensor(places[::5])
    rows[where] = vocabulary["<MASK>"]
    with torch.no_grad():
        best = model(rows).logits[where].argmax(-1)
    assert (vocabulary.kind[best.numpy()] == kind).mean() > 0.95
    right = (best == ids[places[::5]]).float().mean()
    assert right > least and right > common
