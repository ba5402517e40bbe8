"""All errors of the suite, and all of their codes.

Design decisions
- Every error is a `MortmError`, a `ValueError` with a `code` that stays the same across releases. Entry files loaded
  from a checkpoint folder are module trees of their own: `isinstance` across them fails, so callers catch
  `ValueError` and read `code`.
- `CODES` lists every code once: its class, what it is raised for and what helps. `docs/errors.md` shows that table;
  a test compares the table with the page and with every `raise` of the package.

Knows: nothing but Python. Must not know: what raises them.
"""

from __future__ import annotations


class MortmError(ValueError):
    """What all errors of the suite are; the message names the input and the remedy.

    Args:
        message: one sentence for the user.
        code: a key of `CODES`; by default the one of the class.
    """

    code = "mortm"

    def __init__(self, message: str, code: str | None = None):
        super().__init__(message)
        if code is not None:
            self.code = code


class MidiError(MortmError):
    """A MIDI input that cannot be used."""

    code = "midi.unreadable"


class VocabularyError(MortmError):
    """A token, instrument, key, meter or chord that the token table does not have."""

    code = "vocabulary.token"


class GrammarError(MortmError):
    """Ids that break the token language.

    Args:
        message: one sentence for the user.
        position: index into the ids.
        token: name of the token there.
        code: a key of `CODES`; by default the one of the class.
    """

    code = "grammar.token"

    def __init__(self, message: str, position: int | None = None, token: str | None = None, code: str | None = None):
        super().__init__(message, code)
        self.position = position
        self.token = token


class PromptError(MortmError):
    """A request for music that makes no sense or does not fit the context."""

    code = "prompt.material"


class GenerationError(PromptError):
    """A way of generating that cannot be served: an argument, or a model that fast decoding cannot run.

    A `PromptError`, because that is what such requests raised in earlier releases.
    """

    code = "prompt.argument"


class ConfigurationError(MortmError):
    """A model configuration that no model could be built from; the message names class and field."""

    code = "configuration.value"


class AudioError(MortmError):
    """Sound that cannot be read, or a request about sound that cannot be served."""

    code = "audio.unreadable"


class DataError(MortmError):
    """Data that cannot be read, prepared or written."""

    code = "data.source"


class TrainingError(MortmError):
    """A recipe or a request that cannot be trained."""

    code = "training.recipe"


class RlmfError(MortmError):
    """A run of reinforcement learning that cannot start."""

    code = "rlmf.recipe"


class ConversionError(MortmError):
    """A checkpoint that cannot be converted as asked."""

    code = "conversion.file"


class CommandError(MortmError):
    """A request that a command cannot serve."""

    code = "command.option"


class LiveError(MortmError):
    """A live session that cannot run."""

    code = "live.argument"


