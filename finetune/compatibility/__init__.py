"""Labelled modes: what the evaluators of published systems print for our scores.

    similarity, matching logits -> Material -> mode -> Printed

They are read beside the headline and never replace it. Each file says what its evaluator does differently and keeps
that, defects included: unstable sorts, half precision, constants that make ties. The figures are recomputed from those
evaluators' published sources; nothing of them is copied.
"""
