"""What must never change for a user: ids of MIDI files, prompts of requests, by digests taken once and for all.

A difference here means that checkpoints read other tokens than they were trained on. Nothing depends on the processor:
no model runs. `tests/data/test_examples.py` pins the training stream, `test_token_vocabulary.py` the table itself.
"""

import hashlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np

from mortm_hf import MortmTokenizer


TESTS = Path(__file__).resolve().parent
FIXTURE = TESTS / "fixtures" / "unchanged.json"
WORDS = {
    "instruments": [["piano"], ["violin", "cello", "drums"], [0, 33, 128], None],
    "bars": [1, 4, 9],
    "key": [None, "F# minor", "Bb"],
    "meter": [None, "3/4", "7/8"],
    "tempo": [None, 63, 180.5],
    "genre": [None, "jazz", ["rock", "80s"]],
    "density": [None, 3],
    "chords": [None, "C Am F G", [("Dm7/G", 1, 0.5)]],
    "omit": [(), ("tempo", "key"), ("instruments",)],
}
PLACES = [{}, {"past": 4}, {"start": 5, "past": 3, "future": 2}, {"start": 4, "tracks": True, "past": 4}]


def digest(ids) -> str:
    return hashlib.sha256(np.asarray(ids, dtype="<i8").tobytes()).hexdigest()[:16]


def answer(function, *args, **words) -> str:
    try:
        return digest(function(*args, **words))
    except ValueError as error:
        return error.code


def found() -> dict[str, dict[str, str]]:
    """Digests of today's code, by file and by request."""
    tokenizer = MortmTokenizer()
    files = sorted([*TESTS.glob("fixtures/midi/*.mid"), *TESTS.glob("fixtures/robustness/*.mid")])
    ids = {file.name: answer(tokenizer.encode_midi, file) for file in files}
    songs = [None, *sorted(TESTS.glob("fixtures/midi/*.mid"))[:3]]
    rng, prompts = np.random.default_rng(0), {}
    choices = [range(len(options)) for options in WORDS.values()]
    drawn = rng.permutation(list(itertools.product(*choices)))[:400].tolist()
    for number, picks in enumerate(drawn):
        request = {word: options[pick] for (word, options), pick in zip(WORDS.items(), picks)}
        song, place = songs[number % len(songs)], PLACES[number // 4 % len(PLACES)]
        request |= {} if song is None else {"song": song, **place}
        prompts[str(number)] = answer(lambda words: tokenizer.encode_prompt(tokenizer.prompt(**words)), request)
    return {"ids": ids, "prompts": prompts}


def test_ids_and_prompts_are_what_they_were():
    kept, now = json.loads(FIXTURE.read_text()), found()
    assert set(kept["ids"]) <= set(now["ids"])
    for part, digests in kept.items():
        assert {name: now[part][name] for name in digests} == digests


if __name__ == "__main__":  # prints the digests of the code that is imported
    json.dump(found(), sys.stdout, indent=0)
