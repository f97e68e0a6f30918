"""The report of a training: scores, charts, sentences, and the HTML page. Other pages use its base and charts."""
