"""The certificate of an exported model, and the record of its training."""
