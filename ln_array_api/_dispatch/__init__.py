"""From a call to a kernel: checks of the arguments, views of the arrays, specs, plans."""
