"""The paper's experiments that need no training: what FBM and FDConv cost, and how similar kernels are."""
