"""Reads upstream checkpoints (JSON options, state dict) into our models: a test's view, not `conversion`."""

import json
from pathlib import Path

import torch

from mortm_hf.models.configuration_mortm import MortmConfig


def upstream_config(folder: Path, version: str) -> MortmConfig:
    """Upstream's options of `folder/config.json`, for a package version such as "4.6.18", as a MortmConfig."""
    options = json.loads((folder / "config.json").read_text())
    late = tuple(int(x) for x in version.split(".")[:2]) >= (4, 7)
    early = version.startswith(("4.0", "4.1"))
    moe, bias = options.get("use_moe_decoder", True), options.get("use_bias", True)
    gated = moe or options.get("use_silu", False)
    sigmoid = late and options.get("score_type") == "sigmoid"
    norms = {"tanh": "dynamic_tanh", "layernorm": "layernorm", "rmsnorm": "rmsnorm"}
    width = options["dim_feedforward"]
    return MortmConfig(
        vocab_size=options["vocab_size"],
        hidden_size=options["d_model"],
        num_hidden_layers=options["d_layer"],
        num_attention_heads=options["num_heads"],
        intermediate_size=width,
        moe_intermediate_size=width,
        shared_expert_intermediate_size=options["d_model"] if late else width,
        num_local_experts=options["num_experts"],
        num_experts_per_tok=options["topk_experts"],
        mlp_layer_types=["sparse" if moe else "dense"] * options["d_layer"],
        gated_mlp=gated,
        hidden_act="silu" if gated else "relu",
        norm_type=norms[options.get("norm_type", "tanh")],
        position_embedding_type="rope" if options.get("use_rope") else "alibi",
        attention_bias=early,
        attention_output_bias=bias,
        mlp_bias=bias or not gated,
        lm_head_bias=True,
        tie_word_embeddings=False,
        scoring_func="sigmoid" if sigmoid else "softmax",
        n_group=1 if late else options.get("num_groups", 1),
        topk_group=1 if late else options.get("topk_groups", 1),
        norm_topk_prob=late and not sigmoid,
        norm_topk_eps=1e-6,
        router_balancing="bias" if late and moe else "none",
        router_bias_in_eval=False,
        hidden_dropout=options["dropout"],
        activation_dropout=0.0 if gated else options["dropout"],
        max_position_embeddings=options["position_length"],
    )


def upstream_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Our state dict of MortmForCausalLM from `folder/model.pth`, in fp32, LoRA merged."""
    source = {k: v.float() for k, v in torch.load(folder / "model.pth", weights_only=True).items()}
    options = json.loads((folder / "config.json").read_text())
    scale = options.get("lora_alpha", 16) / options.get("lora_r", 8)
    for name in [k for k in source if k.endswith("lora_A")]:
        stem = name.removesuffix("lora_A")
        source[stem + "weight"] += scale * source.pop(stem + "lora_B") @ source.pop(name)
    state = {"model.embed_tokens.weight": source.pop("embedding.weight")}
    norms = {"norm1": "input_layernorm", "norm3": "post_attention_layernorm"}
    dense = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj", "linear1": "up_proj", "linear2": "down_proj"}
    for name, tensor in source.items():
        parts = name.split(".")
        if parts[0] == "Wout":
            state[f"lm_head.{parts[1]}"] = tensor
        elif parts[:2] == ["decoder", "norm"]:
            state[f"model.norm.{parts[2]}"] = tensor
        elif parts[0] == "decoder":
            layer, rest = f"model.layers.{parts[2]}", parts[3:]
            if rest[0] == "norm2":
                continue  # belongs to cross attention, which these models do not have
            if rest[0] in norms:
                state[f"{layer}.{norms[rest[0]]}.{rest[1]}"] = tensor
            elif rest[:3] == ["self_attention", "qkv_block", "qkv_weight"]:
                for which, part in zip("qkv", tensor.chunk(3), strict=True):
                    state[f"{layer}.self_attn.{which}_proj.{rest[3]}"] = part
            elif rest[:3] == ["self_attention", "qkv_block", "W_o"]:
                state[f"{layer}.self_attn.o_proj.{rest[3]}"] = tensor
            elif rest[:2] == ["ffn", "gate"]:
                if rest[-1] == "weight":
                    state[f"{layer}.mlp.gate.weight"] = tensor
                elif rest[-1] == "routing_bias":
                    state[f"{layer}.mlp.gate.e_score_correction_bias"] = tensor
            elif rest[1] == "shared_experts":
                state[f"{layer}.mlp.shared_experts.{dense[rest[2]]}.{rest[3]}"] = tensor
            elif rest[1] != "experts":
                state[f"{layer}.mlp.{dense[rest[1]]}.{rest[2]}"] = tensor
    layers = {k.split(".")[2] for k in source if ".experts." in k}
    experts = 1 + max((int(k.split(".")[5]) for k in source if ".ffn.experts." in k), default=-1)
    for layer in layers:
        for kind, suffix in (("weight", ""), ("bias", "_bias")):
            stem = f"decoder.layers.{layer}.ffn.experts"
            if f"{stem}.0.w1.{kind}" not in source:
                continue
            w1, w2, w3 = (
                torch.stack([source[f"{stem}.{e}.{w}.{kind}"] for e in range(experts)]) for w in ("w1", "w2", "w3")
            )
            state[f"model.layers.{layer}.mlp.experts.gate_up_proj{suffix}"] = torch.cat([w1, w3], dim=1)
            state[f"model.layers.{layer}.mlp.experts.down_proj{suffix}"] = w2
    return state
