"""Fine-tuning a checkpoint on a folder of MIDI files: `mortm finetune FOLDER -o OUT`.

Design decisions
- Of the songs held out half choose the checkpoint, half only report. The folder says which songs it was made with
  (`songs.json`), so that `mortm eval` leaves them out later, whatever the files are called then.
- What is measured is what is shipped: bits a note before (the checkpoint it started from) and after (the folder that
  was written, adapters merged), on the same windows, with a paired interval.
- The work goes on in `OUT.run`, which a second start resumes; `OUT` appears whole, at the end.
- A checkpoint that speaks upstream's dialect is trained in the metric dialect if it has the default token table (that
  is how it learns to speak it); one with upstream's table is refused with the command that extends it.

Knows: training runs, fixed windows. Must not know: how notes become tokens, command lines.
"""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig

from ..bundled import find_model
from ..data.checkpoint_songs import joined, members_of, read_members, write_members
from ..data.schema import Song
from ..data.score_store import ScoreStore
from ..data.song_reading import fingerprint
from ..evaluation.bits_per_note import in_words, model_bits, summarise
from ..evaluation.fixed_windows import Encoded, encode_windows, fixed_windows, window_bars
from ..models.configuration_mortm import MortmConfig
from ..models.errors_mortm import TrainingError
from ..models.modeling_mortm import MortmForCausalLM
from ..models.tokenization_mortm import MortmTokenizer
from . import attention
from .own_songs import CORPUS, LEAST_SONGS, read_songs, split_songs
from .recipe import RECIPES, Recipe, parse_recipe
from .run import holds_run, without_bars
from .tasks import pretrain_task


RATES = {"full": 3e-4, "lora": 2e-3}


@dataclass
class FinetuneReport:
    """What was done and what it gave. `before`, `after`, `difference`: bits a note on the test songs with 95 %
    intervals over songs (`difference` is paired; below 0 means better); empty where no window could be measured."""

    output: str
    model: str
    method: str
    songs: dict[str, list[str]]
    skipped: list[dict[str, str]]
    steps: int
    tokens: int
    minutes: float
    bars: int
    before: dict = field(default_factory=dict)
    after: dict = field(default_factory=dict)
    difference: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict:
        """Plain JSON types."""
        return dict(self.__dict__)

    def text(self) -> str:
        """A few lines for people."""
        counts = ", ".join(f"{len(paths)} {name}" for name, paths in self.songs.items())
        lines = [f"{self.output}: {self.method}, {self.tokens} tokens in {self.steps} steps; songs: {counts}"]
        if self.after:
            b, a, d = self.before, self.after, self.difference
            lines.append(
                f"bits a note on {a['songs']} songs held out ({a['windows']} windows of {self.bars} given and "
                f"{self.bars} new bars): {b['bits_per_note']:.3f} before, {a['bits_per_note']:.3f} after, difference "
                f"{in_words(d, '+.3f')}"
            )
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"skipped: {item['file']}: {item['reason']}" for item in self.skipped]
        return "\n".join(lines)


def encode_songs(vocabulary, songs: list[Song], max_length: int, bars: int) -> list[Encoded]:
    """The consecutive windows of `bars` given and `bars` new bars of these songs."""
    store = ScoreStore(songs)
    return encode_windows(vocabulary, store, fixed_windows(store, bars, bars), max_length, bars, bars)[0]


def load_tokenizer(model: str) -> tuple[MortmTokenizer, list[str]]:
    """The tokenizer to train with, and notes for the reader.

    Raises:
        TrainingError: no such checkpoint, another kind of model, or upstream's token table.
    """
    try:
        config = AutoConfig.from_pretrained(model)
        tokenizer = MortmTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"cannot load a checkpoint from {model}: {reason}", "training.model") from None
    if not isinstance(config, MortmConfig) or not config.is_causal:
        raise TrainingError(f"{model} holds a {config.model_type} model; fine-tuning is for MORTM", "training.model")
    if tokenizer.dialect == "metric":
        return tokenizer, []
    default = MortmTokenizer()
    if tokenizer.vocabulary.ids != default.vocabulary.ids:
        raise TrainingError(
            f"{model} has upstream's token table, which has no words for meters or instruments: "
            f"`mortm convert {model} --extend-vocab -o NEW` gives it the default table, then --model NEW",
            "training.model",
        )
    return default, [
        "the checkpoint spoke upstream's dialect; from here on it speaks the metric one, and what it knew of rhythm "
        "it has to learn anew: take many songs"
    ]