# code -> its class, what it is raised for, what helps
CODES: dict[str, tuple[type[MortmError], str, str]] = {
    "mortm": (MortmError, "a bundled checkpoint that is not installed", "name a folder or a Hub repository"),
    "midi.unreadable": (MidiError, "a file that is missing or is no MIDI", "check the path; export the file again"),
    "midi.empty": (MidiError, "music without the notes that are needed", "give a file, tracks or bars with notes"),
    "midi.timing": (MidiError, "a file without musical time, or notes before its start", "export the file again"),
    "midi.too_large": (MidiError, "a file beyond a limit of size, ticks, tracks, notes or bars", "raise the limit"),
    "midi.argument": (MidiError, "an input or a value that reading MIDI does not take", "see the message"),
    "midi.meter": (MidiError, "a meter that the mortm dialect does not have", "use the metric dialect"),
    "midi.symusic": (MidiError, "the package symusic is missing", "pip install symusic"),
    "vocabulary.token": (VocabularyError, "a token that the table does not have", "use a token of `vocab.json`"),
    "vocabulary.table": (VocabularyError, "a token table that is unknown or damaged", "name a published table"),
    "vocabulary.dialect": (VocabularyError, "a dialect that does not exist", 'use "metric" or "mortm"'),
    "vocabulary.instrument": (VocabularyError, "an instrument without a token", "use a General MIDI name or number"),
    "vocabulary.key": (VocabularyError, "a key that cannot be read", 'write for instance "C major" or "Am"'),
    "vocabulary.meter": (VocabularyError, "a meter outside the table", "use one of the meters of the message"),
    "vocabulary.chord": (VocabularyError, "a chord symbol that cannot be read", 'write for instance "Am7/G"'),
    "vocabulary.genre": (VocabularyError, "a genre without a token", "use one of the genres of the message"),
    "grammar.token": (GrammarError, "ids that break the token language", "see `position` and `token`"),
    "prompt.material": (PromptError, "music that does not fit the request", "give what the message names"),
    "prompt.empty": (PromptError, "a request or ids without any music in it", "give music, or ask for some"),
    "prompt.bars": (PromptError, "bars outside the song, or a number of bars that cannot be", "use bars of the song"),
    "prompt.tracks": (PromptError, "tracks that the song does not have", "use indices below its number of tracks"),
    "prompt.task": (PromptError, "a task that does not exist", 'use "melody", "chords" or "meta"'),
    "prompt.tempo": (PromptError, "a tempo outside 10 to 500", "give quarter notes a minute"),
    "prompt.dialect": (PromptError, "a request that the dialect cannot express", "use a checkpoint of the other one"),
    "prompt.too_long": (PromptError, "a request that does not fit the context", "give or ask for fewer bars"),
    "prompt.argument": (GenerationError, "an argument of generation or a model it does not fit", "see the message"),
    "configuration.value": (ConfigurationError, "a field of a configuration with a wrong value", "mend that field"),
    "audio.unreadable": (AudioError, "sound or a soundfont that cannot be read", "check the path; convert to WAV"),
    "audio.empty": (AudioError, "sound without samples", "give a file that is not empty"),
    "audio.too_long": (AudioError, "sound or music beyond the greatest length", "cut it"),
    "audio.rate": (AudioError, "samples without a sampling rate", "give `sampling_rate` in Hz"),
    "audio.missing": (AudioError, "a package or a soundfont is missing", "pip install 'mortm_hf[audio]'"),
    "audio.argument": (AudioError, "an argument of a sound pipeline that cannot be", "see the message"),
    "data.source": (DataError, "a source that is missing or cannot be read", "check the path or the name"),
    "data.missing": (DataError, "a file that its archive does not hold", "build the archive again"),
    "data.crash": (DataError, "a file whose reading ended the process (listed, not raised)", "leave the file out"),
    "data.too_large": (DataError, "a song with more bars or tracks than a data set holds", "cut it into songs"),
    "data.format": (DataError, "a data set of another kind or version", "build it again"),
    "data.column": (DataError, "a column that is missing or holds something else", "name the column that holds it"),
    "data.option": (DataError, "an option that cannot be", "see the message"),
    "data.output": (DataError, "a folder that exists or cannot be written", "give another folder, or --overwrite"),
    "data.network": (DataError, "the Hub cannot be reached or refuses", "check the network, the name and your login"),
    "training.recipe": (TrainingError, "a recipe or an option that cannot be trained", "mend the field named"),
    "training.data": (TrainingError, "too few or no songs to train on", "give more songs"),
    "training.model": (TrainingError, "a checkpoint that this training is not for", "name a MORTM checkpoint"),
    "training.output": (TrainingError, "a folder that exists or cannot be written", "give another, or --overwrite"),
    "training.interrupted": (TrainingError, "a run that was interrupted", "give the same command again"),
    "training.missing": (TrainingError, "a package is missing", "pip install 'mortm_hf[train]'"),
    "training.hub": (TrainingError, "a folder that cannot be pushed to the Hub", "save it with save_pretrained"),
    "rlmf.recipe": (RlmfError, "a recipe or an option that cannot be run", "mend the field named"),
    "rlmf.trl": (RlmfError, "TRL is missing, or another release than 1.12.0", "pip install 'mortm_hf[rlmf]'"),
    "rlmf.model": (RlmfError, "a policy, critic or judge that cannot be loaded or used", "name a fitting checkpoint"),
    "rlmf.vocabulary": (RlmfError, "models with different token tables", "train them on one table"),
    "rlmf.padding": (RlmfError, "a tokenizer that pads with its end or on the right", "pad on the left with <PAD>"),
    "rlmf.data": (RlmfError, "songs or prompts that cannot be used", "give songs with --data, or longer prompts"),
    "rlmf.device": (RlmfError, "a way of spreading or rounding the model that PPO cannot do", "use DDP, bf16 or fp32"),
    "conversion.file": (ConversionError, "a file that is missing, damaged or holds more than tensors", "save it anew"),
    "conversion.config": (ConversionError, "options that are missing or contradict the tensors", "give --config"),
    "conversion.kind": (ConversionError, "a checkpoint of another kind of model", "give an upstream checkpoint"),
    "conversion.version": (ConversionError, "keys of no release, or not of the one named", "give its --version"),
    "conversion.keys": (ConversionError, "missing, unused or misshapen tensors", "check --config, or give --allow"),
    "conversion.lora": (ConversionError, "low-rank deltas that cannot be added or kept", "--lora-merged, or --lora"),
    "conversion.vocabulary": (ConversionError, "a token table that is unclear or does not fit", "give --vocab"),
    "conversion.output": (ConversionError, "a folder that exists or cannot be written", "give another or --overwrite"),
    "conversion.parity": (ConversionError, "figures that differ from upstream's, or no cases", "see the report"),
    "conversion.folder": (ConversionError, "a folder that cannot go back to upstream", "see the message"),
    "command.option": (CommandError, "an option that cannot be", "see `--help` of the command"),
    "command.input": (CommandError, "a file or folder that cannot be read", "check the path"),
    "command.output": (CommandError, "a file that cannot be written", "name another output"),
    "command.missing": (CommandError, "a package is missing", "install the extra of the message"),
    "live.argument": (LiveError, "an option of a session that cannot be", "see the message"),
    "live.port": (LiveError, "a MIDI port that cannot be found or opened", "list them with `mortm live --ports`"),
    "live.missing": (LiveError, "a package is missing", "pip install mido python-rtmidi"),
}
