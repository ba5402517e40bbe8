"""Corpus labels -> `<GENRE_x>` tokens.

Design decisions
- A small published table instead of string guessing: a label without an entry carries no genre token.
- Keyed by (genre, subgenre) first, then genre alone, so that the drum corpus keeps its styles.

Knows: the label names of the training pack and the vocabulary's genre names. Must not know: files, tokens' ids.
"""

from __future__ import annotations

from ..models.metric_vocabulary import GENRES


# (genre, subgenre prefix) -> genre name of the vocabulary; "" matches every subgenre of that genre.
GENRE_TABLE: dict[tuple[str, str], str] = {
    ("pop", ""): "pop",
    ("jazz", ""): "jazz",
    ("folk", ""): "folk",
    ("classical", ""): "classical",
    ("classical-piano", ""): "classical",
    ("chorale", ""): "classical",
    ("baroque-other", ""): "classical",
    ("lied", ""): "classical",
    ("game", ""): "soundtrack",
    ("drums", "rock"): "rock",
    ("drums", "funk"): "funk",
    ("drums", "jazz"): "jazz",
    ("drums", "hiphop"): "hiphop",
    ("drums", "latin"): "latin",
    ("drums", "afrocuban"): "latin",
    ("drums", "pop"): "pop",
    ("drums", "dance"): "dance",
    ("drums", "punk"): "punkrock",
    ("drums", "reggae"): "reggae",
    ("drums", "country"): "country",
    ("drums", "blues"): "blues",
    ("drums", "afrobeat"): "world",
    ("drums", "highlife"): "world",
    ("drums", "middleeastern"): "world",
}


def genre_of(genre: str, subgenre: str = "") -> str | None:
    """Genre name of the vocabulary for a corpus label, or `None` where the table has no match."""
    style = subgenre.lower().split("|")[0].split("-")[0].strip()
    name = GENRE_TABLE.get((genre, style)) or GENRE_TABLE.get((genre, ""))
    return name if name in GENRES else None
