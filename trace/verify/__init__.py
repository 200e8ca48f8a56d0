"""The judge: every stage of a dump recomputed from the dump's own inputs, and a verdict for each.

A file's way is one direction: evidence.py (what the dump holds, and the model) -> site.py, formulas.py, recipes/ (the
Span that rounding allows) -> judge.py (a Finding) -> review.py, budgets.py, locate.py, hypotheses/ (its name) ->
report/ (words). docs/verify.md tells the story, docs/budgets.md derives the bounds.
"""
