"""Upstream's token tables: equal, id by id and in order, to those that its releases write."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from mortm_hf.models.errors_mortm import VocabularyError
from mortm_hf.models.token_vocabulary import MetricVocabulary, TokenKind
from mortm_hf.models.upstream_vocabulary import PRESETS, VERSIONS, upstream_vocabulary


# All 34 published tables; equal ones are stored once: {"names": {"<version>_<flavour>": index}, "tables": [items]}.
DUMP = json.loads(
    gzip.decompress((Path(__file__).parents[1] / "fixtures" / "upstream_vocab" / "tables.json.gz").read_bytes())
)
TABLES = {name: DUMP["tables"][index] for name, index in DUMP["names"].items()}
HOLED = {"4.6.57_omega", "4.7_omega", "4.8.29_omega", "4.9_omega"}


def test_the_dump_holds_every_published_table():
    assert len(TABLES) == 34
    assert {name.partition("_")[0] for name in TABLES} == set(VERSIONS)
    assert HOLED < set(TABLES)


@pytest.mark.parametrize("name", sorted(set(TABLES) - HOLED))
def test_table_equals_upstreams(name):
    version, _, flavour = name.partition("_")
    assert [[t, i] for t, i in upstream_vocabulary(flavour, version).items()] == TABLES[name]
    assert f"{flavour}@{version}" in PRESETS


@pytest.mark.parametrize("name", sorted(HOLED))
def test_late_omega_is_refused_because_of_its_holes(name):
    version, _, flavour = name.partition("_")
    with pytest.raises(VocabularyError, match="holes") as error:
        upstream_vocabulary(flavour, version)
    assert error.value.code == "vocabulary.table"
    ids = {i for _, i in TABLES[name]}
    assert set(range(max(ids) + 1)) - ids == set(range(629, 637))  # the reason is true
    assert f"{flavour}@{version}" not in PRESETS


def test_every_preset_loads_and_presets_cover_every_usable_table():
    named = {p for p in PRESETS if "@" in p}
    published = {f"{flavour}@{version}" for version, _, flavour in (n.partition("_") for n in set(TABLES) - HOLED)}
    assert named == published
    for preset in PRESETS:
        assert len(upstream_vocabulary(preset)) > 500


@pytest.mark.parametrize(
    "flavour, version, size",
    [
        ("pro", None, 629),
        ("pro", "4.9", 694),
        ("pro", "4.8", 689),
        ("pro2", None, 757),
        ("omega", None, 637),
        ("bertm", None, 632),
        ("bertm", "4.0", 522),
        ("base", None, 624),
        ("melody_only", None, 557),
        ("melody_only_research45", None, 561),
    ],
)
def test_defaults_and_short_versions(flavour, version, size):
    table = upstream_vocabulary(flavour, version)
    assert len(table) == size and max(table.values()) == size - 1


def test_colliding_ids_of_base_resolve_to_the_first_name():
    vocabulary = MetricVocabulary(upstream_vocabulary("base"))
    assert vocabulary.tokens[619] == "k_Abm" and vocabulary.tokens[620] == "k_Bbm"
    assert vocabulary["<QUERY_CROSS>"] == 619 and vocabulary["</QUERY_CROSS>"] == 620
    assert vocabulary.kind[619] == TokenKind.KEY
    assert [i for i, token in enumerate(vocabulary.tokens) if not token] == [592, 609]


def test_meanings_of_pro2():
    vocabulary = MetricVocabulary(upstream_vocabulary("pro2"))
    velocity = vocabulary.lookup(TokenKind.VELOCITY)
    assert (velocity == np.arange(626, 754)).all()
    assert vocabulary.id(TokenKind.TRACK_END) == 754 and vocabulary.id(TokenKind.END) == 755


@pytest.mark.parametrize(
    "flavour, version",
    [("prolix", None), ("pro", "4.6"), ("pro", "3.0"), ("pro2", "4.9"), ("base", "4.9"), ("", None)],
)
def test_unknown_tables_are_named_in_the_error(flavour, version):
    with pytest.raises(VocabularyError) as error:
        upstream_vocabulary(flavour, version)
    assert error.value.code == "vocabulary.table"


def test_a_table_is_a_copy():
    upstream_vocabulary("pro").clear()
    assert len(upstream_vocabulary("pro")) == 629
