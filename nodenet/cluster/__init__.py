"""What a person does with a whole cluster through its API: install, look at it, test it, collect a report."""
