"""Headers: what is stated of the music behind them, measured from music or thinned for training.

Design decisions
- A header is a dictionary from a control's word to its value; everything here loops over the rows of `token_controls`.
- What is asked for holds; what is not is measured from the music as far as it is known (`Described`).
- Training leaves controls out at random, so that every one of them is optional.

Knows: controls, quantised music. Must not know: ids, requests, models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .errors_mortm import PromptError
from .music_harmony import key_twins
from .music_names import KEY_NAMES
from .token_controls import Described, all_controls


CONTROLS = all_controls()
HEADER_FIELDS = tuple(control.name for control in CONTROLS)
FROM_ANSWER = tuple(control.name for control in CONTROLS if control.from_answer)  # prompts of test music omit them
TWIN_CHANCE = 0.15  # how often training spells a key as its enharmonic twin
# The first seven controls and the spelling of the key are drawn together, as they always were; later ones from a
# generator of their own, so that examples stay what they were when a control is added.
_FIRST_CONTROLS = 7


class Header(dict):
    """What stands in front of a generated field: `{name of a control: value}`; what is not stated is not there.

    Controls that repeat hold a tuple of values, controls of tracks a tuple with a value or None for each instrument.
    """

    @property
    def instruments(self) -> tuple[int, ...]:
        """INSTRUMENT values of the generated tracks; empty where they are not stated."""
        return self.get("instruments", ())

    @property
    def genres(self) -> tuple[int, ...]:
        """Stated GENRE values."""
        return self.get("genre", ())

    @property
    def key(self) -> str | None:
        """Name of the stated key (`"CM"`), or None."""
        return KEY_NAMES[self["key"]] if "key" in self else None


def describe(described: Described, stated: Mapping[str, Any] | None = None) -> Header:
    """The header of some music: what was asked for, else what can be measured.

    Args:
        described: the music.
        stated: values by name of the control that hold whatever the music says (of `Control.read`; None: measure it).
    """
    header = Header()
    for control in CONTROLS:
        value = None if stated is None else stated.get(control.name)
        if value is None:
            value = control.measure(described)
        if value is not None:
            header[control.name] = value
    return header


def without(header: Header, omit: Sequence[str]) -> Header:
    """A header without some controls; those of tracks go with the instruments.

    Args:
        header: what is stated.
        omit: names of controls.
    """
    gone = set(omit)
    if "instruments" in gone:
        gone |= {control.name for control in CONTROLS if control.level == "track"}
    return Header({name: value for name, value in header.items() if name not in gone})


def thinned(
    header: Header,
    drop: float | Mapping[str, float],
    omit: Sequence[str] = (),
    rng: np.random.Generator | None = None,
) -> Header:
    """A header as training writes it: controls left out at random, keys now and then spelled as their twin.

    Args:
        header: all that is known.
        drop: chance with which each control is left out: one number, or by name.
        omit: names of controls that are always left out.
        rng: where the chances are drawn; None: nothing is drawn.

    Raises:
        PromptError: `drop` or `omit` names no control, or there are chances and no `rng`.
    """
    by_name = isinstance(drop, Mapping)
    unknown = (set(omit) | set(drop if by_name else ())) - set(HEADER_FIELDS)
    if unknown:
        raise PromptError(f"no header field {', '.join(sorted(unknown))}: there are {', '.join(HEADER_FIELDS)}")
    if rng is None:
        if drop:
            raise PromptError("drop needs a random generator: pass rng (or name fixed fields in omit)")
        return without(header, omit)
    chance = [float(drop.get(name, 0.0) if by_name else drop) for name in HEADER_FIELDS]
    *draw, twin = rng.random(_FIRST_CONTROLS + 1).tolist()
    if len(HEADER_FIELDS) > _FIRST_CONTROLS:
        draw += np.random.default_rng(int(twin * 2**53)).random(len(HEADER_FIELDS) - _FIRST_CONTROLS).tolist()
    gone = {*omit, *(name for name, x, p in zip(HEADER_FIELDS, draw, chance) if x < p)}
    if header.key is not None and twin < TWIN_CHANCE:
        header = Header(header, key=KEY_NAMES.index(key_twins(header.key)[-1]))
    return without(header, gone)
