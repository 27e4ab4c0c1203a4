"""Before training starts: a short list of what was found, which stops the run where a line failed."""
