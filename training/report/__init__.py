"""The report of a training: metrics, charts, and the HTML page."""