def finetune(
    files: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    model: str | os.PathLike,
    lora: int = 0,
    passes: float = 4.0,
    learning_rate: float | None = None,
    held_out: float = 0.2,
    seed: int = 0,
    overwrite: bool = False,
    keep_run: bool = False,
    overrides: Sequence[str] = (),
) -> FinetuneReport:
    """Train `model` further on MIDI files and write a folder for `from_pretrained`.

    Args:
        files: MIDI files and folders of them, or one prepared data set (see `read_songs`).
        output: folder to write; `<output>.run` is worked in and resumed.
        model: folder, bundled name or repository of a MORTM checkpoint.
        lora: rank of adapters, merged at the end; 0 trains all weights.
        passes: times the songs are gone through (a full one less where validation stops improving).
        learning_rate: peak; by default 3e-4, with adapters 2e-3.
        held_out: part of the songs that is not trained on, where their labels do not say it.
        overrides: words for fields of `recipes/finetune.yaml`, e.g. `["--bf16", "True"]`.

    Raises:
        TrainingError: `training.data`: too few songs; `training.model`: a checkpoint that cannot be trained on them;
            `training.output`: the folder exists, or its run was of other songs.
    """
    started = time.time()
    named, model = os.fspath(output), find_model(model)
    output = Path(os.path.abspath(named))
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not overwrite:
        raise TrainingError(f"{output} exists: give another --output, or --overwrite", "training.output")
    tokenizer, remarks = load_tokenizer(model)
    songs, skipped = read_songs(files)
    if len(songs) < LEAST_SONGS and skipped:
        raise TrainingError(
            f"{len(songs)} of {len(songs) + len(skipped)} files can be used, fine-tuning needs {LEAST_SONGS} at least"
            f"; {skipped[0]['file']}: {skipped[0]['reason']}",
            "training.data",
        )
    parts = split_songs(songs, held_out, seed)
    work = output.with_name(output.name + ".run")
    _check_songs(work, parts, model)
    known = read_members(model) or {}
    seen = [song for song in parts["test"] if fingerprint(song.score) in known]
    if seen:
        remarks.append(f"{len(seen)} of the songs held out are among those that {model} was made with")
    bars = window_bars(parts["test"] + parts["validation"])
    recipe = _recipe(work, model, parts["train"], lora, passes, learning_rate, seed, overrides)
    data, arguments = recipe.data, recipe.training
    limit = AutoConfig.from_pretrained(model).max_position_embeddings
    windows = {name: encode_songs(tokenizer.vocabulary, parts[name], limit, bars) for name in ("validation", "test")}
    before = _score(model, tokenizer, windows["test"])
    trainer = pretrain_task.train(
        recipe,
        {"train": ScoreStore(parts["train"]), "validation": ScoreStore(parts["validation"])},
        windows["validation"] or None,
        tokenizer,
    )
    if not (work / "final").is_dir():
        raise TrainingError(f"interrupted; the same command goes on from {work}", "training.interrupted")
    steps = int(trainer.state.global_step)
    del trainer
    gc.collect()
    report = FinetuneReport(
        output=named,
        model=model,
        method=f"LoRA of rank {lora}, merged" if lora else "all weights",
        songs={name: [song.path for song in rows] for name, rows in parts.items()},
        skipped=skipped,
        steps=steps,
        tokens=steps * data.rows * data.row_length * arguments.gradient_accumulation_steps * arguments.world_size,
        minutes=0.0,
        bars=bars,
        notes=remarks,
    )
    after = _score(str(work / "final"), tokenizer, windows["test"])
    if windows["test"]:
        report.before = summarise(before, windows["test"])[CORPUS]
        report.after = summarise(after, windows["test"])[CORPUS]
        report.difference = summarise(after, windows["test"], against=before)[CORPUS]
    else:
        report.notes.append("no window of the held-out songs could be measured: they are too short")
    report.minutes = round((time.time() - started) / 60, 1)
    _ship(work, output, report)
    if not keep_run:
        shutil.rmtree(work)
    return report


