"""Which token table a checkpoint speaks, and the way from it to the default table, for states and for folders.

Design decisions
- A checkpoint does not say what its ids mean. `--vocab` (upstream's `vocab_list.json`) or `--tokenizer` (a published
  table by name) decides; without them a table is taken only if exactly one of the candidates has as many tokens as the
  checkpoint has rows. Padded sizes (650, 700) are therefore asked about, never guessed.
- Migration to the default table goes by token name: for upstream's `pro` tables every id stays where it is.
- In a folder that was converted before, perhaps trained since, all but the rows of tokens stays: configuration,
  options of generation, provenance, the adapter.

Knows: token tables, rows of matrices, saved folders. Must not know: layers, upstream's files.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, GenerationConfig

from ..models.configuration_bertm import BertmConfig
from ..models.configuration_mortm import MortmConfig
from ..models.errors_mortm import ConversionError, VocabularyError
from ..models.modeling_bertm import BertmForSequenceClassification
from ..models.modeling_mortm import MortmForCausalLM, MortmForSequenceClassification
from ..models.token_vocabulary import default_tokens
from ..models.tokenization_mortm import MortmTokenizer
from ..models.upstream_vocabulary import FLAVOURS, upstream_vocabulary
from .anatomy import Anatomy
from .checkpoint_files import ADAPTER, ASIDE, PROVENANCE, new_folder, read_weights
from .conversion_report import EXTENDED
from .lora import refuse_output_delta


# by our names: the matrices that have a row for each token
VOCABULARY_ROWS = ("model.embed_tokens.weight", "lm_head.weight", "lm_head.bias")
# upstream's categories by the programs they stand for (its own scan also takes the oboe, 68, for a saxophone)
CATEGORIES = {"<INST_PIANO>": range(7), "<INST_SAX>": range(64, 68)}
CLASSES = {
    kind.__name__: kind for kind in (BertmForSequenceClassification, MortmForCausalLM, MortmForSequenceClassification)
}
CARD_NOTE = f"\n## Moved to the default token table\n\n{EXTENDED}\n"


def candidates(anatomy: Anatomy) -> dict[str, int]:
    """Published tables that such a checkpoint may speak; equal tables are named once.

    Args:
        anatomy: what the checkpoint is.

    Returns:
        Name of the table, e.g. "pro@4.9" -> number of its ids.
    """
    found, seen = {}, {}
    for flavour, releases in FLAVOURS.items():
        if (flavour == "bertm") != (anatomy.kind == "bertm"):
            continue
        for version in releases:
            # 4.9 loads tables of earlier releases, never the other way round
            if version not in anatomy.versions:
                continue
            try:
                table = upstream_vocabulary(flavour, version)
            except VocabularyError:
                continue
            size, key = max(table.values()) + 1, tuple(table.items())
            if key not in seen:
                seen[key] = f"{flavour}@{version}"
                found[seen[key]] = size
    return found


def choose_tokenizer(anatomy: Anatomy, vocab=None, preset: str | None = None) -> tuple[MortmTokenizer, str, list[str]]:
    """The tokenizer of a checkpoint.

    Args:
        anatomy: what the checkpoint is.
        vocab: upstream's `vocab_list.json`.
        preset: a published table by name ("pro", "omega@4.6.18", ...).

    Returns:
        The tokenizer, the table's name, and remarks for the reader.

    Raises:
        ConversionError: `conversion.vocabulary`: it is not clear which table, or the table does not fit.
    """
    if vocab is not None and preset is not None:
        raise ConversionError("give --vocab or --tokenizer, not both", "conversion.vocabulary")
    options, notes = candidates(anatomy), []
    if vocab is None and preset is None:
        exact = [name for name, size in options.items() if size == anatomy.rows]
        if len(exact) != 1:
            fitting = ", ".join(f"{name} ({size})" for name, size in options.items() if size <= anatomy.rows)
            raise ConversionError(
                f"which token table does it speak? It has {anatomy.rows} rows, and "
                f"{'several tables' if exact else 'no table'} of {anatomy.version_name} of exactly that size. Give "
                "its vocab_list.json with --vocab, or name the table with --tokenizer"
                + (f": {fitting} fit" if fitting else ""),
                "conversion.vocabulary",
            )
        preset = exact[0]
        notes.append(f"token table {preset}: the only one of {anatomy.version_name} with {anatomy.rows} ids")
    try:
        tokenizer = MortmTokenizer(vocab_file=vocab, preset=preset, dialect="mortm")
    except VocabularyError as error:
        raise ConversionError(str(error), "conversion.vocabulary") from None
    size, name = len(tokenizer), preset or str(getattr(vocab, "name", vocab))
    if size > anatomy.rows:
        raise ConversionError(
            f"the table {name} has {size} ids, the checkpoint only {anatomy.rows} rows: it is not its table "
            "(--vocab or --tokenizer)",
            "conversion.vocabulary",
        )
    if tokenizer.pad_token_id != 0:
        raise ConversionError(f"the table {name} has no <PAD> as its id 0", "conversion.vocabulary")
    published = (MortmTokenizer(preset=known).vocabulary.ids for known in options) if preset else ()
    if preset and not any(tokenizer.vocabulary.ids == ids for ids in published):
        notes.append(
            f"WARNING: upstream {anatomy.version_name} does not publish the table {name}; it was taken as given"
        )
    if size < anatomy.rows:
        notes.append(f"{anatomy.rows - size} rows beyond the {size} tokens are padding")
    return tokenizer, name, notes


def extend_states(states: dict[str, dict], table: dict[str, int]) -> tuple[dict[str, dict], dict[str, int]]:
    """The state dicts with the default table's rows.

    Args:
        states: sub-folder -> tensors by our names; changed in place.
        table: token -> id of the source.

    Returns:
        The state dicts, and what became of the rows (see `extend_rows`).
    """
    counts = {}
    for state in states.values():
        rows, counts = extend_rows({n: state[n] for n in VOCABULARY_ROWS if n in state}, table)
        state |= rows
    return states, counts


def extend_rows(
    tensors: dict[str, torch.Tensor], table: dict[str, int], seed: int = 0
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Matrices over a source table -> the same over the default table.

    Rows go by token name; the rows of `<INST_PIANO>` and `<INST_SAX>` are copied to their programs; all others are
    drawn from the known rows' distribution (mean and spread of each column), output biases start at the lowest known.

    Args:
        tensors: name -> [rows, ...] (embedding, output matrix, output bias).
        table: token -> id of the source.
        seed: of the rows that are drawn.

    Returns:
        The new tensors, and counts of rows: "kept" (same id), "moved", "copied", "new".
    """
    tokens = default_tokens()
    source = torch.full((len(tokens),), -1)
    counts = dict.fromkeys(("kept", "moved", "copied", "new"), 0)
    for index, token in enumerate(tokens):
        found = table.get(token, -1)
        counts["new" if found < 0 else "kept" if found == index else "moved"] += 1
        source[index] = found
    position = {token: index for index, token in enumerate(tokens)}
    for category, programs in CATEGORIES.items():
        if category not in table:
            continue
        for program in programs:
            place = position[f"<INST_{program}>"]
            if source[place] < 0:
                source[place] = table[category]
                counts["copied"] += 1
                counts["new"] -= 1
    known = source >= 0
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, matrix in tensors.items():
        old = matrix[torch.tensor(sorted(set(table.values())))]
        rows = torch.empty(len(tokens), *matrix.shape[1:], dtype=matrix.dtype)
        rows[known] = matrix[source[known]]
        if matrix.dim() == 1:
            rows[~known] = old.min()
        else:
            noise = torch.randn(int((~known).sum()), *matrix.shape[1:], generator=generator, dtype=matrix.dtype)
            rows[~known] = old.mean(0) + old.std(0) * noise
        result[name] = rows
    return result, counts


def extend_vocabulary(folder: str | os.PathLike, output: str | os.PathLike, overwrite: bool = False) -> dict[str, int]:
    """A converted folder -> the same model over the default token table.

    Args:
        folder: the converted folder.
        output: the folder to write.
        overwrite: replace `output` if it exists.

    Returns:
        Counts of rows: "kept" (same id), "moved", "copied" (of a category to its programs) and "new".

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
