"""Reads the JSON of API objects into structs, and builds the model from them. No I/O."""
