"""The report of a training: scores, charts, sentences, and the HTML page. The other pages use its base and charts."""
