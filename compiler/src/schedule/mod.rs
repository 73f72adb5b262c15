//! From graphs to kernels.
