"""`mortm eval`: a checkpoint, or a folder of generated MIDI files, measured against a test split.

Design decisions
- One command gives every figure with its baselines and the human figures; `--quick` gives them in minutes and says so.
- Finished parts and answers are kept in the report folder (`cache/`): a run that was cut off goes on, and asking for
  one part more does not repeat the others.
- The report (Markdown, JSON, pictures) appears when everything has succeeded; nothing half-written is left.

Knows: the evaluation suite, what it is given to measure on. Must not know: metrics, models' insides.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from ..bundled import find_model
from ..evaluation.eval_data import open_data
from ..models.errors_mortm import CommandError
from ..training.library_calls import refused_as, without_bars
from .files import Outputs, find_midi, write_json
from .options import at_least, given, number, require_packages


RECIPE = "starter"  # names the corpora and windows of a pack where no other is named
EXAMPLES = """examples:
  mortm eval mortm-small --data pack --quick                           every figure in minutes, roughly
  mortm eval runs/mine --data pack -o report                           the full report: Markdown, JSON, pictures
  mortm eval runs/mine --data pack --parts chords,control --json f.json
  mortm eval my_samples --data pack -o report                          a folder of MIDI files beside the test split
  mortm eval my-model --data my_songs -o report                        a fine-tuned model, on the songs it held out

FOLDER is a checkpoint, the name of a bundled one, the folder of a run (its `final/` is meant) or a folder of MIDI
files. DATA is a training pack (manifest.csv and archives), whose corpora and fixed windows a recipe names; a data set
of `mortm data build` or of the Hub; or any folder of MIDI files. What FOLDER was trained on is left out of it."""


def add_command(commands) -> None:
    """Adds `eval` to the parser's commands."""
    parser = commands.add_parser(
        "eval",
        description="Measures a checkpoint, or a folder of generated MIDI files, against a split of a data set.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("folder", metavar="FOLDER", type=Path, help="checkpoint folder, or folder of MIDI files")
    add("--data", required=True, type=Path, help="training pack, prepared data set, or MIDI folder")
    add("--split", choices=("train", "validation", "test"), help="default: test")
    add("--recipe", help="names corpora and fixed windows (default for a pack: starter)")
    add("--json", type=Path, metavar="FILE", help="write all figures here")
    add("-o", "--output", type=Path, metavar="DIR", help="write report.md, report.json and pictures here")

    add = parser.add_argument_group("how much").add_argument
    add("--quick", action="store_true", help="few samples and windows: minutes on one core")
    add("--parts", help="some of bits,grammar,control,music,chords (default: all)")
    add("--samples", type=at_least(2), metavar="N", help="samples a set (default: 200; quick: 12)")
    add(
        "--windows",
        dest="bits_windows",
        type=at_least(0),
        metavar="N",
        help="windows of each corpus for bits (0: all)",
    )
    add("--chord-songs", type=at_least(0), metavar="N", help="songs of each corpus for chords (0: all)")
    add("--batch", type=at_least(1), metavar="N", help="samples drawn together (default: 32)")

    add = parser.add_argument_group("sampling").add_argument
    add("--temperature", type=number(0), help="default: the model's")
    add("--top-p", type=number(0, 1), help="default: the model's")
    add("--min-p", type=number(0, 1), help="default: the model's")
    add("--seed", type=at_least(0), default=0, help="default: 0")

    add = parser.add_argument_group("machine").add_argument
    add("--threads", type=at_least(1), help="threads of torch")
    add("--device", default="cpu", help="e.g. cpu, cuda (default: cpu)")
    add("--cache", type=Path, metavar="DIR", help="keep songs and finished parts here (default: DIR/cache)")
    parser.set_defaults(run=run)


def read_parts(text: str | None) -> tuple[str, ...]:
    """`"bits,chords"` -> the parts asked for."""
    from ..evaluation.suite import PARTS

    if text is None:
        return PARTS
    asked = {part.strip() for part in text.split(",")} - {""}
    if not asked or asked - set(PARTS):
        raise CommandError(f"--parts takes {', '.join(PARTS)}, got {text!r}")
    return tuple(part for part in PARTS if part in asked)


def run(args: argparse.Namespace) -> None:
    """Measures, prints a summary and writes the report.

    Args:
        args: the parsed command line.

    Raises:
        CommandError: bad folders or options.
        DataError: bad data.
        TrainingError: no such recipe.
    """
    require_packages("mortm eval needs", ["mir_eval", "muspy", "scipy", "matplotlib"], "eval")
    import torch

    from ..evaluation.plots import draw_all
    from ..evaluation.report import markdown

    parts = read_parts(args.parts)
    args.folder = Path(find_model(args.folder))
    is_model = (args.folder / "config.json").is_file()
    if not args.folder.is_dir():
        raise CommandError(f"{args.folder} is no folder: give a checkpoint or a folder of MIDI files", "command.input")
    files = [] if is_model else find_midi([args.folder])
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.output is not None:
        try:
            args.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"cannot write to {args.output}: {error.strerror or error}", "command.output") from None
    cache = args.cache or (args.output / "cache" if args.output else None)
    with Outputs(json=args.json) as out:
        page, copy = (out.stage(args.output / f"report.{kind}") if args.output else None for kind in ("md", "json"))
        began = time.perf_counter()
        result = evaluate(args, parts, files, is_model, cache)
        result["about"]["seconds"] = round(time.perf_counter() - began)
        pictures = draw_all(result, lambda name: out.stage(args.output / name)) if args.output else []
        text = markdown(result, pictures)
        out.report(result)
        if args.output:
            page.write_text(text, encoding="utf-8")
            write_json(copy, result)
    print(text)
    if args.output:
        print(f"{args.output / 'report.md'}, {args.output / 'report.json'}, {len(pictures)} pictures")


