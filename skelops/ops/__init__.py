"""The fused ops, one folder each: the public function with checks and gradient, reference.py, and kernels."""
