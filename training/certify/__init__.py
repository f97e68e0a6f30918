"""The certificate of an exported model, and the record of how it was trained."""
