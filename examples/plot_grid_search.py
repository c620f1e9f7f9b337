"""
Grid search in a pipeline
=========================

Every setting is a parameter as scikit-learn knows it: damping, step length, penalty, and what the module takes (prefix
``module__``). So a search tries them like those of any other step of a pipeline. The table: 252 months of
