"""`mortm data`: MIDI -> a data set to train on; what is in it; pushing it to the Hub.

Design decisions
- `build` may be interrupted at any time and is taken up by the same command; a file that cannot be used is listed,
  never fatal.
- `stats` looks at a prepared data set, or prepares MIDI in a temporary folder first.

Knows: the functions of `mortm_hf.data`. Must not know: how any of them works.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from pathlib import Path

from ..models.errors_mortm import CommandError
from .files import Outputs, print_skipped
from .options import at_least, given, names, number


BUILD_EXAMPLES = """examples:
  mortm data build midi/ -o songs/                     every .mid, .midi and .kar below the folder, and in archives
  mortm data build collection.tar.xz -o songs/ --processes 4
  mortm data build ../shared/data -o songs/            a training pack: splits, keys, chords of its manifest.csv
  mortm data build sorted/ -o songs/ --split-from-folders      sorted/train/..., sorted/validation/..., sorted/test/...
  mortm data build owner/name -o songs/                a data set of the Hub with MIDI bytes
  mortm data build owner/name -o songs/ --config piano --revision v1.0
  mortm data build midi/ -o songs/ --materialize       also fixed examples as token ids, in songs/examples/

Interrupted? The same command goes on where it was. Labels (genre, key, split, ...) may stand in a metadata.csv with a
column file_name; genres are the names of the <GENRE_x> tokens (rock, Hip-Hop, ...). Chords may stand in a file beside
song.mid: song.aligned.chords.tsv or song.chords.tsv (MIDI ticks), song.chord_midi.txt, song.chords.txt or song.lab
(seconds); a bare chord_midi.txt belongs to the only MIDI file of its folder (POP909)."""

STATS_EXAMPLES = """examples:
  mortm data stats songs/ -o report/                   report.md, stats.json and plots of a prepared data set
  mortm data stats midi/                               the figures of a folder of MIDI, without keeping anything"""

PUSH_EXAMPLES = """examples:
  mortm data push songs/ owner/name --private
  python -c "from mortm_hf import load_songs; print(len(load_songs('owner/name', split='train')))"

Needs a token of the Hub (`hf auth login`)."""

# the options that are words of `build_dataset`
BUILD_OPTIONS = "chords split_from_folders seed column config revision overwrite materialize packs".split()


def add_command(commands) -> None:
    """Adds `data` with its own commands to the parser's commands."""
    parser = commands.add_parser(
        "data",
        description="Prepares MIDI for training, describes it, pushes it to the Hub.",
    )
    inner = parser.add_subparsers(metavar="COMMAND", required=True)
    for add_inner in (_add_build, _add_stats, _add_push):
        add_inner(inner)


def _add_build(inner) -> None:
    parser = inner.add_parser(
        "build",
        help="prepare MIDI as a data set",
        description="Reads MIDI and writes a data set of songs (Arrow). Files that cannot be used are skipped and "
        "listed.",
        epilog=BUILD_EXAMPLES,
    )
    add = parser.add_argument
    add("source", nargs="+", help="folders, archives, MIDI files, a training pack or owner/name")
    add("-o", "--output", required=True, type=Path, help="the folder to make")
    add(
        "--chords",
        choices=("estimate", "annotated", "none"),
        default="estimate",
        help="chords where no annotation gives them (default: estimate)",
    )
    add("--split-from-folders", action="store_true", help="folders named train, validation, test")
    add("--validation", type=number(-1e-9, 0.9), default=0.05, metavar="SHARE", help="of songs without a split (0.05)")
    add("--test", type=number(-1e-9, 0.9), default=0.05, metavar="SHARE", help="of songs without a split (0.05)")
    add("--seed", type=int, default=0, help="of the splits (default: 0)")
    add("--corpora", type=names, help="only these corpora of a training pack, e.g. pop909,lieder")
    add("--column", help="column of the MIDI bytes in a data set (default: found by name)")
    add("--config", metavar="NAME", help="configuration of a data set that has several")
    add("--revision", help="branch, tag or commit of a data set of the Hub (default: the newest)")
    add("--processes", type=at_least(1), help="default: one, or one a core from 2000 files on")
    add("--overwrite", action="store_true", help="replace a data set made of something else")
    add("--materialize", action="store_true", help="also draw examples once and keep their ids")
    add("--recipe", type=Path, metavar="YAML", help="data section that says how to draw them")
    add("--packs", type=at_least(1), help="packs of each split to keep (default: as the notes fill)")
    add("--json", type=Path, metavar="FILE", help="write counts and skipped files here")
    parser.set_defaults(run=run_build)


