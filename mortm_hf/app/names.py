"""Names for people: instruments, drums, keys.

Knows the General MIDI percussion map. Must not know: files, models.
"""

from __future__ import annotations

from ..models.music_instruments import instrument_name


__all__ = ["drum_name", "instrument_name", "key_name"]

# General MIDI level 1 percussion map, from key 35
_DRUMS = (
    "Kick 2|Kick|Side stick|Snare|Clap|Snare 2|Low floor tom|Hi-hat|High floor tom|Pedal hat|Low tom|Open hat|"
    "Low-mid tom|High-mid tom|Crash|High tom|Ride|China|Ride bell|Tambourine|Splash|Cowbell|Crash 2|Vibraslap|"
    "Ride 2|High bongo|Low bongo|Mute conga|High conga|Low conga|High timbale|Low timbale|High agogo|Low agogo|"
    "Cabasa|Maracas|Short whistle|Long whistle|Short guiro|Long guiro|Claves|High block|Low block|Mute cuica|"
    "Open cuica|Mute triangle|Triangle"
).split("|")


def drum_name(key: int) -> str:
    """`38` -> `"Snare"`; keys outside the map give `"Drum 22"`."""
    return _DRUMS[key - 35] if 35 <= key < 35 + len(_DRUMS) else f"Drum {key}"


def key_name(token: str) -> str:
    """`"CM"` -> `"C major"`, `"F#m"` -> `"F# minor"` (a key token's name without `k_`)."""
    if token[-1:] in ("M", "m"):
        return f"{token[:-1]} {'major' if token[-1] == 'M' else 'minor'}"
    return token
