"""An hour of faults in a lab, during which no denied packet may pass, no allowed one may be lost, and no resource may
grow."""
