"""Conversion and its way back: upstream's numbers, versions, tables, folders."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification
from upstream_states import BROKEN, CASES, HEADS, KEYS, MODELS, SIZES, load, same, synthetic, write

import mortm_hf
from mortm_hf import BertmForSequenceClassification, MidiError, MortmForCausalLM, MortmTokenizer
from mortm_hf.conversion.anatomy import Options, examine, reconcile
from mortm_hf.conversion.architecture import layer_options
from mortm_hf.conversion.from_upstream import convert_checkpoint
from mortm_hf.conversion.mapping import layout_of, to_ours, to_upstream
from mortm_hf.conversion.parity import check_case, check_folder, table
from mortm_hf.conversion.to_upstream import export_upstream
from mortm_hf.conversion.token_tables import extend_vocabulary
from mortm_hf.models.errors_mortm import ConversionError
from mortm_hf.models.token_vocabulary import TABLE_SIZE
from mortm_hf.models.upstream_vocabulary import upstream_vocabulary


FIXTURES = [*sorted(MODELS.iterdir()), *sorted(HEADS.iterdir())]
FIRST = {  # fixture -> (kind, versions, table)
    "mortm49_alibi_moe_sigmoid_layernorm": ("mortm", "4.7 to 4.9", "pro@4.9"),
    "mortm_alibi_silu_rmsnorm_6heads": ("mortm", "4.5.116 to 4.6.57", "pro@4.6.18"),
    "mortm_rope_ffn_tanh_long": ("mortm", "4.5 to 4.6.57", "melody_only@4.5"),
    "mortm_rope_moe_layernorm_lora": ("mortm", "4.5.116 to 4.6.57", "pro@4.6.18"),
    "actorcritic_rope_moe_rmsnorm": ("actorcritic", "4.5.116 to 4.6.57", "pro@4.6.18"),
    "bertm_alibi_moe_tanh": ("bertm", "4.5.116 to 4.6.57", "bertm@4.6.18"),
}


# --- upstream's numbers


@pytest.mark.parametrize("case", FIXTURES, ids=lambda p: p.name)
def test_parity(case):
    row = check_case(case)
    assert (row.kind, row.version, row.vocabulary) == FIRST[case.name]
    assert row.passed and row.differences and max(row.differences.values()) < 1e-4
    compared = {"actorcritic": {"logits", "values"}, "bertm": {"score"}}.get(row.kind, {"logits"})
    assert compared <= set(row.differences)
    if case.name == "mortm49_alibi_moe_sigmoid_layernorm":
        assert row.greedy is True and "decode_logits" in row.differences
        assert "same" in table([row]) and "ok" in table([row])


def test_parity_notices_a_wrong_model(tmp_path):
    """The comparison can fail: one weight of the checkpoint is another one."""
    case = MODELS / "mortm_alibi_silu_rmsnorm_6heads"
    state = load(case / "model.pth")
    state["decoder.layers.1.norm3.weight"] *= 1.05
    write(tmp_path / "case", state, json.loads((case / "config.json").read_text()))
    os.symlink(case / "expected.npz", tmp_path / "case" / "expected.npz")
    (row,) = check_folder(tmp_path)
    assert row.passed is False and row.differences["logits"] > 1e-3 and "FAILED" in table([row])


# --- every release


def mapped(version, case):
    """(state dict, anatomy, layout) of a synthetic checkpoint."""
    state, options = synthetic(version, case)
    facts, _ = reconcile(examine(state), Options.read(options))
    return state, facts, layout_of(facts)


@pytest.mark.parametrize(("version", "case"), CASES)
def test_every_release_there_and_back(version, case):
    """Keys of every release and kind: the right version, every tensor used or set aside, and all of them back."""
    if any("cross_attention" in key for key in KEYS[version][case]):
        with pytest.raises(ConversionError, match="cross attention") as error:
            mapped(version, case)
        assert error.value.code == "conversion.kind"
        return
    if (version, case) in BROKEN:
        with pytest.raises(ConversionError, match="never ran") as error:
            mapped(version, case)
        assert error.value.code == "conversion.version"
        return
    state, facts, layout = mapped(version, case)
    assert version in facts.versions
    assert facts.kind == case.split("/")[0].lower()
    twins = {v for v in KEYS if case in KEYS[v] and (v, case) not in BROKEN and KEYS[v][case] == KEYS[version][case]}
    assert twins <= set(facts.versions), "releases with equal keys cannot be told apart"
    plain = {k: v for k, v in state.items() if ".lora_" not in k}
    assert set(layout.sources) | set(layout.aside) == set(plain)
    back = {}
    for groups in layout.parts.values():
        back |= to_upstream(groups, to_ours(groups, plain))
    for name, tensor in back.items():
        assert torch.equal(tensor.to(plain[name].dtype), plain[name]), name
    assert set(back) == set(layout.sources)


@pytest.mark.parametrize(
    ("version", "case"),
    [
        ("4.1.33", "MORTM/moe_tanh"),
        ("4.5", "BERTM/moe_tanh"),
        ("4.6.57", "MORTM/silu_layernorm_rope_nobias"),
        ("4.9", "ActorCritic/moe_tanh"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in CASES
            if case not in BROKEN and not any("cross_attention" in key for key in KEYS[case[0]][case[1]])
        ),
    ],
)
def test_folder_there_and_back(version, case, tmp_path):
    state, options = synthetic(version, case)
    source = write(tmp_path / "source", state, options)
    convert_checkpoint(
        source, tmp_path / "ours", vocab=tmp_path / "source" / "vocab_list.json", lora="keep", lora_merged=False
    )
    report = export_upstream(tmp_path / "ours", tmp_path / "back")
    assert same(load(tmp_path / "back" / "model.pth"), state) and not report.rounded
    for name in ("config.json", "vocab_list.json"):
        assert json.loads((tmp_path / "back" / name).read_text()) == json.loads((source.parent / name).read_text())


@pytest.mark.parametrize("case", FIXTURES, ids=lambda p: p.name)
def test_fixtures_there_and_back(case, tmp_path):
    convert_checkpoint(case / "model.pth", tmp_path / "ours", lora="keep")
    export_upstream(tmp_path / "ours", tmp_path / "back")
    assert same(load(tmp_path / "back" / "model.pth"), load(case / "model.pth"))


def test_qkv_with_bias_is_cut_right():
    """4.0's fused projection, biases too, against the three that come of it."""
    state, _, layout = mapped("4.0.45", "MORTM/moe_tanh")
    ours = to_ours(layout.parts[""], state)
    x = torch.randn(5, 64)
    block = "decoder.layers.0.self_attention.qkv_block.qkv_weight"
    whole = F.linear(x, state[f"{block}.weight"].float(), state[f"{block}.bias"].float())
    parts = [
        F.linear(x, *(ours[f"model.layers.0.self_attn.{n}_proj.{kind}"] for kind in ("weight", "bias"))) for n in "qkv"
    ]
    assert torch.allclose(whole, torch.cat(parts, dim=-1), atol=1e-5)


