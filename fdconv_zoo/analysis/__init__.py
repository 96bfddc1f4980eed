"""What FDConv's modulators and kernels do in a model: functions that return arrays, and others that draw them."""
