"""`nodenet connectivity test`: pods that connect to each other, and what must come of it. objects.py has the pods,
checks.py what is tried (both pure), run.py does it."""
