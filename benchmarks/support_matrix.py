"""What works together: attention implementations x positions x what transformers can do with a model.

    python benchmarks/support_matrix.py [--only greedy,beams] [--write docs/support-matrix.md] [--json FILE]

Every cell runs a tiny model on a CPU in fp32 (FA2 compiled: bf16) and compares with `eager` (the same weights, tokens
or gradients), so "yes" means: the same result. What does not work must be refused with an error that names the
feature; anything else, a wrong result too, ends the script with an error. `--write` puts the table between the marks
in a Markdown file.

Design decisions
- flash-attn's two functions are written out in torch here, so its column proves the way into and out of the kernels on
  any machine, not the kernels: those need a GPU. Without the package the implementation is refused by transformers.
- Flex attention runs uncompiled (the same function, seconds faster a shape).

Knows: the models, transformers' ways of running one. Must not know: music.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import sys
import types
import warnings

import torch

from mortm_hf import MortmConfig, MortmForCausalLM
from mortm_hf.models.modeling_mortm import flash_functions


IMPLEMENTATIONS = {"eager": "eager", "sdpa": "sdpa", "flex": "flex_attention", "FA2": "flash_attention_2"}
POSITIONS = {"RoPE": "rope", "ALiBi": "alibi"}
COLUMNS = [(i, p) for i in IMPLEMENTATIONS for p in POSITIONS]
SIZES = dict(
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    moe_intermediate_size=16,
    shared_expert_intermediate_size=24,
    num_local_experts=4,
    mlp_layer_types=["sparse", "dense"],
    initializer_range=0.1,
    eos_token_id=96,
)
NEW = dict(max_new_tokens=6, eos_token_id=None)
MARKS = "<!-- support:begin -->", "<!-- support:end -->"


# --- models and inputs


def build(positions: str, implementation: str = "eager", layers: int = 2) -> MortmForCausalLM:
    """A tiny model with seeded weights; the implementation is set without transformers' look for the package."""
    torch.manual_seed(0)
    kinds = SIZES["mlp_layer_types"][:layers]
    options = {**SIZES, "num_hidden_layers": layers, "mlp_layer_types": kinds}
    model = MortmForCausalLM(MortmConfig(**options, position_embedding_type=POSITIONS[positions])).eval()
    model.set_experts_implementation("grouped_mm")
    model.config._attn_implementation_internal = IMPLEMENTATIONS[implementation]
    return model


def padded() -> dict[str, torch.Tensor]:
    """Two rows of 20 and 13 tokens, left padded."""
    ids = torch.randint(3, 96, (2, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, :7] = mask[1, :7] = 0
    return {"input_ids": ids, "attention_mask": mask}


def same(one: torch.Tensor, other: torch.Tensor, tolerance: float = 2e-5) -> bool:
    if one.dtype in (torch.int32, torch.int64):
        return torch.equal(one, other)
    return one.shape == other.shape and bool((one - other).abs().max() <= tolerance)


def reference_flash(query, key, value, dropout_p=0.0, softmax_scale=None, causal=False, alibi_slopes=None, **_):
    """flash_attn_func written out: [batch, length, heads, head_dim], masks aligned to the last query and key."""
    groups = query.shape[2] // key.shape[2]
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    queries, keys = query.shape[2], key.shape[2]
    distance = torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)
    scores = query @ key.transpose(2, 3) * (softmax_scale or query.shape[-1] ** -0.5)
    if alibi_slopes is not None:
        scores = scores - alibi_slopes[:, None, None] * distance.abs()
    if causal:
        scores = scores.masked_fill(distance < 0, -math.inf)
    return (scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2)  # ALiBi's slopes are fp32


def reference_flash_varlen(query, key, value, cu_seqlens_q=None, cu_seqlens_k=None, **options):
    """flash_attn_varlen_func: pieces [tokens, heads, head_dim] between the given bounds."""
    bounds = zip(cu_seqlens_q[:-1], cu_seqlens_q[1:], cu_seqlens_k[:-1], cu_seqlens_k[1:], strict=True)
    pieces = [
        reference_flash(query[None, a:b], key[None, c:d], value[None, c:d], **options)[0] for a, b, c, d in bounds
    ]
    return torch.cat(pieces)


