"""What cannot be converted: a typed error that says what to do, and nothing half written."""

import json
import pickle

import pytest
import torch
from upstream_states import HEADS, MODELS, load, write

from mortm_hf.app.cli import main
from mortm_hf.conversion import ConversionError, convert_checkpoint
from mortm_hf.conversion.anatomy import examine
from mortm_hf.conversion.checkpoint_files import new_folder


CASE = MODELS / "mortm_alibi_silu_rmsnorm_6heads"
OPTIONS = json.loads((CASE / "config.json").read_text())


@pytest.fixture(scope="module")
def state():
    return load(CASE / "model.pth")


def refuse(source, tmp_path, code, match, **options):
    """The conversion fails with `code`, a message that matches, and leaves nothing behind."""
    out = tmp_path / "out" / "folder"
    out.parent.mkdir(exist_ok=True)
    with pytest.raises(ConversionError, match=match) as error:
        convert_checkpoint(source, out, **options)
    assert error.value.code == code
    assert not list(out.parent.iterdir())


class Evil:
    def __reduce__(self):
        return (print, ("code in the checkpoint was run",))


@pytest.mark.parametrize("new_zip", [True, False])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_pickle_is_not_run(new_zip, tmp_path, capsys, state):
    source = write(tmp_path / "source", {}, OPTIONS)
    torch.save({**state, "extra": Evil()}, source, _use_new_zipfile_serialization=new_zip)
    refuse(source, tmp_path, "conversion.file", r"more than tensors.*torch\.save\(model\.state_dict\(\)")
    source.write_bytes(pickle.dumps(Evil()))
    refuse(source, tmp_path, "conversion.file", "more than tensors|no checkpoint of torch")
    assert "was run" not in capsys.readouterr().out


@pytest.mark.parametrize("cut", [0, 1, 100, 5000, -1000, -20])
def test_truncated_file(cut, tmp_path):
    source = write(tmp_path / "source", {}, OPTIONS)
    source.write_bytes((CASE / "model.pth").read_bytes()[:cut])
    refuse(source, tmp_path, "conversion.file", "damaged|not a state dict")


def test_other_files(tmp_path, state):
    source = write(tmp_path / "source", {}, OPTIONS)
    refuse(source, tmp_path, "conversion.file", "holds a dict|not a state dict")
    source.write_bytes(b"MThd" + bytes(200))
    refuse(source, tmp_path, "conversion.file", "damaged")
    torch.save([torch.ones(2)], source)
    refuse(source, tmp_path, "conversion.file", "not a state dict")
    torch.save({**state, "epoch": 3}, source)
    refuse(source, tmp_path, "conversion.file", "'epoch' is a int")
    torch.save({**state, "Wout.bias": state["Wout.bias"].to(torch.complex64)}, source)
    refuse(source, tmp_path, "conversion.file", "Wout.bias is torch.complex64")
    torch.save({**state, "Wout.bias": state["Wout.bias"] * float("nan")}, source)
    refuse(source, tmp_path, "conversion.file", "Wout.bias holds NaN")
    refuse(tmp_path / "none.pth", tmp_path, "conversion.file", "cannot read")


