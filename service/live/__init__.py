"""Decides which versions of which models serve: the folder of models, the policy, and the steps of a change."""
