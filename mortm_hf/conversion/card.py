"""The model card of a converted checkpoint.

Knows: what a conversion reports. Must not know: tensors.
"""

from __future__ import annotations

from pathlib import Path


def _usage(report) -> str:
    if report.kind == "bertm":
        return """```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
batch = tokenizer("<EOS> <SYSTEM> <INST_PIANO> k_CM <TAG_END>", return_tensors="pt")
machine = model(**batch).logits.sigmoid()        # probability of "made by a machine"; 1 - machine: by a human
```"""
    text = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
```"""
    if report.kind == "actorcritic":
        text += """

The folder itself is the policy; `value/` holds the value model:
`AutoModelForSequenceClassification.from_pretrained(FOLDER, subfolder="value", trust_remote_code=True)`. Its `score`
works on every state."""
    if report.lora == "kept":
        text += """

The LoRA deltas are kept apart in `adapter/`; without them this is the base model:
`PeftModel.from_pretrained(model, FOLDER + "/adapter")`."""
    return text


def write_card(folder: Path, report, title: str, config, options) -> None:
    """Writes `README.md`: where the checkpoint comes from, what it is, how it is used, what it cannot do."""
    layers = "mixture of experts" if "sparse" in config.mlp_layer_types else "dense"
    lines = [
        "---",
        "library_name: transformers",
        "tags: [music, midi, symbolic-music, mortm]",
        "---",
        f"# {title}, converted from upstream's `{report.file}`",
        "",
        "| | |",
        "|---|---|",
        f"| source file | `{report.file}`, {report.tensors} tensors |",
        f"| SHA-256 | `{report.sha256}` |",
        f"| upstream release | {report.version_name} (as far as the tensors' names tell) |",
        f"| layers | {config.num_hidden_layers}, {layers}, {config.norm_type}, {config.position_embedding_type} |",
        f"| token table | {report.vocabulary} |",
        f"| LoRA | {report.lora} |",
        "",
        "The weights are upstream's numbers in fp32; the licence is that of the source. FOLDER is this folder.",
        "",
        _usage(report),
        "",
        "## Language",
        "",
    ]
    if report.extended is None:
        lines.append("It speaks the `mortm` dialect, upstream's own encoding (`tokenizer.encode_midi`), in 4/4.")
    else:
        kept = report.extended
        lines.append(
            f"It was moved to the default token table: {kept['kept']} ids kept, {kept['moved']} moved by name, "
            f"{kept['copied']} rows copied from an instrument category to its programs, {kept['new']} new rows drawn "
            "at random. It still speaks the `mortm` dialect: **speaking the `metric` dialect takes fine-tuning** "
            '(load the tokenizer with `dialect="metric"` for it).'
        )
    if report.notes:
        lines += ["", "## Notes of the conversion", "", *(f"- {note}" for note in report.notes)]
    lines += [
        "",
        "## The way back",
        "",
        "`mortm export-upstream` writes upstream's files from this folder; `upstream.json` and "
        "`upstream_aside.safetensors` hold what only upstream needs.",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_perception_card(folder: Path, report, title: str, model: str, reader: str) -> None:
    """The card of a model that reads no tokens. model, reader: names of the classes in the folder."""
    lines = [
        "---",
        "library_name: transformers",
        "tags: [music, mortm]",
        "---",
        f"# {title}, converted from upstream's `{report.file}`",
        "",
        "| | |",
        "|---|---|",
        f"| source file | `{report.file}`, {report.tensors} tensors |",
        f"| SHA-256 | `{report.sha256}` |",
        f"| upstream release | {report.version_name} |",
        "",
        "The weights are upstream's numbers in fp32; the licence is that of the source. FOLDER is this folder.",
        "",
        "```python",
        f"from mortm_hf import {model}, {reader}",
        "",
        f"model = {model}.from_pretrained(FOLDER)",
        f"reader = {reader}.from_pretrained(FOLDER)",
        "```",
    ]
    if report.notes:
        lines += ["", "## Notes of the conversion", "", *(f"- {note}" for note in report.notes)]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
