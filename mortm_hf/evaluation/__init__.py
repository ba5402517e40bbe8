"""Measures that do not depend on the tokenizer, and the baselines they are read against.

Knows: songs, prompts, probabilities. Must not know: how a model was trained.
"""
