"""`mortm generate`: new bars for a MIDI file, or music from nothing.

Design decisions
- The options are the words of `mortm_hf.pipeline("midi-generation")`, the rows of `token_controls` among them; one
  that is not given is not passed on, so the defaults are the pipeline's own.
- What can fail early fails early: outputs and soundfont are checked before the model is loaded; all files of a run
  appear together at its end.

Knows: the pipeline's call. Must not know: prompts, tokens, sampling.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from ..bundled import find_model
from ..models.errors_mortm import CommandError
from ..models.token_headers import CONTROLS
from ..training.library_calls import refused_as, without_bars
from .files import Outputs
from .options import at_least, chords, given, names, number, one_or_each, span, suffixed


EXAMPLES = """examples:
  mortm generate song.mid -o longer.mid --bars 8                  eight more bars
  mortm generate song.mid -o new.mid --start 16 --wav --png       go on from bar 16, with sound and a picture
  mortm generate song.mid -o new.mid --infill 8:12                rewrite bars 8 to 11, the rest untouched
  mortm generate song.mid -o new.mid --start 0 --tracks 0 --instruments bass,drums     accompany track 0
  mortm generate -o idea.mid --bars 8 --instruments piano,drums --key "C major" --chords "C Am F G" --tempo 96
  mortm generate song.mid -o take.mid --num 4 --seed 1            take-1.mid to take-4.mid