@contextlib.contextmanager
def implementation_ready(name: str):
    """flex uncompiled; flash-attn's functions where transformers and our ALiBi path look for them."""
    import transformers.modeling_flash_attention_utils as utils

    if name == "flex":
        torch.compiler.set_stance("force_eager")
        try:
            yield
        finally:
            torch.compiler.set_stance("default")
    elif name == "FA2":
        module = types.ModuleType("flash_attn")
        module.flash_attn_func, module.flash_attn_varlen_func = reference_flash, reference_flash_varlen
        before = sys.modules.get("flash_attn"), utils._lazy_imports, utils._loaded_implementation
        sys.modules["flash_attn"] = module
        functions = (reference_flash, reference_flash_varlen, None, utils._pad_input, utils._unpad_input)
        utils._lazy_imports, utils._loaded_implementation = (lambda *args, **kwargs: functions), None
        flash_functions.cache_clear()
        try:
            yield
        finally:
            utils._lazy_imports, utils._loaded_implementation = before[1:]
            sys.modules.pop("flash_attn")
            if before[0] is not None:
                sys.modules["flash_attn"] = before[0]
            flash_functions.cache_clear()
    else:
        yield


# --- the features: each gives what `eager` must give too


def forward(model):
    inputs = padded()
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits[inputs["attention_mask"].bool()]


def packed(model):
    places = torch.cat([torch.arange(12), torch.arange(8)])[None]
    with torch.no_grad():
        return model(padded()["input_ids"][:1], position_ids=places, use_cache=False).logits


def greedy(model):
    return model.generate(**padded(), do_sample=False, **NEW)


def sampling(model):
    torch.manual_seed(2)
    return model.generate(**padded(), do_sample=True, **NEW)


def beams(model):
    return model.generate(**padded(), num_beams=3, num_return_sequences=2, do_sample=False, **NEW)


def assisted(model):
    positions = "RoPE" if model.config.position_embedding_type == "rope" else "ALiBi"
    assistant = build(positions, layers=1)
    assistant.config._attn_implementation_internal = model.config._attn_implementation
    ids = padded()["input_ids"][:1]
    return model.generate(ids, assistant_model=assistant, do_sample=False, **NEW)


def static_cache(model):
    return model.generate(**padded(), do_sample=False, cache_implementation="static", **NEW)


def compiled(model):
    torch._dynamo.reset()
    torch.compiler.set_stance("default")  # flex attention too
    try:
        # torch warns while it makes a block mask, which breaks the graph
        whole = model.config._attn_implementation != "flex_attention"
        step = torch.compile(model, fullgraph=whole, backend="aot_eager")
        with torch.no_grad():
            return step(padded()["input_ids"], use_cache=False).logits
    finally:
        torch._dynamo.reset()


def exported(model):
    with torch.no_grad():
        ids = padded()["input_ids"]
        program = torch.export.export(model, (), {"input_ids": ids, "use_cache": False}, strict=False)
        return program.module()(input_ids=ids, use_cache=False).logits


def continuous_batching(model):
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    rows = [padded()["input_ids"][0].tolist(), padded()["input_ids"][1, 7:].tolist()]
    config = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
    few = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)  # the default fills the memory
    answers = model.generate_batch(rows, generation_config=config, continuous_batching_config=few)
    made = [answer.generated_tokens for _, answer in sorted(answers.items())]
    if len(made) != 2 or any(len(row) != 6 for row in made):
        raise RuntimeError(f"continuous batching gave no answer: {[a.error for a in answers.values()]}")
    return torch.tensor(made)


