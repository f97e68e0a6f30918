"""The front end for fitted scikit-learn pipelines: objects in memory, and files of skops."""
