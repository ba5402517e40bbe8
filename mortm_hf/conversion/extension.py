"""A converted folder -> the same model over the default token table.

Design decisions
- What `convert_checkpoint(extend_vocab=True)` does, for a folder that was converted before, perhaps trained since.
- Everything but the rows of tokens stays: configuration, options of generation, provenance, the adapter.

Knows: saved folders, token tables. Must not know: upstream's files.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from transformers import AutoConfig, GenerationConfig

from ..models.configuration_bertm import BertmConfig
from ..models.configuration_mortm import MortmConfig
from ..models.errors_mortm import ConversionError, VocabularyError
from ..models.modeling_bertm import BertmForSequenceClassification
from ..models.modeling_mortm import MortmForCausalLM, MortmForSequenceClassification
from ..models.tokenization_mortm import MortmTokenizer
from .checkpoint import ADAPTER, ASIDE, PROVENANCE
from .export import read_weights
from .output import new_folder
from .tables import extend_states, refuse_output_delta


CLASSES = {
    kind.__name__: kind for kind in (BertmForSequenceClassification, MortmForCausalLM, MortmForSequenceClassification)
}
CARD_NOTE = """
## Moved to the default token table

{kept} ids kept, {moved} moved by name, {copied} rows copied from an instrument category to its programs, {new} new
rows drawn at random. It still speaks the `mortm` dialect: **speaking the `metric` dialect takes fine-tuning** (load
the tokenizer with `dialect="metric"` for it).
"""


def extend_vocabulary(folder: str | os.PathLike, output: str | os.PathLike, overwrite: bool = False) -> dict[str, int]:
    """A converted folder over the default token table; returns counts of rows: kept, moved, copied, new.

    Raises:
        ConversionError: `conversion.folder`: no converted folder, or one that has the default table already;
            `conversion.output`. Nothing is written then.
    """
    folder = Path(folder)
    parts = [part for part in ("", "value") if (folder / part / "config.json").is_file()]
    if "" not in parts:
        raise ConversionError(f"{folder} is no model folder: it has no config.json", "conversion.folder")
    try:
        table = MortmTokenizer.from_pretrained(folder).vocabulary.ids
        configs = {part: _read_config(folder / part) for part in parts}
    except (OSError, VocabularyError) as error:
        raise ConversionError(f"{folder} is no converted folder: {error}", "conversion.folder") from None
    tokenizer = MortmTokenizer(dialect="mortm")
    if table == tokenizer.vocabulary.ids:
        raise ConversionError(f"{folder} has the default token table already", "conversion.folder")
    if (folder / ADAPTER).is_dir():
        refuse_output_delta(read_weights(folder / ADAPTER, "adapter_model"))
    states, counts = extend_states({part: read_weights(folder / part) for part in parts}, dict(table))
    with new_folder(output, overwrite) as staged:
        for part, config in configs.items():
            config.vocab_size = len(tokenizer)
            config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
            model = CLASSES[config.architectures[0]](config)
            try:
                model.load_state_dict(states[part], strict=True)
            except RuntimeError as error:
                raise ConversionError(
                    f"the weights of {folder / part} do not fit: {error}", "conversion.folder"
                ) from None
            if getattr(model, "generation_config", None) is not None:
                model.generation_config = _generation(folder / part, config)
            model.save_pretrained(staged / part)
            tokenizer.save_pretrained(staged / part)
        for name in (PROVENANCE, ASIDE):
            if (folder / name).is_file():
                shutil.copy(folder / name, staged / name)
        for part in parts:
            if (folder / part / ADAPTER).is_dir():
                shutil.copytree(folder / part / ADAPTER, staged / part / ADAPTER)
        card = folder / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else ""
        (staged / "README.md").write_text(text + CARD_NOTE.format(**counts), encoding="utf-8")
    return counts


def _read_config(folder: Path) -> MortmConfig:
    config = AutoConfig.from_pretrained(folder)
    if not isinstance(config, MortmConfig | BertmConfig) or (config.architectures or [""])[0] not in CLASSES:
        raise ConversionError(
            f"{folder} holds {(config.architectures or [type(config).__name__])[0]}, not one of {', '.join(CLASSES)}",
            "conversion.folder",
        )
    return config


def _generation(folder: Path, config: MortmConfig):

    saved = (folder / "generation_config.json").is_file()
    known = GenerationConfig.from_pretrained(folder) if saved else GenerationConfig()
    known.bos_token_id, known.eos_token_id, known.pad_token_id = config.bos_token_id, config.eos_token_id, 0
    return known
