"""The JSON of API objects as structs, and the model built from them. No I/O."""
