"""The cross entropy of a linear layer whose logits never exist, a chunk of tokens at a time.

What the loss of a row is, `_row` says; how rows become one number, `_batch`.
"""