def test_prefix_and_wrapper_return(tmp_path):
    """A state dict of a wrapped model, in a training checkpoint: read, and written as it was."""
    state, options = synthetic("4.9", "MORTM/ffn")
    source = write(tmp_path / "source", {"model_state_dict": {f"module.{k}": v for k, v in state.items()}}, options)
    convert_checkpoint(source, tmp_path / "ours", vocab=source.parent / "vocab_list.json")
    export_upstream(tmp_path / "ours", tmp_path / "back")
    found = load(tmp_path / "back" / "model.pth")["model_state_dict"]
    assert same(found, {f"module.{k}": v for k, v in state.items()})


# --- what the folder is


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("converted") / "dense"
    report = convert_checkpoint(MODELS / "mortm_alibi_silu_rmsnorm_6heads" / "model.pth", path)
    return path, report


def test_folder_is_complete(folder):
    path, report = folder
    names = {p.name for p in path.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "vocab.json", "README.md"} <= names
    assert {"modeling_mortm.py", "tokenization_mortm.py", "pipeline_mortm.py"} <= names
    package = Path(mortm_hf.__file__).parent / "models"
    assert all(p.read_bytes() == (package / p.name).read_bytes() for p in path.glob("*.py"))
    assert not [n for n in names if n.endswith((".pth", ".bin", ".pt", ".pkl"))]
    card = (path / "README.md").read_text()
    assert report.sha256 in card and "4.5.116 to 4.6.57" in card and "pro@4.6.18" in card
    generation = json.loads((path / "generation_config.json").read_text())
    assert generation["top_p"] == 0.9 and generation["do_sample"] and generation["eos_token_id"] == 627
    assert not list(path.parent.glob(".*")), "nothing temporary stays"


