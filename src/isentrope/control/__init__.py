"""Interventions on a policy-gradient step: the data that flows, the stages, the objectives, and one file per paper."""