def evaluate(args, parts, files, is_model: bool, cache) -> dict:
    """The figures, with `about`: what was measured, on what, how.

    Args:
        args: the parsed command line.
        parts: names of the parts.
        files: MIDI files, where no checkpoint is measured.
        is_model: whether a checkpoint is measured.
        cache: folder for songs and finished parts.
    """
    from .. import __version__
    from ..evaluation.model_answers import fingerprint
    from ..evaluation.suite import Evaluation, Settings, music_of_files
    from ..models.tokenization_mortm import MortmTokenizer

    asked = given(args, ("samples", "bits_windows", "chord_songs", "batch", "seed"))
    settings = (Settings.quick if args.quick else Settings)(**asked)
    progress = sys.stderr.isatty()
    data = open_songs(args.data, args.split, args.recipe, cache, args.folder if is_model else None)
    about = {
        "name": (args.folder.parent if args.folder.name == "final" else args.folder).resolve().name,
        "data": f"{args.data.name}, {data.name}: {len(data.songs)} songs, {len(data.windows)} windows",
        "kind": "quick look, not for publication" if args.quick else None,
        "seed": args.seed,
        "mortm_hf": __version__,
    }
    skipped = [list(entry) for entry in data.songs.skipped]
    if is_model:
        model, tokenizer = load_model(args.folder, args.device)
        settings = replace(settings, sampling=choose_sampling(model.generation_config, args))
        about |= {"checkpoint": fingerprint(args.folder), "sampling": str(settings.sampling)}
        about |= {"samples": f"{settings.samples} a set, 8 bars each"}
        suite = Evaluation(model, tokenizer, data, settings, about["checkpoint"], cache, progress)
        result = suite.run(parts)
    else:
        scores, unread = read_files(files)
        if not scores:
            raise CommandError(f"no MIDI file in {args.folder} can be read: {unread[0][1]}", "command.input")
        skipped += unread
        about |= {"files": f"{len(scores)} MIDI files ({len(unread)} could not be read)"}
        suite = Evaluation(None, MortmTokenizer(), data, settings, "", None, progress)
        result = {"music": music_of_files(scores, suite)}
    return {"about": about, **result, "skipped_files": skipped}


