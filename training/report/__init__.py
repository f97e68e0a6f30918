"""The report of a training: scores, charts, sentences, and the HTML page.

The diagnosis uses the same base page and the same charts as this report.
"""
