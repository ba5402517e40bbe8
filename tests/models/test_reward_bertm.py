"""The reward: modes, ensembles, what it may depend on, music as input, and the adapter's questions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mortm_hf import BertmReward, convert_checkpoint, pipeline
from mortm_hf.models.configuration_bertm import BertmConfig
from mortm_hf.models.inputs_bertm import bare_segment, song_windows
from mortm_hf.models.midi_files import read_midi
from mortm_hf.models.modeling_bertm import BertmForSequenceClassification
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from tests.sample_songs import midi


TOKENIZER = MortmTokenizer()
SONG = midi(0, 24)


def classifier(seed=0, **options):
    torch.manual_seed(seed)
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    shape |= dict(mlp_layer_types=["dense", "dense"], router_balancing="none", initializer_range=0.3)
    return BertmForSequenceClassification(BertmConfig(**{**shape, "num_labels": 1, **options})).eval()


@pytest.fixture(scope="module")
def pieces():
    rows = [TOKENIZER.encode_midi(midi(s), bars=(0, b)) for s, b in ((0, 2), (1, 7), (2, 4), (3, 12))]
    return [torch.tensor(row) for row in rows]


def padded(rows, sides, value=0, spare=7):
    longest = max(map(len, rows)) + spare
    ids, mask = torch.full((len(rows), longest), value), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, (row, side) in enumerate(zip(rows, sides)):
        at = {"left": longest - len(row), "right": 0, "both": 3}[side]
        ids[i, at : at + len(row)], mask[i, at : at + len(row)] = row, 1
    return ids, mask


def test_modes(pieces):
    model = classifier()
    with torch.no_grad():
        z = torch.stack([model(row[None]).logits[0, 0] for row in pieces])
    assert z.std() > 0.02
    wanted = {"machine_logit": z, "logit": -z, "probability": 1 - torch.sigmoid(z)}
    for mode, values in wanted.items():
        reward = BertmReward(model, mode=mode)
        got = torch.cat([reward(row[None]) for row in pieces])
        assert got.dtype == torch.float32 and (got - values).abs().max() < 1e-6
        assert np.allclose(reward.rate(pieces), values.numpy(), atol=1e-5)
    assert BertmReward(model).rate(pieces[0]) == pytest.approx(float(1 - torch.sigmoid(z[0])), abs=1e-6)
    far = BertmReward(model).reward_of(torch.tensor([40.0, -40.0]))
    assert 0 < far[0] < 1e-15 and far[1] == 1  # no digits are lost at the far end


def test_two_labels_make_one_logit(pieces):
    names = {0: "machine", 1: "human"}
    model = classifier(num_labels=2, id2label=names, label2id={v: k for k, v in names.items()})
    with torch.no_grad():
        logits = model(pieces[0][None]).logits[0]
    machine = logits.softmax(-1)[0]
    assert BertmReward(model).rate(pieces[0]) == pytest.approx(float(1 - machine), abs=1e-6)
    assert BertmReward(model, machine_label=1).rate(pieces[0]) == pytest.approx(float(machine), abs=1e-6)
    assert BertmReward(classifier(num_labels=2)).machine_label == 1


@pytest.mark.parametrize("mode", ["probability", "logit"])
def test_scores_are_those_of_the_piece(mode, pieces):
    """Padding side, what stands in the padding, and the other rows: 1e-5."""
    reward = BertmReward([classifier(0), classifier(1)], mode=mode)
    alone = torch.cat([reward(row[None]) for row in pieces])
    assert alone.std() > 0.01
    for sides in (("left",) * 4, ("right",) * 4, ("both", "left", "right", "both")):
        for value in (0, 77):
            ids, mask = padded(pieces, sides, value)
            assert (reward(ids, mask) - alone).abs().max() < 1e-5
            places = mask.cumsum(1) - mask
            assert (reward(ids, mask.bool(), places) - alone).abs().max() < 1e-5
    ids, _ = padded(pieces, ("left",) * 4)
    assert (reward(ids) - alone).abs().max() < 1e-5  # padding ids are padding where there is no mask
    assert np.abs(reward.rate(pieces[::-1])[::-1] - alone.numpy()).max() < 1e-5
    reward.batch_tokens = 1
    assert np.abs(reward.rate(pieces) - alone.numpy()).max() < 1e-5


def test_ensembles(pieces):
    models = [classifier(seed) for seed in range(3)]
    each = np.stack([BertmReward(model).rate(pieces) for model in models])
    both = BertmReward(models)
    ids, mask = padded(pieces, ("right",) * 4)
    assert np.allclose(both.of_each(ids, mask).numpy(), each, atol=1e-5)
    mean, spread = both.rate(pieces, spread=True)
    assert np.allclose(mean, each.mean(0), atol=1e-5) and np.allclose(spread, each.std(0), atol=1e-5)
    assert np.allclose(BertmReward(models, combine="min").rate(pieces), each.min(0), atol=1e-5)
    worst = BertmReward(models, combine="min", mode="machine_logit")
    assert np.allclose(
        worst.rate(pieces),
        np.stack([BertmReward(m, mode="machine_logit").rate(pieces) for m in models]).max(0),
        atol=1e-5,
    )
    assert BertmReward(models[0]).rate(pieces[0], spread=True)[1] == 0


def test_music_is_heard_in_windows(tmp_path):
    reward = BertmReward(classifier(window_bars=4), TOKENIZER)
    score = read_midi(SONG)
    windows = [bare_segment(TOKENIZER.vocabulary, music) for _, music in song_windows(score, 4)]
    assert len(windows) == 6
    want = np.mean([reward.rate(row) for row in windows])
    path = tmp_path / "song.mid"
    path.write_bytes(SONG)
    for given in (SONG, str(path), path, score):
        assert reward.rate(given) == pytest.approx(want, abs=1e-5)
    other = TOKENIZER.encode_midi(midi(1), bars=(0, 2))
    assert reward.rate([path, other]) == pytest.approx([want, reward.rate(other)], abs=1e-5)


def test_length_as_such_changes_nothing():
    """The same eight bars once, twice and four times over are as good as once."""
    score = read_midi(midi(4, 30)).window(10, 18)
    reward = BertmReward(classifier(), TOKENIZER)
    from mortm_hf.models.music_grid import BarTable
    from mortm_hf.models.music_score import MetricScore

    def repeated(times):
        shift = np.repeat(np.arange(times), score.n_notes) * score.bars.end
        columns = {n: np.tile(getattr(score, n), times) for n in ("track", "onset", "pitch", "duration", "velocity")}
        columns["onset"] = columns["onset"] + shift
        order = np.lexsort((columns["duration"], columns["pitch"], columns["onset"], columns["track"]))
        bars = BarTable.from_lengths(np.tile(score.bars.length, times), np.tile(score.bars.meter, times))
        return MetricScore(
            bars=bars,
            programs=score.programs,
            tempo=np.tile(score.tempo, times),
            **{k: v[order] for k, v in columns.items()},
        )

    once = reward.rate(repeated(1))
    assert reward.rate(repeated(2)) == pytest.approx(once, abs=1e-5)
    assert reward.rate(repeated(4)) == pytest.approx(once, abs=1e-5)
    silent = read_midi(midi(4, 30)).window(10, 18)
    assert abs(reward.rate(silent.window(0, 4)) - once) > 1e-4  # other notes are another piece


def test_it_is_never_in_training_mode(pieces):
    reward = BertmReward(classifier(hidden_dropout=0.5, classifier_dropout=0.5))
    before = reward.rate(pieces)
    reward.train()
    assert not any(module.training for module in reward.modules())
    assert np.array_equal(reward.rate(pieces), before)
    assert not any(p.requires_grad for p in reward.parameters())


def test_a_pooled_adapter_is_exact(pieces):
    """What a reward model for PPO does: one pooled vector at every position, scored with the model's own head."""
    reward = BertmReward([classifier(0), classifier(1)])
    for side in ("left", "right", "both"):
        ids, mask = padded(pieces, (side,) * 4)
        places = mask.cumsum(1) - mask
        each = []
        for model in reward.models:
            backbone = getattr(model, model.base_model_prefix)
            states = backbone(ids, attention_mask=mask.bool(), position_ids=places).last_hidden_state
            pooled = model.pool(states, mask)[:, None].expand(-1, ids.shape[1], -1)
            each.append(reward.reward_of(reward.machine_logit(model.score(pooled))))
        scores = reward.combined(torch.stack(each))
        assert scores.shape == ids.shape
        want = reward(ids, mask)
        assert (scores - want[:, None]).abs().max() < 1e-6  # constant over the positions, and the forward score