def _check_songs(work: Path, parts: dict[str, list[Song]], model: str) -> None:
    """State the songs of a run and of the model it starts from, or compare them with those that it began with."""
    members = joined(members_of(parts), read_members(model))
    if holds_run(work) and read_members(work) != members:
        raise TrainingError(
            f"{work} holds an unfinished run on other songs: remove it, or give another --output",
            "training.output",
        )
    try:
        work.mkdir(parents=True, exist_ok=True)
        write_members(work, members)
    except OSError as error:
        raise TrainingError(f"cannot write {work}: {error.strerror or error}", "training.output") from None


def _recipe(work, model, songs, lora, passes, learning_rate, seed, overrides) -> Recipe:
    """The recipe of the package with what the call decides."""
    words = ["--output_dir", str(work), "--init", model, "--seed", str(seed), "--lora_rank", str(lora)]
    words += ["--learning_rate", str(learning_rate or RATES["lora" if lora else "full"])]
    config = AutoConfig.from_pretrained(model)
    if not torch.cuda.is_available():
        words += ["--use_cpu", "True"]
        if config.position_embedding_type == "rope":
            words += ["--attention", attention.NAME]
    words += ["--row_length", str(min(2048, config.max_position_embeddings))]
    recipe = parse_recipe(RECIPES / "finetune.yaml", [*words, *overrides], pretrain_task.KIND)
    data, arguments = recipe.data, recipe.training
    if not arguments.max_tokens and arguments.max_steps <= 0:
        scores = [song.score for song in songs]
        tokens = sum(3.3 * len(s.onset) + 1.4 * s.n_bars * s.n_tracks for s in scores)
        arguments.max_tokens = max(math.ceil(passes * tokens), 8 * data.rows * data.row_length)
    if "--eval_tokens" not in overrides:
        length = arguments.max_tokens or arguments.max_steps * data.rows * data.row_length
        arguments.eval_tokens = max(length // 6, 10 * data.rows * data.row_length)
    return recipe


def _score(model: str, tokenizer: MortmTokenizer, windows: list[Encoded]) -> np.ndarray:
    """`[n]` bits of the windows under a saved checkpoint, in fp32."""
    if not windows:
        return np.zeros(0)
    with without_bars():
        loaded = MortmForCausalLM.from_pretrained(model, dtype=torch.float32)
    if torch.cuda.is_available():
        loaded.cuda()
    return model_bits(loaded, windows, pad=tokenizer.pad_token_id)


def _ship(work: Path, output: Path, report: FinetuneReport) -> None:
    """`final/` with a card, the log and the figures -> `output`, in one rename."""
    staged = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(work / "final", staged)
    shutil.copy(work / "log.jsonl", staged / "finetune.log.jsonl")
    (staged / "finetune.json").write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
    (staged / "README.md").write_text(card(report), encoding="utf-8")
    if output.exists():
        shutil.rmtree(output)
    staged.rename(output)


def card(report: FinetuneReport) -> str:
    """The model card of a fine-tuned checkpoint."""
    base = Path(report.model).name if os.path.isdir(report.model) else report.model
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [music, midi, symbolic-music, mortm]",
        "---",
        f"# {Path(report.output).name}",
        "",
        f"The MORTM checkpoint `{base}`, trained further by `mortm finetune` ({report.method}).",
        "",
        "| | |",
        "|---|---|",
        f"| songs | {', '.join(f'{len(v)} {k}' for k, v in report.songs.items())} |",
        f"| tokens | {report.tokens} in {report.steps} steps |",
        f"| time | {report.minutes} minutes |",
    ]
    if report.after:
        b, a, d = report.before, report.after, report.difference
        lines += [
            f"| bits a note before | {in_words(b)} |",
            f"| bits a note after | {in_words(a)} |",
            f"| paired difference | {in_words(d, '+.3f')} |",
            "",
            f"Measured on {a['songs']} songs that took part in neither training nor selection: {a['windows']} windows "
            f"of {report.bars} given and {report.bars} new bars. Intervals: 95 %, by bootstrap over songs.",
        ]
    lines += [
        "",
        "Licence: that of the base checkpoint, and the rights in the songs it was trained on.",
        "",
        "```python",
        "from mortm_hf import pipeline",
        "",
        'pipe = pipeline("midi-generation", model=FOLDER)',
        'pipe("song.mid", bars=8)[0]["score"].dump_midi("new.mid")',
        "```",
    ]
    lines += [f"\nNote: {note}." for note in report.notes]
    return "\n".join(lines) + "\n"
