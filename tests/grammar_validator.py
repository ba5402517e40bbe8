"""A second validator of token sequences: a plain recursive-descent parser over token *names*.

It shares no code with the grammar that generates (nothing is imported from the package but the rows of controls
that were added to the first seven), so that an error in the state machine cannot hide here. Slow on purpose: one
Python step a token.

`validate(tokens)` returns a `Parsed` segment or raises `Invalid` with the index of the offending token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mortm_hf.models.token_headers import CONTROLS


LISTED = {(n, d): 96 * n // d for d, top in ((2, 4), (4, 8), (8, 16), (16, 16)) for n in range(1, top + 1)}
LENGTHS = sorted(set(LISTED.values()))
SINGLE = list(range(1, 289)) + list(range(312, 769, 24))
LONGEST = 2592
MARKERS = ("<PAST_M>", "<FUTURE_M>", "<CONST_M>", "<CONST_C>", "<MGEN>", "<CGEN>", "<META>")


class Invalid(Exception):
    """`position`: index of the token that breaks a rule."""

    def __init__(self, position: int, why: str):
        super().__init__(f"token {position}: {why}")
        self.position = position


@dataclass
class Bar:
    length: int
    meter: tuple[int, int] | None
    tempo: int | None  # as stated in this bar
    notes: list[tuple[int, int, int, int | None]] = field(default_factory=list)  # onset, pitch, duration, velocity
    chords: list[tuple[int, str, str, str]] = field(default_factory=list)


@dataclass
class Track:
    instrument: str
    bars: list[Bar]


@dataclass
class Parsed:
    header: dict | None = None
    blocks: dict[str, list[Track]] = field(default_factory=dict)
    marker: str | None = None
    tracks: list[Track] = field(default_factory=list)  # of the generated field; chords: one, named "chords"
    answer: dict | None = None  # of a META field


def greedy(duration: int) -> list[int]:
    """The one way to write a duration: always the longest token that fits."""
    parts = []
    while duration:
        part = max(d for d in SINGLE if d <= duration)
        parts.append(part)
        duration -= part
    return parts


class _Parser:
    def __init__(self, tokens: list[str], dialect: str, ordered: bool):
        self.tokens, self.at = tokens, 0
        self.metric, self.ordered = dialect == "metric", ordered
        self.with_velocity: bool | None = None

    # ------------------------------------------------------------------ reading

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def fail(self, why: str, at: int | None = None):
        raise Invalid(self.at if at is None else at, f"{why} (at {self.peek() or 'the end'})")

    def take(self, token: str) -> None:
        if self.peek() != token:
            self.fail(f"expected {token}")
        self.at += 1

    def number(self, pattern: str) -> int | None:
        found = re.fullmatch(pattern, self.peek())
        if found is None:
            return None
        self.at += 1
        return int(found.group(1))

    # ------------------------------------------------------------------ the rules

    def segment(self) -> Parsed:
        out = Parsed()
        self.take("<EOS>")
        if self.peek() == "<SYSTEM>":
            out.header = self.header()
        last = -1
        const_bars = {}
        while self.peek() in MARKERS[:4]:
            name = self.peek()
            if MARKERS.index(name) <= last:
                self.fail("block repeated or out of order")
            last = MARKERS.index(name)
            self.at += 1
            out.blocks[name] = [self.chord_row()] if name == "<CONST_C>" else self.tracks("<TAG_END>")
            if name.startswith("<CONST") and out.blocks[name]:
                const_bars[name] = [b.length for b in out.blocks[name][0].bars]
            self.take("<TAG_END>")
        marker_at = self.at
        out.marker = self.peek()
        if out.marker not in MARKERS[4:]:
            self.fail("expected a generated field")
        self.at += 1
        if out.marker == "<META>":
            out.answer = self.header()
        elif out.marker == "<CGEN>":
            out.tracks = [self.chord_row()]
        else:
            out.tracks = self.tracks("<TE>")
        self.take("<TE>")
        if self.at != len(self.tokens):
            self.fail("tokens after <TE>")
        self.describes(out, const_bars, marker_at)
        return out

    def describes(self, out: Parsed, const_bars: dict, at: int) -> None:
        """Header and CONST blocks against the generated field."""
        if not self.metric or out.marker == "<META>" or not out.tracks:
            return
        bars = out.tracks[0].bars
        for name, lengths in const_bars.items():
            if lengths != [b.length for b in bars]:
                self.fail(f"{name} has other bars than the generated field", at)
        header = out.header or {}
        if out.marker == "<MGEN>" and header.get("instruments"):
            if header["instruments"] != [t.instrument for t in out.tracks]:
                self.fail("the tracks are not the header's instruments", at)
        if header.get("bars") is not None and header["bars"] != len(bars):
            self.fail("not the header's number of bars", at)
        if header.get("meter") is not None and bars and header["meter"] != bars[0].meter:
            self.fail("not the header's meter", at)
        if header.get("tempo") is not None and bars and bars[0].tempo not in (None, header["tempo"]):
            self.fail("not the header's tempo", at)

    def header(self) -> dict:
        out = {"instruments": [], "densities": [], "bars": None, "genres": [], "meter": None, "tempo": None}
        self.take("<SYSTEM>")
        while re.fullmatch(r"<INST_\w+>", self.peek()):
            self.drums_last(out["instruments"])
            out["instruments"].append(self.peek())
            self.at += 1
            out["densities"].append(self.number(r"<NOTE_DENSE_(\d+)>"))
            self.added(track=True)
        out["bars"] = self.number(r"<GEN_MEASURE_COUNT_(\d+)>")
        while re.fullmatch(r"<GENRE_\w+>", self.peek()):
            out["genres"].append(self.peek())
            self.at += 1
        if self.metric:
            out["meter"] = self.meter()
            out["tempo"] = self.number(r"<BPM_(\d+)>")
        if re.fullmatch(r"k_\S+", self.peek()):
            out["key"] = self.peek()
            self.at += 1
        self.added(track=False)
        self.take("<TAG_END>")
        return out

    def added(self, track: bool) -> None:
        """Controls that were added to the seven written out here: each at most once, in the order of their rows."""
        for control in CONTROLS[7:]:
            if (control.level == "track") == track and (self.metric or control.upstream):
                while self.peek() in control.tokens():
                    self.at += 1
                    if not control.repeats:
                        break

    def meter(self) -> tuple[int, int] | None:
        found = re.fullmatch(r"<TS_(\d+)/(\d+)>", self.peek())
        if found is None:
            return None
        meter = (int(found.group(1)), int(found.group(2)))
        if meter not in LISTED:
            self.fail("no such meter")
        self.at += 1
        return meter

    def drums_last(self, before: list[str]) -> None:
        if self.metric and before and before[-1] == "<INST_DRUMS>" and self.peek() != "<INST_DRUMS>":
            self.fail("drums are the last tracks")

    def tracks(self, stop: str) -> list[Track]:
        found: list[Track] = []
        while self.peek() != stop:
            if not re.fullmatch(r"<INST_\w+>", self.peek()):
                self.fail("expected a track")
            self.drums_last([t.instrument for t in found])
            name = self.peek()
            self.at += 1
            table = found[0].bars if found and self.metric else None
            bars = self.bars(False, table)
            if not any(b.notes for b in bars):
                self.fail(f"{name} is silent")
            found.append(Track(name, bars))
        return found

    def chord_row(self) -> Track:
        if self.peek() == "<ESEQ>":
            self.at += 1
            return Track("chords", [])
        return Track("chords", self.bars(True, None))

    def bars(self, chords: bool, table: list[Bar] | None) -> list[Bar]:
        """Bars up to and including <ESEQ>. `table`: the first track's bars, which this track shares."""
        bars: list[Bar] = []
        latest: dict[int, int] = {}  # pitch -> its last offset
        start = 0
        if not self.metric and not chords and self.peek() != "<SME>":  # a raw song's bar 0
            bars.append(self.notes_of(Bar(96, (4, 4), None), 0, latest))
            start = 96
        tempo = None
        while self.peek() == "<SME>":
            self.at += 1
            index = len(bars)
            if table is not None:
                if index >= len(table):
                    self.fail("more bars than the first track")
                bar = Bar(table[index].length, table[index].meter, table[index].tempo)
            elif not self.metric:
                bar = Bar(96, (4, 4), None)
            else:
                bar = self.prefix(bars)
                if not chords:
                    at, stated = self.at, self.number(r"<BPM_(\d+)>")
                    if stated is not None:
                        if stated == tempo:
                            self.fail("the tempo did not change", at)
                        bar.tempo = tempo = stated
            if self.peek() == "<BLANK>":
                self.at += 1
            elif chords:
                self.chords_of(bar)
            else:
                self.notes_of(bar, start, latest)
                if not bar.notes:
                    self.fail("expected <BLANK> or a note")
            bars.append(bar)
            start += bar.length
        if table is not None and len(bars) != len(table):
            self.fail("fewer bars than the first track")
        if not self.metric and self.peek() == "<TE>" and not chords:
            self.at += 1
        self.take("<ESEQ>")
        return bars

    def prefix(self, bars: list[Bar]) -> Bar:
        """Meter of a bar in a track that states them."""
        before = bars[-1] if bars else None
        odd_before = before is not None and before.length != LISTED[before.meter]
        at, meter = self.at, self.meter()
        if meter is None:
            if before is None or odd_before:
                self.fail("the meter must be stated here")
            return Bar(LISTED[before.meter], before.meter, None)
        length = self.number(r"d_(\d+)")
        if length is None:
            if before is not None and not odd_before and meter == before.meter:
                self.fail("the meter did not change", at)
            return Bar(LISTED[meter], meter, None)
        if length in LENGTHS or not 0 < length < LENGTHS[-1]:
            self.fail("a listed meter has this length", at + 1)
        if LISTED[meter] != min(x for x in LENGTHS if x > length):
            self.fail("not the shortest longer meter", at)
        return Bar(length, meter, None)

    def notes_of(self, bar: Bar, start: int, latest: dict[int, int]) -> Bar:
        while True:
            at, onset = self.at, self.number(r"s_(\d+)")
            if onset is None:
                return bar
            if onset >= bar.length:
                self.fail("onset past the end of the bar", at)
            if not self.metric and self.peek().startswith("CR_"):
                self.chord()
            pitch = self.number(r"p_(\d+)")
            if pitch is None or pitch > 127:
                self.fail("expected a pitch")
            parts = []
            while (part := self.number(r"d_(\d+)")) is not None:
                parts.append(part)
            total = sum(parts)
            if self.metric:
                if not parts or total > LONGEST or parts != greedy(total):
                    self.fail(f"durations {parts} are not the way to write {total}", self.at - 1)
            elif len(parts) != 1 or not 1 <= total <= 288:
                self.fail("expected one duration of 1 to 288", self.at - 1)
            here, velocity = self.at, self.number(r"v_(\d+)")
            if velocity is not None and self.metric and velocity % 4 != 2:
                self.fail("not a written velocity", here)
            if self.with_velocity is None:
                self.with_velocity = velocity is not None
            elif self.with_velocity != (velocity is not None):
                self.fail("velocities on some notes only", here)
            if self.ordered:
                if bar.notes:
                    previous = bar.notes[-1]
                    if onset < previous[0] or (self.metric and (onset, pitch, total) <= previous[:3]):
                        self.fail("notes out of order", at)
                offset = start + onset + total
                if offset < latest.get(pitch, 0) or (not self.metric and offset == latest.get(pitch)):
                    self.fail("a note inside a longer one of its pitch", at)
                latest[pitch] = offset
            bar.notes.append((onset, pitch, total, velocity))

    def chord(self) -> tuple[str, str, str]:
        parts = []
        for prefix in ("CR_", "CQ_", "CB_"):
            if not self.peek().startswith(prefix):
                self.fail(f"expected {prefix}")
            parts.append(self.peek())
            self.at += 1
        if parts[0] == "CR_N" and parts[1:] != ["CQ_None", "CB_None"]:
            self.fail("no chord is written CR_N CQ_None CB_None", self.at - 1)
        return tuple(parts)

    def chords_of(self, bar: Bar) -> None:
        while (onset := self.number(r"s_(\d+)")) is not None:
            if onset >= bar.length or (bar.chords and onset <= bar.chords[-1][0]):
                self.fail("chord onset out of order or past the bar", self.at - 1)
            bar.chords.append((onset, *self.chord()))
        if not bar.chords:
            self.fail("expected <BLANK> or a chord")


def validate(tokens: list[str], dialect: str = "metric", ordered: bool | None = None) -> Parsed:
    """Parse one complete segment `<EOS> .. <TE>` (padding removed) or raise `Invalid`.

    Args:
        ordered: demand ordered onsets and offsets; by default in the metric dialect (upstream's own encodings are not
            ordered, what is generated in its dialect is).
    """
    tokens = [t for t in tokens if t != "<PAD>"]
    return _Parser(tokens, dialect, dialect == "metric" if ordered is None else ordered).segment()