Bars and tracks count from 0. Instruments are General MIDI names, families or numbers."""

# the options that are words of the pipeline's call
REQUEST = ("start", "infill", "tracks", "past", "future", "chords", "velocity", "pitch_range", "scale", "window")
REQUEST += ("new_bars_only", *(control.name for control in CONTROLS))
REQUEST += ("seed", "temperature", "top_p", "top_k", "fast")


def add_command(commands) -> None:
    """Adds `generate` to the parser's commands."""
    parser = commands.add_parser(
        "generate",
        description="Generates new bars for a MIDI file, or music from nothing.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("input", nargs="?", type=Path, help="MIDI file to work on; none: music from nothing")
    add("-o", "--output", required=True, type=suffixed(".mid", ".midi"), help="MIDI file to write")

    music = parser.add_argument_group("the music")
    add = music.add_argument
    kinds = {"text": str, "names": names, "count": at_least(1), "number": number(0)}
    for control in CONTROLS:
        option = "--" + control.name.replace("_", "-")
        kind = kinds[control.option]
        kind = one_or_each(kind) if control.level == "track" else kind
        add(option, type=kind, metavar=control.metavar, help=control.help)
    place = music.add_mutually_exclusive_group().add_argument
    place("--start", type=at_least(0), metavar="BAR", help="first new bar (default: after the last)")
    place("--infill", type=span, metavar="A:B", help="rewrite bars A to B - 1 and keep the rest")
    add("--tracks", type=names, help="tracks of the file to keep and play along with: numbers or names")
    add("--past", type=at_least(0), metavar="N", help="bars before the new ones to listen to (default: 8)")
    add("--future", type=at_least(0), metavar="N", help="bars after the rewritten ones (default: 4)")
    add("--chords", type=chords, help='one a bar, repeating, e.g. "C Am F G", or a file of the song\'s')
    add(
        "--velocity", action=argparse.BooleanOptionalAction, default=None, help="write loudness (default: as the file)"
    )
    add("--pitch-range", type=span, metavar="A:B", help="lowest and highest MIDI pitch, e.g. 48:72")
    add("--scale", help='only notes of this key, e.g. "C major"')
    add("--window", type=at_least(1), metavar="N", help="bars written at a time (default: 8)")
    add("--new-bars-only", action="store_true", default=None, help="write only the new bars of the new tracks")

    add = parser.add_argument_group("sampling").add_argument
    add("--num", type=at_least(1), default=1, metavar="N", help="how many versions (default: 1)")
    add("--seed", type=at_least(0), help="the same seed gives the same music")
    add("--temperature", type=number(0), help="above 1 bolder, below 1 safer (default: 1)")
    add("--top-p", type=number(0, 1), help="draw from tokens of this total probability (default: 0.95)")
    add("--top-k", type=at_least(1), help="draw from this many likeliest tokens")
    add(
        "--fast",
        choices=("fp32", "int8"),
        help="decode on the CPU in less time: fp32 gives the same music, int8 rounds the weights and takes least",
    )
    add("--model", help="folder, run, bundled name or repository (default: mortm-small)")

    add = parser.add_argument_group("further outputs, beside OUTPUT").add_argument
    add("--wav", action="store_true", help="sound")
    add("--png", action="store_true", help="piano roll, new bars shaded")
    add("--soundfont", type=Path, metavar="FILE", help="SF2 or SF3 bank (default: pretty_midi's)")
    add("--json", type=Path, metavar="FILE", help="figures of the run, and the token ids")
    parser.set_defaults(run=run)


def output_paths(output: Path, number_of: int) -> list[Path]:
    """`take.mid` for one version, `take-1.mid` ... for several.

    Args:
        output: the file that was named.
        number_of: how many versions.
    """
    if number_of == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{index + 1}") for index in range(number_of)]


def load_pipeline(model: str | None, device: str | None = None):
    """The generation pipeline of a checkpoint on the installed code.

    Args:
        model: folder or repository; None: the bundled one.
        device: device of torch; None: an accelerator if there is one.

    Raises:
        CommandError: it cannot be loaded (`command.input`).
    """
    from mortm_hf import pipeline

    with refused_as(f"cannot load a model from {model}", CommandError, "command.input"), without_bars():
        return pipeline("midi-generation", model=model, **({} if device is None else {"device": device}))


def run(args: argparse.Namespace) -> None:
    """Generates and writes everything asked for; prints the paths.

    Raises:
        MortmError: bad options, files or requests.
    """
    from ..data.synthesis import find_soundfont
    from ..models.midi_files import OpenedMidi, open_midi
    from ..models.prompt_words import check_words
    from .rendering import draw_piano_roll, render_wav, require_matplotlib

    args.model = args.model and find_model(args.model)
    if args.infill and args.bars is not None and args.bars != args.infill[1] - args.infill[0]:
        raise CommandError(f"--infill {args.infill[0]}:{args.infill[1]} says how many bars; leave out --bars")
    works_on = (args.infill, args.start, args.tracks, args.past)
    if args.input is None and any(word is not None for word in works_on):
        raise CommandError("--start, --infill, --tracks and --past need a MIDI file to work on")
    soundfont = find_soundfont(args.soundfont) if args.wav or args.soundfont else None
    if args.png:
        require_matplotlib()
    # before a model is loaded
    song = None if args.input is None else OpenedMidi(*open_midi(args.input))
    check_words(**given(args, REQUEST))

    paths = output_paths(args.output, args.num)
    with Outputs([args.input] if args.input else [], args.json) as out:
        staged = [out.stage(path) for path in paths]
        sounds = [out.stage(path.with_suffix(".wav")) for path in paths] if args.wav else []
        pictures = [out.stage(path.with_suffix(".png")) for path in paths] if args.png else []

        request = given(args, REQUEST)
        if args.tracks:
            request["tracks"] = [int(name) if name.isdigit() else name for name in args.tracks]
        pipe = load_pipeline(args.model, "cpu" if args.fast else None)
        progress = {"progress": sys.stderr.isatty()}
        began = time.perf_counter()
        results = pipe(song, num_return_sequences=args.num, **progress, **request)
        seconds = time.perf_counter() - began

        for target, result in zip(staged, results):
            target.write_bytes(result["midi"])
        for target, result in zip(sounds, results):
            render_wav(result["score"], target, soundfont)
        for target, path, result in zip(pictures, paths, results):
            new = None if args.new_bars_only else tuple(result["bars"])
            draw_piano_roll(result["score"], target, highlight=new, title=path.name)
        out.report(_figures(args, paths, results, request, seconds))
    suffixes = [suffix for suffix, asked in ((".wav", args.wav), (".png", args.png)) if asked]
    for path in paths:
        print(", ".join(map(str, [path, *map(path.with_suffix, suffixes)])))
    # what was left out of the prompt and the like, once for all versions
    for note in dict.fromkeys(note for result in results for note in result["report"]["notes"]):
        print(f"note: {note}", file=sys.stderr)


def _figures(args, paths, results, request, seconds) -> dict:
    """What `--json` writes."""
    made = sum(sum(result["report"]["generated_tokens"]) for result in results)
    return {
        "input": str(args.input) if args.input else None,
        "model": args.model,
        "request": request,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(made / seconds, 1),
        "outputs": [
            {
                **result["report"],
                "file": str(path),
                "bars": list(result["bars"]),
                "tracks": [{"name": track.name, "notes": len(track.notes)} for track in result["score"].tracks],
                "token_ids": {part: result["token_ids"][part] for part in ("prompt", "generated")},
            }
            for path, result in zip(paths, results)
        ],
    }
