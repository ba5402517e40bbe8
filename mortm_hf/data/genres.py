"""Corpus labels -> `<GENRE_x>` tokens.

Design decisions
- A small published table and the vocabulary's own names instead of string guessing: a label that is neither carries no
  genre token.
- Keyed by (genre, subgenre) first, then genre alone, so that the drum corpus keeps its styles.
- Only the spelling is forgiven: case, spaces, hyphens and underscores (`Hip-Hop` is `hiphop`).

Knows: the label names of the training pack and the vocabulary's genre names. Must not know: files, tokens' ids.
"""

from __future__ import annotations

from ..models.music_names import GENRES


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


def _plain(label: str) -> str:
    return "".join(label.lower().replace("-", " ").replace("_", " ").split())


def _style(subgenre: str) -> str:
    return subgenre.lower().split("|")[0].split("-")[0].strip()


_PLAIN_TABLE = {(_plain(genre), style): name for (genre, style), name in GENRE_TABLE.items()}


def genre_of(genre: str, subgenre: str = "") -> str | None:
    """Genre name of the vocabulary for a label, or `None` where neither the table nor the vocabulary has it.

    Args:
        genre: label of a song.
        subgenre: a closer label, such as the style of drumming.
    """
    label = _plain(genre)
    name = _PLAIN_TABLE.get((label, _style(subgenre))) or _PLAIN_TABLE.get((label, ""), label)
    return name if name in GENRES else None


def label_name(genre: str, subgenre: str = "") -> str:
    """The part of a label that `genre_of` reads, for a report: `polka`, or `drums/soul`.

    Args:
        genre: label of a song.
        subgenre: a closer label.
    """
    return "/".join(part for part in (genre, _style(subgenre)) if part)
