"""Decides which versions of each model serve. It reads the folder of models and the policies, and plans each change."""
