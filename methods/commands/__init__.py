"""The commands behind ``skelops train``, ``skelops eval`` and ``skelops demo``; they need the [train] extra."""
