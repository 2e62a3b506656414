"""Fuzzers: input that nobody would write on purpose, and a reader that must take it or refuse it in words.

`python -m tools.fuzz --target NAME` runs `NAME.one(rng)` again and again, each time with another `random.Random`. A
case is *accepted* where `one` returns nothing, *refused* where it returns `"refused"` or raises a `UserError`. Any
other exception, a case that takes too long and a process that dies are findings. A target is a module here with such
a function `one`; it may have a `SECONDS`, the longest that a case may take.
"""

TARGETS = ("config_files", "model_config", "meta", "actions", "protocol", "sessions")
