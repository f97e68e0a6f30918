"""From a decoded request to its outputs: endpoints, batchers, and the repository of models. It does not know HTTP."""