def open_songs(data: Path, split: str | None, recipe: str | None, cache: Path | None, model: Path | None):
    """What the command line names as `EvalData`: a recipe names corpora and windows, for a pack the starter's does.

    Args:
        data: `--data`.
        split: `--split`.
        recipe: `--recipe`; plain MIDI files need none.
        cache: folder for what is prepared.
        model: folder of the checkpoint that is measured, if it is one.

    Raises:
        CommandError: nothing there.
        DataError: as `open_data`.
        TrainingError: no such recipe.
    """
    from ..data.sources import kind_of
    from ..training.recipe import find_recipe
    from ..training.tasks import read_data

    kind, selection, listed = kind_of(str(data)), None, None
    if kind == "missing":
        raise CommandError(
            f"there is no folder {data}: give a training pack, a prepared data set or MIDI files", "command.input"
        )
    if kind == "pack":
        recipe = recipe or RECIPE
        windows = find_recipe(recipe).with_suffix(f".{split or 'test'}.csv")
        listed = windows if windows.is_file() else None
    if recipe and kind in ("pack", "saved", "hub"):
        selection = read_data(recipe).selection()
    return open_data(data, split, selection, listed, cache, model)


def read_files(files) -> tuple[list, list[list[str]]]:
    """The music of MIDI files.

    Args:
        files: paths.

    Returns:
        Quantised scores of the files that have notes, and `[path, reason]` of the others.
    """
    from ..models.midi_files import read_midi

    scores, unread = [], []
    for path in files:
        try:
            score = read_midi(path)
            if not score.n_notes:
                raise CommandError("it has no notes")
            scores.append(score)
        except ValueError as error:
            if not isinstance(getattr(error, "code", None), str):
                raise
            unread.append([str(path), " ".join(str(error).split())])
    return scores, unread


def choose_sampling(config, args):
    """The model's sampling, with what the command line gives instead; ours where neither gives anything.

    Args:
        config: generation configuration of the model.
        args: the parsed command line.
    """
    from ..evaluation.model_answers import Sampling
    from ..models.pipeline_mortm import SAMPLING_DEFAULTS

    names = ("temperature", "top_k", "top_p", "min_p", "typical_p")
    known = config.to_diff_dict()
    chosen = {**SAMPLING_DEFAULTS, **{n: known[n] for n in names if known.get(n) is not None}}
    chosen |= given(args, ("temperature", "top_p", "min_p"))
    return Sampling(**{n: chosen[n] for n in names if n in chosen})


def load_model(folder: Path, device: str):
    """Model (fp32) and tokenizer of a checkpoint folder, on the installed code.

    Args:
        folder: of the checkpoint.
        device: e.g. "cpu" or "cuda".

    Raises:
        CommandError: another kind of model, a damaged folder, or no such device.
    """
    import torch
    from transformers import AutoConfig

    from ..models.configuration_mortm import MortmConfig
    from ..models.modeling_mortm import MortmForCausalLM
    from ..models.tokenization_mortm import MortmTokenizer

    with refused_as(f"cannot load a model from {folder}", CommandError, "command.input"), without_bars():
        config = AutoConfig.from_pretrained(folder)
        if not isinstance(config, MortmConfig) or not config.is_causal:
            raise CommandError(
                f"{folder} holds a {config.model_type} model: mortm eval measures generators (MORTM)", "command.input"
            )
        tokenizer = MortmTokenizer.from_pretrained(folder)
        model = MortmForCausalLM.from_pretrained(folder, dtype=torch.float32)
    try:
        return model.eval().to(device), tokenizer
    except (RuntimeError, AssertionError) as error:
        raise CommandError(f"cannot use the device {device}: {' '.join(str(error).split())[:120]}") from None
