"""Soundfonts that symusic's synthesiser plays in tune.

Design decisions
- The synthesiser of symusic 0.5.9 takes a sample's root key and tuning from the sample's own header and ignores what
  an instrument says about them (SF2 generators `overridingRootKey`, `coarseTune`, `fineTune`). With TimGM6mb.sf2 that
  puts the piano up to four semitones off, by a different amount in every register.
- So the bank is rewritten once: every instrument zone that retunes a sample gets a copy of that sample's header with
  the tuning in it (headers are 46 bytes; the sound itself is not copied), and loses those generators.
- Whole arrays are rewritten; no Python loop runs over zones.

Source: SoundFont Technical Specification 2.04, sections 7 and 8. Knows: the SF2 format. Must not know: music.
"""

from __future__ import annotations

import struct

import numpy as np


_GENERATOR = np.dtype([("oper", "<u2"), ("amount", "<i2")])
_BAG = np.dtype([("generator", "<u2"), ("modulator", "<u2")])
_SAMPLE = np.dtype(
    [("name", "S20"), ("start", "<u4"), ("end", "<u4"), ("loop_start", "<u4"), ("loop_end", "<u4"), ("rate", "<u4")]
    + [("root", "u1"), ("correction", "i1"), ("link", "<u2"), ("type", "<u2")]
)
_COARSE, _FINE, _SAMPLE_ID, _ROOT = 51, 52, 53, 58
_UNUSED = 59  # players skip it


def in_tune(bank: bytes) -> bytes:
    """An SF2 bank -> the same bank with the tuning of its instrument zones moved into sample headers.

    Raises:
        ValueError: if the bytes are no SF2 bank.
    """
    try:
        return _in_tune(bank)
    except (struct.error, KeyError, IndexError) as error:
        raise ValueError(f"not a valid SF2 bank: {error}") from None


def _in_tune(bank: bytes) -> bytes:
    top = dict(_chunks(bank, 12, len(bank)))
    start, stop = top[b"pdta"]
    parts = {name: bank[a:b] for name, (a, b) in _chunks(bank, start, stop)}
    generators = np.frombuffer(parts[b"igen"], _GENERATOR).copy()
    samples = np.frombuffer(parts[b"shdr"], _SAMPLE)
    edges = np.frombuffer(parts[b"ibag"], _BAG)["generator"].astype(np.int64)
    inst = np.frombuffer(parts[b"inst"], np.dtype([("name", "S20"), ("bag", "<u2")]))

    # [zones] columns of what each zone says; a first zone without a sample is the default of its instrument's others
    n = len(edges) - 1
    zone = np.searchsorted(edges, np.arange(len(generators)), side="right") - 1
    own = {}
    for oper in (_COARSE, _FINE, _SAMPLE_ID, _ROOT):
        at = np.flatnonzero((generators["oper"] == oper) & (zone < n))
        own[oper] = np.full(n, -32768, dtype=np.int64)
        own[oper][zone[at]] = generators["amount"][at]
    first = inst["bag"].astype(np.int64)
    first = first[np.maximum(np.searchsorted(first, np.arange(n), side="right") - 1, 0)]
    playing = own[_SAMPLE_ID] != -32768

    def value(oper, otherwise):
        given = np.where(own[oper] == -32768, np.where(playing[first], -32768, own[oper][first]), own[oper])
        return np.where(given == -32768, otherwise, given)

    sample = np.where(playing, own[_SAMPLE_ID], 0) & 0xFFFF
    sample = np.minimum(sample, len(samples) - 1)
    root = value(_ROOT, -1)
    root = np.where((root < 0) | (root > 127), samples["root"][sample], root)
    # Sounding a semitone higher is having a root a semitone lower; what is left is a correction of -50 to 49 cents.
    cents = 100 * value(_COARSE, 0) + value(_FINE, 0) + samples["correction"][sample]
    semitones = np.floor_divide(cents + 50, 100)
    wanted = np.column_stack([sample, np.clip(root - semitones, 0, 127), cents - 100 * semitones])
    changed = playing & ((wanted[:, 1] != samples["root"][sample]) | (wanted[:, 2] != samples["correction"][sample]))
    if changed.any():
        fresh, index = np.unique(wanted[changed], axis=0, return_inverse=True)
        copies = samples[fresh[:, 0]].copy()
        copies["root"], copies["correction"] = fresh[:, 1], fresh[:, 2]
        copies["link"] = 0
        copies["type"] = np.where(copies["type"] & 0x8000, copies["type"], 1)
        at = np.full(n, -1, dtype=np.int64)
        at[changed] = len(samples) - 1 + index.reshape(-1)  # the last header is the terminator
        named = np.flatnonzero((generators["oper"] == _SAMPLE_ID) & (zone < n))
        named = named[at[zone[named]] >= 0]
        generators["amount"][named] = at[zone[named]].astype(np.uint16).view(np.int16)
        samples = np.concatenate([samples[:-1], copies, samples[-1:]])
    tuned = np.isin(generators["oper"], (_COARSE, _FINE, _ROOT))
    generators[tuned] = (_UNUSED, 0)
    parts |= {b"igen": generators.tobytes(), b"shdr": samples.tobytes()}

    body = b"pdta" + b"".join(_chunk(name, data) for name, data in parts.items())
    kept = [_chunk(b"LIST", name + bank[a:b]) for name, (a, b) in top.items() if name != b"pdta"]
    return _chunk(b"RIFF", b"sfbk" + b"".join(kept) + _chunk(b"LIST", body))


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) & 1)


def _chunks(data: bytes, start: int, stop: int):
    """`(name, (first, last))` of the chunks in `data[start:stop]`; a LIST goes by the name of what it lists."""
    while start + 8 <= stop:
        name, size = data[start : start + 4], struct.unpack_from("<I", data, start + 4)[0]
        first, last = start + 8, min(start + 8 + size, stop)
        yield (data[first : first + 4], (first + 4, last)) if name == b"LIST" else (name, (first, last))
        start += 8 + size + (size & 1)
