"""Prompts: the first bars of songs, to be continued by a fixed number of bars.

Design decisions
- One prompt a song, from its first sounding bar on, so that no song weighs more than another; the corpora take turns,
  so that none weighs more either.
- A prompt is built by the same function as training examples; its header states everything but the density (which is
  derived from the answer), so that what must be generated can be read back from the ids alone.
- Reinforcement learning pays for every token of the longest prompt and answer of a batch: both are bounded. A song
  whose first bars do not fit gives fewer of them, and is left out, with the reason, where not even one fits.

Knows: songs, the prompt builder, the grammar's shortest answer. Must not know: models, TRL, rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...data.score_store import ScoreStore
from ...models.errors_mortm import RlmfError
from ...models.music_names import GENRES
from ...models.prompt_building import training_example
from ...models.token_headers import FROM_ANSWER
from .grammar_masks import GrammarMasks


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        ids: `[n]` int64, ending with `<MGEN>`. answer: `[m]` int64, what the song goes on with, ending with `<TE>`.
        path, corpus, cluster: of the song. start: first bar that is generated; bars: how many.
    """

    ids: np.ndarray
    answer: np.ndarray
    path: str
    corpus: str
    cluster: str
    start: int
    bars: int


@dataclass
class PromptRecipe:
    """How prompts are cut.

    Attributes:
        past, bars: bars given at most, and bars to generate. tracks: the first so many sounding tracks; 0: all.
        least_tracks: songs of fewer give no prompt.
        prompt_length, response_length: most tokens of each. chords: give the song's chords where it has them.
    """

    past: int = 4
    bars: int = 2
    tracks: int = 1
    least_tracks: int = 1
    prompt_length: int = 128
    response_length: int = 96
    chords: bool = False


def song_prompt(song, tokenizer, recipe: PromptRecipe, masks: GrammarMasks) -> Prompt:
    """The prompt of one song (of a `ScoreStore`).

    Raises:
        ValueError: it has none; the message says why.
    """
    score = song.score
    sounding = np.flatnonzero(np.bincount(score.bar_of_notes(), minlength=score.n_bars))
    first = int(sounding[0]) if len(sounding) else 0
    middle = first + recipe.past
    if middle + recipe.bars > score.n_bars:
        raise ValueError(f"{score.n_bars - first} bars from the first note on, {recipe.past + recipe.bars} are needed")
    tracks = np.intersect1d(
        score.window(first, middle).sounding_tracks(), score.window(middle, middle + recipe.bars).sounding_tracks()
    )
    if recipe.tracks:
        tracks = tracks[: recipe.tracks]
    if len(tracks) < max(recipe.least_tracks, 1):
        raise ValueError(f"{len(tracks)} tracks sound both before and after, {recipe.least_tracks} are needed")
    genres = (GENRES.index(song.genre),) if song.genre else ()
    reason = "too long"
    for past in range(recipe.past, 0, -1):
        ids, answer = training_example(
            tokenizer.vocabulary,
            score,
            middle,
            recipe.bars,
            past_bars=past,
            targets=tracks,
            genres=genres,
            chords=recipe.chords and score.chords is not None,
            omit=FROM_ANSWER,
        )
        prompt = ids[:answer].astype(np.int64)
        if len(prompt) > recipe.prompt_length:
            reason = f"the prompt takes {len(prompt)} tokens of {recipe.prompt_length} with {past} bars"
            continue
        shortest = masks.shortest(prompt)
        if shortest > recipe.response_length:
            raise ValueError(f"the shortest answer takes {shortest} tokens of {recipe.response_length}")
        text = ids[answer:].astype(np.int64)
        return Prompt(prompt, text, song.path, song.corpus, song.cluster, middle, recipe.bars)
    raise ValueError(reason)


def first_bar_prompts(
    store: ScoreStore, tokenizer, recipe: PromptRecipe, limit: int = 0
) -> tuple[list[Prompt], list[tuple[str, str]]]:
    """The prompts of a store, the corpora in turn (while they last), and the songs left out with the reason.

    Args:
        limit: take at most so many; 0: all.
    """
    masks = GrammarMasks(tokenizer, len(tokenizer.vocabulary), recipe.response_length)
    found: dict[str, list[Prompt]] = {}
    skipped = []
    for song in store.songs:
        try:
            prompt = song_prompt(song, tokenizer, recipe, masks)
        except ValueError as error:
            skipped.append((song.path, str(error)))
            continue
        found.setdefault(prompt.corpus, []).append(prompt)
    return take_turns(list(found.values()), limit), skipped


def take_turns(groups: Sequence[Sequence[Prompt]], limit: int = 0) -> list[Prompt]:
    """One of each group after the other, evenly spread over a group that is longer than its turns."""
    count = sum(len(g) for g in groups)
    limit = min(limit or count, count)
    quota, left = [0] * len(groups), limit
    while left:
        for i, group in enumerate(groups):
            if left and quota[i] < len(group):
                quota[i] += 1
                left -= 1
    picked = [[g[i] for i in np.linspace(0, len(g) - 1, n).astype(int)] for g, n in zip(groups, quota)]
    turns = max(quota, default=0)
    return [rows[turn] for turn in range(turns) for rows in picked if turn < len(rows)]


def prompt_dataset(prompts: Sequence[Prompt], text: bool = False, tokenizer=None):
    """A `datasets.Dataset` of prompts: `input_ids`, or `prompt` (text) and `prompt_ids` for TRL's group trainers."""
    from datasets import Dataset

    if not prompts:
        raise RlmfError("no song gives a prompt: allow longer prompts or fewer bars", "rlmf.data")
    rows = [p.ids.tolist() for p in prompts]
    if text:
        words = [" ".join(tokenizer.convert_ids_to_tokens(r)) for r in rows]
        return Dataset.from_dict({"prompt": words, "prompt_ids": rows})
    return Dataset.from_dict({"input_ids": rows})


def left_padded(prompts: Sequence[Prompt], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """`[B, T]` int64 ids and bool mask of prompts, padded on the left."""
    width = max(len(p.ids) for p in prompts)
    mask = np.arange(width)[None] >= width - np.array([len(p.ids) for p in prompts])[:, None]
    ids = np.full(mask.shape, pad, dtype=np.int64)
    ids[mask] = np.concatenate([p.ids for p in prompts])
    return ids, mask
