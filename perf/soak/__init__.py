"""An hour of trouble in a lab: nothing denied may get through, nothing allowed may be lost, nothing may grow."""
