"""An evaluation as a Markdown page.

Design decisions
- Every figure has its interval where it has one, and the human figure beside it; what is better is said where there is
  a better, else that it is read as a difference.
- The page is made from the dictionary alone, so that an old JSON file can be printed again.

Knows: the layout of `suite.Evaluation.run`. Must not know: models, music.
"""

from __future__ import annotations

from collections.abc import Iterable

from .control import FIGURES
from .intervals import FEW


LIBRARIES = {
    "pitch_class_entropy": "muspy",
    "scale_consistency": "muspy",
    "polyphony_rate": "muspy",
    "empty_beat_rate": "muspy",
    "groove_consistency": "own (bars of true length; agrees with muspy where bars are alike)",
    "groove_overlap": "own",
    "self_similarity": "own",
    "notes_per_bar": "own",
}


def number(value, digits: int = 3) -> str:
    """A figure, or a dash where there is none.

    Args:
        value: the figure, `None` or nan.
        digits: after the point.
    """
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def percent(entry: dict | None) -> str:
    """`{"value", "low", "high"}` of a share as per cent with its interval."""
    if not entry or entry["value"] is None:
        return "-"
    return f"{100 * entry['value']:.1f} [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"


def with_interval(entry: dict | None, digits: int = 3) -> str:
    """`value [low, high]`, or a dash.

    Args:
        entry: `{"value", "low", "high"}`.
        digits: after the point.
    """
    if not entry or entry["value"] is None:
        return "-"
    return f"{entry['value']:.{digits}f} [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a Markdown table.

    Args:
        head: titles of the columns.
        rows: cells of each row.
    """
    head = list(head)
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(r) + " |" for r in rows), ""]


def markdown(result: dict, pictures: Iterable[str] = ()) -> str:
    """The page.

    Args:
        result: of `Evaluation.run`, with `about` and `skipped_files`.
        pictures: names of picture files beside it.
    """
    about = result.get("about", {})
    lines = [f"# Evaluation of {about.get('name', 'a model')}", ""]
    lines += [f"- {key}: {value}" for key, value in about.items() if key != "name" and value not in (None, "")]
    lines += ["", "Intervals are 95 %: Wilson's for shares of samples, else bootstrap over songs.", ""]
    pictures = set(pictures)

    def picture(name: str, words: str) -> list[str]:
        return [f"![{words}]({name})", ""] if name in pictures else []

    for part, section in (("bits", _bits), ("grammar", _grammar), ("control", _control), ("music", _music)):
        if part in result:
            lines += section(result[part], picture)
    if "chords" in result:
        lines += _chords(result["chords"], picture)
    if result.get("skipped_files"):
        lines += ["## Files left out", ""]
        lines += [f"- {path}: {reason}" for path, reason in result["skipped_files"]]
    return "\n".join(lines).rstrip() + "\n"


def _bits(found: dict, picture) -> list[str]:
    rows = [
        [
            name,
            number(e["bits_per_note"], 2),
            *("-" if e["songs"] < FEW else number(e[k], 2) for k in ("low", "high")),
            *(str(e[k]) for k in ("windows", "songs")),
        ]
        for name, e in found["by_corpus"].items()
    ]
    lines = ["## Bits a note", "", "Negative log2-likelihood of the generated bars over their notes; lower is better."]
    lines += ["", *table(["corpus", "bits a note", "low", "high", "windows", "songs"], rows)]
    return lines + picture("bits.png", "Bits a note by corpus")


def _grammar(found: dict, picture) -> list[str]:
    kinds = ", ".join(f"{name} {count}" for name, count in found["at"].items()) or "none"
    rows = [
        ["answers with wrong syntax, %", percent(found["syntax"])],
        ["answers of good syntax that do not fit the request (bars, instruments, meter), %", percent(found["prompt"])],
        ["answers with either, %", percent(found["broken"])],
        ["answers that do not end in twice the human length, %", percent(found["unfinished"])],
        ["first syntax errors per 1000 tokens", with_interval(found["per_1000_tokens"])],
        ["wrong tokens by kind", kinds],
    ]
    words = f"{found['broken']['n']} answers to requests, drawn without the grammar ({found['tokens']} tokens)."
    return ["## Grammar without constraints", "", words, "", *table(["", ""], rows)]


def _control(found: dict, picture) -> list[str]:
    columns = [c for c in ("samples", "samples_free", "chance", "human") if c in found]
    names = {"samples": "with the grammar", "samples_free": "without", "chance": "chance", "human": "human"}
    rows = [
        [words, str(found["samples"][key]["n"]), *(percent(found[c].get(key)) for c in columns)]
        for key, words in ((name, figure.label) for name, figure in FIGURES.items())
    ]
    counts = ", ".join(f"{name} {n}" for name, n in found["requests"].items())
    lines = ["## Control", "", f"Per cent; eight bars from nothing but the request ({counts})."]
    lines += ["The grammar itself guarantees meter, bar count and instruments; the other controls are the model's."]
    lines += [
        "Chance: the same answers held against other requests. Human: the music the requests were taken from.",
        "",
    ]
    lines += table(["asked for", "requests", *(names[c] for c in columns)], rows)
    return lines + picture("control.png", "Control accuracy")


def _music(found: dict, picture) -> list[str]:
    passages = found["passages"]
    lines = ["## The music", ""]
    lines += [f"{passages['samples']} passages beside {passages['human']} of composers; read as differences.", ""]
    rows = [
        [name, *(with_interval(found["figures"][s][name]) for s in ("samples", "human")), LIBRARIES[name]]
        for name in found["figures"]["samples"]
    ]
    lines += table(["figure", "samples", "human", "library"], rows)
    lines += picture("figures.png", "Figures of samples and composers")
    if "variety" in found:
        rows = [
            [k, number(v), number(found["variety"]["human"].get(k))] for k, v in found["variety"]["samples"].items()
        ]
        lines += ["Repetition (own; `copied_bars`: bars that stand in what was given):", ""]
        lines += table(["figure", "samples", "human"], rows)
    lines += ["Jensen-Shannon divergence in bits (scipy) to other music of the split, mean over corpora:", ""]
    names = list(found["distances"]["samples"])
    rows = [
        [name, *(number(found["distances"][s][name].get("mean"), 4) for s in ("samples", "human"))] for name in names
    ]
    lines += table(["distribution", "samples", "human"], rows)
    lines += picture("distributions.png", "Distributions of samples and composers")
    rows = [
        [key, *(number(found["diversity"][s][key]) for s in ("samples", "human"))]
        for key in found["diversity"]["human"]
    ]
    lines += ["Diversity (Vendi score and mean pairwise distance, own):", "", *table(["", "samples", "human"], rows)]
    if "copying" in found:
        keys = list(found["copying"]["human"])
        rows = [[key, *(number(found["copying"][s].get(key)) for s in ("samples", "human"))] for key in keys]
        lines += [
            f"Runs of notes that stand in one of {found['copying']['train_songs']} train songs, in any key (own):"
        ]
        lines += ["", *table(["", "samples", "human"], rows)]
    return lines


def _chords(found: dict, picture) -> list[str]:
    lines = ["## Chord estimation", ""]
    if "skipped" in found:
        return [*lines, found["skipped"], ""]
    lines += [f"mir_eval, weighted by duration in quarters, per cent. Read as: {found['reading']}.", ""]
    for tracks in ("all", "melody"):
        for corpus, entry in found.get(tracks, {}).items():
            metrics = list(next(iter(entry["scores"].values())))
            source = "all tracks" if tracks == "all" else "the melody alone"
            lines += [f"{corpus}, {source}: {entry['songs']} songs, {entry['quarters']:.0f} quarters", ""]
            rows = [[name, *(percent(s[m]) for m in metrics)] for name, s in entry["scores"].items()]
            rows += [[f"model - {n}", *(percent(s[m]) for m in metrics)] for n, s in entry["differences"].items()]
            lines += table(["", *metrics], rows)
    if found.get("tuned"):
        lines += ["Baselines (fitted on train, tuned on validation):", ""]
        lines += [f"- {name}: {values}" for name, values in found["tuned"].items()] + [""]
    return lines + picture("chords.png", "Chord estimation")