@pytest.fixture(scope="module")
def pro2(tmp_path_factory):
    """A converted checkpoint of 757 rows, whose table is told by that."""
    path = tmp_path_factory.mktemp("pro2")
    state, options = synthetic("4.6.18", "MORTM/ffn")
    for name in ("embedding.weight", "Wout.weight", "Wout.bias"):
        state[name] = torch.zeros(757, *state[name].shape[1:])
    source = write(path / "source", state, options | {"vocab_size": 757})
    assert convert_checkpoint(source, path / "ours").vocabulary == "pro2@4.6.18"
    return path / "ours"


@pytest.mark.parametrize("flavour", ["pro", "pro2"])
def test_converted_tokenizer_speaks_upstreams_dialect(flavour, folder, pro2):
    """The ids of upstream's own encoder come out of the converted folder, and its refusals."""
    tokenizer = MortmTokenizer.from_pretrained(folder[0] if flavour == "pro" else pro2)
    assert tokenizer.dialect == "mortm" and len(tokenizer) == {"pro": 629, "pro2": 757}[flavour]
    equal = refused = 0
    for path in sorted((MODELS.parent / "upstream_tokenizer").glob("*/input.mid")):
        case = json.loads((path.parent / "expected.json").read_text())
        if flavour not in case:
            continue
        options = dict(instruments=case["program_list"], key=case["key"])
        if case[flavour]["is_error"]:
            with pytest.raises(MidiError):
                tokenizer.encode_midi(path, **options)
            refused += 1
        else:
            assert tokenizer.encode_midi(path, **options) == case[flavour]["full_sequence_ids"], path.parent.name
            equal += 1
    assert (equal, refused) == (13, 3)


FRESH = """
import sys
def hide(name, path=None, target=None):
    if name.split(".")[0] == "mortm_hf":
        raise ModuleNotFoundError("the package must not be used here: " + name)
import torch
torch.set_num_threads(1)
sys.meta_path.insert(0, type("Hidden", (), {"find_spec": staticmethod(hide)}))
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
folder, midi, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
ids = torch.tensor([tokenizer.encode_midi(midi, instruments=["PIANO", "SAX"], key="CM")[:64]])
with torch.no_grad():
    logits = model(ids).logits
pipe = pipeline("midi-generation", model=folder, device="cpu", trust_remote_code=True)
made = pipe(midi, bars=1, instruments=["PIANO"], seed=0, max_new_tokens=64)[0]
torch.save({"logits": logits, "ids": ids, "midi": len(made["midi"])}, out)
"""


