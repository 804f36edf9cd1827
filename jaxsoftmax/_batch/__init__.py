"""The examples of a batch: one form before any logit is looked at, one number at the end.

Of the logits' mathematics nothing is known here: what the loss of a row is, `_row` says.
"""