def test_other_kinds(tmp_path, state):
    """Parts of the models that read no tokens are not taken for whole ones, nor models of others for MORTM."""
    for key, code, said in (
        ("unvision.linear.weight", "keys", "no vision.linear.weight: it is not complete"),
        ("encoder.conv1.conv.weight", "config", "8 instruments are not the 2 channels"),
        ("vision.encoder.conv1.conv.weight", "config", "8 instruments are not the 2 channels"),
    ):
        source = write(tmp_path / "source", {key: torch.ones(2, 2)}, OPTIONS)
        refuse(source, tmp_path, f"conversion.{code}", said)
    source = write(tmp_path / "source", {"transformer.h.0.attn.c_attn.weight": torch.ones(2, 2)}, OPTIONS)
    refuse(source, tmp_path, "conversion.kind", "no upstream model has these tensors")
    layers = {k: v for k, v in state.items() if k.startswith("decoder.layers")}
    refuse(write(tmp_path / "source", layers, OPTIONS), tmp_path, "conversion.kind", "whole MORTM")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"d_model": 64}, "d_model is 64, the tensors say 96"),
        ({"d_layer": 3}, "d_layer is 3, the tensors say 2"),
        ({"d_layer": 0}, "d_layer is 12, the tensors say 2"),  # upstream takes 0 for the default
        ({"vocab_size": 700}, "vocab_size is 700, the tensors say 629"),
        ({"dim_feedforward": 128}, "dim_feedforward is 128"),
        ({"norm_type": "layernorm"}, "norm_type is 'layernorm', the tensors say 'rmsnorm'"),
        ({"use_moe_decoder": True}, "use_moe_decoder is True"),
        ({"use_silu": False}, "use_silu is False"),
        ({"use_bias": False}, "use_bias is False"),
        ({"num_heads": 7}, "num_heads is 7, which does not divide"),
        ({"use_cross_attention": True}, "no cross attention"),
        ({"num_heads": "six"}, "num_heads must be a whole number"),
        ({"norm_type": "batchnorm"}, "norm_type must be one of"),
        ({"dropout": None}, "lacks dropout"),
    ],
)
def test_options_that_contradict_the_tensors(change, said, tmp_path, state):
    refuse(write(tmp_path / "source", state, OPTIONS | change), tmp_path, "conversion.config", said)


def test_options_file(tmp_path, state):
    source = write(tmp_path / "source", state, OPTIONS)
    refuse(source, tmp_path, "conversion.config", "--config", config=tmp_path / "none.json")
    (source.parent / "config.json").write_text("{")
    refuse(source, tmp_path, "conversion.config", "cannot read")
    (source.parent / "config.json").write_text("[]")
    refuse(source, tmp_path, "conversion.config", "list, not an object")


def test_options_of_experts(tmp_path):
    case = HEADS / "actorcritic_rope_moe_rmsnorm"
    options = json.loads((case / "config.json").read_text())
    for change, said in (
        ({"num_experts": 8}, "num_experts is 8, the tensors say 4"),
        ({"topk_experts": 5}, "topk_experts is 5"),
        ({"num_groups": 3}, "num_groups is 3"),
    ):
        source = write(tmp_path / "source", load(case / "model.pth"), options | change)
        refuse(source, tmp_path, "conversion.config", said, tokenizer="pro")


def test_missing_and_unused_tensors(tmp_path, state):
    """Both are errors, and both may be allowed; nothing is lost then."""
    less = {k: v for k, v in state.items() if k != "decoder.layers.1.norm3.weight"}
    source = write(tmp_path / "source", less, OPTIONS)
    refuse(source, tmp_path, "conversion.keys", r"missing.*decoder\.layers\.1\.norm3\.weight.*--allow")
    report = convert_checkpoint(source, tmp_path / "less", allow=True)
    assert report.missing == ["decoder.layers.1.norm3.weight"]
    source = write(tmp_path / "source", {**state, "decoder.layers.0.extra": torch.ones(3)}, OPTIONS)
    refuse(source, tmp_path, "conversion.keys", r"unused.*decoder\.layers\.0\.extra")
    report = convert_checkpoint(source, tmp_path / "more", allow=True)
    assert report.unused == ["decoder.layers.0.extra"] and (tmp_path / "more" / "upstream_aside.safetensors").exists()
    wrong = {**state, "decoder.layers.1.norm3.weight": torch.ones(5)}
    refuse(write(tmp_path / "source", wrong, OPTIONS), tmp_path, "conversion.keys", "wrong shape")
    holes = {k: v for k, v in state.items() if not k.startswith("decoder.layers.0")}
    refuse(write(tmp_path / "source", holes, OPTIONS), tmp_path, "conversion.keys", "layers are missing")


def test_version_that_the_keys_rule_out(tmp_path, state):
    source = write(tmp_path / "source", state, OPTIONS)
    refuse(source, tmp_path, "conversion.version", r"cannot come from 4\.9", version="4.9")
    refuse(source, tmp_path, "conversion.version", "no upstream release", version="3.2")
    assert examine(state, "4.6").versions == ("4.6.18", "4.6.57")