@pytest.mark.slow
def test_fresh_interpreter_uses_the_folder(folder, tmp_path):
    """Without the package: the same logits, and a pipeline that writes music in upstream's dialect."""
    path, _ = folder
    midi = next((MODELS.parent / "upstream_tokenizer" / "piano_and_sax_8bars").glob("*.mid"))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", FRESH, str(path), str(midi), str(tmp_path / "found.pt")]
    run = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    found = load(tmp_path / "found.pt")
    with torch.no_grad():
        assert torch.equal(MortmForCausalLM.from_pretrained(path)(found["ids"]).logits, found["logits"])
    assert found["midi"] > 0


def test_table_of_4_0_returns_with_its_defects(tmp_path):
    """`base` has two ids with two names each and two holes: all of it comes back."""
    state, options = synthetic("4.0.45", "MORTM/moe_tanh")
    for name in ("embedding.weight", "Wout.weight", "Wout.bias"):
        state[name] = torch.zeros(624, *state[name].shape[1:])
    source = write(tmp_path / "source", state, options | {"vocab_size": 624})
    assert convert_checkpoint(source, tmp_path / "ours").vocabulary == "base@4.0.45"
    export_upstream(tmp_path / "ours", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "vocab_list.json").read_text()) == upstream_vocabulary("base")
    tokenizer = MortmTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer.eos_token_id == 586 and tokenizer.bos_token is None and tokenizer.dialect == "mortm"


def test_bertm_judges_by_its_label(tmp_path):
    convert_checkpoint(HEADS / "bertm_alibi_moe_tanh" / "model.pth", tmp_path / "judge")
    model = BertmForSequenceClassification.from_pretrained(tmp_path / "judge")
    assert model.config.id2label == {0: "AI"} and model.config.problem_type == "multi_label_classification"
    assert {"configuration_bertm.py", "modeling_bertm.py"} <= {p.name for p in (tmp_path / "judge").iterdir()}


# --- what goes back after work was done here


def test_training_goes_back(folder, tmp_path):
    """A folder saved by a trainer, without provenance of its own, exports by `like`; rounding is told."""
    path, _ = folder
    with pytest.raises(ConversionError, match=r"no config\.json"):
        export_upstream(tmp_path, tmp_path / "back")
    with pytest.raises(ConversionError, match="was not converted"):
        export_upstream(path, tmp_path / "back", like=tmp_path)
    model = MortmForCausalLM.from_pretrained(path)
    with torch.no_grad():
        model.lm_head.bias += 1
        model.model.layers[0].self_attn.q_proj.weight += 1e-3
    model.save_pretrained(tmp_path / "trained")
    report = export_upstream(tmp_path / "trained", tmp_path / "back", like=path)
    state = load(tmp_path / "back" / "model.pth")
    source = load(MODELS / "mortm_alibi_silu_rmsnorm_6heads" / "model.pth")
    assert list(state) == list(source) and torch.equal(state["Wout.bias"], source["Wout.bias"] + 1)
    assert report.rounded == ["decoder.layers.0.self_attention.qkv_block.qkv_weight.weight"]
    again = convert_checkpoint(tmp_path / "back" / "model.pth", tmp_path / "again")
    assert again.version_name == "4.5.116 to 4.6.57"


@pytest.mark.parametrize("case", FIXTURES, ids=lambda p: p.name)
def test_model_of_our_own_goes_to_upstream(case, tmp_path):
    """Without any provenance, the same tensors and types come out (those that nothing reads are new)."""
    convert_checkpoint(case / "model.pth", tmp_path / "ours")
    for name in ("upstream.json", "upstream_aside.safetensors"):
        (tmp_path / "ours" / name).unlink()
    report = export_upstream(tmp_path / "ours", tmp_path / "back")
    state, source = load(tmp_path / "back" / "model.pth"), load(case / "model.pth")
    facts = examine(source)
    assert set(state) == {k for k in source if ".lora_" not in k}
    for name in layout_of(facts).sources:
        assert state[name].dtype == source[name].dtype, name
        assert facts.lora or torch.equal(state[name], source[name]), name
    assert any("does not come from upstream" in note for note in report.notes)
    again = convert_checkpoint(
        tmp_path / "back" / "model.pth", tmp_path / "again", vocab=tmp_path / "back" / "vocab_list.json"
    )
    assert again.kind == facts.kind and not again.missing and not again.unused
    configs = [json.loads((tmp_path / n / "config.json").read_text()) for n in ("ours", "again")]
    assert {k for k in configs[0] if configs[0][k] != configs[1][k]} <= {"attention_dropout"}


