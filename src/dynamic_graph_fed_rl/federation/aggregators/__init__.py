"""Rules that turn K received updates into one: a file a rule, all of them named in `registry`."""