def test_loading(tmp_path, pieces):
    folders = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        classifier(seed).save_pretrained(folder)
        TOKENIZER.save_pretrained(folder)
        folders.append(folder)
    one = BertmReward.from_pretrained(folders[0])
    assert one.rate(pieces) == pytest.approx(BertmReward(classifier(0)).rate(pieces), abs=1e-6)
    both = BertmReward.from_pretrained([str(f) for f in folders], mode="logit", combine="min")
    assert len(both.models) == 2 and both.mode == "logit"
    assert both.rate(SONG) == pytest.approx(BertmReward(both.models, TOKENIZER, "logit", "min").rate(SONG))
    with pytest.raises(ValueError, match="checkpoint"):
        BertmReward.from_pretrained()


def test_a_converted_checkpoint_hears_files_as_upstream_does(tmp_path):
    fixtures = Path(__file__).parents[1] / "fixtures"
    convert_checkpoint(fixtures / "upstream_heads" / "bertm_alibi_moe_tanh" / "model.pth", tmp_path / "judge")
    song = next((fixtures / "upstream_tokenizer" / "piano_and_sax_8bars").glob("*.mid"))
    reward = BertmReward.from_pretrained(tmp_path / "judge")
    ids = reward.tokenizer.encode_midi(str(song))
    with torch.no_grad():
        machine = torch.sigmoid(reward.models[0](torch.tensor([ids])).logits[0, 0])
    assert reward.tokenizer.dialect == "mortm" and len(ids) > 50
    assert reward.rate(str(song)) == pytest.approx(float(1 - machine), abs=1e-5)
    pipe = pipeline("midi-classification", model=tmp_path / "judge", device="cpu")
    found = {e["label"]: e["score"] for e in pipe(str(song))}
    assert found == pytest.approx({"AI": float(machine), "human": 1 - float(machine)}, abs=1e-5)
    with pytest.raises(ValueError, match="whole files"):
        pipe(str(song), bars=(0, 2))
    with pytest.raises(ValueError, match="mortm dialect"):
        pipeline("midi-feature-extraction", model=tmp_path / "judge")(str(song))


def test_faults_are_named(pieces):
    for options in ({"mode": "score"}, {"combine": "sum"}):
        with pytest.raises(ValueError, match="mode is one of"):
            BertmReward(classifier(), **options)
    for models in ([], classifier(num_labels=3), [classifier(), classifier(num_labels=2)]):
        with pytest.raises(ValueError, match="one logit"):
            BertmReward(models)
    with pytest.raises(ValueError, match="tokenizer"):
        BertmReward(classifier()).rate(SONG)
    with pytest.raises(ValueError, match="one row"):
        BertmReward(classifier()).rate([np.zeros((2, 5), dtype=int)])
    with pytest.raises(ValueError) as caught:
        BertmReward(classifier(window_form="drums"), TOKENIZER).rate(midi(1, drums=False))
    assert caught.value.code == "midi.empty"
