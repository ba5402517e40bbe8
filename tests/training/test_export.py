"""A finished run -> the folder that is shipped."""

import json

import pytest
import torch

from mortm_hf.models.configuration_mortm import MortmConfig
from mortm_hf.models.modeling_mortm import MortmForCausalLM
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from mortm_hf.training.export import export, main


def test_export_is_complete_and_runs_in_fp32(tmp_path):
    torch.manual_seed(3)
    config = MortmConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, moe_intermediate_size=16,
                         shared_expert_intermediate_size=16, num_local_experts=2, use_cache=False)  # fmt: skip
    model = MortmForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "run")
    MortmTokenizer().save_pretrained(tmp_path / "run")
    size = export(tmp_path / "run", tmp_path / "out")
    assert size == sum(p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file())
    back = MortmForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert back.dtype == torch.float32 and back.config.use_cache and back.generation_config.do_sample
    for p, q in zip(model.parameters(), back.parameters()):
        assert torch.equal(p.bfloat16().float(), q)  # rounded once
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json", "vocab.json")
    }
    for name in ("config.json", "tokenizer_config.json"):
        assert not {"auto_map", "custom_pipelines"} & set(json.loads((tmp_path / "out" / name).read_text()))
    with pytest.raises(ValueError, match="more than 1000"):
        export(tmp_path / "run", tmp_path / "small", size_limit=1000)
    with torch.no_grad():
        next(model.parameters())[5] = float("nan")
    model.save_pretrained(tmp_path / "run")
    with pytest.raises(ValueError, match="not finite"):
        export(tmp_path / "run", tmp_path / "out")


def test_several_checkpoints_are_averaged(tmp_path, capsys):
    sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, moe_intermediate_size=16,
                 shared_expert_intermediate_size=16, num_local_experts=2)  # fmt: skip
    models = [MortmForCausalLM(MortmConfig(**sizes)) for _ in range(2)]
    models.append(MortmForCausalLM(MortmConfig(**sizes | {"hidden_size": 64})))
    folders = [str(tmp_path / name) for name in "abc"]
    for model, folder in zip(models, folders):
        model.save_pretrained(folder)
        MortmTokenizer().save_pretrained(folder)
    assert main([*folders[:2], str(tmp_path / "out")]) == 0
    back = MortmForCausalLM.from_pretrained(tmp_path / "out")
    for p, q, r in zip(*(m.parameters() for m in (*models[:2], back))):
        assert torch.equal(((p + q) / 2).bfloat16().float(), r)
    assert main([*folders[1:], str(tmp_path / "out")]) == 2
    assert "another model" in capsys.readouterr().err