def _add_stats(inner) -> None:
    parser = inner.add_parser(
        "stats",
        help="describe a data set",
        description="Counts of bars, meters, keys, tempi, instruments, notes, tokens and skipped files, with plots.",
        epilog=STATS_EXAMPLES,
    )
    add = parser.add_argument
    add("source", help="a prepared data set, or anything that `mortm data build` takes")
    add("-o", "--output", type=Path, help="folder for report.md, stats.json and plots (.png)")
    add("--split", choices=("train", "validation", "test"), help="only this split")
    add("--windows", type=at_least(1), default=2000, help="windows to count tokens of (default: 2000)")
    add("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.set_defaults(run=run_stats)


def _add_push(inner) -> None:
    parser = inner.add_parser(
        "push",
        help="push a data set to the Hub",
        description="Pushes a prepared data set as Parquet with a card that states its content and licences.",
        epilog=PUSH_EXAMPLES,
    )
    add = parser.add_argument
    add("folder", type=Path, help="a prepared data set")
    add("repo", help="owner/name")
    add("--private", action="store_true", help="make the repository private")
    add("--title", help="title of the card (default: the name)")
    parser.set_defaults(run=run_push)


def run_build(args: argparse.Namespace) -> None:
    """Prepares; prints a summary, and the first skipped files on stderr."""
    build, dataset, manifest = (_module(name) for name in ("build", "dataset", "manifest"))
    if (args.recipe or args.packs) and not args.materialize:
        raise CommandError("--recipe and --packs say how to draw examples: they need --materialize")
    recipe = selection = None
    if args.corpora:
        selection = manifest.Selection({name: manifest.CorpusFilter() for name in args.corpora})
    if args.recipe:
        from ..training.tasks import read_data

        try:
            recipe = _call(read_data, args.recipe, ["--output_dir", str(args.output)])
        except ValueError as error:
            raise CommandError(str(error)) from None
    with Outputs(json=args.json) as out:
        made = _call(
            build.build_dataset,
            args.source if len(args.source) > 1 else args.source[0],
            args.output,
            selection=selection,
            shares=(max(args.validation, 0.0), max(args.test, 0.0)),
            num_proc=args.processes,
            recipe=recipe,
            **given(args, BUILD_OPTIONS),
        )
        report = dataset.read_report(args.output)
        out.report({k: v for k, v in report.items() if k not in ("version", "digest", "plan")})
    for name, part in report["splits"].items():
        chords = ", ".join(f"{count} {source}" for source, count in part["chords"].items())
        print(f"{name}: {part['songs']} songs, {part['bars']} bars, {part['notes']} notes; chords: {chords}")
    skipped = report["skipped"]
    for problem in skipped[:5]:
        print_skipped(problem["file"], problem["message"])
    if len(skipped) > 5:
        print(f"skipped: {len(skipped) - 5} more, all listed in {args.output / 'skipped.csv'}", file=sys.stderr)
    _print_ineffective(report)
    if args.materialize:
        for split, part in made.items():
            tokens = sum(len(chunk.flatten()) for chunk in part.data.table["input_ids"].chunks)
            print(f"{args.output / 'examples' / split}: {part.num_rows} rows, {tokens} tokens")
    print(f"{args.output}: {report['files']} files, {len(skipped)} skipped")


def _print_ineffective(report: dict) -> None:
    """A line on stderr for each kind of label that had no effect, or a bad one."""
    rows, splits = report["metadata_without_file"], report["splits"]
    first = _and_more(rows["first"], rows["rows"])
    genres = [f"{name} ({count})" for name, count in report["genres_without_token"].items()]
    copies = ["; ".join(found) for found in report.get("copies_across_splits", ())]
    empty = ", ".join(split for split in ("train", "validation", "test") if split not in splits)
    for wrong, line in (
        (genres, f"genres without a token: {_and_more(genres[:5], len(genres))}"),
        (
            rows["rows"],
            f"metadata rows without a MIDI file: {rows['rows']} ({first})",
        ),
        (copies, f"copies of a song in several splits (label them alike): {_and_more(copies[:2], len(copies))}"),
        (empty, f"no song for {empty}: a metadata.csv names them, --validation and --test draw"),
    ):
        if wrong:
            print(line, file=sys.stderr)


def _and_more(first: list[str], count: int) -> str:
    return ", ".join([*first, f"{count - len(first)} more"] if count > len(first) else first)


def run_stats(args: argparse.Namespace) -> None:
    """Counts; prints the Markdown report, writes report and plots with `-o`."""
    names = ("build", "dataset", "score_store", "sources", "song_statistics")
    build, dataset, songs, sources, stats = map(_module, names)
    if args.output and args.output.exists() and not args.output.is_dir():
        raise CommandError(f"{args.output} is a file: name a folder", "command.output")
    with Outputs(json=args.json) as out, tempfile.TemporaryDirectory() as temporary:
        folder, label = Path(args.source), args.source
        if sources.kind_of(folder) != "saved":
            folder = Path(temporary) / "songs"
            _call(build.build_dataset, args.source, folder, chords="annotated")
        store = _call(songs.load_songs, folder, args.split)
        skipped = _call(dataset.read_report, folder).get("skipped", [])
        figures = stats.dataset_stats(store, windows=args.windows, skipped=skipped)
        out.report(figures)
        if args.output:
            files = _call(stats.write_stats, figures, args.output, label)
            print(f"{args.output}: {', '.join(file.name for file in files)}")
        else:
            print(stats.markdown(figures, label))


def run_push(args: argparse.Namespace) -> None:
    """Pushes; prints the URL."""
    print(_call(_module("dataset").push_dataset, args.folder, args.repo, private=args.private, title=args.title))


def _module(name: str):
    """A module of the data package; what it needs may not be installed."""
    _call(importlib.import_module, "datasets")
    return _call(importlib.import_module, f"mortm_hf.data.{name}")


def _call(function, *args, **kwargs):
    """A function whose missing files and packages are the user's to mend."""
    try:
        return function(*args, **kwargs)
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise CommandError(what, "command.input") from None
    except json.JSONDecodeError as error:  # a report or an index that was cut short or edited
        raise CommandError(f"{args[0]} holds damaged JSON ({error}): build it again", "command.input") from None
    except ImportError as error:
        raise CommandError(
            f"{error}: `mortm data` needs more packages, pip install 'mortm_hf[train,app]'", "command.missing"
        ) from None