def test_what_upstream_cannot_compute_stays_here(tmp_path):
    """Grouped heads, another norm epsilon: refused by name. Tied weights and no output bias: written out."""
    sizes = dict(
        hidden_size=32, num_hidden_layers=1, moe_intermediate_size=8, num_local_experts=2, vocab_size=TABLE_SIZE
    )
    ours = dict(shared_expert_intermediate_size=32, router_balancing="none", rope_parameters={"rope_theta": 10000.0})
    MortmTokenizer().save_pretrained(tmp_path / "ours")
    model = MortmForCausalLM(mortm_hf.MortmConfig(**sizes | ours, norm_eps=1e-6, num_key_value_heads=2))
    model.save_pretrained(tmp_path / "ours")
    with pytest.raises(ConversionError, match=r"key and value heads.*norm_eps") as error:
        export_upstream(tmp_path / "ours", tmp_path / "back")
    assert error.value.code == "conversion.folder" and not (tmp_path / "back").exists()
    model = MortmForCausalLM(mortm_hf.MortmConfig(**sizes | ours)).eval()
    model.save_pretrained(tmp_path / "ours")
    export_upstream(tmp_path / "ours", tmp_path / "back")
    state = load(tmp_path / "back" / "model.pth")
    assert torch.equal(state["Wout.weight"], state["embedding.weight"]) and not state["Wout.bias"].any()
    convert_checkpoint(
        tmp_path / "back" / "model.pth", tmp_path / "again", vocab=tmp_path / "back" / "vocab_list.json"
    )
    ids = torch.randint(1, TABLE_SIZE, (1, 20))
    with torch.no_grad():
        found, want = MortmForCausalLM.from_pretrained(tmp_path / "again")(ids).logits, model(ids).logits
    assert (found - want).abs().max() < 0.02 * want.abs().max()  # attention went through bf16


def test_critic_of_its_own_cannot_go_back(tmp_path):
    convert_checkpoint(HEADS / "actorcritic_rope_moe_rmsnorm" / "model.pth", tmp_path / "both")
    model = MortmForCausalLM.from_pretrained(tmp_path / "both")
    with torch.no_grad():
        model.model.norm.weight += 1
    model.save_pretrained(tmp_path / "both")
    with pytest.raises(ConversionError, match="one set for both") as error:
        export_upstream(tmp_path / "both", tmp_path / "back")
    assert error.value.code == "conversion.folder" and not (tmp_path / "back").exists()


# --- the default table


def test_extended_checkpoint_says_the_same(folder, tmp_path):
    """All old tokens keep ids, rows and logits; programs start as copies of their category."""
    path, _ = folder
    report = convert_checkpoint(
        MODELS / "mortm_alibi_silu_rmsnorm_6heads" / "model.pth", tmp_path / "long", extend_vocab=True
    )
    old, new = (MortmForCausalLM.from_pretrained(p) for p in (path, tmp_path / "long"))
    assert new.config.vocab_size == len(MortmTokenizer()) == TABLE_SIZE
    assert report.extended == {"kept": 629, "moved": 0, "copied": 11, "new": TABLE_SIZE - 629 - 11}
    ids = torch.randint(1, 629, (1, 30))
    with torch.no_grad():
        assert torch.allclose(new(ids).logits[..., :629], old(ids).logits, atol=1e-5)
    vocabulary = MortmTokenizer().vocabulary
    rows = new.model.embed_tokens.weight
    assert torch.equal(rows[vocabulary["<INST_3>"]], rows[vocabulary["<INST_PIANO>"]])
    assert torch.equal(rows[vocabulary["<INST_65>"]], rows[vocabulary["<INST_SAX>"]])
    assert rows[629:].std() > 0 and rows.isfinite().all()
    tokenizer = MortmTokenizer.from_pretrained(tmp_path / "long")
    assert tokenizer.dialect == "mortm" and "fine-tuning" in (tmp_path / "long" / "README.md").read_text()
    back = export_upstream(tmp_path / "long", tmp_path / "back")
    options = json.loads((tmp_path / "back" / "config.json").read_text())
    assert options["vocab_size"] == TABLE_SIZE and "vocab_size" in " ".join(back.notes)
    assert len(json.loads((tmp_path / "back" / "vocab_list.json").read_text())) == TABLE_SIZE


