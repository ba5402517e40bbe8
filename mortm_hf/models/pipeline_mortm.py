"""Pipelines: `midi-generation` and `chord-estimation`.

Design decisions
- More bars than fit one window are generated in several (`generation_windows`); all rows of a batch advance together,
  one `generate` call a window.
- The same seed gives the same bytes: sampling draws its own noise (`generation_sampling`), and no call changes the
  global random state.
- What was not asked to change is copied from the file itself, not from its quantised image (`midi_edit`).
- Errors of the tokenizer, the prompt and the grammar pass through: `ValueError`s with a `code`.

Knows: the tokenizer's methods, prompts, `generate`. Must not know: layers of models, token strings.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from itertools import chain

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.utils import logging

from .errors_mortm import GenerationError, PromptError
from .generation_cpu import FastDecoder, decoder_for, unsupported_arguments
from .generation_mortm import MetricGrammarLogitsProcessor
from .generation_sampling import SAMPLING_NAMES, BarListener, FiniteLogits, SeededChoice, sampling_filters
from .generation_windows import PAST_BARS, SongRequest, SongRow
from .inputs_bertm import pad_rows
from .midi_chords import is_chord_file, read_chord_file
from .midi_edit import write_bars, write_chords
from .midi_files import to_midi_score
from .music_harmony import chord_symbol
from .music_instruments import instrument_name
from .music_names import MAX_COUNTED_BARS, METERS
from .music_score import ChordTable
from .pipeline_midi import MusicPipeline
from .prompt_passage import DEFAULT_BARS
from .prompt_words import bar_range, is_file, spread_chords, whole_number
from .token_codec import parse_segment
from .token_headers import CONTROLS


FUTURE_BARS = 4  # given after the generated bars where bars are rewritten
WINDOW_BARS = 8  # generated at a time
CHORD_BARS = 2  # read at a time to estimate chords (`benchmarks/chord_estimation.py --choose`)
SAMPLING_DEFAULTS = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 0}
_SAMPLING_LIMITS = {
    "temperature": (lambda x: x > 0, "positive (do_sample=False takes the likeliest)"),
    "top_k": (lambda x: x >= 0 and x == int(x), "a whole number of at least 0 (0: no limit)"),
    "top_p": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
    "min_p": (lambda x: 0 <= x <= 1, "between 0 and 1"),
    "typical_p": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
}
# Our own processors sample. A field left None would be filled from the model's, and warned about as unused.
_NO_SAMPLING = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "typical_p": 1.0}
_GENERATE_NAMES = {name for name in vars(GenerationConfig()) if not name.startswith("_")} | {
    "generation_config",
    "assistant_model",
    "streamer",
    "stopping_criteria",
    "logits_processor",
}
logger = logging.get_logger(__name__)


class MidiPipeline(MusicPipeline):
    """What both pipelines share: windows and sampling."""

    _running = ("seed", "num_return_sequences", "progress", "callback", "fast")
    _more_options = ", and the arguments of generate()"
    _sampling_defaults: dict = {}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._decoders: dict[str, FastDecoder] = {}
        if self.model.can_generate() is False:
            raise PromptError(
                f"{type(self.model).__name__} cannot generate: load a model for causal language modeling"
            )

    def _sanitize_parameters(self, **kwargs):
        generate = {name: kwargs.pop(name) for name in [*kwargs] if name in _GENERATE_NAMES - {*self._running}}
        ask, run, give = super()._sanitize_parameters(**kwargs)
        return ask, run | generate, give

    def __call__(self, inputs=None, **kwargs):
        if kwargs.get("seed") is None and self._forward_params.get("seed") is None and not _is_empty(inputs):
            kwargs["seed"] = int(torch.randint(1 << 31, ()))
        return super().__call__(inputs, **kwargs)

    # ------------------------------------------------------------------------------------------------------ generation

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together that the model is meant for."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 4096)

    def _parameters(self, given: dict) -> tuple[dict, dict]:
        """(sampling parameters, other arguments of `generate`): the call's, over its `generation_config`'s, over the
        model's, over ours."""
        given = dict(given)
        config = given.pop("generation_config", None)
        default = self.model.generation_config
        chosen = dict(self._sampling_defaults)
        for layer in (default, config):
            if layer is not None:
                known = layer.to_diff_dict()
                chosen |= {k: known[k] for k in ("do_sample", *SAMPLING_NAMES) if known.get(k) is not None}
        chosen |= {k: given.pop(k) for k in ("do_sample", *SAMPLING_NAMES) if k in given}
        plain = copy.deepcopy(default if config is None else config)
        for name, value in _NO_SAMPLING.items():
            setattr(plain, name, value)
        plain.max_length = None
        for name, (fits, remedy) in _SAMPLING_LIMITS.items():
            value = chosen.get(name)
            if value is not None and not (isinstance(value, (int, float)) and fits(value)):
                raise GenerationError(f"{name} must be {remedy}, got {value!r}")
        return chosen, {**given, "generation_config": plain}

    def _decoder(self, fast, beams: int, others: dict) -> FastDecoder | None:
        """The fast decoder of a call, made once and again when the model's weights have changed; None: `generate`.

        Raises:
            GenerationError: `fast` with a model or with arguments that it does not serve.
        """
        others = {**others, "num_beams": None}
        names = unsupported_arguments(others.pop("generation_config"), others)
        return decoder_for(self.model, fast, ["num_beams"] * (beams > 1) + names, self._decoders)

    def _answers(self, pieces, seed=None, num_return_sequences=1, progress=None, callback=None, fast=None, **generate):
        copies = int(num_return_sequences)
        if copies < 1:
            raise GenerationError(f"num_return_sequences must be at least 1, got {num_return_sequences}")
        seeds = _row_seeds(seed, copies)
        chosen, others = self._parameters(generate)
        beams = int(others.get("num_beams") or others["generation_config"].num_beams or 1)
        if copies > 1 and not chosen["do_sample"] and beams < copies:
            raise GenerationError(
                f"{copies} different sequences need do_sample=True or num_beams of at least {copies}"
            )
        decoder = self._decoder(fast, beams, others)
        rows = [SongRow(request, s) for request in pieces for s in seeds]
        bar, window = None, 0
        while any(row.left for row in rows):
            active = [row for row in rows if row.left]
            for row in active:
                row.build(self.tokenizer, self.context)
            if not window:  # after the first prompts: a request that cannot be served shows no progress
                bar = self._progress(rows, progress)
            report = None
            if callback is not None or bar is not None:
                report = self._reporter(rows, active, copies, callback, bar)
            # beams without sampling find their different sequences themselves, once
            spread = copies if window == 0 and not chosen["do_sample"] and copies > 1 else 1
            answers = self._generate(active, window, chosen, dict(others), report, beams, spread, decoder)
            for row, answer in zip(active, answers):
                row.accept(self.tokenizer, answer)
            if bar is not None:
                bar.n = sum(row.made for row in rows)
                bar.refresh()
            window += 1
        if bar is not None:
            bar.close()
        return [rows[i : i + copies] for i in range(0, len(rows), copies)]

    def _progress(self, rows, progress):
        total = sum(row.left for row in rows)
        windows = max(-(-row.left // row.request.window) for row in rows)
        if progress is False or (progress is None and windows < 2):
            return None
        return logging.tqdm(total=total, unit="bar", desc=self.task)

    def _reporter(self, rows, active, copies, callback, bar):
        def report(finished):
            row = active[finished.row]
            if bar is not None and finished.track == len(row.built.plan.instruments or (0,)) - 1:
                bar.update(1)
            if callback is not None:
                index = next(i for i, other in enumerate(rows) if other is row)
                callback(self._event(row, index, copies, finished))

        return report

    def _event(self, row, index, copies, finished) -> dict:
        """What a callback gets of a finished bar."""
        vocabulary = self.tokenizer.vocabulary
        notes = parse_segment(vocabulary, np.asarray(finished.ids)).generated
        columns = () if notes is None else (notes.onset, notes.pitch, notes.duration, notes.velocity)
        return {
            "input": index // copies,
            "sequence": index % copies,
            "bar": row.at + finished.bar,
            "track": finished.track,
            "instrument": instrument_name(finished.instrument) if finished.instrument >= 0 else "chords",
            "notes": np.stack(columns, axis=1) if columns else np.empty((0, 4), dtype=np.int64),
            "token_ids": np.asarray(finished.ids).tolist(),
        }

    def _generate(self, rows, window, chosen, others, report, beams, spread, decoder) -> list[list[int]]:
        """One `generate` call over all rows (the model's, or a fast decoder's) -> the answer of each."""
        tokenizer, model = self.tokenizer, self.model
        asked = rows[::spread]
        ids, mask = pad_rows([row.built.ids for row in asked], tokenizer.pad_token_id, self.device, side="left")
        length = ids.shape[1]
        config = others["generation_config"]
        room = max(self.context - length, 1)
        asked_new = others.pop("max_new_tokens", config.max_new_tokens)
        new_tokens = room if asked_new is None else min(int(asked_new), room)
        others.pop("max_length", None)
        others.pop("num_beams", None)
        config.num_beams = beams  # checked against the number of sequences
        config.max_new_tokens, config.num_return_sequences = new_tokens, spread
        config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
        grammar = MetricGrammarLogitsProcessor(
            tokenizer, [row.built.plan for row in asked], max_length=length + new_tokens
        )
        processors = [FiniteLogits(), grammar, *(others.pop("logits_processor", None) or ())]
        streamer = others.pop("streamer", None)
        listener = BarListener(tokenizer, report, streamer) if (report or streamer) and beams == 1 else None
        if chosen["do_sample"] and beams == 1:
            processors += [*sampling_filters(chosen), SeededChoice([row.seed for row in asked], window, length)]
        elif chosen["do_sample"]:  # sampled beams are drawn by `generate` itself, from the global generator
            config.do_sample = True
            for name in SAMPLING_NAMES:
                if name in chosen:
                    setattr(config, name, chosen[name])
        if decoder is not None:
            output = decoder.generate(
                ids,
                mask,
                max_new_tokens=new_tokens,
                logits_processor=processors,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                streamer=listener,
                stopping_criteria=others.get("stopping_criteria") or (),
            )
            return [_until(answer, tokenizer.eos_token_id) for answer in output[:, length:].tolist()]
        guard = (
            torch.random.fork_rng([self.device] if self.device.type == "cuda" else []) if beams > 1 else nullcontext()
        )
        with guard:
            if beams > 1:
                torch.manual_seed(int(np.random.SeedSequence([rows[0].seed, window]).generate_state(1)[0]))
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                logits_processor=LogitsProcessorList(processors),
                streamer=listener,
                **others,
            )
        output = getattr(output, "sequences", output)[:, length:].cpu().tolist()
        return [_until(answer, tokenizer.eos_token_id) for answer in output]


def _until(answer: list[int], end: int) -> list[int]:
    """Up to and including the first end token."""
    return answer[: answer.index(end) + 1] if end in answer else answer


def _row_seeds(seed, copies: int) -> list[int]:
    """Seed of each returned sequence: the i-th of an integer seed is `seed + i`, of a list the i-th entry."""
    if isinstance(seed, (list, tuple)):
        if len(seed) != copies:
            raise GenerationError(f"{len(seed)} seeds for {copies} sequences: give one a sequence")
        seeds = list(seed)
    else:
        whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
        seeds = [seed + i for i in range(copies)] if whole else [seed]
    if any(isinstance(s, bool) or not isinstance(s, (int, np.integer)) or s < 0 for s in seeds):
        raise GenerationError(f"a seed is an integer of at least 0, got {seed!r}")
    return [int(s) for s in seeds]


def _is_empty(inputs) -> bool:
    return isinstance(inputs, (list, tuple)) and not inputs


class MidiGenerationPipeline(MidiPipeline):
    """Continue, rewrite or accompany a MIDI file, or write music from nothing.

    ```python
    pipe = pipeline("midi-generation", model=folder)
    out = pipe("song.mid", bars=8, instruments=["piano"], key="C major", chords=["C", "Am", "F", "G"], seed=0)
    pipe("song.mid", infill=(8, 12))                                            # rewrite bars 8 to 11
    pipe("song.mid", start=0, tracks=[0], instruments=["bass", "drums"])        # accompany track 0
    pipe(None, bars=4, instruments=["piano", "drums"], meter="3/4", tempo=96)   # from nothing
    out[0]["score"].dump_midi("new.mid")
    ```

    Args (of a call, or of the pipeline as defaults of its calls):
        inputs: path, MIDI bytes, `symusic.Score`, `MetricScore`, None, or a list of them.
        bars: how many bars to generate, 8 by default.
        start: the first of them; by default the bar after the song's last, or 0 where `tracks` are given. From an
            earlier one the song is continued there: without `tracks` what it has from `start` on is dropped.
        infill: (first, last) instead of both: rewrite these bars, keep all others.
        instruments: what to generate; by default the song's tracks that sound around the new bars (piano from
            nothing).
        tracks: tracks that are given and sound together with the new ones. Rewriting some instruments, all others are.
        past: bars given before the new ones (8, more where no note begins in those).
        future: bars given after the new ones where bars are rewritten (4).
        key: see `MetricPrompt`, as for all fields down to `scale`.
        meter: one, or a list with one a bar.
        tempo: quarters a minute.
        genre: one or several.
        density: 1 (sparse) to 10 (dense), one for all or one an instrument.
        chords: symbols, one a bar, or placed ones, or an annotation file.
        velocity: whether velocities are written.
        pitch_range: (lowest, highest) pitch.
        scale: pitch classes that may sound.
        window: bars generated at a time, at most 16 (8). Fewer are taken where the context asks for it.
        seed: the same seed gives the same bytes; sequence i gets `seed + i`, or the i-th of a list of seeds. By
            default drawn from torch's global generator.
        num_return_sequences: how many versions of each input.
        callback: called with a dict for every finished bar: `input`, `sequence`, `bar`, `track`, `instrument`, `notes`
            `[n, 4]` (onset in the bar in ticks of 24 a quarter, pitch, duration, velocity), `token_ids`.
        progress: show a progress bar; by default where there are several windows.
        fast: whether `FastDecoder` decodes, on a CPU: None wherever it serves the call with the same music (sampling,
            greedy search, batches and callbacks; not beams, assistant models and other arguments of `generate`); True
            or "fp32" to have those refused, "int8" with rounded weights, False never.
        new_bars_only: `score` and `midi` hold only the new bars and the generated tracks, from time 0.
        kwargs: arguments of `generate` (temperature, top_p, top_k, do_sample, num_beams, streamer, ...).

    Returns:
        A list of `num_return_sequences` dicts (a list of such lists for a list of inputs): `score`
        (`symusic.Score`: the song with the new bars; everything else of the file is untouched), `midi` (its bytes),
        `token_ids` (`prompt` of the first window, `generated` ids of all, and `windows`), `bars` (first, last) of the
        generated bars, `report`.

    Raises:
        MidiError: an unusable input (all of these are `ValueError`s with a `code`).
        VocabularyError: a name that the token table does not have.
        PromptError: an impossible request.
        GenerationError: an argument of `generate` that cannot be served.
    """

    _sampling_defaults = SAMPLING_DEFAULTS
    _options = (
        (
            *("bars", "start", "infill", "instruments", "tracks", "past", "future", "chords", "meter", "window"),
            *(c.name for c in CONTROLS if c.name not in ("bars", "instruments", "meter")),
            *("velocity", "pitch_range", "scale"),
        ),
        MidiPipeline._running,
        ("new_bars_only",),
    )

    def preprocess(
        self,
        inputs,
        bars=None,
        start=None,
        infill=None,
        instruments=None,
        tracks=None,
        past=PAST_BARS,
        future=None,
        chords=None,
        meter=None,
        window=WINDOW_BARS,
        **fields,
    ):
        original, song = (None, None) if inputs is None else self.open_song(inputs)
        past, future, tracks = (self._material(value) for value in (past, future, tracks))
        window = min(whole_number(window, "window", 1), MAX_COUNTED_BARS)
        if isinstance(instruments, (str, int)):
            instruments = [instruments]
        if bars is not None:
            bars = whole_number(bars, "bars", 1)
        targets = None
        if song is None:
            for name, value in (("infill", infill), ("start", start)):
                if value is not None:
                    raise PromptError(f"{name} needs a MIDI file to work on, but the input is None")
            start, instruments = 0, ["piano"] if instruments is None else instruments
        else:
            if infill is not None:
                first, last = bar_range(infill, song.n_bars, "infill")
                if start is not None or bars not in (None, last - first):
                    raise PromptError("infill names the bars: leave out start and bars", "prompt.bars")
                start, bars, future = first, last - first, FUTURE_BARS if future is None else future
                if tracks is None and instruments is None:
                    targets = self._targets(song, first, last)
                elif tracks is None:
                    tracks = True
            elif start is None:
                start = song.n_bars if tracks is None else 0
            if whole_number(start, "start", 0) > song.n_bars:
                raise PromptError(f"start must be at most {song.n_bars}, the song's bars, got {start}", "prompt.bars")
        bars = DEFAULT_BARS if bars is None else bars
        if isinstance(meter, list) and len(meter) != bars:
            raise PromptError(f"got {len(meter)} meters for {bars} bars: give one, or one for each bar", "prompt.bars")
        if is_chord_file(chords):
            chords = self._annotated_chords(chords, song, original, int(start))
        inside = song is not None and (infill is not None or (tracks is not None and start + bars <= song.n_bars))
        request = SongRequest(
            original=original,
            song=song,
            start=int(start),
            bars=bars,
            window=window,
            past=past,
            future=future,
            inside=inside,
            tracks=tracks,
            targets=targets,
            chords=spread_chords(chords, int(start), bars),
            meter=meter,
            fields={"instruments": instruments, **fields},
        )
        return {"piece": request}

    def _material(self, value):
        """Music given as a file, parsed here and not again for every window; anything else stays as it is."""
        if isinstance(value, tuple) and len(value) == 2 and is_file(value[0]):
            return self.open_song(value[0])[1], value[1]
        return self.open_song(value)[1] if is_file(value) else value

    @staticmethod
    def _annotated_chords(path, song, original, start) -> ChordTable:
        """The chords of an annotation file of the song, from the first generated bar on."""
        if song is None:
            raise PromptError(f"the chord file {path} belongs to a song, but the input is None")
        table = read_chord_file(path, original)
        if table is None:
            raise PromptError(f"the chord file {path} holds no chords")
        return table.window(int(song.bars.start[start]), 1 << 40)

    @staticmethod
    def _targets(song, first, last) -> tuple[int, ...]:
        """The song's tracks that sound in or around the bars to rewrite."""
        near = song.window(max(first - PAST_BARS, 0), min(last + FUTURE_BARS, song.n_bars)).sounding_tracks()
        return tuple(int(t) for t in (near if len(near) else song.sounding_tracks()))

    def postprocess(self, model_outputs, new_bars_only=False):
        return [self._result(row, new_bars_only) for row in model_outputs["answer"]]

    def _result(self, row: SongRow, new_bars_only: bool) -> dict:
        request, music = row.request, row.song
        (first, last), table = row.span, row.chord_table()
        if new_bars_only:
            score = to_midi_score(music.window(request.start, request.stop).take_tracks(sorted(row.targets)))
        elif request.original is None or not any(s >= 0 for s in row.source):
            score = to_midi_score(music)
        else:
            place = request.start, request.stop, row.source, row.targets
            score = write_bars(request.original, music, *place, request.song.n_bars, request.inside)
        if len(table) and request.chords is not True:  # the song's own stand in the file
            table = table.window(first, last) if new_bars_only else table
            score = write_chords(score, table, *((0, last - first) if new_bars_only else (first, last)))
        return _answer(row, score, instruments=[instrument_name(int(music.programs[t])) for t in row.targets])


class ChordEstimationPipeline(MidiPipeline):
    """The chords of a MIDI file.

    Args (of a call, or of the pipeline as defaults of its calls):
        inputs: path, MIDI bytes, `symusic.Score`, `MetricScore`, or a list of them.
        bars: (first, last) range of bars; by default all.
        tracks: tracks to read; by default all.
        window: bars read at a time (2).
        key: of the song; by default the file's, else an estimate.
        past: bars given before those that are read; by default none.
        do_sample: False by default (the likeliest chords).
        Further arguments (seed, progress, callback, num_return_sequences, fast, those of `generate`): as in
            `MidiGenerationPipeline`.

    Returns:
        A list of `num_return_sequences` dicts: `chords` (dicts of `bar`, `beat` (quarters from 0, as the meter's
        denominator counts them), `symbol`), `score` (the file with chord markers), `midi`, `token_ids`, `bars`,
        `report`.

    Raises:
        MidiError: an unusable input (all of these are `ValueError`s with a `code`).
        PromptError: an impossible request.
        GenerationError: an argument of `generate` that cannot be served.
    """

    _sampling_defaults = {"do_sample": False}
    _options = (("bars", "tracks", "window", "key", "past"), MidiPipeline._running, ())

    def _parameters(self, given: dict) -> tuple[dict, dict]:
        # a model's generation config is for making music; an estimate is the likeliest answer by default
        return super()._parameters({"do_sample": False, **given})

    def preprocess(self, inputs, bars=None, tracks=True, window=CHORD_BARS, key=None, past=None):
        original, song = self.open_song(inputs)
        start, stop = (0, song.n_bars) if bars is None else bar_range(bars, song.n_bars, "bars")
        request = SongRequest(
            original=to_midi_score(song) if original is None else original,
            song=song,
            start=start,
            bars=stop - start,
            window=min(whole_number(window, "window", 1), MAX_COUNTED_BARS),
            past=past,
            future=None,
            tracks=tracks,
            task="chords",
            # chords do not depend on velocities, and most windows that models are trained on have none
            fields={"velocity": False} if key is None else {"velocity": False, "key": key},
        )
        return {"piece": request}

    def postprocess(self, model_outputs):
        return [self._result(row) for row in model_outputs["answer"]]

    def _result(self, row: SongRow) -> dict:
        request = row.request
        table = row.chord_table()
        bars = request.song.bars
        at = bars.of(table.onset)
        beats = np.array([METERS[m][1] for m in bars.meter[at]]) * (table.onset - bars.start[at]) / 96
        chords = [
            {"bar": int(bar), "beat": round(float(beat), 4), "symbol": chord_symbol(int(r), int(q), int(b))}
            for bar, beat, r, q, b in zip(at, beats, table.root, table.quality, table.bass)
        ]
        return {"chords": chords, **_answer(row, write_chords(request.original, table, *row.span))}


def _answer(row: SongRow, score, **report) -> dict:
    """The part of a result that both tasks share."""
    windows = [{"prompt": p, "generated": g} for p, g in zip(row.prompts, row.answers)]
    generated = list(chain.from_iterable(row.answers))
    return {
        "score": score,
        "midi": bytes(score.dumps_midi()),
        "token_ids": {"prompt": row.prompts[0], "generated": generated, "windows": windows},
        "bars": (row.request.start, row.request.stop),
        "report": {
            "seed": row.seed,
            "windows": len(windows),
            "complete": row.complete,
            "notes": list(row.notes),
            "prompt_tokens": [len(w["prompt"]) for w in windows],
            "generated_tokens": [len(w["generated"]) for w in windows],
            **report,
        },
    }
