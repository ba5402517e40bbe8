"""What a conversion found and did: the report, and the model card made of it.

Design decisions
- Every tensor is accounted for: read, set aside, missing or unused; the last two are refused unless allowed.
- Models with and without tokens have one card; what only tokens have is left out of the other.

Knows: kinds of models, what a conversion reports. Must not know: tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..models.errors_mortm import ConversionError
from .anatomy import KINDS


EXTENDED = (
    "{kept} ids kept, {moved} moved by name, {copied} rows copied from an instrument category to its programs, {new} "
    "new rows drawn at random. It still speaks the `mortm` dialect: **speaking the `metric` dialect takes "
    'fine-tuning** (load the tokenizer with `dialect="metric"` for it).'
)
_CLASSIFIER = """```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
batch = tokenizer("<EOS> <SYSTEM> <INST_PIANO> k_CM <TAG_END>", return_tensors="pt")
machine = model(**batch).logits.sigmoid()        # probability of "made by a machine"; 1 - machine: by a human
```"""
_GENERATOR = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
```"""
_VALUE = """

The folder itself is the policy; `value/` holds the value model:
`AutoModelForSequenceClassification.from_pretrained(FOLDER, subfolder="value", trust_remote_code=True)`. Its `score`
works on every state."""
_ADAPTER = """

The LoRA deltas are kept apart in `adapter/`; without them this is the base model:
`PeftModel.from_pretrained(model, FOLDER + "/adapter")`."""


@dataclass
class ConversionReport:
    """What was found and done; the lists of tensors hold upstream's names.

    Attributes:
        kind: a key of `anatomy.KINDS`.
        versions: upstream releases that the checkpoint may come from.
        version_name: those in words, e.g. "4.5.116 to 4.6.57".
        file: name of the `.pth` file.
        sha256: its hash, hexadecimal.
        vocabulary: name of the token table.
        tensors: how many the file holds.
        lora: "none", "merged" or "kept".
        notes: remarks for the reader, a sentence each.
        aside: tensors that no model reads, kept for the way back.
        missing: tensors that the model needs and the file lacks.
        unused: tensors that nothing is known of.
        extended: what became of the rows when the token table was exchanged: counts of rows by "kept", "moved",
            "copied" and "new"; None: it was not.
    """

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

    def account(self, path: Path, present: Iterable[str], needed: Iterable[str], aside: Iterable[str], allow: bool):
        """Fill the lists of tensors, so that each one is read, set aside or named.

        Args:
            path: the file, for messages.
            present: names of the tensors it holds.
            needed: names of those that the model reads.
            aside: names of those that no model reads.
            allow: note what is missing or unused instead of refusing it.

        Raises:
            ConversionError: `conversion.keys`: missing or unused ones, without `allow`.
        """
        present, needed = list(dict.fromkeys(present)), list(dict.fromkeys(needed))
        self.missing = [name for name in needed if name not in set(present)]
        self.aside = [name for name in aside if name in set(present)]
        known = {*needed, *aside}
        self.unused = [name for name in present if name not in known]
        for state, names in (("missing", self.missing), ("unused", self.unused)):
            if names and not allow:
                shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
                raise ConversionError(
                    f"{path}: {len(names)} tensors are {state} for {KINDS[self.kind][1]} of {self.version_name} with "
                    f"these options: {shown}. Check --config, or convert anyway with --allow",
                    "conversion.keys",
                )
            if names:
                self.notes.append(f"{len(names)} tensors are {state}: {', '.join(names[:5])}")


def write_card(folder: Path, report: ConversionReport, config=None, classes: tuple[str, str] | None = None) -> None:
    """Write `README.md`: where the checkpoint comes from, what it is, how it is used, what it cannot do.

    Args:
        folder: the folder of the converted model.
        report: what the conversion found.
        config: configuration of a model that reads tokens; None: it reads none.
        classes: names of the model's and its reader's class, where it reads none.
    """
    rows = [
        f"| source file | `{report.file}`, {report.tensors} tensors |",
        f"| SHA-256 | `{report.sha256}` |",
    ]
    if config is None:
        tags, release = "music, mortm", report.version_name
        model, reader = classes
        usage = (
            f"```python\nfrom mortm_hf import {model}, {reader}\n\nmodel = {model}.from_pretrained(FOLDER)\n"
            f"reader = {reader}.from_pretrained(FOLDER)\n```"
        )
    else:
        tags = "music, midi, symbolic-music, mortm"
        release = f"{report.version_name} (as far as the tensors' names tell)"
        usage = _CLASSIFIER if report.kind == "bertm" else _GENERATOR
        usage += _VALUE if report.kind == "actorcritic" else ""
        usage += _ADAPTER if report.lora == "kept" else ""
    rows.append(f"| upstream release | {release} |")
    if config is not None:
        layers = "mixture of experts" if "sparse" in config.mlp_layer_types else "dense"
        layers = f"{config.num_hidden_layers}, {layers}, {config.norm_type}, {config.position_embedding_type}"
        rows += [f"| layers | {layers} |", f"| token table | {report.vocabulary} |", f"| LoRA | {report.lora} |"]
    head = ["---", "library_name: transformers", f"tags: [{tags}]", "---"]
    head += [f"# {KINDS[report.kind][1]}, converted from upstream's `{report.file}`", "", "| | |", "|---|---|", *rows]
    head += [
        "",
        "The weights are upstream's numbers in fp32; the licence is that of the source. FOLDER is this folder.",
    ]
    sections = [("", usage)]
    if config is not None:
        language = "It speaks the `mortm` dialect, upstream's own encoding (`tokenizer.encode_midi`), in 4/4."
        if report.extended is not None:
            language = "It was moved to the default token table: " + EXTENDED.format(**report.extended)
        sections.append(("## Language", language))
    if report.notes:
        sections.append(("## Notes of the conversion", "\n".join(f"- {note}" for note in report.notes)))
    if config is not None:
        back = (
            "`mortm export-upstream` writes upstream's files from this folder; `upstream.json` and "
            "`upstream_aside.safetensors` hold what only upstream needs."
        )
        sections.append(("## The way back", back))
    text = "\n".join(head) + "\n\n" + "\n\n".join(f"{title}\n\n{body}".lstrip() for title, body in sections) + "\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
