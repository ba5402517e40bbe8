"""Upstream state dicts for the tests: the copied fixtures, and synthetic ones from the keys of every release."""

import gzip
import json
from pathlib import Path

import torch


FIXTURES = Path(__file__).parents[1] / "fixtures"
MODELS, HEADS = FIXTURES / "upstream_models", FIXTURES / "upstream_heads"
KEYS = json.loads(gzip.decompress((FIXTURES / "upstream_keys" / "keys.json.gz").read_bytes()))
# what the dumped models were built with
SIZES = dict(vocab_size=30, d_layer=1, num_heads=4, d_model=64, dim_feedforward=96, dropout=0.1, num_experts=2)
BUILT = {
    "moe_tanh": {},
    "ffn": {"use_moe_decoder": False},
    "silu_layernorm_rope_nobias": {
        "use_moe_decoder": False,
        "use_silu": True,
        "norm_type": "layernorm",
        "use_rope": True,
        "use_bias": False,
    },
    "moe_rmsnorm_nobias": {"norm_type": "rmsnorm", "use_bias": False},
    "lora46": {"use_attn_lora": True, "use_ffn_lora": True},
    "lora40": {"use_lora": True},
    "cross": {"use_moe_decoder": False, "use_cross_attention": True},
}
CASES = [(version, case) for version, cases in KEYS.items() for case in cases]
# releases whose model with these options never ran: no norms, or no final one
BROKEN = {("4.5", "MORTM/moe_rmsnorm_nobias"), ("4.5.116", "MORTM/moe_rmsnorm_nobias")}


def synthetic(version: str, case: str) -> tuple[dict[str, torch.Tensor], dict]:
    """A state dict with the keys, shapes and types of a release, and its options."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, (shape, dtype) in KEYS[version][case].items():
        kind = getattr(torch, dtype)
        values = torch.randn(shape, generator=generator)
        state[name] = (values * 100).to(kind) if kind == torch.int64 else (values * 0.1).to(kind)
    return state, SIZES | BUILT[case.split("/")[1]]


def write(folder: Path, state, options) -> Path:
    """The checkpoint, its options and a token table of 30 tokens in `folder`; returns the `.pth`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "model.pth")
    (folder / "config.json").write_text(json.dumps(options))
    tokens = ["<PAD>", "<EOS>", "<SME>", "<BLANK>", "<ESEQ>", "<TE>", "<MGEN>", *(f"p_{i}" for i in range(23))]
    (folder / "vocab_list.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    return folder / "model.pth"


def same(found, wanted) -> bool:
    """Equal names in equal order, equal types, equal bits."""
    return list(found) == list(wanted) and all(
        found[k].dtype == wanted[k].dtype and torch.equal(found[k], wanted[k]) for k in wanted
    )


def load(path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)
