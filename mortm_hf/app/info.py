"""`mortm info`: what a MIDI file holds, as the model will see it.

Knows: the codec and the key estimate. Must not know: models.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from .files import Outputs


EXAMPLES = """examples:
  mortm info song.mid
  mortm info song.mid --json song.json

Bars and tracks count from 0, as in every other command."""

_PITCHES = "C C# D Eb E F F# G Ab A Bb B".split()
_QUANTISED = ("duplicates", "zero_length", "clipped", "cut_bars", "ignored_meters")


def add_command(commands) -> None:
    """Adds `info` to the parser's commands."""
    parser = commands.add_parser(
        "info",
        description="Shows what a MIDI file holds: bars, meters, tempo, key, tracks and notes.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("input", type=Path, help="MIDI file")
    add("--json", type=Path, metavar="FILE", help="write everything to a JSON file as well")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the summary.

    Raises:
        MidiError: unreadable or empty file.
    """
    with Outputs([args.input], args.json) as out:
        facts = describe(args.input)
        out.report(facts)
    _print(facts)


def describe(midi) -> dict:
    """The facts about a MIDI file as plain JSON types.

    Args:
        midi: path, bytes or `symusic.Score`.

    Raises:
        MidiError: unreadable or empty input.
    """
    from ..models.midi_files import open_midi
    from ..models.music_harmony import estimate_key
    from ..models.music_instruments import instrument_name
    from ..models.music_names import DRUMS, METERS
    from .names import key_name

    score, music = open_midi(midi)
    changes = np.flatnonzero(np.append(True, music.bars.meter[1:] != music.bars.meter[:-1]))
    ends = np.append(changes[1:], music.n_bars)
    # ties in time: the last event holds
    tempi = [qpm for _, qpm in sorted({t.time: round(float(t.qpm), 2) for t in score.tempos}.items())]
    key = music.key if music.key not in (None, "Unknown") else None
    shown_key = key or estimate_key(music)  # None where only drums play
    tracks = []
    for index in music.sounding_tracks().tolist():
        own = music.track == index
        pitch, drums = music.pitch[own], int(music.programs[index]) == DRUMS
        tracks.append(
            {
                "track": index,
                "name": music.names[index] if index < len(music.names) else "",
                "instrument": instrument_name(int(music.programs[index])),
                "program": None if drums else int(music.programs[index]),
                "notes": int(own.sum()),
                "lowest": None if drums else _pitch_name(int(pitch.min())),
                "highest": None if drums else _pitch_name(int(pitch.max())),
            }
        )
    return {
        "file": str(midi) if isinstance(midi, str | Path) else None,
        "bars": music.n_bars,
        "seconds": round(float(score.to("second").end()), 2),
        "meters": [
            {"bar": int(bar), "bars": int(end - bar), "meter": "{}/{}".format(*METERS[music.bars.meter[bar]])}
            for bar, end in zip(changes, ends)
        ],
        "irregular_bars": np.flatnonzero(music.bars.irregular).tolist(),
        "tempo": {
            "first": tempi[0] if tempi else None,
            "lowest": min(tempi, default=None),
            "highest": max(tempi, default=None),
            "events": len(tempi),
        },
        "key": key_name(shown_key) if shown_key else None,
        "key_from": "file" if key else "estimate",
        "notes": music.n_notes,
        "tracks": tracks,
        "quantised": {name: getattr(music.report, name) for name in _QUANTISED},
    }


def _pitch_name(pitch: int) -> str:
    return f"{_PITCHES[pitch % 12]}{pitch // 12 - 1}"


def _print(facts: dict) -> None:
    minutes, seconds = divmod(round(facts["seconds"]), 60)
    meters = facts["meters"]
    shown = ", ".join(f"{m['meter']} x {m['bars']}" for m in meters[:6]) + (" ..." if len(meters) > 6 else "")
    tempo = facts["tempo"]
    if tempo["first"] is None:
        pace = "not given (120 is assumed)"
    else:
        pace = f"{tempo['first']:g}"
        if tempo["events"] > 1:
            pace += f" ({tempo['events']} events, {tempo['lowest']:g} to {tempo['highest']:g})"
    odd = len(facts["irregular_bars"])
    print(facts["file"])
    print(f"  bars    {facts['bars']} ({shown})" + (f", {odd} of irregular length" if odd else ""))
    print(f"  length  {minutes}:{seconds:02d}")
    print(f"  tempo   {pace}")
    print(f"  key     {facts['key'] or 'none'}" + (" (estimated)" if facts["key_from"] == "estimate" else ""))
    print(f"  notes   {facts['notes']} in {len(facts['tracks'])} tracks")
    for track in facts["tracks"]:
        span = f"{track['lowest']} to {track['highest']}" if track["lowest"] else ""
        program = "" if track["program"] is None else f"{track['program']:>3}"
        print(
            f"  {track['track']:>5}  {track['name'][:22]:<22}  {program:>3} {track['instrument'][:26]:<26}"
            f"  {track['notes']:>6} notes  {span}".rstrip()
        )
    changed = {name.replace("_", " "): count for name, count in facts["quantised"].items() if count}
    if changed:
        print("  changed " + ", ".join(f"{count} {name}" for name, count in changed.items()))