def test_extension_moves_rows_by_name(tmp_path):
    """A table that is no prefix (melody_only): every token keeps its row under its new id."""
    case = MODELS / "mortm_rope_ffn_tanh_long"
    report = convert_checkpoint(case / "model.pth", tmp_path / "long", extend_vocab=True)
    assert report.extended["moved"] > 500 and report.extended["kept"] == 2
    source = load(case / "model.pth")
    model = MortmForCausalLM.from_pretrained(tmp_path / "long")
    old, new = MortmTokenizer(preset="melody_only").vocabulary.ids, MortmTokenizer().vocabulary
    for token in ("<PAD>", "<SME>", "k_CM", "p_60", "d_288", "<TE>"):
        assert torch.equal(model.model.embed_tokens.weight[new[token]], source["embedding.weight"][old[token]]), token
        assert torch.equal(model.lm_head.weight[new[token]], source["Wout.weight"][old[token]])
        assert model.lm_head.bias[new[token]] == source["Wout.bias"][old[token]]
    assert model.config.eos_token_id == new["<TE>"] and model.config.bos_token_id == new["<EOS>"]


def test_padded_rows_are_drawn_anew(tmp_path):
    """650 rows: nothing tells the table, so it is asked for; rows beyond it do not reach the extended table."""
    case = MODELS / "mortm_alibi_silu_rmsnorm_6heads"
    state = load(case / "model.pth")
    for name in ("embedding.weight", "Wout.weight", "Wout.bias"):
        state[name] = torch.cat([state[name], torch.full((21, *state[name].shape[1:]), 777.0)])
    options = json.loads((case / "config.json").read_text()) | {"vocab_size": 650}
    source = write(tmp_path / "source", state, options)
    with pytest.raises(ConversionError, match=r"--tokenizer.*pro@4\.6\.18") as error:
        convert_checkpoint(source, tmp_path / "out")
    assert error.value.code == "conversion.vocabulary" and not (tmp_path / "out").exists()
    report = convert_checkpoint(source, tmp_path / "out", tokenizer="pro")
    assert any("21 rows" in note for note in report.notes)
    assert not any("WARNING" in note for note in report.notes)
    other = convert_checkpoint(source, tmp_path / "odd", tokenizer="base")
    assert any(note.startswith("WARNING") and "base" in note for note in other.notes)
    assert len(MortmTokenizer.from_pretrained(tmp_path / "out")) == 629
    convert_checkpoint(source, tmp_path / "long", tokenizer="pro", extend_vocab=True)
    assert MortmForCausalLM.from_pretrained(tmp_path / "long").model.embed_tokens.weight.abs().max() < 100
    export_upstream(tmp_path / "out", tmp_path / "back")
    assert same(load(tmp_path / "back" / "model.pth"), state)


def test_sizes_of_the_dumps_are_known():
    assert np.all([SIZES["vocab_size"] == KEYS[v][c]["embedding.weight"][0][0] for v, c in CASES])


