"""Online: bytes -> rows -> runtime -> bytes. Never imports torch."""
