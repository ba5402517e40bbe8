"""From MIDI to training documents: data sets of songs, tasks and windows, packed rows.

Names are loaded when they are first used: a process that only reads MIDI never loads torch.

Knows: MIDI files and labels, the token language through `mortm_hf.models`. Must not know: training, evaluation.
"""

from __future__ import annotations

import importlib


_PUBLIC = {
    "build": ("build_dataset",),
    "dataset": ("dataset_card", "open_dataset", "push_dataset"),
    ".models.errors_mortm": ("DataError",),
    "examples": ("ExampleRecipe", "ExampleSource"),
    "fixed_examples": ("FixedPacks", "materialize"),
    "chord_recogniser": ("estimate_chords",),
    "song_statistics": ("dataset_stats",),
    "manifest": ("CorpusFilter", "Selection", "SongFile", "read_archive", "read_manifest"),
    "packing": ("Document", "PackDataset", "pack_rows", "single_pack"),
    "song_reading": ("read_song",),
    "schema": ("Song", "SongRows"),
    "open": ("build_store", "open_split", "read_songs"),
    "score_store": ("ScoreStore", "load_songs"),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [*_MODULE_OF]


def __getattr__(name: str):
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
