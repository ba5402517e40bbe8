"""Everything that travels with a checkpoint to the Hub, and nothing else: one flat folder of sibling modules.

transformers copies siblings only, so the prefix of a name is its chapter. This is the map, each chapter resting on
those above it.

Names, shared by all
- `errors_mortm`: every error and every code.
- `families`: the families of models as data: classes, what reads their inputs, tasks.

Music: quantised, without files and tokens
- `music_names`: tables of keys, chords, genres, meters and tempi; a value is an index into one of them.
- `music_grid`: ticks, meters and bar lines; rounding to 24 ticks a quarter.
- `music_score`: `MetricScore` and `ChordTable`, the music of everything below; generated bars into a song.
- `music_harmony`: key estimation, chord symbols.
- `music_instruments`: General MIDI names and families.

MIDI: files
- `midi_events`: raw events of a file, for upstream's encoding.
- `midi_files`: files to music and back, limits of size, markers.
- `midi_edit`: generated bars and chords into a file whose other events stay as they are.
- `midi_chords`: chord annotation files.

Tokens: the language
- `token_controls`: what a header can state (key, density, ...), a row each.
- `token_headers`: a header, measured from music or thinned for training.
- `token_vocabulary`: the token table, kinds and values.
- `token_codec`: music to ids and back.
- `token_plan`: what a generated field must be, and the state of writing it.
- `token_automaton`: the state machine of what may come next, and at what cost.
- `token_grammar`: the rules, and checks of whole sequences.
- `upstream_vocabulary`: token tables of upstream's releases.
- `upstream_codec`: upstream's encoding of a file, and a decoder for it.
- `tokenization_mortm`: `MortmTokenizer`, the one conversion point between music and ids.

Prompts: what a musician asks for
- `prompt_words`: every word of a request to a value.
- `prompt_passage`: the music that is given and the bars that are asked for.
- `prompt_building`: `MetricPrompt`, prompts, training examples.

Models: tensors only
- `configuration_mortm`, `configuration_bertm`, `configuration_vmortm`, `configuration_mortm_live`: shapes and options.
- `attention_mortm`: ALiBi inside the attention implementations of transformers.
- `experts_mortm`: how experts are computed: `padded_mm`, `grouped_mm` under autocast.
- `modeling_mortm`: the decoder, whose layers the others share.
- `modeling_bertm`: both directions, heads that judge.
- `modeling_vmortm`: patches of mel frames.
- `modeling_mortm_live`: chunks of a piano roll.
- `inputs_bertm`: windows of a song, batches by length.
- `feature_extraction_vmortm`: sound to mel frames and back.
- `processing_mortm_live`: music to piano rolls and back.

Generation
- `generation_mortm`: grammatical logits, a streamer of finished bars.
- `generation_sampling`: seeded sampling.
- `generation_windows`: a song window by window.
- `generation_cpu`: fast decoding on a CPU.
- `generation_kernels`: its compiled step of the model.
- `generation_choice`: its compiled grammar and sampling.
- `generation_fused`: processors of `generate` carried out by `generation_choice`.
- `generation_compiled`: numba, and the folder where compiled code is kept.

Pipelines and rewards
- `pipeline_midi`: what the pipelines share.
- `pipeline_mortm`: `midi-generation`, `chord-estimation`.
- `pipeline_bertm`: `midi-classification`, `midi-feature-extraction`.
- `pipeline_vmortm`: `audio-continuation`.
- `reward_bertm`: how human a piece sounds.

Knows: torch, numpy, transformers, tokenizers; symusic where it is installed. Must not know: the rest of the package.
"""
