"""From MIDI to training documents: packs of archives, quantised stores, tasks and windows, packed rows.

Knows: MIDI files and labels, the token language through `mortm_hf.models`. Must not know: training, evaluation.
"""

from .examples import ExampleSource
from .manifest import CorpusFilter, Selection, SongFile, read_archive, read_manifest
from .packing import Document, PackDataset, pack_rows, single_pack
from .store import ScoreStore, Song, build_store, read_song


__all__ = [
    "CorpusFilter",
    "Document",
    "ExampleSource",
    "PackDataset",
    "ScoreStore",
    "Selection",
    "Song",
    "SongFile",
    "build_store",
    "pack_rows",
    "read_archive",
    "read_manifest",
    "read_song",
    "single_pack",
]
