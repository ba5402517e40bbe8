"""Everything that travels with a checkpoint to the Hub, and nothing else: one flat folder of sibling modules.

Knows: torch, numpy, transformers, tokenizers; symusic where it is installed. Must not know: the rest of the package.
"""