def test_table_that_does_not_fit(tmp_path, state):
    source = write(tmp_path / "source", state, OPTIONS)
    (source.parent / "config.json").write_text(json.dumps(OPTIONS))
    refuse(source, tmp_path, "conversion.vocabulary", "694 ids, the checkpoint only 629 rows", tokenizer="pro@4.9")
    refuse(source, tmp_path, "conversion.vocabulary", "no upstream table", tokenizer="nonsense")
    refuse(source, tmp_path, "conversion.vocabulary", "holes", tokenizer="omega@4.9")
    vocab = tmp_path / "vocab.json"
    vocab.write_text(json.dumps({"<EOS>": 0, "<TE>": 1}))
    refuse(source, tmp_path, "conversion.vocabulary", "no <PAD>", vocab=vocab)
    vocab.write_text("nonsense")
    refuse(source, tmp_path, "conversion.vocabulary", "cannot read the vocabulary", vocab=vocab)
    refuse(source, tmp_path, "conversion.vocabulary", "not both", vocab=vocab, tokenizer="pro")


def test_output_is_whole_or_absent(tmp_path, state):
    source = write(tmp_path / "source", state, OPTIONS)
    out = tmp_path / "here"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(ConversionError, match="not empty") as error:
        convert_checkpoint(source, out)
    assert error.value.code == "conversion.output" and (out / "mine.txt").read_text() == "kept"
    with pytest.raises(ZeroDivisionError), new_folder(out, overwrite=True) as staged:
        (staged / "half").write_text("written")
        1 / 0  # noqa: B018
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    with new_folder(out, overwrite=True) as staged:
        (staged / "all").write_text("written")
    assert [p.name for p in out.iterdir()] == ["all"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConversionError, match="no folder"):
        convert_checkpoint(source, tmp_path / "file")
    assert {p.name for p in tmp_path.iterdir()} == {"source", "here", "file"}


# --- the commands


def test_command(tmp_path, capsys, state):
    source = write(tmp_path / "source", state, OPTIONS)
    out, told = tmp_path / "ours", tmp_path / "told.json"
    assert main(["convert", str(source), "-o", str(out), "--json", str(told)]) == 0
    assert "pro@4.6.18" in capsys.readouterr().out
    assert json.loads(told.read_text())["kind"] == "mortm"
    assert main(["export-upstream", str(out), "-o", str(tmp_path / "back")]) == 0
    assert "28 tensors" in capsys.readouterr().out
    assert main(["convert", str(source), "-o", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mortm: error:") and error.count("\n") == 1 and "--overwrite" in error
    assert main(["convert", str(tmp_path / "none.pth"), "-o", str(tmp_path / "x")]) == 2
    assert main(["convert", str(out), "-o", str(tmp_path / "x")]) == 2
    assert "--extend-vocab" in capsys.readouterr().err and not (tmp_path / "x").exists()
    assert main(["convert", str(out), "--extend-vocab", "-o", str(tmp_path / "x")]) == 0
    assert "629 rows kept" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["convert", str(source)])
    assert stop.value.code == 2


def test_check_command(tmp_path, capsys, state):
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "right").symlink_to(CASE)
    assert main(["convert", "--check", str(tmp_path / "cases"), "--json", str(tmp_path / "rows.json")]) == 0
    assert json.loads((tmp_path / "rows.json").read_text())[0]["passed"] is True
    write(tmp_path / "cases" / "wrong", {**state, "Wout.bias": state["Wout.bias"] + 1}, OPTIONS)
    (tmp_path / "cases" / "wrong" / "expected.npz").symlink_to(CASE / "expected.npz")
    capsys.readouterr()
    assert main(["convert", "--check", str(tmp_path / "cases")]) == 2
    shown = capsys.readouterr()
    assert "FAILED" in shown.out and "differs from upstream: wrong" in shown.err
    assert main(["convert", "--check", str(tmp_path / "source")]) == 2
