"""From the bytes of a request to the bytes of its response: endpoints, batchers, models. It does not know HTTP."""
