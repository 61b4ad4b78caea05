"""Compares all methods on the same questions. Run it with `fsr evaluate` or `python -m fsr_core.evaluation`.

question_sets.py   the questions of each set; pictures are drawn and encoded once and cached on disk
method_configs.py  the methods, options and budgets that are compared
answers.py         the answers under one config; they are cached on disk, so that a stopped run can go on
runner.py          runs all configs on all sets and computes the figures
statistics.py      accuracies, intervals, and differences from the reference
timing.py          how long each method takes to select tokens
report.py          writes the figures as Markdown tables
plots.py           draws the plots
overlays.py        draws the page that shows which patches each method keeps
lmms_model.py      the model plugin for lmms-eval; lmms_plugin.py registers it
"""