def test_converted_folder_can_be_extended_later(folder, tmp_path):
    """The same rows as at conversion; provenance stays, so that it still goes back."""
    path, _ = folder
    source = MODELS / "mortm_alibi_silu_rmsnorm_6heads" / "model.pth"
    convert_checkpoint(source, tmp_path / "at_once", extend_vocab=True)
    counts = extend_vocabulary(path, tmp_path / "later")
    assert counts == {"kept": 629, "moved": 0, "copied": 11, "new": TABLE_SIZE - 629 - 11}
    at_once, later = (MortmForCausalLM.from_pretrained(tmp_path / n).state_dict() for n in ("at_once", "later"))
    assert same(later, at_once)
    for name in ("generation_config.json", "vocab.json", "tokenizer_config.json", "upstream_aside.safetensors"):
        assert (tmp_path / "later" / name).read_bytes() == (tmp_path / "at_once" / name).read_bytes(), name
    assert "fine-tuning" in (tmp_path / "later" / "README.md").read_text()
    export_upstream(tmp_path / "later", tmp_path / "back")
    assert load(tmp_path / "back" / "model.pth")["Wout.bias"].shape == (TABLE_SIZE,)
    with pytest.raises(ConversionError, match="already") as error:
        extend_vocabulary(tmp_path / "later", tmp_path / "again")
    assert error.value.code == "conversion.folder" and not (tmp_path / "again").exists()
    with pytest.raises(ConversionError, match=r"no config\.json"):
        extend_vocabulary(tmp_path, tmp_path / "again")


def test_critic_is_extended_with_its_policy(tmp_path):
    convert_checkpoint(HEADS / "actorcritic_rope_moe_rmsnorm" / "model.pth", tmp_path / "both")
    extend_vocabulary(tmp_path / "both", tmp_path / "long")
    value = AutoModelForSequenceClassification.from_pretrained(tmp_path / "long", subfolder="value")
    assert value.config.vocab_size == TABLE_SIZE and value.config.num_labels == 1
    export_upstream(tmp_path / "long", tmp_path / "back")


# --- what upstream's releases compute


def fields(version, case, **options):
    state, known = synthetic(version, case)
    known |= options
    facts, notes = reconcile(examine(state), Options.read(known))
    return layer_options(facts, Options.read(known)), notes


def test_releases_differ_where_upstream_does():
    """SPEC 5: the same option means other maths in another release."""
    early, notes = fields("4.0.45", "MORTM/moe_tanh", use_rope=True)
    assert early["position_embedding_type"] == "alibi" and early["attention_bias"] and "use_rope" in notes[0]
    middle, notes = fields("4.6.18", "MORTM/moe_tanh", score_type="sigmoid", num_groups=2, use_rope=True)
    assert middle["scoring_func"] == "softmax" and not middle["norm_topk_prob"] and "score_type" in notes[0]
    assert middle["n_group"] == 2 and middle["position_embedding_type"] == "rope"
    assert middle["shared_expert_intermediate_size"] == 96 and middle["router_balancing"] == "none"
    late, _ = fields("4.9", "MORTM/moe_tanh", num_groups=2)
    assert late["scoring_func"] == "softmax" and late["norm_topk_prob"] and late["norm_topk_eps"] == 1e-6
    assert late["n_group"] == 1 and late["shared_expert_intermediate_size"] == 64
    assert late["router_balancing"] == "bias" and late["router_bias_in_eval"] is False
    late, _ = fields("4.9", "MORTM/moe_tanh", score_type="sigmoid", use_gate_bias=False)
    assert late["scoring_func"] == "sigmoid" and not late["norm_topk_prob"] and late["router_balancing"] == "none"
    relu, _ = fields("4.6.18", "MORTM/ffn")
    assert not relu["gated_mlp"] and relu["hidden_act"] == "relu" and relu["mlp_bias"]
    _, notes = fields("4.5", "MORTM/silu_layernorm_rope_nobias")
    assert "4.5" in notes[0]
