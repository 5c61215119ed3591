"""Question sets and corpora: reading every format, fetching the public sets, the built-in demo, batches."""