def peft(model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    config = LoraConfig(r=2, target_modules=["q_proj", "o_proj"], target_parameters=["experts.gate_up_proj"])
    adapted = get_peft_model(model, config)
    ids = padded()["input_ids"]
    adapted(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.grad is not None:
                parameter -= 0.5 * parameter.grad
        trained = adapted(input_ids=ids, use_cache=False).logits
        merged = adapted.merge_and_unload()(ids, use_cache=False).logits
    if not same(trained, merged, 1e-3):
        raise RuntimeError("merging the adapter changes the result")
    return merged


def checkpointing(model):
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    ids = padded()["input_ids"]
    model(ids, labels=ids, use_cache=False).loss.backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


def quantised(model):
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    if not any(type(module).__module__.startswith("torch.ao") for module in small.modules()):
        raise RuntimeError("nothing was quantised")
    return forward(small)


# name -> (what it is in the table, function, the reference of its result, tolerance)
FEATURES = {
    "forward": ("left padding", forward, forward, 2e-5),
    "packed": ("packed rows", packed, packed, 2e-5),
    "greedy": ("generate: greedy", greedy, greedy, 0),
    "sampling": ("generate: sampling", sampling, sampling, 0),
    "beams": ("generate: beams", beams, beams, 0),
    "assisted": (
        "generate: assisted",
        assisted,
        lambda m: m.generate(padded()["input_ids"][:1], do_sample=False, **NEW),
        0,
    ),
    "static_cache": ("generate: static cache", static_cache, greedy, 0),
    "continuous_batching": ("continuous batching", continuous_batching, lambda m: greedy(m)[:, 20:], 0),
    "compiled": (
        "torch.compile (one graph but for flex)",
        compiled,
        lambda m: m(padded()["input_ids"], use_cache=False).logits.detach(),
        2e-5,
    ),
    "exported": (
        "torch.export",
        exported,
        lambda m: m(padded()["input_ids"], use_cache=False).logits.detach(),
        2e-5,
    ),
    "peft": ("PEFT (LoRA, experts too)", peft, peft, 5e-4),
    "checkpointing": (
        "gradient checkpointing",
        checkpointing,
        lambda m: (m.gradient_checkpointing_disable(), _gradients(m))[1],
        2e-5,
    ),
    "quantised": ("int8 linear layers", quantised, quantised, 0.05),
}

# cells that cannot be: why
APART = {
    ("quantised", "FA2"): "torch's int8 linear layers run on a CPU, flash attention on a GPU",
}
# cells that run in bf16, eager's too: in fp32 transformers warns of flash attention, which breaks the graph
HALF = {("compiled", "FA2")}


def _gradients(model):
    ids = padded()["input_ids"]
    model.train()(ids, labels=ids, use_cache=False).loss.backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


_references: dict = {}


def cell(feature: str, implementation: str, positions: str) -> str:
    """ "yes", or the words of the refusal; anything else is an error."""
    if (feature, implementation) in APART:
        return APART[feature, implementation]
    _, function, reference, tolerance = FEATURES[feature]
    half = (feature, implementation) in HALF
    dtype, tolerance = (torch.bfloat16, 0.02) if half else (torch.float32, tolerance)
    key = reference, positions, dtype
    if key not in _references:
        _references[key] = reference(build(positions).to(dtype))
    with implementation_ready(implementation), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            got = function(build(positions, implementation).to(dtype))
        except (ValueError, NotImplementedError, ImportError) as error:
            return str(error).split("\n")[0]
    if not same(got, _references[key], tolerance):
        raise AssertionError(f"{feature} with {implementation} and {positions} differs from eager")
    return "yes"


def table(cells: dict[tuple[str, str, str], str]) -> str:
    """Markdown: one line a feature, one column an implementation and position type, refusals as footnotes."""
    notes: list[str] = []
    lines = [
        "| | " + " | ".join(f"{i} {p}" for i, p in COLUMNS) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    for feature in dict.fromkeys(name for name, _, _ in cells):
        line = [FEATURES[feature][0]]
        for column in COLUMNS:
            said = cells[(feature, *column)]
            if said != "yes" and said not in notes:
                notes.append(said)
            word = "yes" if said == "yes" else "-" if said in APART.values() else "refused"
            line.append(word if said == "yes" else f"{word} ({notes.index(said) + 1})")
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines + [""] + [f"{i}. `{note}`" for i, note in enumerate(notes, 1)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="names of features, separated by commas", default=",".join(FEATURES))
    parser.add_argument("--write", metavar="FILE", help="put the table between the marks of this Markdown file")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    cells = {}
    for feature in arguments.only.split(","):
        for column in COLUMNS:
            cells[(feature, *column)] = cell(feature, *column)
            print(f"{feature:20s} {column[0]:6s} {column[1]:6s} {cells[(feature, *column)]}", file=sys.stderr)
    text = table(cells)
    print(text)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({" ".join(key): value for key, value in cells.items()}, file, indent=1)
    if arguments.write:
        with open(arguments.write, encoding="utf-8") as file:
            before, rest = file.read().split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        with open(arguments.write, "w", encoding="utf-8") as file:
            file.write(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
