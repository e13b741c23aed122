"""Pure array-API maths: the reference that every backend is held to."""
