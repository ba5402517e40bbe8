"""Small songs for the tests of data, training and evaluation: in memory, or as a pack of archives."""

import csv
import io
import tarfile

import numpy as np
import symusic

from mortm_hf.data.schema import Song
from mortm_hf.data.score_store import ScoreStore
from mortm_hf.models.midi_files import read_midi


def midi(seed: int, bars: int = 20, drums: bool = True) -> bytes:
    """A piece in 4/4: a melody, chords under it, drums; a 2/4 bar in the middle."""
    rng = np.random.default_rng(seed)
    score = symusic.Score(480)
    score.time_signatures.append(symusic.TimeSignature(0, 4, 4))
    score.time_signatures.append(symusic.TimeSignature(7 * 1920, 2, 4))
    score.time_signatures.append(symusic.TimeSignature(7 * 1920 + 960, 4, 4))
    score.tempos.append(symusic.Tempo(0, qpm=100 + seed % 20))
    melody = symusic.Track("melody", 73, False)
    piano = symusic.Track("piano", 0, False)
    kit = symusic.Track("kit", 0, True)
    for beat in range(4 * bars - 2):
        at = 480 * beat
        for part in range(2):
            if rng.random() < 0.7:
                pitch, velocity = int(rng.integers(60, 84)), int(rng.integers(40, 110))
                melody.notes.append(symusic.Note(at + 240 * part, 220, pitch, velocity))
        if beat % 2 == 0:
            root = int(rng.integers(40, 52))
            for step in (0, 4, 7):
                piano.notes.append(symusic.Note(at, 900, root + step, 64))
        kit.notes.append(symusic.Note(at, 60, 36 if beat % 2 == 0 else 38, int(rng.integers(30, 120))))
    for track in (melody, piano, *((kit,) if drums else ())):
        score.tracks.append(track)
    return score.dumps_midi()


def store(songs: int = 6, bars: int = 20) -> ScoreStore:
    """Two corpora of songs in memory; those of `lead` have chords."""
    from dataclasses import replace

    from mortm_hf.models.music_harmony import chord_values
    from mortm_hf.models.music_score import ChordTable

    made = []
    for seed in range(songs):
        score = read_midi(midi(seed, bars, drums=seed % 2 == 0))
        corpus = "band" if seed % 2 == 0 else "lead"
        if corpus == "lead":
            onset = np.arange(0, score.bars.end, 96)
            labels = [("C", "Am7", "F", "Bb/D")[i % 4] for i in range(len(onset))]
            score = replace(score, chords=ChordTable(onset, *chord_values(labels)), key="CM")
        made.append(Song(f"{corpus}/{seed}.mid", corpus, f"{seed}", f"{seed}", "train", "pop", score))
    return ScoreStore(made)


COLUMNS = (
    "path archive corpus genre subgenre split variant song_id cluster key licence n_notes n_bars annotations".split()
)


def write_pack(folder, rows: list[dict], files: dict[str, dict[str, bytes]]) -> None:
    """A training pack: `manifest.csv` and archives `{archive: {member: bytes}}`."""
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: row.get(name, "") for name in COLUMNS})
    for archive, members in files.items():
        with tarfile.open(folder / archive, "w:xz") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
