"""Every method on the same questions: `fsr evaluate`, or `python -m fsr_core.evaluation`.

sets.py        which questions, drawn and encoded once, kept on disk
configs.py        which methods, options and budgets
answers.py     one pass of the language model an config, kept on disk, so that a stopped run goes on
statistics.py  accuracies, intervals, differences from the reference
report.py      what is written: results.json and results.md
plots.py       the plots; overlays.py the page of kept patches
"""
