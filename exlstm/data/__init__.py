"""From a user's files to batches. Each kind of data is a package of its own; import the one you need."""
