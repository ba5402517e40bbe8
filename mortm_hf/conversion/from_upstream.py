"""`.pth` -> folder for the Hub: weights, configuration, tokenizer, generation options, code, card, and the way back.

Design decisions
- Every decision is made, and every tensor accounted for, before anything is written; the folder appears whole.
- What upstream's file held beyond the model (types, unused tensors, options, its hash) goes to `upstream.json` and
  `upstream_aside.safetensors`: with them `export_upstream` gives back the same state dict, bit for bit.
- An ActorCritic is two models here: the policy in the folder itself, the value model in `value/`; each has the layers
  (and, where LoRA is kept, an adapter for them).
- Nothing ambiguous is guessed: the error names the option that decides.

Knows: all other modules of this sub-package. Must not know: command lines.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig

from ..models.errors_mortm import ConversionError
from ..models.modeling_bertm import BertmForSequenceClassification
from ..models.modeling_mortm import MortmForCausalLM, MortmForSequenceClassification
from ..models.tokenization_mortm import MortmTokenizer
from . import lora as lora_tools
from .anatomy import PERCEPTION, Anatomy, Options, detect_kind, examine, reconcile
from .architecture import make_configs
from .checkpoint_files import ADAPTER, ASIDE, PROVENANCE, Checkpoint, new_folder, read_checkpoint, read_json
from .conversion_report import ConversionReport, write_card
from .mapping import Layout, layout_of, to_ours
from .perception import convert_perception
from .token_tables import choose_tokenizer, extend_states


ROOT_CLASS = {
    "mortm": MortmForCausalLM,
    "actorcritic": MortmForCausalLM,
    "bertm": BertmForSequenceClassification,
}
LORA_MODES = ("merge", "keep")


def convert_checkpoint(
    path: str | os.PathLike,
    output: str | os.PathLike,
    config: str | os.PathLike | None = None,
    vocab: str | os.PathLike | None = None,
    tokenizer: str | None = None,
    version: str | None = None,
    lora: str = "merge",
    lora_merged: bool | None = None,
    extend_vocab: bool = False,
    allow: bool = False,
    overwrite: bool = False,
) -> ConversionReport:
    """An upstream checkpoint -> a folder for `from_pretrained`.

    Args:
        path: the `.pth` file.
        output: the folder to write.
        config: upstream's JSON options; by default `config.json` beside the file.
        vocab: upstream's `vocab_list.json`.
        tokenizer: a published token table by name, e.g. "pro@4.9".
        version: the release it comes from, where it is known and the keys leave a choice.
        lora: "merge" deltas into the weights, or "keep" them as a PEFT adapter in `adapter/`.
        lora_merged: whether the weights hold their deltas already (saved in eval mode); by default looked for.
        extend_vocab: move the checkpoint to the default token table.
        allow: accept missing tensors (new random ones) and unused ones (set aside).
        overwrite: replace a folder that exists.

    Returns:
        What was found and done.

    Raises:
        ConversionError: any of its codes but `conversion.folder`; nothing is written then.
    """
    if lora not in LORA_MODES:
        raise ConversionError(f"lora must be one of {', '.join(LORA_MODES)}, got {lora!r}", "conversion.lora")
    checkpoint = read_checkpoint(path)
    if detect_kind(checkpoint.tensors) in PERCEPTION:
        return convert_perception(checkpoint, output, config, version, allow, overwrite)
    facts = examine(checkpoint.tensors, version)
    config = Path(config) if config is not None else checkpoint.path.parent / "config.json"
    raw = read_json(config, "options (--config)")
    options = Options.read(raw, config.name)
    facts, notes = reconcile(facts, options, config.name)
    tok, table, remarks = choose_tokenizer(facts, None if vocab is None else Path(vocab), tokenizer)
    notes += remarks
    report = ConversionReport(
        kind=facts.kind,
        versions=facts.versions,
        version_name=facts.version_name,
        file=checkpoint.path.name,
        sha256=checkpoint.sha256,
        vocabulary=table,
        tensors=len(checkpoint.tensors),
        notes=notes,
    )
    layout = layout_of(facts, balancing=options.use_gate_bias)
    factors = sorted(f"{stem}.{name}" for stem in facts.lora for name in ("lora_A", "lora_B"))
    report.account(checkpoint.path, checkpoint.tensors, [*layout.sources, *factors], layout.aside, allow)
    tensors, adapters = checkpoint.tensors, {}
    if facts.lora:
        scale = options.lora_alpha / options.lora_r
        merged = lora_tools.are_merged(tensors, facts.lora, scale, lora_merged, notes)
        if lora == "keep":
            if merged:
                tensors = lora_tools.unmerge(tensors, facts.lora, scale)
                notes.append("the deltas were taken out of the merged weights, which rounds in the last digit")
            for part, groups in layout.parts.items():
                adapters[part] = lora_tools.to_adapter(groups, tensors, options.lora_r, options.lora_alpha)
            tensors, report.lora = lora_tools.strip(tensors), "kept"
        else:
            tensors, report.lora = lora_tools.merge(tensors, facts.lora, scale, merged), "merged"
    elif lora_merged is not None:
        notes.append("--lora-merged has no meaning here: the checkpoint has no LoRA factors")
    states = {part: to_ours(groups, tensors) for part, groups in layout.parts.items()}
    source_vocab = dict(tok.vocabulary.ids)
    if extend_vocab:
        lora_tools.refuse_output_delta(adapters[""][1] if adapters else {})
        states, report.extended = extend_states(states, source_vocab)
        tok = MortmTokenizer(dialect="mortm")
    rows = states[""]["model.embed_tokens.weight"].shape[0]
    special = dict(pad_token_id=0, bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id)
    configs = make_configs(facts, options, special)
    models = {}
    for part, settings in configs.items():
        settings.vocab_size = rows
        kind = MortmForSequenceClassification if part == "value" else ROOT_CLASS[facts.kind]
        models[part] = load_model(kind, settings, states.pop(part), report)
    if facts.kind != "bertm":
        models[""].generation_config = generation_config(special, options)
    with new_folder(output, overwrite) as staged:
        for part, model in models.items():
            folder = staged / part
            model.save_pretrained(folder)
            tok.save_pretrained(folder)
        for part, adapter in adapters.items():
            lora_tools.save_adapter(staged / part / ADAPTER, *adapter)
        save_provenance(staged, checkpoint, facts, layout, raw, report, source_vocab)
        write_card(staged, report, configs[""])
    return report


def load_model(kind, config, state: dict[str, torch.Tensor], report: ConversionReport):
    """A model with exactly these weights.

    Args:
        kind: the class of the model.
        config: its configuration.
        state: tensors by our names.
        report: what was found; a tensor may only be absent where it lists missing ones.

    Raises:
        ConversionError: `conversion.keys`: a tensor of the wrong shape.
    """
    model = kind(config).eval()
    own = model.state_dict()
    wrong = [
        f"{name}: {list(state[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if wrong:
        raise ConversionError(f"tensors of the wrong shape: {'; '.join(wrong[:3])}", "conversion.keys")
    left = set(own) - set(state)
    if left and not report.missing:
        raise ConversionError(f"nothing is known for {sorted(left)[:3]}", "conversion.keys")
    model.load_state_dict(own | state, strict=True)
    return model


def generation_config(special: dict, options: Options) -> GenerationConfig:
    """Upstream's sampling: nucleus 0.9, temperature 1, no top-k, up to its position length.

    Args:
        special: ids of the special tokens by their names in a configuration.
        options: upstream's options.
    """
    return GenerationConfig(
        do_sample=True, top_p=0.9, top_k=0, temperature=1.0, max_length=options.position_length, **special
    )


def save_provenance(
    staged: Path, checkpoint: Checkpoint, facts: Anatomy, layout: Layout, raw: dict, report, vocab
) -> None:
    """Write `upstream.json` and the tensors that no model reads.

    Args:
        staged: the folder.
        checkpoint: upstream's state dict.
        facts: what it is.
        layout: where its tensors go.
        raw: upstream's JSON options.
        report: what was found.
        vocab: token -> id of upstream's table.
    """
    kept = {name: checkpoint.tensors[name] for name in (*report.aside, *report.unused)}
    if kept:
        save_file({k: v.clone() for k, v in kept.items()}, staged / ASIDE)
    balancing = any("routing_bias" in name for name in layout.sources)
    content = {
        "format": 1,
        "file": checkpoint.path.name,
        "sha256": checkpoint.sha256,
        "prefix": checkpoint.prefix,
        "wrapper": checkpoint.wrapper,
        "anatomy": asdict(facts),
        "balancing": balancing,
        "lora": report.lora,
        "vocabulary": report.vocabulary,
        "vocab_list": vocab,
        "options": raw,
        "tensors": {name: str(t.dtype).removeprefix("torch.") for name, t in checkpoint.tensors.items()},
    }
    (staged / PROVENANCE).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
