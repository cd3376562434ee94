"""Losses of papers that are no stage of a policy-gradient step, or no stage alone: one paper, one file, its test beside it.

They are pure functions and links; `isentrope.recipes` lists them with what hosts them and the command that runs them.
"""
