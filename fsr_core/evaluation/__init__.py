"""Compares all methods on the same questions: `fsr evaluate`, or `python -m fsr_core.evaluation`.

method_configs.py  which methods are compared, with which options and budgets
question_sets.py   the questions of each set, with their pictures encoded once and stored
answers.py         a model's answers under one configuration, stored so that a stopped run goes on
code_digests.py    digests of the code that answers depend on: stored answers of other code are not used
runner.py          runs a plan
figures.py         the figures of one set: accuracies, ablations, automatic budgets
statistics.py      intervals, and differences from the reference
timing.py          the time that selection takes
report.py          tables in Markdown
plots.py           plots of accuracy
overlays.py        a page of pictures that show what each method keeps
lmms_model.py      the model plugin for lmms-eval; lmms_plugin.py registers it
"""
