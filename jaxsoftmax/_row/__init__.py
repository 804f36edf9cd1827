"""One row of logits: its mathematics, as the chapter has it, for any number of rows at once.

Nothing here knows of batches, reductions or chunks, nor of the platform.
"""
