"""MortmTokenizer: the one conversion point between music and `input_ids`.

Design decisions
- Word level, text form = token names separated by spaces, so text pipelines, datasets and TRL work on it; MIDI goes
  to ids through numpy tables and never through text.
- Two dialects: `metric` (the default) and `mortm` (upstream's encoding, token for token, for converted checkpoints).
- Only PAD, BOS, EOS, UNK and MASK are special in the transformers sense. `<EOS>` is upstream's *start* token: it is
  the BOS here, and `<TE>` is the EOS. Padding is on the left, pad differs from eos.

Knows: the codec, the prompt builder and transformers' tokenizer base. Must not know: models, generation.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizer

from .errors_mortm import MidiError, PromptError, VocabularyError
from .midi_files import Caps, is_symusic, read_midi, to_midi_score
from .music_instruments import match_programs
from .music_score import MetricScore, is_score
from .prompt_building import MetricPrompt, build_prompt, parse_prompt
from .prompt_words import bar_range
from .token_automaton import DIALECTS
from .token_codec import encode_header, encode_tracks, parse_segment, uses_velocity
from .token_controls import Described
from .token_grammar import check
from .token_headers import describe
from .token_vocabulary import CONTROLS, VOCABULARY_VERSION, MetricVocabulary, TokenKind, default_tokens
from .upstream_codec import decode_upstream, encode_upstream
from .upstream_vocabulary import upstream_vocabulary


try:  # transformers asks for every package imported outside `try`, also for type checking
    import symusic
except ImportError:
    symusic = None


def _read_table(vocab_file) -> dict[str, int]:
    """`vocab.json` of this package (`{"version", "vocab"}`) or a flat upstream `vocab_list.json`."""
    try:
        with open(vocab_file, encoding="utf-8") as file:
            table = json.load(file)
    except (OSError, ValueError) as error:
        raise VocabularyError(f"cannot read the vocabulary {vocab_file}: {error}", "vocabulary.table") from None
    table = table.get("vocab", table) if isinstance(table, dict) else table
    if not isinstance(table, dict) or not all(isinstance(v, int) for v in table.values()):
        raise VocabularyError(f"{vocab_file} is not a table of token -> id", "vocabulary.table")
    return table


class MortmTokenizer(PreTrainedTokenizer):
    """Tokenizer over MIDI and over the text form of its tokens.

    Args:
        vocab_file: `vocab.json` of a checkpoint, or an upstream `vocab_list.json`; by default the built-in table.
        dialect: "metric" or "mortm" (upstream's encoding).
        preset: an upstream table by name, e.g. "pro", "pro@4.9", "pro2", "omega", "bertm", "melody_only", "base".
        pad_token: padding; like the four below, left out where the table does not have it.
        bos_token: first token of a sequence.
        eos_token: last token of a sequence.
        unk_token: stands for strings that the table does not have.
        mask_token: stands for a hidden token.
        kwargs: of `PreTrainedTokenizer`.

    Raises:
        VocabularyError: an unreadable or unknown table (`vocabulary.table`), an unknown dialect
            (`vocabulary.dialect`).

    ```python
    tokenizer = MortmTokenizer()
    ids = tokenizer.encode_midi("song.mid")
    tokenizer.decode_midi(ids).dump_midi("copy.mid")
    ```
    """

    vocab_files_names = {"vocab_file": "vocab.json"}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str | os.PathLike | None = None,
        dialect: str = "metric",
        preset: str | None = None,
        pad_token="<PAD>",
        bos_token="<EOS>",
        eos_token="<TE>",
        unk_token="<UNK>",
        mask_token="<MASK>",
        **kwargs: Any,
    ):
        if dialect not in DIALECTS:
            raise VocabularyError(f"dialect must be one of {DIALECTS}, got {dialect!r}", "vocabulary.dialect")
        if vocab_file is not None:
            table = _read_table(vocab_file)
        elif preset is not None:
            flavour, _, version = preset.partition("@")
            table = upstream_vocabulary(flavour, version or None)
        else:
            table = {token: index for index, token in enumerate(default_tokens())}
        self.vocabulary = MetricVocabulary(table)
        self.dialect = dialect
        self.vocabulary_version = kwargs.pop("vocabulary_version", VOCABULARY_VERSION)
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        kwargs.setdefault("special_tokens_pattern", "none")
        kwargs.setdefault("padding_side", "left")
        named = {"pad_token": pad_token, "bos_token": bos_token, "eos_token": eos_token}
        named |= {"unk_token": unk_token, "mask_token": mask_token}
        # upstream tables have no <UNK> or <MASK>: adding one would move the model's vocabulary size
        special = {name: token if str(token) in self.vocabulary else None for name, token in named.items()}
        super().__init__(dialect=dialect, vocabulary_version=self.vocabulary_version, **special, **kwargs)

    # ------------------------------------------------------------------------------------------------- text interface

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    def get_vocab(self) -> dict[str, int]:
        return {**self.vocabulary.ids, **self._added_tokens_encoder}

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        found = self.vocabulary.ids.get(token)
        if found is None:
            if self.unk_token is None:
                raise VocabularyError(f"no token {token!r} in this vocabulary, and it has no <UNK>")
            found = self.vocabulary.ids[self.unk_token]
        return found

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < len(self.vocabulary):
            raise VocabularyError(f"id {index} is outside the vocabulary of {len(self.vocabulary)}")
        return self.vocabulary.tokens[index] or f"<UNUSED_{index}>"

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return " ".join(tokens)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        name = (filename_prefix + "-" if filename_prefix else "") + self.vocab_files_names["vocab_file"]
        path = os.path.join(save_directory, name)
        content = {"version": self.vocabulary_version, "vocab": self.vocabulary.ids}
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False, indent=0)
            file.write("\n")
        os.replace(path + ".tmp", path)
        return (path,)

    # ---------------------------------------------------------------------------------------------------------- music

    def encode_midi(
        self,
        midi,
        bars: tuple[int, int] | None = None,
        tracks: list[int] | None = None,
        instruments: list | None = None,
        key: str | None = None,
        velocity: bool | None = None,
        caps: Caps | None = None,
        pedal: str = "ignore",
    ) -> list[int]:
        """One complete segment: `<EOS> header <MGEN> tracks <TE>`.

        Args:
            midi: path, MIDI bytes, `symusic.Score` or `MetricScore`.
            bars: 0-based, half-open range; by default all bars. Leading silence is kept.
            tracks: track indices (file order, drums last); by default all.
            instruments: keep tracks of these instruments (numbers, names or families).
            key: e.g. "C major"; by default the file's, else estimated.
            velocity: write velocities; by default unless they are constant.
            caps: limits of size; by default those of `Caps`.
            pedal: "ignore", or "extend": notes ring while the sustain pedal is down.

        Raises:
            MidiError: an unusable file, or nothing in it to encode.
            VocabularyError: an unknown instrument or key.
            PromptError: impossible bars or tracks.
        """
        if self.dialect == "mortm":
            if bars is not None or tracks is not None:
                raise PromptError("the mortm dialect encodes whole files: leave out bars and tracks", "prompt.bars")
            limits = {} if caps is None else {"caps": caps}
            return encode_upstream(midi, self.vocabulary, instruments, key, velocity=velocity, **limits)
        score = self.read_midi(midi, caps, pedal)
        return self.encode_score(score, bars, tracks, instruments, key, velocity).tolist()

    def read_midi(self, midi, caps: Caps | None = None, pedal: str = "ignore") -> MetricScore:
        """Quantised music of a file.

        Args:
            midi: path, MIDI bytes, `symusic.Score` or `MetricScore` (which stays as it is).
            caps: limits of size; by default those of `Caps`.
            pedal: "ignore", or "extend": notes ring while the sustain pedal is down.

        Raises:
            MidiError: an unusable file.
        """
        if is_score(midi):
            return midi
        return read_midi(midi, Caps() if caps is None else caps, pedal)

    def encode_score(self, score, bars=None, tracks=None, instruments=None, key=None, velocity=None) -> np.ndarray:
        """`encode_midi` for music that is on the grid already.

        Args:
            score: `MetricScore`.
            bars: 0-based, half-open range; by default all bars.
            tracks: track indices; by default all.
            instruments: keep tracks of these instruments (numbers, names or families).
            key: e.g. "C major"; by default the score's, else estimated.
            velocity: write velocities; by default unless they are constant.

        Returns:
            `[n]` int32 ids.

        Raises:
            MidiError: nothing to encode (`midi.empty`).
            VocabularyError: an unknown instrument or key.
            PromptError: impossible bars or tracks.
        """
        vocabulary = self.vocabulary
        if bars is not None:
            score = score.window(*bar_range(bars, score.n_bars, "bars"))
        if tracks is not None or instruments is not None:
            chosen = np.arange(score.n_tracks) if tracks is None else np.asarray(tracks, dtype=np.int64)
            if len(chosen) == 0 or chosen.min() < 0 or chosen.max() >= score.n_tracks:
                raise PromptError(f"tracks must be indices below {score.n_tracks}, got {list(tracks)}")
            if instruments is not None:
                chosen = chosen[np.isin(score.programs[chosen], match_programs(instruments))]
            score = score.take_tracks(chosen)
        sounding = score.sounding_tracks()
        if len(sounding) == 0:
            raise MidiError("nothing to tokenise: the chosen bars and tracks have no notes", "midi.empty")
        if velocity is None:
            velocity = uses_velocity(score)
        sounding = score.take_tracks(sounding)
        facts = Described(
            bars=score.bars,
            instruments=tuple(sounding.programs.tolist()),
            tempo=score.tempo,
            music=sounding,
            sources=(score,),
        )
        stated = {} if key is None else {"key": next(c for c in CONTROLS if c.name == "key").read(key)}
        header = describe(facts, stated)
        return np.concatenate(
            [
                [vocabulary.id(TokenKind.BOS)],
                encode_header(vocabulary, header),
                [vocabulary.id(TokenKind.MGEN)],
                encode_tracks(vocabulary, score, velocity),
                [vocabulary.id(TokenKind.END)],
            ]
        ).astype(np.int32)

    def decode_score(self, ids, strict: bool = False) -> MetricScore:
        """The music of the generated field (or of tracks without any field marker) on the grid.

        Args:
            ids: list, array or tensor of one sequence.
            strict: check them against the grammar first.

        Raises:
            GrammarError: the ids break the grammar (`position` and `token` name the place).
            PromptError: they hold no music (`prompt.empty`), or several sequences.
        """
        ids = self._plain_ids(ids)
        if strict:
            check(self.vocabulary, ids, dialect=self.dialect)
        if self.dialect == "mortm":
            return decode_upstream(ids, self.vocabulary)
        segment = parse_segment(self.vocabulary, ids)
        music = segment.generated
        if music is None:  # a prompt without its answer, or an analysis: the music that it holds
            blocks = [segment.blocks[k] for k in sorted(segment.blocks)]
            if not blocks:
                raise PromptError("these ids hold no music to decode", "prompt.empty")
            music = blocks[0]
        header = segment.header
        if header is not None:
            music = replace(music, key=header.key, genres=header.genres)
            if "tempo" in header and (music.tempo < 0).all():
                music = replace(music, tempo=np.full(music.n_bars, header["tempo"], dtype=np.int16))
        return music

    def decode_midi(self, ids, strict: bool = False) -> symusic.Score:
        """Ids that hold a segment, with or without BOS and EOS -> `symusic.Score`.

        Args:
            ids: list, array or tensor of one sequence.
            strict: check them against the grammar first.

        Raises:
            GrammarError: see `decode_score`; there are more of its errors.
        """
        return to_midi_score(self.decode_score(ids, strict))

    def prompt(self, **request) -> MetricPrompt:
        """A `MetricPrompt`: what a musician asks for.

        Args:
            request: its fields.
        """
        return MetricPrompt(**request)

    def encode_prompt(self, prompt: MetricPrompt, max_length: int | None = None) -> list[int]:
        """Prompt -> ids up to and including the marker of the generated field.

        Args:
            prompt: the request.
            max_length: most tokens; past and future give way.

        Raises:
            PromptError: see `build_prompt`; there are more of its errors.
        """
        return build_prompt(self.vocabulary, prompt, max_length=max_length, dialect=self.dialect).ids.tolist()

    def decode_prompt(self, ids) -> MetricPrompt:
        """The request that prompt ids stand for.

        Args:
            ids: list, array or tensor of one sequence.
        """
        return parse_prompt(self.vocabulary, self._plain_ids(ids))

    def _plain_ids(self, ids) -> np.ndarray:
        if isinstance(ids, list) and ids and isinstance(ids[0], int):
            return np.frombuffer(array("q", ids), dtype=np.int64)  # several times faster than np.asarray
        ids = np.asarray(ids.cpu() if hasattr(ids, "cpu") else ids)
        if ids.ndim > 1 and ids.shape[0] != 1:
            raise PromptError(f"decode one sequence at a time, got ids of shape {ids.shape}")
        return ids.reshape(-1).astype(np.int64)

    def __call__(self, text=None, *args, midi=None, **kwargs) -> BatchEncoding:
        """Encode text, as every tokenizer does, or MIDI.

        Args:
            text: token names separated by spaces, as in transformers.
            args: those of transformers, with text.
            midi: what `encode_midi` takes, or several of it; encoded and padded.
            kwargs: those of transformers with text; with MIDI `padding`, `truncation`, `max_length`, `return_tensors`,
                `return_attention_mask`, `pad_to_multiple_of`, and the arguments of `encode_midi`.

        Raises:
            PromptError: text and MIDI were given; with MIDI all errors of `encode_midi`.
        """
        if midi is None:
            return super().__call__(text, *args, **kwargs)
        if text is not None:
            raise PromptError("pass text or midi, not both")
        names = ("padding", "max_length", "pad_to_multiple_of", "return_tensors", "return_attention_mask")
        padding = {name: kwargs.pop(name) for name in names if name in kwargs}
        truncation = kwargs.pop("truncation", False)
        # any sequence is a batch: lists, tuples, columns of a dataset
        one = isinstance(midi, (str, bytes, bytearray, memoryview, os.PathLike)) or is_symusic(midi) or is_score(midi)
        many = not one and isinstance(midi, Iterable)
        rows = [self.encode_midi(item, **kwargs) for item in (midi if many else [midi])]
        if truncation:
            limit = padding.get("max_length") or self.model_max_length
            rows = [row[:limit] for row in rows]
        if not many and "return_tensors" not in padding:
            rows = rows[0]
        return self.pad({"input_ids": rows}, **({"padding": False} | padding))
