"""`.pth` -> Hub folder: weights, configuration, tokenizer, generation options, code, card, and the way back.

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
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig

from ..models.errors_mortm import ConversionError
from ..models.modeling_bertm import BertmForSequenceClassification
from ..models.modeling_mortm import MortmForCausalLM, MortmForSequenceClassification
from ..models.tokenization_mortm import MortmTokenizer
from . import lora as lora_tools
from .anatomy import KINDS, PERCEPTION, Anatomy, Options, detect_kind, examine, reconcile
from .architecture import make_configs
from .card import write_card
from .checkpoint import ADAPTER, ASIDE, PROVENANCE, Checkpoint, read_checkpoint, read_json
from .mapping import Layout, layout_of, to_ours
from .output import new_folder
from .tables import choose_tokenizer, extend_states, refuse_output_delta


ROOT_CLASS = {
    "mortm": MortmForCausalLM,
    "actorcritic": MortmForCausalLM,
    "bertm": BertmForSequenceClassification,
}
LORA_MODES = ("merge", "keep")


@dataclass
class ConversionReport:
    """What was found and done. `notes` are for the reader; the lists hold upstream's tensor names."""

    kind: str
    versions: tuple[str, ...]
    version_name: str
    file: str
    sha256: str
    vocabulary: str
    tensors: int
    lora: str = "none"
    notes: list[str] = field(default_factory=list)
    aside: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    extended: dict[str, int] | None = None

    def as_dict(self) -> dict:
        """Plain JSON types."""
        return asdict(self)


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
        path: the `.pth` file. config: upstream's JSON options; by default `config.json` beside the file.
        vocab: upstream's `vocab_list.json`. tokenizer: a published table by name, e.g. "pro@4.9".
        version: the release it comes from, where it is known and the keys leave a choice.
        lora: "merge" deltas into the weights, or "keep" them as a PEFT adapter in `adapter/`.
        lora_merged: whether the weights hold their deltas already (saved in eval mode); by default looked for.
        extend_vocab: move the checkpoint to the default token table.
        allow: accept missing tensors (new random ones) and unused ones (set aside).
        overwrite: replace a folder that exists.

    Raises:
        ConversionError: see its table; nothing is written then.
    """
    if lora not in LORA_MODES:
        raise ConversionError(f"lora must be one of {', '.join(LORA_MODES)}, got {lora!r}", "conversion.lora")
    checkpoint = read_checkpoint(path)
    if detect_kind(checkpoint.tensors) in PERCEPTION:
        from .perception import convert_perception  # it builds on this module

        return convert_perception(checkpoint, output, config, version, allow, overwrite)
    facts = examine(checkpoint.tensors, version)
    config = Path(config) if config is not None else checkpoint.path.parent / "config.json"
    raw = read_json(config, "options (--config)")
    options = Options.read(raw, config.name)
    facts, notes = reconcile(facts, options, config.name)
    tok, table, told = choose_tokenizer(facts, None if vocab is None else Path(vocab), tokenizer)
    notes += told
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
    account(checkpoint, facts, layout, report, allow)
    tensors, adapters = checkpoint.tensors, {}
    if facts.lora:
        scale = options.lora_alpha / options.lora_r
        merged = decide_merged(tensors, facts, scale, lora_merged, report)
        if lora == "keep":
            if merged:
                tensors = unmerge(tensors, facts, scale, report)
            for part, groups in layout.parts.items():
                adapters[part] = lora_tools.to_adapter(groups, tensors, options.lora_r, options.lora_alpha)
            tensors, report.lora = lora_tools.strip(tensors), "kept"
        else:
            tensors, report.lora = lora_tools.merge(tensors, facts.lora, scale, merged), "merged"
    elif lora_merged is not None:
        report.notes.append("--lora-merged has no meaning here: the checkpoint has no LoRA factors")
    states = {part: to_ours(groups, tensors) for part, groups in layout.parts.items()}
    source_vocab = dict(tok.vocabulary.ids)
    if extend_vocab:
        refuse_output_delta(adapters[""][1] if adapters else {})
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
            save_adapter(staged / part / ADAPTER, *adapter)
        save_provenance(staged, checkpoint, facts, layout, raw, report, source_vocab)
        write_card(staged, report, KINDS[facts.kind][1], configs[""], options)
    return report


def account(checkpoint: Checkpoint, facts: Anatomy, layout: Layout, report: ConversionReport, allow: bool) -> None:
    """Every tensor is read, set aside or named: fills the lists of `report`.

    Raises:
        ConversionError: `conversion.keys`: missing or unused ones, without `allow`.
    """
    present = set(checkpoint.tensors)
    factors = {f"{stem}.{name}" for stem in facts.lora for name in ("lora_A", "lora_B")}
    needed = layout.sources
    report.missing = [name for name in needed if name not in present]
    report.missing += [name for name in sorted(factors) if name not in present]
    report.aside = [name for name in layout.aside if name in present]
    known = set(needed) | set(layout.aside) | factors
    report.unused = [name for name in checkpoint.tensors if name not in known]
    for title, names in (("missing", report.missing), ("unused", report.unused)):
        if names and not allow:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ConversionError(
                f"{checkpoint.path}: {len(names)} tensors are {title} for a {KINDS[facts.kind][1]} of "
                f"{facts.version_name} with these options: {shown}. Check --config, or convert anyway with --allow",
                "conversion.keys",
            )
        if names:
            report.notes.append(f"{len(names)} tensors are {title}: {', '.join(names[:5])}")


def decide_merged(tensors, facts: Anatomy, scale: float, told: bool | None, report: ConversionReport) -> bool:
    """Whether the weights hold their deltas already.

    Raises:
        ConversionError: `conversion.lora`: it looks as if they do, and nobody said so.
    """
    factor, error = lora_tools.guess_merged(tensors, facts.lora, scale)
    looks, clear = factor > 0.5, error < 0.15
    if error == float("inf"):
        return bool(told)
    measured = f"the weights contain {factor:.2f} of their own LoRA deltas (error {error:.2f}; 1 means merged, 0 not)"
    if told is None:
        if looks or not clear:
            raise ConversionError(
                f"{measured}: was it saved in eval mode? Then say --lora-merged, else --no-lora-merged. "
                "Adding a delta twice gives a wrong model without any error",
                "conversion.lora",
            )
        report.notes.append(measured)
        return False
    report.notes.append(measured)
    if clear and looks != told:
        name = "--lora-merged" if told else "--no-lora-merged"
        report.notes.append(f"WARNING: that speaks against {name}; the option was followed")
    return told


def unmerge(tensors, facts: Anatomy, scale: float, report: ConversionReport) -> dict[str, torch.Tensor]:
    """Merged weights minus their deltas, to keep the adapter apart (rounded to the type of the file)."""
    report.notes.append("the deltas were taken out of the merged weights, which rounds in the last digit")
    result = dict(tensors)
    for stem in facts.lora:
        weight = tensors[f"{stem}.weight"]
        result[f"{stem}.weight"] = (weight.float() - lora_tools.delta(tensors, stem, scale)).to(weight.dtype)
    return result


def load_model(kind, config, state: dict[str, torch.Tensor], report: ConversionReport):
    """A model with exactly these weights.

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
    """Upstream's sampling: nucleus 0.9, temperature 1, no top-k, up to its position length."""
    return GenerationConfig(
        do_sample=True, top_p=0.9, top_k=0, temperature=1.0, max_length=options.position_length, **special
    )


def save_adapter(folder: Path, config: dict, state: dict[str, torch.Tensor]) -> None:
    """An adapter folder that PEFT reads."""
    folder.mkdir()
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def save_provenance(
    staged: Path, checkpoint: Checkpoint, facts: Anatomy, layout: Layout, raw: dict, report, vocab
) -> None:
    """`upstream.json` and the tensors that no model reads."""
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
